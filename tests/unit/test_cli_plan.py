"""``harness plan``, in a project of its own under git."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Project
from harness import cli
from harness.gate import changes, local, planner
from harness.gate import plan as plans
from harness.gate.collection import Collection, collect
from harness.gate.timings import Timings
from tests.programs import need

IMAGE = """\
name: {name}
summary: An image
profile: micro
build: {{script: build, inputs: [build, ../common]}}
arches:
  x86_64: {{firmware: kernel, artifacts: {{kernel: {{file: k}}}}}}
capabilities: [ssh]
"""

LIVE = """\
import pytest

@pytest.mark.tier("smoke", cost=10)
def test_boots(lab):
    pass

@pytest.mark.tier("nightly", cost=10)
def test_much(lab):
    pass

@pytest.mark.needs("upgrade")
def test_upgrades(lab):
    pass
"""

SEED = """\
from pathlib import Path

HERE = Path(__file__).resolve().parent

def test_seed(lab):
    from helpers import late
    (HERE.parents[1] / "data" / "named.yaml").read_text()
    late()
"""

TABLE = """\
import pytest
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2].joinpath("da" + "ta", "ca" + "ses")
CASES = [path.read_text() for path in FOLDER.glob("*.txt")]

@pytest.mark.parametrize("case", CASES)
def test_case(lab, case):
    pass
"""


def git(folder: Path, *arguments: str) -> None:
    settings = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], Collection]:
    """Return what the tests of this module have collected."""
    return {}


@pytest.fixture(autouse=True)
def collect_once(known: dict[tuple[str, ...], Collection], monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect equal files once: pytest takes seconds to start."""

    @functools.wraps(collect)
    def cached(
        root: Path, home: Path, suite: str, *, image: str, tier: str, **rest: Any
    ) -> Collection:
        paths = [
            path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".txt", ".yaml")
        ]
        contents = "".join(f"{path.relative_to(root)} {path.read_text()}" for path in paths)
        key = (hashlib.sha256(contents.encode()).hexdigest(), suite, image, tier)
        if key not in known:
            known[key] = collect(root, home, suite, image=image, tier=tier, **rest)
        return known[key]

    monkeypatch.setattr(planner, "collect", cached)


