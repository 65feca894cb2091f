"""A machine's TPM 2.0: ``swtpm(8)``, started for one machine and ended with it.

QEMU controls it through a connected pair of sockets (``docs/specs/tpm.rst`` of QEMU), so that there
is no path that another machine could find, and swtpm ends when QEMU has closed its side. What the TPM
holds is part of QEMU's migration stream: a fork's swtpm begins empty and is given all of it, the
registers included.
"""

from __future__ import annotations

import contextlib
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
        spec: What it begins with.
        state: The folder for what it holds, which must not exist unless it was this machine's.
        stderr: The file for its complaints.
        on_exit: Called with the process, from the loop's thread.

    Raises:
        HostError: if swtpm is not installed.
        TpmError: if the state that it begins with cannot be read.
        DiskFullError: no space for its state.
    """

    def __init__(
        self, spec: Tpm, state: Path, *, stderr: Path, on_exit: Callable[[OwnedProcess], None]
    ) -> None:
        program = shutil.which("swtpm")
        if program is None:
            raise HostError("swtpm is not installed", hint="install the package swtpm")
        self.state = state
        _provide(spec, state)
        self._there, here = socket.socketpair()
        with here, contextlib.ExitStack() as undo:
            undo.callback(self._there.close)
            self._process = OwnedProcess(
                command(program, state, f"clientfd={here.fileno()}"),
                stderr=stderr,
                pass_fds=(here.fileno(),),
                on_exit=on_exit,
            )
            undo.pop_all()

    @property
    def fd(self) -> int:
        """The descriptor that QEMU is started with."""
        return self._there.fileno()

    def hand_over(self) -> None:
        """Close this side's descriptor: QEMU has it now."""
        self._there.close()

    def close(self) -> None:
        """End it, if it has not ended with QEMU."""
        self._there.close()
        self._process.kill()


def command(program: str, state: Path | str, control: str) -> tuple[str, ...]:
    """Return the command of a swtpm: a TPM 2.0 that ends with the connection.

    Args:
        program: Its path.
        state: The folder for what it holds.
        control: Where QEMU is, as ``swtpm(8)`` has it: ``clientfd=N`` or ``path=SOCKET``.
    """
    return (
        *(program, "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={state}"),
        *("--ctrl", f"type=unixio,{control}"),
    )


def _provide(spec: Tpm, state: Path) -> None:
    if state.exists():
        return
    if spec.state is not None and not spec.state.is_dir():
        raise TpmError(
            f"there is no TPM's state in {spec.state}",
            hint="take machine.tpm_state of a machine that had a TPM; a passed test's is gone",
        )
    try:
        if spec.state is None:
            state.mkdir(parents=True)
        else:
            # A saved one can be read only.
            shutil.copytree(spec.state, state, copy_function=shutil.copyfile)
    except OSError as error:
        raise disk_full(error, state) from error
