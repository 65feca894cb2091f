"""The lab: one object that boots, forks and builds machines.

::

    with Lab("micro") as lab:
        machine = lab.boot()
        machine.os.login()
        print(machine.console.run("uname -r").stdout)

A script, a Python prompt, the command line, a benchmark and a test use the same object. It holds the
catalogue, the caches of artifacts and of states, the SSH key of the run, the scheduler, the servers for
guests and the folder of evidence. Each part is made when it is first used: a lab that is only asked for
its catalogue touches nothing else.

A lab is also a failure scope (:mod:`harness.scope`). Each test gets a lab of its own by
:meth:`Lab.child`: the same parts, its own folder of evidence, timeline, machines and scope. What a child
starts ends with the child.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

from harness import profiles, seed
from harness.artifacts import Artifacts, Store
from harness.catalog import Catalog, Selection
from harness.cluster import Cluster, providers
from harness.errors import (
    QemuStartError,
    StateError,
    UsageError,
)
from harness.evidence.run import Run
from harness.evidence.timeline import Timeline
from harness.host.accel import Accel
from harness.host.scheduler import Turn
from harness.lab import lending
from harness.lab.clusters import Start, fork_cluster, start_cluster, start_together
from harness.lab.parts import Options, Parts, Point
from harness.machine import Machine, Setup, launch
from harness.machine.system import OS
from harness.network import Addresses, Segment, SegmentState
from harness.progress import Progress
from harness.scope import Scope
from harness.services import Ca, Server
from harness.spec import (
    LAN,
    Account,
    ConsoleDevice,
    Disk,
    GuestForward,
    MachineSpec,
    Nic,
    Tpm,
    with_guest_forwards,
)
from harness.ssh.key import KeyPair
from harness.states import GroupState, Lease, Snapshot, State, StateCache
from harness.states.cache import BUDGET
from harness.states.together import Together

EVIDENCE: Final = Path(".harness/runs")
"""The folder, below the working folder, that gets the evidence of each run."""

SERVICES_RECORD: Final = "services.jsonl"
"""In the run's folder: how each server of each process ran, for the report."""

_ADDRESSES: Final = Addresses()

_FORK_TRIES: Final = 3
"""How often a state is rebuilt when the cached one does not start."""

ServerT = TypeVar("ServerT", bound=Server)
ValueT = TypeVar("ValueT")


class Service(Protocol):
    """A server that a guest can reach; those of :mod:`harness.services` are some."""

    @property
    def forward(self) -> GuestForward:
        """The address at which the guest finds it."""

    @property
    def address(self) -> tuple[str, int]:
        """The address at which it listens on the host."""


