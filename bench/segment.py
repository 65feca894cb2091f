"""The switch of a segment beside QEMU's own hub and vde_switch: frames a second, added latency.

All have two machines on them: this process sends, another receives. ``sendmmsg`` and ``recvmmsg`` move
64 frames at a time, so that the ends cost as little as they can beside the switch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.core import Budget, Context, Row, missing, paired
from bench.side import ROOT
from harness.errors import HarnessError
from harness.network import Segment
from harness.qemu import binary

RATE: Final = "frames of 1500 bytes, two machines"
LATENCY: Final = "latency added to a frame"
CPU: Final = "CPU of the switch for a frame"
BUDGET_RATE: Final = Budget(50_000, at_least=True)
BUDGET_LATENCY: Final = Budget(0.2)

SIZE: Final = 1500
AT_ONCE: Final = 64
LEFT: Final = b"\x52\x54\x00\x00\x00\x0a"
RIGHT: Final = b"\x52\x54\x00\x00\x00\x0b"


class _Iovec(ctypes.Structure):
    """``struct iovec``, ``readv(2)``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """``struct msghdr``, ``recvmsg(2)``."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.POINTER(_Iovec)),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """``struct mmsghdr``, ``recvmmsg(2)``."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


class _Batch:
    """Messages that one call sends or receives."""

    def __init__(self, content: bytes) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self._buffer = ctypes.create_string_buffer(content * AT_ONCE, len(content) * AT_ONCE)
        self.messages = (_Message * AT_ONCE)()
        self._vectors = (_Iovec * AT_ONCE)()
        for number, message in enumerate(self.messages):
            self._vectors[number].base = ctypes.addressof(self._buffer) + number * len(content)
            self._vectors[number].length = len(content)
            message.header.vector = ctypes.pointer(self._vectors[number])
            message.header.vectors = 1


def flood(descriptor: int, frame: bytes, seconds: float) -> int:
    """Send a frame as fast as it goes; return how often."""
    batch = _Batch(frame)
    sent = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        count = batch.libc.sendmmsg(descriptor, batch.messages, AT_ONCE, 0)
        if count < 0:
            raise OSError(ctypes.get_errno(), "sendmmsg")
        sent += count
    return sent


def sink(descriptor: int) -> float:
    """Receive frames until none comes for a second; return how many came in a second."""
    batch = _Batch(bytes(2048))
    end = socket.socket(fileno=descriptor)
    # Of the first call; the others wait as long by the timeout of the socket.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
    got, first, last = 0, 0.0, 0.0
    while True:
        count = batch.libc.recvmmsg(descriptor, batch.messages, AT_ONCE, 0x10000, None)
        if count <= 0 or not batch.messages[0].length:
            break
        last = time.monotonic()
        if not first:
            first = last
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        else:
            got += count
    end.detach()
    return got / (last - first) if last > first else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two machines' ends, and the process between them."""

    left: socket.socket
    right: socket.socket
    pid: int | None = None

    def learn(self) -> None:
        """Let the switch learn where both are."""
        for sender, receiver, source in (
            (self.left, self.right, LEFT),
            (self.right, self.left, RIGHT),
        ):
            receiver.settimeout(30)
            sender.send(b"\xff" * 6 + source + bytes(48))
            receiver.recv(2048)
            receiver.settimeout(None)

    def cpu(self) -> float:
        """Return the CPU seconds that the switch took."""
        if self.pid is None:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Subject = Callable[[], contextlib.AbstractContextManager[Pair]]


@contextlib.contextmanager
def _direct() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield Pair(left, right)


@contextlib.contextmanager
def _segment(folder: Path, *, capture: bool = False, loss: float = 0.0) -> Iterator[Pair]:
    with (
        Segment("bench", folder=folder, capture=capture) as segment,
        segment.attach("left") as left,
        segment.attach("right") as right,
    ):
        if loss:
            segment.link("left", "right").forward.impair(loss=loss)
        yield Pair(left, right, segment.pid)


@contextlib.contextmanager
def _hub(qemu: Path) -> Iterator[Pair]:
    """QEMU's own hub, in a QEMU without a machine."""
    kind = socket.AF_UNIX, socket.SOCK_SEQPACKET
    (left, one), (right, two) = socket.socketpair(*kind), socket.socketpair(*kind)
    words = [str(qemu), "-nodefaults", "-machine", "none", "-display", "none"]
    for number, end in enumerate((one, two)):
        name = f"n{number}"
        words += ["-netdev", f"dgram,id={name},local.type=fd,local.str={end.fileno()}"]
        words += ["-netdev", f"hubport,id=h{number},hubid=0,netdev={name}"]
    with left, right:
        with one, two:
            process = subprocess.Popen(
                words, pass_fds=[one.fileno(), two.fileno()], stderr=subprocess.DEVNULL
            )
        with _ended(process):
            yield Pair(left, right, process.pid)


