"""Declared secrets: found, and taken out of text, in the forms in which logs hold them.

The forms of a secret are the text itself, as JSON and as an URL have it, in hexadecimal, and in base64
(RFC 4648) within a longer text at each of the three alignments. A form is looked for in bytes, so it is
found in a file of any encoding that leaves ASCII alone.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import IO, Final

SHORTEST: Final = 6
"""Characters that a secret has at least: a shorter one would take half of a log with it."""

_PIECE: Final = 1 << 20


class Secrets:
    """The declared secrets of a run."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._pattern: re.Pattern[bytes] | None = None
        self._longest = 0
        self._names: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def declare(self, name: str, value: str) -> None:
        """Declare a secret.

        Args:
            name: Its name, which stands in its place.
            value: Its value.

        Raises:
            ValueError: The value is too short to be told from other text.
        """
        if len(value) < SHORTEST:
            raise ValueError(f"secret {name}: a secret has at least {SHORTEST} characters")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ValueError(f"{name!r} is no name of a secret (letters, digits and '_.-')")
        self._values[name] = value
        groups = {f"s{number}": each for number, each in enumerate(self._values)}
        self._names = groups
        all_forms = {group: forms(self._values[each]) for group, each in groups.items()}
        self._longest = max(len(form) for each in all_forms.values() for form in each)
        # Longest first: a form may begin with another one.
        alternatives = (
            f"(?P<{group}>".encode()
            + b"|".join(re.escape(form) for form in sorted(each, key=len, reverse=True))
            + b")"
            for group, each in all_forms.items()
        )
        self._pattern = re.compile(b"|".join(alternatives), re.IGNORECASE)

    def found(self, source: IO[bytes]) -> set[str]:
        """Return the names of the secrets that a file holds."""
        names: set[str] = set()
        for piece, end in self._windows(source):
            names |= {
                self._names[str(match.lastgroup)]
                for match in self._matches(piece)
                if match.start() < end
            }
            if len(names) == len(self._values):
                break
        return names

    def found_in_memory(self, source: IO[bytes]) -> set[str]:
        """Return the names of the secrets in a file of binary data, which may be large.

        Its forms are looked for as they are, lower case in hexadecimal: a search of bytes passes over
        gigabytes in the time in which a regular expression passes over megabytes.
        """
        names: set[str] = set()
        wanted = self.forms()
        for window, _ in self._windows(source):
            for name, each in wanted.items():
                if name not in names and any(form in window for form in each):
                    names.add(name)
        return names

    def found_in(self, text: str) -> set[str]:
        """Return the names of the secrets that a text holds."""
        matches = self._matches(text.encode("utf-8", "surrogateescape"))
        return {self._names[str(match.lastgroup)] for match in matches}

    def redact(self, source: IO[bytes], target: IO[bytes]) -> set[str]:
        """Copy a file without the secrets; return the names of those that it held."""
        names: set[str] = set()
        skip = 0
        for piece, end in self._windows(source):
            done = skip
            for match in self._matches(piece, skip):
                if match.start() >= end:
                    break
                name = self._names[str(match.lastgroup)]
                names.add(name)
                target.write(piece[done : match.start()] + _mark(name))
                done = match.end()
            target.write(piece[done : max(done, end)])
            skip = max(0, done - end)
        return names

    def redacted(self, text: str) -> str:
        """Return a text without the secrets."""
        if self._pattern is None:
            return text
        content = text.encode("utf-8", "surrogateescape")
        content = self._pattern.sub(lambda match: _mark(self._names[str(match.lastgroup)]), content)
        return content.decode("utf-8", "surrogateescape")

    def forms(self) -> Mapping[str, set[bytes]]:
        """Return the forms of each secret by its name."""
        return {name: forms(value) for name, value in self._values.items()}

    def _matches(self, piece: bytes, start: int = 0) -> Iterator[re.Match[bytes]]:
        return iter(()) if self._pattern is None else self._pattern.finditer(piece, start)

    def _windows(self, source: IO[bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield pieces that overlap by a form's length, and the end of what only this one covers."""
        rest = b""
        while piece := source.read(_PIECE):
            window = rest + piece
            end = max(0, len(window) - self._longest)
            yield window, end
            rest = window[end:]
        yield rest, len(rest)


def _mark(name: str) -> bytes:
    return f"[secret {name}]".encode()


def forms(value: str) -> set[bytes]:
    """Return the forms in which a text may hold a secret, all of them without regard to case."""
    plain = value.encode()
    encoded = {
        plain,
        json.dumps(value)[1:-1].encode(),
        json.dumps(value, ensure_ascii=False)[1:-1].encode(),
        urllib.parse.quote(value, safe="").encode(),
        urllib.parse.quote_plus(value).encode(),
        plain.hex().encode(),
        plain.hex(":").encode(),
        plain.hex(" ").encode(),
    }
    for before in range(3):
        # Characters that also depend on the bytes around the secret are left out.
        text = base64.b64encode(bytes(before) + plain).rstrip(b"=")
        whole = (before + len(plain)) * 8 // 6
        core = text[-(-before * 8 // 6) : whole]
        encoded |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in encoded if len(form) >= SHORTEST}
