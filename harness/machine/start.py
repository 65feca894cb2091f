"""How a machine starts, from nothing or from a snapshot.

Everything that starts is on one :class:`~contextlib.ExitStack`, which :meth:`Machine.stop` closes. It
ends QEMU first, then swtpm; then SSH, monitor, console and RAM are closed; the grant of the host's room
goes last. A start that fails half-way closes the same stack.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import arch
from harness.console import Console, wire
from harness.credentials import passage
from harness.deadline import UNSCALED, Deadline
from harness.errors import HarnessError, QemuExitedError, QemuStartError, QmpError, UsageError
from harness.evidence.findings import Findings
from harness.host.accel import cpu_model
from harness.host.scheduler import Turn
from harness.machine.ending import Ending
from harness.machine.machine import Machine, Setup
from harness.machine.parts import Parts
from harness.machine.system import OS
from harness.qemu import argv, binary, firmware, target
from harness.qemu import disk as disks
from harness.qemu.process import OwnedProcess
from harness.qemu.qmp import Qmp
from harness.qemu.script import record_machine
from harness.qemu.tpm import TpmProcess
from harness.scope import Scope
from harness.spec import MachineSpec
from harness.states import filesystem
from harness.states import restore as restoring
from harness.states import save as saving
from harness.states.snapshot import Snapshot

if TYPE_CHECKING:
    from harness.ssh import Ssh

_ANSWER: Final = 5.0
"""Seconds in which a guest out of a bundle answers, on a good host, or is taken for one that cannot."""

_CANNOT_RESEED: Final = "echo 'the profile has no command that reseeds'; false"

_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)")
"""A forwarded port in the answer to QEMU's ``info usernet``: host, its port, the guest's port."""


def launch(spec: MachineSpec, setup: Setup[OS]) -> Machine[OS]:
    """Start a machine and return it running; the console is drained from the first byte.

    It waits for its turn on the host first. If the start fails, nothing is left of it but evidence.

    Args:
        spec: The machine's spec.
        setup: Everything else.

    Raises:
        QemuMissingError, QemuTooOldError, FirmwareMissingError: The host lacks something.
        QemuStartError: QEMU refused its arguments or died; carries its stderr.
        StateError: The origin is damaged, or another QEMU saved it.
        TpmError: The TPM did not start.
        DiskFullError: No space for the machine's disks.
        UsageError: An interface reaches a service that does not run; or the kernel, or a disk that the
            machine boots from, is made for another architecture.
        HarnessError: The failure of the scope, if another machine fails first.
    """
    setup.scope.check()
    if setup.origin is None:
        target.check(spec)  # a fork's disks are those of a machine that came up
    hot = setup.origin if setup.origin is not None and not setup.origin.cold else None
    unmapped = filesystem.unmapped(hot.ram) if hot is not None else ""
    stack = contextlib.ExitStack()
    with contextlib.ExitStack() as undo:
        undo.enter_context(stack)
        scope = stack.enter_context(setup.scope.child(f"machine {spec.name}"))
        turn = Turn()
        if setup.admit is not None:
            turn = setup.admit(
                spec, setup.timeline, shares_ram(setup.origin, saveable=setup.saveable)
            )
        stack.enter_context(turn)
        scope.check()
        with setup.timeline.step("start", machine=spec.name) as step:
            if unmapped:
                step.data["ram"] = f"a copy: the saved file cannot be mapped: {unmapped}"
            starting = _Starting(spec, setup, scope, turn, stack, hot=hot, copies=bool(unmapped))
            machine: Machine[OS] = Machine(starting.run(), setup)
            if setup.origin is not None and setup.origin.account is not None:
                machine.os.account = setup.origin.account
            machine.log_in_as(machine.os.account.user)
            if hot is not None:
                now = setup.together.now() if setup.together is not None else None
                _differ(machine, hot, now)
        if setup.adopt is not None:
            setup.adopt(machine)
        undo.pop_all()
    return machine


def shares_ram(origin: Snapshot | None, *, saveable: bool) -> bool:
    """Return whether a machine shares the RAM of its origin, as admission wants to know."""
    return (
        origin is not None
        and not origin.cold
        and not origin.streamed
        and not saveable
        and not filesystem.unmapped(origin.ram)
    )


class _Starting:
    """The start of one machine.

    Args:
        spec: Its spec.
        setup: Its setup.
        scope: Its failure scope.
        turn: Its turn on the host.
        stack: Gets everything that starts.
        hot: The snapshot whose RAM it goes on from; ``None`` if it boots.
        copies: Whether it has a copy of the saved RAM, because the file cannot be mapped.
    """

    def __init__(
        self,
        spec: MachineSpec,
        setup: Setup[Any],
        scope: Scope,
        turn: Turn,
        stack: contextlib.ExitStack,
        *,
        hot: Snapshot | None,
        copies: bool,
    ) -> None:
        self._spec = spec
        self._setup = setup
        self._scope = scope
        self._turn = turn
        self._stack = stack
        self._hot = hot
        self._copies = copies
        self._ending = Ending(spec.name, scope, scale=turn.scale)
        self._evidence = setup.evidence
        self._folder = setup.evidence / "disks"

    def run(self) -> Parts:
        """Start QEMU, attach to it, and let the guest run."""
        spec, scale, stack = self._spec, self._turn.scale, self._stack
        allocations = self._allocate()
        tpm = self._start_tpm()
        memory, allocations = self._allocate_memory(allocations)
        console_wire, console_end = wire.pair()
        qmp_socket, qmp_end = socket.socketpair()
        with contextlib.ExitStack() as there:
            for ours, theirs in ((console_wire, console_end), (qmp_socket, qmp_end)):
                stack.enter_context(ours)
                there.enter_context(theirs)
            console_fds = console_end.outgoing, console_end.incoming
            if tpm is not None:
                there.callback(tpm.hand_over)
                allocations = replace(allocations, tpm_state=tpm.state, tpm_fd=tpm.fd)
            allocations = replace(allocations, console_fds=console_fds, qmp_fd=qmp_end.fileno())
            ends = self._attach(there)
            allocations = replace(
                allocations, segments={nic: end.fileno() for nic, end in ends.items()}
            )
            record_machine(
                spec,
                allocations,
                folder=self._folder,
                evidence=self._evidence,
                provenance=self._setup.provenance,
            )
            if self._hot is not None:
                # The saved machine's last line counts as output of this one: a prompt may be on it.
                console_end.sendall(self._hot.line.encode())
            inherited = [*console_fds, qmp_end.fileno(), *self._turn.descriptors]
            inherited += [end.fileno() for end in ends.values()]
            if memory is not None:
                inherited.append(memory.fd)
            if tpm is not None:
                inherited.append(tpm.fd)
            process = OwnedProcess(
                argv.build(spec, allocations),
                stderr=self._evidence / "qemu.stderr",
                # The grant is among them: should this process be killed, it ends with QEMU.
                pass_fds=inherited,
                on_exit=self._ending.on_exit,
            )
            stack.callback(process.kill)
            stack.enter_context(self._turn.watching(process.pid, self._setup.timeline, spec.name))
        findings = Findings(self._setup.timeline, spec.name)
        for kind in argv.provoked_complaints(spec, allocations):
            findings.expect(kind)
        console = Console(
            console_wire,
            log=self._evidence / "serial.log",
            cast=self._evidence / "serial.cast",
            name=spec.name,
            findings=findings,
            on_eof=functools.partial(self._ending.explain_console_end, process),
            on_failure=self._ending.on_console_failure,
            scale=scale,
            waiting=self._waiting,
        )
        stack.callback(console.close)
        self._scope.add(console)
        qmp = Qmp(
            qmp_socket,
            name=spec.name,
            log=self._evidence / "qmp.jsonl",
            on_event=functools.partial(self._ending.on_event, console),
            scale=scale,
        )
        stack.callback(qmp.close)
        self._scope.add(qmp)
        limit = scale.after(30)
        try:
            qmp.connect(limit)
            ports = _forwarded(qmp) if spec.nics else {}
            ssh = self._open_ssh(ports, console)
            if self._hot is not None:
                self._restore(self._hot, qmp, console, limit)
            together = self._setup.together
            with together.starting() if together is not None else contextlib.nullcontext():
                qmp.execute("cont")
        except (QmpError, QemuExitedError) as error:
            if error is self._setup.scope.failure:
                raise  # Another machine's.
            # A monitor that hangs up means that QEMU is ending: its own words say why.
            process.wait(UNSCALED.after(5))
            words = [process.last_words(), tpm.last_words() if tpm is not None else ""]
            raise QemuStartError(
                f"QEMU did not start ({process.how_ended()})",
                evidence="\n".join(filter(None, words)) or str(process.stderr),
                hint=f"run {self._evidence / 'qemu.sh'} by hand",
            ) from error
        # Once more, for the order: QEMU and swtpm end first.
        if tpm is not None:
            stack.callback(tpm.close)
        stack.callback(process.kill)
        stack.callback(self._ending.intend)
        self._ending.begin()
        return Parts(
            spec=spec,
            evidence=self._evidence,
            timeline=self._setup.timeline,
            scope=self._scope,
            scale=scale,
            ending=self._ending,
            allocations=allocations,
            process=process,
            console=console,
            qmp=qmp,
            ports=ports,
            ssh=ssh,
            memory=memory,
            stack=stack,
        )

    def _allocate(self) -> argv.Allocations:
        """Return programs, firmware and disks; the disks' files are created."""
        spec, setup = self._spec, self._setup
        for service in (forward for nic in spec.nics for forward in nic.guest_forwards):
            if service.name not in setup.services:
                raise UsageError(
                    f"machine {spec.name} reaches service {service.name}, which is not running",
                    hint=f"lab.boot(services=[...]) or lab.fork(state, services=[...]) with"
                    f" {service.name}",
                )
        qemu = binary.find(spec.arch)
        accel = setup.accel(spec.arch)
        flash = firmware.find(spec.arch, spec.firmware.kind)
        model = spec.cpu_model or cpu_model(accel, spec.arch, spec.baseline)
        if setup.origin is not None:
            restoring.check(setup.origin, accel.name, model)
            if flash is not None and setup.origin.variables is not None:
                flash = replace(flash, variables=setup.origin.variables)
        variables = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if flash is not None:
                variables = self._folder / "efivars.fd"
                if not variables.exists():
                    shutil.copyfile(flash.variables, variables)
        except OSError as error:
            raise disks.disk_full(error, self._folder) from error
        return argv.Allocations(
            credentials=self._write_credentials(),
            qemu=qemu.path,
            machine=qemu.machine,
            accel=accel.name,
            cpu_model=model,
            disks={disk.name: disks.create(disk, self._folder) for disk in spec.disks},
            firmware=flash,
            variables=variables,
            services=dict(setup.services),
        )

    def _attach(self, there: contextlib.ExitStack) -> dict[str, socket.socket]:
        """Connect the interfaces to their segments; return QEMU's end of each by its name."""
        spec = self._spec
        ends: dict[str, socket.socket] = {}
        for nic in spec.nics:
            if not nic.segment:
                continue
            segment = self._setup.segments.get(nic.segment)
            if segment is None:
                raise UsageError(
                    f"machine {spec.name} is on segment {nic.segment}, which is not there",
                    hint=f"lab.boot(segments=[...]) with {nic.segment}",
                )
            ends[nic.name] = there.enter_context(segment.attach(spec.port(nic), mac=spec.mac(nic)))
        return ends

    def _write_credentials(self) -> Path | None:
        """Write the credentials that are handed over as files; return their folder, if there are any."""
        spec = self._spec
        files = passage(spec.credentials, smbios=spec.has_smbios).files
        if not files:
            return None
        folder = self._folder / "credentials"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            for name, value in files:
                (folder / name).write_bytes(value.encode())
        except OSError as error:
            raise disks.disk_full(error, folder) from error
        return folder

    def _start_tpm(self) -> TpmProcess | None:
        if self._spec.tpm is None:
            return None
        tpm = TpmProcess(
            self._spec.tpm,
            self._folder / "tpm",
            stderr=self._evidence / "swtpm.stderr",
            on_exit=self._ending.on_tpm_exit,
        )
        self._stack.callback(tpm.close)
        return tpm

    def _allocate_memory(
        self, allocations: argv.Allocations
    ) -> tuple[saving.Memory | None, argv.Allocations]:
        """Return RAM that Harness holds as well, if any, and the allocations with the RAM's file."""
        memory = None
        hot = self._hot
        # A machine that boots has its RAM in a memory file, too: that costs nothing, and its RAM has the
        # same name for QEMU in every machine. So the stream of any of them can be loaded later.
        if self._setup.saveable or self._copies or hot is None or hot.streamed:
            content = hot.ram if hot is not None and not hot.streamed else None
            memory = saving.Memory.create(self._spec.name, self._spec.memory, content)
            self._stack.callback(memory.close)
            ram = argv.Ram(Path(f"/proc/self/fd/{memory.fd}"), private=False, saved=content)
            allocations = replace(allocations, ram=ram)
        origin = self._setup.origin
        if origin is not None:
            (self._evidence / "origin.json").write_text(
                json.dumps(
                    {"folder": str(origin.folder), "saved": origin.saved, "cold": origin.cold}
                )
            )
            allocations = restoring.allocate(allocations, origin, memory)
        return memory, allocations

    def _waiting(self, awaited: str, limit: Deadline) -> contextlib.AbstractContextManager[None]:
        return self._setup.timeline.waiting(
            awaited, machine=self._spec.name, limit=limit.remaining()
        )

    def _open_ssh(self, ports: Mapping[int, tuple[str, int]], console: Console) -> Ssh | None:
        if 22 not in ports:
            return None
        # paramiko takes a third of the time of importing this package.
        from harness.ssh import Ssh

        ssh = Ssh(
            ports[22],
            user="root",
            key=self._setup.key,
            log=self._evidence / "ssh.jsonl",
            name=self._spec.name,
            host_key=self._hot.host_key if self._hot is not None else None,
            guest=lambda: (console.last_output(), console.silent_for(), console.remarks()),
            scale=self._turn.scale,
            waiting=self._waiting,
        )
        self._stack.callback(ssh.close)
        self._scope.add(ssh)
        return ssh

    def _restore(self, hot: Snapshot, qmp: Qmp, console: Console, limit: Deadline) -> None:
        restoring.restore(qmp, hot.devices, limit, streamed=hot.streamed)
        if hot.shell is not None:
            console.adopt_shell(hot.shell.count, hot.shell.up)


