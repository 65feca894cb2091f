"""One side of a comparison, in a process of its own: ``python -m bench.side TASK`` (JSON).

Each side gets the guest's console, does its task, prints one line of JSON, and leaves the guest at
a shell's prompt. A separate process gives each side its own memory and interpreter. All sides pay for
it alike, so its cost cancels out.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from bench import raw
from bench.guest import PAYLOAD, PORT, PROMPT, Guest
from harness.console.wire import Wire

ROOT: Final = Path(__file__).resolve().parent.parent
LIMIT: Final = 1800.0
"""Seconds after which a side is killed; its benchmark has failed then."""

SIDES: Final = ("harness", "raw", "raw-driver", "labgrid-qemu", "labgrid-serial", "raw-pty")
TASKS: Final = ("commands", "output", "panic")
ON_PTY: Final = ("labgrid-serial", "raw-pty")
"""The sides that need a terminal device instead of a socket."""


class SideError(Exception):
    """A side failed; carries its standard error."""


# --- in the parent ----------------------------------------------------------------------------


def ask(
    guest: Guest, side: str, task: str, *, port: bool = False, **parameters: Any
) -> dict[str, Any]:
    """Let a side do a task on a guest and return its answer.

    Args:
        guest: The guest, at a shell's prompt.
        side: One of :data:`SIDES`.
        task: One of :data:`TASKS`.
        port: Whether the output goes to the guest's port instead of its console.
        parameters: The task's parameters.

    Raises:
        SideError: The side failed.
    """
    with ExitStack() as stack:
        read = guest.port if port else guest.wire
        request: dict[str, Any] = {"side": side, "task": task, **parameters}
        fds = [guest.wire.incoming, guest.wire.outgoing]
        if port:
            request["control"] = fds
        if side in ON_PTY:
            request["tty"] = stack.enter_context(bridge(read))
        else:
            request["wire"] = [read.incoming, read.outgoing]
            fds = [*fds, *request["wire"]]
        try:
            process = subprocess.run(
                [sys.executable, "-m", "bench.side", json.dumps(request)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                pass_fds=fds,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SideError(f"{side} did not end its {task} in {LIMIT:.0f} s") from error
    if process.returncode:
        raise SideError(f"{side} failed at {task}: {process.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


@contextmanager
def bridge(wire: Wire) -> Iterator[str]:
    """Connect a wire to a pty and yield the terminal's path.

    A thread of this process, which is idle otherwise, carries the bytes. ``raw-pty`` measures its cost.
    """
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    stop, stopper = os.pipe()
    wire.setblocking(True)

    def carry() -> None:
        poller = select.poll()
        for fd in (ours, stop, wire.incoming):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == stop:
                    return
                source, sink = (wire.incoming, ours) if fd != ours else (ours, wire.outgoing)
                data = os.read(source, 65536)
                if not data:
                    return
                while data:
                    data = data[os.write(sink, data) :]

    thread = threading.Thread(target=carry, name="bench-bridge", daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.write(stopper, b"x")
        thread.join(10)
        for fd in (ours, theirs, stop, stopper):
            os.close(fd)


# --- in the child -----------------------------------------------------------------------------


def wire_of(task: Mapping[str, Any]) -> Wire:
    """Return the wire that a task came with."""
    return Wire(*task["wire"])


def memory() -> tuple[int, int]:
    """Return this process' resident memory and its peak, bytes (``proc_pid_status(5)``)."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines()
    )
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def reset_peak() -> None:
    """Set the peak to the memory that is resident now (``proc_pid_clear_refs(5)``: 5)."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def judge_log(path: Path, flood: raw.Flood) -> dict[str, Any]:
    """Return length and digest of the bytes between a flood's marks in a log."""
    digest = hashlib.sha256()
    length = 0
    begun = False
    held = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            held += piece
            if not begun:
                at = held.find(flood.begin)
                if at < 0:
                    held = held[-len(flood.begin) :]
                    continue
                begun, held = True, held[at + len(flood.begin) :]
            end = held.find(flood.end)
            cut = end if end >= 0 else max(0, len(held) - len(flood.end))
            digest.update(held[:cut])
            length += cut
            if end >= 0:
                return {"length": length, "sha256": digest.hexdigest()}
            held = held[cut:]
    return {"length": length, "sha256": "no end mark in the log"}


def begin(
    task: Mapping[str, Any], send: Callable[[bytes], object]
) -> tuple[raw.Flood, Callable[[], object]]:
    """Return the flood of a task and its starter, which uses the side's console or the control."""
    control = task.get("control")
    flood = raw.flood(PAYLOAD, task["times"], task["tag"], "" if control is None else PORT)
    line = flood.command.encode() + b"\r"
    if control is None:
        return flood, lambda: send(line)
    return flood, lambda: raw.RawConsole(Wire(*control)).write(line)


