"""The history of a nightly: one file that is the set of its runs, and what it says of tests."""

from __future__ import annotations

import datetime
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import UsageError
from harness.evidence import history as lines
from harness.gate import history
from harness.known.history import runs as read_runs

BEGAN = datetime.datetime(2026, 11, 1, 1, 0, tzinfo=datetime.UTC)


def result(
    name: str = "test_it", verdict: str = "passed", seconds: float = 2.0, **further: Any
) -> dict[str, Any]:
    return {
        "id": f"suites/boot/test_live.py::{name}",
        "arch": "x86_64",
        "outcome": "passed" if verdict in ("passed", "flaky") else "failed",
        "verdict": verdict,
        "reason": "" if verdict == "passed" else "unit foo.service failed\non skiff",
        "seconds": {"setup": 1.0, "call": seconds - 1.0},
        "tries": [],
        "signature": "" if verdict == "passed" else "5478720c38114f98",
        "known": None,
        **further,
    }


def a_run(
    folder: Path, number: int, *tests: dict[str, Any], began: str = "", **further: Any
) -> Path:
    """A run of the night with this number."""
    moment = BEGAN + datetime.timedelta(days=number)
    content = {
        "format": 2,
        "began": began or moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": 61.2,
        "status": 0,
        "command": ["suites/boot", "--image", "skiff"],
        "image": {"reference": "skiff", "name": "skiff", "variant": "core", "version": "1"},
        "arches": {"x86_64": {"inputs": f"digest-{number}", "qemu": "10.0.2", "accel": "tcg"}},
        "versions": {"harness": "0.1.0"},
        "host": {"cpus": 2.0},
        "tests": list(tests) or [result()],
        **further,
    }
    place = folder / f"run-{number}-{len(list(folder.glob('run-*')))}"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))
    return place


def test_adding_is_idempotent_and_knows_no_order(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, number) for number in range(4)]
    texts = set()
    for number, order in enumerate(itertools.permutations(runs)):
        path = tmp_path / f"{number}.jsonl"
        for run in (*order, order[0]):
            history.add(path, [run])
        texts.add(path.read_text())
    together = tmp_path / "together.jsonl"
    assert history.add(together, [tmp_path]).new == 4
    texts.add(together.read_text())
    assert len(texts) == 1
    assert [each["began"][:10] for each in history.read(together)] == [
        f"2026-11-0{day}" for day in (1, 2, 3, 4)
    ]


def test_two_histories_join(tmp_path: Path) -> None:
    for name, number in (("a", 0), ("b", 1)):
        history.add(tmp_path / f"{name}.jsonl", [a_run(tmp_path / name, number)], url=f"u/{name}")
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    before = two.read_text()
    history.add(one, [two])
    history.add(two, [one])
    assert one.read_text() == two.read_text() != before
    assert [each["url"] for each in history.read(one)] == ["u/a", "u/b"]


def test_it_keeps_the_newest_nights(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for number in (5, 1, 3, 2, 4):
        added = history.add(path, [a_run(tmp_path, number)], keep=3)
    assert [each["began"][:10] for each in history.read(path)] == [
        "2026-11-04",
        "2026-11-05",
        "2026-11-06",
    ]
    assert (added.runs, added.nights, added.new, added.dropped) == (3, 3, 1, 1)
    assert history.add(path, [a_run(tmp_path, 0)], keep=3).dropped == 1
    with pytest.raises(UsageError, match="--keep 0"):
        history.add(path, [tmp_path], keep=0)


@pytest.mark.parametrize(
    ("began", "night"),
    [
        ("2026-11-28T23:50:00Z", "2026-11-29"),
        ("2026-11-29T04:00:00Z", "2026-11-29"),
        ("2026-11-29T11:59:59Z", "2026-11-29"),
        ("2026-11-29T12:00:00Z", "2026-11-30"),
        ("2026-11-29T01:00:00+02:00", "2026-11-29"),
        ("", ""),
        ("yesterday", ""),
        ("9999-12-31T23:00:00Z", ""),
    ],
)
def test_a_night_lasts_from_noon_to_noon(began: str, night: str) -> None:
    assert history.night(began) == night


def test_a_run_that_does_not_say_when_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path, 0, began="yesterday")
    with pytest.raises(UsageError, match="do not say when they began: 'yesterday'"):
        history.add(tmp_path / "history.jsonl", [run])
    assert not (tmp_path / "history.jsonl").exists()


def test_results_that_were_written_early_give_way_to_those_of_the_end(tmp_path: Path) -> None:
    plan = {"id": "9c1f", "job": "skiff-x86_64-1", "attempt": 1, "commit": "158d"}
    early = a_run(tmp_path / "early", 0, plan=plan, arches={}, status=None)
    content = json.loads((early / "results.json").read_text()) | {"tests": []}
    (early / "results.json").write_text(json.dumps(content))
    end = a_run(tmp_path / "end", 0, plan=plan)
    for number, order in enumerate(([early, end], [end, early])):
        path = tmp_path / f"{number}.jsonl"
        for run in order:
            history.add(path, [run])
        (line,) = history.read(path)
        assert line["tests"]["x86_64"] == {"suites/boot/test_live.py::test_it": 2.0}
    other = a_run(tmp_path / "other", 0, plan=plan | {"job": "skiff-x86_64-2"})
    assert history.add(path, [other]).runs == 2


