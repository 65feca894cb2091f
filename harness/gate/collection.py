"""The tests that a run would have: ``pytest --collect-only``, with the plugin that writes them as JSON.

pytest runs in a process of its own, with the options of the run that a job is: only what really collects
the tests knows them. :mod:`harness.pytest_plugin.collecting` writes the file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness import jsonfile
from harness.errors import HostError, UsageError

FORMAT: Final = 1

_NO_TESTS: Final = 5
"""pytest's exit status where it collects no test."""


@dataclass(frozen=True, slots=True)
class Test:
    """A test that a run would have.

    Attributes:
        id: Its node id, in a run of one architecture.
        file: Its file, relative to the root folder.
        tier: The smallest tier that runs it.
        other_arch: The same on an architecture after the first of a plan.
        cost: The seconds that its mark names; ``None`` if it names none.
        uses: What it shares with others and the first makes, with the seconds that each takes.
        needs: The capabilities that it asks of an image.
        image: Whether it uses the image under test.
        together: The same for tests that share a machine; empty for the others.
    """

    __test__ = False

    id: str
    file: str
    tier: str
    other_arch: str
    cost: float | None
    uses: dict[str, float]
    needs: tuple[str, ...]
    image: bool
    together: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What pytest collected from a suite for an image.

    Attributes:
        root: The root folder, where node ids start.
        tests: The tests of the tier.
        left_out: How many others there are, by their tier.
        files: What the file of each test depends on; see :mod:`harness.gate.trace`.
    """

    root: str = ""
    tests: tuple[Test, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def command(
    root: Path, home: Path, suite: str, *, image: str, tier: str, output: Path
) -> list[str]:
    """Return the command that collects a suite.

    Args:
        root: The project's folder, the working folder of the command.
        home: The folder that has Harness' own ``suites``.
        suite: The suite's folder, in the project or, if it has none, of Harness.
        image: The image under test.
        tier: The tier.
        output: The file to write; its folder is for the command alone.
    """
    words = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "--acceptance"]
    if (root / suite).is_dir():
        path = Path(suite)
    else:
        # As harness acceptance does: node ids read suites/...
        words.append(f"--rootdir={home}")
        path = home / suite
    return [
        *words,
        *("--collect-only", "-qq", "-n0", "-p", "no:cacheprovider"),
        *("--image", image, "--tier", tier),
        f"--evidence={output.parent / 'runs'}",
        f"--collect-json={output}",
        str(path),
    ]


def collect(
    root: Path, home: Path, suite: str, *, image: str, tier: str, folders: Sequence[Path] = ()
) -> Collection:
    """Return what a run of a suite would have.

    Args:
        root: The project's folder.
        home: The folder that has Harness' own ``suites``.
        suite: The suite's folder.
        image: The image under test.
        tier: The tier.
        folders: Folders of images besides those of the project and of Harness.

    Raises:
        UsageError: The tests cannot be collected; the message has pytest's.
        HostError: pytest was killed.
    """
    with tempfile.TemporaryDirectory(prefix="harness-plan-") as folder:
        output = Path(folder) / "collected.json"
        words = command(root, home, suite, image=image, tier=tier, output=output)
        words[-1:-1] = [f"--images={path}" for path in folders]
        process = subprocess.run(
            words,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if process.returncode < 0:
            raise HostError(
                f"the collection of {suite} was killed by signal {-process.returncode}",
                evidence=process.stdout,
            )
        if process.returncode not in (0, _NO_TESTS) or not output.exists():
            raise UsageError(
                f"the tests of {suite} cannot be collected for the image {image}"
                f" (pytest's status {process.returncode})",
                evidence="\n".join(process.stdout.splitlines()[-60:]),
                hint=f"cd {root} && python -m pytest --collect-only {suite} --image {image}",
            )
        return jsonfile.load(output, Collection, format=FORMAT)
