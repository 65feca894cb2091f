"""The parts of the benchmarks that decide what is reported; nothing is timed here."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from pathlib import Path

import pytest
from rich.console import Console as Rich

from bench import __main__ as cli
from bench import raw, side
from bench.core import (
    HEADINGS,
    Budget,
    Context,
    Judged,
    Report,
    Result,
    Verdict,
    cells,
    figure,
    missing,
    paired,
)


def row(*samples: float, bare: tuple[float, ...] = (), budget: Budget | None = None) -> Result:
    return Result("thing", "harness", "ms", samples, bare, budget)


def test_a_budget_on_the_median_ignores_one_bad_sample() -> None:
    assert row(1, 1, 99, budget=Budget(2)).verdict is Verdict.WITHIN
    assert row(1, 3, 3, budget=Budget(2)).verdict is Verdict.OVER
    assert row(2, budget=Budget(2)).verdict is Verdict.WITHIN


def test_a_budget_on_the_worst_forgives_none() -> None:
    assert row(0, 0, 1, budget=Budget(0, Judged.WORST)).verdict is Verdict.OVER
    floor = Budget(10, Judged.WORST, at_least=True)
    assert row(9, 50, 50, budget=floor).verdict is Verdict.OVER
    assert row(10, 50, 50, budget=floor).verdict is Verdict.WITHIN


def test_a_ratio_is_taken_round_by_round() -> None:
    # The host was ten times slower in the second round. The medians are equal.
    slow = row(2, 20, 10, bare=(1, 10, 10), budget=Budget(1.03, Judged.RATIO))
    assert slow.ratio == 2
    assert slow.verdict is Verdict.OVER
    rate = Budget(0.9, Judged.RATIO, at_least=True)
    assert row(95, 9.5, bare=(100, 10), budget=rate).verdict is Verdict.WITHIN
    assert row(80, 8, bare=(100, 10), budget=rate).verdict is Verdict.OVER


def test_what_was_not_measured_keeps_no_budget() -> None:
    absent = missing("thing", "harness", "ms", "no guest", Budget(2))
    assert absent.verdict is Verdict.MISSING
    assert row(1, budget=Budget(1.03, Judged.RATIO)).verdict is Verdict.MISSING
    assert absent.record()["note"] == "no guest"


def test_sides_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []

    def taker(name: str) -> float:
        order.append(name)
        return len(order)

    taken = paired(3, {"a": lambda: taker("a"), "b": lambda: taker("b")}, lambda _: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert taken == {"a": (1, 4, 5), "b": (2, 3, 6)}


def test_budgets_are_goals_unless_strict() -> None:
    report = Report({}, False, [row(3, budget=Budget(2))])
    assert report.status(strict=False) == 0
    assert report.status(strict=True) == 1
    assert Report({}, False, [row(1, budget=Budget(2))]).status(strict=True) == 0
    lacking = Report({}, False, [missing("thing", "harness", "ms", "", Budget(2))])
    assert lacking.status(strict=True) == 1
    assert Report({}, False, [], {"boot": "broke"}).status(strict=False) == 1


def test_the_json_has_every_sample(tmp_path: Path) -> None:
    result = row(1, 2, 4, bare=(1, 1, 1), budget=Budget(2))
    path = Report({"cpus": 2}, True, [result]).write(tmp_path / "deep")
    told = json.loads(path.read_text())
    assert told["results"][0]["samples"] == [1, 2, 4]
    assert told["results"][0]["ratio"] == 2
    assert told["results"][0]["budget"]["value"] == 2
    assert told["quick"] is True


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
def test_the_bare_reader_counts_up_to_a_mark_however_it_is_cut(piece: int) -> None:
    # Each piece is a read of its own.
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    # What looks like the mark's beginning stands before it.
    data = b"x" * 500 + b"END-" + b"y" * 300 + b"EEND-t\nrest"

    def feed() -> None:
        with theirs:
            for at in range(0, len(data), piece):
                theirs.sendall(data[at : at + piece])

    thread = threading.Thread(target=feed)
    with ours:
        thread.start()
        console = raw.RawConsole(ours.fileno())
        assert console.count_until(b"END-t\n") == 805
        assert console.until(b"rest") == b""
        with pytest.raises(EOFError):
            console.read()
        thread.join()


FLOOD = raw.flood("/tmp/payload", 2, "t", "/dev/bench")
READ = 1 << 20  # what is read of a log at a time


@pytest.mark.parametrize(
    ("noise", "length"),
    [(5, 2_500_000), (READ - 3, 100), (0, 2 * READ - len(FLOOD.begin) - 3)],
    ids=["plain", "begin mark cut", "end mark cut"],
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_a_log_is_judged_between_the_marks(
    tmp_path: Path, noise: int, length: int, spoilt: bool
) -> None:
    body = bytes(range(256)) * (length // 256 + 1)
    body = body[:length]
    log = tmp_path / "serial.log"
    got = body[:50] + b"?" + body[51:] if spoilt else body
    log.write_bytes(b"n" * noise + FLOOD.begin + got + FLOOD.end + b"micro:~# ")
    told = side.judge_log(log, FLOOD)
    assert told["length"] == length
    assert (told["sha256"] == hashlib.sha256(body).hexdigest()) is not spoilt


def test_the_echo_of_a_flood_s_command_has_no_mark() -> None:
    flood = raw.flood("/tmp/payload", 2, "t")
    assert flood.begin.strip() not in flood.command.encode()
    assert flood.end.strip() not in flood.command.encode()


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bot"])
    assert caught.value.code == 2
    assert "known: start, console" in capsys.readouterr().err


def test_a_benchmark_that_breaks_does_not_keep_others_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(context: Context) -> list[Result]:
        raise RuntimeError("no guest")

    monkeypatch.setattr("bench.start.run", breaks)
    monkeypatch.setattr("bench.console.run", lambda context: [row(1)])
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    report = cli.measure(["start", "console"], quick=True, console=Rich(quiet=True))
    assert report.failed == {"start": "RuntimeError: no guest"}
    assert row(1) in report.results
    assert not list((tmp_path / ".harness" / "bench").iterdir()), "scratch was left behind"
