"""Reads ``known.yaml``, as the catalogue reads its images: the faults of a file have ``file:line``."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.catalog import document
from harness.catalog.explain import explain
from harness.errors import CatalogError
from harness.known.model import Entry, Failure


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    known: tuple[Entry, ...]


@dataclass(frozen=True)
class KnownFailures:
    """The entries of a file.

    Attributes:
        path: The file.
        entries: Its entries, in its order.
        today: The day by which they are judged.
    """

    path: Path
    entries: Sequence[Entry]
    today: datetime.date

    def match(self, failure: Failure) -> Entry | None:
        """Return the entry that a failure matches; one that has expired only if no other does."""
        matching = [entry for entry in self.entries if entry.matches(failure)]
        return min(matching, key=lambda entry: entry.has_expired(self.today), default=None)

    @property
    def expired(self) -> list[Entry]:
        """The entries that no longer hold."""
        return [entry for entry in self.entries if entry.has_expired(self.today)]


def today() -> datetime.date:
    """Return the day by which entries are judged: that of UTC, the same on each host."""
    return datetime.datetime.now(datetime.UTC).date()


def load(path: Path, on: datetime.date | None = None) -> KnownFailures:
    """Read a file of known failures.

    Args:
        path: The file.
        on: The day by which it is judged; today by default.

    Raises:
        CatalogError: The file is wrong. Each fault is one line that begins with ``file:line``.
    """
    day = today() if on is None else on
    doc = document.read(path)
    if doc.data is None or doc.data == {}:
        return KnownFailures(path, (), day)
    if not isinstance(doc.data, dict):
        raise CatalogError(f"{doc.where(())}: not a mapping with the key 'known'")
    try:
        entries = _File.model_validate(doc.data).known
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda each: doc.line(each["loc"]))
        lines = [explain(doc, dict(detail), _File) for detail in details]
        raise CatalogError("\n".join(lines)) from error
    problems = []
    by_key: dict[str, Entry] = {}
    for index, entry in enumerate(entries):
        entry._where = doc.where(("known", index))
        # A day in the future would let an entry live longer than it may.
        if entry.added > day + datetime.timedelta(days=1):
            where = doc.where(("known", index, "added"))
            problems.append(f"{where}: known.{index}.added: {entry.added} is in the future")
        if (other := by_key.setdefault(entry.key, entry)) is not entry:
            problems.append(f"{entry.where}: known.{index}: the same signature as {other.where}")
    if problems:
        raise CatalogError("\n".join(problems))
    return KnownFailures(path, entries, day)