def finish(task: Mapping[str, Any], prompt: Callable[[], object]) -> None:
    """Wait for the shell's prompt behind a flood."""
    if "control" in task:
        control = raw.RawConsole(Wire(*task["control"]))
        control.until(b"\n")  # the echo of the command
        control.until(b"# ")
    else:
        prompt()


def harness_side(task: Mapping[str, Any]) -> dict[str, Any]:
    """Harness' console, with log, recording and watchers, as a machine has it."""
    from harness.console import Console
    from harness.deadline import TCG_SCALE, UNSCALED, Scale

    log = Path(task["folder"]) / "serial.log"
    cast = Path(task["folder"]) / "serial.cast"
    scale = Scale(TCG_SCALE)
    with Console(wire_of(task), log=log, cast=cast, name="bench", scale=scale) as console:
        if task["task"] == "commands":
            console.send_line()
            console.login(None)
            samples = []
            for _ in range(task["count"]):
                started = time.perf_counter()
                result = console.run("echo hello")
                samples.append(time.perf_counter() - started)
                assert (result.stdout, result.status) == ("hello\n", 0)
            mark = console.mark()
            console.leave()
            console.expect(PROMPT, since=mark)
            return {"samples": samples}
        flood, start = begin(task, console.send)
        reset_peak()
        before, _ = memory()
        start()
        console.expect_exact(flood.begin)
        cpu = time.process_time()
        started = time.perf_counter()
        console.expect_exact(flood.end, UNSCALED.after(LIMIT))
        seconds = time.perf_counter() - started
        cpu = time.process_time() - cpu
        _, peak = memory()
        finish(task, lambda: console.expect(PROMPT))
    judged = judge_log(log, flood)
    for path in (log, cast):
        path.unlink()
    return {"seconds": seconds, "cpu": cpu, "grown": peak - before, **judged}


def raw_side(task: Mapping[str, Any]) -> dict[str, Any]:
    """The bare descriptor."""
    if "tty" in task:
        fd = os.open(task["tty"], os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd)
        console = raw.RawConsole(Wire(fd, fd))
    else:
        console = raw.RawConsole(wire_of(task))
    if task["side"] == "raw-driver":
        return raw_on_driver(task, console)
    if task["task"] == "commands":
        console.write(b"\r")
        console.until(b"# ")
        shell = console.shell()
        samples = []
        for _ in range(task["count"]):
            started = time.perf_counter()
            output, status = shell.run("echo hello")
            samples.append(time.perf_counter() - started)
            assert (output, status) == (b"hello\r\n", 0)
        shell.close()
        return {"samples": samples}
    flood, start = begin(task, console.write)
    start()
    console.until(flood.begin)
    cpu = time.process_time()
    started = time.perf_counter()
    length = console.count_until(flood.end)
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    finish(task, lambda: console.until(b"# "))
    return {"seconds": seconds, "cpu": cpu, "length": length}


def raw_on_driver(task: Mapping[str, Any], console: raw.RawConsole) -> dict[str, Any]:
    """The bare descriptor with Harness' driver in the guest: the cost of ``run`` without Python's.

    A console of Harness starts the driver, then closes without ending it.
    """
    from harness.console import Console
    from harness.deadline import TCG_SCALE, Scale

    scale = Scale(TCG_SCALE)
    log = Path(task["folder"]) / "driver.log"
    # Closed, the console must leave the descriptors to what follows.
    kept = Wire(*map(os.dup, task["wire"]))
    with Console(kept, log=log, cast=None, name="bench", scale=scale) as starter:
        starter.send_line()
        starter.login(None)
    log.unlink()
    wire_of(task).setblocking(True)
    samples = []
    for number in range(task["count"]):
        # A tag as long as Harness' own; see harness.console.shell.requests.
        tag = b"%d.abcdef" % (number + 1)
        started = time.perf_counter()
        console.write(b"x %s .echo hello.\n" % tag)
        frame = console.until(tag + b" 0 6>\r\n")
        samples.append(time.perf_counter() - started)
        assert frame.endswith(b"<%s 0 6\r\nhello\r\n" % tag), frame
    console.write(b"q 0.abcdef ..\n")
    console.until(b"# ")
    return {"samples": samples}


def main(arguments: list[str]) -> int:
    """Do one task and print its answer."""
    task = json.loads(arguments[0])
    if task["side"] == "harness":
        answer = harness_side(task)
    elif task["side"].startswith("raw"):
        answer = raw_side(task)
    else:
        from bench import peer

        answer = peer.labgrid_side(task)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