@contextlib.contextmanager
def _vde(folder: Path) -> Iterator[Pair]:
    """Debian's vde_switch, by the protocol of its plugs (``switch/datasock.c`` of vde-2)."""
    where = folder / "vde"
    shutil.rmtree(where, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            _ended(
                subprocess.Popen(
                    ["vde_switch", "-s", str(where)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        )
        while not (where / "ctl").exists():
            time.sleep(0.01)

        def plug(name: str) -> socket.socket:
            control = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            control.connect(str(where / "ctl"))
            data = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            path = str(folder / name)
            Path(path).unlink(missing_ok=True)
            data.bind(path)
            address = struct.pack("H108s", socket.AF_UNIX, path.encode())
            control.send(struct.pack("III", 0xFEEDFACE, 3, 0) + address + bytes(128))
            data.connect(control.recv(110)[2:].split(b"\0")[0].decode())
            return data

        yield Pair(plug("left"), plug("right"), process.pid)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rate(subject: Subject, seconds: float, cpu: list[float]) -> float:
    """Return the frames a second that pass, and append the CPU microseconds of each that was sent."""
    with subject() as pair:
        pair.learn()
        descriptor = pair.right.fileno()
        with subprocess.Popen(
            [sys.executable, "-m", "bench.segment", str(descriptor)],
            cwd=ROOT,
            pass_fds=[descriptor],
            stdout=subprocess.PIPE,
        ) as receiver:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            before = pair.cpu()
            sent = flood(pair.left.fileno(), RIGHT + LEFT + bytes(SIZE - 12), seconds)
            answer = float(receiver.stdout.readline())
            cpu.append((pair.cpu() - before) / sent * 1e6)
            return answer


def latency(subject: Subject, count: int) -> float:
    """Return the milliseconds that a single frame takes, the median of so many."""
    frame = RIGHT + LEFT + bytes(SIZE - 12)
    times = []
    with subject() as pair:
        pair.learn()
        for _ in range(count):
            started = time.perf_counter()
            pair.left.send(frame)
            pair.right.recv(2048)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def run(context: Context) -> list[Row]:
    """Send frames through each switch in turns."""
    rounds, seconds = context.pick(7, 2), 1.0
    subjects: dict[str, Subject] = {
        "socket pair": _direct,
        "harness": partial(_segment, context.folder),
        "harness, a lossy link": partial(_segment, context.folder, loss=0.001),
        "harness, capture": partial(_segment, context.folder, capture=True),
    }
    absent = {}
    try:
        subjects["QEMU hub"] = partial(_hub, binary.find("x86_64").path)
    except HarnessError as error:
        absent["QEMU hub"] = error.what
    if shutil.which("vde_switch"):
        subjects["vde_switch"] = partial(_vde, context.folder)
    else:
        absent["vde_switch"] = "vde_switch is not installed: install the package vde2"
    cpu: dict[str, list[float]] = {name: [] for name in subjects}
    rates = paired(
        rounds,
        {name: partial(rate, subject, seconds, cpu[name]) for name, subject in subjects.items()},
        context.say,
    )
    # The lossy link loses one frame in a thousand, for which a latency would wait.
    single = {name: subject for name, subject in subjects.items() if "lossy" not in name}
    times = paired(
        rounds,
        {name: partial(latency, subject, 2000) for name, subject in single.items()},
        context.say,
    )
    bare = times["socket pair"]
    rows = []
    for name in subjects:
        budget = BUDGET_RATE if name == "harness" else None
        rows.append(Row(RATE, name, "/s", rates[name], rates["socket pair"], budget))
    for name in single:
        if name != "socket pair":
            added = tuple(ours - direct for ours, direct in zip(times[name], bare, strict=True))
            rows.append(
                Row(
                    LATENCY, name, "ms", added, budget=BUDGET_LATENCY if name == "harness" else None
                )
            )
    for name in subjects:
        if name != "socket pair":
            rows.append(Row(CPU, name, "us", tuple(cpu[name])))
    return rows + [missing(RATE, name, "/s", reason) for name, reason in absent.items()]


if __name__ == "__main__":
    print("receives", flush=True)
    print(sink(int(sys.argv[1])), flush=True)
