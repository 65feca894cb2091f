"""A kernel's complaints are findings, and a guest that only complains ends its wait."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Lab
from harness.catalog import Selection
from harness.console.complaints import DISK
from harness.console.wire import Wire
from harness.deadline import UNSCALED
from harness.errors import (
    EmergencyModeError,
    FirmwareShellError,
    GuestIdleError,
    GuestStoppedError,
    Verdict,
    WaitTimeoutError,
)
from harness.machine import Machine
from harness.qemu.filter import Fault, Filters, faulty
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec

FOREVER = 100_000.0
MODERATE = 60.0
"""Seconds, for what takes some on a quiet host."""


def kinds(machine: Machine) -> dict[str, int]:
    """Return the counts of the findings by kind, without those that a busy host provokes."""
    return {
        finding.kind: finding.count
        for finding in machine.timeline.findings
        if finding.machine == machine.name and finding.kind not in ("clock", "tsc", "rcu-starved")
    }


def in_the_firmwares_shell(lab: Lab, image: Selection) -> Machine:
    """Return a machine with UEFI and nothing to boot."""
    spec = MachineSpec(
        "firmware", "x86_64", Firmware(FirmwareKind.UEFI), cpus=1, memory=256 * MIB, nics=()
    )
    machine = lab.launch(spec, image)
    with machine.expecting(FirmwareShellError):
        machine.console.expect("Shell> ", MODERATE)
    return machine


def test_a_guest_that_only_complains_ends_its_wait(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.boot("micro", disks=[Disk("data", size=64 * MIB)], cmdline="loglevel=7")
    machine.os.login()
    # Two seconds, for ever; a disk that writes a kilobyte a second.
    machine.console.run(
        "cd /proc/sys/kernel; echo 2 > hung_task_timeout_secs; echo -1 > hung_task_warnings"
    )
    device = "/machine/peripheral/data/virtio-backend"
    nothing = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    machine.qmp.execute("block_set_io_throttle", {"id": device, "bps": 1000, **nothing})
    machine.console.leave()
    machine.console.send_line("dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=fsync; echo written")
    machine.console.expect("blocked for more than", MODERATE)
    # It complains five times as often as it would have to for a sign of life.
    monkeypatch.setattr(type(machine.os), "idle_seconds", 10.0)
    with pytest.raises(GuestIdleError) as caught, machine.coming_up():
        machine.console.expect(r"\r\nwritten", UNSCALED.after(FOREVER))
    assert caught.value.verdict is Verdict.TIMEOUT
    said = str(caught.value).splitlines()[0]
    assert "to come up, and it made no progress" in said
    assert "the guest complained: " in said
    assert "hung task " in said
    assert "RIP=" in (machine.evidence / "cpus.txt").read_text()
    (finding,) = [each for each in machine.timeline.findings if each.kind == "hung-task"]
    assert finding.count > 2
    assert "INFO: task dd:" in finding.text
    assert finding.last > finding.start


@contextlib.contextmanager
def standing_still(machine: Machine, cpu: int) -> Iterator[None]:
    """Stop the thread of one virtual CPU in the block, as an emulator does that loses it: ptrace(2).

    All CPUs stand still where TCG has one thread for them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int) -> None:
        if libc.ptrace(request, thread, None, None):
            if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                pytest.skip("ptrace is forbidden here: allow it, kernel.yama.ptrace_scope")
            raise OSError(ctypes.get_errno(), "ptrace")

    (thread,) = [
        int(task.name)
        for task in Path(f"/proc/{machine.pid}/task").iterdir()
        if (task / "comm").read_text().startswith((f"CPU {cpu}/", "ALL CPUs/"))
    ]
    seize, interrupt, detach = 0x4206, 0x4207, 17
    ptrace(seize)
    ptrace(interrupt)
    os.waitpid(thread, 0x40000000)  # __WALL: threads too.
    try:
        yield
    finally:
        ptrace(detach)


