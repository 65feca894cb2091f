"""Keep the results of past runs in one file, and say what became of each test.

add RUN...     add runs to the history: folders of runs or of shards' artifacts, results.json files, or
               other histories. A run that is there already is added once; the order does not matter.
show           print what became of the tests: rates of passed, flaky and infra, median seconds, and of a
               test that fails now, the last run in which it passed and what has changed since.
page           write one HTML page: the matrix of the last nights with each image of the catalogue,
               trends, the slowest tests, known failures that expire soon.
issues RUN...  file one issue for each failure signature that no issue has yet. --dry-run looks at the
               issues, and prints what would be filed. Without a token in HARNESS_TRACKER_TOKEN it is a
               dry run, too, and not even the issues are looked at.

The history is one file, history.jsonl, with one run a line; docs/how-to/nightly.md describes the line.
harness known and harness plan read it where they take folders of runs.

JSON of add: {"file", "new", "runs", "nights", "dropped"}
JSON of show: {"file", "runs", "nights", "tests": [TEST]}
  TEST: {"image", "arch", "test", "runs", "counts", "passed", "flaky", "infra", "median", "signature",
  "reason", "turn"}; "passed", "flaky" and "infra" are percents of "runs"; "turn" is null, or {"good",
  "bad", "facts"}: the "began" of the last good run, or null, and of the first bad run, and a list of
  [NAME, OLD, NEW]
JSON of issues: {"dry", "known", "issues": [{"action", "signature", "number", "title", "tests"}]}
  "action" is create, comment, storm (listed in one issue with others), none or left
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cli.options import add_images, add_json, lab_of, print_json, say
from harness.errors import UsageError
from harness.evidence.history import Line
from harness.gate import history
from harness.gate.history import Story
from harness.paths import KNOWN, TRACKER_TOKEN, tracker_token


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="add runs")
    _add_runs(add)
    add.add_argument(
        "--keep",
        type=int,
        default=history.KEEP,
        metavar="NIGHTS",
        help="keep the newest nights (default: %(default)s)",
    )
    add.add_argument(
        "--url", default="", help="where the report of these runs can be read: a link of the page"
    )
    show = verbs.add_parser("show", help="say what became of the tests")
    show.add_argument("--image", default="", help="NAME or NAME/VARIANT; all by default")
    show.add_argument("--arch", default="", help="the architecture; all by default")
    show.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a part of a test's id, or a pattern with '*'; can be given several times",
    )
    show.add_argument("--all", action="store_true", help="also list tests that always passed")
    page = verbs.add_parser("page", help="write one HTML page")
    page.add_argument(
        "-o", "--output", type=Path, default=Path("nightly.html"), help="(default: %(default)s)"
    )
    page.add_argument(
        "--known",
        type=Path,
        default=Path(KNOWN),
        metavar="FILE",
        help="the known failures (default: %(default)s, if there is one)",
    )
    add_images(page)
    issues = verbs.add_parser("issues", help="file issues for new failure signatures")
    _add_runs(issues)
    issues.add_argument(
        "--repository", required=True, metavar="OWNER/NAME", help="where issues are filed"
    )
    issues.add_argument("--api", default="", metavar="URL", help="GitHub's API, or a server's own")
    issues.add_argument("--url", default="", help="where the report of these runs can be read")
    issues.add_argument(
        "--storm",
        type=int,
        default=10,
        metavar="N",
        help="with more than N new signatures, file one issue that lists them (default: %(default)s)",
    )
    issues.add_argument("--dry-run", action="store_true", help="print, and file nothing")
    for each, default in ((show, 60), (page, 14)):
        each.add_argument(
            "--nights",
            type=int,
            default=default,
            metavar="N",
            help="look at the newest N nights (default: %(default)s)",
        )
    for each in (add, show, page):
        each.add_argument(
            "--file",
            type=Path,
            default=history.FILE,
            metavar="FILE",
            help="the history (default: %(default)s)",
        )
    for each in (add, show, issues):
        add_json(each)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder of runs")


def main(options: argparse.Namespace) -> int:
    """Do what the verb says."""
    return {"add": _add, "show": _show, "page": _page, "issues": _issues}[options.verb](options)


def _add(options: argparse.Namespace) -> int:
    added = history.add(options.file, options.runs, keep=options.keep, url=options.url)
    for place in added.empty:
        say(f"{place}: no results of a run")
    if options.json:
        print_json(
            {
                "file": str(options.file),
                "new": added.new,
                "runs": added.runs,
                "nights": added.nights,
                "dropped": added.dropped,
            }
        )
    else:
        dropped = f", {added.dropped} dropped" if added.dropped else ""
        print(
            f"{options.file}: {added.new} new of {added.runs} runs in {added.nights} nights{dropped}"
        )
    return 0


def _runs(options: argparse.Namespace) -> list[Line]:
    if options.nights < 1:
        raise UsageError(f"--nights {options.nights}: at least 1")
    if not options.file.exists():
        raise UsageError(
            f"there is no history {options.file}", hint="harness history add RUN..., or --file FILE"
        )
    by_night = history.nights(history.read(options.file))
    return [run for night in list(by_night)[-options.nights :] for run in by_night[night]]


def _show(options: argparse.Namespace) -> int:
    runs = _runs(options)
    stories = history.stories(runs, image=options.image, arch=options.arch, tests=options.test)
    nights = len(history.nights(runs))
    if options.json:
        content = {"file": str(options.file), "runs": len(runs), "nights": nights}
        print_json(content | {"tests": [_described(story) for story in stories]})
        return 0
    listed = [
        story
        for story in stories
        if options.all or options.test or set(story.counts) - {"passed", "known"}
    ]
    for story in listed:
        _print(story)
    total = sum((story.counts for story in stories), start=Counter())
    shares = history.rates(total)
    print(
        f"{len(stories)} tests in {len(runs)} runs of {nights} nights:"
        f" {shares['passed']} % passed, {shares['flaky']} % flaky, {shares['infra']} % infra"
    )
    if hidden := len(stories) - len(listed):
        say(f"{hidden} tests always passed; --all lists them, too")
    return 0


def _described(story: Story) -> dict[str, Any]:
    turn = story.turn
    last = next((each for each in reversed(story.outcomes) if each.signature), None)
    return {
        "image": story.image,
        "arch": story.arch,
        "test": story.test,
        "runs": sum(story.counts.values()),
        "counts": dict(story.counts),
        **history.rates(story.counts),
        "median": story.median,
        "signature": last.signature if last else "",
        "reason": last.reason if last else "",
        "turn": None
        if turn is None
        else {
            "good": turn.good["began"] if turn.good else None,
            "bad": turn.bad["began"],
            "facts": turn.facts,
        },
    }


def _print(story: Story) -> None:
    shares = history.rates(story.counts)
    where = " ".join(filter(None, (story.image, story.arch)))
    print(f"{story.test}{f' on {where}' if where else ''}")
    median = f"; median {story.median} s" if story.median is not None else ""
    print(
        f"  {sum(story.counts.values())} runs: {shares['passed']} % passed,"
        f" {shares['flaky']} % flaky, {shares['infra']} % infra{median}"
    )
    if (turn := story.turn) is None:
        return
    good = f"last passed {turn.good['began']}" if turn.good else "has not passed in these nights"
    print(f"  FAILS since {turn.bad['began']}; {good}")
    for name, old, new in turn.facts:
        print(f"    {name}: {old or '-'} -> {new or '-'}")


def _page(options: argparse.Namespace) -> int:
    from harness.gate import dashboard
    from harness.known import load

    known = load(options.known) if options.known.exists() else None
    if known is None and options.known != Path(KNOWN):
        raise UsageError(f"there is no {options.known}")
    catalog = lab_of(options).catalog
    catalogue = [(name, arch) for name in catalog.names for arch in catalog.get(name).arches]
    dashboard.write(options.output, _runs(options), known, catalogue)
    print(options.output)
    return 0


def _issues(options: argparse.Namespace) -> int:
    from harness.gate import tracker
    from harness.gate.github import GitHub
    from harness.known.history import runs as read_runs

    if options.storm < 1:
        raise UsageError(f"--storm {options.storm}: at least 1")
    runs = read_runs(options.runs)
    groups, known = tracker.failures(runs)
    night = max((history.night(str(run["began"])) for run in runs), default="")
    token = tracker_token()
    dry = options.dry_run or not token
    if not token:
        say(f"{TRACKER_TOKEN} is not set: no issue is looked at, and none is filed")
    with contextlib.ExitStack() as stack:
        github = (
            stack.enter_context(GitHub(options.repository, token, api=options.api))
            if token
            else None
        )
        actions = tracker.track(
            groups, github, night=night, url=options.url, storm=options.storm, dry=dry
        )
    if options.json:
        print_json({"dry": dry, "known": known, "issues": [asdict(each) for each in actions]})
        return 0
    for each in actions:
        number = f" #{each.number}" if each.number else ""
        would = "would " if dry and each.action in ("create", "storm", "comment") else ""
        print(f"{would}{each.action}{number}  {each.signature}  {each.title}")
    print(
        f"{len(runs)} runs: {len(groups)} failure signatures, {known} known failures"
        + (" (dry run)" if dry else "")
    )
    return 0
