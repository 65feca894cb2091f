r"""Declared secrets: found, and taken out of text, in the forms in which logs hold them.

Reports, results, the evidence of a run and the text of bundles all go through :class:`Secrets`.

The forms of a secret are the text itself; as JSON, XML, a shell, Python and an URL quote it; in
hexadecimal; and in base64 (RFC 4648) within a longer text at each of the three alignments. A form is
looked for in bytes, so it is found in a file of any encoding that leaves ASCII alone.

A terminal, a pager or a recording may break a text: by ends of lines, by escape sequences that colour a
part of it, by the next event of an asciicast. Such *breaks* count for nothing, neither in a form nor in
what is searched. They are recognised as they are, and as JSON, XML and Python quote them.
"""

from __future__ import annotations

import base64
import bisect
import functools
import html
import itertools
import json
import os
import re
import shlex
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar

SHORTEST: Final = 6
"""Characters that a secret has at least: a shorter one would take half of a log with it."""

_PIECE: Final = 1 << 20

_BREAKS: Final = 1 << 16
"""Bytes that a secret and the breaks in it may take together, besides twice its longest form."""

_ESCAPE: Final = rb"(?:\x1b|\\+u001b|\\+x1b|\\+e|\\+033|#x1B|&#27;|&#x1b;)"
"""The first character of an escape sequence; ``#x1B`` is what pytest's junit.xml makes of it."""

_BREAK: Final = (
    # Of RE2, which passes over text without breaks forty times as fast as Python's own expressions.
    rb"(?i)"
    # The end of an event of an asciicast, and the beginning of the next one.
    rb'(?:"\]\r?\n\[[0-9.eE+-]+, ?"[om]", ?"'
    # ECMA-48, section 5.4: a control sequence. The others choose sets of characters.
    rb"|" + _ESCAPE + rb"(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|[()][0-9A-Z]|[=>78])"
    # A shell's line ends where the terminal's does: bash then writes a space and a carriage return.
    rb"| ?\r|\n|\x08|\\+[rnb]|\\+u000[8ad]|&#(?:10|13|xa|xd);)+"
)

_SPACES: Final = 16
"""Spaces that a form has at most, so that one of them may be taken for a part of a break."""

_SKIPPED: Final = frozenset({"disks", "recordings"})
"""Folders that hold no text: disks, what a machine was saved as, all that was written to a disk."""

_SAVED: Final = (".tar.zst", ".qcow2")
"""Files that hold no text. The text of a bundle is redacted when it is written."""

_MARKED: Final = "[secret {}]"
_DRAFT: Final = ".redacted"

Content = TypeVar("Content")


class _Hit(NamedTuple):
    """A secret in a piece."""

    start: int
    end: int
    name: str


