"""A process for tests to kill: forks a saved machine, saves that fork, collects states."""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import os
import platform
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import paths, profiles
from harness.catalog import load
from harness.cli import COMMANDS
from harness.cli import main as cli
from harness.console import Console
from harness.deadline import Scale
from harness.evidence.timeline import Timeline
from harness.host.accel import Accel
from harness.host.scheduler import Turn
from harness.machine import Machine, Setup, launch
from harness.profiles.micro import Micro
from harness.qemu.qmp import Qmp
from harness.scope import Scope
from harness.ssh.key import KeyPair
from harness.states import Snapshot, StateCache
from tests.moments import STEP, arm, serve


def collect(cache: str, budget: str) -> None:
    """Run ``harness states gc --budget BUDGET``."""
    os.environ["HARNESS_CACHE"] = cache
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    assert cli(["states", "gc", "--budget", budget]) == 0


def map_no_file(size: int) -> None:
    """Make the kernel refuse private maps of files of this size, as some file systems do.

    The refusal holds for this process and its children (``seccomp(2)``; ``mmap(2)``: ENODEV).

    Args:
        size: Bytes.
    """
    number = {"x86_64": 9, "aarch64": 222}[platform.machine()]
    load, equal, has_bit, end = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
    refuse, allow = 0x00050000 | errno.ENODEV, 0x7FFF0000  # linux/seccomp.h
    # Operation, instructions to skip if true, if false, operand; loads read struct seccomp_data.
    program = [
        (load, 0, 0, 0),  # the system call
        (equal, 0, 7, number),
        (load, 0, 0, 24),  # its length
        (equal, 0, 5, size),
        (load, 0, 0, 48),  # its descriptor
        (equal, 3, 0, 0xFFFFFFFF),
        (load, 0, 0, 40),  # its flags
        (has_bit, 0, 1, 2),  # MAP_PRIVATE
        (end, 0, 0, refuse),
        (end, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # PR_SET_NO_NEW_PRIVS; PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_void_p(ctypes.addressof(head)), 0, 0)):
        if prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def count_commands() -> None:
    """Make each command on the monitor and on the console a moment at which to be killed."""

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            sys.audit(STEP)
            return function(*arguments, **options)

        return call

    Qmp.execute = counted(Qmp.execute)  # type: ignore[method-assign]
    Console.run = counted(Console.run)  # type: ignore[method-assign]


def main(action: str, saved: Path, evidence: Path, root: Path, moment: int) -> None:
    count_commands()
    origin = Snapshot.read(saved)
    catalog = load(paths.bundled("images"), known_profiles=profiles.names())
    selection = catalog.resolve("micro", origin.spec.arch)

    def machine() -> Machine[Micro]:
        setup = Setup(
            accel=lambda _: Accel("tcg", ""),
            admit=lambda *_: Turn(scale=Scale(8.0)),
            key=KeyPair(origin.private_key, origin.public_key),
            evidence=evidence,
            timeline=Timeline(),
            scope=Scope("victim"),
            system=lambda machine: Micro(machine, selection),
            origin=origin,
            saveable=action == "save",
        )
        return launch(origin.fork_spec("victim"), setup)

    def build(folder: Path) -> Snapshot:
        with machine() as victim:
            counts.append(arm(moment))
            return victim.save(folder, final=True, inside=saved.parent)

    counts: list[Callable[[], int]] = []
    if action == "save":
        StateCache(root).lease("victim", {"x": "1"}, "victim" * 8, build)
    elif action == "restore":
        counts.append(arm(moment))
        with machine() as victim:
            victim.console.run("echo alive")
    elif action == "unmapped":
        map_no_file(origin.spec.memory)
        with machine() as victim:
            print(victim.console.run("cat /tmp/mark; head -n 1 /dev/vda").stdout)
            print([step.data.get("ram") for step in victim.timeline.steps])
    print("done", *(count() for count in counts), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        # The modules are imported once here, and not in each child.
        for name in COMMANDS:
            importlib.import_module(f"harness.cli.{name}")
        serve(collect)
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
