"""What a history records, in memory and in its file, also of a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cluster import History, Kind, Outcome
from harness.errors import (
    HistoryError,
    HistoryUndecidedError,
    UsageError,
    Verdict,
    verdict_of,
)

WRITE, READ = Kind.WRITE, Kind.READ
OK = Outcome.OK


def lose_a_write(history: History) -> None:
    history.end(history.begin("c1", WRITE, "a", "x"), OK)
    history.end(history.begin("c1", READ, "a"), OK, None)


def test_operations_have_the_times_of_one_clock_in_order() -> None:
    history = History()
    first = history.begin("c1", WRITE, "a", "x")
    second = history.begin("c2", READ, "a")
    history.end(first, OK)
    history.end(second, OK, "x")
    third = history.begin("c1", READ, "b")
    history.end(third, OK)
    write, read, last = history.operations
    assert (write.client, write.kind, write.key, write.value) == ("c1", WRITE, "a", "x")
    assert (read.client, read.kind, read.key, read.value) == ("c2", READ, "a", "x")
    assert last.value is None
    assert write.end is not None
    assert read.end is not None
    assert write.start <= read.start <= write.end <= read.end
    assert not write.before(read)


def test_rounding_makes_an_operation_longer_and_not_shorter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So no operation ends before another that it overlaps."""
    clock = iter([10.0, 10.0000015, 10.0000025])
    monkeypatch.setattr("harness.cluster.history.time", SimpleNamespace(monotonic=clock.__next__))
    history = History()
    history.end(history.begin("c1", READ, "a"), OK)
    [operation] = history.operations
    assert (operation.start, operation.end) == (0.000001, 0.000003)


def test_an_operation_under_way_has_an_unknown_outcome() -> None:
    history = History()
    history.begin("c1", WRITE, "a", "x")
    [operation] = history.operations
    assert (operation.outcome, operation.end) == (Outcome.UNKNOWN, None)


def test_a_history_that_proves_nothing_does_not_pass() -> None:
    history = History()
    with pytest.raises(UsageError, match="of 0 operations, no read and no write was acknowledged"):
        history.check()
    history.end(history.begin("c1", WRITE, "a", "x"), OK)
    history.end(history.begin("c1", READ, "a"), Outcome.FAILED)
    with pytest.raises(UsageError, match="of 2 operations, no read was acknowledged"):
        history.check()
    history.end(history.begin("c1", READ, "a"), OK, "x")
    history.check()


def test_a_history_is_read_from_its_file_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.end(history.begin("c1", WRITE, "a", "x\n\u2028\x00é"), OK)
    history.end(history.begin("c2", READ, "a"), OK, "x\n\u2028\x00é")
    history.end(history.begin("c2", READ, "b"), OK, None)
    history.end(history.begin("c1", WRITE, "b", "y"), Outcome.FAILED)
    history.end(history.begin("c1", WRITE, "b", "z"), Outcome.UNKNOWN)
    history.begin("c2", WRITE, "a", "w")
    assert History.load(path).operations == history.operations
    assert len(path.read_text().splitlines()) == 11


def test_a_full_disk_ends_no_client() -> None:
    history = History(Path("/dev/full"))
    lose_a_write(history)
    with pytest.raises(HistoryError):
        history.check()


def test_a_killed_run_leaves_its_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    code = (
        "import os, pathlib, signal, sys\n"
        "from harness.cluster import History, Kind, Outcome\n"
        "history = History(pathlib.Path(sys.argv[1]))\n"
        "history.end(history.begin('c1', Kind.WRITE, 'a', 'x'), Outcome.OK)\n"
        "history.begin('c2', Kind.WRITE, 'a', 'y')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert process.returncode == -signal.SIGKILL
    write, pending = History.load(path).operations
    assert (write.value, write.outcome) == ("x", OK)
    assert (pending.value, pending.outcome, pending.end) == ("y", Outcome.UNKNOWN, None)


def test_a_last_line_that_is_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lose_a_write(History(path))
    whole = path.read_bytes()
    counts = []
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        counts.append(len(History.load(path).operations))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        "{}",
        '{"id": 7, "end": 1.0, "outcome": "ok"}',
        '{"id": 1, "client": "c1", "key": "a", "kind": "append", "value": "x", "start": 0.1}',
        '{"id": 0, "end": "soon", "outcome": "ok"}',
        '{"id": -1, "end": 1.0, "outcome": "ok"}',
    ],
)
def test_another_file_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.begin("c1", WRITE, "a", "x")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=r"history.jsonl:2: no operation of a history"):
        History.load(path)


def test_a_value_is_written_once_to_a_key() -> None:
    history = History()
    history.begin("c1", WRITE, "a", "x")
    history.begin("c1", WRITE, "b", "x")
    history.begin("c1", READ, "a")
    history.begin("c1", READ, "a")
    with pytest.raises(UsageError, match="'x' is written twice"):
        history.begin("c2", WRITE, "a", "x")
    assert len(history.operations) == 4


def test_threads_record_all_of_their_operations(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)

    def work(client: str) -> None:
        for number in range(200):
            history.end(history.begin(client, WRITE, "a", f"{client}-{number}"), OK)

    threads = [threading.Thread(target=work, args=(f"c{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = {op.value for op in history.operations}
    assert values == {f"c{client}-{number}" for client in range(8) for number in range(200)}
    assert History.load(path).operations == history.operations
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_violation_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lose_a_write(History(path))
    with pytest.raises(HistoryError) as caught:
        History.load(path).check()
    assert caught.value.evidence == os.fspath(path)
    assert str(caught.value).startswith(
        "the cluster broke its promise on 1 key\nlost acknowledged write: key 'a'\n"
    )
    assert verdict_of(caught.value) is Verdict.PRODUCT


def test_an_undecided_history_does_not_pass() -> None:
    history = History()
    numbers = [history.begin(f"c{n}", WRITE, "a", f"v{n}") for n in range(8)]
    reads = [history.begin(f"d{n}", READ, "a") for n in range(8)]
    for n, number in enumerate(numbers):
        history.end(reads[n], OK, f"v{n}")
        history.end(number, OK)
    history.check()
    with pytest.raises(HistoryUndecidedError, match="after 10 configurations") as caught:
        history.check(most=10)
    assert "undecided: 'a'" in str(caught.value)
    assert "more keys" in caught.value.hint
    assert verdict_of(caught.value) is Verdict.INFRA
