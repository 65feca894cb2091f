r"""Tells the words of a crash that a command prints from a crash.

``cat crash.log`` prints ``Kernel panic - not syncing``, and the guest is well. So a sighting is only
a *suspect* where a command of the driver may have printed it:

* **The request.** The driver prints the command before it runs it. Words that the command itself
  contains are never a crash.
* **The answer.** From the header of the command's frame on (:mod:`harness.console.frame`), output is
  the command's until the frame ends. The frame carries its length, so noise breaks it. Once it has
  arrived whole, words that it contains are the command's, and others are a crash.
* **A panic while a command runs.** A program can write the words to ``/dev/kmsg``, and the console shows
  them as the kernel's own (``Documentation/ABI/testing/dev-kmsg``). But a kernel that panicked runs
  no program any more (Linux ``kernel/panic.c``), so an answer afterwards proves that there was none.

Independent signs confirm a suspect, and none of them is the whole deadline: the kernel's last line of a
panic (``---[ end Kernel panic``, ``kernel/panic.c``) outside an answer; a reset of the machine; a
console that is quiet while it owes an answer. While no command is pending, a sighting is certain.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from harness.console.text import strip_escapes
from harness.console.watch import Sighting
from harness.deadline import Scale
from harness.errors import HarnessError, PanicError

QUIET_SECONDS: Final = 1.0
"""Seconds of silence, on a good host, after which a suspect is a crash."""

_LEAST: Final = 2.0
"""Seconds that the silence lasts at least: a lost answer is asked for again after one second."""

_SILENT: Final = 1.0
"""Seconds of silence that tell a crash from an answer that was too long for its deadline."""

_KEPT: Final = 100
"""Suspects that are kept at most, and harmless words that are remembered."""

_TAIL: Final = 4096
"""Bytes at the end of an answer that are remembered: the watchers may be a little behind."""

_STEP: Final = 1024 * 1024

_LAST_WORDS: Final = (b"---[ end Kernel panic - not syncing", b"Rebooting in ")
_REACH: Final = 64
"""Bytes before a chunk in which one of the last words may begin."""


@dataclass(slots=True)
class _Command:
    """A command whose answer, or a copy of it, may be in the output."""

    text: str
    header: bytes
    echoes: tuple[bytes, ...]
    searched: int
    answering: bool = False
    interrupted: bool = False
    ended: int | None = None
    repeats: int = 0
    echoed: Counter[bytes] = field(default_factory=Counter)
    harmless: set[bytes] = field(default_factory=set)
    tail: bytes = b""


@dataclass(frozen=True, slots=True)
class _Suspect:
    sighting: Sighting
    command: _Command
    inside: bool  # whether the answer had begun

    @property
    def panic(self) -> bool:
        error = self.sighting.watcher.error
        return error is not None and issubclass(error, PanicError)


class Suspects:
    """The suspects of one console; safe from any thread.

    Args:
        condition: The lock of the console's output.
        read: Returns the output between two offsets.
        confirm: Called with the sightings that proved to be a crash; the lock is held.
        scale: The scale of the machine's deadlines.
    """

    def __init__(
        self,
        condition: threading.Condition,
        read: Callable[[int, int], bytes],
        confirm: Callable[[list[Sighting]], None],
        scale: Scale,
    ) -> None:
        self._condition = condition
        self._read = read
        self._confirm = confirm
        self._quiet = max(_LEAST, QUIET_SECONDS * scale.factor)
        self._held: list[_Suspect] = []
        self._current: _Command | None = None
        self._previous: _Command | None = None

    # The driver's side: one thread at a time.

    def begin(self, tag: str, command: str, offset: int) -> None:
        """Record that a command is sent.

        Args:
            tag: The tag of its answer's frame.
            command: The command.
            offset: The end of the output.
        """
        lines = command.encode("utf-8", "surrogateescape").split(b"\n")
        # The driver prints the first line. A shell in its place echoes each request.
        echoes = (b"$ " + lines[0], *(b"x ." + line for line in lines))
        with self._condition:
            self._previous = self._current
            self._current = _Command(
                command if len(command) <= 80 else command[:80] + " ...",
                b"<%s " % tag.encode(),
                tuple(strip_escapes(echo) for echo in echoes),
                offset,
            )

    def asked_again(self) -> None:
        """Record that the answer was requested once more: a copy of it may come late."""
        with self._condition:
            if self._current is not None:
                self._current.repeats += 1

    def answered(self, payload: bytes, offset: int) -> bool:
        """Judge the suspects of the pending command by its answer.

        Args:
            payload: The verified output of the command.
            offset: The end of the output that has been read for it.

        Returns:
            Whether a panic is still suspected: a further answer of the guest would disprove it
            (:meth:`alive`).
        """
        with self._condition:
            command = self._current
            if command is None:
                return False
            command.ended = offset
            previous, self._previous = self._previous, None
            unfinished = previous is not None and self._unfinished(previous, offset)
            crashes = []
            left = []
            if self._held:
                payload = strip_escapes(payload)
            for suspect in self._held:
                words = suspect.sighting.words
                if unfinished or suspect.command is not command or words in payload:
                    if len(command.harmless) < _KEPT:
                        command.harmless.add(words)
                elif suspect.panic and not suspect.inside:
                    continue  # the answer began after it
                elif suspect.panic:
                    left.append(suspect)
                else:
                    crashes.append(suspect.sighting)
            command.tail = payload[-_TAIL:]
            self._held = left
            if crashes:
                self._confirm(crashes)
            return bool(left)

    def alive(self) -> None:
        """Record that the guest has answered since: what was suspected was no panic."""
        with self._condition:
            self._held.clear()

    def gone(self) -> None:
        """Record that the shell is gone: what was suspected is why."""
        with self._condition:
            self._convict(self._held, "the shell was gone")

    def timed_out(self, silent: float) -> None:
        """Record that the deadline of the command passed.

        Args:
            silent: For how many seconds the guest had been silent. A guest that was not silent was
                still sending the answer.
        """
        with self._condition:
            if silent >= _SILENT:
                self._convict(self._held, f"the guest was silent for {silent:.0f} s")
            self._held.clear()
            if self._current is not None:
                self._current.interrupted = True

    def forget(self) -> None:
        """Record that there is a prompt now: no command is pending, and no answer is late."""
        with self._condition:
            self._held.clear()
            self._current = self._previous = None

    def reset(self) -> None:
        """Record that the machine was reset."""
        with self._condition:
            self._convict([one for one in self._held if one.panic], "the machine was reset")
            self.forget()

    # The side of the drain thread.

    def hold(self, sighting: Sighting, end: int) -> bool:
        """Return whether a sighting is no more than a suspect, or no crash at all.

        Args:
            sighting: The sighting.
            end: The end of the output.
        """
        if (error := sighting.watcher.error) is None:
            return False  # a complaint of the kernel ends no wait
        with self._condition:
            words = sighting.words
            previous, command = self._previous, self._current
            if command is not None and (command.ended is not None or command.interrupted):
                previous, command = command, None
            # First: a late copy may arrive in one piece with the next answer.
            if (
                previous is not None
                and previous.ended is not None
                and (words in previous.harmless or words in previous.tail)
                and (sighting.offset < previous.ended or self._repeats(previous, end))
            ):
                return True
            # The request comes before the answer, and may come in one piece with it.
            if command is not None and self._is_echo(sighting, command):
                return True
            if command is not None and self._answers(command, end):
                self._keep(sighting, command, True)
                return True
            if previous is not None and self._unfinished(previous, end):
                self._keep(sighting, previous, True)
                return True
            if command is None:
                return False
            if issubclass(error, PanicError):
                self._keep(sighting, command, False)
                return True
            return False

    def seen(self, tail: bytes | bytearray, count: int) -> None:
        """Take a chunk of output, after its sightings.

        Args:
            tail: The end of the output.
            count: The length of the chunk.
        """
        if not self._held:
            return
        with self._condition:
            outside = [one for one in self._held if one.panic and not one.inside]
            if outside and any(tail.find(w, -(count + _REACH)) >= 0 for w in _LAST_WORDS):
                self._convict(outside, "")

    def due(self, silent: float) -> float | None:
        """Return the seconds until :meth:`settle` must run; ``None`` without a suspect."""
        return max(0.0, self._quiet - silent) if self._owed() else None

    def settle(self, silent: float) -> None:
        """Convict the suspects if the guest has been silent for too long.

        Args:
            silent: For how many seconds the guest has been silent.
        """
        if not self._held or silent < self._quiet:
            return
        with self._condition:
            self._convict(self._owed(), f"the guest was silent for {silent:.0f} s")

    def closed(self) -> None:
        """Record that the connection ended."""
        with self._condition:
            self._convict([one for one in self._held if one.panic and not one.inside], "")
            self._held.clear()

    # With the lock.

    def _owed(self) -> list[_Suspect]:
        """Return the suspects of a command whose answer the guest owes."""
        return [one for one in self._held if not one.command.interrupted]

    def _keep(self, sighting: Sighting, command: _Command, inside: bool) -> None:
        if len(self._held) < _KEPT:
            self._held.append(_Suspect(sighting, command, inside))

    def _convict(self, suspects: list[_Suspect], sign: str) -> None:
        crashes = []
        for suspect in suspects:
            note = f" (during `{suspect.command.text}`; then {sign})" if sign else ""
            crashes.append(replace(suspect.sighting, note=note))
        self._held = [one for one in self._held if one not in suspects]
        if crashes:
            self._confirm(crashes)

    def _answers(self, command: _Command, end: int) -> bool:
        """Return whether the answer of a command has begun."""
        if not command.answering:
            command.answering = self._find(command, end)
        return command.answering

    def _unfinished(self, command: _Command, end: int) -> bool:
        """Return whether the rest of an answer may come that a deadline has interrupted."""
        return command.interrupted and self._answers(command, end)

    def _repeats(self, command: _Command, end: int) -> bool:
        """Return whether a further copy of an answer has begun since it arrived."""
        if not command.repeats or command.ended is None:
            return False
        command.searched = max(command.searched, command.ended)
        return self._find(command, end)

    def _find(self, command: _Command, end: int) -> bool:
        """Search the output that was not searched yet for the header of an answer."""
        overlap = len(command.header) - 1
        try:
            while command.searched < end:
                stop = min(end, command.searched + _STEP)
                if command.header in self._read(max(0, command.searched - overlap), stop):
                    return True
                command.searched = stop
        except HarnessError:
            # The log is incomplete, and that is a failure of its own.
            command.searched = end
        return False

    @staticmethod
    def _is_echo(sighting: Sighting, command: _Command) -> bool:
        """Return whether a sighting is the command itself, as the driver or the shell prints it."""
        matches = (sighting.watcher.pattern.search(echo) for echo in command.echoes)
        count = sum(match is not None and match.group() == sighting.words for match in matches)
        if command.echoed[sighting.words] >= count:
            return False
        command.echoed[sighting.words] += 1
        return True
