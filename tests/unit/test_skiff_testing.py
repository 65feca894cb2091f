"""skiff-testing is skiff in all but the Debian that it is built from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.catalog import Image, load

IMAGES = Path(__file__).resolve().parents[2] / "images"
OWN = {"name", "summary", "build"}


def image(name: str) -> Image:
    return load(IMAGES).get(name)


def test_it_promises_what_skiff_does() -> None:
    skiff, testing = (image(name).model_dump(exclude=OWN) for name in ("skiff", "skiff-testing"))
    assert testing == skiff


def test_each_file_of_skiffs_build_decides_its_key() -> None:
    skiff, testing = image("skiff").build, image("skiff-testing").build
    assert skiff is not None
    assert testing is not None
    inputs = {f"../skiff/{name}" for name in (skiff.script, *skiff.inputs)}
    assert set(testing.inputs) == {testing.script, *inputs}


def test_its_script_is_skiffs_with_another_release(tmp_path: Path) -> None:
    folder = tmp_path / "skiff-testing"
    folder.mkdir()
    script = folder / "build"
    script.write_bytes((IMAGES / "skiff-testing/build").read_bytes())
    script.chmod(0o755)
    other = tmp_path / "skiff/build"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    other.chmod(0o755)
    process = subprocess.run(
        [script, "--arch", "x86_64", "--out", "a b"],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.sep,
    )
    assert process.returncode == 7
    words = process.stdout.splitlines()
    assert words[words.index("--release") + 1] == "testing"
    assert words[words.index("--out") + 1] == "a b"


def test_a_release_that_skiff_is_not_built_from_is_refused(tmp_path: Path) -> None:
    # The folder of --out is missing, so that no build starts whatever happens.
    words = "--arch x86_64 --version 1 --variant core --release bookworm --work"
    process = subprocess.run(
        [IMAGES / "skiff/build", *words.split(), tmp_path / "work", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr == "build: release bookworm: neither trixie nor testing\n"


@pytest.mark.parametrize("word", ["skiff.live", "skiff.recovery", ""])
def test_the_esp_is_looked_for_without_the_root_hash(tmp_path: Path, word: str) -> None:
    """A slot's ESP is for systemd's own generator; the others have no partition of that root hash."""
    folder = "/usr/lib/systemd/system-generators"
    text = (IMAGES / f"skiff/mkosi/testing{folder}/skiff-esp-generator").read_text()
    (tmp_path / "cmdline").write_text(f"ro roothash=5c1f {word} quiet\n")
    other = tmp_path / "systemd-gpt-auto-generator"
    other.write_text('#!/bin/sh\necho "$SYSTEMD_PROC_CMDLINE" "$@"\n')
    other.chmod(0o755)
    script = text.replace("< /proc/", f"< {tmp_path}/")
    script = script.replace(folder, str(tmp_path))
    command = ["sh", "-c", script, "skiff-esp-generator", "normal", "early", "late"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout == ("root=verity normal early late\n" if word else "")
