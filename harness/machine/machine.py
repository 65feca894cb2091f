"""The machine that scenarios have: its disks, and what is kept of it, on top of all its words."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.crash.recording import Recording
from harness.errors import UsageError
from harness.machine.commands import Commanded
from harness.machine.disks import Disks
from harness.qemu import argv, binary
from harness.qemu import filter as filters
from harness.state import save as saving
from harness.state import snapshot as snapshots
from harness.state.snapshot import Snapshot


class Machine(Commanded):
    """A virtual machine made from a spec.

    Args:
        spec: What it is.
        accel: Gives the accelerator for an arch.
        key: The run's SSH key.
        evidence: The folder for its evidence; made if absent, disks of the run below ``disks/``.
        timeline: Where its steps go.
        origin: The snapshot that it goes on from; it boots without one.
        saveable: Whether its RAM is kept so that :meth:`save` and :meth:`fork` work.
        admit: Asks the host to carry a spec, when the machine starts; told whether it shares the RAM of
            what it goes on from. See :meth:`harness.turns.Turns.take`.
        services: Where the services that the spec's interfaces reach listen: host and port by name.
    """

    # --- disks --------------------------------------------------------------------------------

    @functools.cached_property
    def _disks(self) -> Disks:
        return Disks(self.qmp)

    def writes(self, name: str) -> int:
        """Return how many writes and discards the guest has sent to a disk since power on.

        QEMU counts them (``query-blockstats`` in its QMP reference): a disk whose number stays has
        kept every byte.

        Raises:
            UnknownNameError: if the machine has no such disk.
        """
        self.disk(name)
        stats = self._disks.statistics(name)
        return int(stats["wr_operations"]) + int(stats["unmap_operations"])

    def written(self, name: str) -> list[range]:
        """Return the bytes of a disk that the guest has written or discarded since the machine started.

        By whole clusters of 64 KiB. What the guest still holds back is not in it: let it ``sync``
        before.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if the disk is not an overlay: it is written in place, or not at all.
        """
        file = self.disk(name)
        if file.format != "qcow2":
            raise UsageError(f"disk {name} has no overlay that shows what was written to it")
        return self._disks.written(file)

    def disk_errors(self, name: str) -> int:
        """Return how many requests of the guest a disk has failed since power on.

        Raises:
            UnknownNameError: if the machine has no such disk.
        """
        self.disk(name)
        stats = self._disks.statistics(name)
        return sum(
            int(stats[f"failed_{kind}_operations"]) for kind in ("rd", "wr", "unmap", "flush")
        )

    @contextlib.contextmanager
    def recording(self, name: str, folder: Path | None = None) -> Iterator[Recording]:
        """Record every write, flush and discard of a disk while the block runs.

        The guest stands still for a moment at the beginning, while the disk as it is then is kept.
        A machine that ended in the block is fine.

        Args:
            name: The disk.
            folder: A new folder for the recording; in the evidence by default.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if it is recorded already, or has a fault: heal it first.
            QmpError: if QEMU refuses.
            DiskFullError: no space for the recording.
        """
        file = self.disk(name)
        spec = next(disk for disk in self.spec.disks if disk.name == name)
        self._disks.check_recordable(spec, file)
        made = Recording(folder or self.evidence / f"recording-{name}", name, spec.guest_serial)
        with self.timeline.step("record", machine=self.name, disk=name):
            self._disks.record(made, file)
        try:
            yield made
        finally:
            if self._process is not None and self._process.running:
                self._disks.end_recording(name)
            made.mark("end")

    def disk_fault(
        self,
        name: str,
        *,
        on: Sequence[str] = filters.REQUESTS,
        sectors: range | None = None,
        after: int = 0,
        once: bool = False,
    ) -> None:
        """Let a disk fail from now on: the guest sees I/O errors. One fault at a time.

        A disk that has no space left is ``on=filters.WRITES``: over virtio-blk a guest is told of
        every failure in the same way (virtio 1.2, section 5.2.6: ``VIRTIO_BLK_S_IOERR``).

        Args:
            name: The disk.
            on: Which requests: ``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``.
            sectors: Only requests that touch one of these sectors of 512 bytes.
            after: How many writes are done before it begins.
            once: Whether only the first request fails.

        Raises:
            UnknownNameError: if the machine has no such disk.
            UsageError: if it fails already, or the fault is none.
        """
        self.disk(name)
        fault = filters.Fault(tuple(on), sectors, after, once)
        with self.timeline.step("disk fault", machine=self.name, disk=name, fault=str(fault)):
            self._disks.fail(name, fault)

    def heal_disk(self, name: str) -> None:
        """Let a disk work again.

        Raises:
            UsageError: if it does not fail.
        """
        with self.timeline.step("heal disk", machine=self.name, disk=name):
            self._disks.heal(name)

    # --- save and fork ------------------------------------------------------------------------

    def save(self, folder: Path, *, final: bool = False, inside: Path | None = None) -> Snapshot:
        """Save the machine as it is now: RAM, devices, disks.

        It stands still meanwhile, then runs on, unless ``final`` or it was paused before.

        Args:
            folder: A new folder.
            final: End the machine; its disks are moved then, not copied.
            inside: A folder below which bases of disks stay where they are; others are copied.

        Raises:
            UsageError: if the machine was not started with ``saveable``.
            SnapshotError: if a device forbids it; names it.
            DiskFullError, StoreError: if the folder cannot be written.
        """
        given, memory = self._allocations, self._memory
        if given is None or memory is None or not self._saveable:
            raise UsageError(
                f"machine {self.name} cannot be saved: it was not started to be",
                hint="start it with saveable=True",
            )
        if self._ssh is not None:
            self._ssh.disconnect()
        with self.timeline.step("save", machine=self.name, folder=str(folder)):
            draft = self._draft(folder, given)
            ran = self.qmp.execute("query-status")["running"]
            try:
                with saving.hot(self.qmp, draft, given, memory):
                    if final:
                        self.stop()
                return saving.finish(draft, given, inside=inside or folder, move=final)
            finally:
                if ran and self.running:
                    self.qmp.execute("cont")

    def save_disks(self, folder: Path, why: str, *, inside: Path | None = None) -> Snapshot:
        """Shut the machine down and save its disks only; a fork of that boots.

        Args:
            folder: A new folder.
            why: Why it is not saved as it runs.
            inside: As :meth:`save` takes it.
        """
        given = self._allocations
        if given is None:
            raise UsageError(f"machine {self.name} has not been started")
        saving.check_disks(self.spec)
        draft = replace(self._draft(folder, given), cold=why)
        if self.running:
            self.shutdown()
        with self.timeline.step("save the disks", machine=self.name, folder=str(folder)):
            return saving.finish(draft, given, inside=inside or folder, move=True)

    def _draft(self, folder: Path, given: argv.Allocations) -> Snapshot:
        shell = self.console.export_shell()
        last = "" if shell else self.console.last_output(1)
        account = self._os.account if self._os is not None else None
        return Snapshot(
            folder=folder,
            spec=self.spec,
            accel=given.accel,
            cpu_model=given.cpu_model,
            qemu=binary.find(self.spec.arch).version,
            saved=time.time(),
            shell=snapshots.Shell(*shell) if shell else None,
            line=last,
            host_key=self._ssh.host_key if self._ssh is not None else None,
            account=snapshots.Account(account.user, account.password) if account else None,
            private_key=self._key.private,
            public_key=self._key.public,
        )

    def fork(self, name: str | None = None) -> Machine:
        """Return a new machine that goes on from here, as this one does; not started yet.

        ``with machine.fork() as other: ...``

        Args:
            name: Its name; this one's and a number by default.

        Raises:
            UsageError, SnapshotError, StoreError: as :meth:`save`.
        """
        self._forks += 1
        name = name or f"{self.name}-fork{self._forks}"
        saved = self.save(self.evidence / "disks" / f"saved-{self._forks}")
        fork = Machine(
            saved.fork_spec(name),
            accel=self._accel_of,
            key=self._key,
            evidence=self.evidence.parent / name,
            timeline=self.timeline,
            origin=saved,
            admit=self._admit,
            services=self._services,
        )
        if self._os is not None:
            fork.os = type(self._os)(fork, self._os.selection, self._os.account)
        return fork
