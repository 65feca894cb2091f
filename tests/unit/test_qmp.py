"""The monitor's facade against messages of the protocol, over a socketpair."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import UNSCALED, Scale
from harness.errors import PanicError, QmpError, WaitTimeoutError
from harness.qemu.qmp import Qmp


class Monitor:
    """QEMU's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.runs = True
        self.hangs = threading.Event()
        self.commands_seen: list[str] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def say(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.say({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def commands(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that come: the protocol does not end them with newlines."""
        text = ""
        while data := self.sock.recv(4096):
            text += data.decode()
            with contextlib.suppress(json.JSONDecodeError):
                while text := text.lstrip():
                    command, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:]
                    yield command

    def serve(self) -> None:
        version = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}
        self.say({"QMP": {"version": version, "capabilities": []}})
        for command in self.commands():
            name = command["execute"]
            self.commands_seen.append(name)
            answer = {"command": name, "running": self.runs}
            reply: dict[str, Any] = {"return": answer, "id": command.get("id")}
            if name == "refused":
                error = {"class": "GenericError", "desc": "not today"}
                reply = {"error": error, "id": command.get("id")}
            if name == "hang":
                self.hangs.set()
                continue
            if name == "die":
                self.sock.shutdown(socket.SHUT_RDWR)
                return
            self.say({key: value for key, value in reply.items() if value is not None})


@contextlib.contextmanager
def connected(log: Path, scale: Scale = UNSCALED) -> Iterator[tuple[Qmp, Monitor]]:
    here, there = socket.socketpair()
    monitor = Monitor(there)
    monitor.thread.start()
    qmp = Qmp(here, name="m", log=log, scale=scale)
    qmp.connect(UNSCALED.after(20))
    yield qmp, monitor
    qmp.close()
    monitor.thread.join(20)
    there.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Qmp, Monitor]]:
    with connected(tmp_path / "qmp.jsonl") as both:
        yield both


def test_a_command_returns_its_result_or_raises_its_refusal(pair: tuple[Qmp, Monitor]) -> None:
    qmp, _ = pair
    assert qmp.execute("query-status")["command"] == "query-status"
    with pytest.raises(QmpError, match=r"refused.*not today"):
        qmp.execute("refused")


@pytest.mark.parametrize("runs", [True, False])
def test_a_guest_that_stood_still_before_stands_still_afterwards(
    pair: tuple[Qmp, Monitor], runs: bool
) -> None:
    qmp, monitor = pair
    monitor.runs = runs
    with qmp.standing_still():
        assert monitor.commands_seen[-1] == "stop"
    assert ("cont" in monitor.commands_seen) == runs


def test_one_thread_at_a_time_lets_the_guest_stand_still(tmp_path: Path) -> None:
    with connected(tmp_path / "q.jsonl") as (qmp, monitor):

        def look() -> None:
            with qmp.standing_still():
                qmp.execute("inner")

        with qmp.standing_still():
            other = threading.Thread(target=look)
            other.start()
            other.join(0.2)
            assert other.is_alive()
        other.join(20)
    once = ["query-status", "stop", "cont"]
    inner = ["query-status", "stop", "inner", "cont"]
    assert [name for name in monitor.commands_seen if name != "qmp_capabilities"] == once + inner


def test_every_message_is_logged(pair: tuple[Qmp, Monitor], tmp_path: Path) -> None:
    qmp, monitor = pair
    qmp.execute("query-status")
    monitor.event("RESET", guest=True)
    qmp.wait(["RESET"], UNSCALED.after(20), since=0)
    lines = [json.loads(line) for line in (tmp_path / "qmp.jsonl").read_text().splitlines()]
    assert any(line.get("send", {}).get("execute") == "query-status" for line in lines)
    assert any(line.get("receive", {}).get("event") == "RESET" for line in lines)


def test_a_wait_sees_an_event_from_before_it_began(pair: tuple[Qmp, Monitor]) -> None:
    qmp, monitor = pair
    mark = qmp.mark()
    monitor.event("SHUTDOWN", reason="guest-shutdown")
    qmp.execute("query-status")  # Its answer comes after the event.
    assert qmp.wait(["SHUTDOWN"], UNSCALED.after(20), since=mark).data["reason"] == "guest-shutdown"
    assert [event.name for event in qmp.seen(["SHUTDOWN"])] == ["SHUTDOWN"]
    later = qmp.wait(["SHUTDOWN"], UNSCALED.after(20), since=mark)
    assert later.name == "SHUTDOWN"
    with pytest.raises(WaitTimeoutError, match="SHUTDOWN"):
        qmp.wait(["SHUTDOWN"], UNSCALED.after(0.05))


def test_a_failure_of_the_machine_ends_a_wait(pair: tuple[Qmp, Monitor]) -> None:
    qmp, _ = pair
    threading.Timer(0.05, lambda: qmp.fail(PanicError("the kernel panicked"))).start()
    with pytest.raises(PanicError):
        qmp.wait(["SHUTDOWN"], UNSCALED.after(600))


def test_a_failure_ends_a_command_that_waits_for_its_answer(pair: tuple[Qmp, Monitor]) -> None:
    qmp, monitor = pair
    panic = PanicError("other: the kernel panicked")

    def panics() -> None:
        assert monitor.hangs.wait(20)
        qmp.fail(panic)

    thread = threading.Thread(target=panics)
    thread.start()
    with pytest.raises(PanicError) as caught:
        qmp.execute("hang", deadline=UNSCALED.after(600))
    thread.join()
    assert caught.value is panic
    # Evidence can be taken afterwards.
    assert qmp.execute("query-status")["running"]


def test_each_machine_has_its_own_scale_of_deadlines(tmp_path: Path) -> None:
    with (
        connected(tmp_path / "slow.jsonl", Scale(0.02)) as (slow, _),
        connected(tmp_path / "fast.jsonl", Scale(0.005)) as (fast, _),
    ):
        for qmp, scale in ((slow, "0.02"), (fast, "0.005"), (slow, "0.02")):
            with pytest.raises(WaitTimeoutError, match="monitor command hang") as caught:
                qmp.execute("hang")
            assert f"(30 s x {scale})" in caught.value.what


def test_a_command_without_an_answer_meets_its_deadline(pair: tuple[Qmp, Monitor]) -> None:
    qmp, _ = pair
    with pytest.raises(WaitTimeoutError, match="monitor command hang"):
        qmp.execute("hang", deadline=UNSCALED.after(0.05))


def test_a_monitor_that_goes_away(pair: tuple[Qmp, Monitor]) -> None:
    qmp, _ = pair
    with pytest.raises(QmpError, match="monitor command die"):
        qmp.execute("die", deadline=UNSCALED.after(60))


def test_a_monitor_that_never_greets(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    there.close()
    qmp = Qmp(here, name="m", log=tmp_path / "qmp.jsonl")
    with pytest.raises(QmpError, match="no session"):
        qmp.connect(UNSCALED.after(20))
    qmp.close()
