"""Verdicts: whose fault a failure is, in reports, summary, ``results.json`` and exit status."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pytest

import harness
from harness.pytest_plugin import known, secrets, tries
from harness.pytest_plugin import session as sessions
from harness.pytest_plugin.interrupts import REASONS

if TYPE_CHECKING:
    from harness.errors import Verdict
    from harness.evidence.matrix import Matrix
    from harness.evidence.results import Results, TestResult
    from harness.lab import Lab

_LIBRARY: Final = Path(harness.__file__).parent
_PYTHON: Final = Path(sysconfig.get_path("stdlib"))
_SUITES: Final = _LIBRARY / "_bundled"
"""The suites that an installed Harness carries: their frames are a test's own."""

_LIMIT: Final = re.compile(r"^Timeout \(?>.* from pytest-timeout")
"""The words with which pytest-timeout fails a test (its ``PYTEST_FAILURE_MESSAGE``)."""

_FAILED: Final = ("failed", "rerun", tries.RETRIED)
"""Outcomes of reports of a try that failed."""

RESULTS: Final = pytest.StashKey["Results"]()
_REPORT: Final = pytest.StashKey[str]()


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
    from harness.errors import HarnessError

    error = call.excinfo.value if call.excinfo is not None else None
    if call.excinfo is not None and not item.config.option.fulltrace:
        if isinstance(error, HarnessError):
            # Its text says everything; the error that it was raised from is the library's business.
            error.__cause__ = None
            error.__suppress_context__ = True
        _hide_library(call.excinfo.value)
        call.excinfo = pytest.ExceptionInfo.from_exception(call.excinfo.value)
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if tries.TRIES not in item.stash:
        return report  # type: ignore[return-value]
    if report.outcome == "failed":
        place = _evidence(item)
        properties = _properties(item.config, report, _verdict(error), place)
        properties |= known.recognise(item, report, place)
        # On the item as well, because junit.xml takes them from the last of its reports.
        for properties_of in (item, report):
            _replace(properties_of.user_properties, properties)
        where = properties.get("evidence", "none")
        report.sections.append(("Evidence", f"verdict {properties['verdict']}: {where}"))
        report.sections += [
            (f"Try {number}", f"verdict {before['verdict']}: {before['reason']}\n{where}")
            for number, before in enumerate(item.stash[tries.TRIES].before, 1)
            if (where := session.run.path / before["evidence"])
        ]
    tries.collect(item, report, error)
    # Later than collect(), which keeps the evidence of what has failed.
    known.excuse(report)
    if call.when == "teardown" and not item.config.option.keep:
        tries.drop(item)
    return report  # type: ignore[return-value]


def _properties(
    config: pytest.Config, report: pytest.TestReport, verdict: Verdict, place: Path | None
) -> dict[str, str]:
    """Return what the report of a failure, and ``junit.xml``, say of it."""
    from harness.evidence.signature import failed_step, signature

    message = tries.message(report)
    step = failed_step(place, message, functools.partial(secrets.clean, config))
    properties = {
        "verdict": verdict.value,
        "signature": signature(report.nodeid, verdict.value, message, step=step),
    }
    if place is not None:
        properties["evidence"] = str(place)
    return properties


_OURS: Final = ("verdict", "signature", "evidence", *known.PROPERTIES)


def _replace(properties: list[tuple[str, object]], new: Mapping[str, str]) -> None:
    """Replace what an earlier phase has said: CI systems take the first of two equal names."""
    properties[:] = [each for each in properties if each[0] not in _OURS]
    properties += new.items()


def _verdict(error: BaseException | None) -> Verdict:
    """Return the verdict of a phase that failed; without an error a test passed that must not."""
    from harness.errors import Verdict, verdict_of

    if error is None:
        return Verdict.TEST
    limit = isinstance(error, pytest.fail.Exception) and _LIMIT.search(str(error))
    return Verdict.TIMEOUT if limit else verdict_of(error)


