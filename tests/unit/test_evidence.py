from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from harness.errors import PanicError, StoreError
from harness.evidence.run import RUNS_KEPT, Run, slug, sweep, trim
from harness.evidence.timeline import Timeline
from harness.progress import Progress


def test_a_timeline_has_nested_steps_with_times_and_verdicts(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json", "a test")
    with pytest.raises(PanicError), timeline.step("boot", machine="m"):
        with timeline.step("inner", machine="m", status=3):
            pass
        raise PanicError("the kernel panicked\nmore", hint="look")
    content = json.loads((tmp_path / "timeline.json").read_text())
    outer, inner = content["steps"]
    assert content["title"] == "a test"
    assert (outer["name"], outer["depth"], outer["outcome"]) == ("boot", 0, "product")
    assert outer["error"] == "the kernel panicked"
    assert (inner["depth"], inner["outcome"], inner["data"]) == (1, "passed", {"status": 3})
    assert outer["seconds"] >= inner["seconds"]


def test_a_step_is_on_the_timeline_while_it_runs(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json")
    with timeline.step("install"):
        (step,) = json.loads((tmp_path / "timeline.json").read_text())["steps"]
        assert step["outcome"] == "running"
        running = timeline.running()
        assert running is not None
        assert running.name == "install"
    assert timeline.running() is None


class Counted:
    """Counts how often it is written."""

    def __init__(self, times: list[str]) -> None:
        self.times = times

    def __deepcopy__(self, memo: object) -> Counted:
        return self

    def __str__(self) -> str:
        self.times.append("counted")
        return "counted"


def test_a_step_that_has_ended_is_not_encoded_again(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json", "a test")
    counted = Counted([])
    with timeline.step("outer", machine="m") as outer:
        with timeline.step("inner", counted=counted):
            pass
        for number in range(50):
            timeline.note(f"step {number}", text="two\nlines", nothing=[])
        outer.data["late"] = "said at the end"
    timeline.find("rcu-stall", "RCU stall", "m", "[ 1.0] rcu: stall")
    # When it began, and when it ended.
    assert len(counted.times) == 2
    text = (tmp_path / "timeline.json").read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=1)
    assert [step["name"] for step in content["steps"]] == [step.name for step in timeline.steps]
    assert content["steps"][0]["data"] == {"late": "said at the end"}
    assert content["steps"][1]["data"] == {"counted": "counted"}
    assert content["findings"][0]["kind"] == "rcu-stall"


def test_a_slug_is_readable_and_the_same_in_each_run() -> None:
    name = slug("suites/boot/test_boot.py::test_login[x-y]")
    assert name.startswith("boot-test_boot-test_login-x-y-")
    assert name == slug("suites/boot/test_boot.py::test_login[x-y]")
    assert slug("/").isalnum()


def test_no_two_tests_have_one_folder() -> None:
    ids = [
        f"suites/t.py::test[{x}]" for x in ("a b", "a-b", "a/b", "a_b", "\u00e4", "\u00f6", "", " ")
    ]
    ids += ["net/dns/test_a.py::test_b", "net-dns/test_a.py::test_b"]
    ids += ["test_x.py::TestA::test_b", "test_x-TestA.py::test_b", "test_x/TestA.py::test_b"]
    ids += ["suites/a.py::t", "tests/a.py::t", "a.py::t", "\udcff", "lab", "services"]
    ids += ["suites/a.py::test_" + "x" * 300 + end for end in "ab"]
    assert len({slug(each) for each in ids}) == len(ids)
    assert all(len(slug(each)) <= 120 for each in ids)


def test_each_try_has_an_empty_folder_of_its_own(tmp_path: Path) -> None:
    run = Run.reserve(tmp_path)
    assert run.last_try("a.py::t") is None
    first = run.new_try("a.py::t")
    (first / "try-me").mkdir()
    assert run.last_try("a.py::t") == first
    second = run.new_try("a.py::t", number=2)
    assert second == first / "try-2"
    # A worker that has not seen the tries of one that crashed.
    third = run.new_try("a.py::t")
    assert (third, list(third.iterdir())) == (first / "try-3", [])
    assert run.last_try("a.py::t") == third
    other = run.new_try("a.py::t", "gw1")
    assert other.parent == run.path
    assert other != first
    run.close()


def test_a_run_has_a_folder_and_is_the_latest(tmp_path: Path) -> None:
    run = Run.reserve(tmp_path / ".harness" / "runs")
    assert not (tmp_path / ".harness").exists()
    folder = run.new_try("suites/a.py::test_b")
    assert (tmp_path / ".harness" / ".gitignore").read_text() == "*\n"
    assert folder.parent == run.path
    assert (tmp_path / ".harness" / "runs" / "latest").resolve() == run.path
    run.drop(folder)
    assert not folder.exists()
    run.close()
    assert run.path.exists()


def test_a_run_without_a_machine_leaves_nothing(tmp_path: Path) -> None:
    first = Run.reserve(tmp_path)
    first.folder("a")
    first.close()
    Run.reserve(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["latest", first.path.name])
    assert (tmp_path / "latest").resolve() == first.path


def test_a_killed_run_loses_its_disks_and_keeps_its_logs(tmp_path: Path) -> None:
    for name in ("20200101-000000-1", "20200101-000000-2"):
        (tmp_path / name / "test" / "m" / "disks").mkdir(parents=True)
        (tmp_path / name / ".used").touch()
        (tmp_path / name / "test" / "m" / "serial.log").touch()
    # The first run was killed: its lock file exists, and no process holds it. The second ended normally.
    (tmp_path / "20200101-000000-1" / "run.lock").touch()
    live = Run.reserve(tmp_path)
    live.begin()
    (live.path / "disks").mkdir()
    sweep(tmp_path)
    assert not (tmp_path / "20200101-000000-1" / "test" / "m" / "disks").exists()
    assert (tmp_path / "20200101-000000-1" / "test" / "m" / "serial.log").exists()
    assert (tmp_path / "20200101-000000-2" / "test" / "m" / "disks").exists()
    assert (live.path / "disks").exists(), "a running run keeps its disks"
    live.close()


def test_drafts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "20260101-000000-1/boot-1234"
    (place / ".bundle-x").mkdir(parents=True)
    (place / "leaf/.disk-y").mkdir(parents=True)
    (place.parent / "run.lock").touch()
    drafts = (
        ".bundle-x/0",
        "leaf/.disk-y/partition",
        ".bundle.tar.zst.1.part",
        "leaf/.a.1.redacted",
    )
    for name in ("leaf/serial.log", *drafts):
        (place / name).write_text("")
    sweep(tmp_path)
    assert {str(path.relative_to(place)) for path in place.rglob("*")} == {
        "leaf",
        "leaf/serial.log",
    }


def bundle(root: Path, run: str, size: int, age: int, *, name: str = "boot/bundle.tar.zst") -> Path:
    path = root / run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / run / ".used").touch()
    path.write_bytes(bytes(size))
    os.utime(path, (age, age))
    return path


def test_the_oldest_bundles_go_where_all_take_too_much(tmp_path: Path) -> None:
    own = bundle(tmp_path, "20260104-000000-1", 500, age=1)
    oldest = bundle(tmp_path, "20260101-000000-1", 100, age=2)
    log = oldest.with_name("serial.log")
    log.write_text("")
    shared = bundle(tmp_path, "20260102-000000-1", 100, age=3, name="m/it-1.bundle.tar.zst")
    newest = bundle(tmp_path, "20260103-000000-1", 100, age=4)
    foreign = bundle(tmp_path, "downloads", 100, age=1)
    assert trim(tmp_path, 800, own.parents[1]) == (0, 0)
    assert trim(tmp_path, 600, own.parents[1]) == (2, 200)
    assert [path.exists() for path in (oldest, shared, newest)] == [False, False, True]
    # The run's own bundle stays, however large, and so do evidence and foreign folders.
    assert trim(tmp_path, 0, own.parents[1]) == (1, 100)
    assert own.exists()
    assert log.exists()
    assert foreign.exists()


def test_the_bundles_of_a_run_that_is_alive_stay(tmp_path: Path) -> None:
    alive = Run.reserve(tmp_path)
    alive.begin()
    path = bundle(tmp_path, alive.path.name, 100, age=1)
    assert trim(tmp_path, 0, tmp_path / "20260104-000000-1") == (0, 0)
    alive.close()
    assert trim(tmp_path, 0, tmp_path / "20260104-000000-1") == (1, 100)
    assert not path.exists()


def test_old_runs_are_removed(tmp_path: Path) -> None:
    for number in range(RUNS_KEPT + 5):
        (tmp_path / f"20200101-0000{number:02d}-1").mkdir()
        (tmp_path / f"20200101-0000{number:02d}-1" / ".used").touch()
    run = Run.reserve(tmp_path)
    run.folder("a")
    run.close()
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "latest")
    assert len(left) == RUNS_KEPT
    assert left[-1] == run.path.name


