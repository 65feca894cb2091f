"""The files of the runner image: one list of packages, pinned inputs, and errors that help.

tests/gate builds the image and runs it; nothing here does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from harness.arch import ARCHES, of
from harness.cli.doctor import TOOLS

ROOT = Path(__file__).resolve().parents[2]
RUNNERS = ROOT / "runners"
CONTAINERFILE = (RUNNERS / "Containerfile").read_text()
INSTRUCTIONS = [
    line.split()
    for line in CONTAINERFILE.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def program(name: str) -> ModuleType:
    """Return a program of runners/ as a module."""
    loader = SourceFileLoader(f"runner_{name}", str(RUNNERS / name))
    spec = importlib.util.spec_from_loader(f"runner_{name}", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Its byte code would lie beside the script.
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return runners/image as a module."""
    return program("image")


def listed(stage: str) -> list[str]:
    lines = [
        line.partition("#")[0].split() for line in (RUNNERS / "packages").read_text().splitlines()
    ]
    return [words[1] for words in lines if words and words[0] == stage]


# --- the Containerfile ------------------------------------------------------------------------


def test_each_base_is_an_earlier_stage_or_is_handed_in() -> None:
    stages: set[str] = set()
    for words in INSTRUCTIONS:
        if words[0] == "FROM":
            assert words[1] in stages | {"${BASE}", "${RUNNER}"}
            stages.add(words[3])
    assert {"harness", "runner"} <= stages


def test_no_input_has_a_default_that_is_no_pin() -> None:
    arguments = dict(
        [*words[1].split("=", 1), ""][:2] for words in INSTRUCTIONS if words[0] == "ARG"
    )
    assert arguments == {"BASE": "", "RUNNER": "scratch", "BUILT": "", "COMMIT": ""}
    assert "sha256:" not in CONTAINERFILE.replace("@sha256:...", "")


def test_nothing_is_fetched_past_the_signed_packages_and_the_lock() -> None:
    code = "\n".join(line for line in CONTAINERFILE.splitlines() if not line.startswith("#"))
    assert not re.search(r"\b(ADD|curl|wget|git clone)\b", code)
    assert "--require-hashes" in code
    assert not re.search(r"https?://", CONTAINERFILE + (RUNNERS / "install").read_text())


@pytest.mark.parametrize("stage", ["harness", "runner"])
def test_the_stages_for_use_end_as_user_1001(stage: str) -> None:
    user = ""
    current = ""
    for words in INSTRUCTIONS:
        if words[0] == "FROM":
            current = words[3]
        elif words[0] == "USER" and current == stage:
            user = words[1]
    assert user == "1001:1001"


def test_the_context_has_what_is_copied_and_no_more() -> None:
    lines = (RUNNERS / "Containerfile.containerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for words in INSTRUCTIONS
        if words[0] == "COPY" and not words[1].startswith("--from")
        for source in words[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / each).exists() for each in allowed)


def test_no_architecture_is_named() -> None:
    code = "\n".join(line for line in CONTAINERFILE.splitlines() if not line.startswith("#"))
    assert not re.search(r"amd64|x86|arm64|aarch64", code)


# --- the list of packages ---------------------------------------------------------------------


def test_each_stage_installs_its_packages_from_the_list() -> None:
    installed = re.findall(r"sh /opt/build/install (\w+)", CONTAINERFILE)
    lines = (RUNNERS / "packages").read_text().splitlines()
    stages = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert set(installed) == stages - {"base"}  # mmdebstrap installs those
    every = [package for stage in stages for package in listed(stage)]
    assert len(every) == len(set(every))


def test_the_image_has_what_harness_runs() -> None:
    wanted = {package for tool, package in TOOLS.items() if tool != "mmdebstrap"}
    for name in ARCHES:
        wanted |= {of(name).qemu_package, of(name).uefi_package}
    assert wanted <= set(listed("harness"))


