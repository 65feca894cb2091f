"""The machines of a running test, reached from other processes of the same user."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Project
from harness.paths import cache_dir
from tests.integration.test_cli import PATIENCE, ROOT, Person, in_terminal

TESTS = """
def test_it(lab):
    machine = lab.boot("micro", display=True)
    machine.os.login()
    machine.wait_ready()
    assert machine.succeed("echo -n seen") == "other"
"""
OPTIONS = ("-q", "--image", "micro", "--arch", "x86_64", "-p", "no:cacheprovider", "test_it.py")


def started(project: Project, *command: str) -> contextlib.AbstractContextManager[Person]:
    """Run a command in a terminal, in the project and with its environment."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **project.env}
    return in_terminal(*command, cwd=project.folder, env=env)


def harness(project: Project, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **project.env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )


def listed(project: Project) -> list[dict[str, Any]]:
    answer = harness(project, "ps", "--json")
    assert answer.returncode == 0, answer.stderr
    return list(json.loads(answer.stdout)["runs"])


def end_of(person: Person) -> int:
    """Read a terminal to its end, and return the status of its process."""
    with contextlib.suppress(OSError):
        while os.read(person._terminal, 65536):
            pass
    return person.process.wait(PATIENCE)


@pytest.fixture
def looked_at(project: Project, tmp_path: Path) -> Project:
    """Return a project whose sockets are in a folder of its own, and which sees no other run's.

    A cache has sockets, too: this one has all else of the host's.
    """
    runtime, cache = tmp_path / "runtime", tmp_path / "cache"
    runtime.mkdir()
    cache.mkdir()
    for path in cache_dir().iterdir():
        if path.name != "live":
            (cache / path.name).symlink_to(path)
    project.env["XDG_RUNTIME_DIR"] = str(runtime)
    project.env["HARNESS_CACHE"] = str(cache)
    project.write("test_it.py", TESTS)
    return project


def run(project: Project, *options: str) -> contextlib.AbstractContextManager[Person]:
    return started(project, sys.executable, "-m", "pytest", *OPTIONS, *options)


def sockets(project: Project) -> list[Path]:
    return sorted(
        path
        for path in (Path(project.env["XDG_RUNTIME_DIR"]) / "harness").iterdir()
        if path.name != "lock"
    )


def test_a_paused_test_is_reached_and_goes_on(looked_at: Project) -> None:
    with run(looked_at, "--pause-on-failure", "--live", "--bundle", "none") as person:
        # --live: the guest's console, by its name.
        person.sees("micro| ")
        person.sees("paused: test_it.py::test_it failed")
        person.sees("Enter or 'harness continue")

        (process,) = listed(looked_at)
        assert process["paused"]["test"] == "test_it.py::test_it"
        (machine,) = process["machines"]
        assert (machine["machine"], machine["state"]) == ("micro", "running")
        assert machine["test"] == "test_it.py::test_it"
        line = harness(looked_at, "ps").stdout.decode()
        assert "micro x86_64" in line
        assert machine["ssh"] in line

        # A console with a prompt, twice: the first person leaves no trace.
        for word in ("first", "second"):
            with started(
                looked_at, sys.executable, "-m", "harness.cli", "attach", "micro"
            ) as other:
                other.sees("Ctrl-] leaves")
                other.sees("# ")
                other.types(f"echo $((40 + 2))-{word}\n")
                other.sees(f"42-{word}")
                refusal = harness(looked_at, "ssh", "nobody")
                assert b"no running machine is called 'nobody'" in refusal.stderr
                assert b"/micro  (test_it.py::test_it)" in refusal.stderr
                other.types("\x1d")
                other.sees("left")
                assert end_of(other) == 0

        answer = harness(looked_at, "ssh", "micro", "echo $((40 + 2)); exit 7")
        assert (answer.returncode, answer.stdout) == (7, b"42\n"), answer.stderr

        answer = harness(looked_at, "screenshot", "micro", "-o", "seen.png")
        assert answer.returncode == 0, answer.stderr
        picture = (looked_at.folder / "seen.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")

        answer = harness(looked_at, "continue")
        assert answer.returncode == 0, answer.stderr
        person.sees("1 failed")
        assert end_of(person) == 1
    assert sockets(looked_at) == []
    assert listed(looked_at) == []


def test_a_killed_run_leaves_nothing(looked_at: Project) -> None:
    with run(looked_at, "--pause-on-failure", "--bundle", "none") as person:
        person.sees("Enter or 'harness continue")
        assert harness(looked_at, "ssh", "micro", "true").returncode == 0
        assert len(sockets(looked_at)) == 2  # the key is there
        (process,) = listed(looked_at)
        qemu = process["machines"][0]["pid"]
        with started(looked_at, sys.executable, "-m", "harness.cli", "attach", "micro") as other:
            other.sees("Ctrl-] leaves")
            other.sees("# ")
            os.kill(person.process.pid, signal.SIGKILL)
            other.sees("the console has ended")
            assert end_of(other) == 0
        person.process.wait(PATIENCE)
        assert listed(looked_at) == []
        assert sockets(looked_at) == []
        wait_for_end(qemu)


@pytest.mark.parametrize(
    ("key", "says", "status"), [(True, "1 failed", 1), (False, "Interrupt", 2)]
)
def test_enter_goes_on_and_an_interrupt_ends_the_run(
    looked_at: Project, key: bool, says: str, status: int
) -> None:
    with run(looked_at, "--pause-on-failure", "--bundle", "none") as person:
        person.sees("Enter or 'harness continue")
        if key:
            person.types("\n")
        else:
            # The terminal is not the process' own, so Ctrl-C is a signal here.
            os.kill(person.process.pid, signal.SIGINT)
        person.sees(says)
        assert end_of(person) == status
    assert sockets(looked_at) == []


def test_a_worker_is_reached_as_well(looked_at: Project) -> None:
    with run(looked_at, "-n", "1", "--pause-on-failure", "--live", "--bundle", "none") as person:
        person.sees("micro| ")
        person.sees("paused: test_it.py::test_it failed")
        person.sees("  'harness continue ")  # and no Enter
        (process,) = listed(looked_at)
        assert process["worker"] == "gw0"
        answer = harness(looked_at, "continue", f"{process['run']}/gw0")
        assert answer.returncode == 0, answer.stderr
        person.sees("1 failed")
        assert end_of(person) == 1


def test_without_a_socket_nothing_pauses(looked_at: Project) -> None:
    (Path(looked_at.env["XDG_RUNTIME_DIR"]) / "harness").touch()
    result = looked_at.pytest(*OPTIONS, "--pause-on-failure", "--bundle", "none")
    assert "no pause: nobody can reach the machines" in result.text
    assert (result.status, "1 failed" in result.text) == (1, True)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is no child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], PATIENCE)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)
