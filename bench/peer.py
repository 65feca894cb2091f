"""labgrid (PyPI), with its own drivers, on the console that the other sides use.

``labgrid-qemu`` is its QEMUDriver, ``labgrid-serial`` its SerialDriver (pyserial); on top of each
its ShellDriver. Reading, writing, matching and running commands are labgrid's code, unchanged. One
thing is replaced: QEMUDriver starts its own QEMU, and here takes the wire of the running one, so that
all sides have the same guest. SerialDriver needs a terminal device: it gets a pty, and a thread of
another process carries the bytes between wire and pty.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from bench import side
from bench.guest import PASSWORD, PROMPT, USER
from harness.console.wire import Wire


def version() -> str:
    """Return labgrid's version; empty if it is not installed."""
    try:
        return metadata.version("labgrid")
    except metadata.PackageNotFoundError:
        return ""


NOT_INSTALLED = "labgrid is not installed; './run bench' installs it"


def labgrid_side(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task with labgrid."""
    from labgrid import Target
    from labgrid.driver import QEMUDriver, SerialDriver, ShellDriver
    from labgrid.resource import RawSerialPort

    target = Target("bench")
    if task["side"] == "labgrid-qemu":
        wire = side.wire_of(task)
        wire.setblocking(False)  # as QEMUDriver.on() does

        class OnWire(QEMUDriver):  # type: ignore[misc]
            def on_activate(self) -> None:
                self._clientsocket: Wire | None = wire
                self.status = 1

            def on_deactivate(self) -> None:
                self._clientsocket = None

        console = OnWire(target, "console", qemu_bin="", machine="", cpu="", memory="")
    else:
        RawSerialPort(target, "port", port=task["tty"])
        console = SerialDriver(target, "console")
    shell = ShellDriver(
        target,
        "shell",
        prompt=PROMPT,
        login_prompt="login: ",
        username=USER,
        password=PASSWORD,
    )
    if task["task"] == "commands":
        target.activate(shell)
        samples = []
        for _ in range(task["count"]):
            started = time.perf_counter()
            output, _, status = shell.run("echo hello")
            samples.append(time.perf_counter() - started)
            assert (output, status) == (["hello"], 0)
        return {"samples": samples}
    target.activate(console)
    if task["task"] == "panic":
        return {"seconds": _wait_in_vain(console, task)}
    flood, start = side.begin(task, console.write)
    start()
    console.expect(flood.begin.decode(), timeout=60)
    cpu = time.process_time()
    started = time.perf_counter()
    _, before, _, _ = console.expect(flood.end.decode(), timeout=task["seconds"])
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    side.finish(task, lambda: console.expect(PROMPT, timeout=60))
    return {
        "seconds": seconds,
        "cpu": cpu,
        "length": len(before),
        "sha256": hashlib.sha256(before).hexdigest(),
    }


def _wait_in_vain(console: Any, task: Mapping[str, Any]) -> float:
    """Return how long a wait lasts on a guest that panics."""
    from pexpect import TIMEOUT

    console.sendline(task["command"])
    started = time.perf_counter()
    try:
        console.expect("never printed", timeout=task["seconds"])
    except TIMEOUT:
        return time.perf_counter() - started
    raise RuntimeError("labgrid matched a text that the guest never printed")