def _evidence(item: pytest.Item) -> Path | None:
    """Return the evidence of a test's current try, or that of the machines which its module shares."""
    shared = None
    if "shared_lab" in getattr(item, "fixturenames", ()):
        session = sessions.of(item.config)
        shared = session.shared.get(session.sharing(item))
    places = (item.stash[tries.TRIES].current.folder, shared)
    return next((each for each in places if each is not None and each.exists()), None)


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


def results_of(config: pytest.Config) -> Results:
    """Return the results of a run, made at the first call."""
    from harness.evidence.results import Results

    return config.stash.setdefault(RESULTS, Results())


class _Collector:
    """Collects the results of tests; registered in the controller, or in the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self._results = results_of(config)
        self._config = config
        self._run = sessions.of(config).run
        self._last: dict[int, pytest.TestReport] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test has begun: if nothing more is heard of it, it was interrupted."""
        if getattr(self._config.option, "dist", "no") != "each":
            self._results.test(nodeid)

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """Say of a test whose worker crashed that the host is at fault, and where its evidence is.

        It is tried once more by another worker, unless the distribution of tests does not allow it.
        """
        from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

        from harness.errors import Verdict

        worker = self._worker(report)
        each = self._config.option.dist == "each"
        place = self._run.last_try(crashitem, worker if each else "")
        properties = _properties(self._config, report, Verdict.INFRA, place)
        if arch := self._arch_by_name(crashitem, place):
            properties["arch"] = arch
        report.user_properties += properties.items()
        # pytest-rerunfailures may have done so.
        if report.outcome == "failed" and self._may_retry(crashitem, report):
            with contextlib.suppress(NotImplementedError):
                # The distribution by scope runs all tests of the crashed worker's scope that had not
                # ended once more, also the one that crashed it.
                if not isinstance(sched, LoadScopeScheduling):
                    sched.mark_test_pending(crashitem)
                report.outcome = tries.RETRIED  # type: ignore[assignment]
        if report.outcome == "failed":
            from _pytest.junitxml import xml_key

            # junit.xml takes properties from the report of a teardown, which this test has not got.
            if (xml := self._config.stash.get(xml_key, None)) is not None:
                for name, value in properties.items():
                    xml.node_reporter(report).add_property(name, value)

    def _may_retry(self, crashitem: str, report: pytest.TestReport) -> bool:
        restarts = getattr(self._config.option, "maxworkerrestart", None)
        return (
            tries.retries(self._config)
            and restarts != "0"
            and not getattr(self._config.pluginmanager.get_plugin("dsession"), "shouldstop", False)
            and not self._result(report).tries
        )

    def _arch_by_name(self, test: str, place: Path | None) -> str:
        """Return the architecture of a test that has not reported it: its process ended before."""
        from harness.errors import HarnessError

        session = sessions.of(self._config)
        if session.several:
            return session.arch_in(test)
        with contextlib.suppress(HarnessError):
            return session.present[0] if place is not None else ""
        return ""

    def _worker(self, report: object) -> str:
        node = getattr(report, "node", None)
        return str(node.gateway.id) if node is not None else ""

    def _result(self, report: pytest.TestReport) -> TestResult:
        """Return the result of a test; where each worker runs all tests, of one worker's."""
        worker = self._worker(report)
        each = getattr(self._config.option, "dist", "no") == "each"
        result = self._results.test(report.nodeid, worker if each else "")
        result.worker = worker
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the report of one phase of a test; say in it if the test has passed at a later try."""
        from harness.errors import Verdict

        result = self._result(report)
        self._last[id(result)] = report
        if report.when == "setup" and result.ended:
            result.try_again()
        # What the worker knows of earlier tries is exact; it knows none of a worker that crashed.
        before = getattr(report, "harness_before", [])
        result.tries = result.tries[: max(0, len(result.tries) - len(before))] + before
        crashed = report.when not in ("setup", "call", "teardown")
        result.ended = report.when == "teardown" or report.outcome == tries.RETRIED or crashed
        if not crashed:
            result.seconds[report.when] = round(report.duration, 4)
        result.folder = getattr(report, "harness_folder", "")
        properties = dict(report.user_properties)
        if arch := properties.get("arch"):
            result.arch = str(arch)
        if (excused := known.is_excused(report)) or report.outcome in _FAILED:
            # The first one counts; but a known failure does not hide another one that follows.
            if result.outcome not in (("failed", "xfailed") if excused else ("failed",)):
                result.reason = tries.reason(report)
                result.verdict = str(properties.get("verdict", Verdict.TEST.value))
                result.evidence = tries.relative(properties.get("evidence"), self._run.path)
                result.signature = str(properties.get("signature", ""))
                result.known = getattr(report, known.ATTRIBUTE, None)
                result.outcome = "xfailed" if excused else "failed"
            vars(report)["harness_before"] = result.tries
            if record := getattr(report, "harness_try", None):
                result.seconds = record["seconds"]
        elif report.outcome == "skipped":
            result.outcome, result.verdict = "skipped", ""
            reason = report.longrepr
            result.reason = str(reason[2]) if isinstance(reason, tuple) else str(reason or "")
        elif report.when == "call":
            # Only here: a test that was interrupted after its setup has not passed.
            result.outcome, result.verdict = "passed", Verdict.PASSED.value
            if self._config.option.keep:
                result.evidence = result.folder
            if failed := result.failed_try:
                result.verdict = Verdict.FLAKY.value
                result.reason, result.evidence = failed["reason"], failed["evidence"]
                result.signature = failed["signature"]
        if result.verdict == Verdict.FLAKY.value:
            # In each later report: junit.xml takes them from the last one.
            report.user_properties.append(("verdict", result.verdict))
            report.user_properties.append(("signature", result.signature))
            if result.evidence:
                report.user_properties.append(("evidence", str(self._run.path / result.evidence)))

    def settle(self) -> None:
        """Complete the results of tests that were interrupted, here and in ``junit.xml``."""
        from _pytest.junitxml import xml_key

        from harness.errors import Verdict

        session = sessions.of(self._config)
        xml = self._config.stash.get(xml_key, None)
        for (test, worker), result in self._results.tests.items():
            if result.outcome != "interrupted":
                continue
            if place := self._run.last_try(test, worker):
                result.evidence = str(place.relative_to(self._run.path))
            result.arch = result.arch or self._arch_by_name(test, place)
            result.reason = session.interruption
            if session.interruption in REASONS.values():
                result.verdict = Verdict.INFRA.value
            if xml is None:
                continue
            report = self._last.get(id(result)) or pytest.TestReport(
                test, (test.partition("::")[0], None, ""), {}, "skipped", None, "setup"
            )
            reporter = xml.node_reporter(report)
            reporter.record_testreport(report)
            kind = "error" if result.verdict else "skipped"
            reporter._add_simple(kind, f"interrupted: {result.reason}")
            for name, value in (("verdict", result.verdict), ("evidence", place)):
                if value:
                    reporter.add_property(name, str(value))
        if xml is not None:
            # What is nameless is a try in a worker that crashed; the next try has a name.
            xml.node_reporters_ordered[:] = [
                each for each in xml.node_reporters_ordered if getattr(each, "attrs", True)
            ]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results, and say by the exit status whose fault the run is."""
    config = session.config
    if RESULTS not in config.stash:
        return
    results = config.stash[RESULTS]
    mine = sessions.of(config)
    status = int(exitstatus)
    if (collector := config.pluginmanager.get_plugin("harness-results")) is not None:
        collector.settle()
    if status == pytest.ExitCode.OK and any(
        each.outcome == "failed" for each in results.tests.values()
    ):
        # A second try that no worker was left to run.
        status = session.exitstatus = pytest.ExitCode.TESTS_FAILED
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
    command = [str(word) for word in config.invocation_params.args]
    clean = functools.partial(secrets.clean, config)
    with contextlib.suppress(OSError):
        if mine.interruption:
            # The facts take their time, and there may be little left.
            results.write(
                mine.run.path, status, clean=clean, command=command, matrix=_matrix(config)
            )
        facts = _facts(mine) | {"command": command, "matrix": _matrix(config)}
        results.write(mine.run.path, status, clean=clean, **facts)
        if not mine.interruption and any(each.evidence for each in results.tests.values()):
            config.stash[_REPORT] = _write_report(config, mine.run.path)


