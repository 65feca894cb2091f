"""The tracker: one issue for each failure signature, found again by a visible line of its body.

::

    Signature: 5478720c38114f98

A line of its own identifies the failures (:mod:`harness.evidence.signature`). It is text that people
see: hidden comments get lost when a body is edited or copied (dotnet/msbuild#13963). Open and closed
issues are looked for by their label, since the index of the search lags behind (golang/go#72731: 500
duplicates in hours). A failure whose issue is closed gets one comment for each time it was closed,
never a new issue (kubernetes-sigs/agent-sandbox#1696). With more new signatures than the storm guard
allows, one issue lists them all: something has broken that all tests need.

What a guest said is quoted as code, and no line of it can be taken for a signature.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.errors import HostError
from harness.evidence.history import first_line
from harness.evidence.results import plain_id
from harness.gate.github import GitHub, UnclearError

LABEL: Final = "harness-failure"
STORM: Final = 10
"""New signatures of one night for which issues of their own are filed."""

BAD: Final = ("product", "test", "timeout")
"""Verdicts for which an issue is filed. ``infra`` and ``flaky`` are for the page: they are rates."""

_SIGNATURE: Final = re.compile(r"^Signature: ([0-9a-f]{16})[ \t]*\r?$", re.MULTILINE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_MOST_TESTS: Final = 40
_TITLE: Final = 180
_REASON: Final = 1000

_AGAIN: Final = "The failure of this issue occurred again after the issue was closed."


@dataclass(slots=True)
class Failures:
    """All failures of one signature.

    Attributes:
        signature: The signature.
        verdict: Their verdict.
        reason: The first line of the first one.
        tests: Test, image and architecture of each, without repetitions.
    """

    signature: str
    verdict: str
    reason: str
    tests: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Action:
    """What was done, or would be, for a signature.

    Attributes:
        action: ``create``; ``storm``, for a signature that is listed in one issue with others;
            ``comment``; ``none``, for a signature that has an open issue, or a comment already;
            ``left``, for a comment beyond the storm guard.
        signature: The signature.
        number: The issue; 0 if it has none yet.
        title: The issue's title.
        tests: How many tests failed so.
    """

    action: str
    signature: str
    number: int
    title: str
    tests: int


def failures(runs: Iterable[dict[str, Any]]) -> tuple[list[Failures], int]:
    """Return the failures of runs by signature, and how many tests failed in a known way.

    Args:
        runs: Contents of ``results.json``.
    """
    groups: dict[str, Failures] = {}
    known = 0
    for run in runs:
        image = run.get("image") or {}
        for test in run["tests"]:
            # An entry that has expired has an issue, too: its tracker.
            if test.get("known"):
                known += 1
                continue
            signature = str(test.get("signature") or "")
            verdict = str(test.get("verdict") or "")
            if verdict not in BAD or not re.fullmatch("[0-9a-f]{16}", signature):
                continue
            arch = str(test.get("arch") or "")
            words = [image.get("name"), image.get("variant")] if arch else []
            name = "/".join(str(word) for word in words if word)
            if arch and image.get("version"):
                name += f":{image['version']}"
            reason = first_line(test.get("reason"))
            group = groups.setdefault(signature, Failures(signature, verdict, reason))
            failed = (plain_id(str(test.get("id", "")), arch), name, arch)
            if failed not in group.tests:
                group.tests.append(failed)
    for group in groups.values():
        group.tests.sort()
    return sorted(groups.values(), key=lambda group: (group.tests[0], group.signature)), known


def signatures(body: str) -> set[str]:
    """Return the signatures that an issue's body names, each on a line of its own."""
    return set(_SIGNATURE.findall(body))


def track(
    groups: Sequence[Failures],
    github: GitHub | None,
    *,
    night: str,
    url: str = "",
    storm: int = STORM,
    dry: bool = False,
) -> list[Action]:
    """File what has no issue, and return what was done for each signature.

    Args:
        groups: The failures, by signature.
        github: The repository; ``None`` if nobody is to be asked, as if it had no issue.
        night: The date, for the title of the issue that lists many.
        url: Where the report can be read.
        storm: The storm guard.
        dry: Whether to write nothing.

    Raises:
        HostError: GitHub refuses, or asks to wait too long. What was filed before stays filed, and the
            next call finds it.
    """
    issues = github.issues(LABEL) if github is not None else []
    actions: list[Action] = []
    new: list[Failures] = []
    closed: list[tuple[Failures, dict[str, Any]]] = []
    for group in groups:
        named = [each for each in issues if group.signature in signatures(each.get("body") or "")]
        current = [each for each in named if each.get("state") == "open"]
        if current:
            actions.append(_action("none", group, current[0]))
        elif named:
            closed.append((group, max(named, key=lambda each: str(each.get("closed_at") or ""))))
        else:
            new.append(group)
    write = None if dry else github
    comments = 0
    for group, issue in closed:
        if github is not None and _commented(github, group, issue):
            actions.append(_action("none", group, issue))
        elif comments >= storm:
            actions.append(_action("left", group, issue))
        else:
            comments += 1
            if write is not None:
                write.comment(int(issue["number"]), _again(group, url))
            actions.append(_action("comment", group, issue))
    if len(new) > storm:
        title = f"Nightly {night}: {len(new)} new failure signatures"
        issue = {"title": title, "number": 0}
        if write is not None:
            issue = _create(write, title, _storm_body(new, url), {each.signature for each in new})
        actions += [_action("storm", group, issue) for group in new]
    else:
        for group in new:
            issue = {"title": _title(group), "number": 0}
            if write is not None:
                issue = _create(write, _title(group), _body(group, url), {group.signature})
            actions.append(_action("create", group, issue))
    return actions


