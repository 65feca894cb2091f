"""A fork of a booted machine, to its first command; saving one; the memory that a fork takes."""

from __future__ import annotations

import time

from bench.core import Budget, Context, Result, missing
from bench.states import Stage, private, stage
from fixtures.points import live
from harness.spec import format_size

FORK = "fork to first command on the console"
OVER_SSH = "fork to first command over SSH"
SAVE = "save of a booted machine"
PRIVATE = "private memory of an idle fork"

FORK_BUDGET = Budget(0.25)
SSH_BUDGET = Budget(1.0)
SAVE_BUDGET = Budget(0.5)
PRIVATE_BUDGET = Budget(80.0)

LABGRID = "its drivers start QEMU from nothing: a snapshot or a fork is none of their words"


def run(context: Context) -> list[Result]:
    """Measure micro, then skiff, which the budgets are about."""
    results: list[Result] = []
    for image in ("micro", "skiff"):
        with stage(context, image) as here:
            results += _image(context, here, image, judged=image == "skiff")
    return [*results, missing(FORK, "labgrid", "s", LABGRID)]


def _image(context: Context, here: Stage, image: str, *, judged: bool) -> list[Result]:
    here.states.lease(live)
    context.say(f"{image}: the state live is there")
    cold, saved = _cold(context, here, image)
    forks, over_ssh, idle, after_ssh = [], [], [], []
    for number in range(context.pick(15, 3)):
        started = time.perf_counter()
        machine = here.fork_of(live, name="fork", working_set=0)
        machine.console.run("true")
        forks.append(time.perf_counter() - started)
        idle.append(private(machine))
        machine.stop()
        started = time.perf_counter()
        machine = here.fork_of(live, name="fork", working_set=0)
        machine.ssh.run("true").check()
        over_ssh.append(time.perf_counter() - started)
        after_ssh.append(private(machine))
        machine.stop()
        context.say(f"{image}: fork {number + 1}: {forks[-1]:.3f} s, SSH {over_ssh[-1]:.3f} s")
    memory = format_size(machine.spec.memory)
    return [
        Result("boot to first command on the console", image, "s", tuple(cold)),
        Result(
            FORK,
            image,
            "s",
            tuple(forks),
            budget=FORK_BUDGET if judged else None,
            note="from the call; the clock set and the random pool reseeded before the command",
        ),
        Result(OVER_SSH, image, "s", tuple(over_ssh), budget=SSH_BUDGET if judged else None),
        Result(
            SAVE,
            image,
            "s",
            tuple(saved),
            budget=SAVE_BUDGET if judged else None,
            note=f"{memory}, just booted: RAM, devices and disks",
        ),
        Result(
            PRIVATE,
            image,
            "MB",
            tuple(idle),
            budget=PRIVATE_BUDGET if judged else None,
            note="pages it has written, QEMU's own included, after the command on the console",
        ),
        Result("private memory of a fork after SSH", image, "MB", tuple(after_ssh)),
    ]


def _cold(context: Context, here: Stage, image: str) -> tuple[list[float], list[float]]:
    """Boot a machine as the state does, and save it while it runs; seconds of each."""
    cold, saved = [], []
    for number in range(context.pick(3, 1)):
        started = time.perf_counter()
        machine = here.boot(name="cold", saveable=True)
        machine.os.login()
        machine.console.run("true")
        cold.append(time.perf_counter() - started)
        started = time.perf_counter()
        machine.save(machine.evidence / "saved")
        saved.append(time.perf_counter() - started)
        machine.stop()
        context.say(f"{image}: boot {number + 1}: {cold[-1]:.2f} s, save {saved[-1]:.3f} s")
    return cold, saved
