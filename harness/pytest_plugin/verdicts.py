"""Verdicts: whose fault a failure is, in reports, summary, ``results.json`` and exit status."""

from __future__ import annotations

import contextlib
import json
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pytest

import harness
from harness.pytest_plugin import session as sessions
from harness.pytest_plugin.fixtures import OUTCOMES

if TYPE_CHECKING:
    from harness.evidence.results import Results

_LIBRARY: Final = Path(harness.__file__).parent
_PYTHON: Final = Path(sysconfig.get_path("stdlib"))
_SUITES: Final = _LIBRARY / "_bundled"
"""The suites that an installed Harness carries: their frames are a test's own."""

RESULTS: Final = pytest.StashKey["Results"]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """With ``--acceptance``, load the conftest of Harness' suites as if the user had named them."""
    options = early_config.known_args_namespace
    if options.acceptance:
        options.file_or_dir[:] = _suites(options.file_or_dir)


def pytest_configure(config: pytest.Config) -> None:
    """Collect results, begin ``junit.xml``; with ``--acceptance`` and no path, run Harness' suites."""
    if config.option.acceptance:
        # In workers of pytest-xdist as well: they parse the command line themselves.
        named = config.args_source is pytest.Config.ArgsSource.ARGS
        config.args[:] = _suites(config.args if named else [])
    session = sessions.of(config)
    if not session.engaged or hasattr(config, "workerinput"):
        return
    config.pluginmanager.register(_Collector(config), "harness-results")
    if getattr(config.option, "xmlpath", None) is None:
        _begin_junit(config, session.run.path / "junit.xml")


def _suites(arguments: Sequence[str]) -> list[str]:
    """Return the paths of the tests to run: all suites by default, ``suites/...`` from any folder."""
    from harness import paths

    suites = paths.bundled("suites")
    if not arguments:
        return [str(suites)]
    return [
        str(suites.parent / argument) if _is_bundled(argument, suites) else argument
        for argument in arguments
    ]


def _is_bundled(argument: str, suites: Path) -> bool:
    path = Path(argument.partition("::")[0])
    named = path.parts[:1] == ("suites",)
    return named and not path.exists() and (suites.parent / path).exists()


def _begin_junit(config: pytest.Config, path: Path) -> None:
    """Have pytest write ``junit.xml`` beside the evidence: the user names no file of their own."""
    from _pytest.junitxml import LogXML, xml_key

    report = LogXML(
        str(path),
        config.option.junitprefix,
        config.getini("junit_suite_name"),
        config.getini("junit_logging"),
        config.getini("junit_duration_report"),
        config.getini("junit_family"),
        config.getini("junit_log_passing_tests"),
    )
    config.stash[xml_key] = report
    config.pluginmanager.register(report, "harness-junitxml")


# --- reports ----------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Give a report its verdict, drop evidence of a test that passed, show the test's frames only."""
    session = sessions.of(item.config)
    if not session.engaged:
        return (yield)
    from harness.errors import HarnessError, verdict_of
    from harness.evidence.run import slug

    if call.excinfo is not None and not item.config.option.fulltrace:
        if isinstance(call.excinfo.value, HarnessError):
            # Its text says everything; the error that it was raised from is the library's business.
            call.excinfo.value.__cause__ = None
            call.excinfo.value.__suppress_context__ = True
        _hide_library(call.excinfo.value)
        call.excinfo = pytest.ExceptionInfo.from_exception(call.excinfo.value)
    folder = session.run.path / slug(item.nodeid)
    verdict = None
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        verdict = verdict_of(call.excinfo.value)
        # On the item, because junit.xml takes them from the last of its reports.
        item.user_properties.append(("verdict", verdict.value))
        # Machines that a module's tests share have their evidence in the module's folder.
        shared = session.run.path / slug(session.shared(item.nodeid.split("::")[0]))
        if place := next((each for each in (folder, shared) if each.exists()), None):
            item.user_properties.append(("evidence", str(place)))
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if verdict is not None:
        where = dict(item.user_properties).get("evidence", "none")
        report.sections.append(("Evidence", f"verdict {verdict.value}: {where}"))
    reports = item.stash.setdefault(OUTCOMES, [])
    reports.append(report)
    failed = any(each.outcome == "failed" for each in reports)
    if call.when == "teardown" and not failed and not item.config.option.keep:
        session.run.drop(folder)
    return report  # type: ignore[return-value]


def _hide_library(error: BaseException) -> None:
    """Take the library's frames out of an exception's traceback, unless it has no others.

    Frames of Python's own modules that the library called go as well.

    pytest shortens a traceback by following the frames that Python linked, so the links are remade.
    """
    frames = []
    inside = False
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        # The functools below a cached property of the library is as foreign to the test.
        inside = _in_library(path) or (inside and _in_python(path))
        if not inside:
            frames.append(trace)
        trace = trace.tb_next
    if not frames:
        return
    shown: TracebackType | None = None
    for each in reversed(frames):
        shown = TracebackType(shown, each.tb_frame, each.tb_lasti, each.tb_lineno)
    error.__traceback__ = shown


