"""The command line, each command in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.arch import ARCHES
from harness.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120
"""Seconds without output after which a person gives up."""

COMMAND = (sys.executable, "-m", "harness.cli")


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def harness(
    *arguments: str,
    cwd: Path | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def report(*arguments: str, status: int = 0, **options: Any) -> Any:
    """Return the JSON that a command prints."""
    process = harness(*arguments, "--json", **options)
    assert process.returncode == status, process.stderr
    return json.loads(process.stdout)


class Person:
    """A person at a terminal in which a command runs.

    Args:
        terminal: The descriptor of their end of the terminal.
        process: The command.
    """

    def __init__(self, terminal: int, process: subprocess.Popen[bytes]) -> None:
        self._terminal = terminal
        self._seen = b""
        self.process = process

    def sees(self, text: str) -> None:
        """Wait until a text appears behind the last one."""
        while (at := self._seen.find(text.encode())) < 0:
            ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
            assert ready, (
                f"no {text!r}, and nothing more, behind {self._seen.decode(errors='replace')}"
            )
            try:
                more = os.read(self._terminal, 4096)
            except OSError:  # the other end is closed
                more = b""
            assert more, f"no {text!r} in {self._seen.decode(errors='replace')}"
            self._seen += more
        self._seen = self._seen[at + len(text) :]

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())


def person(*arguments: str, cwd: Path) -> contextlib.AbstractContextManager[Person]:
    """Run a command of Harness in a terminal."""
    return in_terminal(*COMMAND, *arguments, cwd=cwd, env=environment())


@contextlib.contextmanager
def in_terminal(*command: str, cwd: Path, env: Mapping[str, str]) -> Iterator[Person]:
    """Run a command in a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        try:
            yield Person(leader, process)
        finally:
            process.kill()
            os.close(leader)


# --- help and errors --------------------------------------------------------------------------


def test_the_version_is_that_of_the_package() -> None:
    assert harness("--version").stdout.startswith("harness 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    process = harness(command, "--help")
    assert process.returncode == 0, process.stderr
    assert f"usage: harness {command}" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("image",), "choose from 'acceptance', 'attach'"),
        (("images", "show"), "choose from 'list', 'build'"),
        (("images", "build", "skif"), "did you mean skiff"),
        (("images", "build", "micro:9"), "unknown version of micro '9'"),
        (("images", "build", "micro", "--arch", "x86-64"), "did you mean x86_64"),
        (("images", "path", "micro", "kernl"), "did you mean kernel"),
        (("images", "build", "a/b/c"), "NAME/VARIANT:VERSION"),
        (("images", "--images", "/none", "list"), "--images /none: there is no such folder"),
        (("images", "gc", "--all", "--max-age", "1"), "exclude each other"),
        (("states", "gc", "--budget", "much"), "argument --budget"),
        (("states", "explain", "no-such-state"), "unknown state 'no-such-state'"),
        (("shell", "micro"), "needs a terminal"),
        (("lab", "mikro"), "did you mean micro"),
        (("doctor", "--accel", "xen"), "choose from 'auto', 'kvm', 'tcg'"),
        (("acceptance", "--image", "skif", "--co", "-q"), "did you mean skiff"),
        (("acceptance", "suites/none", "--image", "micro"), "not found: suites/none"),
    ],
)
def test_wrong_usage_is_refused_with_the_choices(arguments: tuple[str, ...], message: str) -> None:
    process = harness(*arguments)
    assert process.returncode == (4 if arguments[0] == "acceptance" else 2)
    # argparse of newer Pythons, such as 3.13, puts no quotes around choices.
    assert message.replace("'", "") in process.stderr.replace("'", "")


# --- doctor -----------------------------------------------------------------------------------


def test_doctor_reports_to_people_and_to_programs() -> None:
    process = harness("doctor")
    assert process.returncode == 0, process.stdout
    assert "accel x86_64" in process.stdout
    doctor = report("doctor")
    findings = {finding["name"]: finding for finding in doctor["findings"]}
    assert doctor["ok"] is True
    assert findings["accel x86_64"]["data"]["accel"] in ("kvm", "tcg")
    assert findings["accel x86_64"]["data"]["reason"]
    assert findings["memory"]["data"]["memory"] > 0
    assert "holes" in findings["cache file system"]["text"]


