"""Saving a running machine, or only its disks, so that forks can go on from there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.deadline import Deadline
from harness.errors import PanicError, UsageError
from harness.machine import rest
from harness.machine.parts import Parts
from harness.machine.power import Power
from harness.machine.system import System
from harness.qemu import binary
from harness.states import save as saving
from harness.states import snapshot as snapshots
from harness.states import stream
from harness.states.snapshot import Snapshot

if TYPE_CHECKING:
    from harness.ssh.key import KeyPair


_REST: Final = 2.0
"""Seconds on a good host after which a guest that does not rest is saved as it is: a test's own may
compute for ever."""


class Saving:
    """Saves one running machine; :class:`~harness.machine.Machine` documents the words.

    Args:
        parts: The machine's parts.
        power: Its power.
        os: Its operating system.
        key: The SSH key that logs in.
        saveable: Whether it was started so that its RAM can be saved.
    """

    def __init__(
        self, parts: Parts, power: Power, os: System, key: KeyPair, *, saveable: bool
    ) -> None:
        self._parts = parts
        self._power = power
        self._os = os
        self._key = key
        self._memory = parts.memory if saveable else None

    def wait_for_rest(self) -> bool:
        """Wait until the guest rests, or for a while; return whether it does."""
        parts = self._parts
        if parts.ssh is not None:
            # The guest's server ends the session now, and not in each fork.
            parts.ssh.disconnect()
        with parts.timeline.step("come to rest", machine=parts.name) as step:
            rests = step.data["rests"] = rest.wait(parts.process, parts.scale.after(_REST))
        return rests

    def save(self, folder: Path, *, final: bool, inside: Path | None) -> Snapshot:
        """Save RAM, devices and disks as they are now."""
        with self.steps(folder, final=final, inside=inside) as steps:
            steps.stop()()
            steps.write()
            return steps.finish()

    @contextlib.contextmanager
    def steps(self, folder: Path, *, final: bool, inside: Path | None) -> Iterator[saving.Save]:
        """Save in steps; the guest runs on at the end of the block if it ran before."""
        parts, memory = self._parts, self._memory
        if memory is None:
            raise UsageError(
                f"machine {parts.name} cannot be saved: it was not started with saveable=True",
                hint="start it with saveable=True",
            )
        saving.check_disks(parts.spec)
        if parts.ssh is not None:
            parts.ssh.disconnect()
        with (
            parts.timeline.step("save", machine=parts.name, folder=str(folder)),
            # Another thread that looks at the screen would let the guest run on after it.
            parts.qmp.undisturbed(),
        ):
            draft = self._draft(folder)
            ran = parts.qmp.execute("query-status")["running"]
            try:
                yield _Steps(parts, draft, memory, final=final, inside=inside or folder)
            finally:
                if ran and parts.running:
                    parts.qmp.execute("cont")

    def save_disks(self, folder: Path, why: str, *, inside: Path | None) -> Snapshot:
        """Shut the machine down and save its disks only."""
        parts = self._parts
        saving.check_disks(parts.spec)
        draft = replace(self._draft(folder), cold=why)
        if parts.running:
            self._power.shutdown(parts.scale.after(60))
        with parts.timeline.step("save the disks", machine=parts.name, folder=str(folder)):
            return saving.finish(draft, parts.allocations, inside=inside or folder, move=True)

    def salvage(self, folder: Path, *, inside: Path, limit: Deadline, most: int) -> Snapshot:
        """Save what can be had of a machine that may have failed; without RAM if it has ended."""
        parts = self._parts
        saving.check_disks(parts.spec)
        with parts.timeline.step("save for the bundle", machine=parts.name) as step:
            folder.mkdir(parents=True)
            draft = self._draft(folder, wait=False)
            if _has_panicked(parts):
                # Nobody has to wait for an answer of it when it is resumed.
                draft = replace(draft, shell=None, host_key=None)
            if not parts.process.running:
                draft = replace(draft, cold=f"QEMU had ended ({parts.process.how_ended()})")
            elif parts.ending.stopped:
                draft = replace(draft, cold="the guest had powered off")
            else:
                step.data["bytes"] = stream.write(
                    parts.qmp, parts.process.pid, draft.devices, limit=limit, most=most
                )
            return saving.finish(draft, parts.allocations, inside=inside, move=False, limit=limit)

    def _draft(self, folder: Path, *, wait: bool = True) -> Snapshot:
        parts = self._parts
        shell = parts.console.export_shell(wait=wait)
        return Snapshot(
            folder=folder,
            spec=parts.spec,
            machine=parts.allocations.machine,
            accel=parts.allocations.accel,
            cpu_model=parts.allocations.cpu_model,
            qemu=binary.find(parts.spec.arch).version,
            saved=time.time(),
            shell=snapshots.Shell(*shell) if shell else None,
            line="" if shell else parts.console.last_output(1),
            host_key=parts.ssh.host_key if parts.ssh is not None else None,
            account=self._os.account,
            private_key=self._key.private,
            public_key=self._key.public,
        )


def _has_panicked(parts: Parts) -> bool:
    errors = [sighting.watcher.error for sighting in parts.console.sightings]
    return any(error is not None and issubclass(error, PanicError) for error in errors)


class _Steps:
    """The steps of saving a machine: :class:`~harness.states.save.Save`."""

    def __init__(
        self, parts: Parts, draft: Snapshot, memory: saving.Memory, *, final: bool, inside: Path
    ) -> None:
        self._parts = parts
        self._draft = draft
        self._memory = memory
        self._final = final
        self._inside = inside

    def stop(self) -> Callable[[], object]:
        return self._parts.qmp.send("stop").wait

    def write(self) -> None:
        parts = self._parts
        saving.write(parts.qmp, self._draft, self._memory, parts.scale.after(60))

    def finish(self) -> Snapshot:
        parts = self._parts
        if self._final:
            parts.stop()
        return saving.finish(self._draft, parts.allocations, inside=self._inside, move=self._final)
