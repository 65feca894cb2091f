"""The timeline of a test: nested steps with their times, written to disk as they happen.

A step is written when it begins and again when it ends, so that a killed run still shows its last
step. ``timeline.json`` holds all steps, in the order in which they began. Beside them are the
findings: what the kernels of the machines complained of meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, verdict_of


@dataclass(slots=True)
class Step:
    """One step.

    Attributes:
        name: The predicate of a sentence: ``boot to login``.
        machine: The name of the machine, or empty.
        depth: The number of steps around this one.
        start: Seconds since the timeline began.
        seconds: The duration; ``None`` while the step runs.
        outcome: ``running``, ``passed`` or a verdict.
        error: The first line of the error that ended the step.
        data: Further data about the step; JSON, other values as text.
    """

    name: str
    machine: str
    depth: int
    start: float
    seconds: float | None = None
    outcome: str = "running"
    error: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Finding:
    """Something that a machine's kernel said of itself; it ends no wait and fails no test.

    Attributes:
        kind: Its kind, such as ``rcu-stall``: a name of :mod:`harness.console.complaints`.
        what: The kind in words: ``RCU stall``.
        machine: The name of the machine.
        text: The first line of its kind.
        start: Seconds from the beginning of the timeline to the first.
        last: Seconds from the beginning of the timeline to the last.
        count: How often the kernel said it.
    """

    kind: str
    what: str
    machine: str
    text: str
    start: float
    last: float
    count: int = 1

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.what} at {self.start:.1f} s"
        return f"{self.what} {self.count} times, {self.start:.1f} to {self.last:.1f} s"


class Timeline:
    """The steps of one test.

    Args:
        path: The file, ``timeline.json``; ``None`` keeps the steps in memory.
        title: The title, usually the test's node id.
        listener: Called with each step when it begins and when it ends.
        host: Returns a note on how the host was since a moment of the monotonic clock; may be empty.
            A step that ends has it as ``host`` in its data.
    """

    def __init__(
        self,
        path: Path | None = None,
        title: str = "",
        listener: Callable[[Step], None] | None = None,
        host: Callable[[float], str] | None = None,
    ) -> None:
        self.path = path
        self.title = title
        self.steps: list[Step] = []
        self.findings: list[Finding] = []
        self._listener = listener
        self._host = host
        self._lock = threading.Lock()
        self._depth = threading.local()
        self._open: list[Step] = []
        self._ended: dict[int, str] = {}
        """The JSON of each step that has ended, by its place among the steps: it changes no more."""
        self._zero = time.monotonic()
        self._began = time.time()

    @contextlib.contextmanager
    def step(self, name: str, *, machine: str = "", **data: Any) -> Iterator[Step]:
        """Record the block as one step; an exception determines its outcome."""
        depth = getattr(self._depth, "value", 0)
        step = Step(name, machine, depth, round(self._now(), 4), data=data)
        with self._lock:
            self.steps.append(step)
            self._open.append(step)
        self._changed(step)
        self._depth.value = depth + 1
        try:
            yield step
        except BaseException as error:
            self._fail(step, error)
            raise
        else:
            step.outcome = "passed"
        finally:
            self._depth.value = depth
            self._close(step)
            seconds = round(self._now() - step.start, 4)
            if self._host is not None and (note := self._host(self._zero + step.start)):
                step.data["host"] = note
            # Last: from here on the step is complete, and another thread may write it down.
            step.seconds = seconds
            self._changed(step)

    @contextlib.contextmanager
    def waiting(self, name: str, *, machine: str, limit: float) -> Iterator[None]:
        """Show the block as a step while it lasts; it is recorded if an error ends it.

        Args:
            name: What is waited for.
            machine: The name of the machine.
            limit: The seconds until the deadline.
        """
        depth = getattr(self._depth, "value", 0)
        step = Step(name, machine, depth, round(self._now(), 4), data={"limit": limit})
        listener = self._listener or (lambda step: None)
        with self._lock:
            self._open.append(step)
        listener(step)
        try:
            yield
        except BaseException as error:
            self._close(step)
            step.seconds = round(self._now() - step.start, 4)
            if isinstance(error, GeneratorExit):
                listener(step)  # its caller needs no more of what it yields
                raise
            self._fail(step, error)
            with self._lock:
                self.steps.append(step)
            self._changed(step)
            raise
        else:
            self._close(step)
            step.seconds = round(self._now() - step.start, 4)
            listener(step)

    def _close(self, step: Step) -> None:
        with self._lock:
            # By identity: two threads may have equal steps.
            self._open = [other for other in self._open if other is not step]

    @staticmethod
    def _fail(step: Step, error: BaseException) -> None:
        step.outcome = verdict_of(error).value
        message = error.what if isinstance(error, HarnessError) else str(error)
        step.error = (message or type(error).__name__).splitlines()[0]

    def note(self, name: str, *, machine: str = "", **data: Any) -> None:
        """Record an event that takes no time."""
        with self.step(name, machine=machine, **data):
            pass

    def find(self, kind: str, what: str, machine: str, text: str) -> Finding:
        """Record a finding; one of the same kind and machine is counted instead.

        A guest may complain a million times: the file is written at the first of a kind, and with
        the next step. The later ones cost an addition.
        """
        now = round(self._now(), 4)
        with self._lock:
            for finding in self.findings:
                if finding.kind == kind and finding.machine == machine:
                    finding.count += 1
                    finding.last = now
                    return finding
            finding = Finding(kind, what, machine, text, now, now)
            self.findings.append(finding)
        self._write()
        return finding

    def running(self) -> Step | None:
        """Return the innermost step that has not ended."""
        with self._lock:
            return next((step for step in reversed(self.steps) if step.seconds is None), None)

    def doing(self, machine: str) -> tuple[Step, float] | None:
        """Return what a machine does now, waits included, and for how many seconds.

        Steps of no machine stand in where it has none of its own.
        """
        with self._lock:
            steps = list(self._open)
        for owner in (machine, ""):
            for step in reversed(steps):
                if step.machine == owner:
                    return step, self._now() - step.start
        return None

    def _now(self) -> float:
        return time.monotonic() - self._zero

    def _changed(self, step: Step) -> None:
        self._write()
        if self._listener is not None:
            self._listener(step)

    def _write(self) -> None:
        if self.path is not None:
            with self._lock:
                content = self._json().encode("utf-8", "surrogateescape")
                # Write, then rename: neither a reader nor a killed run leaves half a file.
                part = self.path.with_suffix(".part")
                # A full disk must not replace the error of the step itself. The console's log, which
                # is the important evidence, reports a full disk.
                with contextlib.suppress(OSError):
                    part.write_bytes(content)
                    part.replace(self.path)

    def _json(self) -> str:
        """Return the whole record; the lock is held.

        It is written twice for each step, so a step that has ended is encoded only once.
        """
        texts = []
        for place, step in enumerate(self.steps):
            if (text := self._ended.get(place)) is None:
                text = _indented(asdict(step))
                if step.seconds is not None:
                    self._ended[place] = text
            texts.append(text)
        findings = [_indented(asdict(finding)) for finding in self.findings]
        title, began = json.dumps(self.title), json.dumps(self._began)
        return (
            f'{{\n "title": {title},\n "began": {began},\n'
            f' "steps": {_array(texts)},\n "findings": {_array(findings)}\n}}'
        )


def _indented(content: dict[str, Any]) -> str:
    """Return the JSON of an element of an array of the record."""
    return json.dumps(content, indent=1, default=str).replace("\n", "\n  ")


def _array(texts: list[str]) -> str:
    return "[\n  " + ",\n  ".join(texts) + "\n ]" if texts else "[]"
