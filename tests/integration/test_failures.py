"""What ends a machine ends every wait on it, at once, with the right verdict."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from fixtures.machines import Boot
from harness.catalog import Selection
from harness.deadline import after
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
from harness.machine import Machine
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec

FOREVER = 100_000.0


def waits(machine: Machine) -> dict[str, Callable[[], object]]:
    """Return a wait of each kind that would last for ever."""
    return {
        "console": lambda: machine.console.expect("never printed", after(FOREVER)),
        "screen": lambda: machine.console.wait_for_screen("never shown", after(FOREVER)),
        "ssh": lambda: machine.ssh.run("sleep 100000", deadline=after(FOREVER)),
        "monitor": lambda: machine.qmp.wait(["NEVER"], after(FOREVER)),
    }


def caught_by(machine: Machine, provoke: Callable[[], object]) -> dict[str, type[BaseException]]:
    """Begin a wait of each kind, provoke the failure, and return what each wait raised."""
    machine.ssh.connect()
    raised: dict[str, type[BaseException]] = {}
    begun = threading.Barrier(len(waits(machine)) + 1)

    def target(name: str, wait: Callable[[], object]) -> None:
        begun.wait()
        try:
            wait()
        except HarnessError as error:
            raised[name] = type(error)

    threads = [
        threading.Thread(target=target, args=each, daemon=True) for each in waits(machine).items()
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    provoke()
    for thread in threads:
        thread.join(60)
    return raised


def everywhere(kind: type[HarnessError]) -> dict[str, type[BaseException]]:
    return dict.fromkeys(("console", "screen", "ssh", "monitor"), kind)


def test_a_panic_ends_every_wait(boot: Boot) -> None:
    machine = boot("micro")
    machine.os.login()
    machine.console.leave()
    panic = "echo c > /proc/sysrq-trigger"
    raised = caught_by(machine, lambda: machine.console.send_line(panic))
    assert raised == everywhere(PanicError)
    with pytest.raises(PanicError) as caught:
        machine.console.expect("never printed")
    assert caught.value.verdict is Verdict.PRODUCT
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)


def test_a_panic_that_is_provoked_on_purpose_is_none(boot: Boot) -> None:
    machine = boot("micro", cmdline="panic=-1")
    machine.os.login()
    mark = machine.qmp.mark()
    with machine.expecting(PanicError) as seen:
        machine.console.leave()
        machine.console.send_line("echo c > /proc/sysrq-trigger")
        machine.wait_for_reset(since=mark)
    assert seen
    machine.os.login()
    assert machine.console.run("echo back").stdout == "back\n"


def test_one_restart_too_many_ends_every_wait(boot: Boot) -> None:
    # Up first: SeaBIOS spins for ever when it is reset in its first milliseconds (seen: QEMU 10.0).
    machine = boot("micro").wait_ready()
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
    boot: Boot, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What should start the system sleeps instead, and says nothing.
    machine = boot("micro", cmdline="rdinit=/bin/busybox -- sleep 100000")
    monkeypatch.setattr(type(machine.os), "idle_seconds", 10.0)
    wait = machine.os.login if over == "console" else machine.wait_ready
    with pytest.raises(GuestIdleError, match="to come up, and it did nothing") as caught:
        wait(after(FOREVER))
    assert caught.value.verdict is Verdict.TIMEOUT
    assert "RIP=" in (machine.evidence / "cpus.txt").read_text()


def test_a_guest_that_computes_does_not_hang(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = boot("micro", cmdline='rdinit=/bin/busybox -- sh -c "while :; do :; done"')
    monkeypatch.setattr(type(machine.os), "idle_seconds", 2.0)
    with pytest.raises(WaitTimeoutError) as caught:
        machine.os.login(after(15, scaled=False))
    assert not isinstance(caught.value, GuestIdleError)


def test_qemu_s_death_ends_every_wait(boot: Boot) -> None:
    machine = boot("micro")
    raised = caught_by(machine, lambda: os.kill(machine.pid, signal.SIGKILL))
    assert raised == everywhere(QemuExitedError)
    assert machine.failure is not None
    assert machine.failure.verdict is Verdict.INFRA
    assert "killed by SIGKILL" in str(machine.failure)


def test_a_power_off_that_nobody_asked_for_ends_every_wait(boot: Boot) -> None:
    machine = boot("micro")
    machine.os.login()
    machine.console.leave()
    raised = caught_by(machine, lambda: machine.console.send_line("poweroff -f"))
    assert raised == everywhere(GuestStoppedError)


def test_a_power_off_that_comes_before_its_wait_is_not_missed(boot: Boot) -> None:
    machine = boot("micro")
    machine.os.login()
    machine.console.leave()
    mark = machine.qmp.mark()
    machine.console.send_line("poweroff -f")
    machine.qmp.wait(["SHUTDOWN"], after(60), since=mark)
    machine.wait_for_shutdown()
    assert not machine.running


def test_an_oom_kill_is_the_product_s_fault(boot: Boot) -> None:
    machine = boot("micro", memory=128 * MIB)
    machine.os.login()
    with pytest.raises(OomKillError, match="Killed process"):
        machine.console.run("tail /dev/zero", after(300))


@pytest.mark.parametrize(
    ("firmware", "error"),
    [
        (FirmwareKind.BIOS, NoBootDeviceError),
        (FirmwareKind.UEFI, (NoBootDeviceError, FirmwareShellError)),
    ],
    ids=["bios", "uefi"],
)
def test_a_blank_disk_does_not_boot(
    boot: Boot, image: Selection, firmware: FirmwareKind, error: type[HarnessError]
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
    machine = boot.start(spec, image)
    with pytest.raises(error):
        machine.console.expect("login:", after(120))


def test_qemu_that_refuses_its_arguments_says_why(boot: Boot, image: Selection) -> None:
    spec = MachineSpec("odd", "x86_64", Firmware(FirmwareKind.BIOS), cpu_model="nonsense")
    with pytest.raises(QemuStartError) as caught:
        boot.start(spec, image)
    assert "nonsense" in caught.value.evidence
    assert "qemu.sh" in caught.value.hint


def test_silence_is_told(boot: Boot) -> None:
    machine = boot("micro")
    machine.pause()
    with pytest.raises(WaitTimeoutError) as caught:
        machine.console.expect("login:", after(1, scaled=False))
    assert "'login:'" in caught.value.what
    assert "silent for" in caught.value.what
    assert str(machine.evidence) in caught.value.evidence


def test_a_key_that_the_guest_does_not_know(boot: Boot) -> None:
    machine = boot("micro", authorize=False)
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
def test_a_full_disk_is_told_and_leaves_no_machine(boot: Boot, image: Selection) -> None:
    boot.folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(boot.folder)], check=True
    )
    try:
        spec = MachineSpec("full", "x86_64", Firmware(FirmwareKind.UEFI))
        with pytest.raises(DiskFullError) as caught:
            boot.start(spec, image)
        assert "free" in str(caught.value)
    finally:
        subprocess.run(["umount", "--lazy", str(boot.folder)], check=True)


def test_a_log_that_cannot_grow_is_told_while_the_guest_goes_on(boot: Boot) -> None:
    machine = boot("micro")
    machine.os.login()
    size = machine.console.log.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel would end the process by SIGXFSZ; Python ignores it and gets EFBIG, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, hard))
    try:
        with pytest.raises(DiskFullError, match="console log of micro"):
            machine.console.run("cat /etc/passwd /proc/kallsyms | head -n 2000", after(120))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert machine.running
    assert machine.ssh.run("echo alive").stdout == "alive\n"


def test_a_program_that_asks_gets_answers_and_the_shell_comes_back(boot: Boot) -> None:
    machine = boot("micro")
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
