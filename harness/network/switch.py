"""The switch of a segment: learns where addresses are, and forwards frames along wires.

It follows IEEE 802.1Q-2018: frames are forwarded by address and VLAN (8.8), addresses are learned per
VLAN (8.8.1) and forgotten after 300 seconds (table 8-6), and frames to the reserved addresses
01-80-C2-00-00-00 to -0F stay where they are (8.6.3, table 8-1). There is no spanning tree.

The switch has no sockets and no clock: it is called with frames and the time. A port is anything that
takes a frame now or refuses it. Each port has a queue for each port that sends to it, and serves these
in turn, so that one that floods loses its own frames and no others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from harness.network import station
from harness.network.addresses import Addresses
from harness.network.impairment import Flapping, Impairment
from harness.network.vlan import TPID, Vlan
from harness.network.wire import HEADER, Link, Schedule, Wire

LARGEST: Final = 9000 + HEADER + 4
"""Bytes of the largest frame: a payload of 9000, the header, a tag. No checksum: QEMU sends none."""

QUEUE: Final = 512
"""Frames from one port that may wait until another takes them; a further one is dropped."""

AGEING: Final = 300.0
"""Seconds after which an address is forgotten (IEEE 802.1Q-2018, table 8-6)."""

ADDRESSES: Final = 1024
"""Addresses that are learned at a port at most; a guest that invents some cannot displace others'."""

_SWEEP: Final = 1.0
"""Seconds between searches for addresses to forget."""

_RESERVED: Final = b"\x01\x80\xc2\x00\x00"


@dataclass(slots=True)
class PortCounters:
    """What became of the frames of a port.

    Attributes:
        received: Frames that its machine sent.
        received_bytes: Their bytes.
        sent: Frames that its machine was handed.
        sent_bytes: Their bytes.
        overflowed: Frames to its machine that were dropped because it did not take them in time.
        absent: Frames to its machine that were dropped because it was not there.
        malformed: Frames from its machine that were too short or too long.
        wrong_vlan: Frames from its machine of a VLAN that the port does not belong to.
        unlearned: Frames from addresses beyond :data:`ADDRESSES`.
        moved: How often an address of another port appeared at this one.
    """

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    overflowed: int = 0
    absent: int = 0
    malformed: int = 0
    wrong_vlan: int = 0
    unlearned: int = 0
    moved: int = 0


class Outlet(Protocol):
    """The machine's end of a port."""

    def put(self, frame: bytes) -> bool:
        """Hand a frame to the machine; return whether it took it. If not, it is offered again."""


class Port:
    """A port of the switch.

    Args:
        name: Its name.
        vlan: Its VLANs.

    Attributes:
        outlet: The machine's end; ``None`` while no machine is there.
        station: Takes all frames instead, each with the port that it came from; ``None`` for a port of a
            machine.
        counters: What became of the frames.
    """

    __slots__ = ("_queues", "counters", "learned", "name", "outlet", "station", "vlan")

    def __init__(self, name: str, vlan: Vlan) -> None:
        self.name = name
        self.vlan = vlan
        self.outlet: Outlet | None = None
        self.station: Callable[[str, bytes], None] | None = None
        self.counters = PortCounters()
        self.learned = 0
        # In the order in which they are served.
        self._queues: dict[str, deque[bytes]] = {}

    @property
    def up(self) -> bool:
        """Whether somebody is there."""
        return self.outlet is not None or self.station is not None

    @property
    def backlog(self) -> bool:
        """Whether frames wait until the machine takes them."""
        return bool(self._queues)

    def deliver(self, source: str, frame: bytes) -> bool:
        """Hand a frame to the machine, or queue it; return whether it was dropped."""
        counters = self.counters
        if self.outlet is None:
            if self.station is None:
                counters.absent += 1
                return True
            counters.sent += 1
            counters.sent_bytes += len(frame)
            self.station(source, frame)
            return False
        if not self._queues and self.outlet.put(frame):
            counters.sent += 1
            counters.sent_bytes += len(frame)
            return False
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
        if len(queue) >= QUEUE:
            counters.overflowed += 1
            return True
        queue.append(frame)
        return False

    def flush(self) -> None:
        """Hand over frames that wait, one of each source in turn, while the machine takes them."""
        while self._queues and self.outlet is not None:
            source = next(iter(self._queues))
            queue = self._queues.pop(source)
            accepted = self.outlet.put(queue[0])
            if accepted:
                frame = queue.popleft()
                self.counters.sent += 1
                self.counters.sent_bytes += len(frame)
            if queue:
                if accepted:
                    self._queues[source] = queue  # at the end: the next source has its turn
                else:
                    self._queues = {source: queue, **self._queues}
            if not accepted:
                return

    def empty(self) -> None:
        """Drop the frames that wait."""
        self.counters.absent += sum(map(len, self._queues.values()))
        self._queues.clear()

    def waiting(self) -> list[tuple[str, bytes]]:
        """Return the frames that wait, each with its source."""
        return [(source, frame) for source, queue in self._queues.items() for frame in queue]

    def load_waiting(self, source: str, frame: bytes) -> None:
        """Queue a frame that the saved port had queued."""
        self._queues.setdefault(source, deque()).append(frame)


