"""The judge: each planned test is proven or the gate is red, whatever the folder of results holds."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.evidence.results import FILE
from harness.gate import judge, summary
from harness.gate.collect import Collected, collect
from harness.gate.judge import Judgement
from harness.gate.plan import Plan
from tests.gate_plans import COMMIT, a_job, a_plan

ONE, TWO = "suites/boot/test_live.py::test_one", "suites/boot/test_live.py::test_two"


def passed(test: str = ONE) -> dict[str, Any]:
    return {"id": test, "outcome": "passed", "verdict": "passed", "reason": "", "evidence": ""}


def failed(verdict: str, test: str = ONE, **facts: Any) -> dict[str, Any]:
    reason = f"because of {verdict}"
    return passed(test) | {"outcome": "failed", "verdict": verdict, "reason": reason} | facts


def skipped(test: str = ONE) -> dict[str, Any]:
    return passed(test) | {"outcome": "skipped", "verdict": "", "reason": "the image lacks it"}


def interrupted(test: str = ONE, verdict: str = "infra") -> dict[str, Any]:
    return passed(test) | {"outcome": "interrupted", "verdict": verdict, "reason": "SIGTERM"}


STATUS = {"passed": 0, "product": 1, "test": 10, "timeout": 12, "infra": 11}


def left(
    of: Plan, *tests: dict[str, Any], job: str = "skiff-x86_64-1", attempt: int = 1, **facts: Any
) -> dict[str, Any]:
    """Return what a job left: its results.json."""
    worst = [test["verdict"] for test in tests if test["verdict"] in STATUS]
    status = next((STATUS[each] for each in list(STATUS)[1:] if each in worst), 0)
    return {
        "format": 2,
        "began": "2026-11-29T01:02:03Z",
        "seconds": 61.5,
        "status": status,
        "plan": {"id": of.id, "job": job, "attempt": attempt, "commit": COMMIT},
        "verdicts": {},
        "tests": list(tests),
    } | facts


def put(folder: Path, name: str, content: object) -> Path:
    path = folder / name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def judged(folder: Path, plan: Plan, *contents: object) -> Judgement:
    for number, content in enumerate(contents):
        put(folder, f"artifact-{number}/.harness/runs/run", content)
    return judge.judge(plan, collect(folder, plan))


PLAN = a_plan(a_job("skiff-x86_64-1", ONE, TWO))


# --- one attempt ------------------------------------------------------------------------------


def test_a_job_whose_tests_all_passed_is_green(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), skipped(TWO)))
    assert (judgement.verdict, judgement.status) == ("passed", 0)
    assert judgement.jobs[0].counts == {"skipped": 1, "passed": 1}
    assert not judgement.notes


@pytest.mark.parametrize("verdict", ["product", "test", "timeout", "infra"])
def test_a_failure_is_the_verdict_and_the_status(tmp_path: Path, verdict: str) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), failed(verdict, TWO)))
    assert (judgement.verdict, judgement.status) == (verdict, STATUS[verdict])
    assert f"because of {verdict}" in judgement.jobs[0].reason


def test_the_weightiest_verdict_counts(tmp_path: Path) -> None:
    plan = a_plan(*(a_job(f"skiff-x86_64-{number}", ONE) for number in (1, 2, 3, 4)))
    verdicts = ["timeout", "infra", "passed", "test"]
    contents = [
        left(plan, failed(verdict) if verdict != "passed" else passed(), job=job.id)
        for verdict, job in zip(verdicts, plan.jobs, strict=True)
    ]
    judgement = judged(tmp_path, plan, *contents)
    assert (judgement.verdict, judgement.status) == ("test", 10)
    assert [each.verdict for each in judgement.jobs] == ["test", "timeout", "infra", "passed"]
    assert judgement.counts == {"test": 1, "timeout": 1, "infra": 1, "passed": 1}


@pytest.mark.parametrize("verdict", ["flaky", "known"])
def test_flaky_and_known_failures_are_green_and_counted(tmp_path: Path, verdict: str) -> None:
    outcome = {"flaky": "passed", "known": "xfailed"}[verdict]
    test = failed(verdict, TWO, outcome=outcome, known={"tracker": "https://tracker/1"})
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), test))
    assert (judgement.verdict, judgement.status) == ("passed", 0)
    assert judgement.counts == {verdict: 1}
    assert judgement.tests == {verdict: 1, "passed": 1}
    assert judgement.jobs[0].tests[0].tracker == "https://tracker/1"


def test_a_job_without_results_is_infra(tmp_path: Path) -> None:
    """Skipped, cancelled, evicted, killed for its memory, lost with its runner: all leave nothing."""
    plan = a_plan(a_job("skiff-x86_64-1", ONE), a_job("skiff-x86_64-2", TWO))
    judgement = judged(tmp_path, plan, left(plan, passed(ONE)))
    assert (judgement.verdict, judgement.status) == ("infra", 11)
    assert judgement.jobs[0].job.id == "skiff-x86_64-2"
    assert "left no results" in judgement.jobs[0].reason


def test_a_folder_that_nobody_made_holds_nothing(tmp_path: Path) -> None:
    judgement = judge.judge(PLAN, collect(tmp_path / "none", PLAN))
    assert (judgement.verdict, judgement.status) == ("infra", 11)
    assert "there is no such folder" in judgement.notes[0]


def test_a_planned_test_that_the_results_do_not_have_is_infra(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE)))
    assert (judgement.verdict, judgement.status) == ("infra", 11)
    assert [each.id for each in judgement.jobs[0].tests] == [TWO]
    assert "1 of 2 tests not proven" in judgement.jobs[0].reason


def test_a_job_that_was_killed_is_infra_though_all_its_tests_had_passed(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), status=None))
    assert judgement.verdict == "infra"
    assert "ended before it wrote its last results" in judgement.jobs[0].reason


def test_a_job_that_was_killed_after_a_failure_by_the_image_is_product(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, failed("product"), status=None))
    assert (judgement.verdict, judgement.status) == ("product", 1)


@pytest.mark.parametrize("verdict", ["", "infra"], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_job_is_infra(tmp_path: Path, verdict: str) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), interrupted(TWO, verdict), status=2))
    assert judgement.verdict == "infra"
    assert "SIGTERM" in judgement.jobs[0].reason


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(2, "infra"), (3, "infra"), (4, "test"), (5, "infra"), (1, "product"), (99, "infra")],
)
def test_a_status_that_no_test_explains_counts(tmp_path: Path, status: int, verdict: str) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), status=status))
    assert judgement.verdict == verdict


def test_a_file_that_cannot_be_collected_is_a_fault_of_the_test(tmp_path: Path) -> None:
    errors = [{"id": "suites/boot/test_live.py", "reason": "SyntaxError: invalid syntax"}]
    judgement = judged(tmp_path, PLAN, left(PLAN, status=2, errors=errors))
    assert (judgement.verdict, judgement.status) == ("test", 10)
    assert "SyntaxError" in judgement.jobs[0].reason


def test_a_failed_test_that_was_not_planned_counts(tmp_path: Path) -> None:
    further = failed("product", "suites/boot/test_live.py::test_three")
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), further))
    assert judgement.verdict == "product"


def test_a_passed_test_that_was_not_planned_proves_nothing(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed("test_three")))
    assert judgement.verdict == "infra"


def test_a_test_that_was_not_planned_takes_no_proof_away(tmp_path: Path) -> None:
    further = failed("infra", "suites/boot/test_live.py::test_three")
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), further))
    assert (judgement.verdict, judgement.tests) == ("passed", {"passed": 2})


def test_a_job_that_skipped_everything_says_so(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, skipped(ONE), skipped(TWO)))
    assert judgement.verdict == "passed"
    assert "all its tests were skipped: the image lacks it" in judgement.notes[0]


# --- what cannot be used ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"format": 2, "tests": []}',
        b"[" * 100_000,
        json.dumps(left(PLAN, passed(), format=1)).encode(),
        json.dumps(left(PLAN, passed(), status="0")).encode(),
        json.dumps(left(PLAN, passed() | {"verdict": "fine"})).encode(),
        json.dumps(left(PLAN, passed() | {"outcome": "fine"})).encode(),
        json.dumps(left(PLAN, passed(), attempt=0)).encode(),
        json.dumps(left(PLAN, passed(), seconds=float("nan"))).encode(),
        json.dumps(left(PLAN, passed(), seconds=-1)).encode(),
        json.dumps(left(PLAN, passed(ONE), passed(TWO)))[:-30].encode(),
    ],
)
def test_a_file_that_cannot_be_read_is_infra(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "results-skiff-x86_64-1-attempt-1", content)
    judgement = judge.judge(PLAN, collect(tmp_path, PLAN))
    assert (judgement.verdict, judgement.status) == ("infra", 11)
    assert "cannot be read" in judgement.jobs[0].reason
    assert "results-skiff-x86_64-1-attempt-1/results.json" in judgement.notes[0]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with put(tmp_path, "skiff-x86_64-1", b"").open("wb") as stream:
        stream.truncate(1 << 40)
    assert "MiB" in judge.judge(PLAN, collect(tmp_path, PLAN)).jobs[0].reason


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = put(tmp_path / "other", "x", left(PLAN, passed(ONE), passed(TWO)))
    folder = tmp_path / "results"
    (folder / "y").mkdir(parents=True)
    (folder / "y" / FILE).symlink_to(path)
    (folder / "z").symlink_to(path.parent)
    assert collect(folder, PLAN) == Collected()


def test_a_damaged_file_is_of_the_job_with_the_longest_name_in_its_path(tmp_path: Path) -> None:
    plan = a_plan(*(a_job(name, ONE) for name in ("skiff", "skiff-1", "skiff-1-2", "skiff-10")))
    put(tmp_path, "results-skiff-1-2-attempt-1/runs", b"{")
    put(tmp_path, "skiff-10", b"{")
    put(tmp_path, "unnamed", b"{")
    assert [each.job for each in collect(tmp_path, plan).damaged] == ["skiff-1-2", "skiff-10", ""]


OTHERS = {
    "of the plan": {"id": "f" * 16, "job": "skiff-x86_64-1", "attempt": 1, "commit": COMMIT},
    "the plan has no job": {"id": PLAN.id, "job": "kite-1", "attempt": 1, "commit": COMMIT},
    "ran at commit": {"id": PLAN.id, "job": "skiff-x86_64-1", "attempt": 1, "commit": "b" * 40},
}


@pytest.mark.parametrize("why", list(OTHERS))
def test_results_of_something_else_count_for_nothing_and_are_named(
    tmp_path: Path, why: str
) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), plan=OTHERS[why]))
    assert judgement.verdict == "infra"
    assert why in judgement.notes[0]
    proven = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO)))
    assert proven.verdict == "passed"
    # A failure elsewhere is no failure of this plan.
    other = left(PLAN, failed("product"), plan=OTHERS[why])
    put(tmp_path, "further", other)
    assert judge.judge(PLAN, collect(tmp_path, PLAN)).verdict == "passed"


def test_results_of_no_plan_are_left_out(tmp_path: Path) -> None:
    content = left(PLAN, passed(ONE), passed(TWO))
    del content["plan"]
    judgement = judged(tmp_path, PLAN, content)
    assert judgement.verdict == "infra"
    assert "of no plan" in judgement.notes[0]


def test_a_job_that_did_not_know_its_commit_counts(tmp_path: Path) -> None:
    of = {"id": PLAN.id, "job": "skiff-x86_64-1", "attempt": 1, "commit": ""}
    assert judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), plan=of)).status == 0


# --- several attempts -------------------------------------------------------------------------


def test_a_pass_at_the_second_attempt_is_green_and_counted(tmp_path: Path) -> None:
    first = left(PLAN, passed(ONE), status=None)
    judgement = judged(tmp_path, PLAN, first, left(PLAN, passed(ONE), passed(TWO), attempt=2))
    assert (judgement.verdict, judgement.status) == ("passed", 0)
    assert judgement.counts == {"flaky-infra": 1}
    assert judgement.jobs[0].attempts == (1, 2)
    assert judgement.jobs[0].reason.startswith("attempt 1: the job was ended")


def test_a_second_attempt_alone_is_flaky_infra(tmp_path: Path) -> None:
    judgement = judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO), attempt=2))
    assert judgement.counts == {"flaky-infra": 1}


@pytest.mark.parametrize("verdict", ["product", "test", "timeout"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_no_attempt_turns_a_failure_green(tmp_path: Path, verdict: str, attempt: int) -> None:
    red = left(PLAN, failed(verdict, ONE), passed(TWO), attempt=attempt)
    green = left(PLAN, passed(ONE), passed(TWO), attempt=3 - attempt)
    judgement = judged(tmp_path, PLAN, red, green)
    assert (judgement.verdict, judgement.status) == (verdict, STATUS[verdict])


def test_two_attempts_may_prove_a_job_together(tmp_path: Path) -> None:
    first = left(PLAN, passed(ONE), failed("infra", TWO))
    second = left(PLAN, failed("infra", ONE), passed(TWO), attempt=2)
    assert judged(tmp_path, PLAN, first, second).counts == {"flaky-infra": 1}


def test_two_attempts_that_were_both_killed_prove_nothing(tmp_path: Path) -> None:
    first = left(PLAN, passed(ONE), failed("infra", TWO), status=None)
    second = left(PLAN, passed(ONE), passed(TWO), attempt=2, status=2)
    assert judged(tmp_path, PLAN, first, second).verdict == "infra"


def test_only_infra_jobs_run_once_more(tmp_path: Path) -> None:
    names = ["lost", "killed", "red", "green", "twice"]
    plan = a_plan(*(a_job(name, ONE) for name in names))
    contents = [
        left(plan, job="killed", status=None),
        left(plan, failed("product"), failed("infra", TWO), job="red"),
        left(plan, passed(), job="green"),
        left(plan, failed("infra"), job="twice"),
        left(plan, failed("infra"), job="twice", attempt=2),
    ]
    again = judge.rerun(plan, judged(tmp_path, plan, *contents))
    assert [job.id for job in again.jobs] == ["lost", "killed"]
    assert (again.id, again.attempt, again.empty) == (plan.id, 2, "")


def test_a_plan_of_the_second_attempt_may_be_empty_and_says_why(tmp_path: Path) -> None:
    again = judge.rerun(PLAN, judged(tmp_path, PLAN, left(PLAN, passed(ONE), passed(TWO))))
    assert not again.jobs
    assert again.empty


def test_the_same_results_twice_count_once(tmp_path: Path) -> None:
    content = left(PLAN, passed(ONE), passed(TWO))
    once = judged(tmp_path / "a", PLAN, content)
    twice = judged(tmp_path / "b", PLAN, content, content)
    assert twice == once
    assert not twice.notes


@pytest.mark.parametrize(
    ("other", "verdict"), [("product", "product"), ("timeout", "timeout"), ("infra", "flaky-infra")]
)
def test_results_of_an_attempt_that_differ_count_as_attempts_do_and_a_note_says_so(
    tmp_path: Path, other: str, verdict: str
) -> None:
    good = left(PLAN, passed(ONE), passed(TWO))
    bad = left(PLAN, passed(ONE), failed(other, TWO))
    judgement = judged(tmp_path, PLAN, good, bad)
    assert judgement.jobs[0].verdict == verdict
    assert "attempt 1 left 2 results that differ" in judgement.notes[0]


# --- no job -----------------------------------------------------------------------------------


def test_an_empty_plan_with_a_reason_is_green_and_says_it(tmp_path: Path) -> None:
    judgement = judged(tmp_path, a_plan(empty="only documentation changed"))
    assert (judgement.verdict, judgement.status) == ("passed", 0)
    assert judgement.reason == "nothing to do: only documentation changed"
    assert "only documentation changed" in summary.table(judgement)[-1]


def test_an_empty_plan_without_a_reason_is_red(tmp_path: Path) -> None:
    judgement = judged(tmp_path, a_plan(empty=""))
    assert (judgement.verdict, judgement.status) == ("infra", 11)


def test_a_job_without_tests_is_not_proven(tmp_path: Path) -> None:
    plan = a_plan(a_job("skiff-x86_64-1"))
    assert judged(tmp_path, plan, left(plan)).verdict == "infra"


# --- properties -------------------------------------------------------------------------------

JOBS = ("a-1", "a-2", "b-1")


def any_results(plan: Plan, rng: random.Random) -> object:
    """Return results of some job and attempt, or something else."""
    if rng.random() < 0.1:
        return b"{" * rng.randint(0, 3)
    tests = [
        rng.choice(
            [
                passed(test),
                skipped(test),
                interrupted(test, rng.choice(["", "infra"])),
                failed(rng.choice(["product", "test", "timeout", "infra"]), test),
                failed("flaky", test, outcome="passed"),
                failed("known", test, outcome="xfailed"),
            ]
        )
        for test in (ONE, TWO, "test_three")
        if rng.random() < 0.8
    ]
    facts: dict[str, Any] = {}
    if rng.random() < 0.3:
        facts["status"] = rng.choice([None, 0, 1, 2, 3, 4, 5, 11])
    if rng.random() < 0.1:
        facts["plan"] = rng.choice(list(OTHERS.values()))
    return left(plan, *tests, job=rng.choice(JOBS), attempt=rng.choice([1, 1, 2]), **facts)


@pytest.mark.parametrize("seed", range(60))
def test_neither_order_nor_repetition_matters(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    plan = a_plan(*(a_job(name, ONE, TWO) for name in JOBS))
    contents = [any_results(plan, rng) for _ in range(rng.randint(0, 6))]
    once = judged(tmp_path / "once", plan, *contents)
    shuffled = [*contents, *rng.choices(contents, k=2)] if contents else []
    rng.shuffle(shuffled)
    other = judged(tmp_path / "shuffled", plan, *shuffled)
    assert _without_places(other) == _without_places(once)
    assert judge.judge(plan, collect(tmp_path / "once", plan)) == once
    json.dumps(once.dump())


@pytest.mark.parametrize("seed", range(60))
def test_a_gate_is_green_only_if_each_planned_test_is_proven(tmp_path: Path, seed: int) -> None:
    """The rule itself, written in another way: what is green has a proof, what failed is red."""
    rng = random.Random(1000 + seed)
    plan = a_plan(*(a_job(name, ONE, TWO) for name in JOBS))
    contents = [any_results(plan, rng) for _ in range(rng.randint(3, 12))]
    judgement = judged(tmp_path, plan, *contents)
    mine = [
        each for each in contents if isinstance(each, dict) and each["plan"] not in OTHERS.values()
    ]
    said = {
        (each["plan"]["job"], test["id"], test["verdict"] or test["outcome"])
        for each in mine
        for test in each["tests"]
    }
    if judgement.status == 0:
        for job, test in itertools.product(JOBS, (ONE, TWO)):
            assert any(
                (job, test, label) in said for label in ("passed", "skipped", "flaky", "known")
            )
        assert not any(label in ("product", "test", "timeout") for _, _, label in said)
    if any(label == "product" for _, _, label in said):
        assert judgement.verdict == "product"


def _without_places(judgement: Judgement) -> object:
    """Return a judgement without the paths, which depend on the folders' names."""
    content = judgement.dump()
    for job in content["jobs"]:
        del job["results"]
        if ": it is" in job["reason"]:
            job["reason"] = "damaged"
        for test in job["tests"]:
            del test["evidence"]
    content["notes"] = sorted({note.partition(": ")[2] for note in content["notes"]})
    return content


@pytest.mark.parametrize("seed", range(40))
def test_any_content_is_judged(tmp_path: Path, seed: int) -> None:
    """A forged file is damaged, or counts; it never ends the judge."""
    rng = random.Random(seed)
    content = left(PLAN, passed(ONE), failed("product", TWO, known={"tracker": "x"}))
    for number in range(10):
        put(tmp_path, f"{number}", _forged(content, rng))
    judgement = judge.judge(PLAN, collect(tmp_path, PLAN))
    assert judgement.verdict in judge.WORST
    summary.table(judgement)
    summary.markdown(judgement)
    summary.commands(judgement)
    json.dumps(judgement.dump())


def _forged(value: Any, rng: random.Random) -> Any:
    """Return plain JSON with one value replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        rest = {key: each for key, each in value.items() if key != name}
        return rest if rng.random() < 0.1 else rest | {name: _forged(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], _forged(value[place], rng), *value[place + 1 :]]
    texts = ("", "\ud800", "\x1b[2J", "../../etc", "x" * 9999)
    odd: tuple[Any, ...] = (None, True, -1, 10**400, 1e308, [], {}, *texts)
    return rng.choice(odd)
