"""A segment: an Ethernet between machines, in user space, without privileges."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from harness.deadline import SUDDEN, UNSCALED, Scale
from harness.errors import SegmentError, UnknownNameError, UsageError
from harness.jsonfile import write as write_json
from harness.network import process
from harness.network.addresses import Addresses
from harness.network.impairment import Flapping, Impairment
from harness.network.station import MAC
from harness.network.switch import PortCounters
from harness.network.vlan import Vlan
from harness.network.wire import Link as Direction
from harness.network.wire import WireCounters
from harness.scope import Scope

FORMAT: Final = 1
"""The version of a saved segment's format."""

CAPTURE_LIMIT: Final = 256 * 1024 * 1024
"""Bytes that the files of a capture have at most, by default."""

_ANSWER: Final = 60.0
"""Seconds in which the process answers; it needs milliseconds."""

_SEGMENT: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_PORT: Final = re.compile(rf"{_SEGMENT.pattern}(\.{_SEGMENT.pattern})?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_STATE: Final = "segment.json"
_FAULTS: Final = "faults.jsonl"
_FRAMES: Final = "segment.frames"


class Named(Protocol):
    """Something with a name, such as a machine."""

    @property
    def name(self) -> str:
        """Its name, which is that of its port."""


Machine = str | Named
"""A port, by its name or that of its machine."""


@dataclass(frozen=True, slots=True)
class SegmentState:
    """A segment as it was saved: addresses, faults, counters, and the frames that were on their way.

    Attributes:
        content: The state, as plain JSON.
        frames: The frames, end to end; :attr:`content` has their lengths.
    """

    content: Mapping[str, Any]
    frames: bytes

    def write(self, folder: Path) -> None:
        """Write it to a folder.

        Raises:
            OSError: A file cannot be written.
        """
        (folder / _FRAMES).write_bytes(self.frames)
        write_json(folder / _STATE, {"format": FORMAT, **self.content})

    def with_seed(self, seed: int) -> Self:
        """Return the state with another seed: another fate for each frame from here on."""
        return replace(
            self, content={**self.content, "switch": {**self.content["switch"], "seed": seed}}
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the state in a folder.

        Raises:
            SegmentError: The folder holds none that this version reads.
        """
        try:
            content = json.loads((folder / _STATE).read_bytes())
            version = content.pop("format")
            frames = (folder / _FRAMES).read_bytes()
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SegmentError(f"{folder} does not hold a segment", evidence=str(error)) from error
        if version != FORMAT:
            raise SegmentError(f"{folder / _STATE} has format {version}, not {FORMAT}")
        return cls(content, frames)


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of the frames of a segment.

    Attributes:
        ports: By the name of the port.
        links: By direction; those alone that were impaired or cut at some time.
        up: The ports that have a machine.
        capture_error: Why the capture ended; empty if it did not.
    """

    ports: Mapping[str, PortCounters]
    links: Mapping[Direction, WireCounters]
    up: frozenset[str]
    capture_error: str = ""


class Fault:
    """A fault of a segment, until it is healed; a context manager whose exit heals it."""

    def __init__(self, segment: Segment, number: int) -> None:
        self._segment = segment
        self._number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()

    def heal(self) -> None:
        """End this fault; others go on. It may have ended before."""
        self._segment._order("heal", fault=self._number)


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two machines, or between a machine and all others.

    Attributes:
        segment: The segment.
        directions: The directions that its words are about.
    """

    segment: Segment
    directions: tuple[Direction, ...]

    @property
    def forward(self) -> Link:
        """The direction from the first machine: to the second, or to all others."""
        return Link(self.segment, self.directions[:1])

    @property
    def backward(self) -> Link:
        """The direction to the first machine."""
        return Link(self.segment, self.directions[-1:])

    def impair(self, impairment: Impairment | None = None, **values: Any) -> None:
        """Set what the link does to frames from now on, in each of its directions.

        Args:
            impairment: What it does.
            **values: Or the attributes of an :class:`Impairment`; none restores the link.

        Raises:
            UsageError: A value is out of range, or unknown.
        """
        if impairment is None:
            impairment = _impairment(values)
        elif values:
            raise UsageError("an impairment, or its values by name, but not both")
        self.segment._order("impair", links=self.directions, impairment=impairment.dump())

    def cut(self) -> Fault:
        """Let no frame pass until the fault is healed."""
        return self.segment._cut(self.directions)

    def flap(self, *, up: float, down: float) -> Fault:
        """Let the link go down and come up again until the fault is healed; it begins up.

        Args:
            up: Seconds that it is up.
            down: Seconds that it is down.
        """
        return self.segment._cut(self.directions, Flapping(up, down))


def _impairment(values: Mapping[str, Any]) -> Impairment:
    known = Impairment.__dataclass_fields__
    for name in values:
        if name not in known:
            raise UnknownNameError("impairment", name, known)
    return Impairment(**values)


class Segment:
    """An Ethernet between machines; a context manager whose exit ends it.

    It runs in a process of its own, needs no privileges, and has no file but its capture, the
    messages of its process and the record of its faults. What links do to frames is decided by the
    seed and repeatable (:mod:`harness.network.impairment`). All methods are safe from any thread.

    Args:
        name: Its name, for people and for files.
        folder: The folder for ``NAME.stderr``, the capture, and ``faults.jsonl``, which gets each change
            of the links.
        seed: Decides what happens to each frame.
        capture: Whether to write ``NAME.pcapng``, with all frames of all ports.
        capture_limit: Bytes of the capture; the oldest frames go first (:mod:`harness.network.pcapng`).
        addresses: The networks whose addresses the machines get by DHCP and router advertisements, and
            whose names by DNS; ``None`` for a segment without a station.
        scope: The failure scope that fails when the process dies.
        scale: Its clock stretches the waits for the process, and knows the pressure on the host.
        state: The saved segment that this one continues; it is paused until :meth:`resume`. The seed and
            the addresses are then those of the saved one.

    Raises:
        UsageError: The name is not valid.
        SegmentError: The process does not start, or refuses the state.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        seed: int = 0,
        capture: bool = False,
        capture_limit: int = CAPTURE_LIMIT,
        addresses: Addresses | None = None,
        scope: Scope | None = None,
        state: SegmentState | None = None,
        scale: Scale = UNSCALED,
    ) -> None:
        if not _SEGMENT.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a valid segment name (at most 31 lower-case letters, digits and '-')"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UsageError(f"a seed is a whole number, not {seed!r}")
        self.name = name
        self.seed = seed if state is None else state.content["switch"]["seed"]
        self.addresses = addresses
        if state is not None:
            saved = state.content["addresses"]
            self.addresses = None if saved is None else Addresses.load(saved)
        self.capture = folder / f"{name}.pcapng" if capture else None
        self._stderr = folder / f"{name}.stderr"
        self._faults = folder / _FAULTS
        self._scope = scope
        self._scale = scale
        self._ports: dict[str, str | None] = {}
        # Held while a port is checked and added: machines of a cluster start at the same time.
        self._adding = threading.Lock()
        self._orders = threading.Lock()
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._failure: SegmentError | None = None
        self._closing = False
        self._start()
        try:
            if state is not None:
                self._ports.update(state.content["ports"])
            self._order(
                "begin",
                seed=self.seed,
                capture="" if self.capture is None else str(self.capture.absolute()),
                limit=capture_limit,
                state=None if state is None else state.content["switch"],
                frames="" if state is None else base64.b64encode(state.frames).decode(),
                addresses=None if self.addresses is None else self.addresses.dump(),
            )
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        try:
            with theirs, self._stderr.open("ab") as stderr:
                self._process = subprocess.Popen(
                    process.command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C in the terminal is for Harness, which ends this process in order.
                    start_new_session=True,
                )
        except OSError as error:
            self._control.close()
            raise SegmentError(f"segment {self.name} cannot start", evidence=str(error)) from error
        self._reader = threading.Thread(
            target=self._listen, name=f"segment {self.name}", daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- ports ----------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    @property
    def ports(self) -> tuple[str, ...]:
        """The names of its ports."""
        return tuple(self._ports)

    def add_port(self, machine: Machine, *, vlan: Vlan | None = None) -> None:
        """Add a port before its machine is there, to impair its links; or change a port's VLANs.

        Args:
            machine: The machine, or the name of its port.
            vlan: Its VLANs; VLAN 1 untagged by default.

        Raises:
            UsageError: The name is not valid.
        """
        with self._adding:
            name = self._new_port(machine)
            self._order("add_port", port=name, vlan=(vlan or Vlan()).dump())
            self._ports.setdefault(name, None)

    def attach(self, machine: Machine, *, mac: str | None = None) -> socket.socket:
        """Connect a machine to its port; return the machine's end, which QEMU's netdev ``dgram`` takes.

        The port keeps its links, faults and counters when its machine goes, and the next one of that
        name uses it again. The socket tells that a machine has gone, so the caller closes its own copy
        as soon as QEMU has one.

        Args:
            machine: The machine, or the name of its port.
            mac: Its MAC address, if known, to refuse the same one twice.

        Raises:
            UsageError: The name is not valid, or in use; or another port has that address.
        """
        with self._adding:
            name = self._new_port(machine)
            if mac is not None:
                mac = mac.lower()
                self._check_mac(name, mac)
            end = self._connect(name)
            self._ports[name] = mac or self._ports.get(name)
        return end

    def _check_mac(self, name: str, mac: str) -> None:
        """Refuse an address that is none of a machine, or that another port has."""
        if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
            raise UsageError(
                f"{mac!r} is not the MAC address of a machine", hint="52:54:00:12:34:56 is one"
            )
        if self.addresses is not None and mac == MAC.hex(":"):
            raise UsageError(f"{name} on segment {self.name} has the station's MAC address {mac}")
        for other, address in self._ports.items():
            if address == mac and other != name:
                raise UsageError(
                    f"{name} and {other} on segment {self.name} have the same MAC address {mac}",
                    hint="give their interfaces different names or MAC addresses",
                )

    def _connect(self, name: str) -> socket.socket:
        """Have the process take one end of a new socket pair; return the other one."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, contextlib.ExitStack() as undo:
            undo.enter_context(theirs)
            if not self._order("attach", port=name, descriptors=[ours.fileno()]):
                raise UsageError(
                    f"port {name} of segment {self.name} has a machine",
                    hint="end it first, or attach another name",
                )
            undo.pop_all()
        return theirs

    def address(self, machine: Machine) -> IPv4Interface:
        """Return the address of a machine on this segment, which DHCP leases to it.

        It depends on the machine's name alone, so that a configuration can contain it beforehand.

        Raises:
            UsageError: The segment has no addresses.
        """
        if self.addresses is None:
            raise UsageError(
                f"segment {self.name} has no addresses", hint="Segment(..., addresses=Addresses())"
            )
        return self.addresses.of(_port_name(machine))

    def _new_port(self, machine: Machine) -> str:
        name = _port_name(machine)
        if self.addresses is not None:
            self.addresses.check(name, self._ports)
        return name

    def _port(self, machine: Machine) -> str:
        name = machine if isinstance(machine, str) else machine.name
        if name not in self._ports:
            raise UnknownNameError("port", name, self._ports)
        return name

    # --- faults ---------------------------------------------------------------------------------------

    def link(self, first: Machine, second: Machine | None = None) -> Link:
        """Return the way between two machines; of one alone, the way between it and all others.

        Raises:
            UnknownNameError: There is no such port.
        """
        one = self._port(first)
        other = None if second is None else self._port(second)
        if one == other:
            raise UsageError(f"a link is between two machines, not {one} and itself")
        return Link(self, ((one, other), (other, one)))

    def partition(self, *groups: Machine | Iterable[Machine], one_way: bool = False) -> Fault:
        """Part groups of machines from each other until the fault is healed.

        Machines that are in no group reach all.

        Args:
            *groups: Machines, or groups of them; at least two.
            one_way: Frames from an earlier group to a later one are lost, and those back pass.

        Raises:
            UsageError: There are fewer than two groups, one is empty, or two overlap.
            UnknownNameError: There is no such port.
        """
        parts = [self._group(group) for group in groups]
        if len(parts) < 2 or not all(parts):
            raise UsageError(
                "a partition has at least two groups, and none is empty",
                hint='partition("a", ["b", "c"]) parts a from b and c',
            )
        names = [name for part in parts for name in part]
        if len(set(names)) < len(names):
            twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
            raise UsageError(f"a machine is in one group of a partition, but {twice} is in two")
        directions: list[Direction] = []
        for number, part in enumerate(parts):
            for other in parts[number + 1 :]:
                directions += [(source, target) for source in part for target in other]
                if not one_way:
                    directions += [(target, source) for source in part for target in other]
        return self._cut(directions)

    def _group(self, group: Machine | Iterable[Machine]) -> list[str]:
        if isinstance(group, str) or not isinstance(group, Iterable):
            return [self._port(group)]
        return [self._port(machine) for machine in group]

    def _cut(self, directions: Sequence[Direction], flapping: Flapping | None = None) -> Fault:
        times = None if flapping is None else [flapping.up, flapping.down]
        return Fault(self, self._order("cut", links=directions, flapping=times))

    def heal(self) -> None:
        """End all faults and impairments; frames on slow links still arrive when they would have."""
        self._order("heal", fault=None)

    def counters(self) -> Counters:
        """Return what became of the frames so far."""
        answer = self._order("counters")
        return Counters(
            {name: PortCounters(**values) for name, values in answer["ports"].items()},
            {
                (source, destination): WireCounters(**values)
                for source, destination, values in answer["links"]
            },
            frozenset(answer["up"]),
            answer["capture_error"],
        )

    # --- fork -----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop: no frame moves, and time stands still, until :meth:`resume`.

        Machines that run have then taken what was handed to them, as far as they do so within 0.1 s.
        """
        self._order("pause")

    def resume(self) -> None:
        """Go on after :meth:`pause`, or begin with the machines of a saved segment."""
        self._order("resume")

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Pause in the block; go on after it, unless the segment was paused before."""
        moved = self._order("pause")
        try:
            yield
        finally:
            if moved:
                self.resume()

    def save(self) -> SegmentState:
        """Return the state of the segment, which stays paused.

        To lose nothing, pause the segment, then the machines, then save it: a running machine takes
        what is in its socket, and what it has sent is part of the state. Frames that a stopped machine
        had not taken are lost, at most 270 for each.
        """
        self.pause()
        answer = self._order("save")
        return SegmentState(
            {
                "ports": dict(self._ports),
                "addresses": None if self.addresses is None else self.addresses.dump(),
                "switch": answer["state"],
            },
            base64.b64decode(answer["frames"]),
        )

    # --- its process ----------------------------------------------------------------------------------

    def _order(self, do: str, *, descriptors: Sequence[int] = (), **values: Any) -> Any:
        """Have the process do something, and return its answer.

        Raises:
            SegmentError: The process has ended, refuses, or does not answer.
        """
        line = json.dumps({"do": do, **values}).encode() + b"\n"
        with self._orders:
            self._check()
            deadline = self._scale.after(_ANSWER)
            with contextlib.suppress(OSError):  # It has ended, and the thread is about to say so.
                sent = socket.send_fds(self._control, [line], list(descriptors))
                self._control.sendall(line[sent:])
            # A tuple, since the answer None says that the process has ended.
            answered = deadline.wait(self._answered)
            if not answered:
                self._fail(
                    SegmentError(
                        f"segment {self.name} does not answer", pressure=deadline.pressure()
                    )
                )
                self._process.kill()
            answer = answered[0] if answered else None
            if answer is None:
                self._check()
                raise SegmentError(f"segment {self.name} is closed")
        if "error" in answer:
            raise SegmentError(f"segment {self.name} refuses {do!r}", evidence=str(answer["error"]))
        if do in ("cut", "heal", "impair"):
            self._record(do, answer["result"], values)
        return answer["result"]

    def _record(self, do: str, result: Any, values: Mapping[str, Any]) -> None:
        """Append a change of the links to the evidence, with its time in seconds of the epoch."""
        entry = {"t": time.time(), "do": do, **values}
        if do == "cut":
            entry["fault"] = result
        # A full disk is no fault of the network, and the machines' logs report it.
        with contextlib.suppress(OSError), self._faults.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _answered(self, seconds: float | None) -> tuple[Any, ...]:
        try:
            return (self._answers.get(timeout=seconds),)
        except queue.Empty:
            return ()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._closing:
            raise SegmentError(f"segment {self.name} is closed")

    def _fail(self, error: SegmentError) -> None:
        if self._failure is None:
            self._failure = error

    def _listen(self) -> None:
        """Take the answers of the process until it ends; runs in a thread of its own."""
        with contextlib.suppress(OSError), self._control.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "event" not in message:
                    self._answers.put(message)
        status = self._process.wait()
        if not self._closing:
            words = ""
            with contextlib.suppress(OSError):
                words = self._stderr.read_text(errors="replace")[-4096:].strip()
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            self._fail(
                SegmentError(
                    f"segment {self.name} has ended under its machines ({how})",
                    evidence=words or str(self._stderr),
                    pressure=self._scale.pressure(SUDDEN),
                )
            )
            if self._scope is not None and self._failure is not None:
                self._scope.fail(self._failure)
        self._answers.put(None)

    def close(self) -> None:
        """End the segment; the sockets of its machines hang up. It may have ended before."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_ANSWER)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        self._control.close()


def _port_name(machine: Machine) -> str:
    name = machine if isinstance(machine, str) else machine.name
    if not _PORT.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid port name (that of a machine, or node-1.net1 for a further"
            " interface of node-1)"
        )
    return name
