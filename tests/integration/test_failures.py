"""A failure of a machine ends every wait in its scope, at once, with the right verdict."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Lab, paths
from harness.catalog import Selection
from harness.deadline import UNSCALED
from harness.errors import (
    CommandError,
    ConnectionLostError,
    DiskFullError,
    FirmwareShellError,
    GuestIdleError,
    GuestStoppedError,
    HarnessError,
    NoBootDeviceError,
    OomKillError,
    PanicError,
    QemuExitedError,
    QemuStartError,
    SshKeyRefusedError,
    Verdict,
    WaitTimeoutError,
)
from harness.host.admission import Admission, pool
from harness.host.capacity import capacity
from harness.machine import Machine
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec, Tpm

FOREVER = 100_000.0
PANIC = "echo c > /proc/sysrq-trigger"


def waits(machine: Machine) -> dict[str, Callable[[], object]]:
    """Return a wait of each kind that would never end."""
    return {
        "console": lambda: machine.console.expect("never printed", UNSCALED.after(FOREVER)),
        "screen": lambda: machine.console.wait_for_screen("never shown", UNSCALED.after(FOREVER)),
        "ssh": lambda: machine.ssh.run("sleep 100000", deadline=UNSCALED.after(FOREVER)),
        "monitor": lambda: machine.qmp.wait(["NEVER"], UNSCALED.after(FOREVER)),
    }


def raised_by(machine: Machine, provoke: Callable[[], object]) -> dict[str, HarnessError]:
    """Begin a wait of each kind, provoke the failure, and return the error that each wait raised."""
    machine.ssh.connect()
    raised: dict[str, HarnessError] = {}
    begun = threading.Barrier(len(waits(machine)) + 1)

    def target(name: str, wait: Callable[[], object]) -> None:
        begun.wait()
        try:
            wait()
        except HarnessError as error:
            raised[name] = error

    threads = [
        threading.Thread(target=target, args=wait, daemon=True) for wait in waits(machine).items()
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    provoke()
    for thread in threads:
        thread.join(60)
    return raised


def caught_by(machine: Machine, provoke: Callable[[], object]) -> dict[str, type[BaseException]]:
    """Begin a wait of each kind, provoke the failure, and return the kind of error each raised."""
    return {name: type(error) for name, error in raised_by(machine, provoke).items()}


def everywhere(kind: type[HarnessError]) -> dict[str, type[BaseException]]:
    return dict.fromkeys(("console", "screen", "ssh", "monitor"), kind)


def test_a_panic_ends_every_wait(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.leave()
    raised = caught_by(machine, lambda: machine.console.send_line(PANIC))
    assert raised == everywhere(PanicError)
    with pytest.raises(PanicError) as caught:
        machine.console.expect("never printed")
    assert caught.value.verdict is Verdict.PRODUCT
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)


def test_a_panic_that_is_provoked_on_purpose_is_no_failure(lab: Lab) -> None:
    machine = lab.boot("micro", cmdline="panic=-1")
    machine.os.login()
    mark = machine.qmp.mark()
    with machine.expecting(PanicError) as seen:
        machine.console.leave()
        machine.console.send_line(PANIC)
        machine.wait_for_reset(since=mark)
    assert seen
    machine.os.login()
    assert machine.console.run("echo back").stdout == "back\n"


class Pair:
    """Two machines of one test: ``waiting`` has a wait of each kind when the other one fails."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        self.other = lab.boot("micro", name="other", **options)
        self.waiting = lab.boot("micro", name="waiting")
        self.other.os.login()
        self.waiting.os.login()
        self.waiting.ssh.connect()


