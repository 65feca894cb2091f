"""How a machine starts, from nothing or from a snapshot, and how it is stopped."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.console import Console
from harness.deadline import after
from harness.errors import QemuExitedError, QemuStartError, QmpError, UsageError
from harness.machine.parts import Parts
from harness.qemu import argv, binary, firmware
from harness.qemu import disk as disks
from harness.qemu.accel import cpu_model
from harness.qemu.process import OwnedProcess
from harness.qemu.qmp import Qmp
from harness.qemu.script import reproduce
from harness.qemu.tpm import TpmProcess
from harness.ssh import Ssh
from harness.state import filesystem
from harness.state import restore as restoring
from harness.state import save as saving

_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)")


class Startable(Parts):
    """A machine that is started and stopped; a context manager."""

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start QEMU and the guest; the console is drained from the first byte.

        Raises:
            QemuMissingError, QemuTooOldError, FirmwareMissingError: the host lacks something.
            QemuStartError: QEMU refused its arguments or died; carries its stderr.
            DiskFullError: no space for the machine's disks.
        """
        if self._process is not None:
            raise UsageError(f"machine {self.name} has been started before")
        if self.origin is not None and self._hot:
            self._unmapped = filesystem.unmapped(self.origin.ram)
        if self._admit is not None:
            shares = self._hot and not self._saveable and not self._unmapped
            self._grant = self._admit(self.spec, self.timeline, shares)
        with (
            self.timeline.step("start", machine=self.name) as step,
            contextlib.ExitStack() as undo,
        ):
            undo.callback(self.stop)
            if self._unmapped:
                step.data["ram"] = f"a copy: the saved file cannot be mapped: {self._unmapped}"
            self._start()
            self._differ()
            undo.pop_all()

    def _start(self) -> None:
        spec = self.spec
        for each in (each for nic in spec.nics for each in nic.reach):
            if each.name not in self._services:
                raise UsageError(
                    f"machine {self.name} reaches service {each.name}, and nobody has started it",
                    hint=f"boot(services=[...]) or fork_of(state, services=[...]) with {each.name}",
                )
        qemu = binary.find(spec.arch)
        accel = self._accel_of(spec.arch)
        flash = firmware.find(spec.arch, spec.firmware.kind)
        model = spec.cpu_model or cpu_model(accel, spec.arch)
        if self.origin is not None:
            restoring.check(self.origin, accel.name, model)
            if flash is not None and self.origin.variables is not None:
                flash = replace(flash, variables=self.origin.variables)
        folder = self.evidence / "disks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            variables = None
            if flash is not None:
                variables = folder / "efivars.fd"
                if not variables.exists():
                    shutil.copyfile(flash.variables, variables)
        except OSError as error:
            raise disks.disk_full(error, folder) from error
        files = {disk.name: disks.create(disk, folder) for disk in spec.disks}
        if spec.tpm is not None:
            self._tpm = TpmProcess(
                spec.tpm,
                folder / "tpm",
                stderr=self.evidence / "swtpm.stderr",
                on_exit=self._fate.on_tpm_exit,
            )
        console_here, console_there = socket.socketpair()
        qmp_here, qmp_there = socket.socketpair()
        try:
            given = argv.Allocations(
                qemu=qemu.path,
                accel=accel.name,
                cpu_model=model,
                disks=files,
                firmware=flash,
                variables=variables,
                console_fd=console_there.fileno(),
                qmp_fd=qmp_there.fileno(),
                services=self._services,
                tpm_state=self._tpm.state if self._tpm is not None else None,
                tpm_fd=self._tpm.fd if self._tpm is not None else None,
            )
            given = self._allocate_memory(given)
            self._allocations = given
            reproduce(spec, given, folder, self.evidence / "qemu.sh")
            self._console = Console(
                console_here,
                log=self.evidence / "serial.log",
                cast=self.evidence / "serial.cast",
                name=self.name,
                on_eof=self._fate.how_the_console_ended,
                on_failure=self._fate.on_console_failure,
            )
            self._fate.console = self._console
            self._fate.ends(self._console)
            self._qmp = Qmp(
                qmp_here,
                name=self.name,
                log=self.evidence / "qmp.jsonl",
                on_event=self._fate.on_event,
            )
            self._fate.ends(self._qmp)
            self._process = OwnedProcess(
                argv.build(spec, given),
                stderr=self.evidence / "qemu.stderr",
                pass_fds=(
                    console_there.fileno(),
                    qmp_there.fileno(),
                    *([self._memory.fd] if self._memory is not None else []),
                    *([given.tpm_fd] if given.tpm_fd is not None else []),
                    # Should this process be killed, the grant ends with QEMU.
                    *([self._grant.fileno()] if self._grant is not None else []),
                ),
                on_exit=self._fate.on_exit,
            )
            self._fate.process = self._process
            if self.origin is not None and self._hot:
                # What the saved machine's last line says counts as said: a prompt may be on it.
                console_there.sendall(self.origin.line.encode())
        finally:
            console_there.close()
            qmp_there.close()
            if self._tpm is not None:
                self._tpm.hand_over()
        self._attach()

    def _allocate_memory(self, given: argv.Allocations) -> argv.Allocations:
        """Return the allocations with RAM that can be saved, or that of the origin."""
        origin = self.origin
        if self._saveable or self._unmapped:
            content = origin.ram if origin is not None and self._hot else None
            memory = saving.Memory.create(self.name, self.spec.memory, content)
            self._memory = memory
            ram = argv.Ram(Path(f"/proc/self/fd/{memory.fd}"), private=False, saved=content)
            given = replace(given, ram=ram)
        if origin is None:
            return given
        (self.evidence / "origin.json").write_text(
            json.dumps({"folder": str(origin.folder), "saved": origin.saved, "cold": origin.cold})
        )
        return restoring.allocate(given, origin, self._memory)

    def _attach(self) -> None:
        assert self._process is not None
        limit = after(30)
        try:
            self.qmp.connect(limit)
            told = self.qmp.human("info usernet") if self.spec.nics else ""
            self._ports = {
                int(guest): (host, int(port)) for host, port, guest in _FORWARD.findall(told)
            }
            if 22 in self._ports:
                user = self._os.account.user if self._os is not None else "root"
                self._ssh = Ssh(
                    self._ports[22],
                    user=user,
                    key=self._key,
                    log=self.evidence / "ssh.jsonl",
                    guest=lambda: (self.console.last_output(), self.console.silent_for()),
                )
                self._fate.ends(self._ssh)
            origin = self.origin
            if origin is not None and self._hot:
                restoring.restore(self.qmp, origin.devices, limit)
                if self._ssh is not None:
                    self._ssh.host_key = origin.host_key
                if origin.shell is not None:
                    self.console.adopt_shell(origin.shell.count, origin.shell.up)
            self.qmp.execute("cont")
        except (QmpError, QemuExitedError) as error:
            # A monitor that hangs up means that QEMU is ending: its own words say why.
            self._process.wait(after(5, scaled=False))
            raise QemuStartError(
                f"QEMU did not start ({self._process.how_ended()})",
                evidence=self._process.last_words() or str(self._process.stderr),
                hint=f"run {self.evidence / 'qemu.sh'} by hand",
            ) from error

    def _differ(self) -> None:
        """Make a fork that has just begun to run differ from its siblings where it must."""
        origin = self.origin
        if origin is None or not self._hot:
            return
        with self.timeline.step(
            "fork", machine=self.name, origin=str(origin.folder), saved=origin.saved
        ) as step:
            command = restoring.difference(origin.spec, self.spec)
            if self._os is not None:
                command = self._os.as_root(command)
            if self.console.logged_in:
                status = self.console.run(command).status
            elif origin.host_key is not None:
                status = self.ssh.run(command).status
            else:
                # Nobody can tell the guest: it is as if it had slept.
                step.data["clock"] = "that of the origin: nobody is logged in"
                return
            if status:
                step.data["clock"] = f"not set: status {status}"

    def stop(self) -> None:
        """End QEMU at once, if it runs, and release everything but the evidence."""
        self._fate.expect_end()
        if self._process is not None:
            self._process.kill()
        if self._tpm is not None:
            self._tpm.close()
        if self._ssh is not None:
            self._ssh.close()
        if self._qmp is not None:
            self._qmp.close()
        if self._console is not None:
            self._console.close()
        if self._memory is not None:
            self._memory.close()
        if self._grant is not None:
            self._grant.release()