def test_a_stage_that_the_list_lacks_is_an_error() -> None:
    process = subprocess.run(
        ["sh", RUNNERS / "install", "nothing"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "names no package of the stage nothing" in process.stderr


# --- the lock ---------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def test_the_lock_has_the_tested_versions_without_the_tools_of_developers() -> None:
    run, dev = pins("run"), pins("dev")
    assert run
    assert run.items() <= dev.items()
    assert not {"mypy", "ruff", "sphinx", "uv", "tox", "import-linter"} & set(run)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = (re.match(r"[\w.-]+", each) for each in project["dependencies"])
    wanted = {name[0].lower().replace(".", "-").replace("_", "-") for name in names if name}
    assert wanted <= set(run), "a new dependency: ./run lock writes run.lock too"


# --- runners/image ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [(), ("--runner", "official/runner:latest"), ("--runner", "official/runner@sha256:12")],
)
def test_the_official_runner_has_to_come_by_digest(
    script: ModuleType,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    words = ["image", "build", "--cache", str(tmp_path), "--stage", "runner", *options]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        script.main()
    assert "needs the official runner by digest" in capsys.readouterr().err


def test_what_was_not_built_cannot_be_unpacked(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    words = ["image", "unpack", "--cache", str(tmp_path), str(tmp_path / "root")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        script.main()
    assert f"build --cache {tmp_path}" in capsys.readouterr().err


def test_a_missing_tool_is_named_with_its_package(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["image", "build", "--cache", "x"])
    with pytest.raises(SystemExit):
        script.main()
    assert "buildah is not installed\n  try: install the package buildah" in capsys.readouterr().err


def test_archives_are_those_of_apt_or_of_the_variable(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARNESS_DEBIAN_MIRROR", raising=False)
    lines = "Debian|Debian|http://a.test/debian/\nDebian|Debian-Security|http://s.test/sec/\nX|Y|x/"
    monkeypatch.setattr(script, "output", lambda *_: lines)
    assert script.archives() == ("http://a.test/debian", "http://s.test/sec")
    monkeypatch.setattr(script, "output", lambda *_: "Debian|Debian|http://a.test/debian/")
    assert script.archives() == ("http://a.test/debian", "http://a.test/debian-security")
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "http://m.test/debian/")
    assert script.archives() == ("http://m.test/debian", "http://m.test/debian-security")
    monkeypatch.delenv("HARNESS_DEBIAN_MIRROR")
    monkeypatch.setattr(script, "output", lambda *_: "Ubuntu|Ubuntu|http://u.test/")
    with pytest.raises(SystemExit):
        script.archives()


def test_of_the_hosts_apt_only_how_it_fetches_is_taken(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = 'Acquire::http::Proxy "http://p.test";'
    lines = f'{proxy}\nAcquire::IndexTargets::x "1";\nDPkg::Post-Invoke "rm";'
    monkeypatch.setattr(script, "output", lambda *_: lines)
    assert script.apt_options() == [proxy]


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("global.index-url='https://i.test/simple'", "index-url = https://i.test/simple"),
        (":env:.proxy='http://p.test'", "proxy = http://p.test"),
        ("global.cert='/etc/ssl/x'", ""),
        (":env:.find-links='/opt/wheels'", ""),
    ],
)
def test_of_the_hosts_pip_only_where_packages_are_is_taken(
    script: ModuleType, line: str, written: str
) -> None:
    assert script.pip_line(line) == written


# --- ./run in the image -----------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a checkout whose ./run takes a folder of this test for the image."""
    checkout, image = tmp_path / "checkout", tmp_path / "image"
    (checkout / "requirements").mkdir(parents=True)
    (checkout / "requirements" / "run.lock").write_text("same\n")
    (image / "bin").mkdir(parents=True)
    (image / "run.lock").write_text("same\n")
    (image / "image.json").write_text("{}")
    for tool in ("harness", "python"):
        (image / "bin" / tool).write_text(f'#!/bin/sh\necho {tool} "$PYTHONPATH" "$@"\n')
        (image / "bin" / tool).chmod(0o755)
    text = (ROOT / "run").read_text()
    assert "\nimage=/opt/harness\n" in text
    (checkout / "run").write_text(text.replace("\nimage=/opt/harness\n", f"\nimage={image}\n"))
    return checkout


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", checkout / "run", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


def test_in_the_image_run_sets_nothing_up_and_runs_this_checkouts_code(image: Path) -> None:
    process = run(image, "harness", "doctor", "--gate")
    assert process.stdout == f"harness {image} doctor --gate\n", process.stderr
    assert process.stderr == ""
    assert run(image, "acceptance", "suites").stdout == f"harness {image} acceptance suites\n"
    assert run(image, "pytest", "x").stdout.startswith(f"python {image} -m pytest")
    assert not (image / ".venv").exists()


@pytest.mark.parametrize(
    "words", [("harness", "plan"), ("harness", "report", "x"), ("gate", "plan.json", "results")]
)
def test_in_the_image_what_only_reads_runs(image: Path, words: tuple[str, ...]) -> None:
    """Elsewhere these make the environment of a developer, which the image has not."""
    process = run(image, *words)
    assert process.returncode == 0, process.stderr
    expected = words[1:] if words[0] == "harness" else words
    assert process.stdout == f"harness {image} {' '.join(expected)}\n"


def test_in_the_image_other_dependencies_are_infra(image: Path) -> None:
    (image / "requirements" / "run.lock").write_text("others\n")
    process = run(image, "acceptance")
    assert process.returncode == 11
    assert "not those of this runner image" in process.stderr
    assert "try: build the image" in process.stderr


def test_in_the_image_there_are_no_tools_of_a_developer(image: Path) -> None:
    process = run(image, "lint")
    assert process.returncode == 1
    assert "no tools of a developer" in process.stderr


def test_profiles_are_imported_by_a_python_that_asks_their_class_early() -> None:
    # As typing of Python 3.13 does, which the image has: it looks for this name while a class is made.
    code = (
        "import typing\n"
        "def ask(cls, *_, **__): getattr(cls, '_is_protocol', False)\n"
        "type(typing.Protocol).__init__ = ask\n"
        "import harness.profiles.base\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_folders_of_a_pod_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runc takes relative paths from its bundle, and not from the folder of the caller."""
    pod = program("pod")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["pod", "--root", "root", "--work", ".", "--cache", "cache", "--", "true"]
    )
    container = pod.specification(pod.parse(), "name", tmp_path / "scratch")
    sources = {mount["destination"]: mount["source"] for mount in container["mounts"]}
    assert container["root"]["path"] == str(tmp_path / "root")
    assert sources["/work"] == str(tmp_path)
    assert sources["/var/cache/harness"] == str(tmp_path / "cache")