def test_two_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    runs = [a_run(tmp_path, number) for number in range(12)]
    threads = [threading.Thread(target=history.add, args=(path, [run])) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(history.read(path)) == len(runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"history.jsonl:2: not JSON"),
        ("<<<<<<< ours", r"history.jsonl:2: not JSON(.|\n)*merge by `harness history add`"),
        ("[]", r"history.jsonl:2: not a run of a history"),
        ('{"format": 7, "tests": {}}', r"history.jsonl:2: format 7; this version"),
        ('{"format": 1, "tests": {"x86_64": 3}}', r"history.jsonl:2: not a run of a history"),
        ('{"format": 1, "tests": {}}', r"history.jsonl:2: not a run of a history"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "history.jsonl"
    history.add(path, [a_run(tmp_path, 0)])
    good = path.read_text()
    path.write_text(f"{good}{text}\n")
    with pytest.raises(UsageError, match=message):
        history.add(path, [a_run(tmp_path, 1)])
    assert path.read_text() == f"{good}{text}\n"


def test_a_line_is_small_and_has_what_counts(tmp_path: Path) -> None:
    known = {"key": "0123456789ab", "tracker": "https://tracker.example/7"}
    path = tmp_path / "history.jsonl"
    tests = [
        result("test_passes[x86_64]"),
        result("test_fails[a-x86_64]", "product", reason="harness.errors.CommandError: no\nmore"),
        result("test_known", "known", known=known),
        result("test_flaky", "flaky", tries=[{"verdict": "infra"}, {"verdict": "passed"}]),
        result("test_skipped", "", outcome="skipped"),
        result("test_cut", "", outcome="interrupted"),
    ]
    facts = {"inputs": "0123456789abcdef" * 4, "qemu": "10.0.2", "packages": {"systemd": "257"}}
    history.add(path, [a_run(tmp_path, 0, *tests, arches={"x86_64": facts})])
    (line,) = history.read(path)
    assert line["skipped"] == {"x86_64": 1}
    assert line["arches"]["x86_64"] == {
        "inputs": "0123456789ab",
        "qemu": "10.0.2",
        "packages": line["arches"]["x86_64"]["packages"],
    }
    assert len(line["arches"]["x86_64"]["packages"]) == 12
    row = {name.rpartition("::")[2]: cell for name, cell in line["tests"]["x86_64"].items()}
    assert row["test_passes"] == 2.0
    assert row["test_fails[a]"] == {
        "verdict": "product",
        "seconds": 2.0,
        "signature": "5478720c38114f98",
        "reason": "CommandError: no",
    }
    assert row["test_known"]["known"] == "0123456789ab"
    assert row["test_flaky"]["was"] == "infra"
    assert row["test_cut"]["verdict"] == "interrupted"
    expanded = {each["id"].rpartition("::")[2]: each for each in lines.expand(line)["tests"]}
    assert expanded["test_passes"]["verdict"] == "passed"
    assert expanded["test_passes"]["seconds"] == {"call": 2.0}
    assert expanded["test_cut"]["outcome"] == "interrupted"
    assert expanded["test_known"]["known"] == {"key": "0123456789ab"}


def test_where_runs_are_read_a_history_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history.add(path, [a_run(tmp_path, 0), a_run(tmp_path, 1)])
    one = tmp_path / "run-0-0"
    read = read_runs([path])
    assert [each["tests"][0]["verdict"] for each in read] == ["passed", "passed"]
    assert len(read_runs([path, one])) == 2
    (full,) = (each for each in read_runs([path, one]) if "host" in each)
    assert full["began"].startswith("2026-11-01")


def test_of_two_accounts_of_a_run_the_fuller_one_is_read(tmp_path: Path) -> None:
    plan = {"id": "9c1f", "job": "skiff-x86_64-1", "attempt": 1, "commit": "158d"}
    path = tmp_path / "history.jsonl"
    history.add(path, [a_run(tmp_path / "end", 0, plan=plan)])
    early = a_run(tmp_path / "early", 0, plan=plan)
    content = json.loads((early / "results.json").read_text()) | {"tests": []}
    (early / "results.json").write_text(json.dumps(content))
    (run,) = read_runs([path, early])
    assert len(run["tests"]) == 1


def test_runs_that_do_not_say_when_are_not_taken_for_one(tmp_path: Path) -> None:
    for number in range(3):
        place = a_run(tmp_path, number, result(seconds=10.0 + number))
        content = json.loads((place / "results.json").read_text())
        del content["began"]
        (place / "results.json").write_text(json.dumps(content))
    assert len(read_runs([tmp_path])) == 3


# --- what it says -----------------------------------------------------------------------------


def story(tmp_path: Path, *verdicts: str, **further: Any) -> history.Story:
    """The story of a test with these verdicts, a night each."""
    path = tmp_path / "history.jsonl"
    for number, verdict in enumerate(verdicts):
        test = result(verdict=verdict, seconds=10.0 + number, **further)
        if verdict == "skipped":
            test |= {"verdict": "", "outcome": "skipped"}
        history.add(path, [a_run(tmp_path, number, test)])
    (only,) = history.stories(history.read(path))
    return only


def test_rates_and_median(tmp_path: Path) -> None:
    each = story(
        tmp_path, *("passed", "passed", "flaky", "infra", "product", "skipped", "passed", "passed")
    )
    assert history.rates(each.counts) == {"passed": 57.1, "flaky": 14.3, "infra": 14.3}
    # 10, 11, 12, 16 and 17 seconds.
    assert each.median == 12.0
    assert history.rates({}) == {"passed": 0.0, "flaky": 0.0, "infra": 0.0}


@pytest.mark.parametrize(
    ("verdicts", "good", "bad"),
    [
        (("passed", "product", "product"), 0, 1),
        (("passed", "infra", "known", "product", "flaky", "infra"), 0, 3),
        (("product", "passed", "timeout", "test"), 1, 2),
        (("product", "product"), None, 0),
    ],
)
def test_last_good_and_first_bad(
    tmp_path: Path, verdicts: tuple[str, ...], good: int | None, bad: int
) -> None:
    turn = story(tmp_path, *verdicts).turn
    assert turn is not None
    assert turn.bad["arches"]["x86_64"]["inputs"] == f"digest-{bad}"
    if good is None:
        assert (turn.good, turn.facts) == (None, [])
    else:
        assert turn.facts == [("image inputs", f"digest-{good}", f"digest-{bad}")]


@pytest.mark.parametrize("verdicts", [("product", "passed"), ("infra",), ("flaky", "known")])
def test_a_test_that_does_not_fail_now_has_no_turn(
    tmp_path: Path, verdicts: tuple[str, ...]
) -> None:
    assert story(tmp_path, *verdicts).turn is None


def test_what_passed_at_a_second_attempt_is_the_hosts_flake(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    plan = {"id": "9c1f", "job": "skiff-x86_64-1", "commit": "158d"}
    history.add(path, [a_run(tmp_path, 0, plan=plan | {"attempt": 2})])
    by_host = result(verdict="flaky", tries=[{"verdict": "infra"}, {"verdict": "passed"}])
    history.add(path, [a_run(tmp_path, 1, by_host)])
    by_test = result(verdict="flaky", tries=[{"verdict": "product"}, {"verdict": "passed"}])
    history.add(path, [a_run(tmp_path, 2, by_test)])
    (only,) = history.stories(history.read(path))
    assert only.counts == {"flaky-infra": 2, "flaky": 1}
    assert history.rates(only.counts) == {"passed": 0.0, "flaky": 33.3, "infra": 66.7}


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    for number, verdict in enumerate(("passed", "product")):
        tests = (result("test_a[kvm]", verdict), result("test_b"))
        assert (
            main(["history", "add", "--file", str(path), str(a_run(tmp_path, number, *tests))]) == 0
        )
    assert "1 new of 2 runs in 2 nights" in capsys.readouterr().out
    assert main(["history", "show", "--file", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "test_a[kvm] on skiff/core x86_64\n  2 runs: 50.0 % passed, 0.0 % flaky" in out
    assert "FAILS since 2026-11-02T01:00:00Z; last passed 2026-11-01T01:00:00Z" in out
    assert "image inputs: digest-0 -> digest-1" in out
    assert "test_b" not in out
    assert "1 tests always passed" in err

    def shown(*options: str) -> list[str]:
        assert main(["history", "show", "--file", str(path), "--json", *options]) == 0
        content = json.loads(capsys.readouterr().out)
        return [each["test"].rpartition("::")[2] for each in content["tests"]]

    assert shown() == ["test_a[kvm]", "test_b"]
    assert shown("--test", "test_b") == ["test_b"]
    assert shown("--test", "*[kvm]") == ["test_a[kvm]"]
    assert shown("--image", "micro") == []
    assert shown("--image", "skiff/core", "--arch", "x86_64", "--nights", "1") == [
        "test_a[kvm]",
        "test_b",
    ]


def test_a_history_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "show", "--file", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no history" in capsys.readouterr().err
    assert main(["history", "add", "--file", str(tmp_path / "h.jsonl"), str(tmp_path / "no")]) == 2
    assert "there is no such folder of runs" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    file = str(tmp_path / "h.jsonl")
    assert main(["history", "add", "--file", file, str(tmp_path / "empty")]) == 0
    assert "empty: no results of a run" in capsys.readouterr().err