class Secrets:
    """The declared secrets of a run."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}
        self._names: list[str] = []
        self._search: Any = None
        self._longest = 0

    def __bool__(self) -> bool:
        return bool(self._values)

    def declare(self, name: str, value: str) -> None:
        """Declare a secret; one of this name that was declared before stays one.

        Args:
            name: Its name, which stands in its place.
            value: Its value.

        Raises:
            ValueError: The value is too short to be distinguished from other text, or the name is not
                valid.
        """
        if len(value) < SHORTEST or len(_squeezed(value.encode())) < SHORTEST:
            raise ValueError(f"secret {name}: a secret has at least {SHORTEST} characters")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ValueError(f"{name!r} is no name of a secret (letters, digits and '_.-')")
        if value in self._values.get(name, ()):
            return
        import ahocorasick_rs

        self._values.setdefault(name, set()).add(value)
        patterns: dict[bytes, str] = {}
        for each, all_forms in self.forms().items():
            for form in all_forms:
                for variant in _variants(_squeezed(form).lower()):
                    if len(variant) >= SHORTEST:
                        patterns.setdefault(variant, each)
        self._names = list(patterns.values())
        self._longest = max(map(len, itertools.chain.from_iterable(self.forms().values())))
        self._search = ahocorasick_rs.BytesAhoCorasick(
            list(patterns), matchkind=ahocorasick_rs.MatchKind.LeftmostLongest
        )

    def names_in(self, source: IO[bytes]) -> set[str]:
        """Return the names of the secrets that a file holds."""
        names: set[str] = set()
        for window, end in self._windows(source, self._reach):
            names |= {hit.name for hit in self._hits(window) if hit.start < end}
            if len(names) == len(self._values):
                break
        return names

    def names_in_memory(self, source: IO[bytes]) -> set[str]:
        """Return the names of the secrets in a file of binary data, which may be large.

        Its forms are looked for as they are, lower case in hexadecimal and without breaks: such a search
        passes over gigabytes in the time in which the other one passes over hundreds of megabytes.
        """
        names: set[str] = set()
        wanted = self.forms()
        for window, _ in self._windows(source, self._longest):
            for name, each in wanted.items():
                if name not in names and any(form in window for form in each):
                    names.add(name)
        return names

    def names_in_text(self, text: str) -> set[str]:
        """Return the names of the secrets that a text holds."""
        return {hit.name for hit in self._hits(text.encode("utf-8", "surrogatepass"))}

    def redact(self, source: IO[bytes], target: IO[bytes]) -> set[str]:
        """Copy a file without the secrets; return the names of those that it held.

        A file with a zero byte near its beginning is no text: what stands in the place of a secret is
        as long there as the secret, so that the file can still be read.
        """
        names: set[str] = set()
        past = 0
        binary: bool | None = None
        for window, end in self._windows(source, self._reach):
            if binary is None:
                binary = b"\0" in window[: 1 << 13]
            at = past
            for hit in self._hits(window, past):
                if hit.start >= end:
                    break
                names.add(hit.name)
                mark = _mark(hit.name)
                size = hit.end - hit.start
                target.write(window[at : hit.start] + (b"*" * size if binary else mark))
                at = hit.end
            target.write(window[at : max(at, end)])
            past = max(0, at - end)
        return names

    def redacted(self, text: str) -> str:
        """Return a text without the secrets."""
        if self._search is None:
            return text
        content = text.encode("utf-8", "surrogatepass")
        parts = []
        at = 0
        for hit in self._hits(content):
            parts += [content[at : hit.start], _mark(hit.name)]
            at = hit.end
        return b"".join([*parts, content[at:]]).decode("utf-8", "surrogatepass") if parts else text

    def clean(self, content: Content) -> Content:
        """Return plain JSON without the secrets in its texts; keys stay. Tuples stay tuples."""
        if not self:
            return content
        redacted: Any = content
        if isinstance(content, str):
            redacted = self.redacted(content)
        elif isinstance(content, dict):
            redacted = {key: self.clean(value) for key, value in content.items()}
        elif isinstance(content, (list, tuple)):
            redacted = type(content)(map(self.clean, content))
        return redacted  # type: ignore[no-any-return]

    def redact_file(self, path: Path) -> set[str]:
        """Take the secrets out of a file in place, if it holds any; a reader never sees half of it.

        Raises:
            OSError: The file cannot be read or written; it is as it was.
        """
        with path.open("rb") as source:
            if not self.names_in(source):
                return set()
            draft = path.with_name(f".{path.name[:200]}.{os.getpid()}{_DRAFT}")
            try:
                source.seek(0)
                with draft.open("xb") as target:
                    names = self.redact(source, target)
                shutil.copymode(path, draft)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        return names

    def redact_folder(self, folder: Path) -> set[str]:
        """Take the secrets out of all files below a folder, and out of their names.

        Disks, and bundles, are left alone.

        Raises:
            OSError: A file cannot be read or written.
        """
        names: set[str] = set()
        for place, folders, files in os.walk(folder, topdown=False):
            above = Path(place).relative_to(folder).parts
            if _SKIPPED & set(above):
                continue
            for name in files:
                path = Path(place, name)
                if path.is_symlink() or not path.is_file() or name.endswith(_SAVED):
                    continue
                names |= self.redact_file(path)
            for name in (*files, *folders):
                if (clean := self.redacted(name)) != name:
                    names |= self.names_in_text(name)
                    Path(place, name).rename(_free(Path(place, clean)))
        return names

    def forms(self) -> Mapping[str, set[bytes]]:
        """Return the forms of each secret by its name."""
        return {
            name: set().union(*(forms(value) for value in values))
            for name, values in self._values.items()
        }

    @property
    def _reach(self) -> int:
        return _BREAKS + 2 * self._longest

    def _hits(self, piece: bytes, start: int = 0) -> Iterator[_Hit]:
        """Yield the secrets in a piece, in order; no two of them overlap."""
        if self._search is None:
            return
        parts, places, origins = [], [0], [start]
        at = start
        for gap in _breaks().finditer(piece, start):
            if gap.start() > at:
                parts.append(piece[at : gap.start()])
                places.append(places[-1] + gap.start() - at)
                origins.append(gap.end())
            else:
                origins[-1] = gap.end()
            at = gap.end()
        parts.append(piece[at:])
        text = b"".join(parts).lower()
        for number, first, end in self._search.find_matches_as_indexes(text):
            yield _Hit(
                _origin(places, origins, first),
                _origin(places, origins, end - 1) + 1,
                self._names[number],
            )

    def _windows(self, source: IO[bytes], reach: int) -> Iterator[tuple[bytes, int]]:
        """Yield pieces that overlap by ``reach`` bytes, and the end of what only this one covers."""
        rest = b""
        while piece := source.read(_PIECE):
            window = rest + piece
            end = max(0, len(window) - reach)
            yield window, end
            rest = window[end:]
        yield rest, len(rest)


def _origin(places: list[int], origins: list[int], at: int) -> int:
    """Return where a byte of a text without breaks was before they were taken out."""
    number = bisect.bisect_right(places, at) - 1
    return origins[number] + at - places[number]


@functools.cache
def _breaks() -> Any:
    import re2  # takes its time

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(_BREAK, options)


def _squeezed(content: bytes) -> bytes:
    return bytes(_breaks().sub(b"", content))


def _variants(form: bytes) -> Iterator[bytes]:
    """Yield a form, and what is left of it where a space of its own stands before a break."""
    yield form
    spaces = [at for at, byte in enumerate(form) if byte == ord(" ")]
    if len(spaces) <= _SPACES:
        yield from (form[:at] + form[at + 1 :] for at in spaces)


def _mark(name: str) -> bytes:
    return _MARKED.format(name).encode()


def _free(path: Path) -> Path:
    """Return a path that does not exist yet."""
    for count in itertools.count(2):
        if not path.exists():
            return path
        path = path.with_name(f"{path.name}-{count}")
    raise AssertionError("unreachable")


def forms(value: str) -> set[bytes]:
    """Return the forms in which a text may hold a secret, all of them without regard to case."""
    plain = value.encode("utf-8", "surrogatepass")
    quoted = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    # A log of commands is JSON, and a command may carry JSON.
    quoted |= {json.dumps(each)[1:-1] for each in quoted}
    quoted |= {html.escape(value), html.escape(value, quote=False), repr(value)[1:-1]}
    quoted |= {html.escape(value).replace("&#x27;", other) for other in ("&apos;", "&#39;")}
    quoted.add(shlex.quote(value).removeprefix("'").removesuffix("'"))
    quoted |= {urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value)}
    # As the name of a folder of evidence has it: see ``harness.evidence.run.slug``.
    quoted.add(re.sub(r"[^A-Za-z0-9_.-]+", "-", value).strip("-."))
    encoded = {plain, html.escape(value).encode("ascii", "xmlcharrefreplace")}
    encoded |= {each.encode("utf-8", "surrogatepass") for each in quoted}
    encoded |= {plain.hex().encode(), plain.hex(":").encode(), plain.hex(" ").encode()}
    for before in range(3):
        # Characters that also depend on the bytes around the secret are left out.
        text = base64.b64encode(bytes(before) + plain).rstrip(b"=")
        whole = (before + len(plain)) * 8 // 6
        core = text[-(-before * 8 // 6) : whole]
        encoded |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in encoded if len(form) >= SHORTEST}
