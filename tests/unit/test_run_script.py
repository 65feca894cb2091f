"""The entry script, on hosts of stubs: each test has a PATH and a checkout of its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import need, needs

ROOT = Path(__file__).resolve().parents[2]

# Programs of the real host. The first are of coreutils; Python alone needs no others.
COREUTILS = (
    *("cat", "chmod", "cp", "cut", "date", "dirname", "env", "head", "mkdir", "mktemp", "mv", "rm"),
    *("sha256sum", "sort", "tail", "tee", "tr"),
)
REAL = (*COREUTILS, "awk", "flock", "grep", "sed", "sh")
# The programs that a full setup looks for, with their packages.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "swtpm": "swtpm",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "busybox": "busybox",
    "cpio": "cpio",
    "xz": "xz-utils",
    "zstd": "zstd",
    "ssh-keygen": "openssh-client",
    "curl": "curl",
}
PYTHON = """
case $1$2 in
    -c*"(3, 11)"*) [ "${OLD_PYTHON:-}" = "" ] ;;
    -mvenv)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        for tool in harness lint-imports mypy ruff sphinx-build; do
            printf '#!/bin/sh\\necho %s "$@"\\n' "$tool" >"$3/bin/$tool"
            chmod +x "$3/bin/$tool"
        done ;;
    -mpip) echo "pip $*" >>"$LOG"; [ "${PIP_FAILS:-}" = "" ] ;;
    -mpytest) shift 2; echo "pytest $*" ;;
    .ci/subjects.py*) echo "subjects" ;;
    --version) echo "Python 3.11.9" ;;