class _Address:
    """Where an address was last seen."""

    __slots__ = ("port", "seen")

    def __init__(self, port: Port, seen: float) -> None:
        self.port = port
        self.seen = seen


Tap = Callable[[str, bool, bytes, str], None]
"""Called with a port, whether the frame comes from its machine, the frame, and a comment on it."""


class Switch:
    """A learning switch.

    Args:
        seed: Decides all faults.
        tap: Called for each frame that arrives at a port, leaves it, or is dropped, if any.
    """

    def __init__(self, seed: int, tap: Tap | None = None) -> None:
        self.seed = seed
        self.ports: dict[str, Port] = {}
        self.wires: dict[Link, Wire] = {}
        self.schedule = Schedule()
        self._tap = tap
        self._table: dict[tuple[int, bytes], _Address] = {}
        self._now = 0.0
        self._next_sweep = 0.0
        self._faults = 0
        # Only the wires that do something: a frame looks for three.
        self._active: dict[Link, Wire] = {}

    # --- ports --------------------------------------------------------------------------------------

    def add_station(self, addresses: Addresses) -> None:
        """Add the station, which answers machines that ask for an address, a name or a prefix."""
        port = self.ports.get(station.PORT) or self.add_port(station.PORT, Vlan())
        port.station = station.Station(
            addresses,
            lambda: [name for name in self.ports if name != station.PORT],
            lambda frame: self.receive(station.PORT, frame, self._now),
        ).take

    def add_port(self, name: str, vlan: Vlan) -> Port:
        """Add a port; its machine is not there yet."""
        port = self.ports[name] = Port(name, vlan)
        return port

    def take_down(self, port: Port) -> None:
        """Note that the machine of a port has gone: what was learned and queued there goes, too."""
        port.outlet = None
        port.empty()
        self._forget(lambda address: address.port is port)

    def _forget(self, choose: Callable[[_Address], bool]) -> None:
        for key, address in [*self._table.items()]:
            if choose(address):
                address.port.learned -= 1
                del self._table[key]

    # --- links ----------------------------------------------------------------------------------------

    def wire(self, link: Link) -> Wire:
        """Return one direction of a link."""
        wire = self.wires.get(link)
        if wire is None:
            source, destination = link
            if destination is not None:
                deliver = self._deliver_to if source is None else self._pass_on_to
                target = self.ports[destination]
                wire = Wire(
                    link,
                    self.seed,
                    self.schedule,
                    lambda sender, frame: deliver(target, sender, frame),
                    self._report,
                )
            else:
                wire = Wire(link, self.seed, self.schedule, self._forward, self._report)
            self.wires[link] = wire
        return wire

    def impair(self, link: Link, impairment: Impairment) -> None:
        """Set what one direction of a link does to frames."""
        self.wire(link).impair(impairment)
        self._choose_active()

    def cut(self, links: Iterable[Link], flapping: Flapping | None, now: float) -> int:
        """Cut directions of links from now on; return the number of the fault.

        Args:
            links: The directions.
            flapping: The times at which they are cut; ``None`` for always.
            now: The time.
        """
        self._faults += 1
        for link in links:
            self.wire(link).cut(self._faults, flapping, now)
        self._choose_active()
        return self._faults

    def heal(self, fault: int | None = None) -> None:
        """Undo the cuts of a fault; without one, all cuts and all impairments."""
        for wire in self.wires.values():
            if fault is not None:
                wire.heal(fault)
                continue
            wire.heal_all()
        self._choose_active()

    def _choose_active(self) -> None:
        self._active = {link: wire for link, wire in self.wires.items() if not wire.idle}

    # --- frames -----------------------------------------------------------------------------------

    def receive(self, name: str, frame: bytes, now: float) -> None:
        """Take a frame from the machine of a port."""
        self._now = now
        port = self.ports[name]
        counters = port.counters
        counters.received += 1
        counters.received_bytes += len(frame)
        if self._tap is not None:
            self._tap(name, True, frame, "")
        if not HEADER <= len(frame) <= LARGEST:
            counters.malformed += 1
            return
        wire = self._active.get((name, None)) if self._active else None
        if wire is None:
            self._forward(name, frame)
        else:
            wire.send(name, frame, now)

    def run(self, now: float) -> None:
        """Deliver the frames whose time has come."""
        self._now = now
        for flight in self.schedule.arrivals(now):
            flight.wire.arrive(flight)

    def _forward(self, name: str, frame: bytes) -> None:
        port = self.ports[name]
        if frame[12:14] == TPID:
            if len(frame) < HEADER + 4:
                port.counters.malformed += 1
                return
            number = int.from_bytes(frame[14:16], "big") & 0xFFF
            plain, tag = frame[:12] + frame[16:], frame[12:16]
            vlan = number if number in port.vlan.tagged else None
            if number == 0:
                vlan = port.vlan.untagged
        else:
            plain, tag = frame, b""
            vlan = port.vlan.untagged
        if vlan is None:
            port.counters.wrong_vlan += 1
            return
        source, destination = frame[6:12], frame[:6]
        if not source[0] & 1:
            self._learn(port, (vlan, source))
        if not destination[0] & 1:
            address = self._table.get((vlan, destination))
            if address is not None and self._now - address.seen <= AGEING:
                if address.port is not port:
                    self._send(port, address.port, vlan, plain, tag)
                return
        elif destination.startswith(_RESERVED) and destination[5] < 16:
            return
        for other in self.ports.values():
            if other is not port and other.up:
                self._send(port, other, vlan, plain, tag)

    def _learn(self, port: Port, key: tuple[int, bytes]) -> None:
        address = self._table.get(key)
        if address is None:
            if port.learned >= ADDRESSES and self._now >= self._next_sweep:
                # At times only: a flood of invented addresses must not search the table for each.
                self._next_sweep = self._now + _SWEEP
                self._forget(lambda old: self._now - old.seen > AGEING)
            if port.learned >= ADDRESSES:
                port.counters.unlearned += 1
                return
            self._table[key] = _Address(port, self._now)
            port.learned += 1
            return
        if address.port is not port:
            port.counters.moved += 1
            address.port.learned -= 1
            port.learned += 1
            address.port = port
        address.seen = self._now

    def _send(self, port: Port, other: Port, vlan: int, plain: bytes, tag: bytes) -> None:
        """Send a frame of a VLAN from one port to another, if that belongs to the VLAN."""
        if vlan == other.vlan.untagged:
            frame = plain
        elif vlan in other.vlan.tagged:
            # The priority of a tag passes on.
            control = (int.from_bytes(tag[2:4], "big") & 0xF000 if tag else 0) | vlan
            frame = plain[:12] + TPID + control.to_bytes(2, "big") + plain[12:]
        else:
            return
        wire = self._active.get((port.name, other.name)) if self._active else None
        if wire is None:
            self._pass_on_to(other, port.name, frame)
        else:
            wire.send(port.name, frame, self._now)

    def _pass_on_to(self, port: Port, source: str, frame: bytes) -> None:
        wire = self._active.get((None, port.name)) if self._active else None
        if wire is None:
            self._deliver_to(port, source, frame)
        else:
            wire.send(source, frame, self._now)

    def _deliver_to(self, port: Port, source: str, frame: bytes) -> None:
        dropped = port.deliver(source, frame)
        if self._tap is not None:
            comment = f"dropped: the queue of {source}>{port.name} is full" if dropped else ""
            self._tap(port.name, False, frame, comment)

    def _report(self, source: str, link: str, frame: bytes, what: str) -> None:
        if self._tap is not None:
            self._tap(source, True, frame, f"{link}: {what}")

    # --- its state, for a fork ----------------------------------------------------------------------

    def dump(self, now: float) -> tuple[dict[str, Any], bytes]:
        """Return its state: plain JSON, and the frames that it names by their lengths, end to end."""
        frames: list[bytes] = []

        def keep(frame: bytes) -> int:
            frames.append(frame)
            return len(frame)

        state = {
            "seed": self.seed,
            "faults": self._faults,
            "ports": [
                {
                    "name": port.name,
                    "vlan": port.vlan.dump(),
                    "counters": asdict(port.counters),
                }
                for port in self.ports.values()
            ],
            "addresses": [
                [vlan, mac.hex(":"), address.port.name, now - address.seen]
                for (vlan, mac), address in self._table.items()
            ],
            "wires": [wire.dump(now) for wire in self.wires.values()],
            "flights": [
                [list(f.wire.link), f.source, f.due - now, f.waits, keep(f.frame)]
                for f in self.schedule.all()
            ],
            "waiting": [
                [port.name, source, keep(frame)]
                for port in self.ports.values()
                for source, frame in port.waiting()
            ],
        }
        return state, b"".join(frames)

    @classmethod
    def load(
        cls, state: dict[str, Any], frames: bytes, now: float, tap: Tap | None = None
    ) -> Switch:
        """Return a switch that continues from a state; no machine is at its ports yet."""
        switch = cls(state["seed"], tap)
        switch._faults = state["faults"]
        for saved in state["ports"]:
            port = switch.add_port(saved["name"], Vlan.load(saved["vlan"]))
            port.counters = PortCounters(**saved["counters"])
        for vlan, mac, name, age in state["addresses"]:
            port = switch.ports[name]
            port.learned += 1
            switch._table[vlan, bytes.fromhex(mac.replace(":", ""))] = _Address(port, now - age)
        for saved in state["wires"]:
            source, destination = saved["link"]
            switch.wire((source, destination)).load(saved, now)
        place = 0
        for link, source, remaining, waits, length in state["flights"]:
            frame = frames[place : place + length]
            place += length
            switch.wire((link[0], link[1])).load_frame(source, frame, now + remaining, waits=waits)
        for name, source, length in state["waiting"]:
            switch.ports[name].load_waiting(source, frames[place : place + length])
            place += length
        switch._choose_active()
        return switch
