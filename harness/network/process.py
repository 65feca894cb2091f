"""The process of a segment: moves frames between the sockets of machines, and takes orders.

A process of its own keeps the network as fast as it is, however busy the test is. Harness starts it with
one end of a socket pair, over which orders and answers pass as JSON, one a line; descriptors of ports
come along (``SCM_RIGHTS``, ``unix(7)``). It listens nowhere and creates no file but a capture. It ends
when that socket or Harness does, ``kill -9`` included.

Each machine is behind a socket pair of type ``SOCK_SEQPACKET``: QEMU's netdev ``dgram`` takes any
descriptor that keeps the borders of messages (``net/dgram.c``, ``net_dgram_fd_init``), and this type,
unlike ``SOCK_DGRAM``, hangs up when the other end is gone. A port from which nobody reads makes its
sender wait in the guest: QEMU keeps the frame when ``send`` returns ``EAGAIN`` (``net_dgram_receive``).
So a machine that floods gets its share of each round, and no more.
"""

from __future__ import annotations

import array
import base64
import contextlib
import fcntl
import gc
import json
import os
import select
import socket
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from harness.network.addresses import Addresses
from harness.network.impairment import Flapping, Impairment
from harness.network.pcapng import Capture
from harness.network.switch import LARGEST, Port, Switch
from harness.network.vlan import Vlan
from harness.network.wire import Link

SETTLE: Final = 0.1
"""Seconds in which machines take what is in their sockets, when the segment is paused."""

ROUND: Final = 32
"""Frames that a port is read for before the others have their turn."""


def command(control: int) -> tuple[str, ...]:
    """Return the command of this program.

    Args:
        control: The descriptor of the socket for orders.
    """
    # -I -S: the environment does not influence the imports, and the program starts fast.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from harness.network import process;"
        " process.main(int(sys.argv[2]), int(sys.argv[3]))"
    )
    root = str(Path(__file__).resolve().parents[2])
    return (sys.executable, "-I", "-S", "-c", code, root, str(control), str(os.getpid()))


class _Socket:
    """The socket to the machine of a port."""

    def __init__(self, server: _Server, port: Port, end: socket.socket) -> None:
        self.port = port
        self.socket = end
        self.full = False
        self._server = server

    def put(self, frame: bytes) -> bool:
        """Hand a frame to the machine; return whether it took it."""
        if self._server.paused:
            return False
        try:
            self.socket.send(frame)
        except BlockingIOError:
            if not self.full:
                self.full = True
                self._server.watch(self)
            return False
        except OSError:
            pass  # The machine has gone; that its socket hangs up is on its way.
        return True


