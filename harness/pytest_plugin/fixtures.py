"""The fixtures: a lab for each test, the image under test, states, servers for guests, releases."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import pytest

from harness.pytest_plugin import session as sessions
from harness.pytest_plugin import tries

if TYPE_CHECKING:
    from harness.catalog import Selection
    from harness.cluster import Cluster
    from harness.lab import Lab
    from harness.machine import Machine
    from harness.profiles import MultiArch
    from harness.services import Registry, Server, UpdateServer

    ServerT = TypeVar("ServerT", bound=Server)


@pytest.fixture(scope="session", name=sessions.ARCH)
def arch_under_test(request: pytest.FixtureRequest) -> str:
    """Return the architecture of a test in a run of several; empty in a run of one."""
    return getattr(request, "param", "")


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest, _arch: str) -> Selection:
    """Return the image under test, as ``--image`` and ``--arch`` name it."""
    return sessions.of(request.config).lab_on(_arch).image


@pytest.fixture(scope="module")
def shared_lab(request: pytest.FixtureRequest, _arch: str) -> Iterator[Lab]:
    """Yield a lab for machines that the tests of one module share and leave as they found them.

    Its evidence is kept if one of the tests fails.
    """
    session = sessions.of(request.config)
    whole = session.lab_on(_arch)
    module = sessions.shared_name(request.node.nodeid, _arch)
    # The tests of a module may be apart in a worker's order; it then has such a lab more than once.
    folder = session.shared[module] = session.run.new_try(module, session.worker)
    failed_before = session.failures
    with whole.child(module, folder=folder) as lab:
        yield lab
    failed = session.failures > failed_before or session.interruption
    if not failed and not whole.keep:
        session.run.drop(folder)


@pytest.fixture
def lab(request: pytest.FixtureRequest, _arch: str) -> Iterator[Lab]:
    """Yield the lab of this test: ``machine = lab.boot()``; its machines end with the test."""
    whole = sessions.of(request.config).lab_on(_arch)
    # When a shared machine fails, the waits of the test that uses it have become pointless as well.
    shared = "shared_lab" in request.fixturenames
    above = request.getfixturevalue("shared_lab") if shared else whole
    folder = tries.folder(request.node)
    with above.child(request.node.nodeid, folder=folder) as lab:
        yield lab


@pytest.fixture
def live(lab: Lab) -> Machine[Any]:
    """Return a machine at the state ``live``: the image booted, logged in on the console."""
    from harness import points

    return lab.fork(points.live)


@pytest.fixture
def installed(lab: Lab) -> Machine[Any]:
    """Return a machine at the state ``installed``: an installed system booted, logged in."""
    from harness import points

    return lab.fork(points.installed)


@pytest.fixture
def cluster(lab: Lab, fault_seed: int) -> Cluster:
    """Return a cluster at the state ``cluster-3``: three members, healthy, on a segment of their own."""
    from harness import points

    return lab.fork_cluster(points.cluster_3, seed=fault_seed)


# --- servers ----------------------------------------------------------------------------------


def _for_test(lab: Lab, kind: type[ServerT]) -> Iterator[ServerT]:
    """Yield a server as at its beginning: no fault, no recorded request, no published file."""
    server = lab.service(kind)
    server.reset()
    lab.timeline.note(f"service {server.name} runs as {server.by}", address=server.guest)
    with server.joined(lab.scope):
        yield server
    server.reset()
    server.check()


@pytest.fixture
def update_server(lab: Lab) -> Iterator[UpdateServer]:
    """Yield nginx, which serves files over HTTPS to the guests of this test."""
    from harness.services import UpdateServer

    yield from _for_test(lab, UpdateServer)


@pytest.fixture
def registry(lab: Lab) -> Iterator[Registry]:
    """Yield a container registry, which serves the guests of this test over TLS."""
    from harness.services import Registry

    yield from _for_test(lab, Registry)


# --- releases ---------------------------------------------------------------------------------

Defect = Literal["panic", "verity", "unhealthy", "stuck"]
"""How a version is broken on purpose: its kernel panics, its root fails verification, its health check
fails, or it never gets as far as the health check."""

DEFECTS: Final[tuple[Defect, ...]] = ("panic", "verity", "unhealthy", "stuck")


class Releases:
    """The versions of an image by their role in scenarios of upgrades.

    The order is that of ``versions`` in ``image.yaml``: that of their release. A test that asks for a
    version that does not exist is skipped, with what to do.

    Args:
        image: The image under test.

    Attributes:
        old: The version under test: the one that is installed, and upgraded from.
    """

    def __init__(self, image: Selection) -> None:
        self._image = image
        self.name = image.name
        broken = {f"{version}-{defect}" for version in image.versions for defect in DEFECTS}
        whole = [version for version in image.versions if version not in broken]
        self.old = image.version
        self._later = whole[whole.index(self.old) + 1 :] if self.old in whole else []

    @property
    def new(self) -> str:
        """The version after :attr:`old`."""
        return self._after(0)

    @property
    def newest(self) -> str:
        """The version after :attr:`new`."""
        return self._after(1)

    def broken(self, defect: Defect) -> str:
        """Return :attr:`new` with a defect: ``2-panic``."""
        version = f"{self.new}-{defect}"
        if version not in self._image.versions:
            self._skip(version)
        return version

    def _after(self, index: int) -> str:
        if index >= len(self._later):
            self._skip(f"after {[self.old, *self._later][-1]}")
        return self._later[index]

    def _skip(self, version: str) -> None:
        pytest.skip(
            f"image {self.name} has no version {version}: build one, name it in {self._image.path}"
        )


@pytest.fixture(scope="session")
def releases(image: Selection) -> Releases:
    """Return the versions that scenarios of upgrades need: ``releases.old``, ``.new``, ``.newest``."""
    return Releases(image)


class UpdateFiles(Protocol):
    """Unpacks an image's artifact ``update``."""

    def __call__(
        self, version: str, arch: str | None = None, variant: str | None = None
    ) -> list[Path]:
        """Return the files of a version, for the image under test by default."""