esac
"""


class Host:
    """A host of stubs with a checkout."""

    def __init__(self, base: Path) -> None:
        self.bin = base / "bin"
        self.checkout = base / "checkout"
        self.log = base / "log"
        self.bin.mkdir()
        (self.checkout / "requirements").mkdir(parents=True)
        self.log.touch()
        for name in ("run", "pyproject.toml", "requirements/dev.lock", "requirements/bench.lock"):
            shutil.copy(ROOT / name, self.checkout / name)
        # The script also looks for the real host's Python, by its path.
        script = self.checkout / "run"
        text = script.read_text()
        assert text.count("/usr/bin/python3") == 2
        script.write_text(text.replace("/usr/bin/python3", "/nowhere/python3"))
        for name in REAL:
            if program := shutil.which(name):
                (self.bin / name).symlink_to(program)
        self.stub("uname", "echo Linux")
        self.stub("id", "echo 0")
        for name in TOOLS:
            self.stub(name, "echo QEMU emulator version 9.2.1")
        self.stub("python3", PYTHON)

    def stub(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink(missing_ok=True)

    def run(
        self, *arguments: str, folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "sh"), str(self.checkout / "run"), *arguments],
            cwd=folder or self.checkout,
            env={"PATH": str(self.bin), "LOG": str(self.log), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    @property
    def pip_runs(self) -> int:
        return sum(line.startswith("pip ") for line in self.log.read_text().splitlines())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    need("sed")
    return Host(tmp_path)


def test_without_a_command_it_prints_its_usage_and_does_nothing(host: Host) -> None:
    process = host.run()
    assert process.returncode == 0
    assert process.stdout.startswith("usage: ./run COMMAND")
    assert not (host.checkout / ".venv").exists()


def test_an_unknown_command_is_a_usage_error(host: Host) -> None:
    process = host.run("tset")
    assert process.returncode == 2
    assert "unknown command tset" in process.stdout
    assert not (host.checkout / ".venv").exists()


def test_the_first_setup_reports_and_the_second_is_quiet(host: Host) -> None:
    first = host.run("setup")
    assert first.returncode == 0, first.stdout
    assert "run: making .venv with Python 3.11.9" in first.stdout
    before = host.pip_runs
    assert before > 0
    second = host.run("setup")
    assert (second.returncode, second.stdout) == (0, "")
    assert host.pip_runs == before


def test_pip_checks_the_hashes_of_the_dependencies(host: Host) -> None:
    host.run("setup")
    assert "--require-hashes -r" in host.log.read_text()


@pytest.mark.parametrize("name", ["run", "pyproject.toml", "requirements/dev.lock"])
def test_a_changed_input_makes_a_new_environment(host: Host, name: str) -> None:
    host.run("setup")
    with (host.checkout / name).open("a") as file:
        file.write("# changed\n")
    assert "making .venv" in host.run("setup").stdout


def test_a_setup_that_failed_starts_over(host: Host) -> None:
    failed = host.run("setup", PIP_FAILS="1")
    assert failed.returncode == 1
    assert "pip could not install" in failed.stdout
    assert "making .venv" in host.run("setup").stdout
    assert host.run("setup").stdout == ""


def test_without_apt_it_names_the_packages_and_stops(host: Host) -> None:
    host.remove("swtpm", "xz")
    process = host.run("setup")
    assert process.returncode == 1
    assert "missing, by Debian's names: swtpm xz-utils" in process.stdout
    assert "try: install them" in process.stdout
    assert not (host.checkout / ".venv").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_program_is_named_by_its_package(host: Host, tool: str) -> None:
    host.remove(tool)
    assert f"by Debian's names: {TOOLS[tool]}\n" in host.run("setup").stdout


@pytest.mark.parametrize(
    ("version", "enough"),
    [("7.2.11 (Debian 1:7.2)", False), ("8.1.9", False), ("8.2.0", True), ("10.0.2", True)],
)
def test_an_old_qemu_counts_as_missing(host: Host, version: str, enough: bool) -> None:
    host.stub("qemu-system-x86_64", f"echo QEMU emulator version {version}")
    process = host.run("setup")
    assert ("by Debian's names: qemu-system-x86\n" in process.stdout) is not enough


def test_an_old_python_is_refused(host: Host) -> None:
    process = host.run("setup", OLD_PYTHON="1")
    assert process.returncode == 1
    assert "no Python 3.11 or newer" in process.stdout


def test_a_shim_that_does_not_run_is_skipped(host: Host) -> None:
    host.stub("python3.13", PYTHON)
    host.stub("python3", "echo pyenv: not found >&2; exit 127")
    (host.bin / "python3.12").symlink_to("/nowhere")
    process = host.run("setup")
    assert f"at {host.bin}/python3.13\n" in process.stdout


def test_another_system_is_refused(host: Host) -> None:
    host.stub("uname", "echo Darwin")
    process = host.run("setup")
    assert process.returncode == 1
    assert "Harness runs on Linux, this is Darwin" in process.stdout


def wait_for(process: subprocess.Popen[str], words: str, never: str = "\0") -> None:
    assert process.stderr is not None
    output = ""
    while words not in output:
        line = process.stderr.readline()
        assert line, f"ended without {words!r}: {output}"
        output += line
        assert never not in output


@pytest.mark.parametrize("program", ["flock", "python"])
def test_two_runs_at_once_set_up_once(host: Host, tmp_path: Path, program: str) -> None:
    # The first venv waits until the second run waits for the lock.
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fifo = os.open(gate, os.O_RDWR)
    # Without flock(1), Python takes the lock.
    real = f'case $1$2 in -c*fcntl.flock*) exec "{sys.executable}" "$@" ;; esac'
    host.stub("python3", f'{real}\ncase $1$2 in -mvenv) read line <"{gate}" ;; esac\n{PYTHON}')
    host.remove("flock")
    if program == "flock":
        need("flock")
        (host.bin / "flock").symlink_to(shutil.which("flock") or "/nowhere")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(host.bin / "sh"), str(host.checkout / "run"), "setup"],
            env={"PATH": str(host.bin), "LOG": str(host.log)},
            stderr=subprocess.PIPE,
            text=True,
        )

    with start() as first:
        wait_for(first, "making .venv")
        with start() as second:
            try:
                wait_for(second, "waiting for it", never="making .venv")
            finally:
                os.write(fifo, b"go\ngo\n")
            assert second.stderr is not None
            rest = second.stderr.read()
        assert first.stderr is not None
        first.stderr.read()
    os.close(fifo)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "making .venv" not in rest


def test_the_command_line_gets_its_arguments_unchanged(host: Host) -> None:
    process = host.run("harness", "shell", "a b", "--x=*")
    assert process.stdout.splitlines()[-1] == "harness shell a b --x=*"


# --- Python alone -------------------------------------------------------------------------------

PYTHON_ONLY = {
    "lint": [
        "ruff check .",
        "ruff format --check .",
        "lint-imports --no-cache --no-logo",
        "subjects",
    ],
    "type": ["mypy --strict"],
    "unit": [
        "pytest -c pyproject.toml -o testpaths=tests/unit --junit-xml=.harness/unit.xml -n auto"
    ],
    "fix": ["ruff check --fix .", "ruff format ."],
}


@pytest.fixture
def bare(tmp_path: Path) -> Host:
    """A host with Python, sh, coreutils and apt, and with none of QEMU's programs; no root, no sudo."""
    host = Host(tmp_path)
    for path in host.bin.iterdir():
        if path.name not in (*COREUTILS, "sh", "python3"):
            path.unlink()
    host.stub("uname", "echo Linux")
    host.stub("apt-get", 'echo "apt-get $*" >>"$LOG"; exit 100')
    return host


