"""The cost of evidence on a passing run, and the time from a red test to a prompt elsewhere."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.core import Budget, Context, Judged, Row
from bench.labs import ACCEL, lab
from bench.side import ROOT
from bench.start import NO_PEER
from harness import paths
from harness.evidence.bundle import FILE, Bundle
from harness.points import live

OVERHEAD: Final = Budget(1.03, Judged.RATIO)
PROMPT: Final = Budget(10.0)
LIMIT: Final = 600.0
"""Seconds after which a resumed machine is taken to be lost."""

PASSES: Final = """
import pytest

from harness import points


@pytest.mark.parametrize("number", range({tests}))
def test_commands(lab, number):
    machine = lab.fork(points.live)
    for each in range(20):
        last = machine.console.run(f"seq {{each}} {{each + 9}}").stdout.splitlines()[-1]
        assert last == str(each + 9)
    for each in range(10):
        machine.succeed("true")
    machine.shutdown()
"""

FAILS: Final = """
def test_fails(live):
    assert live.succeed("uname -s") == "another system"
"""

CPU: Final = """
import atexit, os, time
from pathlib import Path

def note():
    Path({path!r}).write_text(str(time.process_time()))

atexit.register(note)
"""
"""A conftest that notes the CPU seconds of the process, all threads, from its start; without QEMU's."""

OFF: Final = (
    "off in the bare side (bench/bare.py): timeline.json, the files of the console (its log, which"
    " commands read, is a buffer), QMP and SSH logs, machine.json and qemu.sh, the sampler of host"
    " pressure, the socket of harness ps, junit.xml, results.json and its facts, the trim of bundles;"
    " on in both: watchers, the test's folder, qemu.stderr, pytest's own reports"
)


def run(context: Context) -> list[Row]:
    """Measure both."""
    rows = _overhead(context)
    for image in ("micro", "skiff"):
        rows += _prompt(context, image)
    return rows


# --- what evidence costs ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a session.

    Attributes:
        wall: Seconds on the clock, from the start of the interpreter to its end.
        cpu: CPU seconds of pytest's process.
        all: The same, and those of the processes that it started and waited for: QEMU's.
    """

    wall: float
    cpu: float
    all: float


def _overhead(context: Context) -> list[Row]:
    tests = context.pick(6, 3)
    with lab(context, "micro") as here:
        here.state(live)
    sides: dict[str, tuple[str, ...]] = {"harness": (), "bare": ("-p", "bench.bare")}
    projects = {name: _project(context.folder / name, tests) for name in sides}
    for name, options in sides.items():
        _session(projects[name], tests, options)  # compiles the bytecode, reads the state once
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(context.pick(8, 2)):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            cost = _session(projects[name], tests, sides[name])
            costs[name].append(cost)
            context.say(
                f"round {number + 1}, {name}: {cost.wall:.2f} s, CPU {cost.all:.2f} s, of pytest"
                f" {cost.cpu:.3f} s"
            )
    _check_bare(projects)
    rows = []
    for what, figure, budget, note in (
        ("", "wall", OVERHEAD, OFF),
        (", CPU of the run", "all", OVERHEAD, "pytest's and QEMU's"),
        (", CPU of pytest", "cpu", None, "all threads of its process, imports too"),
    ):
        measurement = f"{tests} forks that pass{what}"
        ours, bare = (tuple(getattr(cost, figure) for cost in costs[name]) for name in sides)
        rows += [
            Row(measurement, "evidence", "s", ours, bare, budget, note),
            Row(measurement, "no evidence", "s", bare),
        ]
    return rows


def _project(folder: Path, tests: int) -> Path:
    _begin(folder, PASSES.format(tests=tests))
    (folder / "conftest.py").write_text(CPU.format(path=str(folder / "cpu")))
    return folder


def _begin(folder: Path, test: str) -> None:
    """Make a project of its own: pytest looks no further for settings."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(test)


def _session(project: Path, tests: int, options: Sequence[str]) -> Cost:
    output = project / "output"
    started = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen(
            _pytest("micro", *options),
            cwd=project,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    text = output.read_text(errors="replace")
    if process.returncode or f"{tests} passed" not in text:
        raise RuntimeError(f"the session did not pass: {text[-2000:]}")
    own = float((project / "cpu").read_text())
    return Cost(wall, own, usage.ru_utime + usage.ru_stime)


def _check_bare(projects: dict[str, Path]) -> None:
    """Check that a side left what it has to leave; evidence of tests that passed is dropped."""
    for name, project in projects.items():
        left = (project / ".harness/runs/latest/results.json").exists()
        if left != (name == "harness"):
            raise RuntimeError(f"the side {name!r} left {'' if left else 'no '}results.json")


def _pytest(image: str, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *NO_PEER, "-q"),
        # With "=": pytest takes the word behind an option of a plugin for a test's folder, and looks
        # there for its settings.
        *(f"--images={paths.bundled('images')}", f"--image={image}", f"--accel={ACCEL}"),
        *options,
    ]


