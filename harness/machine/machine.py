"""A running machine, with the words that scenarios use."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from harness.deadline import Deadline, Scale, by_name
from harness.errors import GuestError, HarnessError, UsageError
from harness.evidence.timeline import Timeline
from harness.host.scheduler import Turn
from harness.machine.commands import Commands
from harness.machine.disks import Disks
from harness.machine.display import Display
from harness.machine.parts import Parts
from harness.machine.power import Power
from harness.machine.recording import Recording
from harness.machine.saving import Saving
from harness.machine.system import OS, OS_co
from harness.qemu import disk as blocks
from harness.qemu import filter as filters
from harness.qemu.argv import DiskFile
from harness.result import Result
from harness.scope import Scope
from harness.spec import MachineSpec
from harness.states.snapshot import Snapshot

if TYPE_CHECKING:
    from harness.console import Console, Expected, Screen
    from harness.host.accel import Accel
    from harness.network import Segment
    from harness.qemu.qmp import Qmp
    from harness.ssh import Ssh
    from harness.ssh.key import KeyPair
    from harness.states.save import Save
    from harness.states.together import Together

Limit = Deadline | float | None
"""A deadline, seconds on a good host (they are scaled), or ``None`` for the method's own."""


@dataclass(frozen=True)
class Setup(Generic[OS]):
    """Everything besides the spec that a machine is launched with.

    Attributes:
        accel: Returns the accelerator for an arch.
        admit: Waits until the host has room for a spec: called with the spec, the timeline, and whether
            the machine shares the RAM of its origin. See
            :meth:`Scheduler.admit <harness.host.scheduler.Scheduler.admit>`. With ``None`` the machine
            starts at once, its deadlines unscaled.
        key: The SSH key that logs in.
        evidence: The folder for the machine's evidence; created if absent. Disks lie below ``disks/``.
        timeline: Gets the machine's steps.
        scope: The failure scope that the machine's own is a child of.
        system: Returns the operating system of a machine; called once the guest runs.
        origin: The snapshot that the machine goes on from; without one it boots.
        saveable: Whether :meth:`Machine.save` and :meth:`Machine.fork` work.
        services: Host and port, by name, of the services that the spec's interfaces reach.
        segments: The segments, by name, that the spec's interfaces are on.
        provenance: Image, version, digests: the origin of the machine's files, for its record.
        adopt: Called with each machine once it runs, forks included, for an owner that stops it.
        start: How often the machine was powered on, this time included.
        together: Where it waits for the other machines of its fork before it begins to run.
    """

    accel: Callable[[str], Accel]
    admit: Callable[[MachineSpec, Timeline, bool], Turn] | None
    key: KeyPair
    evidence: Path
    timeline: Timeline
    scope: Scope
    system: Callable[[Machine[Any]], OS]
    origin: Snapshot | None = None
    saveable: bool = False
    services: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    segments: Mapping[str, Segment] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    adopt: Callable[[Machine[Any]], object] | None = None
    start: int = 1
    together: Together | None = None


