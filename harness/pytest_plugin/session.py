"""The labs of a pytest run, one for each architecture, made when a test first asks for one.

A run of several architectures (``--arch all``) has each test of an image once for each of them: the
fixture :data:`ARCH`, on which all fixtures of machines build, is then parametrized, so the architecture
is in the test's name. In a run of one architecture no name has it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from harness.evidence.run import Run
    from harness.known import KnownFailures
    from harness.lab import Lab
    from harness.lab.parts import Point
    from harness.machine import Machine
    from harness.progress import Progress

ALL_ARCHES: Final = "all"
"""The value of ``--arch`` that means each architecture which Harness knows."""

ARCH: Final = "_arch"
"""The fixture that returns the architecture of a test; parametrized in a run of several."""

OWN_OPTIONS: Final = (
    *("image", "arch", "images", "tier", "fresh", "state_budget", "acceptance"),
    "known",
)
"""Options that only a run of Harness' tests is given."""


class Session:
    """The options of a pytest run, and the lab that they stand for.

    Args:
        config: pytest's configuration.

    Attributes:
        failures: How many phases of tests have failed in this process, whether they count or not.
        interruption: What ended the run before its end; empty if nothing has.
        shared: The evidence of the machines that the tests of a module share, by what
            :meth:`sharing` returns.
        watchers: Called with each machine once it runs.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
        self.failures = 0
        self.interruption = ""
        self.shared: dict[str, Path] = {}
        self.watchers: list[Callable[[Machine[Any]], object]] = []
        self._labs: dict[str, Lab] = {}
        # Capturing has not begun: this descriptor stays the terminal, or the log, for progress.
        self._stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")

    @property
    def worker(self) -> str:
        """The name of this worker of pytest-xdist; empty in the only process, or in the controller."""
        return str(self._worker_input["workerid"]) if self._worker_input is not None else ""

    @functools.cached_property
    def folders(self) -> tuple[Path, ...]:
        """The project's folders of images: ``images/`` and those that ``--images`` names."""
        invoked = self._config.invocation_params.dir
        named = [invoked / folder for folder in self._config.option.images]
        for base in (invoked, self._config.rootpath):
            if (base / "images").is_dir():
                return tuple(dict.fromkeys([(base / "images").absolute(), *named]))
        return tuple(named)

    @functools.cached_property
    def engaged(self) -> bool:
        """Whether the run is one of Harness' tests: it has an option of ours, or a folder of images."""
        option = self._config.option
        return (
            any(getattr(option, name) for name in OWN_OPTIONS)
            or bool(self._config.getini("harness_image"))
            or any(next(folder.glob("*/image.yaml"), None) for folder in self.folders)
        )

    @functools.cached_property
    def run(self) -> Run:
        """The run's folder of evidence; it exists once a test has used it."""
        from harness.evidence.run import Run

        if self._worker_input is not None:
            return Run(Path(self._worker_input["harness_run"]))
        folder = self._config.invocation_params.dir / self._config.option.evidence
        return Run.reserve(folder.absolute())

    @functools.cached_property
    def known(self) -> KnownFailures | None:
        """The known failures of the project, or those that ``--known`` names; ``None`` without any.

        Raises:
            CatalogError: The file is wrong.
        """
        from harness.paths import KNOWN

        invoked = self._config.invocation_params.dir
        if (named := self._config.option.known) is not None:
            path = invoked / named
        else:
            candidates = (base / KNOWN for base in (invoked, self._config.rootpath))
            path = next((each for each in candidates if each.exists()), None)
        if path is None:
            return None
        # Only now: its libraries take their time.
        from harness.known import load

        return load(path)

    # --- architectures ------------------------------------------------------------------------

    @functools.cached_property
    def arches(self) -> tuple[str, ...]:
        """The architectures that ``--arch`` asks for; empty for the image's first.

        ``all`` begins with that of this host, whose guests run the fastest.
        """
        if self._all:
            from harness import arch

            return tuple(sorted(arch.ARCHES, key=lambda name: name != arch.host()))
        option = self._config.option.arch
        return tuple(dict.fromkeys(option.split(","))) if option is not None else ()

    @property
    def _all(self) -> bool:
        return ALL_ARCHES in (self._config.option.arch or "").split(",")

    @property
    def several(self) -> bool:
        """Whether the run is one of several architectures, which are in the names of its tests."""
        return len(self.arches) > 1

    @functools.cached_property
    def present(self) -> tuple[str, ...]:
        """The architectures of the run that the image has.

        Raises:
            UsageError, UnknownNameError, CatalogError: There is no image under test.
        """
        image = self.lab.image
        if not self.several:
            return (image.arch,)
        return tuple(arch for arch in self.arches if arch in image.definition.arches)

    def arch_of(self, item: pytest.Item) -> str:
        """Return the architecture that a test runs on; empty for a test that uses no image."""
        from harness.errors import HarnessError

        if arch := _parameter(item):
            return arch
        if ARCH in getattr(item, "fixturenames", ()):
            with contextlib.suppress(HarnessError):
                return self.lab.image.arch
        return ""

    def is_on_other_arch(self, item: pytest.Item) -> bool:
        """Whether a test runs on another architecture than the run's first that the image has."""
        return self.several and self.arch_of(item) not in ("", *self.present[:1])

    def sharing(self, item: pytest.Item) -> str:
        """Return the name of what a test shares with others of its module and architecture."""
        return shared_name(item.nodeid.split("::")[0], _parameter(item))

    def plain_id(self, node_id: str, arch: str) -> str:
        """Return the node id that a test has in a run of one architecture."""
        from harness.evidence.results import plain_id

        return plain_id(node_id, arch) if self.several else node_id

    def arch_in(self, node_id: str) -> str:
        """Return the architecture in a test's name, where no report of the test says it."""
        return next((arch for arch in self.arches if self.plain_id(node_id, arch) != node_id), "")

    # --- labs ---------------------------------------------------------------------------------

    @functools.cached_property
    def lab(self) -> Lab:
        """The lab of the run's first architecture that the image has."""
        if not self._all:
            return self._new_lab(self.arches[0] if self.arches else None, self.worker)
        lab = self._new_lab(None, self.worker)
        has = lab.image.definition.arches
        first = next(arch for arch in self.arches if arch in has)
        return lab if lab.image.arch == first else self._new_lab(first, self.worker)

    def lab_on(self, arch: str = "") -> Lab:
        """Return the lab of an architecture; each test has a child of one."""
        if not arch or arch == self.lab.image.arch:
            return self.lab
        if arch not in self._labs:
            self._labs[arch] = self._new_lab(arch, f"{self.worker}-{arch}".lstrip("-"))
        return self._labs[arch]

    def built(self, item: pytest.Item) -> Sequence[Point]:
        """Return the states that the lab of a test has built in this process."""
        return self.lab_on(self.arch_of(item)).built if self.has_lab else ()

    def _new_lab(self, arch: str | None, name: str) -> Lab:
        from harness.lab import Lab
        from harness.spec import parse_size
        from harness.states.cache import BUDGET

        option = self._config.option
        budget = option.state_budget
        lab = Lab(
            option.image or "",
            arch=arch,
            images=self.folders,
            default_image=self._config.getini("harness_image"),
            accel=option.accel,
            evidence=self.run.path.parent,
            keep=option.keep,
            fresh=option.fresh,
            timeout_scale=option.timeout_scale,
            state_budget=BUDGET if budget is None else parse_size(budget),
            services=option.services,
            progress=self._progress,
            run=self.run,
            worker=name,
        )
        lab.watch(self._adopted)
        return lab

    def _adopted(self, machine: Machine[Any]) -> None:
        for watcher in self.watchers:
            watcher(machine)

    def say(self, line: str) -> None:
        """Print a line past the capturing of output, from any thread; also in a worker."""
        self._progress.say(line)

    @functools.cached_property
    def _progress(self) -> Progress:
        """Shows what is going on; one for all labs, which share the terminal's last line."""
        from harness.progress import Progress

        return Progress(self._stream, live=False if self.worker else None)

    def check_options(self) -> None:
        """Refuse options that are wrong, before anything starts.

        Raises:
            pytest.UsageError: An option is wrong; says what to do.
        """
        self._check_copies()
        option = self._config.option
        if self.engaged:
            self._check_known()
        named = option.image or option.arch or option.images
        if not (named or option.state_budget or option.acceptance or option.timeout_scale != 1.0):
            return
        for folder in option.images:
            if not (self._config.invocation_params.dir / folder).is_dir():
                raise pytest.UsageError(f"--images {folder}: there is no such folder")
        from harness import paths
        from harness.errors import HarnessError

        try:
            paths.cache_dir()  # a user may have none
            _ = self.run
            self._check_arches()
            _ = self.lab.image if named or option.acceptance else self.lab
        except HarnessError as error:
            self._stream.close()
            raise pytest.UsageError(str(error)) from error

    def _check_known(self) -> None:
        from harness.errors import CatalogError

        try:
            _ = self.known
        except CatalogError as error:
            self._stream.close()
            raise pytest.UsageError(str(error)) from error

    def _check_arches(self) -> None:
        """Refuse an architecture that does not exist, or that ``--arch`` names and the image lacks.

        Raises:
            UnknownNameError: There is no such architecture, or the image lacks it.
            UsageError, CatalogError: There is no image under test.
        """
        from harness.arch import ARCHES
        from harness.errors import UnknownNameError

        for arch in self.arches:
            if arch not in ARCHES:
                raise UnknownNameError("arch", arch, (*ARCHES, ALL_ARCHES))
        if self.several and not self._all:
            for arch in self.arches:
                _ = self.lab_on(arch).image

    def _check_copies(self) -> None:
        """Refuse to run a checkout's tests with another copy of Harness."""
        import harness

        mine = Path(harness.__file__).resolve().parent
        theirs = self._config.rootpath.resolve() / "harness"
        if (theirs / "pytest_plugin").is_dir() and theirs != mine:
            raise pytest.UsageError(
                f"two copies of Harness: the plugin comes from {mine}, and this checkout has {theirs}\n"
                "  try: ./run pytest, which uses the checkout's own; or run outside the checkout"
            )

    @property
    def apart(self) -> str:
        """The worker in the names of tests' evidence where each runs all (``--dist each``)."""
        return self.worker if self._worker_input and self._worker_input["harness_each"] else ""

    @property
    def has_lab(self) -> bool:
        """Whether a test has asked for the lab."""
        return "lab" in self.__dict__

    def say_at_once(self, text: str) -> None:
        """Say something to the person at the terminal; callable in a signal handler.

        It writes past the buffers, and shows the cursor that a line of progress has hidden.
        """
        if not self._stream.closed:
            descriptor = self._stream.fileno()
            erase = "\r\x1b[2K\x1b[?25h" if os.isatty(descriptor) else "\n"
            os.write(descriptor, f"{erase}harness: {text}\n".encode())

    def close(self) -> None:
        """End the lab and the run's folder, as far as there are any."""
        try:
            with contextlib.ExitStack() as ending:
                # The last one is closed first: it holds what the others share, such as the progress.
                if self.has_lab:
                    ending.callback(self.lab.close)
                for lab in self._labs.values():
                    ending.callback(lab.close)
        finally:
            # A lab does not end a run that it was given.
            if "run" in self.__dict__:
                self.run.close()
        if not self._stream.closed:
            self._stream.close()


def shared_name(module: str, arch: str) -> str:
    """Return the name of what tests of a module share; ``arch`` is empty in a run of one."""
    return f"{module}[{arch}]" if arch else module


def _parameter(item: pytest.Item) -> str:
    """Return the architecture in a test's name; empty in a run of one."""
    return str(getattr(getattr(item, "callspec", None), "params", {}).get(ARCH, ""))


SESSION = pytest.StashKey[Session]()


def of(config: pytest.Config) -> Session:
    """Return the session of a pytest run, made at the first call."""
    if SESSION not in config.stash:
        # Early for pytest-xdist, which asks how many workers there are before pytest is configured.
        config.stash[SESSION] = Session(config)
    return config.stash[SESSION]
