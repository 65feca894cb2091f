"""The end of a run before its time: Ctrl-C, a closed terminal, a runner that is evicted.

``SIGTERM`` and ``SIGHUP`` end a run as Ctrl-C does, in order: the machines end, results and reports are
written. A pod gets ``SIGTERM`` 30 seconds before ``SIGKILL`` (Kubernetes' reference, "Pod Lifecycle",
termination of pods). A second Ctrl-C ends the run at once. QEMU ends in any case, since its parent does.
A run whose tests have all ended is on its way out: each of the signals, and a first Ctrl-C, then leave
it to write what it has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import pytest

from harness.pytest_plugin import session as sessions

REASONS: Final = {
    signal.SIGTERM: "SIGTERM ended the run",
    signal.SIGHUP: "SIGHUP ended the run: its terminal was closed",
}
"""The reason of tests that a signal interrupted."""


class Terminated(KeyboardInterrupt):
    """The run got a signal to end; pytest ends as after Ctrl-C."""


class _Signals:
    """Handles the signals of a run, in the controller and in each worker.

    Args:
        session: The session of the run.
    """

    def __init__(self, session: sessions.Session) -> None:
        from harness.signals import leave_closed_terminals

        self._session = session
        self._leave_closed_terminals = leave_closed_terminals
        self._workers: list[int] = []
        self._ending = False
        self._finishing = False
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take the signals unless they have another handler, or none at all.

        A shell starts jobs in the background with Ctrl-C ignored, nohup(1) a command with ``SIGHUP``.
        """
        for number in REASONS:
            self._take(number, signal.SIG_DFL, self._terminate)
        self._take(signal.SIGINT, signal.default_int_handler, self._interrupt)

    def _take(
        self, number: signal.Signals, usual: Any, handler: Callable[[int, FrameType | None], None]
    ) -> None:
        if signal.getsignal(number) is usual or signal.getsignal(number) == usual:
            self._before[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True  # pytest then names the line that was interrupted
        del frame
        if number == signal.SIGHUP:
            self._leave_closed_terminals()
        if self._ending or self._finishing:
            return  # The end in order goes on; SIGKILL follows if it takes too long.
        self._ending = True
        for pid in self._workers:
            # A supervisor may signal this process alone. Not waited for, it is still the worker's.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        raise Terminated(REASONS[signal.Signals(number)])

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        if self._ending:
            self._say("interrupted again: this run ends at once")
            os._exit(int(pytest.ExitCode.INTERRUPTED))
        self._ending = True
        if self._finishing:
            # An exception here would cost the summary, and end in a traceback.
            self._say("this run is ending; Ctrl-C again ends it at once")
            return
        signal.default_int_handler(number, frame)

    def _say(self, text: str) -> None:
        if not self._session.worker:
            self._session.say_at_once(text)

    # --- hooks --------------------------------------------------------------------------------

    def pytest_runtest_logstart(self) -> None:
        """See that the run goes on: a test, or a debugger, has handled the interrupt."""
        self._ending = False

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note what ended the run."""
        self._session.interruption = str(excinfo.value) or "Ctrl-C"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """See that the run ends."""
        self._finishing = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        """Note the process of a worker of pytest-xdist."""
        channel = gateway.remote_exec("import os; channel.send(os.getpid())")
        self._workers.append(channel.receive())
        channel.waitclose()


def pytest_configure(config: pytest.Config) -> None:
    """Handle the signals of a run that may start machines; under ``--pdb`` Ctrl-C is the debugger's."""
    session = sessions.of(config)
    by_hand = config.getoption("usepdb", False) or config.getoption("trace", False)
    main = threading.current_thread() is threading.main_thread()
    if session.engaged and main and not by_hand:
        signals = _Signals(session)
        signals.install()
        config.pluginmanager.register(signals, "harness-signals")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the signals back, after all machines have ended."""
    if (signals := config.pluginmanager.get_plugin("harness-signals")) is not None:
        signals.restore()
