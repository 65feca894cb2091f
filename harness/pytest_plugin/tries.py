"""Tries: each run of a test, and the second one of a test that the host made fail.

A test whose first try fails by ``infra`` is tried once more, with fixtures, machines and evidence of its
own. All that the session, its packages and modules had set up is torn down before. The reports of the
first try are no failures: pytest gets one report of it, whose outcome is ``retried``.

pytest-rerunfailures, flaky and such plugins try tests again by themselves. A test that one of them takes
is theirs: no try is added. Its tries are kept apart like ours.

The phases of a test are those of ``_pytest.runner.runtestprotocol``, which reports each of them before
it knows the next. Here a call that passed is reported once its teardown went well.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from harness.pytest_plugin import session as sessions

RETRIED: Final[str] = "retried"
"""The outcome of the one report of a try that does not count."""


@dataclass
class Try:
    """One run of a test.

    Attributes:
        number: Its number, from 1.
        folder: Its evidence; ``None`` while it has none.
        reports: The reports of its phases.
        failure: The report of the first phase that failed. Others may change its outcome.
        transient: Whether its failure may not happen again.
        built: How many states this process had built before.
    """

    number: int
    folder: Path | None = None
    reports: list[pytest.TestReport] = field(default_factory=list)
    failure: pytest.TestReport | None = None
    transient: bool = False
    built: int = 0

    def record(self, run: Path) -> dict[str, Any]:
        """Return what ``results.json`` says of it; paths are relative to the run's folder."""
        properties: dict[str, Any] = {}
        if (failure := self.failure) is not None:
            properties = dict(failure.user_properties)
        elif any(each.when == "call" and each.outcome == "passed" for each in self.reports):
            properties = {"verdict": "passed"}
        return {
            "verdict": str(properties.get("verdict", "")),
            "reason": reason(failure) if failure is not None else "",
            "evidence": relative(properties.get("evidence", self.folder or ""), run),
            "seconds": {str(each.when): round(each.duration, 4) for each in self.reports},
            "signature": str(properties.get("signature", "")),
        }


@dataclass
class Tries:
    """The tries of a test in this process.

    Attributes:
        current: The one that goes on, or the last.
        before: The records of those before.
        properties: How many properties the item had before its first try.
        again: Whether the current try does not count, and another one follows.
    """

    current: Try
    before: list[dict[str, Any]]
    properties: int
    again: bool = False


TRIES: Final = pytest.StashKey[Tries]()
_MAY_RETRY: Final = pytest.StashKey[bool]()


def message(report: pytest.TestReport) -> str:
    """Return the text of a failure, without the traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    # Not longreprtext, which begins with the name of the worker.
    return crash.message if crash is not None else str(report.longrepr or "")


def reason(report: pytest.TestReport) -> str:
    """Return the first line of a failure."""
    return next((line.strip() for line in message(report).splitlines() if line.strip()), "")


def relative(evidence: object, run: Path) -> str:
    """Return the path of evidence below the run's folder; empty if it is not there."""
    path = Path(str(evidence)) if evidence else None
    return str(path.relative_to(run)) if path is not None and path.is_relative_to(run) else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that switches the second try off."""
    parser.getgroup("harness").addoption(
        "--no-retry",
        action="store_true",
        help="do not try a test once more that failed because of the host (verdict infra)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the second try around everything that runs a test."""
    if retries(config):
        config.pluginmanager.register(_Again(), "harness-again")


def retries(config: pytest.Config) -> bool:
    """Return whether failures by ``infra`` are tried once more in this run.

    Under ``--pdb`` and ``--trace`` a person looks at the first failure, and its machine.
    """
    by_hand = config.getoption("usepdb", False) or config.getoption("trace", False)
    return sessions.of(config).engaged and not config.option.no_retry and not by_hand


# --- one try ----------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Begin a try: whatever runs the test again begins with its setup."""
    if sessions.of(item.config).engaged:
        _begin(item)
    return (yield)


def _begin(item: pytest.Item) -> None:
    session = sessions.of(item.config)
    tries = item.stash.get(TRIES, None)
    if tries is None:
        if arch := session.arch_of(item):
            item.user_properties.append(("arch", arch))
        tries = item.stash[TRIES] = Tries(Try(1), [], len(item.user_properties))
    else:
        tries.before.append(tries.current.record(session.run.path))
        tries.current = Try(tries.current.number + 1)
        # What an earlier try recorded is no property of this one.
        del item.user_properties[tries.properties :]
    tries.again = False
    tries.current.built = len(session.built(item))


def folder(item: pytest.Item) -> Path:
    """Return the folder of evidence of a test's current try, made at the first call."""
    session = sessions.of(item.config)
    if TRIES not in item.stash:
        # A run that none of Harness' options names, and whose test asks for a lab all the same.
        _begin(item)
    current = item.stash[TRIES].current
    if current.folder is None:
        current.folder = session.run.new_try(item.nodeid, session.apart, number=current.number)
    return current.folder