def test_folders_that_no_run_created_stay(tmp_path: Path) -> None:
    foreign = [f"project-{number:02d}" for number in range(RUNS_KEPT + 5)]
    foreign += [f"20200101-0000{number:02d}-1" for number in range(RUNS_KEPT + 5)]
    foreign += ["latest-work", "runs.old"]
    for name in foreign:
        (tmp_path / name / "disks").mkdir(parents=True)
    # A run that a person has renamed in order to keep it.
    (tmp_path / "runs.old" / ".used").touch()
    run = Run.reserve(tmp_path)
    run.begin()
    run.close()
    left = {path.name for path in tmp_path.iterdir()} - {"latest", run.path.name}
    assert sorted(left) == sorted(foreign)
    assert all((tmp_path / name / "disks").exists() for name in foreign)


def test_unwritable_evidence_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="--evidence"):
        Run.reserve(tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        ("wait for login", "wait for login"),
        ("run: until (\n  true\n); do sleep 1; done", "run: until ( true ); do sleep 1; done"),
        ("run: " + "true; " * 100, "run: " + "true; " * 18 + "..."),
    ],
    ids=["short", "lines", "long"],
)
def test_progress_prints_one_line_for_a_long_step(
    monkeypatch: pytest.MonkeyPatch, step: str, shown: str
) -> None:
    monkeypatch.setattr("harness.progress.FIRST_LINE", 0.01)
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as stream:
        progress = Progress(stream, live=False)
        with progress.doing("skiff", step):
            # The thread of Progress prints the line when it is due.
            assert reader.readline().startswith(f"  skiff: {shown} (")
        progress.close()


