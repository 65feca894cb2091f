"""Watchers, which detect a guest's failures in its output, and the scanner that runs them.

A watcher has *needles* and a *pattern*. Each matching line contains one of the needles, which are
byte strings; the pattern, a regular expression, then decides. The scanner searches for the needles
of all watchers in one pass (:mod:`~harness.console.literals`), and tries a pattern only on a line
that contains a needle of its watcher, so a line without one costs next to nothing. It sees whole
lines without escape sequences, however the output was split into chunks. It reports a line as soon
as the pattern matches, even before the newline, because a prompt has none.

A pattern is anchored: ``{k}`` stands for the start of a kernel line, which is a timestamp
(``[   12.345678] ``, with ``CONFIG_PRINTK_CALLER`` also ``[T1]``) or, without one, the start of a
line. With a timestamp, a kernel line may start anywhere: printk does not wait for a program to end
its line, and a panic is often printed after a prompt.

Sources of the texts: Linux ``kernel/panic.c``, ``arch/*/mm/fault.c``, ``mm/oom_kill.c``,
``lib/bug.c``; systemd ``src/sulogin-shell/sulogin-shell.c``, ``src/firstboot/firstboot.c``,
``src/core/crash-handler.c``; util-linux ``login-utils/sulogin.c``; EDK2 ``BdsEntry.c``,
``Shell.uni``; SeaBIOS ``src/boot.c``. Of the initramfs generators: dracut ``dracut-emergency.sh``
and ``dracut-lib.sh`` (``emergency_shell``); initramfs-tools ``scripts/functions`` (``panic``, which
the scripts of mdadm and cryptsetup call as well) and ``scripts/local``; mkinitcpio ``init`` and
``init_functions``; Alpine's mkinitfs ``initramfs-init.in``; NixOS ``stage-1-init.sh``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.console.literals import Literals
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

_HANDOVER: Final = b"Booting from ROM.."
"""What is seen of SeaBIOS' last line before a kernel that QEMU loaded. Its serial console sends the end
of the line with the next timer interrupt, which the kernel has masked: the guest's first line follows.
"""

_LINE: Final = 1024
"""Bytes after a needle up to which its line is examined."""

_BEFORE: Final = 512
"""Bytes before a needle from which its line is examined."""

_SHOWN: Final = 300
"""Characters of the line that a sighting holds."""

_SMALL: Final = 64 * 1024
"""Bytes. In larger chunks, escape sequences are removed only from lines that contain a needle.

This misses a needle that has an escape sequence inside it.
"""


@dataclass(frozen=True, slots=True)
class Watcher:
    """A kind of line to detect, and the error that it means.

    Attributes:
        name: A short name, unique among the watchers of a console.
        what: A clause for the message that says what the guest did.
        error: The class of the error that ends the waits. ``None`` for a complaint of
            :mod:`harness.console.complaints`, which ends none.
        needles: Byte strings, one of which is in every line that ``pattern`` matches. Rare ones
            cost least.
        pattern: Searched for in the line without escape sequences; ``^`` is the line's start.
        hint: What to try next, for the message.
    """

    name: str
    what: str
    error: type[GuestError] | None
    needles: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    hint: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A line that a watcher detected.

    Attributes:
        watcher: The watcher.
        line: The line without escape sequences; at most 300 characters.
        words: The part of it that the pattern matched.
        note: A clause for the message that says why it counts as a crash; often empty.
        offset: The offset of the match in the output, in bytes; approximate in output with escape
            sequences.
    """

    watcher: Watcher
    line: str
    words: bytes
    offset: int
    note: str = ""


def watcher(
    name: str,
    what: str,
    error: type[GuestError] | None,
    needles: Iterable[str],
    pattern: str,
    hint: str = "",
) -> Watcher:
    """Return a watcher, whose attributes :class:`Watcher` documents.

    Args:
        name: The name.
        what: What the guest did.
        error: The class of the error.
        needles: The needles.
        pattern: The pattern, in which ``{k}`` stands for the start of a kernel line.
        hint: What to try next.

    Raises:
        ValueError: There is no needle, or a needle has fewer than four characters.
    """
    encoded = tuple(needle.encode() for needle in needles)
    if not encoded or min(map(len, encoded)) < 4:
        raise ValueError(f"watcher {name}: a needle needs at least four characters")
    source = pattern.encode().replace(b"{k}", _KERNEL)
    return Watcher(name, what, error, encoded, re.compile(source), hint)