def test_doctor_names_the_package_of_a_missing_qemu(tmp_path: Path) -> None:
    (tmp_path / "setpriv").symlink_to("/usr/bin/setpriv")
    process = harness("doctor", env={"PATH": str(tmp_path)})
    assert process.returncode == 3
    assert "install the package qemu-system-x86" in process.stdout


def test_doctor_boots_each_arch() -> None:
    doctor = report("doctor", "--boot")
    boots = {
        finding["name"]: finding
        for finding in doctor["findings"]
        if finding["name"].startswith("boot")
    }
    assert set(boots) == {"boot x86_64", "boot aarch64"}
    assert all(finding["ok"] for finding in boots.values()), boots


# --- images -----------------------------------------------------------------------------------


def test_images_are_built_listed_located_verified_and_collected(tmp_path: Path) -> None:
    if {name for _, name in socket.if_nameindex()} <= {"lo"}:
        pytest.skip("needs a Debian archive, to build micro: give this host or this pod a network")
    cache: dict[str, Any] = {"env": {"HARNESS_CACHE": str(tmp_path)}}
    assert "-" in harness("images", "list", **cache).stdout
    build = harness("images", "build", "micro", **cache)
    assert build.returncode == 0, build.stderr
    path = Path(harness("images", "path", "micro", "kernel", **cache).stdout.strip())
    assert path.is_file()
    assert path.is_relative_to(tmp_path)
    assert path.parent == Path(build.stdout.strip())
    lines = harness("images", "list", **cache).stdout.splitlines()
    assert any(line.startswith("micro/default:1") and "ready" in line for line in lines)

    (image,) = report("images", "build", "micro", **cache)["images"]
    assert image["artifacts"]["kernel"] == str(path)
    kernel = report("images", "path", "micro", "kernel", **cache)
    assert kernel == {**image, "artifacts": {"kernel": str(path)}}
    images = report("images", "list", **cache)["images"]
    assert [item["status"] for item in images if item["path"] == image["path"]] == ["ready"]
    assert {item["status"] for item in images if item["name"] == "skiff"} == {None}
    assert report("images", "verify", **cache)["ok"] is True

    assert "0 entries" in harness("images", "gc", **cache).stdout
    assert harness("images", "verify", **cache).returncode == 0
    preview = report("images", "gc", "--all", "--dry-run", **cache)
    assert [entry["path"] for entry in preview["removed"]] == [image["path"]]
    assert path.exists()
    with path.open("ab") as file:
        file.write(b"!")
    assert list(report("images", "verify", status=1, **cache)["damaged"]) == [path.parent.name]
    assert harness("images", "gc", "--all", **cache).returncode == 0
    assert not path.exists()


# --- lab --------------------------------------------------------------------------------------


def test_a_script_on_standard_input_boots_a_machine(tmp_path: Path) -> None:
    script = """
machine = lab.boot()
machine.os.login()
machine.console.run("echo per''son").stdout
for number in range(2):
    print("number", number)
"""
    process = harness("lab", "micro", cwd=tmp_path, stdin=script)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "'person\\n'\nnumber 0\nnumber 1\n"
    (log,) = tmp_path.glob(".harness/lab/2*/lab/micro/serial.log")
    assert "person" in log.read_text(errors="replace")


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("lab.boot('mikro')", 2, "harness: error: unknown image 'mikro'"),
        ("raise errors.PanicError('it panicked')", 1, "harness: error: it panicked"),
        ("1 / 0", 1, '  File "<stdin>", line 1, in <module>\nZeroDivisionError'),
        ("attach(None)", 2, "attach() needs a terminal"),
        ("def broken(:", 1, "SyntaxError"),
        ("exit(7)", 7, ""),
    ],
)
def test_a_script_stops_at_the_first_error(
    tmp_path: Path, script: str, status: int, message: str
) -> None:
    process = harness("lab", cwd=tmp_path, stdin=f"{script}\nprint('not reached')\n")
    assert process.returncode == status
    assert message in process.stderr
    assert ("Traceback" in process.stderr) == ("ZeroDivision" in message)
    assert "not reached" not in process.stdout
    assert not (tmp_path / ".harness").exists(), "a lab that starts nothing leaves nothing"


