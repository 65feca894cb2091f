"""A machine's RAM and device state as one stream of QEMU's, for a file that leaves this host.

The stream is that of an ordinary migration (``docs/devel/migration/main`` of QEMU): pages of zeros take
nine bytes, and nothing else is left out, wherever the RAM lies. So every machine that runs can be saved
so, a fork with its private pages included, and also one that was paused or whose kernel has panicked. A
saved state is another thing: its RAM is a file that forks map.
"""

from __future__ import annotations

import os
import select
import socket
import tempfile
from pathlib import Path
from typing import Final

from harness.deadline import Deadline
from harness.errors import QemuExitedError, SnapshotError, WaitTimeoutError
from harness.qemu.qmp import Qmp

_PIECE: Final = 1 << 20


def write(qmp: Qmp, pid: int, target: Path, *, limit: Deadline, most: int) -> int:
    """Write the RAM and device state of a machine to a file; return its bytes.

    The machine is paused afterwards. It may have failed: the failure of its scope ends nothing here.

    Args:
        qmp: Its monitor.
        pid: Its QEMU.
        target: The file, which does not exist.
        limit: When to give up.
        most: Bytes that the file may have.

    Raises:
        SnapshotError: A device forbids it, or the file would be larger.
        QemuExitedError: QEMU ended meanwhile.
        QmpError: QEMU refused.
        WaitTimeoutError: The deadline passed.
        OSError: The file cannot be written.
    """
    qmp.execute("stop", deadline=limit)
    blocked = qmp.execute("query-migrate", deadline=limit).get("blocked-reasons", [])
    if blocked:
        raise SnapshotError(f"machine {qmp.name} cannot be saved: {'; '.join(blocked)}")
    # An earlier save may have set it: RAM in a shared file would not be in the stream.
    capabilities = [{"capability": "x-ignore-shared", "state": False}]
    qmp.execute("migrate-set-capabilities", {"capabilities": capabilities}, deadline=limit)
    qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40}, deadline=limit)
    # Not below the target: a socket's path has at most 107 bytes (unix(7)).
    with (
        tempfile.TemporaryDirectory(prefix="harness-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder, "stream.sock")
        listener.bind(str(path))
        listener.listen(1)
        qemu = os.pidfd_open(pid)
        try:
            qmp.execute("migrate", {"uri": f"unix:{path}"}, deadline=limit)
            _wait(listener, qemu, limit)
            with listener.accept()[0] as stream, target.open("xb") as file:
                size = _receive(stream, file.fileno(), limit, most)
        finally:
            os.close(qemu)
    status = qmp.execute("query-migrate", deadline=limit)
    if status.get("status") != "completed":
        why = status.get("error-desc") or status.get("status")
        raise SnapshotError(f"machine {qmp.name} cannot be saved: {why}")
    return size


def _wait(listener: socket.socket, qemu: int, limit: Deadline) -> None:
    ready = _ready([listener.fileno(), qemu], limit)
    if listener.fileno() in ready:
        return
    if ready:
        raise QemuExitedError("QEMU ended while its machine was saved")
    raise WaitTimeoutError("QEMU to begin its migration stream", limit)


def _ready(descriptors: list[int], limit: Deadline) -> list[int]:
    """Wait until some can be read and return them; none if the deadline passed."""
    return limit.wait(lambda seconds: select.select(descriptors, [], [], seconds)[0])


def _receive(stream: socket.socket, target: int, limit: Deadline, most: int) -> int:
    buffer = memoryview(bytearray(_PIECE))
    size = 0
    while True:
        if not _ready([stream.fileno()], limit):
            raise WaitTimeoutError("QEMU's migration stream", limit)
        count = stream.recv_into(buffer)
        if not count:
            return size
        size += count
        if size > most:
            raise SnapshotError(f"its RAM and devices are larger than {most} bytes")
        written = 0
        while written < count:
            written += os.write(target, buffer[written:count])
