"""The judge: turns a plan and what its jobs left behind into one verdict.

A gate is green if each test of each planned job is proven: its results are there, they are whole, and
the test passed, was skipped, or failed in a known way. What is not proven is ``infra``: a job that
left no results (it was skipped, cancelled, evicted, killed for its memory, or its runner was lost),
results that are cut off, a run that was interrupted, a planned test that the results do not have.

A job may have several results, because jobs that are ``infra`` run once more. Of a test in several of
them:

- a failure by ``product``, ``test`` or ``timeout`` in any of them counts: no attempt turns it green;
- otherwise it is proven if it is proven in one of them. The job is then ``flaky-infra``: green, and
  counted.

The same holds for results of the same attempt that differ, which a note names. The same content counts
once. Nothing depends on the order or on the names of the files, and judging again what has been judged
changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import Verdict
from harness.evidence.report.text import line, rank
from harness.evidence.results import STATUS
from harness.gate.collect import Collected, Damaged, JobResults, TestLine
from harness.gate.plan import Job, Plan

FORMAT: Final = 1

FLAKY_INFRA: Final = "flaky-infra"
"""The verdict of a job that was ``infra`` in one attempt and passed in another one."""

WORST: Final = (
    *("product", "test", "timeout", "infra"),
    *(FLAKY_INFRA, "flaky", "known", "passed"),
)
"""The verdicts of jobs, the worst first: the order of exit statuses, then what is green."""

GREEN: Final = WORST[4:]

ATTEMPTS: Final = 2
"""How often a job runs at most; the second time only if it was ``infra``."""

_RED: Final = ("product", "test", "timeout")
_PROVEN: Final = ("passed", "skipped", "known", "flaky")

_STATUSES: Final[dict[int | None, tuple[str, str]]] = {
    None: ("infra", "the job was ended before it wrote its last results"),
    2: ("infra", "the run was interrupted"),
    3: ("infra", "pytest failed internally: see the log of the job"),
    4: ("test", "pytest refused its arguments, or a mark of a test: see the log of the job"),
    5: ("infra", "no test was selected"),
    **{
        status: (verdict.value, f"the run ended with status {status}, and no test says why")
        for verdict, status in STATUS.items()
    },
}
"""What an exit status means by itself: a verdict and the reason. 0 is not in it."""


@dataclass(frozen=True, slots=True)
class TestOutcome:
    """What a test of a job came to, over all attempts.

    Attributes:
        id: Its node id; empty for what is about the whole job.
        verdict: Its verdict; ``skipped`` for a test that was skipped.
        reason: The first line of the failure, or why it is not proven.
        attempt: The attempt that the verdict is from; 0 if there is none.
        evidence: Its folder, relative to the folder of results; empty if nothing was kept.
        signature: What its failure has in common with others of its cause.
        tracker: Where the known failure is tracked that it matches.
    """

    __test__ = False

    id: str
    verdict: str
    reason: str = ""
    attempt: int = 0
    evidence: str = ""
    signature: str = ""
    tracker: str = ""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What a job came to.

    Attributes:
        job: The job.
        verdict: One of :data:`WORST`.
        reason: Why it is red, or no plain pass; empty if there is nothing to say.
        counts: How many of its tests came to what; the worst first.
        attempts: The attempts that have results.
        seconds: How long they took, together.
        tests: What is not plainly passed or skipped, the worst first.
        results: The files, relative to the folder of results.
    """

    job: Job
    verdict: str
    reason: str
    counts: dict[str, int]
    attempts: tuple[int, ...]
    seconds: float
    tests: tuple[TestOutcome, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a gate.

    Attributes:
        plan: The plan; ``None`` if it cannot be read.
        verdict: ``passed``, or the weightiest verdict of its jobs.
        status: The exit status: that of ``harness acceptance`` for the verdict.
        reason: One line that says why.
        jobs: The outcome of each planned job, the worst first.
        notes: What else a person should know, a line each.
    """

    plan: Plan | None
    verdict: str
    status: int
    reason: str
    jobs: tuple[JobOutcome, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs came to what, the worst first."""
        return _counted(WORST, (each.verdict for each in self.jobs))

    @property
    def tests(self) -> dict[str, int]:
        """How many tests came to what, the worst first."""
        total: Counter[str] = Counter()
        for job in self.jobs:
            total.update(job.counts)
        return {name: total[name] for name in sorted(total, key=rank)}

    def dump(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "format": FORMAT,
            "plan": self.plan.id if self.plan is not None else "",
            "commit": self.plan.commit if self.plan is not None else "",
            "verdict": self.verdict,
            "status": self.status,
            "reason": self.reason,
            "counts": self.counts,
            "tests": self.tests,
            "jobs": [_dump(each) for each in self.jobs],
            "notes": list(self.notes),
        }


def judge(plan: Plan, collected: Collected) -> Judgement:
    """Return the judgement over a plan and what its jobs left."""
    if not plan.jobs:
        return _empty(plan, collected.notes)
    notes = list(collected.notes)
    by_job: dict[str, list[JobResults]] = {}
    for results in collected.results:
        by_job.setdefault(results.job, []).append(results)
    damaged: dict[str, list[Damaged]] = {}
    for each in collected.damaged:
        damaged.setdefault(each.job, []).append(each)
        notes.append(f"{each.path}: cannot be read, {each.why}")
    jobs = []
    for job in plan.jobs:
        left = by_job.get(job.id, [])
        outcome = _job(job, left, damaged.get(job.id, []))
        jobs.append(outcome)
        notes += _notes(job, left, outcome)
    places = {job.id: number for number, job in enumerate(plan.jobs)}
    jobs.sort(key=lambda each: (WORST.index(each.verdict), places[each.job.id]))
    verdict = jobs[0].verdict if jobs[0].verdict not in GREEN else "passed"
    return Judgement(
        plan, verdict, status_of(verdict), _reason(jobs, verdict), tuple(jobs), tuple(sorted(notes))
    )


def unreadable(why: str) -> Judgement:
    """Return the judgement over a gate whose plan cannot be read: its planner has failed."""
    return Judgement(None, "infra", status_of("infra"), f"there is no plan to judge: {why}")


def rerun(plan: Plan, judgement: Judgement) -> Plan:
    """Return the plan of the second attempt: the jobs that are ``infra`` and ran once at most."""
    again = {
        each.job.id
        for each in judgement.jobs
        if each.verdict == "infra" and max(each.attempts, default=0) < ATTEMPTS
    }
    jobs = tuple(job for job in plan.jobs if job.id in again)
    empty = "" if jobs else "no job has to run once more"
    return dataclasses.replace(plan, jobs=jobs, empty=empty, attempt=ATTEMPTS)


def status_of(verdict: str) -> int:
    """Return the exit status of a verdict of a gate."""
    return STATUS.get(Verdict(verdict), 0)


# --- one job ----------------------------------------------------------------------------------


def _job(job: Job, results: Sequence[JobResults], damaged: Sequence[Damaged]) -> JobOutcome:
    said: dict[str, list[tuple[int, TestLine]]] = {test: [] for test in job.tests}
    further: dict[str, list[tuple[int, TestLine]]] = {}
    for each in results:
        for test in each.tests:
            lines = said[test.id] if test.id in said else further.setdefault(test.id, [])
            lines.append((each.attempt, test))
    outcomes = [_test(test, lines, bool(results)) for test, lines in said.items()]
    # A test that the plan does not have proves nothing, but its failure counts.
    others = [_test(test, further[test], True) for test in sorted(further)]
    outcomes += [each for each in others if each.verdict in _RED]
    faults = [(each, fault) for each in results if (fault := _fault(each)) is not None]
    red = [
        TestOutcome("", verdict, reason, each.attempt)
        for each, (verdict, reason) in faults
        if verdict in _RED
    ]
    whole = len(faults) < len(results)
    verdict, reason = _verdict(job, [*red, *outcomes], whole=whole)
    if verdict == "infra":
        reason = _not_proven(job, results, damaged, outcomes, [fault for _, fault in faults])
    elif verdict in GREEN and (why := _tripping(job, results, damaged, faults)):
        verdict, reason = FLAKY_INFRA, why
    shown = [each for each in (*red, *outcomes) if each.verdict not in ("passed", "skipped")]
    return JobOutcome(
        job,
        verdict,
        reason,
        {
            name: count
            for name, count in sorted(
                Counter(each.verdict for each in outcomes).items(), key=lambda item: rank(item[0])
            )
        },
        tuple(sorted({each.attempt for each in results})),
        round(sum(each.seconds for each in results), 3),
        tuple(sorted(shown, key=lambda each: rank(each.verdict))),
        tuple(each.path for each in results),
    )


def _test(test: str, said: Sequence[tuple[int, TestLine]], left: bool) -> TestOutcome:
    """Return what a test came to.

    Args:
        test: The test.
        said: The attempts that have it, and what their results say.
        left: Whether the job left any results.
    """
    for labels in (_RED, _PROVEN):
        if lines := [each for each in said if each[1].label in labels]:
            number, worst = min(lines, key=_weight)
            return _outcome(worst, worst.label, number)
    if not said:
        return TestOutcome(test, "infra", "planned, and in no results" if left else "")
    number, last = max(said, key=_weight)
    reason = last.reason or ("it did not end" if last.label == "interrupted" else last.label)
    return dataclasses.replace(_outcome(last, "infra", number), reason=reason)


def _weight(said: tuple[int, TestLine]) -> tuple[int, int, str, str]:
    """Return an order of what results say of a test, the worst first; it has no ties that show."""
    number, test = said
    return rank(test.label), number, test.reason, test.evidence


def _outcome(test: TestLine, verdict: str, attempt: int) -> TestOutcome:
    return TestOutcome(
        test.id, verdict, test.reason, attempt, test.evidence, test.signature, test.tracker
    )


def _fault(results: JobResults) -> tuple[str, str] | None:
    """Return what is wrong with a whole attempt: a verdict and the reason; ``None`` if nothing is."""
    if results.errors:
        name, reason = results.errors[0]
        more = f", and {len(results.errors) - 1} more" if len(results.errors) > 1 else ""
        return "test", f"{name} cannot be collected: {reason}{more}"
    if results.status == 0:
        return None
    unknown = ("infra", f"the run ended with the unknown status {results.status}")
    verdict, reason = _STATUSES.get(results.status, unknown)
    failed = any(test.label in (*_RED, "infra") for test in results.tests)
    if results.status in STATUS.values() and failed:
        return None
    if results.status is None and (running := _labelled(results, "interrupted")):
        reason += f", while {line(running[0].id)} ran"
    if results.status == 2:
        reasons = [test.reason for test in results.tests if test.label in ("interrupted", "infra")]
        reason = next(filter(None, reasons), reason)
    return verdict, reason


def _labelled(results: JobResults, label: str) -> list[TestLine]:
    return [test for test in results.tests if test.label == label]


def _verdict(job: Job, outcomes: Sequence[TestOutcome], *, whole: bool) -> tuple[str, str]:
    """Return the verdict of a job, whole if one of its attempts came to its end, and the reason."""
    for verdict in _RED:
        if matches := [each for each in outcomes if each.verdict == verdict]:
            first = matches[0]
            more = f", and {len(matches) - 1} more" if len(matches) > 1 else ""
            return verdict, f"{first.id}: {first.reason}{more}" if first.id else first.reason
    if not whole or not job.tests or any(each.verdict == "infra" for each in outcomes):
        return "infra", ""
    for verdict in ("flaky", "known"):
        if matches := [each for each in outcomes if each.verdict == verdict]:
            more = f", and {len(matches) - 1} more" if len(matches) > 1 else ""
            return verdict, f"{matches[0].id}{more}"
    return "passed", ""


def _not_proven(
    job: Job,
    results: Sequence[JobResults],
    damaged: Sequence[Damaged],
    outcomes: Sequence[TestOutcome],
    faults: Sequence[tuple[str, str]],
) -> str:
    """Return why a job is ``infra``."""
    if not job.tests:
        return "the plan names no test of it"
    if not results:
        if damaged:
            return f"its results cannot be read: {damaged[0].why}"
        return (
            "it left no results: skipped, cancelled, lost with its runner, or refused (see its log)"
        )
    bad = [each for each in outcomes if each.verdict == "infra"]
    count = f"{len(bad)} of {len(job.tests)} tests not proven"
    why = faults[-1][1] if faults else bad[0].reason
    return f"{why}; {count}" if bad else why


def _tripping(
    job: Job,
    results: Sequence[JobResults],
    damaged: Sequence[Damaged],
    faults: Sequence[tuple[JobResults, tuple[str, str]]],
) -> str:
    """Return why a job that is green is no plain pass; empty if it is one."""
    if faults:
        each, (_, reason) = faults[0]
        return f"attempt {each.attempt}: {reason}"
    if damaged:
        return f"results that cannot be read: {damaged[0].why}"
    for each in results:
        for test in each.tests:
            if test.label in ("infra", "interrupted"):
                return f"attempt {each.attempt}: {line(test.id)}: {test.reason or test.label}"
        if missing := set(job.tests) - {test.id for test in each.tests}:
            return f"attempt {each.attempt}: {len(missing)} of {len(job.tests)} tests were missing"
    return "" if results[0].attempt == 1 else "its first attempt left no results"


# --- all jobs ---------------------------------------------------------------------------------


def _empty(plan: Plan, notes: Sequence[str]) -> Judgement:
    if plan.empty:
        return Judgement(plan, "passed", 0, f"nothing to do: {line(plan.empty)}", (), tuple(notes))
    why = "the plan has no job, and does not say why"
    return Judgement(plan, "infra", status_of("infra"), why, (), tuple(notes))


def _reason(jobs: Sequence[JobOutcome], verdict: str) -> str:
    counts = _counted(WORST, (each.verdict for each in jobs))
    tally = ", ".join(f"{count} {name}" for name, count in counts.items())
    total = f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: {tally}"
    if verdict == "passed":
        return total
    return f"{total}; {jobs[0].job.id}: {jobs[0].reason}"


def _notes(job: Job, results: Sequence[JobResults], outcome: JobOutcome) -> list[str]:
    notes = []
    for number, count in sorted(Counter(each.attempt for each in results).items()):
        if count > 1:
            notes.append(
                f"{job.id}: attempt {number} left {count} results that differ: a failure in any of"
                " them counts"
            )
    if results and set(outcome.counts) == {"skipped"}:
        reasons = [test.reason for each in results for test in each.tests if test.reason]
        notes.append(f"{job.id}: all its tests were skipped: {next(iter(reasons), 'no reason')}")
    return notes


def _counted(order: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    counted = Counter(names)
    return {name: counted[name] for name in order if counted[name]}


def _dump(outcome: JobOutcome) -> dict[str, Any]:
    job = outcome.job
    return {
        "id": job.id,
        "image": job.image,
        "arch": job.arch,
        "tier": job.tier,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "counts": outcome.counts,
        "attempts": list(outcome.attempts),
        "seconds": outcome.seconds,
        "tests": [dataclasses.asdict(each) for each in outcome.tests],
        "results": list(outcome.results),
        "why": job.why,
    }