def _in_library(path: Path) -> bool:
    return path.is_relative_to(_LIBRARY) and not path.is_relative_to(_SUITES)


def _in_python(path: Path) -> bool:
    # A frozen module has no file: its path is "<frozen os>".
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return not packages and (path.is_relative_to(_PYTHON) or path.name.startswith("<frozen "))


# --- the whole run ----------------------------------------------------------------------------


def _results(config: pytest.Config) -> Results:
    from harness.evidence.results import Results

    return config.stash.setdefault(RESULTS, Results())


class _Collector:
    """Collects the results of tests; registered in the controller, or in the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self._results = _results(config)
        self._run = sessions.of(config).run.path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the report of one phase of a test."""
        from harness.errors import Verdict

        result = self._results.test(report.nodeid)
        result.seconds[report.when] = round(report.duration, 4)
        node = getattr(report, "node", None)
        result.worker = node.gateway.id if node is not None else ""
        properties = dict(report.user_properties)
        if report.outcome == "failed":
            if result.outcome != "failed":
                result.reason = _first_line(report)
            result.outcome = "failed"
            result.verdict = str(properties.get("verdict", "test"))
            if "evidence" in properties:
                with contextlib.suppress(ValueError):
                    evidence = Path(str(properties["evidence"]))
                    result.evidence = str(evidence.relative_to(self._run))
        elif report.outcome == "skipped":
            result.outcome, result.verdict = "skipped", ""
            reason = report.longrepr
            result.reason = str(reason[2]) if isinstance(reason, tuple) else str(reason or "")
        elif report.when == "call":
            # Only here: a test that was interrupted after its setup has not passed.
            result.outcome, result.verdict = "passed", Verdict.PASSED.value


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results, and say by the exit status whose fault the run is."""
    config = session.config
    if RESULTS not in config.stash:
        return
    results = config.stash[RESULTS]
    mine = sessions.of(config)
    status = int(exitstatus)
    if config.option.acceptance and not config.option.collectonly:
        from harness.errors import StoreError

        status = results.status(status)
        session.exitstatus = status
        # A gate wants the results of every run, also of one that had no machine.
        with contextlib.suppress(StoreError):
            mine.run.begin()
    if not mine.run.used:
        # Nothing of this run is worth keeping: no report is written either.
        if (report := config.pluginmanager.get_plugin("harness-junitxml")) is not None:
            from _pytest.junitxml import xml_key

            del config.stash[xml_key]
            config.pluginmanager.unregister(report)
        return
    with contextlib.suppress(OSError):
        results.write(
            mine.run.path,
            status,
            command=[str(word) for word in config.invocation_params.args],
            **_facts(mine),
        )


def _facts(session: sessions.Session) -> dict[str, Any]:
    """Return what a run was made with; a fact that cannot be had is left out."""
    import importlib.metadata

    from harness.artifacts import digest_inputs
    from harness.errors import HarnessError
    from harness.host.capacity import capacity
    from harness.qemu import binary

    room = capacity()
    facts: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "pytest": pytest.__version__},
        "host": {"cpus": room.cpus, "memory": room.memory, "platform": platform.platform()},
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["versions"]["harness"] = importlib.metadata.version("harness-os")
    with contextlib.suppress(HarnessError):
        image = session.lab.image
        facts["image"] = {
            "reference": session.lab.reference,
            "name": image.name,
            "variant": image.variant,
            "version": image.version,
            "arch": image.arch,
            "inputs": digest_inputs(image),
        }
        facts["versions"]["qemu"] = binary.find(image.arch).version
        facts["host"]["accel"] = session.lab.accelerator(image.arch).name
    return facts


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List failed tests with their verdicts, how servers ran, and where the evidence is."""
    session = sessions.of(config)
    if not session.engaged:
        return
    failed = [
        report
        for key in ("failed", "error")
        for report in terminalreporter.stats.get(key, [])
        if hasattr(report, "user_properties")
    ]
    if failed:
        terminalreporter.section("verdicts")
    for report in failed:
        properties = dict(report.user_properties)
        verdict = properties.get("verdict", "test")
        terminalreporter.write_line(f"{verdict:8} {report.nodeid}")
        if "evidence" in properties:
            terminalreporter.write_line(f"         {properties['evidence']}")
    for line in servers(session.run.path):
        terminalreporter.write_line(line)
    if session.run.used:
        terminalreporter.write_line(f"evidence: {session.run.path}")


def servers(run: Path) -> list[str]:
    """Return how servers for guests ran, a line for each way: a local process is not a container."""
    path = run / "services.jsonl"
    if not path.exists():
        return []
    lines: dict[str, None] = {}
    for text in path.read_text().splitlines():
        record = json.loads(text)
        why = f" ({record['why']})" if record["why"] else ""
        lines[f"service {record['name']}: {record['program']} as {record['by']}{why}"] = None
    return list(lines)
