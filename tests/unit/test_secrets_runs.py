"""A declared secret in a run of pytest: no file and no line of the run has it."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from pathlib import Path

import pytest

from fixtures.project import Finished, Project
from harness.evidence.bundle import Bundle
from harness.evidence.secrets import Secrets

VALUE = 'rosebud "9" <&>'
"""JSON, XML and shells quote it, and a part of it is no name of a file."""

PLANTED = """
import base64, json, os, time
from pathlib import Path

import pytest

VALUE = 'rosebud "9" <&>'

def plant(lab):
    machine = lab.folder / "leaf"
    machine.mkdir()
    (machine / "machine.json").write_text(json.dumps({"spec": {"cmdline": VALUE}}))
    now = time.time()
    coded = base64.b64encode(VALUE.encode()).decode()
    words = f"login: {VALUE} \\x1b[1m{VALUE[:7]}\\x1b[0m{VALUE[7:]} {coded}"
    head = {"version": 2, "width": 80, "height": 24, "timestamp": int(now), "began": now}
    events = [[0.1, "o", VALUE[:5]], [0.2, "o", VALUE[5:] + "\\r\\n"], [0.3, "o", words]]
    (machine / "serial.cast").write_text("\\n".join(map(json.dumps, [head, *events])) + "\\n")
    (machine / "serial.log").write_text(words)
    ssh = {"t": now, "run": f"echo {VALUE}", "status": 0, "seconds": 0.1, "stdout": VALUE.encode().hex()}
    (machine / "ssh.jsonl").write_text(json.dumps(ssh) + "\\n")
    (machine / "screen rosebud-9.png").write_bytes(b"\\x89PNG")
    (machine / f"{VALUE}.png").write_bytes(b"\\x89PNG")
    with lab.timeline.step(f"register {VALUE}", machine="leaf"):
        raise AssertionError(f"{VALUE} was refused")

@pytest.mark.parametrize("token", [VALUE], ids=["of rosebud-9"])
def test_it(lab, declare_secret, token, record_property):
    declare_secret("token", token)
    record_property("token", VALUE)
    print("prints", VALUE)
    plant(lab)
"""


def run(project: Project, text: str, *options: str) -> Finished:
    project.write("test_it.py", text)
    return project.pytest("-q", "--image", "micro", "--acceptance", *options, "test_it.py")


def report(project: Project) -> Finished:
    return project.run(sys.executable, "-m", "harness.cli", "report")


def holders(folder: Path) -> list[str]:
    """Return the files that hold the secret, in whatever form, also in the blocks of reports."""
    secrets = Secrets()
    secrets.declare("token", VALUE)
    places = []
    for path in sorted(folder.rglob("*")):
        if secrets.names_in_text(str(path.relative_to(folder))):
            places.append(f"the name of {path.name}")
        if path.is_symlink() or not path.is_file():
            continue
        texts = [path.read_bytes()]
        if path.name == "report.html":
            blocks = re.findall(rb'id="block-\w+">([A-Za-z0-9+/=]*)<', texts[0])
            assert len(blocks) > 3
            texts += [zlib.decompress(base64.b64decode(block)) for block in blocks]
            # A text of a record is one line of JSON; its lines are apart there.
            texts.append(b"".join(texts[1:]).replace(b'","', b""))
        if path.name.endswith("bundle.tar.zst"):
            with Bundle(path) as bundle:
                texts = [bundle.archive.manifest]
                for member, pieces in bundle.archive.contents(bundle.manifest.files):
                    texts += [member.path.encode(), b"".join(pieces)]
        if any(secrets.names_in_text(text.decode(errors="replace")) for text in texts):
            places.append(str(path.relative_to(folder)))
    return places


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "workers"])
def test_a_declared_secret_is_in_nothing_that_a_run_leaves(
    project: Project, workers: tuple[str, ...]
) -> None:
    result = run(project, PLANTED, "-pno:warnings", *workers, "--junitxml=junit.xml")
    assert result.status == 1, result.text
    own = project.folder / ".harness/runs/latest"
    names = {path.name for path in own.rglob("*")}
    assert {"report.html", "results.json", "bundle.tar.zst", "serial.cast", "ssh.jsonl"} <= names
    assert "[secret token].png" in names
    assert holders(own.resolve()) == []
    assert "[secret token]" in (project.folder / "junit.xml").read_text()
    assert [each for each in holders(project.folder) if each != "test_it.py"] == []
    assert "[secret token] was refused" in result.text
    assert "prints [secret token]" in result.text
    # The folder is named by the test's id, which pytest knows before anybody declares a secret.
    printed = re.sub(r"(?m)^.*(test_it\[|test_it-of-).*$", "", result.text)
    printed = printed.replace("VALUE = 'rosebud \"9\" <&>'", "")
    assert [line for line in printed.splitlines() if "rosebud" in line] == []
    (test,) = json.loads((own / "results.json").read_text())["tests"]
    assert test["reason"] == "AssertionError: [secret token] was refused"
    assert (own / test["evidence"] / "leaf/serial.log").is_file()
    # The evidence has been redacted, so a later report is as clean.
    (own / "report.html").unlink()
    assert report(project).status == 0
    assert holders(own.resolve()) == []


CRASH = PLANTED.replace("        raise Assert", "        os._exit(3)\n        raise Assert")


def test_the_secret_of_a_worker_that_crashed_is_taken_out(project: Project) -> None:
    result = run(project, CRASH, "-n", "1", "--no-retry")
    assert result.status == 11, result.text
    own = (project.folder / ".harness/runs/latest").resolve()
    assert (own / "report.html").is_file()
    assert holders(own) == []


KILLED = "        os.kill(os.getpid(), {})\n    if 0:\n        raise Assert"
INTERRUPTED = PLANTED.replace("        raise Assert", KILLED)


def test_an_interrupted_run_loses_its_secrets(project: Project) -> None:
    result = run(project, INTERRUPTED.replace("{}", "15"))
    assert result.status == 2, result.text
    assert holders((project.folder / ".harness/runs/latest").resolve()) == []


def test_a_killed_run_that_keeps_its_secrets_has_no_report(project: Project) -> None:
    result = run(project, INTERRUPTED.replace("{}", "9"))
    assert result.status == -9, result.text
    own = project.folder / ".harness/runs/latest"
    assert holders(own.resolve()) != []
    (own / "results.json").write_text('{"format": 2, "tests": []}')
    result = report(project)
    assert result.status == 2
    assert "before its declared secrets were taken out" in result.text
    assert not (own / "report.html").exists()


FULL = """
from harness.evidence.secrets import Secrets

def refuse(self, path):
    raise OSError("no space left")

Secrets.redact_file = refuse
"""


def test_evidence_that_cannot_be_redacted_has_no_report(project: Project) -> None:
    project.write("conftest.py", FULL)
    result = run(project, PLANTED)
    assert result.status == 1, result.text
    assert "report: none, because of OSError('no space left')" in result.text
    own = project.folder / ".harness/runs/latest"
    assert not (own / "report.html").exists()
    assert "rosebud" not in (own / "results.json").read_text()
    assert report(project).status == 2


def test_equal_failures_with_other_secrets_have_one_signature(project: Project) -> None:
    signatures = set()
    for value in (VALUE, "quite another word"):
        run(project, PLANTED.replace(repr(VALUE), repr(value)))
        content = json.loads((project.folder / ".harness/runs/latest/results.json").read_text())
        signatures.add(content["tests"][0]["signature"])
    assert len(signatures) == 1