def _forwarded(qmp: Qmp) -> dict[int, tuple[str, int]]:
    """Return host address and port by forwarded port of the guest, as QEMU has bound them."""
    network = qmp.human("info usernet")
    return {int(guest): (host, int(port)) for host, port, guest in _FORWARD.findall(network)}


def _differ(machine: Machine[Any], origin: Snapshot, now: float | None) -> None:
    """Make a fork that has just begun to run differ from its siblings where it must.

    Its clock is set to ``now``; by default to the time when it is set. The data of the step names all
    that is still as in the origin, and the reason.
    """
    with machine.timeline.step(
        "fork", machine=machine.name, origin=str(origin.folder), saved=origin.saved
    ) as step:
        reseed = None
        if not arch.of(machine.spec.arch).has_vmgenid:
            reseed = machine.os.reseed(secrets.token_hex(16)) or _CANNOT_RESEED
        commands = restoring.differences(origin.spec, machine.spec, reseed=reseed, now=now)
        script = machine.os.as_root(restoring.script(commands))
        # A machine out of a bundle may have been saved because it does not answer any more.
        limit = machine.scale.after(_ANSWER) if origin.streamed else None
        try:
            if machine.console.logged_in:
                result = machine.console.run(script, limit)
            elif origin.host_key is not None:
                result = machine.ssh.run(script, deadline=limit)
            else:
                # No way to run a command in the guest: it is as if it had slept.
                why = "that of the origin: no user is logged in"
                step.data.update(dict.fromkeys(commands, why))
                return
        except HarnessError as error:
            if not origin.streamed:
                raise
            step.data.update(dict.fromkeys(commands, f"that of the origin: {error.what}"))
            return
        failed = set(commands)
        why = "that of the origin"
        if result.ok:
            failed &= set(result.stdout.splitlines())
        else:
            why += f": status {result.status}"
        step.data.update(dict.fromkeys(failed, f"{why}: {result.evidence}"))
