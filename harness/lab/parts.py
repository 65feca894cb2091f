"""The parts that a lab shares with its children, each made at its first use."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from harness import paths, profiles
from harness.artifacts import Store
from harness.catalog import Catalog, Selection, load
from harness.cluster import providers
from harness.deadline import Scale
from harness.errors import HarnessError, UsageError
from harness.evidence.run import Run
from harness.evidence.timeline import Step
from harness.host.accel import Accel, probe
from harness.host.pressure import Pressure
from harness.host.scheduler import Scheduler
from harness.machine import Machine
from harness.progress import Progress
from harness.qemu import binary
from harness.services import Ca, Server, ServiceRunner
from harness.ssh.key import KeyPair
from harness.states import Lease, State, StateCache

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Point:
    """A state of one image.

    Attributes:
        image: The image.
        state: The state.
    """

    image: Selection
    state: State


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a lab, as :class:`~harness.lab.Lab` documents them."""

    image: str
    arch: str | None
    images: tuple[Path, ...] | None
    default_image: str
    accel: str
    cache: Path | None
    keep: bool
    fresh: bool
    timeout_scale: float
    state_budget: int
    services: str


class part(functools.cached_property[ValueT]):  # noqa: N801 - used like cached_property
    """A part of a lab, made once: from Python 3.12 on, cached_property lets threads make several."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> ValueT: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        with contextlib.nullcontext() if instance is None else instance.lock:
            return super().__get__(instance, owner)


@dataclass(eq=False)
class Parts:
    """The parts that a lab shares with its children; each is made at its first use, by any thread.

    Attributes:
        options: The options.
        progress: Shows what is going on.
        evidence: The folder that gets the folder of the run.
        begun: The run that the lab is one of several of; ``None`` if the lab begins one.
        worker: The name of this lab among those of the run; empty for the only one.
        lock: Held while a part is made.
        making: Held while a state or a server is made, by what is made. Steps of a state may start
            threads that ask for other states: one lock for all would stop them.
        watchers: Called with each machine once it runs.
    """

    options: Options
    progress: Progress
    evidence: Path
    begun: Run | None
    worker: str
    lock: threading.RLock = field(default_factory=threading.RLock)
    making: defaultdict[object, threading.RLock] = field(
        default_factory=lambda: defaultdict(threading.RLock)
    )
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    leases: dict[Point, Lease] = field(default_factory=dict)
    failed_states: dict[Point, HarnessError] = field(default_factory=dict)
    built: list[Point] = field(default_factory=list)
    servers: dict[type[Server], Server] = field(default_factory=dict)
    doubts: set[str] = field(default_factory=set)
    watchers: list[Callable[[Machine[Any]], object]] = field(default_factory=list)

    @part
    def run(self) -> Run:
        """The run, whose folder gets the evidence."""
        return self.begun or Run.reserve(self.evidence)

    @part
    def cache(self) -> Path:
        """The folder of the cache."""
        return self.options.cache or paths.cache_dir()

    @part
    def own_folders(self) -> tuple[Path, ...]:
        """The project's folders of images."""
        if self.options.images is not None:
            return self.options.images
        folder = Path("images").absolute()
        return (folder,) if folder.is_dir() else ()

    @part
    def own_catalog(self) -> Catalog:
        """The project's own images."""
        return load(
            *self.own_folders,
            known_profiles=profiles.names(),
            known_providers=providers.names(),
        )

    @part
    def catalog(self) -> Catalog:
        """The project's images, then Harness' own, which give way to equal names."""
        bundled = paths.bundled("images")
        if bundled in self.own_folders or not bundled.is_dir():
            return self.own_catalog
        own = [self.own_catalog.get(name) for name in self.own_catalog.names]
        others = load(bundled, known_profiles=profiles.names(), known_providers=providers.names())
        return Catalog(
            [
                *own,
                *(others.get(name) for name in others.names if name not in self.own_catalog.names),
            ]
        )

    @part
    def reference(self) -> str:
        """The name of the image under test: the one asked for, the default, or the only one.

        Raises:
            UsageError: There are several and none was named, or there is none.
        """
        names = self.own_catalog.names
        if self.options.image:
            return self.options.image
        if self.options.default_image in names:
            return self.options.default_image
        if len(names) == 1:
            return names[0]
        if names:
            raise UsageError("no image was named", hint=f"--image NAME: {', '.join(names)}")
        where = ", ".join(map(str, self.own_folders)) or str(Path("images").absolute())
        raise UsageError(
            f"there is no image in {where}",
            hint="describe one in images/NAME/image.yaml, name a folder by --images DIR, or take one"
            f" of Harness' own: --image {' or '.join(self.catalog.names)}",
        )

    @part
    def store(self) -> Store:
        """The cache of artifacts."""
        return Store(self.cache)

    @part
    def states(self) -> StateCache:
        """The cache of states."""
        return StateCache(self.cache / "states", budget=self.options.state_budget)

    @part
    def key(self) -> KeyPair:
        """The SSH key of the run."""
        return KeyPair.generate()

    @part
    def scheduler(self) -> Scheduler:
        """Lets machines onto the host."""
        return Scheduler(
            self.cache, self.accelerator, self.options.timeout_scale, pressure=self.pressure
        )

    @part
    def pressure(self) -> Pressure:
        """Measures the host while machines run; their deadlines follow it."""
        return Pressure((self.evidence, self.cache))

    @part
    def own_scale(self) -> Scale:
        """The scale of the host's own work beside the machines: the load of the host stretches it."""
        return Scale(clock=self.pressure)

    def accelerator(self, arch: str) -> Accel:
        """Return the accelerator for an architecture; a doubtful one is reported once."""
        accel = probe(self.options.accel, arch, qemu=binary.find(arch).path, cache_dir=self.cache)
        with self.lock:
            new = accel.doubt not in self.doubts
            self.doubts.add(accel.doubt)
        if accel.doubt and new:
            self.progress.say(f"warning: {accel.doubt}. Guests may never come up: --accel auto")
        return accel

    @part
    def services_folder(self) -> Path:
        """The folder of the servers."""
        folder = self.run.folder(f"services-{self.worker}" if self.worker else "services")
        # Servers keep data below "disks": it goes with the run, or by the next run after a kill.
        self.stack.callback(shutil.rmtree, folder / "disks", ignore_errors=True)
        return folder

    @part
    def ca(self) -> Ca:
        """The certificate authority of the servers."""
        return Ca(self.services_folder / "disks" / "ca")

    @part
    def unknown_ca(self) -> Ca:
        """A CA whose certificate no guest gets: what it signed must be refused."""
        return Ca(self.services_folder / "disks" / "unknown-ca", "A CA that nobody knows")

    @part
    def service_runner(self) -> ServiceRunner:
        """Starts servers."""
        return ServiceRunner(
            self.store,
            self.services_folder / "disks",
            self.options.services,
            self.progress.say,
            self.own_scale,
        )

    def show(self, step: Step) -> None:
        """Show a step of a timeline while it goes on."""
        if not step.machine:
            return
        if step.seconds is None:
            self.progress.begin(step.machine, step.name, step.data.get("limit", math.inf))
        else:
            self.progress.end(step.machine)
