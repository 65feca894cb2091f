"""A job of a plan: ``--plan plan.json --job ID`` runs its tests, and the results say so.

``harness acceptance`` chooses the image, the architecture, the tier and the files of the job; this
module leaves the other tests of those files out. A test that the plan has and the files have not is
no error here: the judge misses it (:mod:`harness.gate.judge`).

Results are written before anything is collected, and again as each test begins and ends, because a job
may be killed at any moment: by the kernel for its memory, with a node that is lost, by a runner that is
cancelled.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from harness.pytest_plugin import secrets, tiers, verdicts
from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.gate.plan import Job, Plan

_PLANNED: Final = pytest.StashKey["Planned"]()


@dataclass(frozen=True, slots=True)
class Planned:
    """The job that a run is.

    Attributes:
        plan: The plan.
        job: The job.
        attempt: The number of the attempt, from 1.
        commit: The commit of the working folder; empty where git does not say.
    """

    plan: Plan
    job: Job
    attempt: int
    commit: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of jobs."""
    group = parser.getgroup("harness: jobs of a plan")
    group.addoption(
        "--plan",
        default=None,
        metavar="FILE",
        help="run a job of this plan, which harness plan made; with --job",
    )
    group.addoption("--job", default=None, metavar="ID", help="the job of the plan")
    group.addoption(
        "--attempt",
        type=int,
        default=None,
        metavar="N",
        help="the number of the attempt, for the results (default: that of the plan, or 1)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before anything starts.

    Raises:
        pytest.UsageError: An option is wrong, or the plan is not of this checkout.
    """
    option = config.option
    if option.plan is None:
        if option.job is not None or option.attempt is not None:
            raise pytest.UsageError("--job and --attempt go with --plan FILE")
        return
    if not option.acceptance or option.job is None:
        raise pytest.UsageError(
            "a job of a plan is run by: harness acceptance --plan FILE --job ID"
        )
    from harness.errors import HarnessError
    from harness.gate import plan as plans

    try:
        plan = plans.read(config.invocation_params.dir / option.plan)
        job = plan.job(option.job)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    chosen = {"image": option.image, "arch": option.arch, "tier": tiers.chosen(config)}
    for name, value in chosen.items():
        if value != (wanted := getattr(job, name)):
            raise pytest.UsageError(f"--{name} {value}: the job {job.id} has {wanted}")
    attempt = plan.attempt if option.attempt is None else option.attempt
    if attempt < 1:
        raise pytest.UsageError(f"--attempt must be at least 1, not {attempt}")
    commit = plans.commit_of(config.invocation_params.dir)
    if commit and plan.commit and commit != plan.commit:
        raise pytest.UsageError(
            f"the plan is of commit {plan.commit[:12]}, and this checkout is at {commit[:12]}\n"
            f"  try: git checkout {plan.commit}; or make a plan of this commit: harness plan"
        )
    config.stash[_PLANNED] = Planned(plan, job, attempt, commit)
    if not hasattr(config, "workerinput") and not option.collectonly:
        config.pluginmanager.register(_Recorder(config), "harness-plan")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that the job does not have."""
    if (planned := config.stash.get(_PLANNED, None)) is None:
        return
    mine = set(planned.job.tests)
    if others := [item for item in items if item.nodeid not in mine]:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.nodeid in mine]


class _Recorder:
    """Keeps the results of a job on disk up to date; in the controller, or in the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results = verdicts.results_of(config)
        planned = config.stash[_PLANNED]
        self._results.plan = {
            "id": planned.plan.id,
            "job": planned.job.id,
            "attempt": planned.attempt,
            "commit": planned.commit,
        }

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Write the results before anything is collected."""
        from harness.errors import StoreError

        with contextlib.suppress(StoreError):
            sessions.of(self._config).run.begin()
        self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file whose tests cannot be collected."""
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("E ")]
            reason = (errors or lines or [""])[-1].removeprefix("E ").strip()
            self._results.errors.append({"id": report.nodeid, "reason": reason})
            self._write()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self) -> None:
        """Write which test has begun: it may be the one that takes all memory."""
        self._write()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """Write the results after each test."""
        self._write()

    def _write(self) -> None:
        # A full disk ends no test; the judge misses what could not be written.
        with contextlib.suppress(OSError):
            command = [str(word) for word in self._config.invocation_params.args]
            clean = functools.partial(secrets.clean, self._config)
            run = sessions.of(self._config).run.path
            self._results.write(run, None, clean=clean, command=command)