class Lab:
    """Boots, forks and builds machines; a context manager that ends all it started.

    Args:
        image: The image under test, ``NAME[/VARIANT][:VERSION]``; the default or the project's only
            one if empty.
        arch: The architecture; the first that the image lists by default.
        images: Folders of images; ``images/`` of the working folder by default, if it is there.
        default_image: The image under test where none is named and there are several.
        accel: ``auto``, ``kvm`` or ``tcg``; ``auto`` takes KVM if it proves itself.
        cache: The folder of the cache; ``HARNESS_CACHE`` or ``~/.cache/harness`` by default.
        evidence: The folder that gets a folder of evidence for each run.
        keep: Whether evidence is kept of what went well, too.
        fresh: Whether :meth:`fork` does a state's steps instead of using the cache.
        timeout_scale: A factor for all deadlines of guests, besides what emulation and the host cost.
        state_budget: Bytes that cached states may take on disk.
        services: How servers run: ``auto``, ``docker`` or ``process``.
        progress: Shows what is going on; plain lines on standard error by default.
        run: The run that the lab is one of several of; who began it ends it.
        worker: The name of this lab among those of the run; empty for the only one.

    Attributes:
        scope: The failure scope of this lab's machines.

    Raises:
        UsageError: ``timeout_scale`` is not a positive number.
    """

    scope: Scope

    def __init__(
        self,
        image: str = "",
        *,
        arch: str | None = None,
        images: Sequence[Path | str] | None = None,
        default_image: str = "",
        accel: str = "auto",
        cache: Path | str | None = None,
        evidence: Path | str = EVIDENCE,
        keep: bool = False,
        fresh: bool = False,
        timeout_scale: float = 1.0,
        state_budget: int = BUDGET,
        services: str = "auto",
        progress: Progress | None = None,
        run: Run | None = None,
        worker: str = "",
    ) -> None:
        if not 0 < timeout_scale < math.inf:
            raise UsageError(f"the scale of deadlines is a number above 0, not {timeout_scale}")
        options = Options(
            image=image,
            arch=arch,
            images=None if images is None else tuple(Path(each).absolute() for each in images),
            default_image=default_image,
            accel=accel,
            cache=None if cache is None else Path(cache).absolute(),
            keep=keep,
            fresh=fresh,
            timeout_scale=timeout_scale,
            state_budget=state_budget,
            services=services,
        )
        self._parts = Parts(
            options,
            progress or Progress(sys.stderr),
            Path(evidence).absolute(),
            run,
            worker,
        )
        self._reference = ""
        self._arch = arch
        self._stack = contextlib.ExitStack()
        self._machines: list[Machine[Any]] = []
        self._folder: Path | None = None
        self._timeline: Timeline | None = None
        self._names: Counter[str] = Counter()
        self._folders: set[Path] = set()
        self._default_services: Sequence[Service] = ()
        self._building = False
        self.scope = Scope("lab", boundary=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all machines and servers and release all states; a second time does nothing."""
        with contextlib.ExitStack() as ending:
            if "run" in self._parts.__dict__ and self._parts.begun is None:
                ending.callback(self._parts.run.close)
            ending.callback(self._parts.progress.close)
            for lease in self._parts.leases.values():
                ending.callback(lease.close)
            self._parts.leases = {}
            ending.callback(self._parts.stack.close)
            ending.callback(self._stack.close)

    # --- the parts ----------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """All images that can be named: the project's, then Harness' own.

        Raises:
            CatalogError: An ``image.yaml`` is wrong; each fault begins with ``file:line``.
        """
        return self._parts.catalog

    @property
    def reference(self) -> str:
        """The name of the image under test, as :meth:`select` takes it."""
        return self._reference or self._parts.reference

    @property
    def image(self) -> Selection:
        """The image under test.

        Raises:
            UsageError: None was named and there is not just one.
            UnknownNameError: There is no such image, version, variant or architecture.
        """
        return self.catalog.resolve(self.reference, self._arch)

    @property
    def key(self) -> KeyPair:
        """The SSH key of this run; images that take it let its owner in."""
        return self._parts.key

    @property
    def run(self) -> Run:
        """The run's folder of evidence."""
        return self._parts.run

    @property
    def progress(self) -> Progress:
        """Shows a person what is going on."""
        return self._parts.progress

    @property
    def store(self) -> Store:
        """The cache of artifacts on this host."""
        return self._parts.store

    @property
    def states(self) -> StateCache:
        """The cache of states on this host."""
        return self._parts.states

    @property
    def folder(self) -> Path:
        """The folder of evidence; each machine of this lab has a folder below it."""
        with self._parts.lock:
            if self._folder is None:
                self._folder = self.run.folder("lab")
            return self._folder

    @property
    def timeline(self) -> Timeline:
        """The steps of this lab's machines, kept as ``timeline.json`` in its folder of evidence."""
        with self._parts.lock:
            if self._timeline is None:
                self._timeline = self._new_timeline(self.folder, "lab")
            return self._timeline

    def _new_timeline(self, folder: Path, title: str) -> Timeline:
        parts = self._parts
        return Timeline(folder / "timeline.json", title, parts.show, parts.pressure.words)

    @property
    def keep(self) -> bool:
        """Whether evidence is kept of what went well, too."""
        return self._parts.options.keep

    def accelerator(self, arch: str) -> Accel:
        """Return the accelerator for guests of an architecture; probed once per boot of the host."""
        return self._parts.accelerator(arch)

    def select(self, image: Selection | str | None = None, arch: str | None = None) -> Selection:
        """Return an image of the catalogue by its reference; the image under test by default.

        Args:
            image: ``NAME[/VARIANT][:VERSION]``.
            arch: The architecture; the one under test by default.

        Raises:
            UnknownNameError: The catalogue has no such image, version, variant or architecture.
        """
        if isinstance(image, Selection):
            return image
        return self.catalog.resolve(image or self.reference, arch or self._arch)

    def artifacts(
        self,
        image: Selection | str | None = None,
        *,
        version: str | None = None,
        arch: str | None = None,
    ) -> Artifacts:
        """Return the files of an image by name, built or fetched once per host.

        Args:
            image: The image; the image under test by default.
            version: Another version of it.
            arch: Another architecture.

        Raises:
            UnknownNameError: The image has no such version or architecture.
            BuildError, ChecksumError, DiskFullError, StoreError: The files cannot be had.
        """
        selection = self.select(image)
        if version is not None or arch is not None:
            selection = selection.definition.select(
                arch or selection.arch, version or selection.version, selection.variant
            )
        return self.store.artifacts(selection, say=self.progress.say)

    # --- machines -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def child(
        self,
        name: str,
        *,
        folder: Path | None = None,
    ) -> Iterator[Lab]:
        """Yield a lab with the same parts whose machines end with the block, or fail, on their own.

        A test has one. Within a test it bounds a failure: when a machine of the child fails, waits on
        the child's other machines end, and those of this lab go on.

        Args:
            name: Its name, for messages.
            folder: Its folder of evidence, with a timeline of its own; this lab's by default.
        """
        child = copy.copy(self)
        child.scope = self.scope.child(name, boundary=True)
        child._stack = contextlib.ExitStack()
        child._default_services = ()
        if folder is None:
            # Two timelines would write one file.
            child._folder, child._timeline = self.folder, self.timeline
        else:
            child._folder = folder
            child._machines = []
            child._names = Counter()
            child._folders = set()
            child._timeline = self._new_timeline(folder, name)
        try:
            with child._stack:
                yield child
        finally:
            child.scope.close()

    def with_image(self, image: str = "", arch: str | None = None) -> Lab:
        """Return this lab with another image under test, whose states :meth:`fork` starts from.

        Everything else is shared: machines of either end with this lab, and fail together.

        Args:
            image: ``NAME[/VARIANT][:VERSION]``; the image under test by default.
            arch: The architecture; the one under test by default.

        Raises:
            UnknownNameError: The catalogue has no such image, version, variant or architecture.
        """
        with self._parts.lock:
            # Made now: each of the two would make its own.
            self._folder, self._timeline = self.folder, self.timeline
        other = copy.copy(self)
        other._reference = image or self.reference
        other._arch = arch or self._arch
        _ = other.image
        return other

    def segment(
        self,
        name: str = LAN,
        *,
        addresses: Addresses | None = _ADDRESSES,
        seed: int = 0,
        capture: bool = True,
        state: SegmentState | None = None,
    ) -> Segment:
        """Start an Ethernet between machines; it ends with this lab, and its machines before it.

        Args:
            name: Its name, by which interfaces name it: ``Nic.on(name)``.
            addresses: The networks whose addresses machines get; ``None`` for no DHCP, DNS, and router.
            seed: Decides what its links do to each frame.
            capture: Whether the evidence gets its frames, as ``NAME.pcapng``.
            state: The saved segment that this one continues.

        Raises:
            UsageError: The name is not valid.
            SegmentError: Its process does not start.
        """
        folder = self.folder / self._unique(f"segment-{name}")
        folder.mkdir()
        segment = Segment(
            name,
            folder=folder,
            seed=seed,
            capture=capture,
            addresses=addresses,
            scope=self.scope,
            state=state,
            scale=self._parts.own_scale,
        )
        return self._stack.enter_context(segment)

    def boot(
        self,
        image: Selection | str | None = None,
        *,
        name: str | None = None,
        medium: bool = True,
        disks: Sequence[Disk] = (),
        seed_files: Mapping[str, str] | Path | str | None = None,
        credentials: Mapping[str, str] | None = None,
        authorize: bool = True,
        account: Account | None = None,
        nics: Sequence[Nic] = (Nic(),),
        arch: str | None = None,
        saveable: bool = False,
        services: Sequence[Service] = (),
        segments: Sequence[Segment] = (),
        cpus: int | None = None,
        memory: int | None = None,
        display: bool = False,
        cmdline: str = "",
        console: ConsoleDevice | None = None,
        tpm: bool | Tpm = False,
    ) -> Machine[OS]:
        """Start a machine that boots an image, and return it while it boots.

        Args:
            image: The image, or a reference to one; the image under test by default.
            name: The machine's name; the image's by default.
            medium: Whether the image's live medium is in the machine, and booted first.
            disks: Further disks.
            seed_files: A NoCloud seed: contents by file name, or the path of an ISO image.
            credentials: systemd credentials by name.
            authorize: Whether a credential lets the run's key in.
            account: The user who logs in; the image's own login by default.
            nics: Network interfaces.
            arch: The architecture; the one under test by default.
            saveable: Whether the machine can be saved and forked while it runs.
            services: Servers that the guest can reach, at fixed addresses, and nothing else.
            segments: The segments that its interfaces are on (:meth:`Nic.on <harness.spec.Nic.on>`).
            cpus: Virtual CPUs; the image's own number by default.
            memory: Bytes of RAM; the image's own size by default.
            display: Whether the machine has a VGA adapter.
            cmdline: Words to add to the kernel's command line; direct kernel boot only.
            console: The device of the console; the image's own by default.
            tpm: Whether the machine has a TPM 2.0; or which.

        Raises:
            UsageError: An option is wrong; says which.
            HostError: The host lacks something, or cannot carry the machine.
            StoreError: The image's files cannot be had.
        """
        selection = self.select(image, arch)
        profile = profiles.of(selection)
        name = self._unique(name or selection.name)
        handed_over = dict(profile.credentials(self.key.public)) if authorize else {}
        handed_over.update(credentials or {})
        all_disks = list(disks)
        if seed_files is not None:
            if isinstance(seed_files, (str, Path)):
                path = Path(seed_files)
            else:
                path = seed.write_nocloud(self.folder / f"{name}-seed.iso", seed_files)
            all_disks.append(seed.seed_disk(path))
        spec = profile.spec(
            selection,
            self.artifacts(selection).files,
            name=name,
            medium=medium,
            disks=all_disks,
            nics=nics,
            credentials=handed_over,
            cpus=cpus,
            memory=memory,
            display=display,
            cmdline=cmdline,
            console=console,
            tpm=tpm,
        )
        return self._launch(
            spec,
            selection,
            account,
            saveable=saveable,
            services=services,
            segments=segments,
        )

    def launch(
        self,
        spec: MachineSpec,
        image: Selection | str | None = None,
        *,
        account: Account | None = None,
        saveable: bool = False,
        services: Sequence[Service] = (),
        segments: Sequence[Segment] = (),
    ) -> Machine[OS]:
        """Start the machine of a spec that was written by hand, and return it while it starts.

        Args:
            spec: The spec; its name is the machine's.
            image: The image whose profile the machine gets; the image under test by default.
            account: The user who logs in; the image's own login by default.
            saveable: Whether the machine can be saved and forked while it runs.
            services: Servers that the guest can reach, and nothing else.
            segments: The segments that its interfaces are on.

        Raises:
            UsageError, HostError: As :meth:`boot`.
        """
        selection = self.select(image)
        return self._launch(
            spec, selection, account, saveable=saveable, services=services, segments=segments
        )

    def fork(
        self,
        origin: State | Snapshot,
        *,
        image: Selection | str | None = None,
        name: str | None = None,
        services: Sequence[Service] = (),
        segments: Sequence[Segment] = (),
        working_set: int | None = None,
    ) -> Machine[OS]:
        """Return a running machine of this lab's own that goes on from a state or a snapshot.

        A state that the host does not have is built first. One that could be saved cold only boots, and
        is waited for.

        Args:
            origin: The state, or a saved machine.
            image: The image of a saved machine; the image under test by default. States are always
                those of the image under test.
            name: The machine's name; the saved machine's by default.
            services: Servers that the fork can reach; the saved machine need not have known them.
            segments: The segments that its interfaces are on, by the names that the saved machine knew.
            working_set: Bytes of its RAM that the fork will write to, for admission; a quarter of it by
                default, 0 for a fork that idles.

        Raises:
            UsageError: ``origin`` is neither.
            StateError: The state does not start, however often it is built; or the snapshot is damaged.
            QemuStartError: QEMU cannot restore the snapshot.
        """
        if isinstance(origin, Snapshot):
            return self._fork(origin, name, services, working_set, segments, image)
        if not isinstance(origin, State):
            raise UsageError(
                f"{origin!r} is not a state",
                hint="pass the function below @state, or one of harness.points: points.live",
            )
        if self._parts.options.fresh:
            # The steps start machines without naming services.
            self._default_services = services
            try:
                return self.reach(origin)
            finally:
                self._default_services = ()
        return self._with_snapshot(
            origin, lambda saved: self._fork(saved, name, services, working_set, segments)
        )

    def _with_snapshot(self, origin: State, start: Callable[[Snapshot], ValueT]) -> ValueT:
        """Start something from the machine of a state, built again if it does not start."""
        if self._parts.options.fresh:
            return start(self._reach_to_save(origin))
        return self._with_lease(origin, lambda lease: start(lease.snapshot))

    def _with_lease(self, origin: State, start: Callable[[Lease], ValueT]) -> ValueT:
        """Start something from a state, which is built again if it does not start."""
        point = Point(self.image, origin)
        last: Exception | None = None
        for _ in range(_FORK_TRIES):
            lease = self.state(origin)
            try:
                return start(lease)
            except (StateError, QemuStartError) as error:
                last = error
                with self._parts.lock:
                    # Another thread may have discarded it, and even have built it again.
                    mine = self._parts.leases.get(point) is lease
                    if mine:
                        del self._parts.leases[point]
                if mine:
                    self.states.discard(lease, self.progress.say)
        raise StateError(f"state {origin.name} does not start") from last

    def fork_together(
        self,
        origin: State | Snapshot,
        names: Sequence[str],
        *,
        services: Sequence[Service] = (),
        segments: Sequence[Segment] = (),
        working_set: int | None = None,
    ) -> list[Machine[OS]]:
        """Return several forks of one origin: the host has room for all of them, or none starts.

        They start at the same time. If one does not, the others end.

        Args:
            origin: The state, or a saved machine of the image under test.
            names: The name of each machine.
            services: As for :meth:`fork`; each reaches all of them.
            segments: As for :meth:`fork`; each is on all of them.
            working_set: As for :meth:`fork`.

        Raises:
            UsageError, HostError, StateError, QemuStartError: As :meth:`fork`.
        """

        def start(saved: Snapshot) -> list[Machine[OS]]:
            return start_together(
                self,
                [Start(saved.fork_spec(name), self.image, saved) for name in names],
                services=services,
                segments=segments,
                working_set=working_set,
            )

        return start(origin) if isinstance(origin, Snapshot) else self._with_snapshot(origin, start)

    def cluster(
        self,
        size: int = 3,
        *,
        arches: Sequence[str] = (),
        services: Sequence[Service] = (),
        seed: int = 0,
        capture: bool = True,
    ) -> Cluster:
        """Return a cluster to be formed: forks of the state ``member`` on a segment of their own.

        The image under test names the variant of its members, and their provider.

        Args:
            size: The number of machines, ``node-1`` and so on.
            arches: The architecture of each machine, instead of ``size``; that under test by default.
            services: Servers that each machine can reach.
            seed: Decides what links do to frames.
            capture: Whether the evidence gets the frames.

        Raises:
            UsageError: The image has no variant for clusters.
            HostError: The host cannot carry so many machines.
            StateError, QemuStartError: A member does not start.
        """
        return start_cluster(
            self,
            arches or [self.image.arch] * size,
            services=services,
            seed=seed,
            capture=capture,
            kind=providers.of_image(self.image),
        )

    def fork_cluster(
        self, state: GroupState, *, services: Sequence[Service] = (), seed: int | None = None
    ) -> Cluster:
        """Return the cluster of a state, which goes on: all machines and their network at one moment.

        Args:
            state: A state of a cluster, such as ``points.cluster_3``.
            services: Servers that each machine can reach; the saved machines need not have known them.
            seed: Decides what links do to frames from here on; the saved one by default.

        Raises:
            UsageError: The image under test has no variant for clusters; or it is no such state.
            HostError: The host cannot carry so many machines.
            StateError: The state does not start, however often it is built.
        """
        return fork_cluster(self, state, services=services, seed=seed)

    def reach(self, state: State, parent: Snapshot | None = None) -> Machine[OS]:
        """Do the steps of a state, without the cache, and return its machine.

        Args:
            state: The state.
            parent: A saved machine at the state's parent; the parent's steps are done without one.

        Raises:
            UsageError: The steps return no machine.
        """
        with self.timeline.step(f"steps of state {state.name}"):
            if state.parent is None:
                machine = state.steps(self)
            elif parent is not None:
                machine = state.steps(self, self._fork(parent, None, (), None, ()))
            else:
                machine = state.steps(self, self.reach(state.parent))
        if not isinstance(machine, Machine):
            raise UsageError(
                f"the steps of state {state.name} returned {machine!r}",
                hint="return the machine that is to be saved",
            )
        return machine

    def _reach_to_save(self, state: State) -> Snapshot:
        """Do the steps of a state, without the cache, and save its machine in this lab's folder."""
        before, self._building = self._building, True
        try:
            machine = self.reach(state)
        finally:
            self._building = before
        machine.wait_for_rest()
        return machine.save(machine.evidence / "disks" / "saved", final=True, inside=Path("/"))

    # --- states -------------------------------------------------------------------------------

    def state(self, state: State) -> Lease:
        """Return a state, built first if the host does not have it; lent until the lab is closed.

        Steps that fail because of the image are not tried again in this run: the same error ends every
        test that asks for the state.

        Raises:
            HarnessError: The steps fail.
            StateError, StoreError, DiskFullError: The state cannot be saved or lent.
        """
        return lending.lease(self, state)

    def state_inputs(self, state: State) -> dict[str, str]:
        """Return everything that decides the content of a state on this host, by name."""
        return lending.inputs_of(self, state)

    @property
    def built(self) -> Sequence[Point]:
        """The states that this process has built, in their order; a state may be there twice."""
        return tuple(self._parts.built)

    def discard(self, points: Sequence[Point], why: str) -> None:
        """Give states back that may be damaged; they are built again when they are next needed.

        Args:
            points: The states, parents first.
            why: The reason, for a line of progress: ``its test failed``.

        Raises:
            StoreError: A state cannot be marked as damaged.
        """
        for point in reversed(points):
            with self._parts.lock:
                lease = self._parts.leases.pop(point, None)
            if lease is not None:
                self.states.discard(lease, self.progress.say, why)

    # --- servers ------------------------------------------------------------------------------

    def service(self, kind: type[ServerT]) -> ServerT:
        """Return the server of a kind; it starts at the first call and runs until the lab is closed.

        Raises:
            ServiceError: The server does not start, or has ended.
            BuildError, StoreError: Its software cannot be had.
        """
        with self._parts.lock:
            making = self._parts.making[kind]
        with making:
            return self._server(kind)

    def _server(self, kind: type[ServerT]) -> ServerT:
        parts = self._parts
        if kind not in parts.servers:
            runner = parts.service_runner
            started = kind(runner, parts.ca, parts.unknown_ca, parts.services_folder)
            parts.servers[kind] = parts.stack.enter_context(started)
            record = {
                "name": started.name,
                "by": started.by,
                "why": runner.why,
                "program": started.program.name,
            }
            with (self.run.path / SERVICES_RECORD).open("a") as file:
                file.write(json.dumps(record) + "\n")
        server = parts.servers[kind]
        assert isinstance(server, kind)
        server.check()
        return server

    @property
    def ca(self) -> Ca:
        """The certificate authority of the servers: ``lab.ca.pem`` is what a guest has to trust."""
        return self._parts.ca

    # --- inside -------------------------------------------------------------------------------

    def _fork(
        self,
        origin: Snapshot,
        name: str | None,
        services: Sequence[Service],
        working_set: int | None,
        segments: Sequence[Segment],
        image: Selection | str | None = None,
    ) -> Machine[OS]:
        spec = origin.fork_spec(self._unique(name or origin.spec.name))
        machine: Machine[OS] = self._launch_fork(
            spec, self.select(image), origin, services, segments, working_set=working_set
        )
        if origin.cold:
            machine.wait_ready()
            if origin.shell is not None:
                machine.os.login()
        return machine

    def _launch_fork(
        self,
        spec: MachineSpec,
        image: Selection,
        origin: Snapshot,
        services: Sequence[Service],
        segments: Sequence[Segment],
        *,
        turn: Turn | None = None,
        together: Together | None = None,
        working_set: int | None = None,
    ) -> Machine[OS]:
        return self._launch(
            spec,
            image,
            origin.account,
            origin=origin,
            key=KeyPair(origin.private_key, origin.public_key),
            services=services,
            segments=segments,
            turn=turn,
            together=together,
            working_set=working_set,
        )

    def _admit(
        self, specs: Sequence[MachineSpec], *, forks: bool, working_set: int | None
    ) -> tuple[Turn, ...]:
        """Wait until the host has room for machines of this lab, all of them."""
        return self._parts.scheduler.admit_together(
            specs,
            self.timeline,
            forks,
            working_set=working_set,
            # Others may wait for the state that is being built.
            urgent=self._building,
            # A machine that waits for its turn is spared the wait when a sibling fails.
            scope=self.scope,
        )

    def _launch(
        self,
        spec: MachineSpec,
        selection: Selection,
        account: Account | None,
        *,
        origin: Snapshot | None = None,
        key: KeyPair | None = None,
        saveable: bool = False,
        working_set: int | None = None,
        services: Sequence[Service] = (),
        segments: Sequence[Segment] = (),
        turn: Turn | None = None,
        together: Together | None = None,
    ) -> Machine[OS]:
        """Start the machine of a spec, once the host admits it, or in a turn that it has already."""
        services = services or self._default_services
        if services or origin is not None:
            spec = with_guest_forwards(spec, [service.forward for service in services])
        profile = profiles.of(selection)

        turns = [] if turn is None else [turn]

        def admit(spec: MachineSpec, timeline: Timeline, fork: bool) -> Turn:
            del timeline
            # Forks of this machine, and the one that is powered on after it, take turns of their own.
            return (
                turns.pop()
                if turns
                else self._admit([spec], forks=fork, working_set=working_set)[0]
            )

        return launch(
            spec,
            Setup(
                accel=self.accelerator,
                # Others may wait for the state that is being built.
                admit=admit,
                key=key or self.key,
                # Members of two clusters have the same names.
                evidence=self._new_folder(spec.name),
                timeline=self.timeline,
                scope=self.scope,
                system=lambda machine: cast(Any, profile(machine, selection, account)),
                origin=origin,
                saveable=saveable or self._building,
                services={service.forward.name: service.address for service in services},
                segments={segment.name: segment for segment in segments},
                provenance=lending.provenance(selection),
                adopt=self._adopt,
                together=together,
            ),
        )

    def _new_folder(self, name: str) -> Path:
        """Return the folder of a machine: members of two clusters have the same names."""
        folder = self.folder / name
        with self._parts.lock:
            numbers = itertools.count(2)
            while folder in self._folders:
                folder = self.folder / f"{name}-{next(numbers)}"
            self._folders.add(folder)
        return folder

    def _adopt(self, machine: Machine[Any]) -> None:
        self._machines.append(machine)
        self._stack.push(machine)
        for watcher in self._parts.watchers:
            watcher(machine)

    def watch(self, watcher: Callable[[Machine[Any]], object]) -> None:
        """Call something with each machine of this lab and of its children once it runs.

        Args:
            watcher: Called in the thread that starts the machine; it must neither wait nor raise.
        """
        self._parts.watchers.append(watcher)

    @property
    def machines(self) -> Sequence[Machine[Any]]:
        """The machines of this lab in the order of their starts, those that have ended included."""
        return tuple(self._machines)

    def _unique(self, name: str) -> str:
        """Return a name that no other machine below the same folder has."""
        with self._parts.lock:
            self._names[name] += 1
            number = self._names[name]
        return name if number == 1 else f"{name}-{number}"


__all__ = ["EVIDENCE", "Lab", "Service"]