@pytest.fixture
def kites(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project with two images and three files of tests, whose folder is the working folder."""
    for name in ("kite", "tiny"):
        project.write(f"images/{name}/image.yaml", IMAGE.format(name=name))
        project.write(f"images/{name}/build", "#!/bin/sh\n").chmod(0o755)
    project.write("images/common/list", "busybox\n")
    project.write("suites/live/test_live.py", LIVE)
    project.write("suites/seed/test_seed.py", SEED)
    project.write("suites/seed/conftest.py", 'SEED = "data/of_conftest.yaml"\n')
    project.write("suites/table/test_table.py", TABLE)
    project.write("data/cases/one.txt", "one")
    project.write("conftest.py", "import sys\nsys.path.insert(0, 'lib')\n")
    project.write("lib/helpers.py", "import lower\n\ndef late():\n    pass\n")
    project.write("lib/lower.py", "")
    project.write("data/named.yaml", "")
    project.write("data/unnamed.yaml", "")
    project.write("data/of_conftest.yaml", "")
    project.write("docs/index.md", "")
    project.write(
        "gate.yaml",
        "changes:\n"
        '- {paths: ["data/**", "lib/**"], selects: nothing, because: nobody uses it}\n'
        "- {paths: [conftest.py], selects: everything}\n",
    )
    need("git")
    git(project.folder, "init", "--quiet", "--initial-branch", "main")
    git(project.folder, "add", "--all")
    git(project.folder, "commit", "--quiet", "--message", "All of it")
    monkeypatch.chdir(project.folder)
    return project


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["plan", *arguments]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def files(content: dict[str, Any]) -> dict[str, set[str]]:
    by_image: dict[str, set[str]] = {}
    for job in content["jobs"]:
        names = {Path(test.partition("::")[0]).name for test in job["tests"]}
        by_image.setdefault(job["image"], set()).update(names)
    return by_image


ALL = {"test_live.py", "test_seed.py", "test_table.py"}


def test_a_plan_of_everything(kites: Project, capsys: pytest.CaptureFixture[str]) -> None:
    content = plan(capsys)
    assert files(content) == {"kite": ALL, "tiny": ALL}
    assert content["images"][0]["left_out"] == {"capability": 1, "tier": 1}
    assert len(content["commit"]) == 40
    assert not content["dirty"]
    assert plan(capsys)["id"] == content["id"]
    assert not (kites.folder / ".harness").exists()
    nightly = plan(capsys, "--tier", "nightly", "--image", "kite")
    assert nightly["images"][0]["tests"] == content["images"][0]["tests"] + 1
    assert [row["image"] for row in nightly["images"]] == ["kite"]


def test_what_each_file_of_the_project_selects(kites: Project) -> None:
    """A change in no commit counts, and so does a new file; what a test depends on selects it."""

    def both(*files: str) -> dict[str, set[str]]:
        return {"kite": set(files), "tiny": set(files)}

    expected = {
        "docs/index.md": {},
        "data/unnamed.yaml": {},
        "images/tiny/build": {"tiny": ALL},
        "images/common/list": both(*ALL),
        "suites/live/test_live.py": both("test_live.py"),
        # An import inside a function, over one module more; a path that is put together.
        "lib/lower.py": both("test_seed.py"),
        "data/named.yaml": both("test_seed.py"),
        "data/of_conftest.yaml": both("test_seed.py"),
        # What only a run of pytest knows: a folder that is listed, a file that is opened.
        "data/cases/new.txt": both("test_table.py"),
        "data/cases/one.txt": both("test_table.py"),
        "suites/table/cases/new.txt": both("test_table.py"),
        "conftest.py": both(*ALL),
        "unknown": both(*ALL),
    }
    options = planner.Options(since="main")
    gathered = planner.gather(kites.folder, options, Timings())
    for path, selected in expected.items():
        file = kites.folder / path
        file.parent.mkdir(exist_ok=True)
        before = file.read_text() if file.exists() else None
        file.write_text((before or "") + "\n# changed\n")
        changed = changes.changed_since(kites.folder, "main")
        assert changed == (path,)
        plan = planner.make(dataclasses.replace(gathered, changed=changed), options)
        assert files(plans.dump(plan)) == selected, path
        assert bool(plan.empty) == (not selected)
        if before is None:
            file.unlink()
        else:
            file.write_text(before)


def test_commits_since_the_merge_base_count(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """What main did meanwhile does not; a renamed file counts at its old place, too."""
    git(kites.folder, "checkout", "--quiet", "-b", "mine")
    git(kites.folder, "mv", "suites/live/test_live.py", "suites/seed/test_boot.py")
    git(kites.folder, "commit", "--quiet", "--message", "Move")
    git(kites.folder, "checkout", "--quiet", "main")
    kites.write("Makefile", "all:\n")
    git(kites.folder, "add", "--all")
    git(kites.folder, "commit", "--quiet", "--message", "Theirs")
    git(kites.folder, "checkout", "--quiet", "mine")
    content = plan(capsys, "--changed-since", "main", "--image", "kite")
    assert content["changed"] == ["suites/live/test_live.py", "suites/seed/test_boot.py"]
    assert content["since"] == "main"
    # The folder that lost its only tests: those of the nearest that has some.
    assert "test_boot.py" in files(content)["kite"]


def test_lines_for_github(kites: Project, capsys: pytest.CaptureFixture[str]) -> None:
    path = kites.folder / "plan.json"
    assert cli.main(["plan", "--github", "-o", str(path), "--target-seconds", "1"]) == 0
    out, err = capsys.readouterr()
    values = dict(line.split("=", 1) for line in out.splitlines())
    written = plans.read(path)
    legs = json.loads(values["matrix"])["include"]
    assert [leg["job"] for leg in legs] == [job.id for job in written.jobs]
    assert values["count"] == str(len(legs))
    assert (values["id"], values["empty"]) == (written.id, "")
    assert legs[0]["labels"] == ["harness"]
    assert legs[0]["timeout"] == 20
    assert f"plan {written.id}: {len(legs)} jobs" in err


def test_a_plan_that_is_there_already_is_printed(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of second attempts: the matrix is of its jobs, and no other is made."""
    path = kites.folder / "plan.json"
    assert cli.main(["plan", "-o", str(path)]) == 0
    plan = plans.read(path)
    plans.write(dataclasses.replace(plan, jobs=plan.jobs[-1:], attempt=2), path)
    capsys.readouterr()
    assert cli.main(["plan", "--from", str(path), "--github"]) == 0
    values = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    legs = json.loads(values["matrix"])["include"]
    assert [leg["job"] for leg in legs] == [plan.jobs[-1].id]
    assert values["count"] == "1"


def test_a_plan_that_is_not_there_cannot_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--from", str(tmp_path / "none.json"), "--github"]) != 0
    assert "none.json" in capsys.readouterr().err


def test_an_empty_plan_is_stated(kites: Project, capsys: pytest.CaptureFixture[str]) -> None:
    kites.write("docs/index.md", "more\n")
    assert cli.main(["plan", "--github", "--changed-since", "main"]) == 0
    out, err = capsys.readouterr()
    assert 'matrix={"include":[]}\ncount=0\n' in out
    assert "empty=what changed since main selects nothing: documentation (docs/index.md)" in out
    assert "empty: what changed since main" in err


def slow(project: Project, jobs: list[dict[str, Any]], path: str) -> None:
    """Write the results of a run in which each test of some jobs took 400 seconds."""
    tests = [
        {"id": test, "arch": "x86_64", "verdict": "passed", "seconds": {"call": 400.0}}
        for job in jobs
        for test in job["tests"]
    ]
    run = {"format": 2, "began": "2026-11-29T01:02:03Z", "image": {"name": "kite"}, "tests": tests}
    project.write(path, json.dumps(run))


def test_durations_of_earlier_runs_count(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plan(capsys, "--image", "kite")["jobs"]
    slow(kites, before, ".harness/runs/one/results.json")
    after = plan(capsys, "--image", "kite")["jobs"]
    assert [len(job["tests"]) for job in after] == [1, 1, 1]
    assert {round(job["seconds"]) for job in after} == {415}
    elsewhere = plan(capsys, "--image", "kite", "--runs", str(kites.folder / "docs"))["jobs"]
    assert elsewhere == before


def test_a_gate_makes_the_same_plan(kites: Project, capsys: pytest.CaptureFixture[str]) -> None:
    kites.write("docs/index.md", "more\n")
    options = ("--changed-since", "main", "--tier", "smoke", "--image", "kite")
    content = plan(capsys, *options)
    assert cli.main(["gate", *options]) == 0
    assert "nothing to do: what changed since main selects nothing" in capsys.readouterr().out
    gate_plan = plans.read(kites.folder / ".harness/gate/latest/plan.json")
    assert (gate_plan.id, gate_plan.tier) == (content["id"], "smoke")


def test_a_gate_on_this_host_has_one_job_for_an_image(
    kites: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(kites, plan(capsys, "--image", "kite")["jobs"], ".harness/runs/one/results.json")
    monkeypatch.setattr(local.Jobs, "run", lambda *_: None)
    for options, jobs in (((), 1), (("--target-seconds", "600"), 3)):
        cli.main(["gate", "--image", "kite", *options])
        assert len(plans.read(kites.folder / ".harness/gate/latest/plan.json").jobs) == jobs


def test_a_gate_that_gets_no_plan_leaves_no_folder(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gate", "--image", "kit"]) == 2
    assert "unknown image 'kit'" in capsys.readouterr().err
    assert not (kites.folder / ".harness").exists()


def test_gates_on_this_host_count_as_earlier_runs(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plan(capsys, "--image", "kite")["jobs"]
    slow(kites, before, ".harness/gate/one/results/a/1/results.json")
    assert plan(capsys, "--image", "kite")["jobs"] != before


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_wrong_input_is_an_error_and_no_plan(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    image = kites.folder / "images/tiny/image.yaml"
    good = image.read_text()
    image.write_text(good.replace("summary", "sumary"))
    assert "images/tiny/image.yaml:2: unknown key 'sumary'" in failing(capsys)
    image.write_text(good)

    rules = (kites.folder / "gate.yaml").read_text()
    kites.write("gate.yaml", rules + "suite: []\n")
    assert "gate.yaml:4: unknown key 'suite'; did you mean suites" in failing(capsys)
    kites.write("gate.yaml", rules)

    assert "unknown image 'kit'" in failing(capsys, "--image", "kit")
    assert "unknown arch 'arm'" in failing(capsys, "--arch", "arm")
    assert "--changed-since gone: git knows no such commit" in failing(
        capsys, "--changed-since", "gone"
    )
    assert "no such commit" in failing(capsys, "--changed-since=--help")
    assert "--max-jobs is from 1 to 256" in failing(capsys, "--max-jobs", "257")
    assert "--target-seconds" in failing(capsys, "--target-seconds", "nan")
    assert "no such folder" in failing(capsys, "--images", "gone")
    assert "no such folder of runs" in failing(capsys, "--runs", "gone")

    kites.write("suites/live/test_live.py", "def test_x(:\n")
    message = failing(capsys, "--image", "kite")
    assert "the tests of suites cannot be collected for the image kite" in message
    assert "test_live.py" in message
    assert "SyntaxError" in message


def test_a_history_that_does_not_meet_is_an_error(
    kites: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    git(kites.folder, "checkout", "--quiet", "--orphan", "other")
    git(kites.folder, "commit", "--quiet", "--message", "Alone")
    assert "no commit in common with HEAD" in failing(capsys, "--changed-since", "main")


def test_a_project_without_git_has_no_commit(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("images/kite/image.yaml", IMAGE.format(name="kite").replace(", ../common", ""))
    project.write("images/kite/build", "#!/bin/sh\n").chmod(0o755)
    project.write("suites/live/test_live.py", LIVE)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.folder.parent))
    content = plan(capsys)
    assert (content["commit"], content["dirty"]) == ("", False)
    assert "is in no git checkout" in failing(capsys, "--changed-since", "main")


def test_harness_own_suites_judge_a_project_that_has_none(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("images/kite/image.yaml", IMAGE.format(name="kite").replace(", ../common", ""))
    project.write("images/kite/build", "#!/bin/sh\n").chmod(0o755)
    monkeypatch.chdir(project.folder)
    content = plan(capsys)
    assert [row["image"] for row in content["images"]] == ["kite"]
    tests = [test for job in content["jobs"] for test in job["tests"]]
    assert "suites/boot/test_live.py::test_files_travel_over_ssh" in tests
