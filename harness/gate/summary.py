"""A judgement for people: a table for the terminal, Markdown for GitHub's step summary, annotations.

The worst comes first, in all of them. What a guest or a change's code has said is one line without
control characters; in Markdown all of its punctuation is escaped, and no line of output begins with it:
GitHub's runner takes a line that begins with ``::``, and one that has ``##[`` anywhere, for a command
(actions/runner, ``ActionCommand.cs``: ``TryParseV2`` and ``TryParse``).

GitHub drops a step summary of more than 1 MiB as a whole, and shows at most ten annotations of a kind
for a step (actions/toolkit, ``docs/problem-matchers.md``, "Limitations"). So both are cut here, and
say how much was left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from harness.evidence.report.text import line
from harness.gate.judge import GREEN, JobOutcome, Judgement, TestOutcome

MOST_BYTES: Final = 900_000
"""Bytes of a summary in Markdown, at most."""

MOST_ANNOTATIONS: Final = 10
"""Annotations of a kind, at most."""

_MOST_TESTS: Final = 20
"""Tests of a job that the terminal shows, at most."""

_MARKUP: Final = re.compile(r"[!-+;-@\[-`{-~]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
"""Punctuation of ASCII but for comma, hyphen, full stop and slash; what makes a link of the others."""

_CODE: Final = re.compile(r"[A-Za-z0-9 _./:,()\[\]=+-]+")
_KINDS: Final = {
    **dict.fromkeys(("product", "test", "timeout", "infra"), "error"),
    **dict.fromkeys(("flaky-infra", "flaky"), "warning"),
    "known": "notice",
}
"""The kind of annotation for each verdict that has one."""


def table(judgement: Judgement) -> list[str]:
    """Return the lines for a terminal: the jobs, what failed in them, the notes, the verdict."""
    lines = []
    if judgement.jobs:
        rows: list[tuple[str, ...]] = [("job", "verdict", "tests", "time", "attempts", "why")]
        rows += [_row(job) for job in judgement.jobs]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
    for job in judgement.jobs:
        shown = [test for test in job.tests if test.id and test.reason]
        if job.verdict != "passed" and shown:
            lines += ["", f"{job.job.id}:"]
            for test in shown[:_MOST_TESTS]:
                lines += _test(job, test)
            if len(shown) > _MOST_TESTS:
                lines.append(f"  and {len(shown) - _MOST_TESTS} more")
    if judgement.notes:
        lines += ["", *(f"note: {_safe(note)}" for note in judgement.notes)]
    return [*lines, "", f"gate: {judgement.verdict}: {_safe(judgement.reason)}"]


def _row(job: JobOutcome) -> tuple[str, ...]:
    return (
        job.job.id,
        job.verdict,
        _tally(job.counts),
        _time(job.seconds),
        ",".join(map(str, job.attempts)) or "none",
        _safe(job.reason),
    )


def _test(job: JobOutcome, test: TestOutcome) -> Iterator[str]:
    yield f"  {test.verdict:8} {_safe(test.id)}"
    yield f"           {_safe(test.reason)}" if test.reason else ""
    if test.tracker:
        yield f"           known: {_safe(test.tracker)}"
    if test.evidence:
        yield f"           evidence: {_safe(test.evidence)}"
    if test.verdict in ("product", "test", "timeout"):
        yield f"           repeat: {_repeat(job, test)}"


def _repeat(job: JobOutcome, test: TestOutcome) -> str:
    quoted = line(test.id).replace("'", "'\\''")
    return _safe(f"harness acceptance '{quoted}' --image {job.job.image} --arch {job.job.arch}")


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _safe(words: object) -> str:
    """Return words for a log that GitHub's runner reads: one line, and no command."""
    return line(words).replace("##[", "## [").lstrip(": ")


# --- Markdown ---------------------------------------------------------------------------------


def markdown(judgement: Judgement, *, most: int = MOST_BYTES) -> str:
    """Return the summary in GitHub's Markdown; it has at most ``most`` bytes in UTF-8.

    What does not fit is left out from its end, which is the least bad, and the last line says how much.
    """
    mark = "\N{WHITE HEAVY CHECK MARK}" if judgement.status == 0 else "\N{CROSS MARK}"
    head = [f"## {mark} Gate: {judgement.verdict}", "", _escaped(judgement.reason), ""]
    sections: list[tuple[str, list[str], list[str]]] = []
    if judgement.jobs:
        sections.append(
            (
                "job",
                ["| job | verdict | tests | time | attempts | why |", "|---|---|---|---|---|---|"],
                ["| " + " | ".join(map(_cell, _row(job))) + " |" for job in judgement.jobs],
            )
        )
    tests = [
        _item(job, test)
        for job in judgement.jobs
        if job.verdict != "passed"
        for test in job.tests
        if test.id and test.reason
    ]
    if tests:
        sections.append(("test", ["", "### Tests", ""], tests))
    if judgement.notes:
        notes = [f"- {_escaped(note)}" for note in judgement.notes]
        sections.append(("note", ["", "### Notes", ""], notes))
    return _cut(head, sections, most)


