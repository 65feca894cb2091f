"""The machines of a running test, for a person: a socket, ``--live`` and ``--pause-on-failure``.

The socket is made with the first machine of a process and ends with the run. A pause is in the report of
the phase that failed, behind the bundle: the machines run, no step and no wait of the test does. So no
deadline passes in it, and no watchdog watches. What limits the run from outside, such as the time limit
of a job or pytest-timeout, goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.console.outbox import Signal
    from harness.live.server import Server
    from harness.machine import Machine


class _Live:
    """What a process shows of its machines.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session = sessions.of(config)
        self._server: Server | None = None
        self._refused = ""
        self._begun = False
        self._session.watchers.append(self.adopt)

    def adopt(self, machine: Machine[Any]) -> None:
        """Let a machine be reached, and mirror its console with ``--live``."""
        if not self._begun:
            self._begun = True
            self._begin()
        if self._server is not None:
            self._server.add(machine)
        if self._config.option.live:
            from harness.live import mirror

            mirror.start(machine, self._print)

    def _print(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # the run has closed its output
            self._session.say(line)

    def _begin(self) -> None:
        from harness.errors import HarnessError
        from harness.live.server import Server

        try:
            self._server = Server(self._session.run.path.name, self._session.worker)
        except (OSError, HarnessError) as error:
            # A run on a host without such a folder goes on as it did without one.
            self._refused = str(error)

    def close(self) -> None:
        """Remove the socket."""
        if self._server is not None:
            self._server.close()

    # --- pauses -------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """Pause behind everything that makes the report of a failure."""
        report: pytest.TestReport = yield  # type: ignore[assignment]
        if (
            self._config.option.pause_on_failure
            and report.failed
            and call.when != "teardown"
            and call.excinfo is not None
        ):
            self._pause(item, str(call.excinfo.value).partition("\n")[0])
        return report  # type: ignore[return-value]

    def _pause(self, item: pytest.Item, error: str) -> None:
        if self._server is None:
            if self._refused:
                self._session.say(f"no pause: nobody can reach the machines: {self._refused}")
            return  # no machine has been started
        machines = self._server.machines()
        # The standard input of a worker is no person's.
        terminal = not self._session.worker and _terminal(self._config)
        if not machines:
            self._session.say(f"no pause after {item.nodeid}: none of its machines runs any more")
            return
        from harness.console.outbox import Signal
        from harness.live.mirror import printable

        signal = Signal()
        say = self._session.say
        run = self._session.run.path.name
        if self._session.worker:
            run += f"/{self._session.worker}"
        error = printable(error)
        say(f"paused: {item.nodeid} failed: {error}")
        names = [machine.name for machine in machines]
        for machine in machines:
            name = f"{run}/{machine.name}" if names.count(machine.name) == 1 else machine.pid
            say(f"  harness attach {name}    (or ssh, screenshot)")
        enter = "Enter or " if terminal else ""
        say(f"  {enter}'harness continue {run}' ends its machines and goes on")
        try:
            with self._server.paused(item.nodeid, error, signal):
                _wait(self._config, signal, terminal=terminal)
        finally:
            signal.close()


@contextlib.contextmanager
def _own_input(config: pytest.Config) -> Iterator[None]:
    """Have the standard input of the process in the block, not pytest's."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    capture.suspend(in_=True)
    try:
        yield
    finally:
        capture.resume()


def _terminal(config: pytest.Config) -> bool:
    with _own_input(config):
        return os.isatty(0)


def _wait(config: pytest.Config, signal: Signal, *, terminal: bool) -> None:
    """Wait for a request to continue, or for Enter; Ctrl-C ends the run as ever."""
    poller = select.poll()
    poller.register(signal, select.POLLIN)
    with _own_input(config) if terminal else contextlib.nullcontext():
        if terminal:
            poller.register(0, select.POLLIN)
        while True:
            for descriptor, event in poller.poll():
                if descriptor != 0:
                    return
                if event & select.POLLIN and os.read(0, 4096):
                    return
                poller.unregister(0)  # the terminal has gone: another one can still continue


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a person who looks on."""
    group = parser.getgroup("harness")
    group.addoption(
        "--live",
        action="store_true",
        help="print the consoles of all machines line by line, behind their names",
    )
    group.addoption(
        "--pause-on-failure",
        action="store_true",
        help="pause after a failed test with its machines alive, until Enter or 'harness continue'",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Watch the machines of the run."""
    config.pluginmanager.register(_Live(config), "harness-live")


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the socket before the labs end."""
    if (live := config.pluginmanager.get_plugin("harness-live")) is not None:
        live.close()
