"""The screen and the keyboard of a machine with a display: what a person in front of it has.

The words are those of the serial console. Text is read from the VGA adapter's memory
(:mod:`harness.qemu.vga`), so it is exact in every text mode: that of a BIOS, of GRUB, of memtest86+, of
a Linux console without a framebuffer. A graphics mode has pixels only; UEFI firmware uses one. Text in
pixels is read by OCR, which is a guess, and QR codes by their checksum (:mod:`harness.machine.picture`).

Nothing announces a change of the screen: a guest stores bytes, and QEMU draws when it is asked to. So
this is the one place that looks again and again. The waits between two looks end at once with the
failure scope.
"""

from __future__ import annotations

import contextlib
import math
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness import arch
from harness.console.known import known_screen
from harness.console.terminal import Screen
from harness.console.view import pattern_hint
from harness.deadline import Deadline, Limit
from harness.errors import HarnessError, UsageError, WaitTimeoutError
from harness.machine.keyboard import chord
from harness.machine.parts import Parts
from harness.machine.picture import MOST_PIXELS, Picture, grab, ocr_program
from harness.qemu.vga import read_text

_LOOK: Final = 0.1
"""Seconds between two looks at the screen, on a good host: a slower guest draws more slowly, and stands
still for longer at each."""

_LONGEST_LOOK: Final = 1.0
"""Seconds between two looks, however slow the host is."""

_HOLD: Final = 10
"""Milliseconds for which a key is down, and as many before the next one, on a good host: QEMU's own
default (``kbd_default_delay_ms`` in ``ui/input.c``). A slower guest takes keys more slowly, and a BIOS
keeps 15 of them."""

_LONGEST_HOLD: Final = 100
"""Milliseconds; a key that is down for 250 repeats in Linux (``drivers/input/input.c``)."""

_LONGEST_SCREEN: Final = 16 * 1024
_LONGEST_CODE: Final = 400
"""Characters of a screen and of a QR code that the error of a wait shows."""

_NO_TEXT: Final = (
    "it is in a graphics mode, which has no text: look at the picture, or wait_for_text()"
)
_TOO_LARGE: Final = (
    f"a screen of no pixel or of more than {MOST_PIXELS} is not read: look at the picture"
)
_NOT_READ: Final = f"OCR did not end in time: give it longer; or it did not begin: {_TOO_LARGE}"

WAIT_SECONDS: Final = 60.0
SEND_SECONDS: Final = 60.0


