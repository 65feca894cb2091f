"""A fork of a booted machine to its first command, its memory, and saving a machine; a group of them."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

from bench.core import Budget, Context, Row, missing
from bench.labs import lab, private
from harness import arch as arches
from harness.lab import Lab
from harness.lab.clusters import fork_group
from harness.machine import Machine
from harness.network import Segment
from harness.parallel import in_parallel
from harness.points import live
from harness.spec import Nic, format_size
from harness.states import save_group
from harness.states.group import Fork

FORK = "fork to first command on the console"
RUNS = "fork, until its guest runs"
OVER_SSH = "fork to first command over SSH"
SAVE = "save of a booted machine"
PRIVATE = "private memory of an idle fork"
SAVE_GROUP = "save of a group of 3 on a segment"
FORK_GROUP = "fork of a group of 3 to first commands on the consoles"

MEMBERS: Final = ("node-1", "node-2", "node-3")

FORK_BUDGETS = {"x86_64": Budget(0.25), "aarch64": Budget(0.6)}
SSH_BUDGET = Budget(1.0)
SAVE_BUDGET = Budget(0.5)
PRIVATE_BUDGET = Budget(80.0)

LABGRID = "its drivers always boot: they have no snapshot and no fork"


def run(context: Context) -> list[Row]:
    """Measure micro of each architecture, then skiff, which has the budgets."""
    rows: list[Row] = []
    for image in ("micro", "skiff"):
        for arch in arches.ARCHES:
            with lab(context, image, arch=arch) as here:
                rows += _image(context, here, f"{image} {arch}", judged=image == "skiff")
    with lab(context, "micro") as here:
        rows += _groups(context, here)
    return [*rows, missing(FORK, "labgrid", "s", LABGRID)]


def _image(context: Context, here: Lab, subject: str, *, judged: bool) -> list[Row]:
    here.state(live)
    context.say(f"{subject}: the state live is ready")
    cold, saved = _cold(context, here, subject)
    forks, runs, over_ssh, idle, after_ssh = [], [], [], [], []
    for number in range(context.pick(15, 3)):
        started = time.perf_counter()
        machine = here.fork(live, name="fork", working_set=0)
        steps = reversed(machine.timeline.steps)
        in_guest = next(step.seconds for step in steps if step.name == "fork")
        runs.append(time.perf_counter() - started - (in_guest or 0))
        machine.console.run("true")
        forks.append(time.perf_counter() - started)
        idle.append(private(machine))
        machine.stop()
        started = time.perf_counter()
        machine = here.fork(live, name="fork", working_set=0)
        machine.ssh.run("true").check()
        over_ssh.append(time.perf_counter() - started)
        after_ssh.append(private(machine))
        machine.stop()
        context.say(f"{subject}: fork {number + 1}: {forks[-1]:.3f} s, SSH {over_ssh[-1]:.3f} s")
    memory = format_size(machine.spec.memory)
    return [
        Row("boot to first command on the console", subject, "s", tuple(cold)),
        Row(
            FORK,
            subject,
            "s",
            tuple(forks),
            budget=FORK_BUDGETS.get(machine.spec.arch) if judged else None,
            note="from the call; includes setting the clock and reseeding the random pool",
        ),
        Row(RUNS, subject, "s", tuple(runs), note="QEMU has started and loaded the saved machine"),
        Row(OVER_SSH, subject, "s", tuple(over_ssh), budget=SSH_BUDGET if judged else None),
        Row(
            SAVE,
            subject,
            "s",
            tuple(saved),
            budget=SAVE_BUDGET if judged else None,
            note=f"{memory}, just booted: RAM, devices and disks",
        ),
        Row(
            PRIVATE,
            subject,
            "MB",
            tuple(idle),
            budget=PRIVATE_BUDGET if judged else None,
            note="the pages it has written, QEMU's own included, after the command on the console",
        ),
        Row("private memory of a fork after SSH", subject, "MB", tuple(after_ssh)),
    ]


def _cold(context: Context, here: Lab, subject: str) -> tuple[list[float], list[float]]:
    """Boot a machine as the state does and save it while it runs; return the seconds of each."""
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
        context.say(f"{subject}: boot {number + 1}: {cold[-1]:.2f} s, save {saved[-1]:.3f} s")
    return cold, saved


def _groups(context: Context, here: Lab) -> list[Row]:
    """Measure machines of micro that are saved at one moment, and forked together."""
    segment = here.segment(capture=False)

    def boot(name: str) -> Machine[Any]:
        nics = (Nic(), Nic.on(segment.name))
        machine = here.boot(name=name, nics=nics, segments=[segment], saveable=True)
        machine.os.login()
        return machine

    machines = in_parallel(boot, MEMBERS)
    saved, forks = [], []
    for number in range(context.pick(5, 1)):
        folder = here.folder / f"group-{number}"
        started = time.perf_counter()
        group = save_group(machines, [segment], folder)
        saved.append(time.perf_counter() - started)
        started = time.perf_counter()
        fork = fork_group(here, group)
        in_parallel(lambda machine: machine.console.run("true"), fork.machines.values())
        forks.append(time.perf_counter() - started)
        _end(fork)
        context.say(f"group {number + 1}: save {saved[-1]:.3f} s, fork {forks[-1]:.3f} s")
    memory = format_size(machines[0].spec.memory)
    subject = f"micro {machines[0].spec.arch}"
    return [
        Row(SAVE_GROUP, subject, "s", tuple(saved), note=f"{memory} each, while they run on"),
        Row(FORK_GROUP, subject, "s", tuple(forks), note="from the call; their segment included"),
    ]


def _end(fork: Fork[Machine[Any], Segment]) -> None:
    with contextlib.ExitStack() as ending:
        for segment in fork.segments.values():
            ending.callback(segment.close)
        for machine in fork.machines.values():
            ending.callback(machine.stop)
