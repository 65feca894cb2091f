"""A wait that ends while the host starves QEMU is the host's fault, and says so with figures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Lab
from harness.deadline import MOST
from harness.errors import (
    ConnectionLostError,
    QemuExitedError,
    Verdict,
    WaitTimeoutError,
    verdict_of,
)

CALM = 3.0
"""Seconds of a calm host; at most 24 of one under load."""


@contextlib.contextmanager
def starved(pid: int) -> Iterator[None]:
    """Let all threads of a process share one CPU with 16 busy loops; so they starve on any host."""
    cpu = {min(os.sched_getaffinity(0))}
    threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    before = os.sched_getaffinity(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            loop = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(loop.kill)
            os.sched_setaffinity(loop.pid, cpu)
        for thread in threads:
            os.sched_setaffinity(thread, cpu)
        try:
            yield
        finally:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, before)


def test_a_wait_under_pressure_is_the_hosts_fault(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.run("for i in 1 2; do (while :; do :; done) & done")
    with starved(machine.pid), pytest.raises(WaitTimeoutError) as caught:
        machine.console.expect("never", machine.scale.after(CALM / machine.scale.factor))
    error = caught.value
    assert verdict_of(error) is Verdict.INFRA
    assert "the host was under pressure for " in error.pressure
    assert "QEMU got " in error.pressure
    assert ", stretched x " in str(error)
    assert error.seconds > CALM
    names = [step.name for step in machine.timeline.steps]
    assert "the host is under pressure" in names


def test_what_ends_by_itself_under_pressure_has_the_figures(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.ssh.connect()
    machine.console.run("for i in 1 2; do (while :; do :; done) & done")
    with starved(machine.pid):
        with pytest.raises(WaitTimeoutError):
            machine.console.expect("never", machine.scale.after(CALM / machine.scale.factor))
        with pytest.raises(ConnectionLostError) as lost:
            machine.ssh.run("kill -9 $PPID")
        assert verdict_of(lost.value) is Verdict.INFRA
        assert "QEMU got " in lost.value.pressure
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(QemuExitedError) as killed:
            machine.console.expect("never")
    assert "killed by SIGKILL" in str(killed.value)
    assert "the host was under pressure for " in killed.value.pressure


def test_the_timeline_has_the_figures_of_a_machine(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    with pytest.raises(WaitTimeoutError) as caught:
        machine.console.expect("never", machine.scale.after(1 / machine.scale.factor))
    # Whatever the host is like: a blame has figures, and no blame is no verdict on the host.
    blamed = verdict_of(caught.value) is Verdict.INFRA
    assert blamed == ("the host is the likely cause: " in str(caught.value))
    machine.stop()
    (host,) = [step.data for step in machine.timeline.steps if step.name == "host"]
    assert host["seconds"] > 0
    assert host["cpu_asked"] >= host["cpu_got"] > 0
    assert 1.0 <= host["stretch"] <= MOST