@pytest.fixture(scope="session")
def _unpacked() -> dict[Selection, list[Path]]:
    """Return the files of each update that was unpacked.

    A worker may change between architectures at each test: it does not unpack anything twice.
    """
    return {}


@pytest.fixture(scope="session")
def update_files(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _arch: str,
    _unpacked: dict[Selection, list[Path]],
) -> UpdateFiles:
    """Return what unpacks an image's artifact ``update``: ``update_files("2")`` lists its files."""
    lab = sessions.of(request.config).lab_on(_arch)

    def files(version: str, arch: str | None = None, variant: str | None = None) -> list[Path]:
        image = lab.image
        chosen = image.definition.select(arch or image.arch, version, variant or image.variant)
        if chosen not in _unpacked:
            folder = tmp_path_factory.mktemp(f"update-{chosen.variant}-{chosen.arch}-{version}")
            with tarfile.open(lab.artifacts(chosen)["update"]) as archive:
                archive.extractall(folder, filter="data")
            _unpacked[chosen] = sorted(folder.iterdir())
        return _unpacked[chosen]

    return files


class Publish(Protocol):
    """Puts a version where guests find it."""

    def __call__(self, version: str, variant: str | None = None) -> str:
        """Return its address; the variant is that of the image under test by default."""


@pytest.fixture
def publish(update_server: UpdateServer, update_files: UpdateFiles) -> Publish:
    """Return what puts a version on the update server: ``publish("2")`` returns its address."""

    def published(version: str, variant: str | None = None) -> str:
        folder = version if variant is None else f"{variant}/{version}"
        for path in update_files(version, variant=variant):
            update_server.publish(path, f"{folder}/{path.name}")
        return f"{update_server.url}/{folder}/"

    return published


@pytest.fixture
def push(registry: Registry, update_files: UpdateFiles) -> Callable[[str], str]:
    """Return what puts a version into the registry: ``push("2")`` returns its address."""
    return lambda version: f"oci://{registry.push(update_files(version), 'os/image', version)}"


class ForArches(Protocol):
    """Puts the files for several architectures where guests find them by one address."""

    def __call__(self, version: str, sets: Sequence[tuple[str, Sequence[Path]]]) -> str:
        """Return the address.

        Args:
            version: The name of the version, for the address.
            sets: Architectures, by Harness' names, and the files that a guest is to find for each.
        """


@pytest.fixture
def publish_arches(image: Selection, update_server: UpdateServer) -> ForArches:
    """Return what puts sets of files on the update server, a folder for each architecture."""
    from harness import profiles

    profile: type[MultiArch] = profiles.of(image)

    def published(version: str, sets: Sequence[tuple[str, Sequence[Path]]]) -> str:
        for arch, files in sets:
            for path in files:
                update_server.publish(path, f"{version}/{profile.arch_folder(arch)}/{path.name}")
        return f"{update_server.url}/{version}/{profile.arch_folder()}/"

    return published


@pytest.fixture
def push_arches(registry: Registry) -> ForArches:
    """Return what puts sets of files into the registry, under an index of their architectures."""
    return lambda version, sets: f"oci://{registry.push_index(sets, 'os/arches', version)}"
