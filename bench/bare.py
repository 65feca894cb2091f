"""A pytest plugin that leaves no evidence: ``-p bench.bare`` replaces what writes it.

It is the bare side of ``bench/evidence.py``. It switches off:

- ``timeline.json``; the steps themselves stay in memory, since waits and failures name them
- the console's log, whose place a buffer in memory takes (commands read their output from it), and its
  recording
- the logs of QMP and SSH, ``machine.json``, ``qemu.sh``
- the sampler of host pressure, and the notes that it makes on steps
- the socket for ``harness ps`` and its kin
- ``junit.xml``, ``results.json`` with the facts of the run, the report, the bundles and their sweep

These stay on: the watchers of the console, since they end waits; the folder of a test, which holds its
disks; QEMU's own ``qemu.stderr``; ``origin.json`` of a fork; pytest's reports.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from harness.console import console as consoles
from harness.console import stream
from harness.evidence.results import Results
from harness.evidence.timeline import Timeline
from harness.host.pressure import Pressure
from harness.machine import start
from harness.pytest_plugin import bundles, live, verdicts
from harness.qemu import qmp
from harness.ssh.session import Ssh


def _nothing(*args: Any, **named: Any) -> None:
    del args, named


class _NoCast:
    """Stands for :class:`harness.console.cast.CastWriter`."""

    error = None
    __init__ = feed = due = flush = close = _nothing


class _InMemory(stream.Stream):
    """A console whose log is a buffer."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._held = bytearray()
        super().__init__(*args, **named)

    def read(self, start: int, end: int) -> bytes:
        return bytes(self._held[start:end])

    def _write_log(self, chunk: memoryview) -> None:
        self._held += chunk


@contextlib.contextmanager
def _unwatched(*args: Any, **named: Any) -> Any:
    del args, named
    yield


def _replace(owner: Any, **replacements: Any) -> None:
    for name, value in replacements.items():
        if not hasattr(owner, name):
            raise AttributeError(f"{owner} has no {name} any more: the bare side would be none")
        setattr(owner, name, value)


def _blind(init: Any) -> Any:
    def begin(self: Timeline, path: Path | None = None, *args: Any, **named: Any) -> None:
        del path
        init(self, None, *args, **named)
        self._host = None

    return begin


_replace(Timeline, __init__=_blind(Timeline.__init__))
_replace(Pressure, watching=_unwatched)
_replace(stream, CastWriter=_NoCast)
_replace(consoles, Stream=_InMemory)
_replace(qmp._LoggedClient, _write=_nothing)
_replace(Ssh, _write_log=_nothing)
_replace(start, record_machine=_nothing)
_replace(live._Live, adopt=_nothing)
_replace(verdicts, _begin_junit=_nothing, _facts=lambda session: {}, _write_report=_nothing)
_replace(Results, write=_nothing)
_replace(bundles, _trim=_nothing)