def _cut(head: list[str], sections: list[tuple[str, list[str], list[str]]], most: int) -> str:
    """Return the lines of sections as far as they fit; sections are filled in their order."""
    lines = list(head)
    # The last line, with a number of each kind.
    room = most - _bytes(lines) - 200
    omitted: list[str] = []
    for kind, title, items in sections:
        room -= _bytes(title)
        fit = 0
        while fit < len(items) and room >= _bytes(items[fit : fit + 1]):
            room -= _bytes(items[fit : fit + 1])
            fit += 1
        if fit:
            lines += [*title, *items[:fit]]
        if left := len(items) - fit:
            omitted.append(f"{left} {kind}{'s' if left > 1 else ''}")
            room = 0
    if omitted:
        lines += ["", f"Left out for its size: {', '.join(omitted)}. See the log, or `--json`."]
    return "\n".join(lines) + "\n"


def _bytes(lines: Sequence[str]) -> int:
    return sum(len(each.encode("utf-8", "replace")) + 1 for each in lines)


def _item(job: JobOutcome, test: TestOutcome) -> str:
    text = f"- **{test.verdict}** {_code(test.id)} on {_code(job.job.id)}: {_escaped(test.reason)}"
    if test.tracker:
        text += f" ({_escaped(test.tracker)})"
    if test.evidence:
        text += f"<br>evidence: {_code(test.evidence)}"
    return text


def _cell(text: str) -> str:
    return _code(text) if _CODE.fullmatch(text) and "_" in text else _escaped(text)


def _code(words: str) -> str:
    """Return words as code; of words that could end it, the characters are escaped instead."""
    text = line(words)
    return f"`{text}`" if _CODE.fullmatch(text) else _escaped(text)


def _escaped(words: str) -> str:
    """Return words that mean themselves in Markdown and in HTML.

    Numeric references are text wherever they are (CommonMark 0.31, section 2.5): they begin no
    markup, no link, no mention and no cell.
    """
    return _MARKUP.sub(lambda match: f"&#{ord(match.group())};", line(words))


# --- annotations ------------------------------------------------------------------------------


def commands(judgement: Judgement) -> list[str]:
    """Return GitHub's commands that annotate a run: at most ten of a kind, the worst first."""
    by_kind: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    for job in judgement.jobs:
        tests = [test for test in job.tests if test.id and test.verdict in _KINDS]
        if job.verdict == "infra" or not tests:
            # Of a job that is not proven one line says it, not one for each of its tests.
            tests = [test for test in tests if test.verdict != "infra"]
            if job.verdict in _KINDS:
                message = f"{job.job.id}: {job.reason}"
                by_kind[_KINDS[job.verdict]].append(_command(_KINDS[job.verdict], job, "", message))
        elif job.verdict == "flaky-infra":
            by_kind["warning"].append(_command("warning", job, "", f"{job.job.id}: {job.reason}"))
        for test in tests:
            kind = _KINDS[test.verdict]
            by_kind[kind].append(_command(kind, job, test.id, f"{test.verdict}: {test.reason}"))
    if not judgement.jobs and judgement.verdict not in GREEN:
        by_kind["error"].append(f"::error title=gate::{_data(judgement.reason)}")
    return [each for kind, lines in by_kind.items() for each in _most(kind, lines)]


def _most(kind: str, lines: list[str]) -> list[str]:
    if len(lines) <= MOST_ANNOTATIONS:
        return lines
    shown = lines[: MOST_ANNOTATIONS - 1]
    return [*shown, f"::{kind} title=gate::{len(lines) - len(shown)} more: see the summary"]


def _command(kind: str, job: JobOutcome, test: str, message: str) -> str:
    properties = f"title={_property(f'{job.verdict}: {job.job.id}')}"
    if test:
        properties = f"file={_property(test.partition('::')[0])},{properties}"
        message = f"{test}: {message}"
    return f"::{kind} {properties}::{_data(message)}"


def _data(words: str) -> str:
    """Return a message as a command has it (actions/toolkit, ``command.ts``: ``escapeData``)."""
    return line(words).replace("%", "%25").replace("##[", "## [")


def _property(words: str) -> str:
    return _data(words).replace(":", "%3A").replace(",", "%2C")
