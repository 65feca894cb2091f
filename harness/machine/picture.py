"""What is to be read in the pixels of a screen: text by OCR, and QR codes.

A picture comes from the guest, so nothing about it is trusted: its size is limited before it is read,
what is read of it is limited and is text, and the OCR program is ended with the wait.

QEMU writes a picture as PPM (``screendump`` in its QMP reference): a short header and the bytes of the
pixels. Both readers take them as they are, so nothing here decodes a compressed format.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.console.text import plain
from harness.deadline import Deadline
from harness.errors import HostError
from harness.qemu.qmp import Qmp
from harness.scope import Scope

MOST_PIXELS: Final = 4096 * 4096
"""Pixels of a picture that is read at most: 48 MiB. A screen of 3840 x 2160 has half as many."""

MOST_SIDE: Final = 16384
"""Pixels of its width and its height at most: zxing-cpp takes 65535, tesseract 32767."""

MOST_TEXT: Final = 64 * 1024
"""Bytes of text of a picture that are taken at most."""

MOST_CODES: Final = 16
"""QR codes of a picture that are taken at most; each has at most 7089 characters, by its standard."""

PROGRAM: Final = "tesseract"
PACKAGE: Final = "tesseract-ocr"
"""The OCR program, and Debian's package of it."""

_ARGUMENTS: Final = ("stdin", "stdout", "-l", "eng", "--psm", "11")
"""Sparse text (11): a screen has texts anywhere, not a page's columns of them."""

_MARGIN: Final = 16
"""Pixels around a picture for OCR: the height of a letter of a text console."""

_HEADER: Final = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")
_LONGEST_HEADER: Final = 32
_PART: Final = 64 * 1024
_LAST: Final = 1000
"""Bytes of the OCR program's messages that an error shows."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The pixels of a screen.

    Attributes:
        width: Pixels in a row.
        height: Rows.
        rgb: Three bytes for each pixel, row by row from the top.
    """

    width: int
    height: int
    rgb: bytes

    @classmethod
    def from_ppm(cls, path: Path) -> Picture | None:
        """Read a picture as QEMU writes it.

        Args:
            path: The file, of the format PPM with three bytes a pixel.

        Returns:
            The picture; ``None`` if it has more than :data:`MOST_PIXELS` or a side of more than
            :data:`MOST_SIDE`, or no pixel at all.

        Raises:
            HostError: The file could not be read, or is no such picture.
        """
        try:
            with path.open("rb") as file:
                head = _HEADER.match(file.read(_LONGEST_HEADER))
                if head is None:
                    raise HostError("the picture of the screen is no PPM of 8 bits a colour")
                width, height = int(head[1]), int(head[2])
                if max(width, height) > MOST_SIDE or not 0 < width * height <= MOST_PIXELS:
                    return None
                file.seek(head.end())
                rgb = file.read(width * height * 3)
        except OSError as error:
            raise HostError(f"the picture of the screen could not be read: {error}") from error
        if len(rgb) != width * height * 3:
            raise HostError(f"the picture of the screen is cut off: {width} x {height} pixels")
        return cls(width, height, rgb)

    def codes(self) -> tuple[str, ...]:
        """Return the texts of the QR codes in the picture, at most :data:`MOST_CODES`.

        A code has a checksum: what is returned was read rightly. A text is what the guest wrote, so it
        can contain control characters.
        """
        # Its import takes time, and few tests look for a code.
        import zxingcpp

        view = zxingcpp.ImageView(self.rgb, self.width, self.height, zxingcpp.ImageFormat.RGB)
        barcodes = zxingcpp.read_barcodes(
            view,
            formats=zxingcpp.BarcodeFormats(zxingcpp.BarcodeFormat.QRCode),
            text_mode=zxingcpp.TextMode.Plain,
        )
        return tuple(code.text for code in barcodes[:MOST_CODES])

    def text(self, limit: Deadline, scope: Scope) -> str | None:
        """Return the text in the picture by OCR, without blank lines and control characters.

        It is a guess: letters of one shape are confused, such as ``0`` and ``O``.

        Args:
            limit: When to give up.
            scope: Its failure ends the wait, and the program.

        Returns:
            The text, of which at most :data:`MOST_TEXT` bytes are taken; ``None`` if the time was over.

        Raises:
            HostError: The OCR program is not installed, or failed.
            HarnessError: The failure of the scope.
        """
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as messages:
            source.writelines(self._framed())
            source.seek(0)
            process = subprocess.Popen(
                # Its threads take more time together than one alone, all of it from guests.
                ["env", "OMP_THREAD_LIMIT=1", ocr_program(), *_ARGUMENTS],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=messages,
            )
            with _ended(process):
                assert process.stdout is not None
                output = _read(process.stdout.fileno(), limit, scope)
                if output is None:
                    return None
                if len(output) < MOST_TEXT and (status := process.wait()):
                    messages.seek(max(0, messages.seek(0, os.SEEK_END) - _LAST))
                    raise HostError(
                        f"{PROGRAM} ended with status {status}",
                        evidence=plain(messages.read(_LAST)).strip(),
                    )
        lines = (line.rstrip() for line in plain(output).split("\n"))
        return "\n".join(line for line in lines if line)

    def _framed(self) -> Iterator[bytes]:
        """Yield the picture as PPM with a margin: OCR loses letters that touch the edge."""
        yield b"P6\n%d %d\n255\n" % (self.width + 2 * _MARGIN, self.height + 2 * _MARGIN)
        # The last pixel has the colour of the ground on most screens: texts begin at the top left.
        side = self.rgb[-3:] * _MARGIN
        edge = self.rgb[-3:] * (self.width + 2 * _MARGIN) * _MARGIN
        row = self.width * 3
        yield edge
        for start in range(0, len(self.rgb), row):
            yield side + self.rgb[start : start + row] + side
        yield edge


def grab(qmp: Qmp, scratch: Path) -> Picture | None:
    """Return the picture on the first screen of a machine; ``None`` if it is too large to be read.

    Args:
        qmp: The monitor.
        scratch: A path for QEMU to write the picture to; the file is removed.

    Raises:
        QmpError: QEMU could not write the file.
        HostError: The file could not be read.
    """
    # One at a time: another thread may wait for the same screen, and so use the same file.
    with qmp.undisturbed():
        try:
            qmp.execute("screendump", {"filename": str(scratch), "format": "ppm"})
            return Picture.from_ppm(scratch)
        finally:
            scratch.unlink(missing_ok=True)


def ocr_program() -> str:
    """Return the path of the OCR program.

    Raises:
        HostError: It is not installed; names the package.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise HostError(
            f"{PROGRAM} is not installed: it reads the text of a screen that shows pixels",
            hint=f"install the package {PACKAGE}",
        )
    return program


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process after the block, whatever it does."""
    try:
        yield
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
        process.wait()


def _read(descriptor: int, limit: Deadline, scope: Scope) -> bytes | None:
    """Read to the end, or to the most bytes that are taken; ``None`` if the time was over."""
    output = b""
    with scope.alarm() as alarm:
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        waiter.register(alarm, 0)  # POLLHUP is reported always
        while len(output) < MOST_TEXT:
            ready = [number for number, _ in waiter.poll(limit.poll_timeout())]
            scope.check()
            if descriptor in ready:
                part = os.read(descriptor, _PART)
                if not part:
                    break
                output += part
            elif limit.expired:
                return None
    return output[:MOST_TEXT]
