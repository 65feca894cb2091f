"""A judgement for people: the worst first, bounded, and nothing of a guest is markup or a command."""

from __future__ import annotations

import dataclasses
import re

import pytest

from harness.gate import summary
from harness.gate.judge import JobOutcome, Judgement, TestOutcome
from tests.gate_plans import a_job, a_plan

HOSTILE = (
    "::error::no\n::set-output name=x::y\r\n##[error]no <script>alert(1)</script> | a | `b` **c**"
    " [d](http://e) www.f.g @h #1 \x1b[31m \u202e &lt; ~i~ _j_ https://k"
)


def a_test(name: str = "suites/boot/test_live.py::test_it", **facts: object) -> TestOutcome:
    known = {"verdict": "product", "reason": "unit foo.service failed", "attempt": 1}
    return TestOutcome(name, **(known | facts))  # type: ignore[arg-type]


def an_outcome(name: str, verdict: str, *tests: TestOutcome, reason: str = "why") -> JobOutcome:
    counts = {verdict: len(tests)} if tests else {"passed": 3}
    return JobOutcome(a_job(name, "test"), verdict, reason, counts, (1,), 90.0, tests, ())


def a_judgement(*jobs: JobOutcome, **facts: object) -> Judgement:
    plan = a_plan(*(each.job for each in jobs), empty="" if jobs else "nothing")
    known = {"verdict": jobs[0].verdict if jobs else "passed", "status": 1, "reason": "1 job"}
    return Judgement(plan, jobs=jobs, **(known | facts))  # type: ignore[arg-type]


RED = a_judgement(
    an_outcome("kite-1", "product", a_test(evidence="kite-1/run/test_it"), reason="test_it: foo"),
    an_outcome("kite-2", "infra", reason="it left no results"),
    an_outcome("kite-3", "flaky-infra", reason="attempt 1: SIGTERM"),
    an_outcome("kite-4", "passed", reason=""),
    notes=("a file was left out",),
)


def test_the_table_has_the_jobs_the_failures_the_notes_and_the_verdict() -> None:
    assert summary.table(RED) == [
        "job     verdict      tests      time   attempts  why",
        "kite-1  product      1 product  2 min  1         test_it: foo",
        "kite-2  infra        3 passed   2 min  1         it left no results",
        "kite-3  flaky-infra  3 passed   2 min  1         attempt 1: SIGTERM",
        "kite-4  passed       3 passed   2 min  1",
        "",
        "kite-1:",
        "  product  suites/boot/test_live.py::test_it",
        "           unit foo.service failed",
        "           evidence: kite-1/run/test_it",
        "           repeat: harness acceptance 'suites/boot/test_live.py::test_it' --image kite-1"
        " --arch x86_64",
        "",
        "note: a file was left out",
        "",
        "gate: product: 1 job",
    ]


def test_the_summary_has_the_worst_first() -> None:
    text = summary.markdown(RED)
    assert text.startswith("## \N{CROSS MARK} Gate: product\n")
    rows = [line for line in text.splitlines() if line.startswith("| kite-")]
    assert [row.split(" | ")[1] for row in rows] == ["product", "infra", "flaky-infra", "passed"]
    assert "**product** `suites/boot/test_live.py::test_it` on `kite-1`" in text
    assert "a file was left out" in text
    assert "Left out" not in text


@pytest.mark.parametrize("size", [6_000, 50_000, summary.MOST_BYTES])
def test_the_summary_is_cut_and_says_how_much_is_left_out(size: int) -> None:
    tests = tuple(a_test(f"test_{number:05}", reason="\N{SNOWMAN}|" * 190) for number in range(900))
    jobs = [an_outcome(f"job-{number}", "product", *tests) for number in range(4)]
    text = summary.markdown(a_judgement(*jobs), most=size)
    assert size * 0.5 < len(text.encode()) < size
    shown = len(re.findall(r"^- \*\*product", text, re.MULTILINE))
    assert f"Left out for its size: {3600 - shown} tests." in text
    # The worst are first, so those that are shown are the first ones.
    last = shown - 1
    assert f"`test_{last % 900:05}` on `job-{last // 900}`" in text


def test_many_jobs_are_cut_as_well() -> None:
    jobs = [an_outcome(f"job-{number}", "infra", reason="x|" * 190) for number in range(256)]
    text = summary.markdown(a_judgement(*jobs), most=20_000)
    assert len(text.encode()) < 20_000
    shown = len(re.findall(r"^\| job-", text, re.MULTILINE))
    assert 0 < shown < 256
    assert f"Left out for its size: {256 - shown} jobs." in text


def hostile() -> Judgement:
    test = a_test(f"test_it[{HOSTILE}]", reason=HOSTILE, evidence=HOSTILE, tracker=HOSTILE)
    job = an_outcome("kite-1", "product", test, reason=HOSTILE)
    return a_judgement(job, reason=HOSTILE, notes=(HOSTILE,))


def test_nothing_of_a_guest_is_a_command_in_a_log() -> None:
    lines = summary.table(hostile())
    assert all(len(line.splitlines()) <= 1 and "\x1b" not in line for line in lines)
    assert not any(line.lstrip().startswith("::") or "##[" in line for line in lines)
    commands = summary.commands(hostile())
    assert len(commands) == 1
    (command,) = commands
    assert command.startswith("::error file=test_it[,title=product%3A kite-1::")
    assert len(command.splitlines()) == 1
    assert "##[" not in command


def test_nothing_of_a_guest_is_markup_in_a_summary() -> None:
    text = summary.markdown(hostile())
    for markup in (
        "<script",
        "`b`",
        "**c**",
        "](http",
        "www.",
        "@h",
        " #1",
        "&lt;",
        "https:",
        "~i~",
    ):
        assert markup not in text, markup
    rows = [line for line in text.splitlines() if line.startswith("| kite-1")]
    assert [row.count("|") for row in rows] == [7]


def test_there_are_ten_annotations_of_a_kind_and_the_worst_first() -> None:
    red = [an_outcome("a", "product", *(a_test(f"f.py::t{n}") for n in range(7)))]
    red += [an_outcome(f"b{n}", "infra", a_test("f.py::t", verdict="infra")) for n in range(8)]
    green = [an_outcome(f"c{n}", "flaky-infra") for n in range(3)]
    commands = summary.commands(a_judgement(*red, *green))
    errors = [each for each in commands if each.startswith("::error ")]
    assert len(errors) == summary.MOST_ANNOTATIONS
    assert errors[0] == (
        "::error file=f.py,title=product%3A a::f.py::t0: product: unit foo.service failed"
    )
    assert errors[8].startswith("::error title=infra%3A b1::b1: why")
    assert errors[9] == "::error title=gate::6 more: see the summary"
    assert len([each for each in commands if each.startswith("::warning ")]) == 3


def test_a_gate_without_jobs_that_is_red_is_annotated() -> None:
    judgement = a_judgement(verdict="infra", reason="there is no plan")
    assert summary.commands(judgement) == ["::error title=gate::there is no plan"]
    assert summary.commands(dataclasses.replace(judgement, verdict="passed")) == []
