"""What is run in the guest, over SSH or on the console, and what is waited for there."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from typing import Self

from harness.deadline import Deadline, of
from harness.errors import CommandError, ConnectionLostError, UsageError, WaitTimeoutError
from harness.machine.power import Powered
from harness.ssh import SshResult


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest came to, whichever way it went in.

    Attributes:
        output: What it printed on standard output; errors as well when it ran on the console.
        status: Its exit status.
    """

    output: str
    status: int


class Commanded(Powered):
    """A machine whose guest runs commands."""

    def wait_ready(self, deadline: Deadline | float | None = None) -> Self:
        """Wait until commands can be run: over SSH, or on the console where there is no SSH.

        Args:
            deadline: From power on; the image's own, or 60 s on a good host, by default.
        """
        limit = self.os.limit("ready", deadline, 60)
        with self.timeline.step("wait until ready", machine=self.name), self.coming_up():
            if self.use_console_shell:
                self.os.login(limit)
            else:
                self.ssh.connect(limit)
        return self

    def execute(self, command: str, *, deadline: Deadline | float | None = None) -> CommandResult:
        """Run a command and return its output and status.

        It goes over SSH; on the console where the machine has no SSH, or ``use_console_shell`` is set.
        """
        with self.timeline.step(f"run: {command[:200]}", machine=self.name) as step:
            if self.use_console_shell:
                told = self.console.run(command, deadline=deadline)
                result = CommandResult(told.stdout, told.status)
            else:
                over_ssh: SshResult = self.ssh.run(command, deadline=deadline)
                result = CommandResult(over_ssh.stdout, over_ssh.status)
                if over_ssh.stderr:
                    step.data["stderr"] = over_ssh.stderr[-500:]
            step.data["status"] = result.status
        return result

    def succeed(self, *commands: str, deadline: Deadline | float | None = None) -> str:
        """Run commands that must succeed and return their output.

        Raises:
            CommandError: if one ends with a status other than 0.
        """
        output = ""
        for command in commands:
            result = self.execute(command, deadline=deadline)
            if result.status != 0:
                raise CommandError(
                    f"{command!r} ended with status {result.status} on {self.name}",
                    evidence=self._said(result),
                )
            output += result.output
        return output

    def fail(self, *commands: str, deadline: Deadline | float | None = None) -> str:
        """Run commands that must fail and return their output.

        Raises:
            CommandError: if one succeeds.
        """
        output = ""
        for command in commands:
            result = self.execute(command, deadline=deadline)
            if result.status == 0:
                raise CommandError(
                    f"{command!r} succeeded on {self.name} and must not",
                    evidence=self._said(result),
                )
            output += result.output
        return output

    def _said(self, result: CommandResult) -> str:
        running = self.timeline.steps[-1] if self.timeline.steps else None
        errors = str(running.data.get("stderr", "")) if running is not None else ""
        return (result.output[-1500:] + errors).strip()

    def wait_until_succeeds(self, command: str, deadline: Deadline | float | None = None) -> str:
        """Run a command until it succeeds and return its output.

        A guest has no event for an arbitrary condition, so it is asked again and again: the loop
        runs in the guest, one command for Harness, and waits there between tries.

        Args:
            command: What must succeed.
            deadline: 60 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
        """
        limit = of(deadline, 60)
        loop = f"until ( {command}\n); do sleep 0.2 2>/dev/null || sleep 1; done"
        with self.timeline.step(f"wait until succeeds: {command[:200]}", machine=self.name):
            try:
                return self.execute(loop, deadline=limit).output
            except WaitTimeoutError as error:
                raise WaitTimeoutError(
                    f"{command!r} to succeed on {self.name}",
                    limit.seconds,
                    last_output=error.last_output,
                    evidence=error.evidence,
                ) from error

    def wait_for_unit(self, unit: str, deadline: Deadline | float | None = None) -> None:
        """Wait until a service is active.

        Raises:
            CommandError: if it fails instead.
            WaitTimeoutError: at the deadline.
        """
        ask = self.os.unit_state(unit)
        state = self.wait_until_succeeds(
            f's=$({ask}); case "$s" in active|failed) echo "$s";; *) false;; esac', deadline
        ).strip()
        if not state.endswith("active"):
            log = self.execute(self.os.as_root(f"journalctl -n 30 --no-pager -u {unit}"))
            raise CommandError(f"unit {unit} failed on {self.name}", evidence=log.output)

    def wait_for_port(self, number: int, deadline: Deadline | float | None = None) -> None:
        """Wait until something in the guest listens on a TCP port."""
        if not 0 < number < 65536:
            raise UsageError(f"a port is 1 to 65535, not {number}")
        digits = f"{number:04X}"
        self.wait_until_succeeds(
            f"cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -Eq ': [0-9A-F]+:{digits} "
            "[0-9A-F]+:0000 0A '",
            deadline,
        )

    @property
    def boot_id(self) -> str:
        """The guest's boot id, new at each boot (``random(4)``)."""
        return self.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    def reboot(self, deadline: Deadline | float | None = None) -> None:
        """Reboot in order and wait until the machine is ready with a new boot id.

        Args:
            deadline: 120 s on a good host by default.

        Raises:
            WaitTimeoutError: at the deadline.
            GuestError: if the guest does not come back, or with the old boot id.
        """
        limit = of(deadline, 120)
        with self.timeline.step("reboot", machine=self.name):
            before = self.boot_id
            mark = self.qmp.mark()
            command = self.os.request_reboot()
            if self.use_console_shell:
                self.console.leave()
                self.console.send_line(command)
            else:
                # The answer may be cut off by the reboot it asks for.
                with contextlib.suppress(ConnectionLostError):
                    told = self.ssh.run(command, deadline=limit)
                    if told.status > 0:
                        told.check()
            self.wait_for_reset(limit, since=mark)
            if self._ssh is not None:
                self._ssh.disconnect()
                if not self.os.keeps_host_key:
                    self._ssh.forget_host_key()
            self.wait_ready(limit)
            if self.boot_id == before:
                raise CommandError(f"machine {self.name} reset, but its boot id is the old one")


def quote(text: str) -> str:
    """Return ``text`` as one word for the guest's shell."""
    return shlex.quote(text)
