"""What the steps of workflows need of the entry script beside the phases, on hosts of stubs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import need
from tests.unit.test_run_script import ROOT, Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    need("sed")
    host = Host(tmp_path)
    script = host.checkout / "run"
    script.write_text(script.read_text().replace("/dev/kvm", str(tmp_path / "kvm")))
    host.stub("id", "echo 1000")
    return host


@pytest.mark.parametrize("command", ["plan", "history", "known", "report"])
def test_what_only_reads_needs_python_alone(host: Host, command: str) -> None:
    host.remove("swtpm", "qemu-system-x86_64")
    process = host.run("harness", command, "--json")
    assert process.returncode == 0, process.stdout
    assert process.stdout.endswith(f"harness {command} --json\n")


def test_a_machine_without_kvm_is_left_alone(host: Host) -> None:
    process = host.run("kvm")
    assert (process.returncode, process.stdout) == (
        0,
        f"run: this machine has no {host.bin.parent}/kvm: guests are emulated\n",
    )


def test_a_user_who_can_use_kvm_is_left_alone(host: Host, tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    host.stub("sudo", 'echo "sudo $*" >>"$LOG"')
    process = host.run("kvm")
    assert process.returncode == 0
    assert "this user can use" in process.stdout
    assert host.log.read_text() == ""


def closed(host: Host, tmp_path: Path) -> None:
    """Make a device that this user cannot open: root opens all, so the look at it is replaced."""
    (tmp_path / "kvm").touch()
    script = host.checkout / "run"
    text = script.read_text()
    look = f"[ -r {tmp_path}/kvm ] && [ -w {tmp_path}/kvm ]"
    assert look in text
    script.write_text(text.replace(look, "false"))


def test_a_closed_device_gets_a_rule(host: Host, tmp_path: Path) -> None:
    closed(host, tmp_path)
    host.stub("sudo", 'echo "sudo $*" >>"$LOG"')
    process = host.run("kvm")
    assert process.returncode == 0, process.stdout
    assert "every user of this machine" in process.stdout
    log = host.log.read_text()
    assert 'KERNEL=="kvm", GROUP="kvm", MODE="0666"' in log
    assert "udevadm trigger" in log


@pytest.mark.parametrize("sudo", ["exit 1", None])
def test_a_device_that_stays_closed_is_an_error(
    host: Host, tmp_path: Path, sudo: str | None
) -> None:
    closed(host, tmp_path)
    if sudo:
        host.stub("sudo", sudo)
    process = host.run("kvm")
    assert process.returncode == 1
    assert "could not be given it" in process.stdout
    assert "try: add the user" in process.stdout


def test_images_of_another_host_are_taken(host: Host, tmp_path: Path) -> None:
    for name in ("skiff-core-1", "micro-default-1"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "manifest.json").write_text("new")
    kept = tmp_path / "cache" / "entries" / "micro-default-1"
    kept.mkdir(parents=True)
    (kept / "manifest.json").write_text("old")
    process = host.run(
        "take-images", str(tmp_path / "images"), HARNESS_CACHE=str(tmp_path / "cache")
    )
    assert process.returncode == 0, process.stdout
    assert "micro-default-1: is here already" in process.stdout
    assert (kept / "manifest.json").read_text() == "old"
    assert (kept.with_name("skiff-core-1") / "manifest.json").read_text() == "new"
    assert sorted(path.name for path in kept.parent.iterdir()) == [
        "micro-default-1",
        "skiff-core-1",
    ]


def test_a_folder_without_images_is_an_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    process = host.run(
        "take-images", str(tmp_path / "images"), HARNESS_CACHE=str(tmp_path / "cache")
    )
    assert process.returncode == 1
    assert "there is no image in" in process.stdout


# --- the runner image ---------------------------------------------------------------------------

SKOPEO = """
echo "skopeo $*" >>"$LOG"
case $1 in
    login) cat >>"$LOG"; [ "${DENIED:-}" = "" ] ;;
    copy)
        while [ "$1" != --digestfile ]; do shift; done
        printf sha256:0123 >"$2"
        [ "${BROKEN:-}" = "" ] ;;
esac
"""
ACCOUNT = {"REGISTRY_USER": "robot", "REGISTRY_TOKEN": "hunter2"}
PUSH = ("runner-push", "cache", "runner-amd64", "registry.example/kite/runner")


@pytest.fixture
def registry(host: Host) -> Host:
    host.stub("skopeo", SKOPEO)
    (host.checkout / "cache").mkdir()
    (host.checkout / "cache" / "runner-amd64.oci.tar").touch()
    return host


def test_an_image_is_pushed_and_its_digest_printed(registry: Host) -> None:
    process = registry.run(*PUSH, folder=None, **ACCOUNT)
    assert (process.returncode, process.stdout) == (
        0,
        "registry.example/kite/runner@sha256:0123 runner-amd64\n",
    )
    log = registry.log.read_text()
    assert "--username robot --password-stdin registry.example\n" in log
    assert (
        "oci-archive:cache/runner-amd64.oci.tar docker://registry.example/kite/runner:runner-amd64-"
        in log
    )
    # By standard input, which no other user can see.
    assert log.count("hunter2") == 1
    assert not any("hunter2" in line for line in log.splitlines() if line.startswith("skopeo"))


@pytest.mark.parametrize("name", ACCOUNT)
def test_an_account_that_is_empty_is_named(registry: Host, name: str) -> None:
    """An unset variable of GitHub is an empty string."""
    process = registry.run(*PUSH, folder=None, **(ACCOUNT | {name: ""}))
    assert process.returncode == 1
    assert f"error: {name} is not set, or empty" in process.stdout
    assert registry.log.read_text() == ""


@pytest.mark.parametrize(
    ("fault", "message"), [("DENIED", "could not log in"), ("BROKEN", "could not be pushed")]
)
def test_a_push_that_fails_prints_no_digest(registry: Host, fault: str, message: str) -> None:
    process = registry.run(*PUSH, folder=None, **ACCOUNT, **{fault: "1"})
    assert process.returncode == 1
    assert message in process.stdout
    assert "sha256" not in process.stdout


def test_an_image_that_is_missing_is_named(registry: Host) -> None:
    (registry.checkout / "cache" / "runner-amd64.oci.tar").unlink()
    process = registry.run(*PUSH, folder=None, **ACCOUNT)
    assert process.returncode == 1
    assert "there is no cache/runner-amd64.oci.tar" in process.stdout


def test_tox_has_each_phase_that_needs_no_guest() -> None:
    assert "[testenv:gate-tests]" in (ROOT / "tox.ini").read_text()
