"""Power on to the login prompt: through Harness, and with bare QEMU."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

from bench import raw
from bench.core import Budget, Context, Judged, Row, paired
from bench.guest import command, micro_spec
from bench.labs import lab
from harness.console import wire
from harness.spec import MachineSpec, Nic

MEASUREMENT = "boot to prompt"
BUDGET = Budget(1.03, Judged.RATIO)
PROMPT = b"login: "


def run(context: Context) -> list[Row]:
    """Boot in turns: the same command line, with ``-S`` and without."""
    with lab(context, "micro") as here:
        spec = micro_spec("boot", nics=(Nic(),), key=here.key)
        here.artifacts()

        def harness() -> float:
            started = time.perf_counter()
            with here.boot(name="boot") as machine:
                machine.console.expect_exact(PROMPT)
                seconds = time.perf_counter() - started
            shutil.rmtree(machine.evidence)
            return seconds

        harness()  # reads kernel and initramfs into the host's page cache for all that follow
        sides = {"bare": lambda: _bare(spec), "harness": harness}
        samples = paired(context.pick(15, 3), sides, context.say)
    return [
        Row(
            MEASUREMENT,
            "harness",
            "s",
            samples["harness"],
            samples["bare"],
            BUDGET,
            "from the call of lab.boot; admission, monitor, log, recording and qemu.sh included",
        ),
        Row(
            MEASUREMENT, "bare QEMU", "s", samples["bare"], note="the same command line without -S"
        ),
    ]


def _bare(spec: MachineSpec) -> float:
    """Boot a guest without Harness; return the seconds to its login prompt."""
    started = time.perf_counter()
    console, console_there = wire.pair()
    monitor, monitor_there = socket.socketpair()
    with console, monitor:
        fds = (console_there.incoming, console_there.outgoing, monitor_there.fileno())
        with console_there, monitor_there:
            process = subprocess.Popen(
                command(spec, console_there, monitor_there.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
            )
        try:
            raw.RawConsole(console).until(PROMPT)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
