"""The result of a command that ran in a guest, whichever way it went in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from harness.errors import CommandError

SHOWN: Final = 2000
"""Characters of the output that an error shows."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one command.

    Attributes:
        stdout: Its standard output; invalid UTF-8 is replaced. On a serial console, which is one stream,
            it holds the errors as well.
        stderr: Its standard error; empty on a serial console.
        status: Its exit status; -1 if a signal ended it.
        seconds: How long it took, measured on the host.
        command: The command.
        machine: The name of the machine that ran it; empty if unknown.
        hint: What a reader of the result should know; empty for nothing.
    """

    stdout: str
    stderr: str
    status: int
    seconds: float
    command: str = ""
    machine: str = ""
    hint: str = ""

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.status == 0

    @property
    def evidence(self) -> str:
        """The end of the output and of the errors, for a message."""
        return (self.stdout[-SHOWN:] + self.stderr[-SHOWN:]).strip()

    def check(self) -> Self:
        """Return the result itself.

        Raises:
            CommandError: The exit status is not 0.
        """
        if not self.ok:
            where = f" on {self.machine}" if self.machine else ""
            raise CommandError(
                f"{self.command!r} ended with status {self.status}{where}",
                evidence=self.evidence,
                hint=self.hint,
            )
        return self