class Display:
    """The screen and the keyboard of one machine, from any thread.

    Args:
        parts: The machine's parts.

    Raises:
        UsageError: The machine has no display.
    """

    def __init__(self, parts: Parts) -> None:
        if not parts.spec.display:
            raise UsageError(
                f"machine {parts.name} has no display",
                hint="boot it with display=True, or look at console.screen",
            )
        self._parts = parts

    # --- the screen ---------------------------------------------------------------------------

    @property
    def screen(self) -> Screen:
        """The text on the screen now; without lines as long as the firmware has set no mode.

        A guest can be in the middle of drawing it: use :meth:`wait_for_screen` for what is to come.

        Raises:
            UsageError: The screen is in a graphics mode, or the adapter has no text mode.
            HarnessError: QEMU has ended.
        """
        screen = self._look()
        if screen is None:
            raise UsageError(
                f"the display of {self._parts.name} is in a graphics mode: it shows pixels, not text",
                hint="wait_for_text() reads them, screenshot() shows them; UEFI prints the same on the"
                " console, and so does a kernel whose command line names it",
            )
        return screen

    def wait_for_screen(self, pattern: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait until the screen contains a text, or a match of a compiled regular expression.

        The same match has to be there at two looks, one after the other, and the second screen is
        returned. So a match is never half drawn. The rest of the screen may be: wait for what the guest
        draws last. A text that is there for less than two looks can be missed; they are 0.1 s apart on
        a good host, and at most 1 s. A screen in a graphics mode matches nothing.

        Args:
            pattern: A plain text or a compiled regular expression.
            deadline: 60 s on a good host by default.

        Raises:
            UsageError: The adapter has no text mode.
            WaitTimeoutError: The deadline passed; its note shows the screen, its evidence is a picture.
            HarnessError: The failure of the scope.
        """
        parts = self._parts
        limit = parts.scale.limit(deadline, WAIT_SECONDS)
        with self._waiting(_shown(pattern), limit):
            return self._wait_for_match(pattern, limit, self._look, _NO_TEXT)

    def wait_for_text(self, pattern: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait until the screen contains a text, be it in pixels; else like :meth:`wait_for_screen`.

        A text mode is read exactly, as there. A graphics mode is read by OCR, with
        the program ``tesseract``, which guesses: it confuses ``0`` and ``O``, and takes some blanks for
        none. Wait for a word, or for a regular expression that allows for that. A picture that has not
        changed since the look before is not read again.

        Args:
            pattern: A plain text or a compiled regular expression.
            deadline: 60 s on a good host by default; it has to last for two looks by OCR, of some
                seconds each on a slow host.

        Raises:
            WaitTimeoutError: The deadline passed; its note shows the text that was read last, its
                evidence is a picture.
            HostError: The program is not installed, or failed.
            HarnessError: The failure of the scope.
        """
        # Before the first look: whether a test fails must not depend on the mode at that moment.
        ocr_program()
        parts = self._parts
        limit = parts.scale.limit(deadline, WAIT_SECONDS)
        has_vga = arch.of(parts.spec.arch).has_vga
        before: tuple[Picture, Screen] | None = None

        def look() -> Screen | None:
            nonlocal before
            if has_vga and (screen := self._look()) is not None:
                return screen
            picture = self._picture()
            if picture is None:
                return None
            if before is None or before[0] != picture:
                text = picture.text(limit, parts.scope)
                if text is None:
                    return None
                before = (picture, Screen(tuple(text.split("\n")), (1, 1)))
            return before[1]

        with self._waiting(_shown(pattern), limit):
            return self._wait_for_match(pattern, limit, look, _NOT_READ)

    def wait_for_qr(
        self, pattern: str | re.Pattern[str] | None = None, deadline: Limit = None
    ) -> str:
        """Wait until the screen shows a QR code, and return its text.

        Codes are read in text modes too, where a guest draws them with blocks. The text has a checksum
        in the code, so that one look is enough.

        Args:
            pattern: A text or a match of a compiled regular expression that the code's text contains;
                any code by default. Of several codes that match, the first is returned.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed; its note has the codes of the last look, its evidence
                is a picture.
            HarnessError: The failure of the scope.
        """
        parts = self._parts
        limit = parts.scale.limit(deadline, WAIT_SECONDS)
        what = "a QR code" if pattern is None else f"a QR code of {_shown(pattern)}"
        with self._waiting(what, limit):
            return self._wait_for_code(pattern, limit, what)

    def _wait_for_code(
        self, pattern: str | re.Pattern[str] | None, limit: Deadline, what: str
    ) -> str:
        before: Picture | None = None
        codes: tuple[str, ...] = ()
        self._parts.scope.check()
        while True:
            picture = self._picture()
            if picture is None:
                codes = ()
            elif picture != before:
                codes = picture.codes()
                for text in codes:
                    if pattern is None or _matches(pattern, text):
                        return text
            before = picture
            if limit.expired:
                error = self._too_late(what, limit, _TOO_LARGE if picture is None else "")
                # The guest wrote the texts: repr() leaves no control character in them.
                seen = "\n".join(_cut(repr(text), _LONGEST_CODE) for text in codes)
                error.add_note(f"QR codes on the screen:\n{seen or 'none'}")
                raise error
            self._pause_between_looks(limit)

    def screenshot(self, path: Path | str | None = None) -> Path:
        """Write the picture on the screen as PNG and return the path.

        Args:
            path: The file; a new one in the evidence by default.

        Raises:
            QmpError: QEMU could not write the file.
        """
        target = Path(path or self._parts.evidence / f"screen-{int(time.time() * 1000)}.png")
        self._parts.qmp.execute("screendump", {"filename": str(target.absolute()), "format": "png"})
        return target

    def describe(self) -> str:
        """Return what is on the screen, for the message of a wait that the guest did not end.

        It names known screens of firmware and boot loaders. A screen without text is saved as a picture.
        """
        screen = self._look() if arch.of(self._parts.spec.arch).has_vga else None
        if screen is None:
            return f"the picture on its display: {self.screenshot()}"
        name = known_screen(screen.text)
        shown = f"its display shows {name}" if name else "on its display"
        return f"{shown}:\n{_cut(screen.text, _LONGEST_SCREEN) or 'nothing'}"

    # --- the keyboard -------------------------------------------------------------------------

    def press(self, *keys: str, deadline: Limit = None) -> None:
        """Press keys in order: ``"Down"``, ``"F2"``, ``"Ctrl-C"``, ``"Ctrl-Alt-Delete"``, ``"y"``.

        The call returns when the last key is up again. What the guest does with the keys, and whether it
        takes them at all, only its screen shows.

        Args:
            keys: Names of keys, as in :data:`~harness.console.KEY_NAMES`, or single characters.
            deadline: 60 s on a good host by default.

        Raises:
            UnknownNameError: A key does not exist. No key is pressed in this case.
            UsageError: No key types a character, the machine is paused, or it has no such keyboard.
            WaitTimeoutError: The deadline passed before all keys were pressed.
            HarnessError: The failure of the scope.
        """
        self._type([chord(key) for key in keys], deadline)

    def send(self, text: str, deadline: Limit = None) -> None:
        """Type text on a US keyboard, a newline as Enter; otherwise like :meth:`press`."""
        self.press(*text, deadline=deadline)

    def send_line(self, text: str = "", deadline: Limit = None) -> None:
        """Type text and Enter; otherwise like :meth:`send`."""
        self.send(text + "\n", deadline)

    # ------------------------------------------------------------------------------------------

    def _type(self, chords: list[tuple[str, ...]], deadline: Limit) -> None:
        parts = self._parts
        self._require_vga("no keyboard")
        parts.scope.check()
        limit = parts.scale.limit(deadline, SEND_SECONDS)
        hold = min(math.ceil(_HOLD * parts.scale.factor), _LONGEST_HOLD)
        for typed, codes in enumerate(chords):
            if limit.expired:
                raise WaitTimeoutError(
                    f"the keyboard of {parts.name} to take {len(chords)} keys, of which it took {typed}",
                    limit,
                )
            self._press(codes, hold)
            # QEMU presses and releases by its own timers, reports neither, and drops what is too much
            # for its queue (qemu_input_event_send_key_delay in ui/input.c). It needs this long.
            self._pause(2 * len(codes) * hold / 1000)

    def _press(self, codes: tuple[str, ...], hold: int) -> None:
        parts = self._parts
        with parts.qmp.undisturbed():
            # QEMU drops the keys of a guest that stands still (qemu_input_event_send in ui/input.c).
            if not parts.qmp.execute("query-status")["running"]:
                raise UsageError(
                    f"machine {parts.name} is paused: only a running guest takes keys",
                    hint="call resume() before",
                )
            parts.qmp.execute(
                "send-key",
                {
                    "keys": [{"type": "qcode", "data": code} for code in codes],
                    "hold-time": hold,
                },
            )

    def _look(self) -> Screen | None:
        """Return the text on the screen; ``None`` in a graphics mode."""
        parts = self._parts
        self._require_vga("no text mode")
        text = read_text(parts.qmp, parts.evidence / "vga-memory.bin")
        return None if text is None else Screen(text.lines, text.cursor)

    def _picture(self) -> Picture | None:
        """Return the picture on the screen; ``None`` if it is larger than what is read."""
        return grab(self._parts.qmp, self._parts.evidence / "screen.ppm")

    def _wait_for_match(
        self,
        pattern: str | re.Pattern[str],
        limit: Deadline,
        look: Callable[[], Screen | None],
        blind: str,
    ) -> Screen:
        """Look until the same match was there at two looks, one after the other.

        Args:
            pattern: What to find.
            limit: When to give up.
            look: Returns what is on the screen; ``None`` if it could not be read.
            blind: The hint if it could not be read at the last look.
        """
        before: str | None = None
        seen: Screen | None = None
        self._parts.scope.check()
        while True:
            screen = look()
            seen = screen or seen
            match = None if screen is None else screen.find(pattern)
            if screen is not None and match is not None and match == before:
                return screen
            if limit.expired:
                hint = blind if screen is None else pattern_hint(pattern, screen)
                error = self._too_late(_shown(pattern), limit, hint)
                if seen is not None:
                    when = "" if screen is not None else " at an earlier look"
                    error.add_note(f"on the screen{when}:\n{_cut(seen.text, _LONGEST_SCREEN)}")
                raise error
            before = match
            self._pause_between_looks(limit)

    def _waiting(self, what: str, limit: Deadline) -> contextlib.AbstractContextManager[None]:
        parts = self._parts
        return parts.timeline.waiting(
            f"wait for {what} on the display", machine=parts.name, limit=limit.remaining()
        )

    def _pause_between_looks(self, limit: Deadline) -> None:
        # A pace, since nothing announces a change of the screen: see the module.
        self._pause(min(_LOOK * self._parts.scale.factor, _LONGEST_LOOK, limit.remaining()))

    def _require_vga(self, lacks: str) -> None:
        row = arch.of(self._parts.spec.arch)
        if not row.has_vga:
            raise UsageError(
                f"the display of {self._parts.name} has {lacks}: it is a {row.display}",
                hint="use the console, or screenshot()",
            )

    def _pause(self, seconds: float) -> None:
        """Wait for some time, or raise the failure of the scope as soon as it fails."""
        scope = self._parts.scope
        with scope.alarm() as alarm:
            waiter = select.poll()
            waiter.register(alarm, 0)  # POLLHUP is reported always
            waiter.poll(math.ceil(seconds * 1000))
        scope.check()

    def _too_late(self, awaited: str, limit: Deadline, hint: str = "") -> WaitTimeoutError:
        parts = self._parts
        try:
            evidence = str(self.screenshot())
        except HarnessError as fault:
            evidence = f"no picture: {fault.what}"
        return WaitTimeoutError(
            f"{awaited} on the display of {parts.name}", limit, evidence=evidence, hint=hint
        )


def _matches(pattern: str | re.Pattern[str], text: str) -> bool:
    return pattern in text if isinstance(pattern, str) else pattern.search(text) is not None


def _shown(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + " ..."
