"""Sweeps over power cuts: an action is recorded once, and each crash point of it is a test.

A module of scenarios has a fixture ``recording`` that records a disk while something is done; each of
its tests that takes ``cut`` runs for each point of the sample::

    @pytest.fixture(scope="module")
    def recording(recorder: Recorder) -> Recording:
        return recorder("install", install)

    def test_it_boots(cut: Cut, lab: Lab) -> None:
        machine = lab.boot(medium=False, disks=[cut.disk()])

Tests are collected before anything is recorded, so that their names are ``1of4``: the first of four
equal shares of the recording. The report names the point, and ``--cut POINT`` runs it alone.
A module whose points cost much says how few are tried: ``pytestmark = pytest.mark.cuts(2)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.lab import Lab
    from harness.powercut import Point, Rebuilder, Recording
    from harness.spec import Disk

    Steps = Callable[[Lab, Path], Recording]

CUTS: Final = 4
"""Crash points that are tried of each recording, unless its module or ``--cuts`` says how many."""

MANY: Final = 40
"""Crash points that ``--tier nightly`` tries of each recording."""

MARKER: Final = "cuts(n): how many crash points of the module's recording are tried without --cuts"

SEED: Final = 1

_FOLDER: Final = "recordings"
_WHOLE: Final = "done"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of sweeps."""
    group = parser.getgroup("harness: power cuts")
    group.addoption(
        "--cuts",
        type=int,
        default=None,
        metavar="N",
        help="how many crash points of each recording are tried"
        f" (default: as each sweep says, {CUTS} where it says nothing)",
    )
    group.addoption(
        "--cut",
        action="append",
        default=[],
        metavar="NAME",
        help="try this crash point, such as w01234-lost-s7; can be given several times",
    )
    group.addoption(
        "--cut-seed",
        type=int,
        default=SEED,
        metavar="S",
        help="another seed tries other points (default: %(default)s)",
    )
    group.addoption(
        "--recording",
        default=None,
        metavar="DIR",
        help="take a recording that an earlier run kept, instead of recording anew",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before anything starts."""
    config.addinivalue_line("markers", MARKER)
    options = config.option
    if options.cuts is not None and options.cuts < 1:
        raise pytest.UsageError(f"--cuts must be at least 1, not {options.cuts}")
    if not options.cut and options.recording is None:
        return
    if options.recording is not None and sessions.of(config).several:
        raise pytest.UsageError(
            "--recording is of one architecture, and --arch names several\n  try: --arch NAME"
        )
    from harness.errors import HarnessError
    from harness.powercut import Point, Recording

    try:
        for name in options.cut:
            Point.parse(name)
        if options.recording is not None:
            Recording.read(Path(options.recording))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Share:
    """One share of a recording in a sample: number ``number``, from 0, of ``of`` equal ones."""

    number: int
    of: int

    @property
    def name(self) -> str:
        """The test's name for it: ``1of4``."""
        width = len(str(self.of))
        return f"{self.number + 1:0{width}d}of{self.of}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``cut`` once for each point that the options ask for."""
    if "cut" not in metafunc.fixturenames:
        return
    from harness.powercut import Point

    options = metafunc.config.option
    points: list[Share | Point] = [Point.parse(name) for name in options.cut]
    if not points:
        cuts = (
            options.cuts
            or (MANY if options.tier == "nightly" else 0)
            or _marked(metafunc.definition.get_closest_marker("cuts"))
        )
        points = [Share(number, cuts) for number in range(cuts)]
    metafunc.parametrize("cut", points, ids=[each.name for each in points], indirect=True)


def _marked(marker: pytest.Mark | None) -> int:
    """Return how many crash points a marker asks for."""
    if marker is None:
        return CUTS
    count = marker.args[0] if len(marker.args) == 1 and not marker.kwargs else None
    if not isinstance(count, int) or count < 1:
        raise pytest.UsageError("the marker cuts takes a number of at least 1: cuts(2)")
    return count


class Recorder:
    """Makes a recording once per run, in whichever worker asks first.

    Args:
        session: The session of the pytest run.
        lab: The lab whose machines are recorded.
        arch: The architecture, in a run of several.
        existing: The folder of a recording to take instead.
    """

    def __init__(
        self, session: sessions.Session, lab: Lab, arch: str, existing: Path | None
    ) -> None:
        self._session = session
        self._lab = lab
        self._arch = arch
        self._existing = existing

    def __call__(self, name: str, steps: Steps) -> Recording:
        """Return the recording of this name.

        Args:
            name: The action that is recorded, in one word.
            steps: Does it: ``steps(lab, folder)`` returns the recording, made in ``folder``.

        Raises:
            UsageError: ``--recording`` names a recording of something else.
        """
        from harness.cache.locks import lock
        from harness.cache.space import remove_tree
        from harness.errors import UsageError
        from harness.powercut import Recording

        if self._existing is not None:
            if self._existing.name != name:
                raise UsageError(
                    f"{self._existing} is not a recording of {name}",
                    hint=f"select the tests of {self._existing.name} only",
                )
            return Recording.read(self._existing)
        folder = _folder(self._session, self._arch) / name
        folder.parent.mkdir(parents=True, exist_ok=True)

        def waiting(pid: int | None) -> None:
            self._lab.progress.say(f"another worker (pid {pid}) records {name}; waiting for it")

        with lock(folder.with_suffix(".lock"), waiting=waiting):
            if not (folder / _WHOLE).exists():
                remove_tree(folder)
                recording = steps(self._lab, folder)
                # Its base may lie on a state, which does not live as long.
                recording.pack()
                (folder / _WHOLE).touch()
        return Recording.read(folder)


def _folder(session: sessions.Session, arch: str) -> Path:
    """Return the folder of recordings; each architecture has its own in a run of several."""
    return session.run.path / _FOLDER / arch


class Cut:
    """One crash point of a recording.

    Attributes:
        point: The point.
        recording: The recording that it is a point of.
        path: The disk as it is at this point, raw.
    """

    def __init__(self, point: Point, recording: Recording, path: Path) -> None:
        self.point = point
        self.recording = recording
        self.path = path

    def after(self, mark: str) -> bool:
        """Whether everything before a mark of the recording has happened at this point.

        Where a mark follows a flush, nothing before it can be lost.
        """
        return self.point.place >= self.recording.at(mark)

    def disk(self, **changes: Any) -> Disk:
        """Return the disk as it is at this point; each machine has an overlay of its own on it.

        Args:
            changes: Fields that differ from the recorded disk's spec, such as ``boot_index``.
        """
        from harness.spec import Disk

        disk = Disk(self.recording.disk, self.path, "raw", serial=self.recording.serial)
        return replace(disk, **changes)


@pytest.fixture(scope="module")
def recorder(request: pytest.FixtureRequest, shared_lab: Lab, _arch: str) -> Recorder:
    """Return what makes the recording of a sweep, once per run: ``recorder("install", steps)``."""
    existing = request.config.option.recording
    folder = Path(existing).absolute() if existing else None
    return Recorder(sessions.of(request.config), shared_lab, _arch, folder)


@pytest.fixture(scope="module")
def rebuilder(
    request: pytest.FixtureRequest, recording: Recording, _arch: str
) -> Iterator[Rebuilder]:
    """Yield what rebuilds the disks of the module's recording."""
    from harness.cache.space import remove_tree
    from harness.powercut import Rebuilder

    session = sessions.of(request.config)
    name = f"{recording.folder.name}-{session.worker or 'main'}"
    folder = _folder(session, _arch) / name
    try:
        with Rebuilder(recording, folder) as rebuilder:
            yield rebuilder
    finally:
        remove_tree(folder)


@pytest.fixture
def cut(
    request: pytest.FixtureRequest,
    recording: Recording,
    rebuilder: Rebuilder,
    lab: Lab,
    _arch: str,
) -> Cut:
    """Return a crash point of the module's recording; the test runs for each point of the sample."""
    from harness.powercut import Kind, Point, places
    from harness.powercut.points import pick

    log = rebuilder.log
    candidates = places(log, recording.marks.get("begin", 0))
    share: Share | Point = request.param
    if isinstance(share, Point):
        point = share
    else:
        point = pick(
            candidates,
            share.number,
            share.of,
            request.config.option.cut_seed,
            name=recording.folder.name,
            end=recording.marks.get("done"),
        )
    lab.progress.say(f"cut {point.name} of {recording.folder.name}")
    path = rebuilder.build(point, lab.folder / f"{point.name}.raw")
    totals = {
        "sweep": recording.folder.name,
        "recording": str(recording.folder),
        "arch": lab.image.arch,
        "of several": bool(_arch),
        "writes": log.writes,
        "flushes": log.flushes,
        "places": len(candidates),
        "kinds": len(Kind),
        "point": point.name,
        "rebuilt": rebuilder.seconds[point.name],
    }
    request.node.user_properties.append(("cut", json.dumps(totals)))
    return Cut(point, recording, path)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say of each sweep how much there was, how much was tried, and how to run a failure alone."""
    sweeps: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for key in ("passed", "flaky", "failed", "error"):
        for report in terminalreporter.stats.get(key, []):
            text = dict(getattr(report, "user_properties", ())).get("cut")
            if text is not None and (report.when == "call" or key == "error"):
                totals = json.loads(text)
                sweeps.setdefault(totals["recording"], []).append((totals, report))
    if sweeps:
        terminalreporter.section("power cuts")
    for tried in sweeps.values():
        sweep = tried[0][0]
        points = sorted({totals["point"] for totals, _ in tried})
        seconds = sum(totals["rebuilt"] for totals, _ in tried) / len(tried)
        name = f"{sweep['sweep']} on {sweep['arch']}" if sweep["of several"] else sweep["sweep"]
        terminalreporter.write_line(
            f"{name}: {sweep['writes']} writes, {sweep['flushes']} flushes;"
            f" {sweep['places']} places of {sweep['kinds']} kinds are"
            f" {sweep['places'] * sweep['kinds']} points, {len(points)} tried"
            f" (seed {config.option.cut_seed}, rebuilt in {seconds * 1000:.0f} ms each):"
            f" {' '.join(points)}"
        )
        for totals, report in tried:
            if report.outcome == "failed":
                file = report.nodeid.split("[")[0]
                tier = f" --tier {config.option.tier}" if config.option.tier else ""
                arch = f" --arch {totals['arch']}" if config.option.arch else ""
                terminalreporter.write_line(
                    f"failed {totals['point']}; alone:"
                    f" {file} --cut {totals['point']} --recording {totals['recording']}{tier}{arch}"
                )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the recordings of a run in which nothing failed."""
    config = session.config
    if hasattr(config, "workerinput") or session.testsfailed or config.option.keep:
        return
    mine = sessions.of(config)
    if mine.engaged:
        import shutil

        shutil.rmtree(mine.run.path / _FOLDER, ignore_errors=True)
