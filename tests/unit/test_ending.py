"""The end of a machine: which reports fail its scope, and which end it as intended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import (
    GuestStoppedError,
    HarnessError,
    PanicError,
    QemuExitedError,
    TpmError,
    Verdict,
    verdict_of,
)
from harness.machine.ending import Ending
from harness.qemu.qmp import Event
from harness.scope import Scope

RESETS: list[None] = []
EXCUSES = [""]
BUSY = [""]
CONSOLE = cast(
    Any,
    SimpleNamespace(
        last_output=lambda: "last",
        forget_login=lambda: RESETS.append(None),
        excuse=lambda: EXCUSES[-1],
    ),
)
PROCESS = cast(
    Any,
    SimpleNamespace(
        status=-9,
        failed=True,
        how_ended=lambda: "killed by SIGKILL",
        last_words=lambda: "",
        stderr="qemu.stderr",
        wait=lambda limit: True,
    ),
)
STOPPED = cast(Any, SimpleNamespace(status=-9, failed=False))
PANIC = PanicError("m: the kernel panicked")


def event(name: str) -> Event:
    when = {"seconds": 0, "microseconds": 0}
    return Event({"event": name, "data": {"reason": "guest-shutdown"}, "timestamp": when})


class Machine:
    """The scope and the ending of machine m, beside another machine of its test."""

    def __init__(self, *, begun: bool = True) -> None:
        test = Scope("test")
        self.scope, self.sibling = test.child("machine m"), test.child("machine n")
        busy = SimpleNamespace(pressure=lambda seconds: BUSY[-1])
        self.ending = Ending("m", self.scope, scale=cast(Any, busy))
        if begun:
            self.ending.begin()

    def failures(self) -> tuple[type[HarnessError] | None, type[HarnessError] | None]:
        """The failure of the machine and that of the other one, by kind."""
        own, other = self.scope.failure, self.sibling.failure
        return type(own) if own else None, type(other) if other else None


def test_a_qemu_that_dies_fails_the_test() -> None:
    machine = Machine()
    machine.ending.on_exit(PROCESS)
    assert machine.failures() == (QemuExitedError, QemuExitedError)
    assert machine.ending.stopped
    assert machine.ending.explain_console_end(PROCESS) is machine.scope.failure
    assert "QEMU of machine m ended (killed by SIGKILL)" in str(machine.sibling.failure)


def test_what_ends_by_itself_under_pressure_has_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = "the host was under pressure for 3 of 10 s: the kernel killed 1 processes"
    for reports in (Ending.on_exit, Ending.on_tpm_exit):
        monkeypatch.setitem(globals(), "BUSY", [figures])
        machine = Machine()
        reports(machine.ending, PROCESS)
        assert machine.scope.failure is not None
        assert machine.scope.failure.pressure == figures
        assert f"the host is the likely cause: {figures}" in str(machine.scope.failure)
        monkeypatch.setitem(globals(), "BUSY", [""])
        machine = Machine()
        reports(machine.ending, PROCESS)
        assert machine.scope.failure is not None
        assert "the likely cause" not in str(machine.scope.failure)
    monkeypatch.setitem(globals(), "BUSY", [figures])
    reason = Machine().ending.explain_console_end(PROCESS)
    assert isinstance(reason, QemuExitedError)
    assert reason.pressure == figures


def test_a_machine_that_is_stopped_ends_its_own_waits_only() -> None:
    machine = Machine()
    machine.ending.intend()
    machine.ending.on_event(CONSOLE, event("SHUTDOWN"))
    assert machine.failures() == (None, None)
    assert machine.ending.stopped
    machine.ending.on_tpm_exit(PROCESS)
    machine.ending.on_exit(STOPPED)
    assert machine.failures() == (GuestStoppedError, None)
    # The last output of a machine that has ended is no failure of the test.
    machine.ending.on_console_failure(PANIC)
    assert machine.failures() == (GuestStoppedError, None)


def test_a_qemu_that_dies_while_the_guest_shuts_down_is_no_stop() -> None:
    machine = Machine()
    machine.ending.intend()
    machine.ending.on_exit(PROCESS)
    assert machine.failures() == (QemuExitedError, QemuExitedError)
    assert verdict_of(machine.scope.failure) is Verdict.INFRA


def test_a_power_off_without_being_asked_fails_the_test() -> None:
    machine = Machine()
    machine.ending.on_event(CONSOLE, event("SHUTDOWN"))
    assert machine.failures() == (GuestStoppedError, GuestStoppedError)
    assert "machine m powered off (guest-shutdown) without being asked" in str(
        machine.scope.failure
    )


def test_a_power_off_that_the_host_explains_is_the_hosts_fault() -> None:
    machine = Machine()
    EXCUSES.append("the host was busy; in this boot: doubtful calibration of the clock at 0.5 s")
    try:
        machine.ending.on_event(CONSOLE, event("SHUTDOWN"))
    finally:
        EXCUSES.pop()
    assert verdict_of(machine.scope.failure) is Verdict.INFRA
    assert EXCUSES == [""]


def test_a_tpm_that_dies_fails_the_test() -> None:
    machine = Machine()
    machine.ending.on_tpm_exit(PROCESS)
    assert machine.failures() == (TpmError, TpmError)


def test_a_panic_while_the_machine_shuts_down_is_a_failure() -> None:
    machine = Machine()
    machine.ending.intend()
    machine.ending.on_console_failure(PANIC)
    assert machine.failures() == (PanicError, PanicError)


def test_a_start_that_fails_leaves_the_other_machine_alone() -> None:
    machine = Machine(begun=False)
    machine.ending.on_exit(PROCESS)
    assert machine.failures() == (QemuExitedError, None)
    with pytest.raises(QemuExitedError):
        machine.ending.begin()


def test_a_check_is_called_after_each_reset_in_its_block() -> None:
    machine = Machine()
    answers: list[HarnessError | None] = [None, PanicError("m: once too often")]
    next_answer = iter(answers)
    before = len(RESETS)
    with machine.ending.checking(lambda: next(next_answer)):
        machine.ending.on_event(CONSOLE, event("RESET"))
        assert machine.failures() == (None, None)
        machine.ending.on_event(CONSOLE, event("RESET"))
    assert machine.scope.failure is machine.sibling.failure is answers[-1]
    # The check is not called any more: there is no answer left.
    machine.ending.on_event(CONSOLE, event("RESET"))
    assert len(RESETS) == before + 3