def test_a_cpu_that_stood_still_is_a_finding_and_no_failure(lab: Lab) -> None:
    machine = lab.boot("micro", cpus=2)
    machine.os.login()
    # Linux reports no lockup of an idle CPU: kernel/time/tick-sched.c, tick_nohz_update_jiffies().
    machine.console.run(
        "echo 1 > /proc/sys/kernel/watchdog_thresh; for i in 1 2; do (while :; do :; done) & done"
    )
    with standing_still(machine, 1), pytest.raises(WaitTimeoutError):
        machine.console.expect("never", UNSCALED.after(8))
    machine.console.expect(r"BUG: soft lockup - CPU#\d", MODERATE)
    assert machine.console.run("echo fine").stdout == "fine\n"
    assert "soft-lockup" in kinds(machine)
    assert machine.failure is None
    assert machine.console.sightings == []


def test_a_cpu_that_stands_still_for_ever_ends_the_wait(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.boot("micro", cpus=2)
    machine.os.login()
    monkeypatch.setattr(type(machine.os), "idle_seconds", 10.0)
    with standing_still(machine, 1), pytest.raises(GuestIdleError), machine.coming_up():
        machine.console.expect("never", UNSCALED.after(FOREVER))


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("rcu-stall", "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
        ("lost-timer", "rcu: rcu_preempt kthread timer wakeup didn't happen for 5255 jiffies!"),
        ("clock", "tsc: Marking TSC unstable due to check_tsc_sync_source failed"),
        ("spurious-irq", 'irq 16: nobody cared (try booting with the "irqpoll" option)'),
        ("disk", "I/O error, dev vda, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2"),
    ],
)
def test_a_guest_that_only_repeats_a_complaint_ends_its_wait(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: str, complaint: str
) -> None:
    """The kernel itself prints the line, again and again, as one does whose interrupt is lost."""
    machine = lab.boot("micro")
    machine.os.login()
    quoted = complaint.replace('"', '\\"').replace("'", "'\\''")
    machine.console.leave()
    machine.console.send_line(
        f"while :; do echo '<3>{quoted}' > /dev/kmsg; sleep 1; done; echo ne''ver"
    )
    monkeypatch.setattr(type(machine.os), "idle_seconds", 10.0)
    with (
        pytest.raises(GuestIdleError, match="the guest complained: ") as caught,
        machine.coming_up(),
    ):
        machine.console.expect("never", UNSCALED.after(FOREVER))
    assert caught.value.verdict is Verdict.TIMEOUT
    (finding,) = [each for each in machine.timeline.findings if each.kind == kind]
    assert finding.count > 2


def test_a_clock_that_the_kernel_distrusts_is_a_finding_and_no_failure(lab: Lab) -> None:
    # The parameter has the kernel itself mark its clock (arch/x86/kernel/tsc.c, tsc_setup()).
    machine = lab.boot("micro", cmdline="tsc=unstable loglevel=7")
    machine.os.login()
    (finding,) = [each for each in machine.timeline.findings if each.kind == "clock"]
    assert "Marking TSC unstable due to boot parameter" in finding.text
    assert machine.failure is None


def test_a_tsc_that_the_machine_has_linux_mistime_is_no_finding(lab: Lab, image: Selection) -> None:
    # Under TCG a machine with UEFI has no PIT, by which Linux times its TSC.
    machine = in_the_firmwares_shell(lab, image)
    for complaint in (
        # As Linux says them, but for the end: the firmware's screen has 80 columns.
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc",
        "tsc: Marking TSC unstable due to check_tsc_sync_source failed",
    ):
        line = f"[1.000000] {complaint}"
        machine.console.send_line(f'echo "{line}"', MODERATE, paced=True)
        machine.console.expect(rf"\n{re.escape(line)}[^\n]*\n", MODERATE)
    assert {finding.kind for finding in machine.timeline.findings} == {"clock"}


