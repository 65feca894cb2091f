"""What in a guest's output means that waiting on is pointless: watchers, and the scanner.

A watcher has *needles*, byte strings one of which occurs in every line it looks for, and a
*pattern*, a regular expression that decides on the line. The scanner looks for needles alone, at
the speed of ``memmem``, and tries a pattern only on a line with a needle in it. Lines are seen
without escape sequences, whole, however the output was cut into chunks, and as soon as the pattern
fits: a prompt has no newline.

A pattern is anchored: ``{k}`` stands for the shape of a kernel line, which begins with a timestamp
(``[   12.345678] ``, with ``CONFIG_PRINTK_CALLER`` also ``[T1]``) or, without one, at the start of
a line. With its timestamp a kernel line may begin anywhere: printk does not wait for a program to
end its line, and a panic often stands behind a prompt.

Sources of the texts: Linux ``kernel/panic.c``, ``arch/*/mm/fault.c``, ``mm/oom_kill.c``,
``lib/bug.c``; systemd ``units/emergency.service``, ``units/rescue.service``,
``src/firstboot/firstboot.c``, ``src/core/crash-handler.c``; util-linux ``sulogin.c``; dracut
``dracut-emergency.sh``; initramfs-tools ``scripts/functions``; EDK2 ``BdsEntry.c``, ``Shell.uni``;
SeaBIOS ``src/boot.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.console.text import cut_sequence, strip_escapes
from harness.errors import (
    EmergencyModeError,
    FirmwareShellError,
    FirstBootWizardError,
    GuestError,
    NoBootDeviceError,
    OomKillError,
    OopsError,
    PanicError,
)

_KERNEL: Final = rb"(?:^(?:<\d+>)?|\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? )"

_LINE: Final = 1024
"""Of a longer line, only this much around a needle is looked at."""

_BEFORE: Final = 512

_SHOWN: Final = 300

_SMALL: Final = 64 * 1024
"""Larger chunks are a flood: their escapes are not taken out as a whole, only from the lines that
have a needle, which finds all but a needle with an escape sequence in its middle."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """What to look for, and the error it means.

    Attributes:
        name: A short name, unique among the watchers of a console.
        what: One clause for the message: what the guest did.
        error: The error that ends the waits.
        needles: Byte strings, one of which is in every line that ``pattern`` fits. Long and rare
            ones cost least.
        pattern: Fits the line, searched for without escape sequences; ``^`` is the line's start.
        hint: What the reader of the error should try.
    """

    name: str
    what: str
    error: type[GuestError]
    needles: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    hint: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """One line that a watcher found.

    Attributes:
        watcher: Whose.
        line: The line, without escape sequences.
        offset: Where in the output it is: a byte offset that no text before the line exceeds.
    """

    watcher: Watcher
    line: str
    offset: int


def watcher(
    name: str,
    what: str,
    error: type[GuestError],
    needles: Iterable[str],
    pattern: str,
    hint: str,
) -> Watcher:
    """Return a watcher; in ``pattern``, ``{k}`` stands for the start of a kernel line.

    Raises:
        ValueError: if there is no needle, or one is shorter than four characters.
    """
    found = tuple(needle.encode() for needle in needles)
    if not found or min(map(len, found)) < 4:
        raise ValueError(f"watcher {name}: needles have at least four characters")
    source = pattern.encode().replace(b"{k}", _KERNEL)
    return Watcher(name, what, error, found, re.compile(source), hint)


_TRACE_HINT: Final = "read the trace in the log; `with console.expecting(...)` if the test wants it"

DEFAULT_WATCHERS: Final = (
    watcher(
        "panic",
        "the guest's kernel panicked",
        PanicError,
        ["Kernel panic - not syncing"],
        r"{k}Kernel panic - not syncing",
        _TRACE_HINT,
    ),
    watcher(
        "oops",
        "the guest's kernel reported an oops",
        OopsError,
        [
            "BUG: ",
            "Oops: ",
            "kernel BUG at ",
            "general protection fault",
            "Unable to handle kernel",
            "Internal error: ",
        ],
        # A workqueue lockup says that the host is slow, not that the guest is wrong; a soft lockup
        # has "watchdog: " before its BUG and does not fit.
        r"{k}(?:BUG: (?:[^w]|w(?!orkqueue lockup).{15})|Oops: |kernel BUG at \S+:\d+"
        r"|general protection fault[,:]|Unable to handle kernel |Internal error: )",
        _TRACE_HINT,
    ),
    watcher(
        "oom",
        "the guest's kernel killed a process for want of memory",
        OomKillError,
        ["ut of memory: Kill"],
        r"{k}(?:Out|Memory cgroup out) of memory: Kill(?:ed)? process",
        "give the machine more memory, or find what eats it",
    ),
    watcher(
        "emergency",
        "the guest is in emergency mode",
        EmergencyModeError,
        ["emergency mode", "rescue mode", "the root account is locked", "emergency shell"],
        r"^(?:(?:You are in|Welcome to|Entering) (?:emergency|rescue) mode"
        r"|Cannot open access to console, the root account is locked"
        r"|You are now being dropped into an emergency shell"
        r"|initramfs emergency recovery shell launched)",
        "see which unit failed before it in the log",
    ),
    watcher(
        "initramfs",
        "the guest's initramfs gave up and started a shell",
        EmergencyModeError,
        ["(initramfs)", "Dropping to a shell", "dracut:/#"],
        r"^(?:\(initramfs\)|ALERT! .*Dropping to a shell!|dracut:/# ?$)",
        "the root file system was not found: see root= and the disks in the log",
    ),
    watcher(
        "init-crash",
        "the guest's systemd stopped",
        EmergencyModeError,
        ["[!!!!!!]"],
        r"^\[!!!!!!\] ",
        "see what systemd says before it in the log",
    ),
    watcher(
        "firmware-shell",
        "the firmware found nothing to boot and started its shell",
        FirmwareShellError,
        ["UEFI Interactive Shell"],
        r"^UEFI Interactive Shell v\d",
        "check that the disk is attached and has an EFI system partition the firmware can read",
    ),
    watcher(
        "no-boot-device",
        "the firmware found no bootable device",
        NoBootDeviceError,
        ["No bootable "],
        r"^(?:BdsDxe: )?No bootable (?:device\b|option or device was found)",
        "check that the disk is attached and made for this firmware (BIOS or UEFI)",
    ),
    watcher(
        "first-boot",
        "systemd-firstboot waits for a key on the console",
        FirstBootWizardError,
        ["Press any key to proceed"],
        r"^-+ *Press any key to proceed",
        "give the image its machine id, locale and root password, or mask systemd-firstboot",
    ),
)
"""The watchers every console has unless told otherwise."""


_SIEVE: Final = 4096

_LATE: Final = 256
"""Bytes without a line break that may wait to be looked at: a serial port gives one at a time."""

_SIEVED: Final = tuple(bytes([byte]) for byte in b" :!(BGIKNOPSUgky")


def _rare_bytes(needle: bytes) -> frozenset[bytes]:
    return frozenset(byte for byte in _SIEVED if byte in needle)


class Scanner:
    """Finds watched lines in a stream of chunks; used by one thread.

    Time is linear in the output, memory is bounded: of a line that has not ended, the last 1 KiB is
    kept.

    Args:
        watchers: What to look for.
    """

    HEADROOM: Final = 2 * _LINE + _LATE
    """Bytes before the chunk in the caller's buffer that :meth:`feed` may overwrite."""

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._watchers = tuple(watchers)
        self._needles = [
            (needle, _rare_bytes(needle), w) for w in self._watchers for needle in w.needles
        ]
        self._carry = b""  # the line that has not ended, without escapes
        self._whole = True  # whether the carry begins where its line does
        self._cut = b""  # an escape sequence that has not ended
        self._late = b""  # output that nobody has looked at yet
        self._late_offset = 0
        self._seen: set[str] = set()  # who has already found the line that has not ended

    def feed(self, buffer: bytearray, start: int, end: int, offset: int) -> list[Sighting]:
        """Look at ``buffer[start:end]``, which is the output from ``offset`` on.

        A few bytes that end no line are looked at with the next ones, or by :meth:`flush`.
        ``buffer`` needs :data:`HEADROOM` bytes before ``start``; they are overwritten.
        """
        late = self._late
        if end - start + len(late) <= _LATE:
            chunk = buffer[start:end]
            if b"\n" not in chunk and b"\r" not in chunk:
                if not late:
                    self._late_offset = offset
                self._late = late + chunk
                return []
        if late:
            buffer[start - len(late) : start] = late
            start -= len(late)
            offset = self._late_offset
            self._late = b""
        return self._look(buffer, start, end, offset)

    @property
    def late(self) -> bool:
        """Whether :meth:`flush` has something to look at."""
        return bool(self._late)

    def flush(self) -> list[Sighting]:
        """Look at all that has come, for nothing may come for a while: a prompt, say."""
        late, self._late = self._late, b""
        if not late:
            return []
        buffer = bytearray(self.HEADROOM) + late
        return self._look(buffer, self.HEADROOM, len(buffer), self._late_offset)

    def _look(self, buffer: bytearray, start: int, end: int, offset: int) -> list[Sighting]:
        escapes = bool(self._cut) or buffer.find(b"\x1b", start, end) >= 0
        if escapes and end - start <= _SMALL:
            raw = self._cut + bytes(memoryview(buffer)[start:end])
            cut = cut_sequence(raw)
            self._cut = raw[cut:]
            text = bytearray(self._carry + strip_escapes(raw[:cut]))
            found = self._scan(text, 0, len(self._carry), len(text), offset, raw)
            return found
        before = (self._carry + self._cut)[-2 * _LINE :]
        self._cut = b""
        low = start - len(before)
        buffer[low:start] = before
        found = self._scan(buffer, low, start, end, offset, None)
        if escapes:
            cut = cut_sequence(self._carry)
            self._cut = self._carry[cut:]
            self._carry = strip_escapes(self._carry[:cut]).rpartition(b"\n")[2]
        return found

    def _scan(
        self, text: bytearray, low: int, start: int, end: int, offset: int, raw: bytes | None
    ) -> list[Sighting]:
        found: list[Sighting] = []
        seen: set[str] = set()
        done: set[tuple[str, int]] = set()  # a line may have several needles of one watcher
        find = text.find
        # One byte is found an order of magnitude faster than a word, and most floods lack some.
        absent = set()
        if end - low > _SIEVE:
            absent = {byte for byte in _SIEVED if find(byte, low, end) < 0}
        for needle, rare, w in self._needles:
            if absent and not absent.isdisjoint(rare):
                continue
            at = find(needle, low, end)
            while at >= 0:
                first, last, whole = self._line(text, low, at, end)
                old = (first <= start and w.name in self._seen) or (w.name, first) in done
                if not old:
                    # A byte that fits no pattern keeps ^ from fitting in the middle of a line.
                    line = bytes(text[first:last]) if whole else b"\0" + bytes(text[first:last])
                    if b"\x1b" in line:
                        parts = strip_escapes(line).split(b"\n")
                        line = next((part for part in parts if needle in part), line)
                    fit = w.pattern.search(line)
                    if fit:
                        done.add((w.name, first))
                        if last == end:
                            seen.add(w.name)
                        if raw is None:
                            where = offset + first - start + fit.start()
                        else:
                            where = offset + max(0, raw.find(needle))
                        shown = line.lstrip(b"\0").decode("utf-8", "replace").strip()
                        found.append(Sighting(w, shown[:_SHOWN], where))
                at = find(needle, max(last, at + 1), end)
        self._keep(text, low, start, end, seen)
        if len(found) > 1:
            found.sort(key=lambda sighting: sighting.offset)
        return found

    def _line(self, text: bytearray, low: int, at: int, end: int) -> tuple[int, int, bool]:
        """Return the bounds of the line around ``at``, and whether it begins there.

        Of a very long line they are the bounds of a part.
        """
        floor = max(low, at - _BEFORE)
        first = max(text.rfind(b"\n", floor, at), text.rfind(b"\r", floor, at)) + 1
        last = min(end, at + _LINE)
        for mark in (b"\n", b"\r"):
            stop = text.find(mark, at, last)
            last = stop if stop >= 0 else last
        if first:
            return first, last, True
        return floor, last, floor == low and self._whole

    def _keep(self, text: bytearray, low: int, start: int, end: int, seen: set[str]) -> None:
        first = max(text.rfind(b"\n", start, end), text.rfind(b"\r", start, end)) + 1
        if first:
            self._seen = seen
            self._whole = True
        else:
            self._seen |= seen
            first = low
        if end - first > _LINE:
            first = end - _LINE
            self._whole = False
        self._carry = bytes(text[first:end])
