"""skiff answers computers that pair: the image's script runs on this host, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.profiles import _skiff
from harness.profiles.terms import Install
from tests.programs import need

PAIRING = (
    Path(__file__).resolve().parents[2] / "images/skiff/mkosi/mkosi.extra/usr/lib/skiff/pairing"
)
SETTINGS = _skiff.settings(
    Install(disk="TARGET", hostname="node1", user="alice", key="ssh-ed25519 AAAA")
)


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
