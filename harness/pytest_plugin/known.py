"""Known failures in a run: pytest reports them as it reports an expected failure, ``xfail``.

A phase of a test that fails as ``known.yaml`` says makes no run fail. Each phase is judged by itself: a
test that fails in a known way, and whose teardown fails in another one, is red. In a test that is red
already, nothing is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.pytest_plugin import session as sessions
from harness.pytest_plugin import tries

if TYPE_CHECKING:
    from harness.evidence.results import TestResult
    from harness.known import Entry, KnownFailures, Subject

PROPERTIES: Final = ("known", "tracker")
"""Properties of a report, and of ``junit.xml``: the entry's place, and its tracker."""

ATTRIBUTE: Final = "harness_known"
"""The attribute of a report that has the entry, as JSON, which pytest-xdist carries."""


def recognise(item: pytest.Item, report: pytest.TestReport, place: Path | None) -> dict[str, str]:
    """Look for the entry that a failed phase matches, and return its properties.

    Args:
        item: The test.
        report: The report of the phase, which gets the entry as its attribute.
        place: The evidence.
    """
    session = sessions.of(item.config)
    failed = item.stash[tries.TRIES].current.failure
    if session.known is None or (failed is not None and failed.outcome == "failed"):
        return {}
    from harness.errors import Verdict
    from harness.known import Failure

    subject = _subject(session, session.arch_of(item))
    failure = Failure(item.nodeid, subject, tries.message(report), place)
    entry = session.known.match(failure)
    if entry is None:
        return {}
    vars(report)[ATTRIBUTE] = _record(entry, session.known)
    properties = {"known": _short(entry), "tracker": entry.tracker}
    if not entry.has_expired(session.known.today):
        properties["verdict"] = Verdict.KNOWN.value
    return properties


def _subject(session: sessions.Session, arch: str) -> Subject:
    from harness.errors import HarnessError
    from harness.known import Subject

    if arch:
        with contextlib.suppress(HarnessError):
            image = session.lab_on(arch).image
            return Subject(image.name, image.variant, image.version, arch)
    return Subject(arch=arch)


def _short(entry: Entry) -> str:
    """Return an entry's place without the folder: ``known.yaml:3``."""
    return entry.where.rpartition("/")[2]


def _record(entry: Entry, known: KnownFailures) -> dict[str, Any]:
    return {
        "key": entry.key,
        "entry": _short(entry),
        "tracker": entry.tracker,
        "owner": entry.owner,
        "expires": str(entry.expires),
        "expired": entry.has_expired(known.today),
    }


def excuse(report: pytest.TestReport) -> None:
    """Let a known failure make no run fail; one whose entry has expired does."""
    record = getattr(report, ATTRIBUTE, None)
    if record is None or record["expired"]:
        return
    report.outcome = "skipped"
    vars(report)["wasxfail"] = f"known: {record['tracker']}"


def is_excused(report: pytest.TestReport) -> bool:
    """Return whether a report is one of a known failure that makes no run fail."""
    record = getattr(report, ATTRIBUTE, None)
    return record is not None and not record["expired"]


def words(record: Mapping[str, Any]) -> str:
    """Return what the summary says of an entry."""
    return f"{record['expires']}: {record['tracker']} ({record['owner']}, {record['entry']})"


def summarize(terminal: Any, tests: Iterable[TestResult], known: KnownFailures | None) -> None:
    """List the known failures of a run, and the entries that have expired."""
    failures = [test for test in tests if test.verdict == "known" and test.known is not None]
    expired = known.expired if known is not None else []
    if not failures and not expired:
        return
    terminal.section("known failures", yellow=True)
    for test in failures:
        terminal.write_line(f"known    {test.id}")
        terminal.write_line(f"         {test.reason}")
        terminal.write_line(f"         until {words(test.known or {})}")
    for entry in expired:
        terminal.write_line(f"expired  {entry.test}")
        terminal.write_line(
            f"         {_short(entry)}: on {entry.expires}: {entry.tracker} ({entry.owner})"
        )