def test_an_nmi_and_a_line_of_the_kernels_log_are_findings(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.qmp.execute("inject-nmi")
    machine.console.run("echo '<3>irq 16: nobody cared (try booting with' > /dev/kmsg")
    machine.console.run("true")
    assert kinds(machine) == {"nmi": 1, "spurious-irq": 1}


def test_the_errors_of_a_disk_are_findings_unless_a_test_provokes_them(lab: Lab) -> None:
    machine = lab.boot("micro", disks=[Disk("data", size=8 * MIB), Disk("other", size=8 * MIB)])
    machine.os.login()
    read = "dd if=/dev/vd{} of=/dev/null bs=4k count=1 iflag=direct"
    # A fault that Harness does not know of.
    filters = Filters(machine.qmp)
    filters.insert("data", "broken", faulty(filters.top("data"), Fault(on=("read",))))
    assert machine.console.run(read.format("a")).status
    assert machine.console.findings.count({DISK}) > 0
    before = machine.console.findings.count({DISK})
    machine.disk_fault("other")
    assert machine.console.run(read.format("b")).status
    assert "dev vdb" in machine.console.last_output()
    assert machine.console.findings.count({DISK}) == before


def test_a_guest_that_restarts_in_a_loop_ends_its_wait(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.boot("micro", cmdline="rdinit=/bin/busybox -- reboot -f")
    monkeypatch.setattr(type(machine.os), "most_restarts", 2)
    with pytest.raises(GuestStoppedError, match="was restarted more often than 2 times"):
        machine.os.login(UNSCALED.after(FOREVER))
    assert machine.restarts == 3


def test_a_bound_of_the_test_is_the_one_that_counts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.boot("micro", cmdline="rdinit=/bin/busybox -- reboot -f")
    monkeypatch.setattr(type(machine.os), "most_restarts", 0)
    with (
        pytest.raises(GuestStoppedError, match="was restarted more often than 2 times"),
        machine.restarting_at_most(2),
    ):
        machine.wait_ready(UNSCALED.after(FOREVER))


def test_an_initramfs_that_gives_up_ends_the_wait(lab: Lab) -> None:
    # As Alpine's does, which has no disk here to mount.
    script = "busybox echo Launching initramfs emergency recovery shell.; exec busybox sleep 100000"
    machine = lab.boot("micro", cmdline=f'rdinit=/bin/busybox -- sh -c "{script}"')
    with pytest.raises(EmergencyModeError, match="initramfs gave up"):
        machine.os.login(UNSCALED.after(FOREVER))


def test_a_wait_for_a_login_names_the_firmwares_setup(lab: Lab, image: Selection) -> None:
    machine = in_the_firmwares_shell(lab, image)
    # The firmware takes a key for its setup for a moment only; the exit of its shell leads there, too.
    machine.console.send_line("exit")
    machine.console.wait_for_screen("Boot Maintenance Manager", MODERATE)
    with pytest.raises(WaitTimeoutError, match="its console shows the firmware's setup"):
        machine.os.login(UNSCALED.after(1))


def test_what_a_firmware_says_while_nobody_reads_is_kept(
    lab: Lab, image: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firmware waits some milliseconds for its serial port, and a reader on a busy host is later."""
    machine = in_the_firmwares_shell(lab, image)
    read, may_read, wires = Wire.recv_into, threading.Event(), []

    def late(wire: Wire, space: memoryview) -> int:
        wires.append(wire)
        assert may_read.wait(FOREVER)
        return read(wire, space)

    monkeypatch.setattr(Wire, "recv_into", late)
    machine.console.send_line("exit")
    try:
        limit = UNSCALED.after(MODERATE)
        while not (wires and waiting(wires[0]) > 8192) and not limit.expired:
            time.sleep(0.05)  # Nothing tells of bytes that wait in a pipe.
        assert waiting(wires[0]) > 8192
    finally:
        may_read.set()
    screen = machine.console.wait_for_screen("<Enter>=Select Entry", MODERATE)
    assert "Boot Maintenance Manager" in screen.text
    # Each escape sequence of the firmware is a CSI (EDK2, TerminalDxe).
    assert not re.search(rb"\x1b[^\[]", (machine.evidence / "serial.log").read_bytes())


def waiting(wire: Wire) -> int:
    """Return how many bytes of the guest's output wait in the line."""
    count = array.array("i", [0])
    fcntl.ioctl(wire.incoming, termios.FIONREAD, count)
    return count[0]