def test_progress_draws_lines_in_a_terminal_and_erases_them() -> None:
    class Screen(io.StringIO):
        drawn = threading.Event()

        def write(self, text: str) -> int:
            if "wait for login" in text:
                self.drawn.set()
            return super().write(text)

    stream = Screen()
    progress = Progress(stream, live=True)
    with progress.doing("skiff", "wait for login"):
        assert stream.drawn.wait(30)
    progress.close()
    assert stream.getvalue().rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_a_reader_who_needs_no_more_fails_no_wait() -> None:
    timeline = Timeline()

    def lines() -> Generator[str, None, None]:
        with timeline.waiting("lines", machine="skiff", limit=5):
            yield "one"
            yield "two"

    some = lines()
    assert next(some) == "one"
    some.close()
    assert not timeline.steps
    assert timeline.doing("skiff") is None


def test_a_wait_is_a_step_only_if_it_fails() -> None:
    timeline = Timeline()
    with timeline.step("outer"):
        with timeline.waiting("goes well", machine="skiff", limit=5):
            pass
        with pytest.raises(PanicError), timeline.waiting("the login", machine="skiff", limit=5):
            raise PanicError("skiff panicked\nmore")
    outer, wait = timeline.steps
    assert (outer.outcome, wait.outcome) == ("passed", "product")
    assert (wait.name, wait.machine, wait.depth) == ("the login", "skiff", 1)
    assert (wait.error, wait.data) == ("skiff panicked", {"limit": 5})
    assert wait.seconds is not None