def _environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


# --- from red to a prompt ---------------------------------------------------------------------


def _prompt(context: Context, image: str) -> list[Row]:
    with lab(context, image) as here:
        here.state(live)
        entry = here.store.where(here.image)
    home = context.folder / f"red-{image}"
    _begin(home, FAILS)
    process = subprocess.run(
        _pytest(image, "--no-retry"),
        cwd=home,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    bundles = list((home / ".harness/runs/latest").glob(f"*/{FILE}"))
    if len(bundles) != 1:
        raise RuntimeError(f"no bundle: {(process.stdout + process.stderr)[-2000:]}")
    with Bundle(bundles[0]) as bundle:
        if not bundle.manifest.machines:
            raise RuntimeError(f"no machine in the bundle: {bundle.manifest.withheld}")
    size = bundles[0].stat().st_size / 1e6
    samples, cpu = [], []
    for number in range(context.pick(5, 1)):
        # Elsewhere: a folder without anything, and a cache that has the image and nothing else.
        elsewhere = context.folder / f"elsewhere-{image}-{number}"
        cache = elsewhere / "cache"
        (cache / "entries").mkdir(parents=True)
        (cache / "entries" / entry.name).symlink_to(entry)
        waited, used = _resurrect(bundles[0], elsewhere, cache)
        samples.append(waited)
        cpu.append(used)
        context.say(f"{image}: {waited:.2f} s to the answer of the first command, CPU {used:.2f} s")
    note = (
        f"from 'harness resurrect BUNDLE' to the answer of a command typed at the prompt; a bundle"
        f" of {size:.0f} MB, which the host has just written; the image's files are in its cache"
    )
    return [
        Row("red to prompt elsewhere", image, "s", tuple(samples), budget=PROMPT, note=note),
        Row(
            "red to prompt elsewhere, CPU",
            image,
            "s",
            tuple(cpu),
            note="of 'harness resurrect' and QEMU, to their end: what the wait is on an idle host",
        ),
    ]


def _resurrect(bundle: Path, folder: Path, cache: Path) -> tuple[float, float]:
    """Resume a machine as a person does, at a terminal.

    Returns:
        The seconds to its first answer, and the CPU seconds of all of it.
    """
    started = time.perf_counter()
    with _terminal(bundle, folder, cache) as terminal:
        terminal.until(b"Ctrl-] leaves")
        terminal.until(b"# ")
        # The echo of the line has no 42.
        terminal.type(b"echo is-$((6*7))\r")
        terminal.until(b"is-42")
        seconds = time.perf_counter() - started
        terminal.type(b"\x1d")
        return seconds, terminal.end()


class _Terminal:
    """A program on a terminal of its own."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._pid = pid
        self._descriptor = descriptor
        self._until = time.monotonic() + LIMIT
        self._seen = b""

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._descriptor, keys)

    def until(self, text: bytes) -> None:
        """Wait for a text behind the last one."""
        while text not in self._seen:
            if not (part := self._read()):
                raise RuntimeError(f"no {text!r}: {self._seen[-2000:].decode(errors='replace')}")
            self._seen += part
        self._seen = self._seen.partition(text)[2]

    def end(self) -> float:
        """Wait for the end of the program; return its CPU seconds, and its children's."""
        while self._read():
            pass
        _, status, usage = os.wait4(self._pid, 0)
        self._pid = 0
        if status:
            raise RuntimeError(f"harness resurrect ended with {os.waitstatus_to_exitcode(status)}")
        return usage.ru_utime + usage.ru_stime

    def close(self) -> None:
        """Kill the program if it runs."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)

    def _read(self) -> bytes:
        ready, _, _ = select.select(
            [self._descriptor], [], [], max(0.0, self._until - time.monotonic())
        )
        if not ready:
            return b""
        try:
            return os.read(self._descriptor, 1 << 16)
        except OSError:
            return b""  # EIO: its last process has closed the terminal (pty(7))


@contextmanager
def _terminal(bundle: Path, folder: Path, cache: Path) -> Iterator[_Terminal]:
    command = [sys.executable, "-m", "harness.cli", "resurrect", str(bundle)]
    command += ["--images", str(paths.bundled("images"))]
    environment = _environment(HARNESS_CACHE=str(cache))
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, command, environment)
    terminal = _Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        terminal.close()