_TRACE_HINT: Final = "read the trace in the log"

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
        # A workqueue lockup means that the host is slow, not that the guest is broken. A soft
        # lockup has "watchdog: " before its BUG, so it does not match.
        r"{k}(?:BUG: (?:[^w]|w(?!orkqueue lockup).{15})|Oops: |kernel BUG at \S+:\d+"
        r"|general protection fault[,:]|Unable to handle kernel |Internal error: )",
        _TRACE_HINT,
    ),
    watcher(
        "oom",
        "the guest's kernel ran out of memory and killed a process",
        OomKillError,
        ["ut of memory: Kill"],
        r"{k}(?:Out|Memory cgroup out) of memory: Kill(?:ed)? process",
        "give the machine more memory, or find the process that uses it",
    ),
    watcher(
        "emergency",
        "the guest is in emergency mode",
        EmergencyModeError,
        ["emergency mode", "rescue mode", "the root account is locked", "for maintenance"],
        r"^(?:(?:You are in|Welcome to|Entering) (?:emergency|rescue) mode"
        r"|Cannot open access to console, the root account is locked"
        r"|(?:Give root password|Press Enter) for maintenance)",
        "the log shows which unit failed before",
    ),
    watcher(
        "initramfs",
        "the guest's initramfs gave up",
        EmergencyModeError,
        [
            "(initramfs)",
            "Dropping to a shell",
            "due to panic= boot argument",
            "dracut:/#",
            "Dropping to debug shell",
            "To debug this issue add",
            "emergency shell",
            "dropped to a recovery shell",
            "recovery shell launched",
            "Launching initramfs emergency",
            "Launching emergency recovery",
            "in stage 1 of the boot process",
        ],
        r"^(?:\(initramfs\)|ALERT! .*Dropping to a shell!"  # initramfs-tools
        r"|(?:Rebooting|Halting) automatically due to panic= boot argument"
        r"|dracut:/# ?$|Dropping to debug shell\.$"  # dracut
        r"|You are (?:now being dropped into an emergency|being dropped to a recovery) shell"
        r"|initramfs emergency recovery shell launched"  # Alpine, old and new
        r"|Launching initramfs emergency recovery shell"
        r"|An error occurr?ed in stage 1 of the boot process)"  # NixOS
        # On the same line as what has failed: dracut's warning and Alpine's.
        r"|: (?:Boot|Shutdown) has failed\. To debug this issue add "
        r"| failed\. initramfs emergency recovery shell launched"
        r"|/init not found in new root\. Launching emergency recovery shell",
        "the initramfs did not find the root file system, or could not use it: see root= and the disks"
        " in the log",
    ),
    watcher(
        "init-crash",
        "the guest's systemd stopped",
        EmergencyModeError,
        ["[!!!!!!]"],
        r"^\[!!!!!!\] ",
        "the log shows what systemd reported before",
    ),
    watcher(
        "firmware-shell",
        "the firmware found nothing to boot and started its shell",
        FirmwareShellError,
        ["UEFI Interactive Shell"],
        # Anywhere in a line: on a busy host the firmware was seen to lose the end of the line before.
        r"UEFI Interactive Shell v\d",
        "check that the disk is attached and has an EFI system partition that the firmware can read",
    ),
    watcher(
        "no-boot-device",
        "the firmware found no bootable device",
        NoBootDeviceError,
        ["No bootable "],
        r"^No bootable (?:device\b|option or device was found)"
        r"|BdsDxe: No bootable option or device was found",
        "check that the disk is attached and boots from this firmware (BIOS or UEFI)",
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
"""The default watchers of a console."""


_LATE: Final = 256
"""Bytes of an incomplete line that are held back at most: a serial port delivers single bytes, and the
message of a failure shows its line."""


class Scanner:
    """Runs watchers on a stream of chunks; for one thread.

    The time is linear in the output. The memory is bounded: of an incomplete line, the last 1 KiB
    is kept.

    Args:
        watchers: The watchers.
    """

    HEADROOM: Final = 2 * _LINE + _LATE
    """Bytes before the chunk that :meth:`feed` may overwrite in the caller's buffer."""

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        owned = [(needle, w) for w in watchers for needle in w.needles]
        self._needles = [needle for needle, _ in owned]
        self._literals = Literals(self._needles)
        # By the index of a needle: the watchers that a line with it may concern.
        self._concerned = [
            tuple(
                {
                    owned[other][1].name: owned[other][1] for other in self._literals.within(index)
                }.values()
            )
            for index in range(len(owned))
        ]
        self._carry = b""  # the incomplete line, without escape sequences
        self._whole = True  # whether the carry starts at the start of its line
        self._cut = b""  # an incomplete escape sequence
        self._late = b""  # output that is held back
        self._late_offset = 0
        self._seen: set[str] = set()  # the names of watchers that reported the incomplete line

    def feed(self, buffer: bytearray, start: int, end: int, offset: int) -> list[Sighting]:
        """Scan ``buffer[start:end]``; return the sightings in the order of the output.

        Up to 256 bytes of an incomplete line are held back until the next call or :meth:`flush`.

        Args:
            buffer: The caller's buffer. The :data:`HEADROOM` bytes before ``start`` are
                overwritten.
            start: The index of the first byte of the chunk.
            end: The index after the last byte of the chunk.
            offset: The offset of the chunk in the output.
        """
        if late := self._late:
            buffer[start - len(late) : start] = late
            start -= len(late)
            offset = self._late_offset
        left = max(start, end - _LATE - 1)
        line = max(buffer.rfind(b"\n", left, end), buffer.rfind(b"\r", left, end)) + 1
        if not line:
            line = start if end - start <= _LATE else end
        self._late = bytes(memoryview(buffer)[line:end])
        self._late_offset = offset + line - start
        return self._look(buffer, start, line, offset) if line > start else []

    @property
    def late(self) -> bool:
        """Whether output is held back."""
        return bool(self._late)

    def flush(self) -> list[Sighting]:
        """Scan the output that was held back; it may be a prompt, after which no output follows."""
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
            return self._scan(text, 0, len(self._carry), len(text), offset, raw)
        before = (self._carry + self._cut)[-2 * _LINE :]
        self._cut = b""
        low = start - len(before)
        buffer[low:start] = before
        sightings = self._scan(buffer, low, start, end, offset, None)
        if escapes:
            cut = cut_sequence(self._carry)
            self._cut = self._carry[cut:]
            self._carry = strip_escapes(self._carry[:cut]).rpartition(b"\n")[2]
        return sightings

    def _scan(
        self, text: bytearray, low: int, start: int, end: int, offset: int, raw: bytes | None
    ) -> list[Sighting]:
        sightings: list[Sighting] = []
        seen: set[str] = set()
        sighted: set[tuple[str, int]] = set()  # a part of an endless line may be looked at twice
        tried: set[str] = set()  # the watchers that the current line was shown to
        first = last = known = -1
        for at, index in self._literals.find(text, low, end):
            if at >= known:
                first, last, whole = self._line(text, low, at, end)
                # An endless line is seen in parts, which overlap.
                known = last if last < at + _LINE else last - _BEFORE
                # The NUL keeps ^ from matching in the middle of a line.
                line = bytes(text[first:last]) if whole else b"\0" + bytes(text[first:last])
                parts = strip_escapes(line).split(b"\n") if b"\x1b" in line else [line]
                parts[0] = parts[0].removeprefix(_HANDOVER)
                tried = self._seen.copy() if first <= start else set()
            for w in self._concerned[index]:
                if w.name in tried:
                    continue
                tried.add(w.name)
                for part in parts:
                    match = w.pattern.search(part)
                    if match is None:
                        continue
                    began = first + match.start() - (not whole)
                    if (w.name, began) not in sighted:
                        sighted.add((w.name, began))
                        if last == end:
                            seen.add(w.name)
                        if raw is None:
                            where = offset + began - start
                        else:
                            where = offset + max(0, raw.find(self._needles[index]))
                        shown = part.lstrip(b"\0").decode("utf-8", "replace").strip()
                        sightings.append(Sighting(w, shown[:_SHOWN], match.group(), where))
                        break
        self._keep(text, low, start, end, seen)
        if len(sightings) > 1:
            sightings.sort(key=lambda sighting: sighting.offset)
        return sightings

    def _line(self, text: bytearray, low: int, at: int, end: int) -> tuple[int, int, bool]:
        """Return the bounds of the line around ``at``, and whether the line starts at the first.

        The bounds of a very long line enclose only a part of it.
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
