"""A kernel's complaints are findings, with their times; they end no wait, and they are no progress."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.console.complaints import COMPLAINTS, DISK, STALLS, TIMING, is_complaint
from harness.console.watch import DEFAULT_WATCHERS, Scanner
from harness.deadline import UNSCALED, Conditions, Scale
from harness.errors import (
    GuestError,
    PanicError,
    QemuExitedError,
    Verdict,
    WaitTimeoutError,
    verdict_of,
)
from harness.evidence.findings import Findings
from harness.evidence.timeline import Timeline
from harness.machine.vitals import Memory, essence
from tests.unit.test_console_support import SOON, open_console

REAL = Path(__file__).with_name("complaints.txt").read_bytes()
"""What Debian's 6.12.117 printed in micro: in a boot beside a load of 17, on a disk that was throttled
to nothing, after a virtual CPU had stood still for a minute, at an NMI. Some bytes got lost."""

SAID = {
    "rcu-stall": [
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D } 5 jiffies",
        "INFO: rcu_tasks detected stalls on tasks:",
    ],
    "lost-timer": [
        "rcu: rcu_preempt kthread timer wakeup didn't happen for 5255 jiffies! g-1155 f0x0"
    ],
    "rcu-starved": ["rcu: rcu_preempt kthread starved for 5256 jiffies! g-1155 f0x0"],
    "soft-lockup": ["watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [swapper/1:0]"],
    "hard-lockup": ["watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0"],
    "hung-task": [
        "INFO: task swapper/0:1 blocked for more than 121 seconds.",
        "INFO: task kworker/u8:3:71 blocked in I/O wait for more than 120 seconds.",
    ],
    "workqueue-lockup": [
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!"
    ],
    "tsc": [
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because"
        " the skew is too large:",
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc-early' as unstable"
        " because the skew is too large:",
    ],
    "clock": [
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'hpet' as unstable because"
        " the skew is too large:",
        "clocksource: timekeeping watchdog on CPU1: wd-hpet-wd excessive read-back delay of 99ns",
        "tsc: Marking TSC unstable due to TSCs unsynchronized",
    ],
    "clock-calibration": [
        "tsc: PIT calibration deviates from HPET: 124881 2400012",
        "tsc: HPET/PMTIMER calibration failed. Using PIT calibration.",
    ],
    "guest-timeout": [
        "[ TIME ] Timed out waiting for device dev-vda2.device - /dev/vda2.",
        "systemd[1]: dev-vda2.device: Job dev-vda2.device/start timed out.",
        "systemd[1]: Timed out waiting for device dev-vda2.device - /dev/vda2.",
        "systemd[1]: ssh.service: start operation timed out. Terminating.",
        "systemd[1]: ssh.service: start-pre operation timed out. Terminating.",
        "systemd[1]: srv.mount: Mounting timed out. Terminating.",
    ],
    "spurious-irq": ['irq 16: nobody cared (try booting with the "irqpoll" option)'],
    "nmi": ["Uhhuh. NMI received for unknown reason 31 on CPU 0."],
    "disk": [
        "I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2",
        "critical medium error, dev sda, sector 8 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2",
        "Buffer I/O error on dev vda, logical block 0, async page read",
        "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (I/O Cmd) QID 1 timeout, aborting req_op:READ(0)",
        "ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen",
    ],
}

HARMLESS = [
    "tsc: Marking TSC unstable due to clocksource watchdog",  # Follows a line that counts.
    "clocksource: Switched to clocksource acpi_pm",
    "tsc: Using PIT calibration value",  # Follows a line that counts, or is all that there is.
    "tsc: Unable to calibrate against PIT",
    "systemd[1]: x.service: State 'stop-sigterm' timed out. Killing.",
    "x[7]: Timed out waiting for device",
    "rcu: INFO: Stall ended before state dump start",
    "Spurious LAPIC timer interrupt on cpu 0",
    "systemd[1]: task x:1 blocked for more than 120 seconds.",
    "rcu: \tRCU CPU stall warnings timeout set to 21 (rcu_cpu_stall_timeout).",
    "operation not supported error, dev loop0, sector 0 op 0x3:(DISCARD)",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
]


def kinds_in(data: bytes) -> list[str]:
    scanner = Scanner((*DEFAULT_WATCHERS, *COMPLAINTS))
    buffer = bytearray(Scanner.HEADROOM) + data
    return [
        sighting.watcher.name
        for sighting in [*scanner.feed(buffer, Scanner.HEADROOM, len(buffer), 0), *scanner.flush()]
    ]


def test_there_is_a_text_for_each_complaint() -> None:
    assert set(SAID) == {complaint.name for complaint in COMPLAINTS}
    assert set(SAID) >= STALLS


def test_the_manual_lists_each_kind() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/evidence.md").read_text(encoding="utf-8")
    (kinds,) = re.findall(r"The kinds are ([^.]*)\.", page)
    assert re.findall(r"`(.*?)`", kinds) == [complaint.name for complaint in COMPLAINTS]


@pytest.mark.parametrize(
    ("kind", "line"), [(kind, line) for kind, lines in SAID.items() for line in lines]
)
@pytest.mark.parametrize("stamp", ["", "[   47.882671] ", "login: [   47.882671][ T12] "])
def test_a_complaint_is_of_its_own_kind(kind: str, line: str, stamp: str) -> None:
    assert kinds_in(f"before\r\n{stamp}{line}\r\nafter\r\n".encode()) == [kind]
    assert is_complaint((stamp + line).encode())


@pytest.mark.parametrize("line", HARMLESS)
def test_a_line_that_is_like_a_complaint_is_none(line: str) -> None:
    assert kinds_in(f"[   47.882671] {line}\r\n".encode()) == []
    assert kinds_in(f"echo INFO: x detected stalls on CPUs; {line}\r\n".encode()) == []


def test_each_line_of_a_real_report_belongs_to_it() -> None:
    assert kinds_in(REAL.replace(b"\n", b"\r\n")) == [
        *("rcu-stall", "lost-timer", "rcu-starved", "tsc"),
        *("hung-task", "hung-task", "soft-lockup", "rcu-stall", "nmi"),
    ]
    rest = [line for line in REAL.splitlines() if not is_complaint(line)]
    # The word "clocksource" had lost two of its letters.
    assert rest == [
        b"[   54.030376] clocksoce:                       'tsc' is current clocksource."
    ]


def test_a_report_is_no_news_and_a_boot_is() -> None:
    memory = Memory()
    assert not memory.news(REAL.decode())
    boot = "[   55.864395] RAS: Correctable Errors collector initialized.\r\n"
    assert memory.news(boot)
    # The same again, at another time.
    assert not memory.news(boot.replace("55.8", "99.1"))
    assert memory.news("[   56.439635] Run /init as init process\r\n")


@pytest.mark.parametrize(
    ("line", "again"),
    [
        (
            "\x1b[K[*     ] A start job is running for /dev/vda2 (12s / 1min 30s)",
            "[  *** ] A start job is running for /dev/vda2 (17s / 1min 30s)",
        ),
        ("random: crng reseeded 12", "[    9.100000] random: crng reseeded 1300"),
        ("at 0xffffffff810ef560 in x7f", "at 0xdeadbeef in x80"),
        ("....", "........"),
    ],
)
def test_a_line_with_other_numbers_is_the_same(line: str, again: str) -> None:
    memory = Memory()
    memory.news(line)
    assert not memory.news(again)


def test_a_line_in_another_language_has_an_essence() -> None:
    assert essence("[ OK ] 已启动 getty@ttyS0.service") == "OK 已启动 getty service"
    assert essence("[####    ] 42 %") == ""


def test_the_memory_of_lines_is_bounded() -> None:
    memory = Memory()
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(5000)]
    assert memory.news("\n".join(words))
    assert len(memory._seen) == 4096
    assert memory.news(words[0])
    assert not memory.news(words[-1])


def test_a_console_records_findings_and_shows_them(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"\r\n".join(REAL.splitlines()) + b"\r\nlogin: ")
        console.expect("login: ", UNSCALED.after(SOON))
        with pytest.raises(WaitTimeoutError) as caught:
            console.expect("never", UNSCALED.after(0))
        said = str(caught.value).splitlines()[0]
        assert "; the guest complained: RCU stall 2 times, " in said
        assert "hung task 2 times, " in said
        assert console.sightings == []  # They are no failures.
        guest.sendall(b"\r\n[    1.000000] Kernel panic - not syncing: x\r\n")
        with pytest.raises(PanicError, match="the guest complained: RCU stall 2 times"):
            console.expect("never", UNSCALED.after(SOON))


def test_findings_are_counted_by_kind_and_kept_in_the_timeline(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json")
    one, other = Findings(timeline, "one"), Findings(timeline, "other")
    one.hear("rcu-stall", "RCU stall", "the first line")
    kept = json.loads((tmp_path / "timeline.json").read_text())["findings"]
    assert [(each["kind"], each["machine"], each["text"]) for each in kept] == [
        ("rcu-stall", "one", "the first line")
    ]
    for _ in range(3):
        one.hear("rcu-stall", "RCU stall", "a later line")
    other.hear("clock", "clock source marked unstable", "x")
    assert (one.count(STALLS), other.count(STALLS)) == (4, 0)
    assert str(one).startswith("RCU stall 4 times, 0.")
    assert str(other).startswith("clock source marked unstable at 0.")
    with timeline.step("any"):
        kept = json.loads((tmp_path / "timeline.json").read_text())["findings"]
    assert [each["count"] for each in kept] == [4, 1]
    assert kept[0]["start"] <= kept[0]["last"]


@pytest.mark.parametrize(
    "line",
    [
        "Gave up waiting for root file system device.  Common problems:",
        "Login timed out after 60 seconds.",
    ],
)
def test_a_limit_of_the_guests_own_begins_its_line(line: str) -> None:
    assert kinds_in(f"before\r\n{line}\r\n".encode()) == ["guest-timeout"]
    assert kinds_in(f"echo {line}\r\n".encode()) == []


def test_a_boot_has_the_findings_since_the_reset() -> None:
    findings = Findings(Timeline(), "m")
    findings.hear("clock", "clock source marked unstable", "x")
    findings.hear("nmi", "unexpected NMI", "x")
    assert [each.kind for each in findings.in_this_boot(TIMING)] == ["clock"]
    findings.begin_boot()
    assert findings.in_this_boot(TIMING) == []
    findings.hear("clock", "clock source marked unstable", "x")
    assert [each.count for each in findings.in_this_boot(TIMING)] == [2]


@dataclass
class Host:
    """A host that is as it is said to be."""

    pressure: str = ""

    def calm(self) -> float:
        return time.monotonic()

    def stretch(self) -> float:
        return 1.0

    def during(self, since: float) -> Conditions:
        return Conditions(pressure=self.pressure)


BUSY = "QEMU got 6% of what it asked for"
EMERGENCY = "You are in emergency mode."
PANIC = "Kernel panic - not syncing: x"
LATE = "tsc: PIT calibration deviates from HPET: 124881 2400012"


@pytest.mark.parametrize(
    ("host", "said", "last", "verdict"),
    [
        (BUSY, LATE, EMERGENCY, Verdict.INFRA),
        (BUSY, SAID["guest-timeout"][0], EMERGENCY, Verdict.INFRA),
        (BUSY, SAID["clock"][0], EMERGENCY, Verdict.INFRA),
        ("", LATE, EMERGENCY, Verdict.PRODUCT),
        (BUSY, "all is well", EMERGENCY, Verdict.PRODUCT),
        (BUSY, SAID["nmi"][0], EMERGENCY, Verdict.PRODUCT),
        (BUSY, LATE, PANIC, Verdict.PRODUCT),
    ],
)
def test_a_guest_that_was_misled_about_the_time_on_a_busy_host_is_excused(
    tmp_path: Path, host: str, said: str, last: str, verdict: Verdict
) -> None:
    busy = Host(host)
    with open_console(tmp_path, scale=Scale(clock=busy)) as (console, guest):
        guest.sendall(f"[    0.500000] {said}\r\n".encode())
        console.expect("\n", UNSCALED.after(SOON))
        guest.sendall(f"{last}\r\n".encode())
        with pytest.raises(GuestError) as caught:
            console.expect("never", UNSCALED.after(SOON))
        assert verdict_of(caught.value) == verdict
        if verdict == Verdict.INFRA:
            assert BUSY in caught.value.what
            assert "; in this boot: " in caught.value.what
        # The verdict stays when the load has gone, or comes.
        busy.pressure = "" if host else BUSY
        with pytest.raises(GuestError) as again:
            console.expect("never", UNSCALED.after(SOON))
        assert verdict_of(again.value) == verdict


def test_an_earlier_boot_is_no_excuse(tmp_path: Path) -> None:
    with open_console(tmp_path, scale=Scale(clock=Host(BUSY))) as (console, guest):
        guest.sendall(f"[    0.500000] {LATE}\r\nx".encode())
        console.expect("x", UNSCALED.after(SOON))
        assert console.excuse().startswith(f"{BUSY}; in this boot: doubtful calibration")
        console.forget_login()
        assert console.excuse() == ""


def test_a_complaint_that_a_test_provokes_is_no_finding(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        console.findings.expect(DISK)
        guest.sendall(
            b"I/O error, dev vda, sector 0 op 0x0:(READ)\r\nirq 9: nobody cared (try booting"
        )
        guest.sendall(b" with\r\nend\r\n")
        console.expect("end\r\n", UNSCALED.after(SOON))
        assert str(console.findings).startswith("interrupt without a handler at ")
        assert console.findings.count({DISK}) == 0


def test_a_complaint_that_is_the_last_output_is_heard(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"[    1.000000] INFO: task dd:173 blocked for more than 5 seconds.")
        guest.close()
        with pytest.raises(QemuExitedError, match="the guest complained: hung task at "):
            console.expect("never", UNSCALED.after(SOON))


def test_a_flood_of_complaints_is_one_finding(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        for _ in range(100):
            guest.sendall(b"[    1.000000] I/O error, dev vda, sector 0 op 0x0:(READ)\r\n" * 100)
        guest.sendall(b"end\r\n")
        console.expect("end\r\n", UNSCALED.after(SOON))
        assert str(console.findings).startswith("disk error 10000 times, ")
