"""The clock of a guest against the host's: how far it goes astray, and whether Linux distrusts it.

Guests with and without an HPET idle side by side, so that both meet the same load of the host. Nothing
in ``micro`` sets its clock: what its wall clock gains or loses is what its clock source does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.core import Context, Row
from bench.guest import PASSWORD, USER, command, micro_spec
from bench.raw import RawConsole, RawShell
from harness.console import wire
from harness.qemu.process import OwnedProcess

SECONDS: Final = 600
QUICK: Final = 20
TRIES: Final = 100
"""Readings of both clocks at one point; the one with the quickest answer counts, as in NTP."""

SIDES: Final = {"HPET": "hpet=on", "no HPET": "hpet=off"}
"""Options of QEMU's machine, by the clocks that the guest has; all have PIT and ACPI timer."""


@dataclass(frozen=True, slots=True)
class Offset:
    """The guest's clock minus the host's, plus a constant.

    Attributes:
        seconds: The difference.
        error: By how much it may be wrong, either way.
    """

    seconds: float
    error: float


def run(context: Context) -> list[Row]:
    """Compare the clocks after boot and again after ten minutes."""
    seconds = context.pick(SECONDS, QUICK)
    with contextlib.ExitStack() as stack:
        guests = {
            name: stack.enter_context(_guest(context.folder, name, option))
            for name, option in SIDES.items()
        }
        before = {name: _offset(shell) for name, shell in guests.items()}
        context.say(f"{len(guests)} guests are up; they idle for {seconds} s")
        # There is nothing to wait for but the time itself.
        time.sleep(seconds)
        rows = []
        for name, shell in guests.items():
            after = _offset(shell)
            skew = (after.seconds - before[name].seconds) * 1000
            doubt = (after.error + before[name].error) * 1000
            source, _ = shell.run(
                "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
            )
            _, unmarked = shell.run("dmesg | grep -qi 'TSC.* unstable'")
            rows.append(
                Row(
                    f"skew of a guest's clock after {seconds} s",
                    name,
                    "ms",
                    (skew,),
                    note=f"± {doubt:.1f} ms; clock source {source.decode().strip()}; TSC marked"
                    f" unstable: {'no' if unmarked else 'yes'}",
                )
            )
            context.say(f"{name}: {skew:+.1f} ms, {rows[-1].note}")
    return rows


@contextlib.contextmanager
def _guest(folder: Path, name: str, option: str) -> Iterator[RawShell]:
    """Yield a shell in a guest with an option of the machine in the place of Harness' own."""
    key, _, _ = option.partition("=")
    console, console_there = wire.pair()
    with console, console_there:
        words = command(micro_spec("clocks"), console_there, None)
        at = words.index("-machine") + 1
        options = [each for each in words[at].split(",") if not each.startswith(f"{key}=")]
        words[at] = ",".join([*options, option])
        process = OwnedProcess(
            words,
            stderr=folder / f"{name.replace(' ', '-')}.qemu.stderr",
            pass_fds=(console_there.incoming, console_there.outgoing),
        )
        try:
            raw = RawConsole(console)
            raw.login(USER, PASSWORD)
            yield raw.shell()
        finally:
            process.kill()


def _offset(shell: RawShell) -> Offset:
    """Read both clocks; the guest's is the monotonic one, of which its wall clock is a constant off."""
    best = Offset(0.0, float("inf"))
    for _ in range(TRIES):
        before = time.monotonic()
        # kernel/time/timer_list.c of Linux: "now at 123456789 nsecs".
        output, _ = shell.run("grep -m 1 '^now at' /proc/timer_list")
        after = time.monotonic()
        middle, error = (before + after) / 2, (after - before) / 2
        if error < best.error:
            best = Offset(int(output.split()[2]) / 1e9 - middle, error)
    return best