@pytest.mark.parametrize("command", PYTHON_ONLY)
def test_these_commands_need_python_alone(bare: Host, command: str) -> None:
    process = bare.run(command)
    assert process.returncode == 0, process.stdout
    assert "apt-get" not in bare.log.read_text()
    assert process.stdout.splitlines()[-len(PYTHON_ONLY[command]) :] == PYTHON_ONLY[command]


def test_the_manual_needs_python_alone(bare: Host) -> None:
    process = bare.run("docs")
    assert process.returncode == 0, process.stdout
    assert "apt-get" not in bare.log.read_text()
    assert "sphinx-build --fail-on-warning" in process.stdout


@pytest.mark.parametrize(
    "command", ["integration", "acceptance", "gate", "test", "bench", "harness"]
)
def test_the_others_look_for_the_programs_of_the_host(host: Host, command: str) -> None:
    host.remove("swtpm")
    process = host.run(command)
    assert process.returncode == 1
    assert "missing, by Debian's names: swtpm" in process.stdout


def test_without_python_the_message_names_the_packages(bare: Host) -> None:
    bare.remove("python3")
    process = bare.run("unit")
    assert process.returncode == 1
    assert "no Python 3.11 or newer" in process.stdout
    assert "python3-venv" in process.stdout
    assert "apt-get" not in bare.log.read_text()


def test_a_full_setup_uses_the_environment_of_a_python_only_one(host: Host) -> None:
    host.run("unit")
    before = host.pip_runs
    assert host.run("setup").stdout == ""
    assert host.pip_runs == before


# --- phases -------------------------------------------------------------------------------------

PYTEST = "pytest -c pyproject.toml"
"""The beginning of each call of pytest. The plugin is an entry point and needs no option."""


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (("unit",), "testpaths=tests/unit --junit-xml=.harness/unit.xml -n auto"),
        (
            ("integration", "-x"),
            "testpaths=tests/integration --junit-xml=.harness/integration.xml --im",
        ),
        (
            ("unit", "./tests/unit/test_x.py"),
            "testpaths=tests/unit --junit-xml=.harness/unit.xml ./tests/unit/te",
        ),
    ],
)
def test_a_phase_runs_pytest_on_its_folder(
    host: Host, arguments: tuple[str, ...], called: str
) -> None:
    last = host.run(*arguments).stdout.splitlines()[-1]
    assert last.startswith(f"{PYTEST} -o {called}")
    assert ("-n auto" in last) == (len(arguments) == 1), "a whole phase runs on several workers"


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ((), "-n auto"),
        (("--tier", "smoke"), "--tier smoke -n auto"),
        (("--tier=nightly",), "--tier=nightly -n auto"),
        (("--all",), "--all -n auto"),
        (("--tier", "smoke", "--arch", "all"), "--tier smoke --arch all -n auto"),
        (("--arch=aarch64",), "--arch=aarch64 -n auto"),
        (("--arch",), "--arch"),
        (("--tier", "smoke", "-x"), "--tier smoke -x"),
        (("--image", "skiff"), "--image skiff"),
        (("suites/boot", "-k", "ssh"), "suites/boot -k ssh"),
        (("--evidence", "/tmp"), "--evidence /tmp"),
    ],
)
def test_acceptance_is_that_of_the_command_line(
    host: Host, arguments: tuple[str, ...], called: str
) -> None:
    last = host.run("acceptance", *arguments).stdout.splitlines()[-1]
    assert last == f"harness acceptance {called}"