class _Server:
    """The switch and its sockets.

    Args:
        control: The socket for orders.
        owner: The process id of Harness.
    """

    def __init__(self, control: socket.socket, owner: int) -> None:
        self.paused = False
        self._control = control
        self._owner = os.pidfd_open(owner)
        self._line = b""
        self._descriptors: list[int] = []
        self._switch = Switch(0)
        self._capture: Capture | None = None
        self._capture_error = ""
        self._sockets: dict[int, _Socket] = {}
        self._behind = 0.0
        self._paused_at = 0.0
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._epoll.register(self._owner, select.EPOLLIN)

    def now(self) -> float:
        """Return the time of the segment, which stands still while it is paused."""
        return (self._paused_at if self.paused else time.monotonic()) - self._behind

    def watch(self, end: _Socket) -> None:
        """Watch a socket for what matters now."""
        events = 0
        if not self.paused:
            events = select.EPOLLIN | (select.EPOLLOUT if end.full else 0)
        self._epoll.modify(end.socket.fileno(), events)

    def run(self) -> None:
        """Serve until Harness is gone."""
        switch = self._switch
        while True:
            for descriptor, events in self._wait():
                end = self._sockets.get(descriptor)
                if end is not None:
                    if events & select.EPOLLIN:
                        self._read(end, ROUND)
                    if events & select.EPOLLOUT:
                        self._write(end)
                    if events & (select.EPOLLHUP | select.EPOLLERR):
                        self._hang_up(end)
                elif descriptor == self._control.fileno():
                    if not self._take_orders():
                        return
                    switch = self._switch
                elif descriptor == self._owner:
                    return
            if switch.schedule and not self.paused:
                switch.run(self.now())

    def _wait(self) -> list[tuple[int, int]]:
        if self._capture is not None:
            with self._capturing():
                self._capture.flush()
        due = None if self.paused else self._switch.schedule.next_due()
        if due is None:
            return self._epoll.poll()
        # Waits of epoll_wait(2) are whole milliseconds; those of select(2) are microseconds.
        wait = max(0.0, due - self.now())
        if wait:
            select.select([self._epoll.fileno()], [], [], wait)
        return self._epoll.poll(0)

    def _read(self, end: _Socket, count: int) -> None:
        receive, name, switch = end.socket.recv, end.port.name, self._switch
        now = self.now()
        try:
            for _ in range(count):
                frame = receive(LARGEST + 1)
                if not frame:
                    return  # An empty message of the guest's; or the end, which epoll tells apart.
                switch.receive(name, frame, now)
        except BlockingIOError:
            pass
        except OSError:
            pass  # As at the end.

    def _write(self, end: _Socket) -> None:
        end.full = False
        end.port.flush()
        if not end.full:
            self.watch(end)

    def _hang_up(self, end: _Socket) -> None:
        # What the machine sent before it went is still in the socket.
        if not self.paused:
            self._read(end, sys.maxsize)
        self._remove(end)
        self._say({"event": "down", "port": end.port.name})

    def _remove(self, end: _Socket) -> None:
        descriptor = end.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._sockets[descriptor]
        end.socket.close()
        self._switch.take_down(end.port)

    # --- orders ---------------------------------------------------------------------------------------

    def _take_orders(self) -> bool:
        """Carry out the orders that have come; return whether Harness is still there."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 20, 16)
        except OSError:
            return False
        if not data:
            return False
        self._descriptors += descriptors
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            try:
                result = getattr(self, f"_do_{order.pop('do')}")(**order)
            except Exception as error:
                # Harness checks what it orders, so this is a fault; the segment lives on.
                self._say({"error": f"{type(error).__name__}: {error}"})
            else:
                self._say({"result": result})
        return True

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # Harness has gone; epoll says so next.
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _do_begin(
        self,
        seed: int,
        capture: str,
        limit: int,
        state: dict[str, Any] | None,
        frames: str,
        addresses: dict[str, Any] | None,
    ) -> None:
        tap = None
        if capture:
            self._capture = Capture(Path(capture), limit)
            tap = self._tap
        if state is None:
            self._switch = Switch(seed, tap)
        else:
            self._switch = Switch.load(state, base64.b64decode(frames), self.now(), tap)
            self._do_pause()
        if addresses is not None:
            self._switch.add_station(Addresses.load(addresses))

    def _tap(self, port: str, inbound: bool, frame: bytes, comment: str) -> None:
        if self._capture is not None:
            with self._capturing():
                self._capture.write(port, inbound, frame, comment)

    @contextlib.contextmanager
    def _capturing(self) -> Any:
        """End the capture, not the segment, when the disk is full."""
        try:
            yield
        except OSError as error:
            self._capture, self._capture_error = None, str(error)

    def _do_add_port(self, port: str, vlan: dict[str, Any]) -> None:
        known = self._switch.ports.get(port)
        if known is None:
            self._switch.add_port(port, Vlan.load(vlan))
        else:
            known.vlan = Vlan.load(vlan)

    def _do_attach(self, port: str) -> bool:
        """Connect a machine to a port; return whether the port was free."""
        end = socket.socket(fileno=self._descriptors.pop(0))
        known = self._switch.ports.get(port)
        if known is not None and known.outlet is not None:
            for old in [old for old in self._sockets.values() if old.port is known]:
                if not _hung_up(old.socket):
                    end.close()
                    return False
                self._hang_up(old)
        if known is None:
            known = self._switch.add_port(port, Vlan())
        end.setblocking(False)
        connected = _Socket(self, known, end)
        self._sockets[end.fileno()] = connected
        self._epoll.register(end.fileno(), 0)
        known.outlet = connected
        self.watch(connected)
        known.flush()
        return True

    def _do_impair(self, links: list[list[str | None]], impairment: dict[str, Any]) -> None:
        for link in _links(links):
            self._switch.impair(link, Impairment.load(impairment))

    def _do_cut(self, links: list[list[str | None]], flapping: list[float] | None) -> int:
        times = None if flapping is None else Flapping(*flapping)
        return self._switch.cut(_links(links), times, self.now())

    def _do_heal(self, fault: int | None) -> None:
        self._switch.heal(fault)

    def _do_counters(self) -> dict[str, Any]:
        switch = self._switch
        # A machine may have gone whose socket has not had its turn.
        for end in [end for end in self._sockets.values() if _hung_up(end.socket)]:
            self._hang_up(end)
        return {
            "ports": {name: asdict(port.counters) for name, port in switch.ports.items()},
            "up": [name for name, port in switch.ports.items() if port.outlet],
            "links": [[*link, asdict(wire.counters)] for link, wire in switch.wires.items()],
            "capture_error": self._capture_error,
        }

    def _do_pause(self) -> bool:
        """Stop; return whether the segment moved before."""
        if self.paused:
            return False
        self._paused_at = time.monotonic()
        self.paused = True
        for end in self._sockets.values():
            self.watch(end)
        self._settle()
        return True

    def _settle(self) -> None:
        """Let the machines take what is in their sockets, so that it is saved with them.

        Nothing tells that a socket is empty, and a machine that is stopped takes nothing.
        """
        limit = time.monotonic() + SETTLE
        while any(_untaken(end.socket) for end in self._sockets.values()):
            if time.monotonic() >= limit:
                return
            select.select([], [], [], 0.001)

    def _do_resume(self) -> None:
        if self.paused:
            self._behind += time.monotonic() - self._paused_at
            self.paused = False
            for end in self._sockets.values():
                end.full = False
                end.port.flush()
                self.watch(end)

    def _do_save(self) -> dict[str, Any]:
        """Return the state of the paused segment, with what is still in its sockets."""
        for end in self._sockets.values():
            self._read(end, sys.maxsize)
        state, frames = self._switch.dump(self.now())
        return {"state": state, "frames": base64.b64encode(frames).decode()}


def _links(links: Sequence[Sequence[str | None]]) -> list[Link]:
    return [(source, destination) for source, destination in links]


def _untaken(end: socket.socket) -> int:
    """Return the bytes that the other end has not read yet, with the kernel's overhead."""
    size = array.array("i", [0])
    # unix_ioctl() in Linux' net/unix/af_unix.c: the memory of what was sent and is still held.
    fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, size)
    return size[0]


def _hung_up(end: socket.socket) -> bool:
    poll = select.poll()
    poll.register(end.fileno(), 0)
    return bool(poll.poll(0))


def main(control: int, owner: int) -> None:
    """Serve a segment until Harness is gone.

    Args:
        control: The descriptor of the socket for orders.
        owner: The process id of Harness.
    """
    with socket.socket(fileno=control) as orders:
        try:
            server = _Server(orders, owner)
        except ProcessLookupError:
            return  # It is gone already.
        gc.collect()
        gc.freeze()
        server.run()