class Machine(Generic[OS_co]):
    """A running virtual machine; a context manager whose exit stops it.

    :func:`~harness.machine.launch` returns one. It runs from the moment it exists: console, monitor and
    process are always there; SSH and the TPM are there if the spec has them. A failure of the machine,
    or of another one in its failure scope, ends every wait on it at once.

    Args:
        parts: Everything that was started.
        setup: The setup that it was launched with.
    """

    def __init__(self, parts: Parts, setup: Setup[OS_co]) -> None:
        self._parts = parts
        self._setup = setup
        self._forks = itertools.count(1)
        self._power = Power(parts)
        self._disks = Disks(parts)
        self._os = setup.system(self)
        self._commands = Commands(parts, self._power, self._os)
        # One out of a bundle has RAM of its own, whether it is to be saved or not.
        saveable = setup.saveable or (setup.origin is not None and setup.origin.streamed)
        self._saving = Saving(parts, self._power, self._os, setup.key, saveable=saveable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End QEMU at once, if it runs, and release everything but the evidence.

        A second call, from any thread, waits for the first and does nothing else.
        """
        self._parts.stop()

    # --- its parts ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._parts.name

    @property
    def spec(self) -> MachineSpec:
        """The spec that it was launched from."""
        return self._parts.spec

    @property
    def evidence(self) -> Path:
        """The folder of its evidence."""
        return self._parts.evidence

    @property
    def timeline(self) -> Timeline:
        """The timeline that gets its steps."""
        return self._parts.timeline

    @property
    def scope(self) -> Scope:
        """Its failure scope."""
        return self._parts.scope

    @property
    def scale(self) -> Scale:
        """Its scale of deadlines: how much longer it takes than a machine on a good host."""
        return self._parts.scale

    @property
    def origin(self) -> Snapshot | None:
        """The snapshot that it went on from; ``None`` if it booted."""
        return self._setup.origin

    @property
    def key(self) -> KeyPair:
        """The SSH key that logs in: for a fork, that of the run that saved its origin."""
        return self._setup.key

    @property
    def os(self) -> OS_co:
        """The words of the image's OS family."""
        return self._os

    @property
    def console(self) -> Console:
        """The console."""
        return self._parts.console

    @property
    def ssh(self) -> Ssh:
        """The SSH session; it connects at its first use.

        Raises:
            UsageError: No interface of the spec forwards port 22.
        """
        return self._parts.require_ssh()

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        return self._parts.qmp

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._parts.process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU runs and the guest has not powered off."""
        return self._parts.running

    @property
    def powered_off(self) -> bool:
        """Whether the guest has powered off and QEMU still holds the machine."""
        return self._parts.process.running and self._parts.ending.stopped

    @property
    def failure(self) -> HarnessError | None:
        """The failure that ends every wait on this machine; ``None`` if there is none.

        It may be that of another machine in the same failure scope: its text names the machine.
        """
        return self._parts.scope.failure

    def port(self, guest_port: int) -> tuple[str, int]:
        """Return the host address that leads to a forwarded port of the guest.

        Raises:
            UsageError: No interface of the spec forwards that port.
        """
        try:
            return self._parts.ports[guest_port]
        except KeyError:
            raise UsageError(
                f"port {guest_port} of machine {self.name} is not forwarded",
                hint=f"name it in the spec: Nic(forward=(22, {guest_port}))",
            ) from None

    @property
    def tpm_state(self) -> Path:
        """The folder with the state of the TPM, for another machine once this one has ended.

        ``boot(tpm=Tpm(machine.tpm_state))`` has the same TPM, after a power cycle.

        Raises:
            UsageError: The machine has no TPM.
        """
        state = self._parts.allocations.tpm_state
        if state is None:
            raise UsageError(f"machine {self.name} has no TPM", hint="boot it with tpm=True")
        return state

    def log_in_as(self, user: str) -> None:
        """Let SSH log in as another user from the next command on.

        ``os.account`` is the user of the console; changing it calls this.
        """
        ssh = self._parts.ssh
        if ssh is not None and ssh.user != user:
            ssh.disconnect()
            ssh.user = user

    # --- commands -----------------------------------------------------------------------------

    @property
    def use_console_shell(self) -> bool:
        """Whether commands run on the console, not over SSH; true where the machine has no SSH."""
        return self._commands.on_console

    @use_console_shell.setter
    def use_console_shell(self, use: bool) -> None:
        self._commands.on_console = use

    def wait_ready(self, deadline: Limit = None) -> Self:
        """Wait until commands can be run: over SSH, or on the console where there is no SSH.

        Args:
            deadline: From power on; the image's own, or 60 s on a good host, by default.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        self._commands.wait_ready(self._os.limit("ready", deadline, 60))
        return self

    def execute(self, command: str, deadline: Limit = None) -> Result:
        """Run a command and return its result.

        It runs over SSH; on the console where the machine has no SSH, or where
        :attr:`use_console_shell` is set. There, standard output and standard error are one stream.

        Args:
            command: The command, for the user's shell.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        return self._commands.execute(command, self._limit(deadline))

    def succeed(self, *commands: str, deadline: Limit = None) -> str:
        """Run commands that must succeed and return their output.

        Args:
            commands: The commands, one after the other.
            deadline: For each command; 60 s on a good host by default.

        Raises:
            CommandError: A command ended with a status other than 0.
            WaitTimeoutError: The deadline passed.
        """
        by_name("machine.succeed", commands)
        return "".join(self.execute(command, deadline).check().stdout for command in commands)

    def fail(self, *commands: str, deadline: Limit = None) -> str:
        """Run commands that must fail and return their output.

        Args:
            commands: The commands, one after the other.
            deadline: For each command; 60 s on a good host by default.

        Raises:
            CommandError: A command succeeded.
            WaitTimeoutError: The deadline passed.
        """
        by_name("machine.fail", commands)
        return "".join(self._commands.fail(command, self._limit(deadline)) for command in commands)

    def wait_until_succeeds(self, command: str, deadline: Limit = None) -> str:
        """Run a command until it succeeds and return the output of all tries.

        Args:
            command: The command. It is repeated in the guest, with short pauses.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed.
        """
        return self._commands.wait_until_succeeds(command, self._limit(deadline))

    def wait_for_unit(self, unit: str, deadline: Limit = None) -> None:
        """Wait until a service is active.

        Args:
            unit: The service's name.
            deadline: 60 s on a good host by default.

        Raises:
            CommandError: The service failed; carries the end of its journal.
            WaitTimeoutError: The deadline passed.
        """
        self._commands.wait_for_unit(unit, self._limit(deadline))

    def wait_for_port(self, number: int, deadline: Limit = None) -> None:
        """Wait until a program in the guest listens on a TCP port.

        Args:
            number: The port.
            deadline: 60 s on a good host by default.

        Raises:
            UsageError: There is no such port number.
            WaitTimeoutError: The deadline passed.
        """
        self._commands.wait_for_port(number, self._limit(deadline))

    @property
    def boot_id(self) -> str:
        """The guest's boot id, new at each boot (``random(4)``)."""
        return self._commands.boot_id()

    def reboot(self, deadline: Limit = None) -> None:
        """Reboot in order and wait until the machine is ready with a new boot id.

        Args:
            deadline: 120 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed.
            CommandError: The guest came back with the old boot id.
            HarnessError: The failure of the scope.
        """
        self._commands.reboot(self.scale.limit(deadline, 120))

    # --- power --------------------------------------------------------------------------------

    def shutdown(self, deadline: Limit = None) -> None:
        """Press the power button (ACPI) and wait for the guest to power off.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        self._power.shutdown(self._limit(deadline))

    def wait_for_shutdown(self, deadline: Limit = None) -> None:
        """Wait until the guest powers off by itself; one that has already is fine.

        Args:
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        self._power.wait_for_shutdown(self._limit(deadline))

    def wait_for_reset(self, deadline: Limit = None, *, since: int = 0) -> None:
        """Wait until the guest resets, as it does in a reboot.

        Args:
            deadline: 60 s on a good host by default.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>` from before the reboot.

        Raises:
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        self._power.wait_for_reset(self._limit(deadline), since=since)

    def power_cut(self) -> None:
        """Take the power away: QEMU is killed; the disks stay as they are."""
        with self.timeline.step("power cut", machine=self.name):
            self.stop()

    def power_on(self, *, wait: bool = True) -> Machine[OS_co]:
        """Return the machine that goes on after this one has ended, in order or by a power cut.

        It has this one's name, MAC addresses, disks, firmware variables and TPM; they move to it, so a
        machine is powered on once. Its evidence lies beside this one's, as ``NAME-start2``.

        Args:
            wait: Whether to wait until the system is up, and to log in on the console if a user was
                logged in there.

        Raises:
            UsageError: This machine still runs; or a disk is written in place.
            HostError: The host cannot carry it.
            WaitTimeoutError: It does not come up.
        """
        # launch() returns machines, so one of the two modules has to import the other late.
        from harness.machine.start import launch

        if self.running:
            raise UsageError(
                f"machine {self.name} still runs",
                hint="machine.shutdown() or machine.power_cut() ends it; machine.reboot() restarts it",
            )
        self.stop()
        number = self._setup.start + 1
        logged_in = self.console.logged_in
        saved = self.save_disks(
            self.evidence / "disks" / "power-on", "its power was off", inside=Path("/")
        )
        first = self.evidence.name.removesuffix(f"-start{self._setup.start}")
        setup = replace(
            self._setup,
            origin=saved,
            evidence=self.evidence.with_name(f"{first}-start{number}"),
            saveable=False,
            start=number,
            together=None,
        )
        machine = launch(saved.fork_spec(), setup)
        if wait:
            machine.wait_ready()
            if logged_in:
                machine.os.login()
        return machine

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        """Let the guest's CPUs run again."""
        self.qmp.execute("cont")

    @property
    def restarts(self) -> int:
        """How often the guest was reset since the machine started; 0 if it came up at its first try."""
        return self._power.restarts()

    # --- failures -----------------------------------------------------------------------------

    def expecting(self, *kinds: type[GuestError]) -> AbstractContextManager[Expected]:
        """Let the block provoke failures of these kinds: they are recorded and end no wait."""
        return self.console.expecting(*kinds)

    def restarting_at_most(
        self, times: int, *, since: int | None = None
    ) -> AbstractContextManager[None]:
        """Fail the machine in the block as soon as it is reset more often than ``times``.

        Args:
            times: How many resets are allowed; 0 where it has to come up at its first try.
            since: A :meth:`Qmp.mark <harness.qemu.qmp.Qmp.mark>`; resets before it do not count. The
                block's beginning by default.

        Raises:
            GuestStoppedError: It was reset once more; raised by every wait on the machine.
        """
        return self._power.restarting_at_most(times, since=since)

    def coming_up(self) -> AbstractContextManager[None]:
        """Fail the machine in the block once its guest hangs, or restarts over and over.

        For waits until a guest has booted. It hangs if it makes no progress for the profile's
        ``idle_seconds``: it prints nothing but repetitions and complaints, reads nothing and computes
        nothing. It may restart ``most_restarts`` times, or as often as a block of
        :meth:`restarting_at_most` around this one allows.

        Raises:
            GuestIdleError: The guest hangs; raised by every wait on the machine.
            GuestStoppedError: It was reset too often; raised by every wait on the machine.
        """
        return self._power.coming_up(self._os.idle_seconds, self._os.most_restarts)

    # --- display ------------------------------------------------------------------------------

    @property
    def display(self) -> Display:
        """The screen and the keyboard, with the words of the console.

        Raises:
            UsageError: The machine has no display.
        """
        return Display(self._parts)

    def screenshot(self, path: Path | str | None = None) -> Path:
        """Write the picture on the screen as PNG and return the path.

        Args:
            path: The file; a new one in the evidence by default.

        Raises:
            UsageError: The machine has no display; ``console.screen`` shows a serial console's.
        """
        return self.display.screenshot(path)

    def wait_for_text(self, pattern: str | re.Pattern[str], deadline: Limit = None) -> Screen:
        """Wait for a text on the screen, by OCR if it is drawn in pixels, and return the screen's text.

        It is :meth:`Display.wait_for_text <harness.machine.display.Display.wait_for_text>`.

        Raises:
            UsageError: The machine has no display; ``console`` has the words for a serial console.
            WaitTimeoutError: The deadline passed.
            HostError: The OCR program is not installed, or failed.
            HarnessError: The failure of the scope.
        """
        return self.display.wait_for_text(pattern, deadline)

    def wait_for_qr(
        self, pattern: str | re.Pattern[str] | None = None, deadline: Limit = None
    ) -> str:
        """Wait for a QR code on the screen, and return its text.

        It is :meth:`Display.wait_for_qr <harness.machine.display.Display.wait_for_qr>`.

        Raises:
            UsageError: The machine has no display.
            WaitTimeoutError: The deadline passed.
            HarnessError: The failure of the scope.
        """
        return self.display.wait_for_qr(pattern, deadline)

    # --- disks --------------------------------------------------------------------------------

    def disk(self, name: str) -> DiskFile:
        """Return the file behind a disk, which outlives the machine until its test ends.

        Raises:
            UnknownNameError: The machine has no such disk.
        """
        return self._disks.file(name)

    def writes(self, name: str) -> int:
        """Return how many writes and discards the guest has sent to a disk since power on.

        QEMU counts them (``query-blockstats`` in its QMP reference): a disk whose number stays has
        kept every byte.

        Raises:
            UnknownNameError: The machine has no such disk.
        """
        return self._disks.writes(name)

    def written(self, name: str) -> list[range]:
        """Return the bytes of a disk that the guest has written or discarded since the machine started.

        By whole clusters of 64 KiB. Data that the guest still holds in memory is not in it: let it
        ``sync`` before.

        Raises:
            UnknownNameError: The machine has no such disk.
            UsageError: The disk is not an overlay: it is written in place, or not at all.
        """
        return self._disks.written(name)

    def disk_errors(self, name: str) -> int:
        """Return how many requests of the guest a disk has failed since power on.

        Raises:
            UnknownNameError: The machine has no such disk.
        """
        return self._disks.errors(name)

    def recording(self, name: str, folder: Path | None = None) -> AbstractContextManager[Recording]:
        """Record every write, flush and discard of a disk while the block runs.

        The guest stands still for a moment at the beginning, while the disk as it is then is copied.
        The machine may end in the block.

        Args:
            name: The disk.
            folder: A new folder for the recording; in the evidence by default.

        Raises:
            UnknownNameError: The machine has no such disk.
            UsageError: The disk is recorded already, or has a fault: heal it first.
            QmpError: QEMU refused.
            DiskFullError: No space for the recording.
        """
        return self._disks.recording(name, folder)

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

        A disk that has no space left is ``on=filters.WRITES``: over virtio-blk a guest sees every
        failure in the same way (virtio 1.2, section 5.2.6: ``VIRTIO_BLK_S_IOERR``).

        Args:
            name: The disk.
            on: The kinds of requests: ``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``.
            sectors: Only requests that touch one of these sectors of 512 bytes.
            after: How many writes succeed before the fault begins.
            once: Whether only the first request fails.

        Raises:
            UnknownNameError: The machine has no such disk.
            UsageError: The disk fails already, or the fault would do nothing.
        """
        self._disks.fail(name, filters.Fault(tuple(on), sectors, after, once))

    def slow_disk(
        self, name: str, *, requests: float | None = None, rate: int | None = None
    ) -> AbstractContextManager[None]:
        """Let a disk be slow in the block.

        Args:
            name: The disk.
            requests: Requests a second, of all kinds.
            rate: Bytes a second.

        Raises:
            UnknownNameError: The machine has no such disk.
            UsageError: There is no limit, or it is not above 0.
        """
        return self._disks.slow(name, requests=requests, rate=rate)

    def disk_digest(self, name: str) -> str:
        """Return the SHA-256, in hexadecimal, of a disk's content as the guest sees it.

        Of a running machine it holds only what the guest has written.

        Raises:
            UnknownNameError: The machine has no such disk.
            HostError: The disk's file cannot be read.
        """
        return blocks.digest(self.disk(name))

    def export_disk(self, name: str, path: Path) -> Path:
        """Write a disk's content as a raw file and return its path; for a machine that has ended.

        Raises:
            UnknownNameError: The machine has no such disk.
            HostError: ``qemu-img`` refuses.
        """
        file = self.disk(name)
        blocks.qemu_img("convert", "-f", file.format, "-O", "raw", str(file.path), str(path))
        return path

    def heal_disk(self, name: str) -> None:
        """Let a disk work again.

        Raises:
            UsageError: The disk has no fault.
        """
        self._disks.heal(name)

    # --- save and fork ------------------------------------------------------------------------

    def wait_for_rest(self) -> bool:
        """Wait until the guest rests, that is uses less than a quarter of a CPU; return whether it does.

        Each fork repeats the work that is left at the save. The wait ends after 2 s on a good host at
        the latest, since a guest may compute for ever. States are saved at rest.
        """
        return self._saving.wait_for_rest()

    def save(self, folder: Path, *, final: bool = False, inside: Path | None = None) -> Snapshot:
        """Save the machine as it is now: RAM, devices, disks.

        The guest stands still meanwhile, then runs on, unless ``final`` or it was paused before.

        Args:
            folder: A new folder.
            final: End the machine; its disks are moved then, not copied.
            inside: A folder below which bases of disks stay where they are; others are copied.

        Raises:
            UsageError: The machine was not started with ``saveable``.
            SnapshotError: A device forbids it; names the device.
            DiskFullError, StoreError: The folder cannot be written.
        """
        return self._saving.save(folder, final=final, inside=inside)

    def saving(
        self, folder: Path, *, final: bool = False, inside: Path | None = None
    ) -> AbstractContextManager[Save]:
        """Save the machine in steps, together with others: :func:`harness.states.save_group`.

        Args:
            folder: As for :meth:`save`.
            final: As for :meth:`save`.
            inside: As for :meth:`save`.
        """
        return self._saving.steps(folder, final=final, inside=inside)

    def salvage(self, folder: Path, *, inside: Path, limit: Deadline, most: int) -> Snapshot:
        """Save what can be had of the machine, for a bundle; it may have failed or ended.

        Its RAM is in the stream of its devices. The guest stands still afterwards.

        Args:
            folder: A new folder.
            inside: A folder below which bases of disks stay where they are; others are copied.
            limit: When to give up.
            most: Bytes that RAM and devices may take.

        Raises:
            SnapshotError: A device or a disk forbids it, or it is too large.
            WaitTimeoutError: The deadline passed.
            HostError, OSError: QEMU or the disk fails.
        """
        return self._saving.salvage(folder, inside=inside, limit=limit, most=most)

    @property
    def segments(self) -> Mapping[str, Segment]:
        """The segments, by name, that its interfaces are on."""
        return self._setup.segments

    @property
    def provenance(self) -> Mapping[str, object]:
        """The image, its version and its digests, as the machine's record has them."""
        return self._setup.provenance

    def save_disks(self, folder: Path, why: str, *, inside: Path | None = None) -> Snapshot:
        """Shut the machine down and save its disks only; a fork of that boots.

        Args:
            folder: A new folder.
            why: The reason why its RAM is not saved.
            inside: As for :meth:`save`.
        """
        return self._saving.save_disks(folder, why, inside=inside)

    def fork(self, name: str | None = None) -> Machine[OS_co]:
        """Save the machine and return a new one that runs on from the same point, as this one does.

        ``with machine.fork() as other: ...``

        Args:
            name: Its name; this one's and a number by default.

        Raises:
            UsageError, SnapshotError, StoreError: As for :meth:`save`.
        """
        # launch() returns machines, so one of the two modules has to import the other late.
        from harness.machine.start import launch

        number = next(self._forks)
        name = name or f"{self.name}-fork{number}"
        # Every base stays where it is: the fork ends before those of its origin go.
        saved = self.save(self.evidence / "disks" / f"saved-{number}", inside=Path("/"))
        evidence = self.evidence.parent / name
        setup = replace(self._setup, origin=saved, evidence=evidence, saveable=False, together=None)
        return launch(saved.fork_spec(name), setup)

    def _limit(self, deadline: Limit) -> Deadline:
        return self.scale.limit(deadline, 60)