def test_a_person_at_the_prompt_attaches_to_a_console(tmp_path: Path) -> None:
    with person("lab", "micro", cwd=tmp_path) as prompt:
        prompt.sees("attach(machine)")
        prompt.sees(">>> ")
        prompt.types("machine = lab.boot(); machine.os.login()\r")
        prompt.sees(">>> ")
        prompt.types("attach(machine)\r")
        prompt.sees(":~# ")
        prompt.types("echo per''son\r")
        prompt.sees("person")
        prompt.sees(":~# ")
        prompt.types("\x1d")
        prompt.sees(">>> ")
        prompt.types("machine.console.run('echo $((41 + 1))x').stdout\r")
        prompt.sees("42x")
        prompt.sees(">>> ")
        prompt.types("machine.fail('true')\r")
        prompt.sees("harness: error: ")
        prompt.sees(">>> ")
        prompt.types("mach\t.name\r")
        prompt.sees("'micro'")
        prompt.sees(">>> ")
        prompt.types("\x04")
        assert prompt.process.wait(60) == 0


# --- shell and states -------------------------------------------------------------------------

STATES = '''
from harness import state

@state
def warm(lab):
    """Micro, logged in, with a file in its memory."""
    machine = lab.boot()
    machine.os.login()
    machine.console.run("echo wa''rm > /tmp/note")
    return machine
'''


def test_a_person_boots_a_machine_and_leaves_by_ctrl_bracket(tmp_path: Path) -> None:
    with person("shell", "micro", cwd=tmp_path) as shell:
        shell.sees("ssh -i ")
        shell.sees("micro login: ")
        shell.types("root\r")
        shell.sees("assword: ")
        shell.types("micro\r")
        shell.sees(":~# ")
        shell.types("echo per''son\r")
        shell.sees("person")
        shell.types("\x1d")
        shell.sees("evidence: ")
        assert shell.process.wait(60) == 0
    (log,) = tmp_path.glob(".harness/shell/2*/lab/micro/serial.log")
    assert "person" in log.read_text(errors="replace")


def test_a_person_starts_from_a_state_with_a_prompt(tmp_path: Path) -> None:
    with person("shell", "micro", "--state", "live", cwd=tmp_path) as shell:
        shell.sees("ssh -i ")
        shell.sees(":~# ")
        shell.types("echo per''son\r")
        shell.sees("person")
        shell.types("\x1d")
        shell.sees("evidence: ")
        assert shell.process.wait(60) == 0


def test_the_key_that_the_shell_prints_lets_a_person_into_a_fork(tmp_path: Path) -> None:
    script = """
from harness.cli.shell import ssh_command
machine = lab.fork(points.live)
machine.console.run("true").status
print(ssh_command(lab, machine))
import shlex, subprocess
options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
words = [*shlex.split(ssh_command(lab, machine)), *shlex.split(options), "echo", "in"]
subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
"""
    process = harness("lab", "micro", cwd=tmp_path, stdin=script)
    assert process.returncode == 0, process.stderr
    assert "'in\\n'" in process.stdout, process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--state", "lvie"), "did you mean live"),
        (("--state", "live", "--cpus", "2"), "--cpus and --state exclude each other"),
        (("--state", "live", "--disk", "1GiB"), "--disk and --state exclude each other"),
        (("--disk", "/none.qcow2"), "there is no such file"),
    ],
)
def test_a_wrong_start_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with person("shell", "micro", *arguments, cwd=tmp_path) as shell:
        shell.sees(message)
        assert shell.process.wait(60) == 2


def test_a_saved_state_is_listed_explained_started_and_removed(tmp_path: Path) -> None:
    (tmp_path / "mystates.py").write_text(STATES)
    script = "import mystates; lab.state(mystates.warm).entry"
    process = harness("lab", "micro", cwd=tmp_path, stdin=script)
    assert process.returncode == 0, process.stderr
    entry = process.stdout.strip().strip("'")

    (saved,) = (item for item in report("states", "list")["states"] if item["id"] == entry)
    assert (saved["name"], saved["status"], saved["kind"]) == ("warm", "ready", "live")
    assert saved["bytes"] > 0
    assert entry in harness("states", "list").stdout
    explained = report("states", "explain", entry)
    assert explained["state"]["id"] == entry
    assert explained["inputs"]["image: name"] == "micro/default:1"
    assert explained["others"] == []
    compared = report("states", "explain", entry, entry)
    assert [other["differences"] for other in compared["others"]] == [[]]
    assert "nothing differs" in harness("states", "explain", entry, entry).stdout

    with person("shell", "micro", "--state", "warm", cwd=tmp_path) as shell:
        shell.sees(":~# ")
        shell.types("cat /tmp/note\r")
        shell.sees("warm")
        in_use = report("states", "rm", entry, status=1)
        assert [item["id"] for item in in_use["in_use"]] == [entry]
        shell.types("\x1d")
        assert shell.process.wait(60) == 0
    removed = report("states", "rm", entry)
    assert [item["id"] for item in removed["removed"]] == [entry]
    assert entry not in harness("states", "list").stdout


