"""Declared secrets in a run: taken out of what pytest says, and of everything that the run leaves.

Reports of tests lose them when they are made, before anybody prints, counts or sends them. The folder
of the run loses them at its end, before the report is written, so that a later ``harness report`` finds
none.

A worker of pytest-xdist hands what it declares to the controller, and to the other workers, in memory:
a file of memfd_create(2), which ends with the controller. So the secrets of a worker that crashed are
known, and no disk has had them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.evidence.secrets import Secrets

_INPUT: Final = "harness_secrets"
"""What a worker of pytest-xdist finds the shared memory by."""

_KEPT: Final = ("nodeid", "location", "keywords", "outcome", "when")
"""Fields of a report by which pytest knows the test; results and ``junit.xml`` lose secrets later."""


class _Shared:
    """The secrets that the processes of a run have declared: a line of JSON each, in memory.

    Args:
        descriptor: The file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._at = 0

    def append(self, name: str, value: str) -> None:
        """Hand a secret to the other processes."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            line = json.dumps([name, value]).encode() + b"\n"
            os.pwrite(self.descriptor, line, os.fstat(self.descriptor).st_size)
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def new(self) -> list[tuple[str, str]]:
        """Return what has been declared since the last call."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        try:
            size = os.fstat(self.descriptor).st_size
            content = os.pread(self.descriptor, size - self._at, self._at)
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self._at = size
        return [tuple(json.loads(line)) for line in content.splitlines()]


_SECRETS: Final = pytest.StashKey["Secrets"]()
_SHARED: Final = pytest.StashKey[_Shared]()


class DeclareSecret:
    """Declares secrets; the fixture ``declare_secret`` is one.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __call__(self, name: str, value: str) -> str:
        """Declare a secret for the whole run and return its value.

        Args:
            name: The name that stands in its place.
            value: Its value, of at least six characters.

        Raises:
            UsageError: The name is not valid, or the value is too short.
        """
        from harness.errors import UsageError

        try:
            of(self._config).declare(name, value)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if (shared := self._config.stash.get(_SHARED, None)) is not None:
            shared.append(name, value)
        session = sessions.of(self._config)
        if session.engaged:
            session.run.begin()
            session.run.unredacted.touch()
        return value


@pytest.fixture(scope="session")
def declare_secret(request: pytest.FixtureRequest) -> DeclareSecret:
    """Return what declares a secret: ``declare_secret("token", value)``.

    No text that the run leaves holds it then, and no bundle has a machine that it has entered.
    """
    return DeclareSecret(request.config)


def of(config: pytest.Config) -> Secrets:
    """Return the secrets that any process of the run has declared."""
    from harness.evidence.secrets import Secrets

    secrets = config.stash.setdefault(_SECRETS, Secrets())
    if (shared := config.stash.get(_SHARED, None)) is not None:
        for name, value in shared.new():
            secrets.declare(name, value)
    return secrets


def _declared(config: pytest.Config) -> Secrets | None:
    """Return the secrets of the run; ``None``, and nothing imported, if nobody has declared one."""
    shared = config.stash.get(_SHARED, None)
    if shared is not None and os.fstat(shared.descriptor).st_size:
        return of(config)
    return config.stash.get(_SECRETS, None) or None


def pytest_configure(config: pytest.Config) -> None:
    """In a worker, open the memory that the controller shares."""
    path = getattr(config, "workerinput", {}).get(_INPUT)
    if path is not None:
        config.stash[_SHARED] = _Shared(os.open(path, os.O_RDWR | os.O_CLOEXEC))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where the shared memory is."""
    config = node.config
    if _SHARED not in config.stash:
        config.stash[_SHARED] = _Shared(os.memfd_create("harness-secrets", os.MFD_CLOEXEC))
    descriptor = config.stash[_SHARED].descriptor
    node.workerinput[_INPUT] = f"/proc/{os.getpid()}/fd/{descriptor}"


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Take the secrets out of a report before any other hook of ours sees it."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    secrets = _declared(item.config)
    return report if secrets is None else _clean(report, secrets)  # type: ignore[return-value]


def _clean(report: pytest.TestReport, secrets: Secrets) -> pytest.TestReport:
    """Return a report without the secrets, on the way by which reports leave a worker."""
    fields = report._to_json()
    clean = {
        name: value if name in _KEPT else secrets.clean(value) for name, value in fields.items()
    }
    return report if clean == fields else type(report)._from_json(clean)


def clean(config: pytest.Config, content: Any) -> Any:
    """Return plain JSON without the secrets of the run."""
    secrets = _declared(config)
    return content if secrets is None else secrets.clean(content)


def take_out(config: pytest.Config) -> None:
    """Take the secrets out of the folder of the run; until that is done, it is marked as unredacted.

    Raises:
        OSError: A file cannot be read or written.
    """
    if (secrets := _declared(config)) is None:
        return
    run = sessions.of(config).run
    if run.path.is_dir():
        secrets.redact_folder(run.path)
        run.unredacted.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Take the secrets out of ``junit.xml``, which names tests by their parameters."""
    yield
    config = session.config
    path = getattr(config.option, "xmlpath", None)
    if (secrets := _declared(config)) is not None and path and not hasattr(config, "workerinput"):
        with contextlib.suppress(OSError):
            secrets.redact_file(Path(path))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the secrets out of what servers wrote until they ended; close the shared memory."""
    if not hasattr(config, "workerinput"):
        # What an interruption left; the mark stays if this fails, too.
        from harness.errors import StoreError

        with contextlib.suppress(OSError, StoreError):
            take_out(config)
    if (shared := config.stash.get(_SHARED, None)) is not None:
        del config.stash[_SHARED]
        os.close(shared.descriptor)
