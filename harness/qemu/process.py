"""Child processes that cannot outlive Harness: QEMU and its helpers.

The kernel sends the child ``SIGKILL`` when the runner dies, ``kill -9`` included
(``PR_SET_PDEATHSIG(2const)``, set by ``setpriv(1)``). Its end is an event: the loop watches a pidfd
(``pidfd_open(2)``), so nothing polls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import HostError, QemuStartError
from harness.qemu import loop

STDERR_KEPT: Final = 8192
"""Bytes from the end of a process' output that go into a message."""

# setpriv requests the signal, then the shell checks that the runner has not died before that.
_GUARD: Final = '[ "$PPID" = "$0" ] && exec "$@"; exit 125'


@dataclass(frozen=True, slots=True)
class Activity:
    """What the threads of a process have done so far.

    Attributes:
        cpu: The CPU seconds that they took.
        waits: The seconds for which each was ready to run and waited for a CPU, by thread id.
    """

    cpu: float
    waits: Mapping[int, float]

    def starved_since(self, before: Activity) -> float:
        """Return the longest time that a thread waited for a CPU since an earlier activity."""
        return max(
            (wait - before.waits.get(thread, 0.0) for thread, wait in self.waits.items()),
            default=0.0,
        )


class OwnedProcess:
    """A child process that is killed at the latest when its owner dies.

    Args:
        argv: The command.
        stderr: The file that receives standard output and standard error.
        pass_fds: Descriptors that the child inherits; the caller closes its own copies.
        on_exit: Called with this process, once, from the loop's thread.

    Raises:
        QemuStartError: The program cannot be executed.
        HostError: ``setpriv`` is not installed.
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
        self._killed = False
        guarded = [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _GUARD, str(os.getpid())]

        def start() -> None:
            with stderr.open("ab") as sink:
                self._popen = subprocess.Popen(
                    [*guarded, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    pass_fds=pass_fds,
                    # Ctrl-C in the terminal must reach the runner only, which stops machines in order.
                    start_new_session=True,
                )
            self._pidfd = os.pidfd_open(self._popen.pid)
            loop.get().add_reader(self._pidfd, self._reap)

        # The loop may reap a child that exits at once before this thread continues.
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
            # Last, so that wait() returns only after the callback has run.
            self._ended.set()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def activity(self) -> Activity:
        """Return what its threads have done so far.

        The kernel counts for each thread how long it was ready to run and waited for a CPU
        (``Documentation/scheduler/sched-stats.rst``: ``/proc/<pid>/schedstat``); one that was built
        without that count (``CONFIG_SCHED_INFO``) shows no waiting.
        """
        ticks, waits = 0, {}
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                # Skip the name, which may contain anything (proc_pid_stat(5)); the state is field 3.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[14 - 3]) + int(fields[15 - 3])
                waits[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
        return Activity(ticks / os.sysconf("SC_CLK_TCK"), waits)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return not self._ended.is_set()

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while the process runs."""
        return self._status

    @property
    def failed(self) -> bool:
        """Whether the process ended with an error, or by a signal that :meth:`kill` did not send."""
        return self._status not in (None, 0) and not self._killed

    def wait(self, deadline: Deadline) -> bool:
        """Wait until the process ends; return whether it ended before the deadline."""
        return deadline.wait(self._ended.wait)

    def kill(self) -> None:
        """Kill the process and wait until it has ended; does nothing if it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                self._killed = True
                self._popen.send_signal(signal.SIGKILL)
        self._ended.wait()

    def last_words(self) -> str:
        """Return the end of the process' output."""
        try:
            with self.stderr.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - STDERR_KEPT))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def how_ended(self) -> str:
        """Return how the process ended: ``exit status 1``, ``killed by SIGKILL`` or ``running``."""
        if self._status is None:
            return "running"
        if self._status < 0:
            try:
                return f"killed by {signal.Signals(-self._status).name}"
            except ValueError:
                return f"killed by signal {-self._status}"
        return f"exit status {self._status}"