def collect(item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> None:
    """Take the report of a phase into the current try, and tell the controller which try it is of."""
    from harness.errors import is_transient

    tries = item.stash[TRIES]
    current = tries.current
    current.reports.append(report)
    if report.outcome == "failed":
        sessions.of(item.config).failures += 1
        if current.failure is None:
            current.failure = report
            current.transient = error is not None and is_transient(error)
    # pytest-xdist carries further attributes of a report, if they are JSON.
    vars(report)["harness_before"] = list(tries.before)
    vars(report)["harness_folder"] = relative(current.folder, sessions.of(item.config).run.path)


def drop(item: pytest.Item) -> None:
    """Remove a test's evidence, unless one of its tries failed."""
    session = sessions.of(item.config)
    tries = item.stash[TRIES]
    failed = tries.current.failure or any(each["verdict"] != "passed" for each in tries.before)
    first = session.run.test_folder(item.nodeid, session.apart)
    # Another folder is that of a try in a worker that has crashed.
    if not failed and tries.current.folder in (None, first):
        session.run.drop(first)


# --- one more try -----------------------------------------------------------------------------


class _Again:
    """Runs a test whose first try does not count once more, around all that other plugins do."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[None]:
        """Let the test run; if it has to be tried again, all hooks run once more around it.

        So a limit of pytest-timeout, for one, is that of each try.
        """
        item.stash[_MAY_RETRY] = True
        result = yield
        tries = item.stash.get(TRIES, None)
        if tries is None or not tries.again:
            return result
        _start_over(item, tries.current)
        item.stash[_MAY_RETRY] = False
        return item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)  # type: ignore[no-any-return]


def _start_over(item: pytest.Item, failed: Try) -> None:
    """Leave nothing that the first try used: no fixture of any scope, no state that it built."""
    from harness.errors import HarnessError

    session = sessions.of(item.config)
    with contextlib.suppress(Exception):
        # What fails in it belongs to a try that does not count.
        item.session._setupstate.teardown_exact(None)
    if built := session.built(item)[failed.built :]:
        with contextlib.suppress(HarnessError):
            session.lab_on(session.arch_of(item)).discard(
                list(dict.fromkeys(built)), f"{item.nodeid} failed after it was built"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test phase by phase, so that a try that does not count reports no failure."""
    if not item.stash.get(_MAY_RETRY, False):
        return None
    if (ran := _others(item, nextitem)) is not None:
        return ran
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    _run(item, nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _others(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Let other plugins than pytest's own runner run the test, if one of them wants to."""
    from _pytest import runner

    arguments = {"item": item, "nextitem": nextitem}
    own = {pytest_runtest_protocol, runner.pytest_runtest_protocol}
    for hook in reversed(item.ihook.pytest_runtest_protocol.get_hookimpls()):
        if hook.wrapper or hook.hookwrapper or hook.function in own:
            continue
        ran = hook.function(*(arguments[name] for name in hook.argnames))
        if ran is not None:
            return bool(ran)
    return None


def _run(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run setup, call and teardown, as ``runtestprotocol`` of pytest does."""
    from _pytest.runner import show_test_item

    initialized = hasattr(item, "_request")
    if initialized and not item._request:  # type: ignore[attr-defined]
        item._initrequest()  # type: ignore[attr-defined]
    config = item.config
    only_setup = config.getoption("setuponly", False)
    held = []
    try:
        setup = _phase(item, "setup")
        if not _again(item, setup):
            item.ihook.pytest_runtest_logreport(report=setup)
            if setup.passed and config.getoption("setupshow", False):
                show_test_item(item, add_space=not only_setup)
            if setup.passed and not only_setup:
                call = _phase(item, "call")
                if call.passed:
                    held.append(call)
                elif not _again(item, call):
                    item.ihook.pytest_runtest_logreport(report=call)
        tries = item.stash[TRIES]
        ending = item.session.shouldfail or item.session.shouldstop
        after = None if tries.again or ending else nextitem
        teardown = _phase(item, "teardown", nextitem=after)
        if tries.again or _again(item, teardown):
            item.ihook.pytest_runtest_logreport(report=_retried(item, tries.current))
        else:
            for report in (*held, teardown):
                item.ihook.pytest_runtest_logreport(report=report)
    finally:
        if initialized:
            item._request = False  # type: ignore[attr-defined]
            item.funcargs = None  # type: ignore[attr-defined]


def _phase(
    item: pytest.Item, when: Literal["setup", "call", "teardown"], **arguments: Any
) -> pytest.TestReport:
    from _pytest.runner import call_and_report

    return call_and_report(item, when, log=False, **arguments)


def _again(item: pytest.Item, report: pytest.TestReport) -> bool:
    """Return whether a phase failed in a way that makes its try not count."""
    from harness.errors import Verdict

    tries = item.stash[TRIES]
    failure = tries.current.failure
    ending = item.session.shouldfail or item.session.shouldstop
    tries.again = (
        report is failure
        and report.outcome == "failed"
        and dict(report.user_properties).get("verdict") == Verdict.INFRA.value
        and tries.current.transient
        and not tries.before
        and not ending
    )
    return tries.again


def _retried(item: pytest.Item, failed: Try) -> pytest.TestReport:
    """Return the one report of a try that does not count."""
    assert failed.failure is not None
    report = copy.copy(failed.failure)
    report.outcome = RETRIED  # type: ignore[assignment]
    # Where it was the teardown, junit.xml would end the test by it.
    report.when = "call"
    report.duration = sum(each.duration for each in failed.reports)
    vars(report)["harness_try"] = failed.record(sessions.of(item.config).run.path)
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str | tuple[str, dict[str, bool]]] | None:
    """Give tries that do not count, and tests that passed at a later try, a category of their own."""
    if report.outcome == RETRIED:
        return "retried", "R", ("RETRIED", {"yellow": True})
    verdict = dict(getattr(report, "user_properties", ())).get("verdict")
    if report.skipped and verdict == "known":
        return "known", "k", ("KNOWN", {"yellow": True})
    if report.when == "call" and report.passed and verdict == "flaky":
        return "flaky", "~", ("FLAKY", {"yellow": True})
    return None
