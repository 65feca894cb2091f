"""The evidence of a test: complete, readable by others' tools, and runnable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fixtures.machines import Boot

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_says_what_happened(boot: Boot) -> None:
    machine = boot("micro")
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
    (command,) = [each for each in commands if each.get("run", "").startswith("echo over ssh")]
    assert (command["status"], command["stdout"]) == (3, "over ssh\n")
    messages = [json.loads(line) for line in (folder / "qmp.jsonl").read_text().splitlines()]
    assert any(each.get("receive", {}).get("event") == "SHUTDOWN" for each in messages)
    timeline = json.loads((folder.parent / "timeline.json").read_text())
    names = [step["name"] for step in timeline["steps"]]
    assert names[0] == "start"
    assert "shut down by ACPI" in names
    assert all(step["seconds"] is not None for step in timeline["steps"])


@pytest.mark.parametrize("options", [(), ("--fresh",)], ids=["as it was", "fresh"])
def test_the_command_runs_by_hand(boot: Boot, options: tuple[str, ...]) -> None:
    # As long as a test's name can be: sockets would not fit into the folder of the disks.
    machine = boot("micro", name="micro-" + 25 * "x")
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


def test_evidence_is_kept_for_what_failed_or_on_demand(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fixtures.plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('good', [True, False])\n"
        "def test_it(boot, good):\n"
        "    machine = boot('micro')\n"
        "    machine.os.login()\n"
        "    assert good, 'the image says no'\n"
        "@pytest.mark.needs('upgrade')\n"
        "def test_not_for_micro(boot): raise AssertionError\n"
    )

    def run(*options: str) -> tuple[str, list[str], Path]:
        done = subprocess.run(
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
        return done.stdout, sorted(each.name for each in folder.iterdir() if each.is_dir()), folder

    output, kept, folder = run()
    assert kept == ["test_it-test_it-False"]
    assert "product  test_it.py::test_it[False]" in output
    assert "image micro does not declare upgrade in" in output
    failed, passed = (
        ET.parse(folder / "junit.xml").getroot().find(f".//testcase[@name='test_it[{good}]']")
        for good in (False, True)
    )
    assert failed is not None
    assert passed is not None
    properties = {each.get("name"): each.get("value") for each in failed.iter("property")}
    assert properties["verdict"] == "product"
    assert properties["evidence"] == str(folder / "test_it-test_it-False")
    assert passed.find("failure") is None
    _, kept, _ = run("--keep", "-k", "True")
    assert kept == ["test_it-test_it-True"]


def test_workers_share_one_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fixtures.plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture(scope='module')\n"
        "def shared(shared_boot): return shared_boot('micro', name='shared').wait_ready()\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(boot, shared, n):\n"
        "    for machine in (shared, boot('micro').wait_ready()):\n"
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
    kept = sorted(each.parent for each in run.glob("*/*/qemu.sh"))
    # Each worker has its own of the machines that a module shares, and removes their evidence.
    assert [str(each.relative_to(run)) for each in kept] == [
        *("test_it-test_it-1/micro", "test_it-test_it-2/micro"),
        *("test_it.py-gw0/shared", "test_it.py-gw1/shared"),
    ]
