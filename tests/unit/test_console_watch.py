"""Watchers: lines that end waits, and harmless lines that resemble them."""

from __future__ import annotations

import pytest

from harness.console.watch import DEFAULT_WATCHERS, Scanner, Sighting, watcher
from harness.errors import GuestError

GENUINE = [
    ("panic", b"[    3.141592] Kernel panic - not syncing: VFS: Unable to mount root fs"),
    ("panic", b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009"),
    ("panic", b"<0>[   12.000001][    T1] Kernel panic - not syncing: Fatal exception"),
    ("panic", b"micro login: [   12.000001] Kernel panic - not syncing: sysrq"),
    ("oops", b"[    5.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000"),
    ("oops", b"[    5.000000] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI"),
    ("oops", b"[    5.000000] kernel BUG at mm/slub.c:4321!"),
    ("oops", b"[    5.000000] general protection fault, probably for non-canonical address 0x1"),
    ("oops", b"[    5.000000] Unable to handle kernel paging request at virtual address 00"),
    ("oops", b"[    5.000000] Internal error: Oops: 0000000096000004 [#1] SMP"),
    ("oom", b"[   99.000000] Out of memory: Killed process 321 (stress) total-vm:12kB"),
    ("oom", b"[   99.000000] Memory cgroup out of memory: Killed process 321 (x) total-vm:12kB"),
    ("emergency", b'You are in emergency mode. After logging in, type "journalctl -xb" to view'),
    ("emergency", b"\x1b[0;1;31mYou are in rescue mode.\x1b[0m After logging in, type"),
    ("emergency", b"Entering emergency mode. Exit the shell to continue."),
    ("emergency", b"Cannot open access to console, the root account is locked."),
    ("initramfs", b"ALERT!  /dev/vda2 does not exist.  Dropping to a shell!"),
    ("initramfs", b"(initramfs) "),
    ("initramfs", b"Rebooting automatically due to panic= boot argument"),
    ("initramfs", b"dracut:/# "),
    ("initramfs", b"Dropping to debug shell."),
    (
        "initramfs",
        b'dracut Warning: Boot has failed. To debug this issue add "rd.shell rd.debug" to the kernel',
    ),
    ("initramfs", b"You are now being dropped into an emergency shell."),
    ("initramfs", b"You are being dropped to a recovery shell"),
    ("initramfs", b"Launching initramfs emergency recovery shell."),
    ("initramfs", b"Booting from ROM..Launching initramfs emergency recovery shell."),
    ("initramfs", b"initramfs emergency recovery shell launched. Type 'exit' to continue boot"),
    ("initramfs", b"Mounting root: failed. initramfs emergency recovery shell launched."),
    ("initramfs", b"/sbin/init not found in new root. Launching emergency recovery shell"),
    ("initramfs", b"An error occurred in stage 1 of the boot process, which must mount the"),
    ("emergency", b"Give root password for maintenance"),
    ("emergency", b"Press Enter for maintenance"),
    ("init-crash", b"\x1b[!p[!!!!!!] Failed to start up manager."),
    ("firmware-shell", b"\x1b[2J\x1b[01;01H\x1b[0m\x1b[37m\x1b[40mUEFI Interactive Shell v2.2"),
    (
        "firmware-shell",
        b'BdsDxe: starting Boot0002 "EFI Internal Shell" fr\x1bBUEFI Interactive Shell v2.2',
    ),
    ("no-boot-device", b"BdsDxe: No bootable option or device was found."),
    (
        "no-boot-device",
        b'"EFI Internal Shell" fr\x1bBBdsDxe: No bootable option or device was found.',
    ),
    ("no-boot-device", b"No bootable option or device was found."),
    ("no-boot-device", b"No bootable device."),
    ("first-boot", b"-- Press any key to proceed --"),
]

HARMLESS = [
    b"echo Kernel panic - not syncing: in the middle of a line",
    b"[    1.000000] ---[ end Kernel panic - not syncing: Fatal exception ]---",
    b"Nov 21 08:00:00 host kernel: Kernel panic - not syncing: of another boot",
    b"[    1.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]",
    b"[    1.000000] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
    b"[    1.000000] traps: foo[123] general protection fault ip:55 sp:7f error:0 in foo",
    b"[    1.000000] WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 bar+0x1/0x2",
    b"REPORT A BUG: here",
    b"[  OK  ] Reached target emergency.target - Emergency Mode.",
    b"[  OK  ] Started emergency shell helper, emergency mode off.",
    b"Welcome to the UEFI Interactive Shell documentation",
    b"Press any key to proceed",
    b"Exit (initramfs) never",
    b"[    1.000000] dracut: Dropping to debug shell later",
    b"Asked for maintenance: press Enter for maintenance",
    b"# An error occurred in stage 1 of the boot process",
    b"say [!!!!!!] hello",
]


def scan(chunks: list[bytes]) -> list[Sighting]:
    scanner = Scanner(DEFAULT_WATCHERS)
    sightings: list[Sighting] = []
    offset = 0
    for chunk in chunks:
        buffer = bytearray(Scanner.HEADROOM) + chunk
        sightings += scanner.feed(buffer, Scanner.HEADROOM, len(buffer), offset)
        offset += len(chunk)
    return sightings + scanner.flush()


@pytest.mark.parametrize(("name", "line"), GENUINE)
def test_a_genuine_line_is_seen_once_wherever_the_output_is_split(name: str, line: bytes) -> None:
    text = b"[  OK  ] before\r\n" + line + b"\r\nafter\r\n"
    for cut in range(len(text) + 1):
        assert [sighting.watcher.name for sighting in scan([text[:cut], text[cut:]])] == [name], cut


@pytest.mark.parametrize(("name", "line"), GENUINE)
def test_a_line_is_shown_whole_wherever_the_output_is_split(name: str, line: bytes) -> None:
    text = b"[  OK  ] before\r\n" + line + b"\r\nafter\r\n"
    whole = [sighting.line for sighting in scan([text])]
    assert len(whole) == 1, name
    for cut in range(len(text) + 1):
        assert [sighting.line for sighting in scan([text[:cut], text[cut:]])] == whole, cut


@pytest.mark.parametrize(("name", "line"), GENUINE)
@pytest.mark.parametrize("before", [b"", b"\n", b"\r", b"text\r\n"])
def test_a_genuine_line_is_seen_byte_by_byte(name: str, line: bytes, before: bytes) -> None:
    text = before + line + b"\r\nafter\r\n"
    assert [sighting.watcher.name for sighting in scan([bytes([byte]) for byte in text])] == [name]


@pytest.mark.parametrize(("name", "line"), GENUINE)
def test_a_genuine_line_is_seen_in_a_flood(name: str, line: bytes) -> None:
    flood = b"[  OK  ] Started (something) with BIG: UPPER KEYS! gyk\r\n" * 3000
    colour = b"\x1b[32mgreen\x1b[0m\r\n" * 3000
    for around in (flood, colour, flood + colour):
        text = around + line + b"\r\n" + around
        assert len(text) > 64 * 1024
        assert [sighting.watcher.name for sighting in scan([text])] == [name]
        for cut in range(len(around) - 2, len(around) + len(line) + 3, 7):
            assert [sighting.watcher.name for sighting in scan([text[:cut], text[cut:]])] == [
                name
            ], cut


@pytest.mark.parametrize("line", HARMLESS)
def test_a_harmless_line_is_not_seen(line: bytes) -> None:
    text = b"before\r\n" + line + b"\r\nafter\r\n"
    assert scan([text]) == []
    assert scan([bytes([byte]) for byte in text]) == []
    for cut in range(len(text)):
        assert scan([text[:cut], text[cut:]]) == [], cut


def test_a_prompt_is_seen_before_its_line_ends() -> None:
    assert [sighting.watcher.name for sighting in scan([b"\r\n(initra", b"mfs) "])] == ["initramfs"]


def test_the_middle_of_an_endless_line_does_not_match() -> None:
    for size in (100, 600, 5000, 100_000):
        text = b"x" * size + b"Kernel panic - not syncing: no"
        assert scan([text]) == []
        assert scan([text[:size], text[size:]]) == []
        assert len(scan([text + b"\nKernel panic - not syncing: yes\n"])) == 1


def test_the_kept_part_of_an_endless_line_does_not_match() -> None:
    text = b"x" * 5000 + b"Kernel panic - not syncing: no"
    for more in range(960, 1060):
        assert scan([text + b"y" * more, b"z" * 300 + b"\r\n"]) == [], more


def test_each_matching_line_is_a_sighting() -> None:
    line = b"[    1.000000] BUG: Bad page state\r\n"
    assert len(scan([line * 3])) == 3
    assert len(scan([line, line, line])) == 3


def test_the_offset_of_a_sighting_is_that_of_its_match() -> None:
    text = b"x login: [    1.000000] Kernel panic - not syncing: y\n"
    assert [sighting.offset for sighting in scan([b"1234\n" + text])] == [5 + text.index(b"[")]
    assert [sighting.offset for sighting in scan([b"1234\n" + text[:20], text[20:]])] == [
        5 + text.index(b"[")
    ]


def test_the_line_is_shown_without_escapes() -> None:
    (sighting,) = scan([b"\x1b[31mNo bootable device.\x1b[0m\r\n"])
    assert sighting.line == "No bootable device."


def test_a_needle_must_be_long_enough() -> None:
    with pytest.raises(ValueError, match="four"):
        watcher("x", "x", GuestError, ["abc"], "abc", "")
