"""A run of the probe's guest code under one accelerator, and its progress."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from harness import arch as arches
from harness.deadline import Deadline
from harness.errors import QemuMissingError
from harness.host import probe

_BEGIN, _ROUND, _DONE, _WRONG = b"b.Z!"
_STDERR_KEPT: Final = 4096


class End(StrEnum):
    """How a run of the guest code ended."""

    DONE = "done"
    """The code did all rounds, with the right results."""
    WRONG = "wrong"
    """The code did all rounds, with wrong results."""
    LATE = "late"
    """The deadline passed."""
    DIED = "died"
    """QEMU ended before the code did."""


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """The outcome of one run.

    Attributes:
        end: How it ended.
        rounds: Rounds done, of :data:`harness.host.probe.ROUNDS`.
        seconds: From the first 64-bit paged instruction to the end; 0 if there was none.
        stderr: The end of QEMU's standard error.
    """

    end: End
    rounds: int
    seconds: float
    stderr: str

    @property
    def began(self) -> bool:
        """Whether 64-bit paged code ran at all."""
        return self.seconds > 0


def run(
    qemu: Path, arch: str, accel: str, cpu: str, *, limit: Deadline, work: float | None = None
) -> ProbeRun:
    """Run the guest code of ``arch``; return when it ends or its time is up.

    QEMU has ended when this returns or raises. It also ends when this process is killed.

    Args:
        qemu: The program.
        arch: The architecture of the guest code.
        accel: ``kvm`` or ``tcg``.
        cpu: QEMU's name of the CPU model.
        limit: The deadline for everything, the start of QEMU included.
        work: Seconds for the guest code alone, from its first byte on.

    Raises:
        QemuMissingError: The program cannot be executed.
    """
    with _started(qemu, arch, accel, cpu) as process:
        return _watch(process, limit, work)


@contextlib.contextmanager
def _started(qemu: Path, arch: str, accel: str, cpu: str) -> Iterator[subprocess.Popen[bytes]]:
    # A memfd: killing this process leaves no file behind.
    image = os.memfd_create("harness-probe")
    try:
        os.write(image, probe.image(arch))
        machine = arches.of(arch).probe
        options: Sequence[tuple[str, ...]] = (
            ("-no-user-config", "-nodefaults", "-no-reboot"),
            ("-display", "none"),
            ("-accel", accel),
            ("-cpu", cpu),
            ("-m", "64"),
            ("-chardev", "stdio,id=progress,signal=off"),
            *machine.options,
            (machine.image_option, f"/dev/fd/{image}"),
        )
        # setpriv(1) makes the kernel kill QEMU when the thread that waits for it ends.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        if not os.access(qemu, os.X_OK):
            raise QemuMissingError(f"{qemu} cannot be executed", hint="see 'harness doctor'")
        process = subprocess.Popen(
            [*guard, qemu, *(word for option in options for word in option)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[image],
        )
    finally:
        os.close(image)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _watch(process: subprocess.Popen[bytes], limit: Deadline, work: float | None) -> ProbeRun:
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = bytearray()
    rounds = 0
    began: float | None = None

    def ended(end: End) -> ProbeRun:
        seconds = 0.0 if began is None else max(time.monotonic() - began, 1e-6)
        return ProbeRun(end, rounds, seconds, stderr.decode(errors="replace").strip())

    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            left = limit.remaining()
            if began is not None and work is not None:
                left = min(left, began + work - time.monotonic())
            ready = selector.select(left) if left > 0 else []
            if not ready:
                return ended(End.LATE)
            for key, _ in ready:
                data = os.read(key.fd, 4096)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    stderr += data
                    del stderr[:-_STDERR_KEPT]
                else:
                    if began is None and _BEGIN in data:
                        began = time.monotonic()
                    rounds += data.count(_ROUND)
                    if _DONE in data or _WRONG in data:
                        right = _DONE in data and rounds == probe.ROUNDS
                        return ended(End.DONE if right else End.WRONG)
    return ended(End.DIED)