def test_a_panic_ends_the_waits_on_another_machine_of_the_test(lab: Lab) -> None:
    pair = Pair(lab)
    pair.other.console.leave()
    started = time.monotonic()
    raised = raised_by(pair.waiting, lambda: pair.other.console.send_line(PANIC))
    assert time.monotonic() - started < 30
    assert {name: type(error) for name, error in raised.items()} == everywhere(PanicError)
    # One error object, the first, and it names the machine that panicked.
    assert {id(error) for error in raised.values()} == {id(pair.other.failure)}
    assert pair.waiting.failure is pair.other.failure is lab.scope.failure
    assert str(pair.waiting.failure).startswith("other: the guest's kernel panicked")
    with pytest.raises(PanicError, match="other: "):
        pair.waiting.succeed("true")
    with pytest.raises(PanicError, match="other: "):
        lab.boot("micro", name="too-late")


def test_a_panic_that_a_test_expects_leaves_other_machines_alone(lab: Lab) -> None:
    pair = Pair(lab, cmdline="panic=-1")
    mark = pair.other.qmp.mark()
    result: list[str] = []
    wait = threading.Thread(target=lambda: result.append(pair.waiting.succeed("sleep 5; echo on")))
    with pair.other.expecting(PanicError) as seen:
        pair.other.console.leave()
        wait.start()
        pair.other.console.send_line(PANIC)
        pair.other.wait_for_reset(since=mark)
    wait.join(60)
    assert seen
    assert result == ["on\n"]
    assert pair.waiting.failure is pair.other.failure is None


@pytest.mark.parametrize("way", ["stop", "power_cut", "shutdown"])
def test_a_machine_that_is_stopped_leaves_other_machines_alone(lab: Lab, way: str) -> None:
    pair = Pair(lab)
    ended: list[HarnessError] = []

    def wait() -> None:
        try:
            pair.other.console.expect("never printed", UNSCALED.after(FOREVER))
        except HarnessError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    getattr(pair.other, way)()
    thread.join(60)
    assert [type(error) for error in ended] == [GuestStoppedError]
    assert "machine other was stopped" in str(ended[0])
    assert pair.waiting.failure is lab.scope.failure is None
    assert pair.waiting.succeed("echo alive") == "alive\n"
    assert lab.boot("micro", name="third").wait_ready().running


def test_one_restart_too_many_ends_every_wait(lab: Lab) -> None:
    # Up first: SeaBIOS spins for ever when it is reset in its first milliseconds (seen: QEMU 10.0).
    machine = lab.boot("micro").wait_ready()
    mark = machine.qmp.mark()
    with machine.restarting_at_most(1):
        machine.qmp.execute("system_reset")
        machine.wait_for_reset(since=mark)
        machine.os.login()
    with (
        pytest.raises(GuestStoppedError, match="restarted before it came up"),
        machine.restarting_at_most(0, since=mark),
    ):
        pytest.fail("it has been restarted already")
    with (
        pytest.raises(GuestStoppedError, match="more often than 1 times"),
        machine.restarting_at_most(1, since=mark),
    ):
        raised = caught_by(machine, lambda: machine.qmp.execute("system_reset"))
    assert raised == everywhere(GuestStoppedError)