@pytest.mark.parametrize(
    ("arguments", "judges"),
    [
        (("plan.json", "results"), True),
        (("--rerun", "again.json", "--annotations", "plan.json", "results"), True),
        (("--summary=s.md", "--json", "plan.json", "results"), True),
        (("--help",), True),
        ((), False),
        (("--changed-since", "origin/main", "--image", "skiff"), False),
        (("--plan", "plan.json", "--json"), False),
        (("--plan=plan.json", "--pytest", "-x --accel tcg"), False),
    ],
)
def test_to_judge_needs_python_alone_and_to_run_a_gate_needs_the_programs(
    host: Host, tmp_path: Path, arguments: tuple[str, ...], judges: bool
) -> None:
    called = host.run("gate", *arguments, folder=tmp_path).stdout.splitlines()[-1]
    # What is judged is the caller's; what runs is the checkout's.
    words = [
        word.replace("plan.json", f"{tmp_path}/plan.json") if not judges else word
        for word in arguments
    ]
    assert called == " ".join(["harness gate", *words])
    host.remove("swtpm")
    process = host.run("gate", *arguments, folder=tmp_path)
    assert process.returncode == (0 if judges else 1), process.stdout


OPTIONS = (
    "--images",
    "--evidence",
    "--recording",
    "--junit-xml",
    "--basetemp",
    "--ignore",
    "--plan",
)


@pytest.mark.parametrize("command", ["unit", "integration", "acceptance", "pytest"])
@pytest.mark.parametrize("option", OPTIONS)
def test_paths_in_options_are_the_callers(
    host: Host, tmp_path: Path, command: str, option: str
) -> None:
    elsewhere = tmp_path / "a folder"
    elsewhere.mkdir()
    (host.checkout / "images").mkdir()
    for join in (" ", "="):
        words = f"{option}{join}images".split()
        last = host.run(command, "-q", *words, folder=elsewhere).stdout.splitlines()[-1]
        assert last.endswith(f"-q {option}{join}{elsewhere}/images")
        last = host.run(command, "-q", *words).stdout.splitlines()[-1]
        assert last.endswith(f"-q {option}{join}images")
    absolute = host.run(command, option, "/x y", folder=elsewhere).stdout.splitlines()[-1]
    assert absolute.endswith(f"{option} /x y")


def test_a_test_is_the_checkouts_or_the_callers(host: Host, tmp_path: Path) -> None:
    for folder in (host.checkout / "suites", tmp_path / "own"):
        folder.mkdir()
        (folder / "test_x.py").touch()

    def called(*words: str) -> str:
        return host.run("pytest", *words, folder=tmp_path).stdout.splitlines()[-1]

    assert called("suites/test_x.py::test_a").endswith(" suites/test_x.py::test_a")
    assert called("own/test_x.py::test_a").endswith(f" {tmp_path}/own/test_x.py::test_a")
    assert called("none/test_x.py").endswith(" none/test_x.py")
    assert called("-k", "own/test_x.py").endswith(" -k own/test_x.py")


@pytest.fixture
def kite(host: Host, tmp_path: Path) -> Path:
    """Return a project that has the checkout as its submodule."""
    folder = tmp_path / "kite"
    (folder / "tools").mkdir(parents=True)
    (folder / "tools" / "harness").symlink_to(host.checkout)
    shutil.copy(ROOT / "runners" / "run", folder / "run")
    return folder


