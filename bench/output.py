"""Output of the guest: at what rate it comes, whether all of it, and what memory it takes.

Two ways out of the guest. The serial console is what users have; an emulated 16550 passes a byte
at a time, so a gigabyte would take hours, and the guest sets the pace. A virtio serial port is as
lossless and hundreds of times faster: there the reader sets the pace. The library's console reads
the one as the other. A virtio *console* is neither: QEMU drops its output when the reader is
behind, whoever reads (QEMU, ``flush_buf`` of ``hw/char/virtio-console.c``: only what is no console is
throttled).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import peer, side
from bench.core import Budget, Context, Judged, Result, missing, paired
from bench.guest import Guest, Payload, megabytes, payload
from harness.spec import MIB, ConsoleDevice

RATE = Budget(0.9, Judged.RATIO, at_least=True)
LOST = Budget(0, Judged.WORST)
GROWN = Budget(64, Judged.WORST)

SERIAL = "output, serial console"
PORT = "output, virtio port"
HVC = "output, virtio console"


@dataclass(slots=True)
class _Flood:
    """The same output through several sides, in turns."""

    guest: Guest
    load: Payload
    times: int
    folder: Path
    port: bool
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    size: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        self.size, self.digest = self.load.digest(self.times, terminal=not self.port)

    def turn(self, name: str) -> float:
        """Let one side take the flood; return its rate in MB/s."""
        answers = self.answers.setdefault(name, [])
        told = side.ask(
            self.guest,
            name,
            "output",
            port=self.port,
            times=self.times,
            tag=f"{name}{len(answers)}",
            folder=str(self.folder),
            seconds=side.LIMIT - 60,
        )
        told["whole"] = (
            told["length"] == self.size and told.get("sha256", self.digest) == self.digest
        )
        answers.append(told)
        return megabytes(told["length"]) / float(told["seconds"])

    def sides(self, *names: str) -> dict[str, Callable[[], float]]:
        return {name: partial(self.turn, name) for name in names}

    def whole(self, name: str) -> str:
        """Say whether all of it came, for a note."""
        answers = self.answers[name]
        good = sum(told["whole"] for told in answers)
        if good == len(answers):
            # The bare tool keeps no log to be compared: it only counts.
            return "nothing lost" if "sha256" in answers[0] else "as many bytes as were sent"
        lost = [self.size - int(told["length"]) for told in answers]
        return f"NOT WHOLE in {len(answers) - good} of {len(answers)}: bytes missing {lost}"

    def cpu(self, name: str) -> str:
        """Say what CPU time the side took, for a note."""
        answers = self.answers[name]
        spent = sum(told["cpu"] for told in answers) / len(answers)
        return f"CPU {1000 * spent / megabytes(self.size):.1f} ms/MB"

    def note(self, name: str) -> str:
        return f"{megabytes(self.size):.0f} MB each, {self.whole(name)}, {self.cpu(name)}"


def run(context: Context) -> list[Result]:
    """Let the guest print through each device."""
    rows = _port(context)
    rows += _serial(context)
    return rows + _virtio_console(context)


def _labgrid(what: str, taken: dict[str, tuple[float, ...]], flood: _Flood) -> list[Result]:
    rows = []
    for name, subject in (
        ("labgrid-qemu", "labgrid QEMUDriver.expect"),
        ("labgrid-serial", "labgrid SerialDriver.expect on pty"),
    ):
        if name in taken:
            note = flood.note(name)
            rows.append(Result(what, subject, "MB/s", taken[name], taken["raw"], note=note))
        else:
            rows.append(missing(what, subject, "MB/s", peer.NOT_INSTALLED))
    return rows


def _peers() -> tuple[str, ...]:
    return ("labgrid-qemu", "labgrid-serial") if peer.version() else ()


def _lost(what: str, flood: _Flood) -> Result:
    length = flood.size
    answers = flood.answers["harness"]
    # Bytes that are there but are not those that were sent count as lost, all of them.
    lost = tuple(
        0.0 if told["whole"] else float(abs(length - int(told["length"])) or length)
        for told in answers
    )
    return Result(
        f"{what}: lost in the log",
        "harness",
        "bytes",
        lost,
        budget=LOST,
        note="length and SHA-256 of the log against what the guest printed",
    )


def _port(context: Context) -> list[Result]:
    load = payload(context.folder, 16 * MIB)
    with Guest(context.folder, "port", load=load) as guest:
        guest.login()
        # 64 times 16 MiB: 1.07 GB.
        flood = _Flood(guest, load, context.pick(64, 6), context.folder, True)
        taken = paired(context.pick(3, 2), flood.sides("raw", "harness"), context.say)
        grown = tuple(megabytes(told["grown"]) for told in flood.answers["harness"])
        rows = [
            Result(
                PORT, "harness", "MB/s", taken["harness"], taken["raw"], RATE, flood.note("harness")
            ),
            Result(PORT, "raw socket", "MB/s", taken["raw"], note=flood.note("raw")),
            _lost(PORT, flood),
            Result(
                f"{PORT}: memory grown",
                "harness",
                "MB",
                grown,
                budget=GROWN,
                note="peak resident memory above that before, VmHWM after a reset of the peak",
            ),
        ]
    # What labgrid's pexpect has read it searches again at each read, so it gets a small amount.
    small = payload(context.folder, MIB)
    with Guest(context.folder, "port-small", load=small) as guest:
        guest.login()
        flood = _Flood(guest, small, context.pick(4, 1), context.folder, True)
        taken = paired(
            context.pick(3, 1), flood.sides("raw", "harness", "raw-pty", *_peers()), context.say
        )
        what = f"{PORT}, {megabytes(flood.size):.0f} MB"
        rows += [
            Result(
                what,
                "harness",
                "MB/s",
                taken["harness"],
                taken["raw"],
                note=flood.note("harness") + "; starting to wait weighs on so little",
            ),
            Result(what, "raw socket", "MB/s", taken["raw"], note=flood.note("raw")),
            Result(
                what,
                "raw through a pty",
                "MB/s",
                taken["raw-pty"],
                taken["raw"],
                note="what the bridge to labgrid's SerialDriver costs",
            ),
            *_labgrid(what, taken, flood),
        ]
    return rows


def _serial(context: Context) -> list[Result]:
    load = payload(context.folder, MIB // 4)
    with Guest(context.folder, "serial", load=load) as guest:
        guest.login()
        flood = _Flood(guest, load, context.pick(4, 1), context.folder, False)
        taken = paired(context.pick(3, 1), flood.sides("raw", "harness", *_peers()), context.say)
    return [
        Result(
            SERIAL,
            "harness",
            "MB/s",
            taken["harness"],
            taken["raw"],
            RATE,
            flood.note("harness") + "; the emulated UART sets the pace",
        ),
        Result(SERIAL, "raw socket", "MB/s", taken["raw"], note=flood.note("raw")),
        _lost(SERIAL, flood),
        *_labgrid(SERIAL, taken, flood),
    ]


def _virtio_console(context: Context) -> list[Result]:
    load = payload(context.folder, MIB // 4)
    with Guest(context.folder, "hvc", console=ConsoleDevice.VIRTIO, load=load) as guest:
        guest.login()
        flood = _Flood(guest, load, context.pick(4, 1), context.folder, False)
        taken = paired(context.pick(3, 1), flood.sides("raw", "harness"), context.say)
    dropped = "; QEMU drops a virtio console's output when the reader is behind"
    return [
        Result(
            HVC,
            "harness",
            "MB/s",
            taken["harness"],
            taken["raw"],
            note=flood.note("harness") + dropped,
        ),
        Result(HVC, "raw socket", "MB/s", taken["raw"], note=flood.note("raw") + dropped),
    ]