@pytest.mark.parametrize("over", ["console", "ssh"])
def test_a_guest_that_hangs_while_it_boots_ends_the_wait_for_it(
    lab: Lab, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The init program sleeps, and prints nothing.
    machine = lab.boot("micro", cmdline="rdinit=/bin/busybox -- sleep 100000")
    monkeypatch.setattr(type(machine.os), "idle_seconds", 10.0)
    wait = machine.os.login if over == "console" else machine.wait_ready
    with pytest.raises(GuestIdleError, match="to come up, and it made no progress") as caught:
        wait(UNSCALED.after(FOREVER))
    assert caught.value.verdict is Verdict.TIMEOUT
    assert "RIP=" in (machine.evidence / "cpus.txt").read_text()


def test_a_guest_that_computes_does_not_hang(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = lab.boot("micro", cmdline='rdinit=/bin/busybox -- sh -c "while :; do :; done"')
    monkeypatch.setattr(type(machine.os), "idle_seconds", 2.0)
    with pytest.raises(WaitTimeoutError) as caught:
        machine.os.login(UNSCALED.after(15))
    assert not isinstance(caught.value, GuestIdleError)


def test_the_death_of_qemu_ends_every_wait(lab: Lab) -> None:
    machine = lab.boot("micro")
    raised = caught_by(machine, lambda: os.kill(machine.pid, signal.SIGKILL))
    assert raised == everywhere(QemuExitedError)
    assert machine.failure is not None
    assert machine.failure.verdict is Verdict.INFRA
    assert "killed by SIGKILL" in str(machine.failure)


def test_a_power_off_without_being_asked_ends_every_wait(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.leave()
    raised = caught_by(machine, lambda: machine.console.send_line("poweroff -f"))
    assert raised == everywhere(GuestStoppedError)


def test_a_power_off_that_comes_before_its_wait_is_not_missed(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.leave()
    mark = machine.qmp.mark()
    machine.console.send_line("poweroff -f")
    machine.qmp.wait(["SHUTDOWN"], machine.scale.after(60), since=mark)
    machine.wait_for_shutdown()
    assert not machine.running


def test_an_oom_kill_is_the_product_s_fault(lab: Lab) -> None:
    machine = lab.boot("micro", memory=128 * MIB)
    machine.os.login()
    with pytest.raises(OomKillError, match="Killed process"):
        machine.console.run("tail /dev/zero", 300)


@pytest.mark.parametrize(
    ("firmware", "error"),
    [
        (FirmwareKind.BIOS, NoBootDeviceError),
        (FirmwareKind.UEFI, (NoBootDeviceError, FirmwareShellError)),
    ],
    ids=["bios", "uefi"],
)
def test_a_blank_disk_does_not_boot(
    lab: Lab, image: Selection, firmware: FirmwareKind, error: type[HarnessError]
) -> None:
    spec = MachineSpec(
        "blank",
        "x86_64",
        Firmware(firmware),
        cpus=1,
        memory=256 * MIB,
        disks=(Disk("disk", size=8 * MIB, boot_index=0),),
        nics=(),
    )
    machine = lab.launch(spec, image)
    with pytest.raises(error):
        machine.console.expect("login:", 120)


def test_qemu_that_refuses_its_arguments_says_why(lab: Lab, image: Selection) -> None:
    spec = MachineSpec("odd", "x86_64", Firmware(FirmwareKind.BIOS), cpu_model="nonsense")
    with pytest.raises(QemuStartError) as caught:
        lab.launch(spec, image)
    assert "nonsense" in caught.value.evidence
    assert "qemu.sh" in caught.value.hint


STEPS = {
    "a disk is created": "harness.qemu.disk.create",
    "the TPM starts": "harness.machine.start.TpmProcess",
    "RAM is allocated": "harness.states.save.Memory.create",
    "qemu.sh is written": "harness.machine.start.record_machine",
    "QEMU starts": "harness.machine.start.OwnedProcess",
    "the console attaches": "harness.machine.start.Console",
    "the monitor attaches": "harness.machine.start.Qmp",
    "the monitor greets": "harness.qemu.qmp.Qmp.connect",
    "the ports are asked for": "harness.qemu.qmp.Qmp.human",
    "SSH is prepared": "harness.ssh.Ssh.__init__",
    "the guest runs": "harness.machine.ending.Ending.begin",
    "the system is created": "harness.profiles.micro.Micro.__init__",
    "the account logs in": "harness.machine.Machine.log_in_as",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_start_that_fails_half_way_leaves_nothing(
    lab: Lab, image: Selection, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    spec = MachineSpec(
        "halfway",
        "x86_64",
        Firmware(FirmwareKind.UEFI),
        memory=256 * MIB,
        disks=(Disk("disk", size=8 * MIB),),
        tpm=Tpm(),
    )
    lab.launch(spec, image, saveable=True).stop()

    def left() -> list[str]:
        """Return this process' descriptors and threads, and the machine's processes and grants."""
        gc.collect()  # garbage of earlier tests
        folder = str(lab.folder)
        commands = [path.read_bytes().decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
        granted = Admission(pool(paths.cache_dir(), capacity()), capacity()).status().granted
        return sorted(
            [
                *(
                    str(path.readlink())
                    for path in Path("/proc/self/fd").iterdir()
                    if path.exists()
                ),
                *(thread.name for thread in threading.enumerate()),
                *(command for command in commands if folder in command),
                *(
                    grant.name
                    for grant in granted
                    if (grant.name, grant.pid) == (spec.name, os.getpid())
                ),
            ]
        )

    before = left()

    def fails(*arguments: object, **options: object) -> None:
        raise LookupError(f"failed where {step}")

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step], fails)
        with pytest.raises(LookupError, match=step):
            lab.launch(spec, image, saveable=True)
    assert left() == before
    # It is no failure of the test: another start may follow.
    assert lab.scope.failure is None
    assert lab.scope._children == []
    assert lab.launch(spec, image).running


def test_a_wait_that_times_out_says_how_long_the_guest_was_silent(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.pause()
    with pytest.raises(WaitTimeoutError) as caught:
        machine.console.expect("login:", UNSCALED.after(1))
    assert "'login:'" in caught.value.what
    assert "silent for" in caught.value.what
    assert str(machine.evidence) in caught.value.evidence


def test_a_key_that_the_guest_refuses(lab: Lab) -> None:
    machine = lab.boot("micro", authorize=False)
    machine.os.login()
    with pytest.raises(SshKeyRefusedError):
        machine.ssh.run("true")


def test_a_connection_lost_in_a_command(micro: Machine) -> None:
    with pytest.raises(ConnectionLostError) as caught:
        micro.ssh.run("echo so far; sleep 1; kill -9 $PPID; sleep 100")
    assert "so far" in caught.value.evidence
    assert micro.ssh.run("echo again").stdout == "again\n"


def test_a_command_that_ends_the_shell_is_a_status(micro: Machine) -> None:
    assert micro.console.run("exit 9").status == 9
    with pytest.raises(CommandError, match="status 4"):
        micro.console.run("exit 4", check=True)
    assert micro.console.run("echo alive").stdout == "alive\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="a full file system takes a mount, which takes root")
def test_a_full_disk_is_an_error_that_leaves_no_machine(lab: Lab, image: Selection) -> None:
    lab.folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(lab.folder)], check=True
    )
    try:
        spec = MachineSpec("full", "x86_64", Firmware(FirmwareKind.UEFI))
        with pytest.raises(DiskFullError) as caught:
            lab.launch(spec, image)
        assert "free" in str(caught.value)
    finally:
        subprocess.run(["umount", "--lazy", str(lab.folder)], check=True)


def test_a_log_that_cannot_grow_is_an_error_while_the_guest_runs_on(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    size = machine.console.log.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel would end the process by SIGXFSZ; Python ignores it and gets EFBIG, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, hard))
    try:
        with pytest.raises(DiskFullError, match="console log of micro"):
            machine.console.run("cat /etc/passwd /proc/kallsyms | head -n 2000", 120)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert machine.running
    assert machine.ssh.run("echo alive").stdout == "alive\n"


def test_an_interactive_program_gets_answers_and_the_shell_comes_back(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    ask = "printf 'Name? '; read name; echo hello $name"
    with machine.console.interactive():
        machine.console.send_line(ask)
        machine.console.expect(r"Name\? $")
        machine.console.send_line("harness")
        machine.console.expect("hello harness")
    assert machine.console.run("echo back").stdout == "back\n"
    with pytest.raises(LookupError), machine.console.interactive():
        raise LookupError
    assert machine.console.run("echo again").stdout == "again\n"
