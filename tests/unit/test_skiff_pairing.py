"""Pairing with skiff: the image's script runs on this host, and the profile in front of a port here."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.catalog import Selection
from harness.deadline import UNSCALED
from harness.errors import GuestError, InstallRefusedError, QemuExitedError, WaitTimeoutError
from harness.evidence.timeline import Timeline
from harness.machine import Machine
from harness.profiles import _skiff, skiff
from harness.profiles.skiff import Skiff
from harness.profiles.terms import Install
from harness.scope import Scope
from tests.programs import need

PAIRING = (
    Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff/pairing"
)
ANSWERS = Install(disk="TARGET", hostname="node1", user="alice", key="ssh-ed25519 AAAA")
SETTINGS = _skiff.settings(ANSWERS)


class Pairing:
    """The script with its programs: an installer that copies its settings, and says how it ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.screen = folder / "screen"
        (folder / "common.sh").write_text("image_version() { echo 1; }\n")
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("qrencode", 'printf "[%s]" "${@: -1}"')
        self.program(
            "skiff-install", f'cp "${{@: -1}}" {folder}/installed; echo skiff-install: done: x'
        )
        text = PAIRING.read_text()
        for there, here in (
            ("/usr/lib/skiff/common.sh", folder / "common.sh"),
            ("/run/skiff/pairing", folder / "run"),
            ("/dev/tty1", self.screen),
        ):
            assert there in text
            text = text.replace(there, str(here))
        self.script = folder / "pairing"
        self.script.write_text(text)
        self.run("show")

    def program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(self, word: str, said: str = "") -> str:
        return subprocess.run(
            ["bash", self.script, word],
            input=said,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"},
        ).stdout

    @property
    def code(self) -> str:
        """The code in the QR code on the screen."""
        return self.screen.read_text().partition("[skiff-pair:")[2].partition("]")[0]

    def pair(self, code: str, settings: str = f"{SETTINGS}...\n") -> str:
        return self.run("answer", f"pair {code}\n{settings}")


@pytest.fixture
def pairing(tmp_path: Path) -> Pairing:
    need("bash")
    need("flock")
    return Pairing(tmp_path)


def test_the_screen_has_the_code_for_people_and_for_cameras(pairing: Pairing) -> None:
    assert len(pairing.code) == 8
    assert f"  {pairing.code[:4]}-{pairing.code[4:]}\n" in pairing.screen.read_text()
    assert (pairing.folder / "run/code").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("separator", ["", "-"])
def test_the_settings_reach_the_installer_as_they_were_sent(
    pairing: Pairing, separator: str
) -> None:
    code = pairing.code
    assert pairing.pair(code[:4] + separator + code[4:]) == "skiff-install: done: x\n"
    assert (pairing.folder / "installed").read_text() == SETTINGS
    # One installation for one code.
    assert code not in pairing.screen.read_text()
    assert pairing.pair(code) == "skiff-pair: refused: wrong code\n"


def test_wrong_codes_are_refused_and_the_fifth_changes_the_code(pairing: Pairing) -> None:
    code = pairing.code
    for _ in range(4):
        assert pairing.pair("AAAAAAAA") == "skiff-pair: refused: wrong code\n"
        assert pairing.code == code
    assert pairing.pair("AAAAAAAA") == "skiff-pair: refused: wrong code\n"
    assert pairing.code != code
    assert pairing.pair(code) == "skiff-pair: refused: wrong code\n"
    assert not (pairing.folder / "installed").exists()
    assert "done" in pairing.pair(pairing.code)


def test_an_installation_that_was_refused_gets_a_new_code(pairing: Pairing) -> None:
    pairing.program("skiff-install", "echo skiff-install: refused: no disk; exit 2")
    code = pairing.code
    assert pairing.pair(code) == "skiff-install: refused: no disk\n"
    assert len(pairing.code) == 8
    assert pairing.code != code


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (SETTINGS, "the settings do not end: their last line is ..."),
        (SETTINGS + "..", "the settings do not end: their last line is ..."),
        ("#" * 70000 + "\n...\n", "the settings are longer than 65536 bytes"),
    ],
    ids=["cut", "cut in the last line", "too long"],
)
def test_settings_that_are_not_whole_are_refused(
    pairing: Pairing, settings: str, reason: str
) -> None:
    code = pairing.code
    assert pairing.pair(code, settings) == f"skiff-pair: refused: {reason}\n"
    assert not (pairing.folder / "installed").exists()
    # The code was right, and nothing was installed: it stays.
    assert "done" in pairing.pair(code)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "\n",
        "pair\n",
        "pair $(id)XX\n",
        "pair ABCDEFGHJ\n",
        "GET / HTTP/1.1\n",
        "pair ABCDEFGH" * 50,
    ],
)
def test_other_words_are_not_understood(pairing: Pairing, said: str) -> None:
    assert pairing.run("answer", said) == "skiff-pair: refused: not understood\n"
    assert not (pairing.folder / "run/wrong").exists()


