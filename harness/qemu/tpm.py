"""A machine's TPM 2.0: a ``swtpm(8)`` that starts and ends with the machine.

QEMU controls swtpm through a connected pair of sockets (``docs/specs/tpm.rst`` of QEMU), so there is
no path that another machine could use, and swtpm exits when QEMU closes its side. The TPM's state is
part of QEMU's migration stream: the swtpm of a fork starts empty and receives the whole state,
registers included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from harness.errors import HostError, TpmError
from harness.qemu.disk import disk_full
from harness.qemu.process import OwnedProcess
from harness.spec import Tpm


class TpmProcess:
    """A swtpm that waits for QEMU.

    Args:
        spec: The TPM, with its initial state.
        state: The folder for the TPM's state. It must not exist, unless it belongs to this machine.
        stderr: The file that receives swtpm's messages.
        on_exit: Called with the process, from the loop's thread.

    Raises:
        HostError: swtpm is not installed.
        TpmError: The initial state cannot be read.
        DiskFullError: The host has no space for the state.
    """

    def __init__(
        self, spec: Tpm, state: Path, *, stderr: Path, on_exit: Callable[[OwnedProcess], None]
    ) -> None:
        program = shutil.which("swtpm")
        if program is None:
            raise HostError("swtpm is not installed", hint="install the package swtpm")
        self.state = state
        _prepare(spec, state)
        self._qemu_end, swtpm_end = socket.socketpair()
        with swtpm_end, contextlib.ExitStack() as undo:
            undo.callback(self._qemu_end.close)
            folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._process = OwnedProcess(
                    command(program, folder, f"clientfd={swtpm_end.fileno()}"),
                    stderr=stderr,
                    pass_fds=(swtpm_end.fileno(), folder),
                    on_exit=on_exit,
                )
            finally:
                os.close(folder)
            undo.pop_all()

    @property
    def fd(self) -> int:
        """The descriptor to start QEMU with."""
        return self._qemu_end.fileno()

    def hand_over(self) -> None:
        """Close this process' copy of the descriptor, after QEMU has inherited it."""
        self._qemu_end.close()

    def last_words(self) -> str:
        """Return the end of swtpm's output, and how it ended if it has."""
        words = self._process.last_words()
        if self._process.running or not self._process.status:
            return words
        return "\n".join(filter(None, [words, f"swtpm: {self._process.how_ended()}"]))

    def close(self) -> None:
        """Stop swtpm if it has not ended with QEMU."""
        self._qemu_end.close()
        self._process.kill()


def descriptor(number: int) -> str:
    """Return a path of the folder that a process has open with this descriptor (``proc_pid_fd(5)``).

    swtpm separates its options by commas, and has no escape for them (``src/swtpm/options.c``), so an
    option cannot name every folder that a user may choose.
    """
    return f"/proc/self/fd/{number}"


def command(program: str, state: int, control: str) -> tuple[str, ...]:
    """Return the command of a swtpm: a TPM 2.0 that exits when its connection ends.

    Args:
        program: The path of swtpm.
        state: The descriptor of the folder for the TPM's state.
        control: The control channel, as in ``swtpm(8)``: ``clientfd=N`` or ``path=SOCKET``.
    """
    return (
        *(program, "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={descriptor(state)}"),
        *("--ctrl", f"type=unixio,{control}"),
    )


def _prepare(spec: Tpm, state: Path) -> None:
    if state.exists():
        return
    if spec.state is not None and not spec.state.is_dir():
        raise TpmError(
            f"{spec.state} holds no TPM state",
            hint="use machine.tpm_state of a machine with a TPM; a passed test's evidence is removed",
        )
    try:
        if spec.state is None:
            state.mkdir(parents=True)
        else:
            # copyfile, because the files of a saved state are read-only and the copies must not be.
            shutil.copytree(spec.state, state, copy_function=shutil.copyfile)
    except OSError as error:
        raise disk_full(error, state) from error
