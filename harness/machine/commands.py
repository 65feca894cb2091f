"""The commands that a machine's guest runs, over SSH or on the console, and the waits for them."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace

from harness.deadline import Deadline
from harness.errors import CommandError, ConnectionLostError, UsageError, WaitTimeoutError
from harness.machine.parts import Parts
from harness.machine.power import Power
from harness.machine.system import System
from harness.result import Result

_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class Commands:
    """The commands of one running machine; :class:`~harness.machine.Machine` documents the words.

    Args:
        parts: The machine's parts.
        power: Its power.
        os: Its operating system.

    Attributes:
        on_console: Whether commands run on the console although the machine may have SSH.
    """

    def __init__(self, parts: Parts, power: Power, os: System) -> None:
        self._parts = parts
        self._power = power
        self._os = os
        self.on_console = parts.ssh is None

    def wait_ready(self, limit: Deadline) -> None:
        """Wait until commands can be run."""
        parts = self._parts
        with (
            parts.timeline.step("wait until ready", machine=parts.name, limit=limit.seconds),
            self._power.coming_up(self._os.idle_seconds, self._os.most_restarts),
        ):
            if self.on_console:
                self._os.login(limit)
            else:
                parts.require_ssh().connect(limit)

    def execute(self, command: str, limit: Deadline) -> Result:
        """Run a command and return its result."""
        parts = self._parts
        with parts.timeline.step(
            f"run: {command[:200]}", machine=parts.name, limit=limit.seconds
        ) as step:
            if self.on_console:
                result = parts.console.run(command, limit)
            else:
                result = parts.require_ssh().run(command, deadline=limit)
            if result.stderr:
                step.data["stderr"] = result.stderr[-500:]
            step.data["status"] = result.status
            if result.hint:
                step.data["hint"] = result.hint
        return replace(result, command=command, machine=parts.name)

    def fail(self, command: str, limit: Deadline) -> str:
        """Run a command that must fail and return its output."""
        result = self.execute(command, limit)
        if result.ok:
            raise CommandError(
                f"{command!r} succeeded on {self._parts.name} and must not",
                evidence=result.evidence,
            )
        return result.stdout

    def wait_until_succeeds(self, command: str, limit: Deadline) -> str:
        """Run a command until it succeeds and return its output."""
        parts = self._parts
        # A guest has no event for an arbitrary condition. So the guest itself repeats the command: for
        # the host it is one command, and the pauses between the tries are the guest's.
        loop = f"until ( {command}\n); do sleep 0.2 2>/dev/null || sleep 1; done"
        with parts.timeline.step(
            f"wait until succeeds: {command[:200]}", machine=parts.name, limit=limit.seconds
        ):
            try:
                return self.execute(loop, limit).stdout
            except WaitTimeoutError as error:
                raise WaitTimeoutError(
                    f"{command!r} to succeed on {parts.name}",
                    limit,
                    last_output=error.last_output,
                    evidence=error.evidence,
                ) from error

    def wait_for_unit(self, unit: str, limit: Deadline) -> None:
        """Wait until a service is active."""
        ask = self._os.unit_state(unit)
        state = self.wait_until_succeeds(
            f's=$({ask}); case "$s" in active|failed) echo "$s";; *) false;; esac', limit
        ).strip()
        if not state.endswith("active"):
            journal = self.execute(
                self._os.as_root(f"journalctl -n 30 --no-pager -u {unit}"),
                self._parts.scale.after(60),
            )
            raise CommandError(f"unit {unit} failed on {self._parts.name}", evidence=journal.stdout)

    def wait_for_port(self, number: int, limit: Deadline) -> None:
        """Wait until a program in the guest listens on a TCP port."""
        if not 0 < number < 65536:
            raise UsageError(f"a port is 1 to 65535, not {number}")
        self.wait_until_succeeds(
            f"cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -Eq ': [0-9A-F]+:{number:04X} "
            "[0-9A-F]+:0000 0A '",
            limit,
        )

    def boot_id(self) -> str:
        """Return the guest's boot id."""
        return self.execute(_BOOT_ID, self._parts.scale.after(60)).check().stdout.strip()

    def reboot(self, limit: Deadline) -> None:
        """Reboot in order and wait until the machine is ready with a new boot id."""
        parts = self._parts
        with parts.timeline.step("reboot", machine=parts.name, limit=limit.seconds):
            before = self.boot_id()
            mark = parts.qmp.mark()
            command = self._os.request_reboot()
            if self.on_console:
                parts.console.leave()
                parts.console.send_line(command)
            else:
                # The reboot may cut off the answer to the command that asks for it.
                with contextlib.suppress(ConnectionLostError):
                    result = parts.require_ssh().run(command, deadline=limit)
                    if result.status > 0:
                        result.check()
            self._power.wait_for_reset(limit, since=mark)
            if parts.ssh is not None:
                parts.ssh.disconnect()
                if not self._os.keeps_host_key:
                    parts.ssh.forget_host_key()
            self.wait_ready(limit)
            if self.boot_id() == before:
                raise CommandError(f"machine {parts.name} reset, but its boot id is the old one")


def quote(text: str) -> str:
    """Return ``text`` as one word for the guest's shell."""
    return shlex.quote(text)