# --- the other side: the words of the profile, in front of a port that answers in some way -------


Serve = Callable[[Callable[[socket.socket], None]], Skiff]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a profile whose machine's pairing port is served by a function, once."""
    with ExitStack() as stack:

        def start(answer: Callable[[socket.socket], None]) -> Skiff:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def run() -> None:
                connection, _ = server.accept()
                with connection:
                    answer(connection)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            stack.callback(thread.join)
            profile = Skiff.__new__(Skiff)
            profile.machine = cast(
                "Machine[Any]",
                SimpleNamespace(
                    name="live",
                    scope=Scope("test"),
                    scale=UNSCALED,
                    timeline=Timeline(),
                    port=lambda number: server.getsockname(),
                ),
            )
            profile.selection = cast("Selection", SimpleNamespace(deadlines={}))
            return profile

        yield start


def read_all(connection: socket.socket) -> str:
    """Return what a computer that pairs says, to the line that ends the settings."""
    with connection.makefile() as lines:
        return "".join(iter(lines.readline, "...\n"))


def test_the_code_and_the_answers_are_sent_as_the_image_reads_them(serve: Serve) -> None:
    heard: list[str] = []

    def answer(connection: socket.socket) -> None:
        heard.append(read_all(connection))
        connection.sendall(b"skiff-install: writing the settings\n")
        connection.sendall(b"skiff-install: done: skiff 1 is installed\n")

    serve(answer).pair("ABCDEFGH", ANSWERS)
    assert heard == [f"pair ABCDEFGH\n{SETTINGS}"]


@pytest.mark.parametrize("program", ["skiff-pair", "skiff-install"])
def test_a_refusal_has_the_systems_own_words(serve: Serve, program: str) -> None:
    profile = serve(lambda connection: connection.sendall(f"{program}: refused: no\n".encode()))
    with pytest.raises(InstallRefusedError) as caught:
        profile.pair("ABCDEFGH", ANSWERS)
    assert caught.value.what == "no"


def test_a_port_that_closes_without_an_outcome_is_the_guests_fault(serve: Serve) -> None:
    profile = serve(lambda connection: connection.sendall(b"skiff-install: writing\n"))
    with pytest.raises(GuestError, match="closed its pairing port without an outcome") as caught:
        profile.pair("ABCDEFGH", ANSWERS)
    assert caught.value.evidence == "skiff-install: writing\n"


def test_the_end_of_the_machine_is_the_error_of_its_port(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection closes first, and the machine's failure is known a moment later."""
    monkeypatch.setattr(skiff, "_MOMENT", 60_000)  # a busy host
    end = QemuExitedError("QEMU was killed")
    profile: list[Skiff] = []

    def answer(connection: socket.socket) -> None:
        read_all(connection)
        connection.shutdown(socket.SHUT_RDWR)
        threading.Timer(0.1, profile[0].machine.scope.fail, [end]).start()

    profile.append(serve(answer))
    with pytest.raises(QemuExitedError) as caught:
        profile[0].pair("ABCDEFGH", ANSWERS)
    assert caught.value is end


def test_a_failure_ends_the_wait_for_the_installation(serve: Serve) -> None:
    profile: list[Skiff] = []
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        read_all(connection)
        profile[0].machine.scope.fail(QemuExitedError("QEMU was killed"))
        ended.wait()

    profile.append(serve(answer))
    try:
        with pytest.raises(QemuExitedError):
            profile[0].pair("ABCDEFGH", ANSWERS)
    finally:
        ended.set()


def test_an_installation_that_says_nothing_more_ends_at_the_deadline(serve: Serve) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"skiff-install: writing\n")
        ended.wait()

    try:
        with pytest.raises(WaitTimeoutError, match="how the installation ended") as caught:
            serve(answer).pair("ABCDEFGH", ANSWERS, 0.2)
    finally:
        ended.set()
    assert caught.value.last_output in ("", "skiff-install: writing\n")
