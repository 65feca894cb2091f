"""Power on to the login prompt: through Harness, and with bare QEMU."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

from bench import raw
from bench.core import Budget, Context, Judged, Result, paired
from bench.guest import command, micro
from harness.keys import KeyPair
from harness.spec import Nic

WHAT = "boot to prompt"
BUDGET = Budget(1.03, Judged.RATIO)
PROMPT = b"login: "


def run(context: Context) -> list[Result]:
    """Boot in turns: the same command line, with ``-S`` and without."""
    image = micro()
    key = KeyPair.generate()

    def harness() -> float:
        folder = context.folder / "boot"
        started = time.perf_counter()
        with image.machine("boot", folder, key) as machine:
            machine.console.expect_exact(PROMPT)
            seconds = time.perf_counter() - started
        shutil.rmtree(folder)
        return seconds

    def bare() -> float:
        spec = image.spec("boot", nics=(Nic(),), key=key)
        started = time.perf_counter()
        console, console_there = socket.socketpair()
        monitor, monitor_there = socket.socketpair()
        with console, monitor:
            fds = (console_there.fileno(), monitor_there.fileno())
            with console_there, monitor_there:
                process = subprocess.Popen(
                    command(spec, *fds),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=fds,
                )
            try:
                raw.RawConsole(console.fileno()).until(PROMPT)
                return time.perf_counter() - started
            finally:
                process.kill()
                process.wait()

    harness()  # the kernel and the initramfs are in the host's cache for all that follow
    taken = paired(context.pick(15, 3), {"bare": bare, "harness": harness}, context.say)
    return [
        Result(
            WHAT,
            "harness",
            "s",
            taken["harness"],
            taken["bare"],
            BUDGET,
            "from the call that makes the machine; monitor, log, recording and qemu.sh included",
        ),
        Result(WHAT, "bare QEMU", "s", taken["bare"], note="the same command line without -S"),
    ]
