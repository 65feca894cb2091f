"""An entry of ``known.yaml``: the signature of a failure, who cares for it, and until when.

An entry matches a failure, not a test. Its pattern is searched for in the failure's own text, which has
the last output of the guest where that matters, and not in the whole log: what a log always has would
excuse every failure.

Patterns are those of RE2 (https://github.com/google/re2/wiki/Syntax), which takes linear time for each
pattern and text. A limit of time would let the verdict depend on how busy the host is.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

import re2
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from harness.arch import ARCHES
from harness.catalog.load import REFERENCE
from harness.catalog.model import problem
from harness.errors import UnknownNameError
from harness.evidence.results import plain_id

MOST_DAYS: Final = 90
"""Days from ``added`` to ``expires``, at most."""

MESSAGE_KEPT: Final = 64 * 1024
"""Characters from the beginning of a failure's text in which a pattern is searched for."""

FILE_KEPT: Final = 1024 * 1024
"""Bytes from the end of a file of evidence in which a pattern is searched for."""

MOST_FILES: Final = 16
"""Files of evidence in which one pattern is searched for."""


@functools.cache
def compiled(pattern: str) -> Any:
    """Return a pattern of RE2.

    Raises:
        re2.error: It is none.
    """
    options = re2.Options()
    # It would write to the terminal; the exception says the same.
    options.log_errors = False
    return re2.compile(pattern, options)


def _pattern(text: str) -> str:
    try:
        pattern = compiled(text)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        raise problem(f"is no regular expression of RE2: {reason}") from error
    if any(pattern.search(sample) for sample in ("", "\N{SNOWMAN}")):
        raise problem(f"matches every failure: {text!r}")
    return text


def _tracker(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise problem(f"must be a URL with http or https, not {text!r}")
    return text


def _image(text: str) -> str:
    match = REFERENCE.fullmatch(text)
    if match is None or match["version"] is not None:
        raise problem(
            f"must be NAME or NAME/VARIANT, not {text!r}; versions have a key of their own"
        )
    return text


def _versions(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise problem(f"must be a range such as '>=1.2, <2', not {text!r}") from error
    return text


def _arch(text: str) -> str:
    if text not in ARCHES:
        error = UnknownNameError("arch", text, ARCHES)
        raise problem(f"{error.what}; {error.hint}")
    return text


def _inside(text: str) -> str:
    parts = PurePosixPath(text)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise problem(f"must be a relative path without '..', not {text!r}")
    return text


Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_pattern)]
File = Annotated[str, AfterValidator(_inside)]


@dataclass(frozen=True, slots=True)
class Subject:
    """The image that a test judged; all is empty for a test that uses none.

    Attributes:
        image: Its name.
        variant: Its variant.
        version: Its version.
        arch: The architecture.
    """

    image: str = ""
    variant: str = ""
    version: str = ""
    arch: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """What an entry may match.

    Attributes:
        test: pytest's node id.
        subject: The image that the test judged.
        message: The failure's text.
        evidence: The folder of the try's evidence; ``None`` if there is none.
    """

    test: str
    subject: Subject
    message: str
    evidence: Path | None = None


class Entry(BaseModel):
    """One known failure.

    Attributes:
        test: The test's node id; ``*`` stands for any text, ``?`` for any character.
        pattern: A regular expression for the failure's text.
        evidence: Further regular expressions, by files of the evidence (``*/serial.log``): each has to
            match in one of its files.
        image: The image, ``NAME`` or ``NAME/VARIANT``; ``None`` for any.
        versions: A range of the image's versions, as for Python's packages; ``None`` for any.
        arch: The architecture; ``None`` for any.
        tracker: The URL of the issue.
        owner: Who cares for it.
        added: The day from which it holds.
        expires: The last day on which it holds.
        note: Further words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: Text
    pattern: Pattern
    evidence: Mapping[File, Pattern] = Field(default_factory=dict)
    image: Annotated[str, AfterValidator(_image)] | None = None
    versions: Annotated[str, AfterValidator(_versions)] | None = None
    arch: Annotated[str, AfterValidator(_arch)] | None = None
    tracker: Annotated[str, AfterValidator(_tracker)]
    owner: Text
    added: datetime.date
    expires: datetime.date
    note: str = ""
    _where: str = PrivateAttr("")

    @model_validator(mode="after")
    def _check(self) -> Self:
        days = (self.expires - self.added).days
        if days < 0:
            raise problem(f"is before 'added', {self.added}", "expires")
        if days > MOST_DAYS:
            last = self.added + datetime.timedelta(days=MOST_DAYS)
            raise problem(
                f"is {days} days after 'added'; at most {MOST_DAYS} are allowed: {last}", "expires"
            )
        if self.versions is not None and self.image is None:
            raise problem("needs 'image': another image has other versions", "versions")
        return self

    @property
    def where(self) -> str:
        """The entry's ``file:line``."""
        return self._where

    @property
    def key(self) -> str:
        """What identifies the entry from run to run, wherever it stands in its file; 12 digits."""
        evidence = [f"{name}={pattern}" for name, pattern in sorted(self.evidence.items())]
        parts = (self.test, self.pattern, self.image, self.versions, self.arch, *evidence)
        text = "\0".join("" if part is None else part for part in parts)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def has_expired(self, today: datetime.date) -> bool:
        """Return whether it no longer holds."""
        return today > self.expires

    def may_match(self, test: str, subject: Subject) -> bool:
        """Return whether a failure of a test on an image could be this one."""
        if self.arch is not None and self.arch != subject.arch:
            return False
        if self.image is not None and self.image not in (
            subject.image,
            f"{subject.image}/{subject.variant}",
        ):
            return False
        if self.versions is not None and not _is_in(subject.version, self.versions):
            return False
        # "[" is no wildcard here: it begins a test's parameters.
        glob = self.test.replace("[", "[[]")
        return any(fnmatchcase(each, glob) for each in (test, plain_id(test, subject.arch)))

    def matches(self, failure: Failure) -> bool:
        """Return whether a failure is this one; whether the entry has expired does not matter."""
        if not self.may_match(failure.test, failure.subject):
            return False
        if not _finds(self.pattern, failure.message[:MESSAGE_KEPT]):
            return False
        return all(
            any(_finds(pattern, text) for text in _texts(failure.evidence, name))
            for name, pattern in self.evidence.items()
        )


def _is_in(version: str, versions: str) -> bool:
    try:
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except InvalidVersion:
        # It has no order, so it is in no range.
        return False


def _finds(pattern: str, text: str) -> bool:
    # A text that was decoded with "surrogateescape" is no UTF-8, which RE2 wants.
    clean = text.encode("utf-8", "replace").decode()
    return compiled(pattern).search(clean) is not None


def _texts(folder: Path | None, name: str) -> Iterator[str]:
    """Yield the ends of the files of evidence that a name such as ``*/serial.log`` stands for."""
    if folder is None:
        return
    for path in sorted(folder.glob(name))[:MOST_FILES]:
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - FILE_KEPT))
                yield file.read(FILE_KEPT).decode("utf-8", "replace")
        except OSError:
            continue
