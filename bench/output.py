"""Output of the guest: its rate, its completeness, and the memory that reading it takes.

The output has two ways out of the guest. Users have the serial console: an emulated 16550 passes one
byte at a time, so a gigabyte would take hours, and the guest sets the pace. A virtio serial port is
lossless and hundreds of times faster: there the reader sets the pace. The library's console reads
both in the same way. A virtio *console* is not lossless: QEMU drops its output when the reader is behind
(QEMU, ``flush_buf`` of ``hw/char/virtio-console.c``: it throttles ports that are not consoles, and only
those).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import peer, side
from bench.core import Budget, Context, Judged, Row, missing, paired
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
        """Let one side read the flood; return its rate in MB/s."""
        answers = self.answers.setdefault(name, [])
        answer = side.ask(
            self.guest,
            name,
            "output",
            port=self.port,
            times=self.times,
            tag=f"{name}{len(answers)}",
            folder=str(self.folder),
            seconds=side.LIMIT - 60,
        )
        answer["whole"] = (
            answer["length"] == self.size and answer.get("sha256", self.digest) == self.digest
        )
        answers.append(answer)
        return megabytes(answer["length"]) / float(answer["seconds"])

    def sides(self, *names: str) -> dict[str, Callable[[], float]]:
        return {name: partial(self.turn, name) for name in names}

    def whole(self, name: str) -> str:
        """Return a note that says whether all of the output arrived."""
        answers = self.answers[name]
        good = sum(answer["whole"] for answer in answers)
        if good == len(answers):
            # The bare tool keeps no log to compare: it only counts.
            return "nothing lost" if "sha256" in answers[0] else "as many bytes as were sent"
        lost = [self.size - int(answer["length"]) for answer in answers]
        return f"NOT WHOLE in {len(answers) - good} of {len(answers)}: bytes missing {lost}"

    def cpu(self, name: str) -> str:
        """Return a note with the CPU time of the side."""
        answers = self.answers[name]
        spent = sum(answer["cpu"] for answer in answers) / len(answers)
        return f"CPU {1000 * spent / megabytes(self.size):.1f} ms/MB"

    def note(self, name: str) -> str:
        return f"{megabytes(self.size):.0f} MB each, {self.whole(name)}, {self.cpu(name)}"


def run(context: Context) -> list[Row]:
    """Let the guest print through each device."""
    rows = _port(context)
    rows += _serial(context)
    return rows + _virtio_console(context)


def _labgrid(measurement: str, rates: dict[str, tuple[float, ...]], flood: _Flood) -> list[Row]:
    rows = []
    for name, subject in (
        ("labgrid-qemu", "labgrid QEMUDriver.expect"),
        ("labgrid-serial", "labgrid SerialDriver.expect on pty"),
    ):
        if name in rates:
            note = flood.note(name)
            rows.append(Row(measurement, subject, "MB/s", rates[name], rates["raw"], note=note))
        else:
            rows.append(missing(measurement, subject, "MB/s", peer.NOT_INSTALLED))
    return rows


def _peers() -> tuple[str, ...]:
    return ("labgrid-qemu", "labgrid-serial") if peer.version() else ()


def _lost(measurement: str, flood: _Flood) -> Row:
    length = flood.size
    answers = flood.answers["harness"]
    # If the bytes differ from those that the guest printed, all of them count as lost.
    lost = tuple(
        0.0 if answer["whole"] else float(abs(length - int(answer["length"])) or length)
        for answer in answers
    )
    return Row(
        f"{measurement}: lost in the log",
        "harness",
        "bytes",
        lost,
        budget=LOST,
        note="length and SHA-256 of the log against those of the printed output",
    )


def _port(context: Context) -> list[Row]:
    load = payload(context.folder, 16 * MIB)
    with Guest(context.folder, "port", load=load) as guest:
        guest.login()
        # 64 times 16 MiB: 1.07 GB.
        flood = _Flood(guest, load, context.pick(64, 6), context.folder, True)
        rates = paired(context.pick(3, 2), flood.sides("raw", "harness"), context.say)
        grown = tuple(megabytes(answer["grown"]) for answer in flood.answers["harness"])
        rows = [
            Row(
                PORT, "harness", "MB/s", rates["harness"], rates["raw"], RATE, flood.note("harness")
            ),
            Row(PORT, "raw wire", "MB/s", rates["raw"], note=flood.note("raw")),
            _lost(PORT, flood),
            Row(
                f"{PORT}: memory grown",
                "harness",
                "MB",
                grown,
                budget=GROWN,
                note="the growth of the peak of resident memory: VmHWM after a reset of the peak",
            ),
        ]
    # labgrid's pexpect searches all of its buffer again at each read, so it gets a small amount.
    small = payload(context.folder, MIB)
    with Guest(context.folder, "port-small", load=small) as guest:
        guest.login()
        flood = _Flood(guest, small, context.pick(4, 1), context.folder, True)
        rates = paired(
            context.pick(3, 1), flood.sides("raw", "harness", "raw-pty", *_peers()), context.say
        )
        measurement = f"{PORT}, {megabytes(flood.size):.0f} MB"
        rows += [
            Row(
                measurement,
                "harness",
                "MB/s",
                rates["harness"],
                rates["raw"],
                note=flood.note("harness")
                + "; the start of the wait matters with so little output",
            ),
            Row(measurement, "raw wire", "MB/s", rates["raw"], note=flood.note("raw")),
            Row(
                measurement,
                "raw through a pty",
                "MB/s",
                rates["raw-pty"],
                rates["raw"],
                note="the cost of the bridge to labgrid's SerialDriver",
            ),
            *_labgrid(measurement, rates, flood),
        ]
    return rows


def _serial(context: Context) -> list[Row]:
    load = payload(context.folder, MIB // 4)
    with Guest(context.folder, "serial", load=load) as guest:
        guest.login()
        flood = _Flood(guest, load, context.pick(4, 1), context.folder, False)
        rates = paired(context.pick(3, 1), flood.sides("raw", "harness", *_peers()), context.say)
    return [
        Row(
            SERIAL,
            "harness",
            "MB/s",
            rates["harness"],
            rates["raw"],
            RATE,
            flood.note("harness") + "; the emulated UART sets the pace",
        ),
        Row(SERIAL, "raw wire", "MB/s", rates["raw"], note=flood.note("raw")),
        _lost(SERIAL, flood),
        *_labgrid(SERIAL, rates, flood),
    ]


def _virtio_console(context: Context) -> list[Row]:
    load = payload(context.folder, MIB // 4)
    with Guest(context.folder, "hvc", console=ConsoleDevice.VIRTIO, load=load) as guest:
        guest.login()
        flood = _Flood(guest, load, context.pick(4, 1), context.folder, False)
        rates = paired(context.pick(3, 1), flood.sides("raw", "harness"), context.say)
    dropped = "; QEMU drops a virtio console's output when the reader is behind"
    return [
        Row(
            HVC,
            "harness",
            "MB/s",
            rates["harness"],
            rates["raw"],
            note=flood.note("harness") + dropped,
        ),
        Row(HVC, "raw wire", "MB/s", rates["raw"], note=flood.note("raw") + dropped),
    ]
