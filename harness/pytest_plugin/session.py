"""The lab of a pytest run, made when a test first asks for it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from harness.evidence.run import Run
    from harness.lab import Lab

OWN_OPTIONS: Final = ("image", "arch", "images", "tier", "fresh", "state_budget", "acceptance")
"""Options that only a run of Harness' tests is given."""


class Session:
    """The options of a pytest run, and the lab that they stand for.

    Args:
        config: pytest's configuration.

    Attributes:
        failures: How many phases of tests have failed in this process, whether they count or not.
        interruption: What ended the run before its end; empty if nothing has.
        shared: The evidence of the machines that the tests of a module share, by the module's node id.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
        self.failures = 0
        self.interruption = ""
        self.shared: dict[str, Path] = {}
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
    def lab(self) -> Lab:
        """The lab; each test has a child of it."""
        from harness.lab import Lab
        from harness.progress import Progress
        from harness.spec import parse_size
        from harness.states.cache import BUDGET

        option = self._config.option
        budget = option.state_budget
        return Lab(
            option.image or "",
            arch=option.arch,
            images=self.folders,
            default_image=self._config.getini("harness_image"),
            accel=option.accel,
            evidence=self.run.path.parent,
            keep=option.keep,
            fresh=option.fresh,
            timeout_scale=option.timeout_scale,
            state_budget=BUDGET if budget is None else parse_size(budget),
            services=option.services,
            progress=Progress(self._stream, live=False if self.worker else None),
            run=self.run,
            worker=self.worker,
        )

    def check_options(self) -> None:
        """Refuse options that are wrong, before anything starts.

        Raises:
            pytest.UsageError: An option is wrong; says what to do.
        """
        self._check_copies()
        option = self._config.option
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
            _ = self.lab.image if named or option.acceptance else self.lab
        except HarnessError as error:
            self._stream.close()
            raise pytest.UsageError(str(error)) from error

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

    def leave(self, why: str) -> None:
        """Say why this process ends at once; callable in a signal handler.

        It writes past the buffers, and shows the cursor that a line of progress has hidden.
        """
        if not self._stream.closed:
            descriptor = self._stream.fileno()
            erase = "\r\x1b[2K\x1b[?25h" if os.isatty(descriptor) else "\n"
            os.write(descriptor, f"{erase}harness: {why}\n".encode())

    def close(self) -> None:
        """End the lab and the run's folder, as far as there are any."""
        try:
            if self.has_lab:
                self.lab.close()
        finally:
            # A lab ends only the run that a machine of its own began; a report begins one as well.
            if "run" in self.__dict__:
                self.run.close()
        if not self._stream.closed:
            self._stream.close()


SESSION = pytest.StashKey[Session]()


def of(config: pytest.Config) -> Session:
    """Return the session of a pytest run, made at the first call."""
    if SESSION not in config.stash:
        # Early for pytest-xdist, which asks how many workers there are before pytest is configured.
        config.stash[SESSION] = Session(config)
    return config.stash[SESSION]
