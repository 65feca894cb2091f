"""The entry script, on hosts made of stubs: a PATH of its own, and a checkout of its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the script may take from the real host.
REAL = (
    *(
        "awk",
        "cat",
        "chmod",
        "cp",
        "cut",
        "date",
        "dirname",
        "env",
        "find",
        "flock",
        "grep",
        "head",
        "mkdir",
    ),
    *("mktemp", "mv", "rm", "sed", "sh", "sha256sum", "sort", "tail", "tee", "tr"),
)
# What it has to find, with the packages that bring it.
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
        printf '#!/bin/sh\\n' >"$3/bin/mypy"
        printf '#!/bin/sh\\n' >"$3/bin/ruff"
        printf '#!/bin/sh\\necho cli "$@"\\n' >"$3/bin/harness"
        chmod +x "$3/bin/mypy" "$3/bin/ruff" "$3/bin/harness" ;;
    -mpip) echo "pip $*" >>"$LOG"; [ "${PIP_FAILS:-}" = "" ] ;;
    -mpytest) shift 2; echo "pytest $*" ;;
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
        # The host's own Python is looked for by its path too; it is not this test's matter.
        script = self.checkout / "run"
        text = script.read_text()
        assert text.count("/usr/bin/python3") == 2
        script.write_text(text.replace("/usr/bin/python3", "/nowhere/python3"))
        for name in REAL:
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        self.stub("uname", "echo Linux")
        self.stub("id", "echo 0")
        for name in TOOLS:
            self.stub(name, "echo QEMU emulator version 9.2.1")
        self.stub("python3", PYTHON)
        for name in ("unit", "integration"):
            self.test_in(f"tests/{name}")
        self.test_in("suites")
        self.test_in("harness")

    def test_in(self, folder: str) -> None:
        (self.checkout / folder).mkdir(parents=True)
        (self.checkout / folder / "test_x.py").touch()

    def stub(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "sh"), str(self.checkout / "run"), *arguments],
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
    return Host(tmp_path)


def test_without_a_command_it_says_what_there_is_and_does_nothing(host: Host) -> None:
    done = host.run()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./run COMMAND")
    assert not (host.checkout / ".venv").exists()


def test_an_unknown_command_is_a_usage_error(host: Host) -> None:
    done = host.run("tset")
    assert done.returncode == 2
    assert "unknown command tset" in done.stdout
    assert not (host.checkout / ".venv").exists()


def test_setup_says_what_it_does_and_then_is_quiet(host: Host) -> None:
    first = host.run("setup")
    assert first.returncode == 0, first.stdout
    assert "run: making .venv with Python 3.11.9" in first.stdout
    before = host.pip_runs
    assert before > 0
    second = host.run("setup")
    assert (second.returncode, second.stdout) == (0, "")
    assert host.pip_runs == before


def test_dependencies_are_installed_by_their_hashes(host: Host) -> None:
    host.run("setup")
    assert "--require-hashes -r" in host.log.read_text()


@pytest.mark.parametrize("name", ["run", "pyproject.toml", "requirements/dev.lock"])
def test_what_the_environment_was_made_from_has_changed(host: Host, name: str) -> None:
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
    done = host.run("setup")
    assert done.returncode == 1
    assert "missing, by Debian's names: swtpm xz-utils" in done.stdout
    assert "try: install them" in done.stdout
    assert not (host.checkout / ".venv").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_is_looked_for(host: Host, tool: str) -> None:
    host.remove(tool)
    assert f"by Debian's names: {TOOLS[tool]}\n" in host.run("setup").stdout


@pytest.mark.parametrize(
    ("version", "enough"),
    [("7.2.11 (Debian 1:7.2)", False), ("8.1.9", False), ("8.2.0", True), ("10.0.2", True)],
)
def test_a_qemu_that_is_too_old_counts_as_missing(host: Host, version: str, enough: bool) -> None:
    host.stub("qemu-system-x86_64", f"echo QEMU emulator version {version}")
    done = host.run("setup")
    assert ("by Debian's names: qemu-system-x86\n" in done.stdout) is not enough


def test_an_old_python_is_refused(host: Host) -> None:
    done = host.run("setup", OLD_PYTHON="1")
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stdout


def test_a_shim_that_does_not_run_is_passed_over(host: Host) -> None:
    host.stub("python3.13", PYTHON)
    host.stub("python3", "echo pyenv: not found >&2; exit 127")
    (host.bin / "python3.12").symlink_to("/nowhere")
    done = host.run("setup")
    assert f"at {host.bin}/python3.13\n" in done.stdout


def test_another_system_is_refused(host: Host) -> None:
    host.stub("uname", "echo Darwin")
    done = host.run("setup")
    assert done.returncode == 1
    assert "Harness runs on Linux, this is Darwin" in done.stdout


def wait_for(process: subprocess.Popen[str], words: str, never: str = "\0") -> None:
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, f"ended without {words!r}: {said}"
        said += line
        assert never not in said


def test_two_at_once_set_up_once(host: Host, tmp_path: Path) -> None:
    # The first venv waits until the second run waits in flock.
    told = tmp_path / "told"
    os.mkfifo(told)
    fifo = os.open(told, os.O_RDWR)
    host.stub("python3", f'case $1$2 in -mvenv) read line <"{told}" ;; esac\n{PYTHON}')
    flock = f'exec "{shutil.which("flock")}" "$@"'
    host.stub("flock", f'[ "$1" = -n ] || echo "flock waits" >&2\n{flock}')

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
                wait_for(second, "flock waits", never="making .venv")
            finally:
                os.write(fifo, b"go\ngo\n")
            assert second.stderr is not None
            rest = second.stderr.read()
        assert first.stderr is not None
        first.stderr.read()
    os.close(fifo)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "making .venv" not in rest


def test_the_cli_gets_its_arguments_as_they_are(host: Host) -> None:
    done = host.run("harness", "shell", "a b", "--x=*")
    assert done.stdout.splitlines()[-1] == "cli shell a b --x=*"


PYTEST = "pytest -c pyproject.toml -p fixtures.plugin"
"""How it is called, whatever comes then: it finds its configuration and knows Harness' options from the
first, so that it takes no value of theirs for a path."""


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (("acceptance",), "testpaths=suites -n auto"),
        (("acceptance", "--image", "skiff"), "testpaths=suites --image skiff"),
        (("acceptance", "suites/boot", "-k", "ssh"), "testpaths=suites suites/boot -k ssh"),
        (("acceptance", "--evidence", "/tmp"), "testpaths=suites --evidence /tmp"),
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
def test_a_phase_is_pytest_on_its_folder(
    host: Host, arguments: tuple[str, ...], called: str
) -> None:
    last = host.run(*arguments).stdout.splitlines()[-1]
    assert last.startswith(f"{PYTEST} -o {called}")
    assert ("-n auto" in last) == (len(arguments) == 1), "the whole of a phase is shared by workers"


def test_pytest_has_its_arguments_as_they_are(host: Host) -> None:
    assert host.run("pytest", "-k", "x").stdout.splitlines()[-1] == f"{PYTEST} -k x"


def test_all_phases_run_in_order_and_pytest_has_the_last_word(host: Host) -> None:
    done = host.run("test")
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith(("== ", "pytest"))]
    told = [line.removeprefix(f"{PYTEST} -o testpaths=").removeprefix("== ") for line in lines]
    assert [line.split()[0].rstrip(";") for line in told] == [
        *("lint", "type", "unit", "tests/unit"),
        *("integration", "tests/integration", "acceptance", "suites"),
    ]
    assert "passed: lint" in lines[-2]
    assert done.stdout.splitlines()[-1] == f"{PYTEST} -o testpaths=suites -n auto"


@pytest.mark.parametrize(("fails", "after"), [("ruff", "type"), ("mypy", "unit")])
def test_the_first_failure_ends_it_with_a_summary(host: Host, fails: str, after: str) -> None:
    host.run("setup")
    tool = host.checkout / ".venv" / "bin" / fails
    tool.write_text("#!/bin/sh\nexit 3\n")
    done = host.run("test")
    assert done.returncode == 3
    assert f"== {after}" not in done.stdout
    assert "failed" in done.stdout.splitlines()[-1]
    assert f"not run: {after}" in done.stdout.splitlines()[-1]


def test_pytests_failure_is_its_own(host: Host) -> None:
    host.run("setup")
    python = host.checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$2" != pytest ] || { echo 1 failed; exit 1; }\n')
    done = host.run("test")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 failed"
    assert "== integration" not in done.stdout


# --- apt ----------------------------------------------------------------------------------------

needs_debian = pytest.mark.skipif(
    not Path("/etc/os-release").exists() or shutil.which("dpkg") is None,
    reason="needs a Debian or Ubuntu host, for its os-release and dpkg",
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
    """A host with apt, whose third-party sources are out of reach: every update fails."""
    host.stub("apt-get", APT_GET)
    host.stub("apt-cache", 'echo "  Candidate: 1:9.2+ds-1"')
    host.stub("sudo", 'echo "sudo" >>"$LOG"; exec "$@"')
    (host.bin / "dpkg").symlink_to(shutil.which("dpkg") or "/nowhere")
    # Files of packages that this host may lack are not this test's matter.
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
def test_apt_installs_what_is_missing_and_nothing_else(debian: Host) -> None:
    debian.remove("swtpm")
    done = debian.run("setup", BIN=str(debian.bin))
    assert done.returncode == 0, done.stdout
    calls = [line for line in debian.log.read_text().splitlines() if "install -y" in line]
    assert [call.split("--no-install-recommends ")[1] for call in calls] == ["swtpm"]
    assert "sudo" not in debian.log.read_text().split()


@needs_debian
def test_apt_runs_by_sudo_for_others_than_root(debian: Host) -> None:
    debian.stub("id", "echo 1000")
    debian.remove("swtpm")
    debian.run("setup", BIN=str(debian.bin))
    assert "sudo" in debian.log.read_text().split()


@needs_debian
def test_without_root_and_sudo_it_says_what_to_run(debian: Host) -> None:
    debian.stub("id", "echo 1000")
    debian.remove("swtpm", "sudo")
    done = debian.run("setup", BIN=str(debian.bin))
    assert done.returncode == 1
    assert "neither root nor sudo" in done.stdout


@needs_debian
def test_a_package_that_cannot_be_installed_is_told(debian: Host) -> None:
    debian.stub("apt-get", 'case "$*" in *install*) echo E: broken; exit 100 ;; esac')
    debian.remove("swtpm")
    done = debian.run("setup", BIN=str(debian.bin))
    assert done.returncode == 1
    assert "E: broken" in done.stdout
    assert "apt-get could not install: swtpm" in done.stdout


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
    done = debian.run("setup", BIN=str(debian.bin))
    assert done.returncode == 0, done.stdout
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
    for shell in filter(None, map(shutil.which, ("dash", "bash", "busybox"))):
        command = [shell, *(["sh"] if shell.endswith("busybox") else []), "-n", str(path)]
        assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: apt install it")
@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run(
        ["shellcheck", "-s", "sh", str(ROOT / name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["dev", "bench"])
def test_the_locks_have_hashes_and_name_no_index(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    pinned = [n for n, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("--hash=sha256:" in lines[n + 1] for n in pinned)