def test_gc_of_states_reports_json(tmp_path: Path) -> None:
    assert report("states", "gc", env={"HARNESS_CACHE": str(tmp_path)}) == {
        "removed": [],
        "bytes": 0,
    }


# --- acceptance -------------------------------------------------------------------------------

TESTS = """
from harness import errors
from harness.deadline import UNSCALED

def test_passes(lab):
    machine = lab.boot()
    machine.os.login()
    assert machine.console.run("echo hello").stdout == "hello\\n"

def test_product(lab):
    assert 1 + 1 == 3

def test_panic(lab):
    raise errors.PanicError("the kernel panicked")

def test_itself(lab):
    len(3)

def test_timeout(lab):
    machine = lab.boot()
    # Without a scale: on a busy host another deadline would be the host's fault.
    machine.console.expect("never printed", UNSCALED.after(0.01))

def test_infra(lab):
    raise errors.QemuStartError("QEMU does not start")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that has a test file and nothing else."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_it.py").write_text(TESTS)
    return folder


@pytest.mark.parametrize(
    ("tests", "status"),
    [
        ("passes", 0),
        ("product", 1),
        ("panic", 1),
        ("itself", 10),
        ("infra", 11),
        ("timeout", 12),
        ("infra or timeout", 12),
        ("infra or timeout or itself", 10),
        ("passes or infra or timeout or itself or product", 1),
        ("none", 5),
    ],
)
def test_the_status_says_whose_fault_a_failure_is(project: Path, tests: str, status: int) -> None:
    process = harness("acceptance", "test_it.py", "--image", "micro", "-k", tests, cwd=project)
    assert process.returncode == status, process.stdout + process.stderr


def test_the_results_of_a_run_are_a_file(project: Path) -> None:
    selection = ("-k", "passes or infra", "--evidence", "runs")
    harness("acceptance", "test_it.py", "--image", "micro", *selection, cwd=project)
    results = json.loads((project / "runs" / "latest" / "results.json").read_text())
    assert results["status"] == 11
    assert results["verdicts"] == {"passed": 1, "infra": 1}
    assert {test["id"] for test in results["tests"]} == {
        "test_it.py::test_passes",
        "test_it.py::test_infra",
    }


def test_one_run_judges_an_image_on_each_architecture(tmp_path: Path) -> None:
    """The scenario is Harness' own; each architecture has its state, saved and forked."""
    (tmp_path / "test_it.py").write_text(
        "from harness import points\n\n"
        "def test_live(lab, request):\n"
        "    machine = lab.fork(points.live)\n"
        "    for run in machine.console.run, machine.ssh.run:\n"
        "        arch = run('uname -m').stdout.strip()\n"
        "        assert request.node.name == f'test_live[{arch}]'\n"
    )
    process = harness("acceptance", "test_it.py", "--image", "micro", "--arch", "all", cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads((tmp_path / ".harness/runs/latest/results.json").read_text())
    assert results["matrix"] == {"test_it.py": {arch: {"passed": 1} for arch in ARCHES}}
    assert {test["id"]: test["arch"] for test in results["tests"]} == {
        f"test_it.py::test_live[{arch}]": arch for arch in ARCHES
    }
    assert all(each["qemu"] and each["accel"] for each in results["arches"].values())


@pytest.mark.parametrize(
    "arguments",
    [
        ("suites/boot/test_live.py",),
        ("suites/boot/test_live.py::test_power_on_to_login_on_the_console",),
        ("-k", "test_power_on_to_login_on_the_console"),
        ("-k", "test_power_on_to_login_on_the_console", "-n", "1", "--accel", "tcg"),
    ],
)
def test_the_suites_of_harness_run_from_any_folder(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """A folder that has the name of an option's value is not taken for a path of tests."""
    (tmp_path / "tcg").mkdir()
    selection = ("-k", "test_power_on_to_login_on_the_console", "--image", "micro")
    process = harness("acceptance", *arguments, *selection, "-v", cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads((tmp_path / ".harness/runs/latest/results.json").read_text())
    assert [test["id"] for test in results["tests"]] == [
        "suites/boot/test_live.py::test_power_on_to_login_on_the_console"
    ]
