"""A guest that panics or dies: how much longer a wait on its console lasts."""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import peer, side
from bench.core import Budget, Context, Judged, Row, missing, paired
from bench.guest import PASSWORD, SCALE, USER, Guest
from bench.labs import lab
from harness.console import Console, wire
from harness.console.wire import Wire
from harness.deadline import UNSCALED
from harness.errors import HarnessError, PanicError, QemuExitedError
from harness.lab import Lab

PANIC = "panic to failed wait"
KILL = "QEMU killed to failed wait"
BUDGET = Budget(0.5, Judged.WORST)
WORDS = b"Kernel panic"
PROVOKE = "sleep 1; echo c > /proc/sysrq-trigger"
"""The pause lets the wait begin before the panic."""

LABGRID_TIMEOUT = 5.0


def run(context: Context) -> list[Row]:
    """Lose a guest for each sample."""
    rounds = context.pick(5, 1)
    with lab(context, "micro") as here:
        sides = {
            "printed": lambda: _panic_printed(context.folder),
            "killed": lambda: _killed(here),
        }
        samples = paired(rounds, sides, context.say)
    rows = [
        Row(
            PANIC,
            "harness",
            "s",
            samples["printed"],
            budget=BUDGET,
            note="from the moment the words left QEMU, seen by a relay in front of the console,"
            " to the exception in the waiting test; a raw reader sees them at 0",
        ),
        Row(
            KILL,
            "harness",
            "s",
            samples["killed"],
            budget=BUDGET,
            note="from kill(2), SIGKILL, to the exception in the waiting test; the whole machine,"
            " with monitor and SSH",
        ),
    ]
    if not peer.version():
        return [*rows, missing(PANIC, "labgrid", "s", peer.NOT_INSTALLED)]
    lost = paired(context.pick(2, 1), {"labgrid": lambda: _labgrid(context.folder)}, context.say)
    rows.append(
        Row(
            PANIC,
            "labgrid QEMUDriver.expect",
            "s",
            lost["labgrid"],
            note=f"from the command that panics; its wait has a timeout of {LABGRID_TIMEOUT:g} s"
            " and lasts as long",
        )
    )
    return rows


def _failed(wait: Callable[[], object], kind: type[HarnessError]) -> float:
    """Return the time at which a wait failed.

    Raises:
        RuntimeError: It did not end, or ended with another error.
    """
    try:
        wait()
    except kind:
        return time.monotonic()
    raise RuntimeError(f"the wait did not end with {kind.__name__}")


class _Relay:
    """Carries the console's bytes; notes the time of a word before it passes it on."""

    def __init__(self, guest: Wire, word: bytes) -> None:
        self._guest = guest
        self._word = word
        self.seen_at: float | None = None
        self._ours, self.theirs = wire.pair()
        self._thread = threading.Thread(target=self._carry, name="bench-relay", daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        poller = select.poll()
        poller.register(self._guest, select.POLLIN)
        poller.register(self._ours, select.POLLIN)
        tail = b""
        while True:
            for fd, _ in poller.poll():
                outward = fd == self._guest.fileno()
                data = (self._guest if outward else self._ours).recv(65536)
                if not data:
                    self._ours.close()
                    return
                if outward and self.seen_at is None:
                    tail += data
                    if self._word in tail:
                        self.seen_at = time.monotonic()
                    tail = tail[-len(self._word) :]
                try:
                    (self._ours if outward else self._guest).sendall(data)
                except BrokenPipeError:
                    # The console closed while the guest still printed.
                    self._ours.close()
                    return

    def join(self) -> None:
        self._thread.join(10)


def _panic_printed(folder: Path) -> float:
    with Guest(folder, "panic") as guest:
        relay = _Relay(guest.wire, WORDS)
        log, cast = folder / "panic.log", folder / "panic.cast"
        with Console(relay.theirs, log=log, cast=cast, name="panic", scale=SCALE) as console:
            console.login(USER, PASSWORD)
            console.leave()
            console.send_line(PROVOKE)
            failed = _failed(lambda: console.expect("never printed"), PanicError)
        relay.join()
        assert relay.seen_at is not None
        return failed - relay.seen_at


def _killed(here: Lab) -> float:
    at: list[float] = []
    # A failed machine fails its scope, and nothing boots in a scope that has failed.
    with here.child("killed") as child, child.boot(name="killed") as machine:
        machine.console.expect_exact("login: ")

        def kill() -> None:
            at.append(time.monotonic())
            os.kill(machine.pid, signal.SIGKILL)

        # The pause lets the wait begin before the kill.
        timer = threading.Timer(0.5, kill)
        timer.start()
        failed = _failed(
            lambda: machine.console.expect("never printed", UNSCALED.after(60)),
            QemuExitedError,
        )
        timer.join()
    shutil.rmtree(machine.evidence)
    return failed - at[0]


def _labgrid(folder: Path) -> float:
    with Guest(folder, "panic-labgrid") as guest:
        guest.login()
        answer = side.ask(guest, "labgrid-qemu", "panic", command=PROVOKE, seconds=LABGRID_TIMEOUT)
    return float(answer["seconds"])