def kites(host: Host, kite: Path, *words: str, folder: Path | None = None) -> str:
    """Return the last line of a command of the project's own script."""
    process = subprocess.run(
        [host.bin / "sh", kite / "run", *words],
        cwd=folder or kite,
        env={"PATH": str(host.bin), "LOG": str(host.log)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return process.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", ["acceptance", "gate", "pytest"])
def test_a_project_with_harness_as_a_submodule_runs_its_own_tests(
    host: Host, kite: Path, tmp_path: Path, command: str
) -> None:
    host.run("setup")
    for name in ("harness", "python"):
        program = host.checkout / ".venv/bin" / name
        program.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$PWD: $*"\n')
    (kite / "suites").mkdir()
    (kite / "suites" / "test_x.py").touch()
    tests = () if command == "gate" else ("suites/test_x.py",)
    called = kites(host, kite, command, "--plan", "plan.json", *tests)
    assert called.startswith(f"{kite}: ")
    assert called.endswith(" ".join(["--plan plan.json", *tests]))
    # From another folder: its paths, but the project's tests.
    called = kites(host, kite, command, "--plan", "plan.json", *tests, folder=tmp_path)
    assert called.startswith(f"{kite}: ")
    assert called.endswith(" ".join([f"--plan {tmp_path}/plan.json", *tests]))


def test_a_project_s_own_checks_are_its_own(host: Host, kite: Path) -> None:
    for name in ("lint", "type", "unit", "integration"):
        assert kites(host, kite, name) == f"run: this project has no {name} yet"
    assert not host.log.read_text()


def test_pytest_gets_its_arguments_unchanged(host: Host) -> None:
    assert host.run("pytest", "-k", "x").stdout.splitlines()[-1] == f"{PYTEST} -k x"


def test_all_phases_run_in_order_and_pytest_has_the_last_word(host: Host) -> None:
    process = host.run("test")
    assert process.returncode == 0
    beginnings = ("== ", "pytest", "harness")
    lines = [line for line in process.stdout.splitlines() if line.startswith(beginnings)]
    names = [line.removeprefix(f"{PYTEST} -o testpaths=").removeprefix("== ") for line in lines]
    assert [line.split()[0].rstrip(";") for line in names] == [
        *("lint", "type", "unit", "tests/unit"),
        *("integration", "tests/integration", "smoke", "harness"),
    ]
    assert "passed: lint" in lines[-2]
    assert process.stdout.splitlines()[-1] == "harness acceptance --tier smoke --arch all -n auto"


@pytest.mark.parametrize(("fails", "after"), [("ruff", "type"), ("mypy", "unit")])
def test_the_first_failure_ends_the_run_with_a_summary(host: Host, fails: str, after: str) -> None:
    host.run("setup")
    tool = host.checkout / ".venv" / "bin" / fails
    tool.write_text("#!/bin/sh\nexit 3\n")
    process = host.run("test")
    assert process.returncode == 3
    assert f"== {after}" not in process.stdout
    assert "failed" in process.stdout.splitlines()[-1]
    assert f"not run: {after}" in process.stdout.splitlines()[-1]


def test_a_failure_of_pytest_has_the_last_word(host: Host) -> None:
    host.run("setup")
    python = host.checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$2" != pytest ] || { echo 1 failed; exit 1; }\n')
    process = host.run("test")
    assert process.returncode == 1
    assert process.stdout.splitlines()[-1] == "1 failed"
    assert "== integration" not in process.stdout


# --- apt ----------------------------------------------------------------------------------------

needs_debian = pytest.mark.skipif(
    not Path("/etc/os-release").exists() or shutil.which("dpkg") is None,
    reason="needs the os-release and dpkg of a Debian or Ubuntu host",
)

APT_GET = """
echo "apt-get $*" >>"$LOG"
code=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
case "$*" in
    *indextargets*)
        echo "$code $code-security main http://archive.invalid/debian-security"
        echo "$code $code contrib http://archive.invalid/other"
        echo "$code $code main http://archive.invalid/debian" ;;
    *" update") exit 100 ;;
    *install*swtpm*) cp "$BIN/qemu-img" "$BIN/swtpm" ;;
    *install*qemu-system-x86*) cp "$BIN/qemu-img" "$BIN/qemu-system-x86_64" ;;
esac
"""


@pytest.fixture
def debian(host: Host) -> Host:
    """A host with apt. One of its sources is out of reach, so every update fails."""
    host.stub("apt-get", APT_GET)
    host.stub("apt-cache", 'echo "  Candidate: 1:9.2+ds-1"')
    host.stub("sudo", 'echo "sudo" >>"$LOG"; exec "$@"')
    (host.bin / "dpkg").symlink_to(shutil.which("dpkg") or "/nowhere")
    # The real host may lack these files.
    script = host.checkout / "run"
    script.write_text(
        "".join(
            line
            for line in script.read_text().splitlines(keepends=True)
            if not line.startswith(("/usr/share/", "/etc/ssl/"))
        )
    )
    return host


@needs_debian
def test_apt_installs_the_missing_packages_alone(debian: Host) -> None:
    debian.remove("swtpm")
    process = debian.run("setup", BIN=str(debian.bin))
    assert process.returncode == 0, process.stdout
    calls = [line for line in debian.log.read_text().splitlines() if "install -y" in line]
    assert [call.split("--no-install-recommends ")[1] for call in calls] == ["swtpm"]
    assert "sudo" not in debian.log.read_text().split()


@needs_debian
def test_apt_runs_through_sudo_unless_root_calls(debian: Host) -> None:
    debian.stub("id", "echo 1000")
    debian.remove("swtpm")
    debian.run("setup", BIN=str(debian.bin))
    assert "sudo" in debian.log.read_text().split()


@needs_debian
def test_without_root_and_sudo_the_message_says_what_to_do(debian: Host) -> None:
    debian.stub("id", "echo 1000")
    debian.remove("swtpm", "sudo")
    process = debian.run("setup", BIN=str(debian.bin))
    assert process.returncode == 1
    assert "neither root nor sudo" in process.stdout


@needs_debian
def test_a_failed_installation_is_reported(debian: Host) -> None:
    debian.stub("apt-get", 'case "$*" in *install*) echo E: broken; exit 100 ;; esac')
    debian.remove("swtpm")
    process = debian.run("setup", BIN=str(debian.bin))
    assert process.returncode == 1
    assert "E: broken" in process.stdout
    assert "apt-get could not install: swtpm" in process.stdout


@needs_debian
def test_an_old_qemu_comes_from_backports_of_the_hosts_own_site(
    debian: Host, tmp_path: Path
) -> None:
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("needs a Debian host: backports are Debian's")
    source = tmp_path / "harness-backports.list"
    script = debian.checkout / "run"
    script.write_text(
        script.read_text().replace("/etc/apt/sources.list.d/harness-backports.list", str(source))
    )
    debian.stub(
        "apt-cache",
        f'case "$*" in *-backports*) [ -e "{source}" ] || exit 100; echo "Candidate: 1:10.0~bpo" ;;'
        ' *) echo "Candidate: 1:7.2" ;; esac',
    )
    debian.stub("qemu-system-x86_64", "echo QEMU emulator version 7.2.1")
    process = debian.run("setup", BIN=str(debian.bin))
    assert process.returncode == 0, process.stdout
    line = source.read_text()
    assert line.startswith("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ")
    assert " http://archive.invalid/debian " in line
    assert line.endswith("-backports main\n")
    assert any("-backports qemu-system-x86" in call for call in debian.log.read_text().splitlines())


# --- the files themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_the_scripts_are_posix_sh_and_executable(name: str) -> None:
    path = ROOT / name
    assert path.read_text().startswith("#!/bin/sh\n")
    assert path.stat().st_mode & stat.S_IXUSR
    for shell in filter(None, map(shutil.which, ("sh", "dash", "bash", "busybox"))):
        command = [shell, *(["sh"] if shell.endswith("busybox") else []), "-n", str(path)]
        assert subprocess.run(command, check=False).returncode == 0


@needs("shellcheck")
@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_shellcheck_finds_nothing(name: str) -> None:
    process = subprocess.run(
        ["shellcheck", "-s", "sh", str(ROOT / name)], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (0, "")


@pytest.mark.parametrize("name", ["dev", "bench"])
def test_the_locks_have_hashes_and_name_no_index(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    pinned = [n for n, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("--hash=sha256:" in lines[n + 1] for n in pinned)
