"""The evidence of a test: complete, readable by other tools, and runnable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness import Lab
from harness.evidence.run import slug
from harness.qemu.record import MachineRecord
from harness.qemu.script import script

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_of_the_evidence_is_complete(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    machine.console.run("echo on the console")
    machine.ssh.run("echo over ssh; exit 3")
    machine.shutdown()
    folder = machine.evidence
    assert b"on the console" in (folder / "serial.log").read_bytes()
    header, *events = map(json.loads, (folder / "serial.cast").read_text().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 80, 24)
    times = [event[0] for event in events]
    assert times == sorted(times)
    assert "on the console" in "".join(event[2] for event in events)
    commands = [json.loads(line) for line in (folder / "ssh.jsonl").read_text().splitlines()]
    (command,) = [entry for entry in commands if entry.get("run", "").startswith("echo over ssh")]
    assert (command["status"], command["stdout"]) == (3, "over ssh\n")
    messages = [json.loads(line) for line in (folder / "qmp.jsonl").read_text().splitlines()]
    assert any(message.get("receive", {}).get("event") == "SHUTDOWN" for message in messages)
    record = MachineRecord.read(folder / "machine.json")
    assert script(record).encode() == (folder / "qemu.sh").read_bytes()
    assert record.spec == machine.spec
    assert record.versions.qemu
    timeline = json.loads((folder.parent / "timeline.json").read_text())
    names = [step["name"] for step in timeline["steps"]]
    # Before it, on a busy host: the wait until the host can carry the machine.
    assert "start" in names
    assert names.index("start") < names.index("shut down by ACPI")
    assert all(step["seconds"] is not None for step in timeline["steps"])


@pytest.mark.parametrize("options", [(), ("--fresh",)], ids=["kept disks", "fresh disks"])
def test_qemu_sh_runs_by_hand(lab: Lab, options: tuple[str, ...]) -> None:
    # The longest possible name: sockets would not fit into the folder of the disks.
    machine = lab.boot("micro", name="micro-" + 25 * "x")
    machine.os.login()
    machine.power_cut()
    by_hand = subprocess.Popen(
        [str(machine.evidence / "qemu.sh"), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert by_hand.stdout is not None
    try:
        seen = b""
        while b"micro login:" not in seen:
            chunk = os.read(by_hand.stdout.fileno(), 4096)
            assert chunk, seen
            seen += chunk
    finally:
        by_hand.kill()
        by_hand.communicate()


def test_evidence_is_kept_for_failed_tests_or_on_demand(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('good', [True, False])\n"
        "def test_it(lab, good):\n"
        "    machine = lab.boot('micro')\n"
        "    machine.os.login()\n"
        "    assert good, 'the image says no'\n"
        "@pytest.mark.needs('upgrade')\n"
        "def test_not_for_micro(lab): raise AssertionError\n"
    )

    def run(*options: str) -> tuple[str, list[str], Path]:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-ra",
                "--image=micro",
                *options,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        folder = (tmp_path / ".harness" / "runs" / "latest").resolve()
        kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
        return ended.stdout, kept, folder

    output, kept, folder = run()
    assert kept == [slug("test_it.py::test_it[False]")]
    assert "product  test_it.py::test_it[False]" in output
    assert "image micro does not declare upgrade in" in output
    failed, passed = (
        ET.parse(folder / "junit.xml").getroot().find(f".//testcase[@name='test_it[{good}]']")
        for good in (False, True)
    )
    assert failed is not None
    assert passed is not None
    properties = {item.get("name"): item.get("value") for item in failed.iter("property")}
    assert properties["verdict"] == "product"
    assert properties["evidence"] == str(folder / kept[0])
    assert passed.find("failure") is None
    _, kept, _ = run("--keep", "-k", "True")
    assert kept == [slug("test_it.py::test_it[True]")]


def test_workers_share_one_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture(scope='module')\n"
        "def shared(shared_lab): return shared_lab.boot('micro', name='shared').wait_ready()\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(lab, shared, n):\n"
        "    for machine in (shared, lab.boot('micro').wait_ready()):\n"
        "        assert machine.succeed('echo up') == 'up\\n'\n"
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--image=micro",
            "-n2",
            "--keep",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (run,) = [path for path in (tmp_path / ".harness" / "runs").glob("2*")]
    kept = sorted(path.parent for path in run.glob("*/*/qemu.sh"))
    # Each worker has its own copy of the machines that a module shares, with its own evidence.
    assert [str(path.relative_to(run)) for path in kept] == [
        *(f"{slug(f'test_it.py::test_it[{n}]')}/micro" for n in (1, 2)),
        *(f"{slug('test_it.py')}-gw{n}/shared" for n in (0, 1)),
    ]
