"""A sweep notices a system that forgets a flush, names the place, and runs that cut alone."""

from __future__ import annotations

import re

import pytest

from fixtures.project import Project
from harness.arch import ARCHES

# A system of two slots: it writes the new one, then the pointer to it. One of them flushes between.
SUITE = """
from __future__ import annotations

import pytest

from harness import MIB, Disk

FLUSH = {flush!r}
PUT = "yes {{}} | head -c 4096 | dd of=/dev/vda bs=4096 seek={{}} oflag=direct conv=notrunc; "
SYNC = "dd if=/dev/null of=/dev/vda conv=fsync,notrunc; "


@pytest.fixture(scope="module")
def recording(recorder):
    return recorder("upgrade", upgrade)


def upgrade(lab, folder):
    with open("recorded", "a") as count:
        count.write("x")
    machine = lab.boot("micro", disks=[Disk("target", size=2 * MIB)]).wait_ready()
    machine.succeed(PUT.format("a", 2) + PUT.format("1", 0) + SYNC)
    with machine.recording("target", folder) as recording:
        for number, letter in enumerate("bcdefghijk", 2):
            machine.succeed(PUT.format(letter, number % 2 + 1) + (SYNC if FLUSH else ""))
            machine.succeed(PUT.format(number, 0) + SYNC)
        recording.mark("done")
        machine.power_cut()
    return recording


def test_the_pointer_leads_to_the_slot_that_is_there(cut):
    data = cut.path.read_bytes()
    number = int(data[:4096].split(b"\\n")[0])
    letter = b" abcdefghijk"[number : number + 1]
    here = data[4096 * (number % 2 + 1) :][:4096]
    assert here == (letter + b"\\n") * 2048, "neither old nor new"
    assert not cut.after("done") or number == 11
"""


def run(project: Project, *options: str) -> tuple[int, str]:
    result = project.pytest("-q", "--image", "micro", *options)
    return result.status, result.text


def test_a_system_that_flushes_survives_every_cut_on_two_workers(project: Project) -> None:
    project.write("test_upgrade.py", SUITE.format(flush=True))
    status, text = run(project, "--cuts", "80", "-n", "2", "-vv")
    assert status == 0, text
    assert "80 passed" in text
    assert "[01of80]" in text
    (line,) = [line for line in text.splitlines() if line.startswith("upgrade: ")]
    assert "20 writes, 20 flushes; 41 places of 4 kinds are 164 points" in line
    assert (project.folder / "recorded").read_text() == "x", "both workers recorded"
    assert not list(project.folder.glob(".harness/runs/2*/recordings")), (
        "a recording is left behind"
    )


def test_a_system_that_does_not_flush_is_noticed_and_the_cut_named(project: Project) -> None:
    project.write("test_upgrade.py", SUITE.format(flush=False))
    # So many that chance decides nothing: each place is tried several times.
    status, text = run(project, "--cuts", "200")
    assert status == 1, text
    assert "neither old nor new" in text
    failures = re.findall(r"^failed (\S+); alone: (\S+) --cut (\S+) --recording (\S+)$", text, re.M)
    assert failures, text
    assert {name.split("-")[1] for name, *_ in failures} <= {"lost", "reordered"}
    name, file, same, recording = failures[0]
    assert name == same
    for _ in range(2):
        status, text = run(project, file, "--cut", name, "--recording", recording)
        assert status == 1, text
        assert f"test_the_pointer_leads_to_the_slot_that_is_there[{name}]" in text
        assert "1 failed" in text
    assert (project.folder / "recorded").read_text() == "x", "it was recorded anew"
    place = name.split("-")[0]
    status, text = run(project, file, "--cut", f"{place}-flushed", "--recording", recording)
    assert status == 0, text


def test_each_architecture_has_a_recording_of_its_own(project: Project) -> None:
    project.write("test_upgrade.py", SUITE.format(flush=False))
    status, text = run(project, "--cuts", "200", "--arch", "all")
    assert status == 1, text
    assert (project.folder / "recorded").read_text() == "xx"
    failures = re.findall(r"^failed \S+; alone: (.*)$", text, re.M)
    for arch in ARCHES:
        assert f"\nupgrade on {arch}: 20 writes" in text
        alone = next(command for command in failures if command.endswith(f" --arch {arch}"))
        assert f"/recordings/{arch}/upgrade " in alone
        status, text_alone = run(project, *alone.split())
        assert status == 1, text_alone
        assert "1 failed" in text_alone
    assert (project.folder / "recorded").read_text() == "xx", "it was recorded anew"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cuts", "0"], "--cuts must be at least 1, not 0"),
        (["--cut", "w1-torn"], "'w1-torn' is not a crash point"),
        (["--recording", "nowhere"], "recording.json is missing"),
    ],
)
def test_wrong_options_are_refused(project: Project, options: list[str], says: str) -> None:
    project.write("test_upgrade.py", SUITE.format(flush=True))
    status, text = run(project, *options)
    assert status == 4, text
    assert says in text
    assert not (project.folder / "recorded").exists()
