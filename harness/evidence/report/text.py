"""The report as text, for terminals and for programs that read text: the worst first.

::

    20261129-101500-4711  skiff 1 (core)  61 s  1 product, 3 passed

    product  suites/boot/test_live.py::test_no_unit_has_failed (x86_64)
      step      wait until ready (skiff), 41.20 s after the start of the test
      reason    unit foo.service failed on skiff
      evidence  boot-test_live-test_no_unit_has_failed-5d3c6f0a
      repeat    harness acceptance ...

All of a guest's words are printed as one line without control characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from harness.evidence.report.record import Record, Run, Test, label

WORST: Final = (
    "product",
    "test",
    "timeout",
    "infra",
    "interrupted",
    "flaky",
    "known",
    "skipped",
    "passed",
)
"""What tests come to, the worst first: the order of exit statuses, then what needs no look."""

_QUIET: Final = ("skipped", "passed")
_LONGEST: Final = 400


def text(record: Record) -> str:
    """Return the report of a record; of one without a failure, a line for each run."""
    return "\n".join("\n".join(_run(run)) + "\n" for run in record["runs"])


def counts(run: Run) -> dict[str, int]:
    """Return how many tests came to what, the worst first."""
    counted = Counter(label(test) for test in run["tests"])
    return {name: counted[name] for name in sorted(counted, key=rank)}


def rank(name: str) -> int:
    """Return the place of a verdict or an outcome; one that is unknown is the worst."""
    return WORST.index(name) if name in WORST else -1


def image(run: Run) -> str:
    """Return the image of a run in words; empty if it has none."""
    known = run.get("image") or {}
    if not known:
        return ""
    return f"{known.get('name')} {known.get('version')} ({known.get('variant')})"


def known(test: Test) -> str:
    """Return the entry of ``known.yaml`` that a failure matches, in words; empty if there is none."""
    entry = test.get("known") or {}
    expiry = f"{'expired' if entry.get('expired') else 'expires'} {entry.get('expires')}"
    return f"{entry.get('tracker')}, {entry.get('owner')}, {expiry}" if entry else ""


def line(words: object) -> str:
    """Return a guest's words as one line without control characters, and of bounded length."""
    shown = "".join(char if char.isprintable() else " " for char in str(words)[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _run(run: Run) -> Iterator[str]:
    tally = ", ".join(f"{count} {name}" for name, count in counts(run).items()) or "no tests"
    facts = (run["name"], image(run), f"{float(run.get('seconds', 0)):.0f} s", tally)
    yield line("  ".join(str(fact) for fact in facts if fact))
    for test in sorted(run["tests"], key=lambda test: rank(label(test))):
        if label(test) not in _QUIET:
            yield ""
            yield from _test(test)


def _test(test: Test) -> Iterator[str]:
    arch = f" ({test['arch']})" if test.get("arch") else ""
    yield line(f"{label(test):8} {test['id']}{arch}")
    facts: dict[str, Any] = {}
    if test.get("step"):
        facts["step"] = f"{test['step']}, {test['moment']:.2f} s after the start of the test"
    facts["reason"] = test.get("reason")
    facts["known"] = known(test)
    facts["evidence"] = test.get("evidence")
    for name, value in facts.items():
        if value:
            yield f"  {name:8}  {line(value)}"
    others = [each for each in test.get("first", []) if each["step"] != test.get("step")]
    for each in others:
        step = f"{line(each['step'])}, {each['end']:.2f} s after the start"
        yield f"  {line(each['machine'] or 'host'):8}  {step}"
    if change := test.get("change"):
        good, bad = change["good"]["name"], change["bad"]["name"]
        yield f"  {'passed':8}  last in {line(good)}; failed first in {line(bad)}"
        for name, old, new in change["facts"]:
            yield f"  {'':8}  {line(name)}: {line(old)} -> {line(new)}"
    for command in test.get("repeat", []):
        yield f"  {'repeat':8}  {line(command)}"