def _write_report(config: pytest.Config, run: Path) -> str:
    """Write the report of a run, and return its path, or why there is none."""
    try:
        secrets.take_out(config)
        from harness.evidence.report import page, record

        target = run / page.FILE
        page.write(record.gather(run), target)
    except Exception as error:  # A report that fails must not take the results with it.
        return f"none, because of {error!r}"
    return str(target)


def _matrix(config: pytest.Config) -> Matrix:
    from harness.evidence.matrix import matrix

    return matrix(results_of(config).tests.values())


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
        }
        facts["arches"] = {arch: {} for arch in session.present}
        for arch, known in facts["arches"].items():
            with contextlib.suppress(HarnessError):
                lab = session.lab_on(arch)
                known["inputs"] = digest_inputs(lab.image)
                known["qemu"] = binary.find(arch).version
                known["accel"] = lab.accelerator(arch).name
                if packages := _packages(lab):
                    known["packages"] = packages
    return facts


def _packages(lab: Lab) -> dict[str, str]:
    """Return the versions of an image's packages, if it lists them and is in the cache."""
    source = lab.image.artifacts.get("packages")
    if source is None or source.file is None:
        return {}
    try:
        lines = (lab.store.where(lab.image) / source.file).read_text().splitlines()
    except (OSError, ValueError):
        return {}
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) > 1}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List failed tests, the verdicts on each architecture, how servers ran, where the evidence is."""
    session = sessions.of(config)
    if not session.engaged:
        return
    results = results_of(config)
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
        if (entry := getattr(report, known.ATTRIBUTE, None)) is not None:
            terminalreporter.write_line(f"         known until {known.words(entry)}")
        for line in _earlier(getattr(report, "harness_before", []), session.run.path):
            terminalreporter.write_line(line)
    flaky = [each for each in results.tests.values() if each.verdict == "flaky"]
    if flaky:
        terminalreporter.section("flaky", yellow=True)
        count = f"{len(flaky)} of {len(results.tests)} tests" if len(flaky) > 1 else "1 test"
        terminalreporter.write_line(f"{count} failed, and passed at a later try: no plain pass")
    for result in flaky:
        terminalreporter.write_line(f"flaky    {result.id}")
        for line in _earlier(result.tries, session.run.path):
            terminalreporter.write_line(line)
    known.summarize(terminalreporter, results.tests.values(), session.known)
    if session.several:
        from harness.evidence.matrix import table

        # Tests that have no image, and the tests of a run that was interrupted at once, are no rows.
        if rows := _matrix(config):
            terminalreporter.section("suites by architecture")
            for line in table(rows, session.arches):
                terminalreporter.write_line(line)
    for line in servers(session.run.path):
        terminalreporter.write_line(line)
    if session.run.used:
        terminalreporter.write_line(f"evidence: {session.run.path}")
    if _REPORT in config.stash:
        terminalreporter.write_line(f"report: {config.stash[_REPORT]}")


def _earlier(before: Sequence[Mapping[str, Any]], run: Path) -> Iterator[str]:
    """Yield what the summary says of the tries before the last one."""
    for number, each in enumerate(before, 1):
        yield f"         try {number}: {each['verdict'] or 'interrupted'}: {each['reason']}"
        if each["evidence"]:
            yield f"         {run / each['evidence']}"


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
