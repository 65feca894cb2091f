"""The waits of a developer before a test starts: imports and collection."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from bench.core import Budget, Context, Row, paired
from bench.side import ROOT

IMPORT = Budget(0.15)
COLLECT = Budget(1.0)

NO_PEER = ("-p", "no:labgrid")
"""labgrid installs a plugin of pytest, which would load itself into both sides."""


def run(context: Context) -> list[Row]:
    """Time imports in fresh interpreters, and pytest's collection of all suites."""
    return _imports(context) + _collection(context)


def _imports(context: Context) -> list[Row]:
    def seconds(module: str) -> float:
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return float(process.stdout)

    modules = ("harness", "harness.machine", "harness.cli")
    sides = {name: partial(seconds, name) for name in modules}
    for side in sides.values():
        side()  # compiles the bytecode once
    samples = paired(context.pick(15, 5), sides, context.say)
    return [
        Row("import", "harness", "s", samples["harness"], budget=IMPORT, note="in the process"),
        Row(
            "import",
            "harness.machine",
            "s",
            samples["harness.machine"],
            budget=IMPORT,
            note="the import behind a scenario's machine; it has the same budget",
        ),
        Row("import", "harness.cli", "s", samples["harness.cli"]),
    ]


def _collection(context: Context) -> list[Row]:
    empty = context.folder / "empty"
    empty.mkdir()
    (empty / "test_one.py").write_text("def test_one(): pass\n")
    plain = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(empty), str(empty)]

    def collect(*arguments: str) -> float:
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", *NO_PEER, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(
                f"pytest could not collect: {(process.stdout + process.stderr)[-2000:]}"
            )
        return seconds

    sides = {"bare": partial(collect, *plain), "harness": partial(collect, "suites")}
    for side in sides.values():
        side()
    samples = paired(context.pick(9, 3), sides, context.say)
    return [
        Row(
            "collection of all suites",
            "harness",
            "s",
            samples["harness"],
            samples["bare"],
            COLLECT,
            "the whole of 'pytest --collect-only suites', interpreter included, without"
            " labgrid's plugin, which is only installed for the comparison",
        ),
        Row(
            "collection of all suites",
            "bare pytest",
            "s",
            samples["bare"],
            note="one test, no conftest, the same plugins",
        ),
    ]