def _action(action: str, group: Failures, issue: dict[str, Any]) -> Action:
    title = _line(str(issue.get("title", "")))
    return Action(action, group.signature, int(issue["number"]), title, len(group.tests))


def _commented(github: GitHub, group: Failures, issue: dict[str, Any]) -> bool:
    """Return whether a comment has said already that the failure occurred after the issue was closed."""
    since = str(issue.get("closed_at") or "")
    return any(
        _AGAIN in (body := str(each.get("body") or ""))
        and group.signature in signatures(body)
        and str(each.get("created_at") or "") >= since
        for each in github.comments(int(issue["number"]), since)
    )


def _create(github: GitHub, title: str, body: str, wanted: set[str]) -> dict[str, Any]:
    try:
        issue = github.create(title, body, LABEL)
    except UnclearError as error:
        # It may be there in spite of the answer; a second one would be a duplicate.
        for each in github.issues(LABEL):
            if wanted <= signatures(each.get("body") or ""):
                return each
        raise HostError(
            f"{error.what}; no issue was created", hint="run it again: it files what is missing"
        ) from error
    labels = {
        str(each.get("name", "")) for each in issue.get("labels") or [] if isinstance(each, dict)
    }
    if LABEL not in labels:
        raise HostError(
            f"issue {issue.get('number')} was created without the label {LABEL!r}, by which the next"
            " night would look for it",
            hint="GitHub drops labels unless the token may push or triage: give it that, and add the"
            " label to this issue by hand",
        )
    return issue


# --- texts ------------------------------------------------------------------------------------


def _line(text: str, most: int = _REASON) -> str:
    """Return a guest's words as one line without control characters."""
    clean = _CONTROL.sub(" ", text).strip()
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _code(text: str) -> str:
    """Return a text as a code span of Markdown, which no backtick in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _title(group: Failures) -> str:
    test = group.tests[0][0].rpartition("/")[2].partition("[")[0]
    # A mention in a title would be a link.
    return _line(f"{group.verdict}: {test}: {group.reason}", _TITLE).replace("@", "@\u200b")


def _body(group: Failures, url: str) -> str:
    test, image, arch = group.tests[0]
    words = ["harness", "acceptance", test]
    words += ["--image", image] if image else []
    words += ["--arch", arch] if arch else []
    lines = [
        f"A nightly run failed in a way that no issue had yet, with the verdict **{group.verdict}**.",
        "",
        # Four blanks: a code block, in which no line begins with a signature.
        f"    {_line(group.reason) or '(no reason was given)'}",
        "",
        *_tests(group),
        "",
        *([f"Report: {_link(url)}", ""] if url else []),
        f"Repeat: {_code(shlex.join(words))}",
        "",
        f"Signature: {group.signature}",
        "",
        "The line above identifies the failure; leave it and the label as they are. While this issue is"
        " open, further nights add nothing. Once it is closed, the first night with this failure adds a"
        " comment. To expect the failure until it is mended, add it to `known.yaml` with this issue as"
        " its tracker.",
    ]
    return "\n".join(lines)


def _tests(group: Failures) -> list[str]:
    rows = [
        f"- {_code(_line(test))}" + (f" on {_code(_line(f'{image} {arch}'))}" if arch else "")
        for test, image, arch in group.tests[:_MOST_TESTS]
    ]
    if more := len(group.tests) - len(rows):
        rows.append(f"- and {more} more")
    return rows


_BODY: Final = 60_000
"""Characters of an issue's body; GitHub takes 65,536."""


def _storm_body(new: Sequence[Failures], url: str) -> str:
    lines = [
        f"One night had {len(new)} new failure signatures. So many at once have one cause, as a rule:"
        " look for what all of these tests need. None of them gets an issue of its own while this one"
        " names it.",
        "",
        *([f"Report: {_link(url)}", ""] if url else []),
    ]
    # Short for each, so that all signatures fit: one that is left out would be filed the next night.
    room = (_BODY - 1000) // len(new) - 100
    for group in new:
        lines += [f"Signature: {group.signature}", ""]
        if room >= 40:
            what = _line(f"{group.tests[0][0]}: {group.reason}", room)
            lines += [f"- **{group.verdict}**, {len(group.tests)} tests: {_code(what)}", ""]
    return "\n".join(lines)


def _again(group: Failures, url: str) -> str:
    lines = [_AGAIN, "", f"    {_line(group.reason)}", "", *_tests(group), ""]
    lines += [f"Report: {_link(url)}", ""] if url else []
    return "\n".join([*lines, f"Signature: {group.signature}"])


def _link(url: str) -> str:
    clean = _line(url)
    return f"<{clean}>" if re.fullmatch(r"https?://[^\s<>]+", clean) else _code(clean)
