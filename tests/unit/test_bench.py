"""The parts of the benchmarks that judge and report; these tests time nothing."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from bench import __main__ as cli
from bench import raw, side
from bench.core import (
    HEADINGS,
    Budget,
    Context,
    Judged,
    Report,
    Row,
    Standing,
    cells,
    figure,
    missing,
    paired,
)
from bench.guest import over


def row(*samples: float, bare: tuple[float, ...] = (), budget: Budget | None = None) -> Row:
    return Row("thing", "harness", "ms", samples, bare, budget)


def test_a_budget_on_the_median_ignores_one_bad_sample() -> None:
    assert row(1, 1, 99, budget=Budget(2)).standing is Standing.WITHIN
    assert row(1, 3, 3, budget=Budget(2)).standing is Standing.OVER
    assert row(2, budget=Budget(2)).standing is Standing.WITHIN


def test_a_budget_on_the_worst_forgives_none() -> None:
    assert row(0, 0, 1, budget=Budget(0, Judged.WORST)).standing is Standing.OVER
    floor = Budget(10, Judged.WORST, at_least=True)
    assert row(9, 50, 50, budget=floor).standing is Standing.OVER
    assert row(10, 50, 50, budget=floor).standing is Standing.WITHIN


def test_a_ratio_is_taken_round_by_round() -> None:
    # The host was ten times slower in the second round; the medians are equal.
    slow = row(2, 20, 10, bare=(1, 10, 10), budget=Budget(1.03, Judged.RATIO))
    assert slow.ratio == 2
    assert slow.standing is Standing.OVER
    rate = Budget(0.9, Judged.RATIO, at_least=True)
    assert row(95, 9.5, bare=(100, 10), budget=rate).standing is Standing.WITHIN
    assert row(80, 8, bare=(100, 10), budget=rate).standing is Standing.OVER


def test_a_measurement_that_was_not_made_meets_no_budget() -> None:
    absent = missing("thing", "harness", "ms", "no guest", Budget(2))
    assert absent.standing is Standing.MISSING
    assert row(1, budget=Budget(1.03, Judged.RATIO)).standing is Standing.MISSING
    assert absent.record()["note"] == "no guest"


def test_sides_take_turns_and_no_side_is_always_first() -> None:
    order: list[str] = []

    def taker(name: str) -> float:
        order.append(name)
        return len(order)

    samples = paired(3, {"a": lambda: taker("a"), "b": lambda: taker("b")}, lambda _: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"a": (1, 4, 5), "b": (2, 3, 6)}


def test_budgets_are_goals_unless_strict() -> None:
    report = Report({}, False, [row(3, budget=Budget(2))])
    assert report.status(strict=False) == 0
    assert report.status(strict=True) == 1
    assert Report({}, False, [row(1, budget=Budget(2))]).status(strict=True) == 0
    lacking = Report({}, False, [missing("thing", "harness", "ms", "", Budget(2))])
    assert lacking.status(strict=True) == 1
    assert Report({}, False, [], {"boot": "broke"}).status(strict=False) == 1


def test_the_json_contains_every_sample(tmp_path: Path) -> None:
    measured = row(1, 2, 4, bare=(1, 1, 1), budget=Budget(2))
    path = Report({"cpus": 2}, True, [measured]).write(tmp_path / "deep")
    report = json.loads(path.read_text())
    assert report["rows"][0]["samples"] == [1, 2, 4]
    assert report["rows"][0]["ratio"] == 2
    assert report["rows"][0]["budget"]["value"] == 2
    assert report["rows"][0]["standing"] == "within"
    assert report["quick"] is True


def test_a_row_has_a_cell_for_each_heading() -> None:
    assert len(cells(row(1, budget=Budget(2)))) == len(HEADINGS)
    assert len(cells(missing("thing", "harness", "ms", ""))) == len(HEADINGS)
    assert [figure(value) for value in (0, 0.00104, 0.905, 5.477, 84.2, 1234.5)] == [
        "0",
        "0.00104",
        "0.905",
        "5.48",
        "84.2",
        "1234",
    ]


@pytest.mark.parametrize("piece", [1, 3, 7, 64, 1000])
def test_the_bare_reader_counts_up_to_a_mark_however_reads_cut_it(piece: int) -> None:
    # A SEQPACKET socket makes each piece a separate read.
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    # The data contains the beginning of the mark before the mark.
    data = b"x" * 500 + b"END-" + b"y" * 300 + b"EEND-t\nrest"

    def feed() -> None:
        with theirs:
            for at in range(0, len(data), piece):
                theirs.sendall(data[at : at + piece])

    thread = threading.Thread(target=feed)
    with over(ours) as wire:
        thread.start()
        console = raw.RawConsole(wire)
        assert console.count_until(b"END-t\n") == 805
        assert console.until(b"rest") == b""
        with pytest.raises(EOFError):
            console.read()
        thread.join()


FLOOD = raw.flood("/tmp/payload", 2, "t", "/dev/bench")
READ = 1 << 20  # bytes of a log that judge_log reads at a time


@pytest.mark.parametrize(
    ("noise", "length"),
    [(5, 2_500_000), (READ - 3, 100), (0, 2 * READ - len(FLOOD.begin) - 3)],
    ids=["plain", "begin mark cut", "end mark cut"],
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_only_the_log_between_the_marks_counts(
    tmp_path: Path, noise: int, length: int, spoilt: bool
) -> None:
    body = bytes(range(256)) * (length // 256 + 1)
    body = body[:length]
    log = tmp_path / "serial.log"
    logged = body[:50] + b"?" + body[51:] if spoilt else body
    log.write_bytes(b"n" * noise + FLOOD.begin + logged + FLOOD.end + b"micro:~# ")
    judged = side.judge_log(log, FLOOD)
    assert judged["length"] == length
    assert (judged["sha256"] == hashlib.sha256(body).hexdigest()) is not spoilt


def test_the_echo_of_the_command_of_a_flood_contains_no_mark() -> None:
    flood = raw.flood("/tmp/payload", 2, "t")
    assert flood.begin.strip() not in flood.command.encode()
    assert flood.end.strip() not in flood.command.encode()


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bot"])
    assert exit_.value.code == 2
    assert "(choose start, console" in capsys.readouterr().err


def test_the_other_benchmarks_run_after_one_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(context: Context) -> list[Row]:
        raise RuntimeError("no guest")

    monkeypatch.setattr("bench.start.run", fails)
    monkeypatch.setattr("bench.console.run", lambda context: [row(1)])
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    report = cli.measure(["start", "console"], quick=True, terminal=Terminal(quiet=True))
    assert report.failed == {"start": "RuntimeError: no guest"}
    assert row(1) in report.rows
    assert not list((tmp_path / ".harness" / "bench").iterdir()), "scratch files are left"


def test_the_bare_side_of_evidence_replaces_what_there_is() -> None:
    """A writer under another name would stay on, and both sides would cost the same."""
    # In a process of its own: it changes the library.
    code = "import bench.bare; print(bench.bare.Timeline('path').path)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=side.ROOT, capture_output=True, text=True, check=False
    )
    assert (process.stdout, process.stderr) == ("None\n", "")
