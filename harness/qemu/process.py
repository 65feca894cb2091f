"""A process that cannot outlive Harness: the owner of QEMU, and of what serves it.

The child gets ``SIGKILL`` from the kernel when the runner dies, ``kill -9`` included
(``PR_SET_PDEATHSIG(2const)``, set by ``setpriv(1)``). Its end is an event: a pidfd
(``pidfd_open(2)``) watched by the loop, so that nothing polls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import HostError, QemuStartError
from harness.qemu import loop

STDERR_KEPT: Final = 8192
"""Bytes of a process' last words that go into a message."""

# setpriv asks for the signal, then the shell checks that the runner has not died in between.
_GUARD: Final = '[ "$PPID" = "$0" ] && exec "$@"; exit 125'


class OwnedProcess:
    """A child process, killed at the latest when its owner dies.

    Args:
        argv: The command.
        stderr: The file that takes its standard output and error.
        pass_fds: Descriptors it inherits; the caller closes its own copies.
        on_exit: Called with this process, from the loop's thread, once.

    Raises:
        QemuStartError: if the program cannot be executed.
        HostError: if ``setpriv`` is not installed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stderr: Path,
        pass_fds: Sequence[int] = (),
        on_exit: Callable[[OwnedProcess], None] | None = None,
    ) -> None:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError("setpriv is not installed", hint="install the package util-linux")
        if shutil.which(argv[0]) is None:
            raise QemuStartError(f"{argv[0]} cannot be executed", hint="see 'harness doctor'")
        self.argv = tuple(argv)
        self.stderr = stderr
        self._on_exit = on_exit
        self._ended = threading.Event()
        self._status: int | None = None
        guarded = [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _GUARD, str(os.getpid())]

        def start() -> None:
            with stderr.open("ab") as sink:
                self._popen = subprocess.Popen(
                    [*guarded, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    pass_fds=pass_fds,
                    # A Ctrl-C in the terminal is for the runner: it stops machines in order.
                    start_new_session=True,
                )
            self._pidfd = os.pidfd_open(self._popen.pid)
            loop.get().add_reader(self._pidfd, self._reap)

        # One that ends at once is reaped by the loop before this thread has gone on.
        loop.call(start)

    def _reap(self) -> None:
        """Collect the exit status; runs in the loop's thread when the pidfd becomes readable."""
        loop.get().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._status = self._popen.wait()
        try:
            if self._on_exit is not None:
                self._on_exit(self)
        finally:
            # Last: who waits for the end finds that everybody has been told of it.
            self._ended.set()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def activity(self) -> tuple[float, bool]:
        """Return the processor seconds it has taken so far, and whether a thread of it is ready to run.

        A process that a crowded host lets starve takes little, and is ready all the time
        (``proc_pid_stat(5)``: ``utime``, ``stime``, ``state``).
        """
        ticks, ready = 0, False
        for path in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                # Behind the name, which may hold anything; the state is field 3.
                fields = path.read_text().rpartition(")")[2].split()
                ticks += int(fields[14 - 3]) + int(fields[15 - 3])
                ready = ready or fields[0] in "RD"
        return ticks / os.sysconf("SC_CLK_TCK"), ready

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self._status

    def wait(self, deadline: Deadline) -> bool:
        """Wait for the end; return whether it came before the deadline."""
        return self._ended.wait(deadline.timeout())

    def kill(self) -> None:
        """End it at once and wait for the end; harmless if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                self._popen.send_signal(signal.SIGKILL)
        self._ended.wait()

    def last_words(self) -> str:
        """Return the end of what it printed on standard error."""
        try:
            with self.stderr.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - STDERR_KEPT))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def how_ended(self) -> str:
        """Return the end in words: ``exit status 1``, ``killed by SIGKILL``, ``running``."""
        if self._status is None:
            return "running"
        if self._status < 0:
            try:
                return f"killed by {signal.Signals(-self._status).name}"
            except ValueError:
                return f"killed by signal {-self._status}"
        return f"exit status {self._status}"
