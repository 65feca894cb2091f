from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import arch
from harness.deadline import UNSCALED
from harness.errors import QemuMissingError, QemuStartError, QemuTooOldError
from harness.qemu import binary, loop
from harness.qemu.process import OwnedProcess
from tests.programs import need


def test_an_exit_is_an_event_with_a_status_and_the_last_output(tmp_path: Path) -> None:
    need("setpriv")
    exits: list[OwnedProcess] = []
    process = OwnedProcess(
        ["/bin/sh", "-c", "echo dying words >&2; exit 7"],
        stderr=tmp_path / "err",
        on_exit=exits.append,
    )
    assert process.wait(UNSCALED.after(20))
    assert process.status == 7
    assert process.how_ended() == "exit status 7"
    assert process.failed
    assert process.last_words() == "dying words"
    process.kill()
    assert exits == [process]


def test_an_exit_before_the_constructor_returns_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("setpriv")
    ended = threading.Event()
    call = loop.call

    def slow(function: Callable[[], None]) -> None:
        call(function)
        assert ended.wait(20)

    monkeypatch.setattr(loop, "call", slow)
    process = OwnedProcess(
        ["/bin/true"], stderr=tmp_path / "err", on_exit=lambda process: ended.set()
    )
    assert process.status == 0


def test_kill_ends_the_process_and_reports_the_signal(tmp_path: Path) -> None:
    need("setpriv")
    process = OwnedProcess(["/bin/sleep", "600"], stderr=tmp_path / "err")
    assert not process.failed
    process.kill()
    assert not process.running
    assert process.how_ended() == "killed by SIGKILL"
    assert not process.failed


def test_a_kill_by_somebody_else_is_a_failure(tmp_path: Path) -> None:
    need("setpriv")
    process = OwnedProcess(["/bin/sleep", "600"], stderr=tmp_path / "err")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(UNSCALED.after(20))
    process.kill()
    assert process.failed


def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    need("setpriv")
    with pytest.raises(QemuStartError, match="cannot be executed"):
        OwnedProcess([str(tmp_path / "none")], stderr=tmp_path / "err")


@pytest.mark.parametrize("thread", ["main", "short-lived"])
def test_a_process_dies_with_its_runner_even_by_kill_9(tmp_path: Path, thread: str) -> None:
    """The kernel sends the signal when the forking thread ends, which may be early."""
    need("setpriv")
    script = textwrap.dedent(
        f"""
        import sys, threading, signal
        from pathlib import Path
        from harness.qemu.process import OwnedProcess
        def start():
            global process
            process = OwnedProcess(["/bin/sleep", "600"], stderr=Path({str(tmp_path / "err")!r}))
        if {thread!r} == "main":
            start()
        else:
            worker = threading.Thread(target=start)
            worker.start()
            worker.join()
        print(process.pid, process.running, flush=True)
        signal.pause()
        """
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    pid_text, running = runner.stdout.readline().split()
    assert running == "True"
    pidfd = os.pidfd_open(int(pid_text))
    try:
        assert select.select([pidfd], [], [], 0) == ([], [], [])
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        assert select.select([pidfd], [], [], 20)[0] == [pidfd]
    finally:
        os.close(pidfd)
        runner.stdout.close()


def fake_qemu(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


X86_64 = arch.of("x86_64")

HELP = """\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-{newest})
pc-i440fx-{newest}     Standard PC (i440FX + PIIX, 1996) (default)
"""
Q35 = "Standard PC (Q35 + ICH9, 2009)"


def with_machines(version: str, *machines: str, newest: str = "") -> str:
    """Return the script of a QEMU that has these versions of its machine type."""
    lines = [f"{name}           {Q35}" for name in machines]
    if newest:
        lines.append(f"q35                  {Q35} (alias of {newest})")
    text = HELP.format(newest=newest) + "\n".join(lines)
    return (
        f"if [ $1 = --version ]; then echo 'QEMU emulator version {version} (Debian)'; exit; fi\n"
        f"[ \"$*\" = '-machine help' ] && cat <<'END'\n{text}\nEND"
    )


def test_qemu_s_version_is_checked(tmp_path: Path) -> None:
    good = fake_qemu(tmp_path, with_machines("8.2.2", "pc-q35-8.2"))
    assert binary.check(good, X86_64).version == "8.2.2"
    old = fake_qemu(tmp_path, "echo 'QEMU emulator version 7.2.17'")
    with pytest.raises(QemuTooOldError, match=r"7\.2\.17; Harness needs 8\.2"):
        binary.check(old, X86_64)
    mute = fake_qemu(tmp_path, "echo nothing; exit 1")
    with pytest.raises(QemuMissingError, match="does not print its version"):
        binary.check(mute, X86_64)


@pytest.mark.parametrize(
    ("machines", "newest", "expected"),
    [
        # As QEMU sorts them, by text.
        (("pc-q35-9.2", "pc-q35-8.2", "pc-q35-2.12", "pc-q35-10.0"), "pc-q35-10.0", "pc-q35-10.0"),
        (("pc-q35-9.2", "pc-q35-10.0", "pc-q35-10.1", "pc-q35-11.0"), "pc-q35-11.0", "pc-q35-10.0"),
        (("pc-q35-4.0.1", "pc-q35-8.1", "pc-q35-8.2"), "pc-q35-8.2", "pc-q35-8.2"),
        (("pc-q35-11.2", "pc-q35-14.0"), "pc-q35-14.0", "pc-q35-14.0"),
        (("pc-q35-rhel9.4.0", "pc-q35-rhel9.2.0"), "pc-q35-rhel9.4.0", "pc-q35-rhel9.4.0"),
    ],
)
def test_the_machine_type_has_the_newest_version_up_to_that_of_the_arch(
    tmp_path: Path, machines: tuple[str, ...], newest: str, expected: str
) -> None:
    qemu = fake_qemu(tmp_path, with_machines("9.2.0", *machines, newest=newest))
    assert binary.check(qemu, X86_64).machine == expected


def test_a_qemu_without_the_machine_names_the_package(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, with_machines("9.2.0"))
    with pytest.raises(QemuMissingError, match="has no machine type pc-q35") as caught:
        binary.check(qemu, X86_64)
    assert "qemu-system-x86" in caught.value.hint


def test_missing_qemu_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary.find.cache_clear()
    try:
        with pytest.raises(QemuMissingError, match="qemu-system-arm"):
            binary.find("aarch64")
    finally:
        binary.find.cache_clear()
