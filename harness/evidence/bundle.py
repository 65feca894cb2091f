"""The bundle: one file that carries a failed test, its evidence and, where allowed, its machines.

::

    manifest.json                    everything below, with sizes and digests
    evidence/...                     the test's folder of evidence, without disks; text, redacted
    machines/NAME/state              QEMU's migration stream, RAM included
    machines/NAME/disks/DISK.qcow2   a disk; DISK.delta is its difference from files of the image
    machines/NAME/efivars.fd         the UEFI variables
    machines/NAME/tpm/...            the TPM's state, of a machine that is carried without RAM
    machines/NAME/files/...          further files that its spec names, such as a seed
    segments/NAME/...                a segment between machines: its state, and frames on their way

:mod:`~harness.evidence.bundle_archive` is the container. A path in a spec is a *reference* here:
``image:N`` is the manifest's Nth artifact, which the reader has in its own cache, and ``file:PATH`` is a
file of the bundle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from harness import jsonfile
from harness.errors import BundleError
from harness.evidence.bundle_archive import Archive, Member
from harness.evidence.run import BUNDLE

FILE: Final = BUNDLE
"""The name of a bundle in the evidence of its test."""

FORMAT: Final = 1
"""The format of manifests; raised whenever an older Harness could not read one."""

STATE: Final = "state"
EVIDENCE: Final = "evidence"
MACHINES: Final = "machines"
SEGMENTS: Final = "segments"

_STRICT: Final[Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Test:
    """The failed test.

    Attributes:
        id: pytest's node id.
        arch: The architecture that it ran on; empty for a test that uses no image.
        verdict: Its verdict.
        reason: The first line of the failure.
        signature: As :mod:`harness.evidence.signature` has it.
        phase: ``setup``, ``call`` or ``teardown``.
        file: The path of its file, relative to pytest's root folder.
        sha256: The digest of that file, in hexadecimal; empty if it could not be read.
        arguments: pytest's arguments that repeat it, the node id first.
        seeds: The seeds of the run, by the options that set them.
        time: The time of the failure, in UTC, as in ISO 8601.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT
    __test__: ClassVar[bool] = False

    id: str
    arch: str
    verdict: str
    reason: str
    signature: str
    phase: str
    file: str
    sha256: str
    arguments: tuple[str, ...]
    seeds: dict[str, str]
    time: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of an image that a machine needs; the bundle does not carry it.

    Attributes:
        image: The image, ``NAME/VARIANT:VERSION``.
        arch: The architecture.
        name: The name of the artifact.
        size: Bytes.
        sha256: Its SHA-256, in hexadecimal.
        inputs: The digest of everything that it was made from.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    image: str
    arch: str
    name: str
    size: int
    sha256: str
    inputs: str


@dataclass(frozen=True, slots=True)
class SavedDisk:
    """A disk of a machine.

    Attributes:
        name: The name among the machine's disks.
        path: Its file in the bundle; a path that ends in ``.delta`` is a difference.
        size: Bytes of the qcow2 file.
        sha256: The SHA-256 of the qcow2 file, in hexadecimal.
        base: The number of the artifact that the qcow2 file is an overlay on; ``None`` without one.
        base_format: The format of that artifact.
        sources: The numbers of the artifacts that a difference refers to.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str
    path: str
    size: int
    sha256: str
    base: int | None = None
    base_format: str = "raw"
    sources: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedMachine:
    """A machine at the moment of failure.

    Attributes:
        name: Its name.
        image: The image whose profile it has, ``NAME/VARIANT:VERSION``.
        arch: Its architecture.
        power: What it was doing: ``running``, ``paused``, or QEMU's word for another state.
        cold: Why it is without RAM; empty if it has it. Such a machine boots from its disks.
        snapshot: Its :class:`~harness.states.snapshot.Snapshot`, with references for paths.
        disks: Its disks.
        firmware: The SHA-256 of the UEFI firmware's code; empty without UEFI.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str
    image: str
    arch: str
    power: str
    cold: str
    snapshot: dict[str, Any]
    disks: tuple[SavedDisk, ...]
    firmware: str = ""

    @property
    def folder(self) -> str:
        """Its folder in the bundle."""
        return f"{MACHINES}/{self.name}"


@dataclass(frozen=True, slots=True)
class Withheld:
    """Something that the bundle does not carry.

    Attributes:
        what: ``machine NAME``, ``machines``, or the path of a file.
        why: The reason, a sentence.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Host:
    """The host of the run.

    Attributes:
        accel: ``kvm`` or ``tcg``, by architecture.
        cpu_vendor: The vendor of its CPU, as ``/proc/cpuinfo`` has it.
        qemu: The version of QEMU, by architecture.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    accel: dict[str, str]
    cpu_vendor: str
    qemu: dict[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle carries, and what it lacks.

    Attributes:
        test: The failed test.
        image: The image under test, as ``--image`` takes it; empty for a test without one.
        inputs: The digest of everything that the image under test is made from.
        versions: The versions of Harness, Python and pytest.
        host: The host of the run.
        artifacts: The files of images that machines need.
        machines: The machines.
        segments: The names of the segments between them.
        withheld: What is not carried, and why.
        redacted: The names of the secrets that were taken out of its text.
        files: All files, in the order of the archive.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    test: Test
    image: str
    inputs: str
    versions: dict[str, str]
    host: Host
    artifacts: tuple[Artifact, ...] = ()
    machines: tuple[SavedMachine, ...] = ()
    segments: tuple[str, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    redacted: tuple[str, ...] = ()
    files: tuple[Member, ...] = ()

    def dump(self) -> bytes:
        """Return the manifest as it is in the archive."""
        return json.dumps({"format": FORMAT, **jsonfile.dump(self)}, indent=1).encode()


class Bundle:
    """An open bundle; a context manager.

    Args:
        path: The file.

    Raises:
        BundleError: It is no bundle, is damaged, or is of another version of Harness.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = Archive(path)
        try:
            self.manifest = self._parse(self.archive.manifest)
        except BaseException:
            self.archive.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.__exit__()

    def _parse(self, content: bytes) -> Manifest:
        try:
            fields = json.loads(content)
            if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
                raise ValueError("its manifest does not name its format")
            if (number := fields.pop("format")) != FORMAT:
                versions = fields.get("versions")
                maker = versions.get("harness", "") if isinstance(versions, dict) else ""
                raise BundleError(
                    f"{self.path} has format {number}, and this Harness reads {FORMAT}",
                    hint=f"use the Harness that wrote it: {maker!s:.40}" if maker else "",
                )
            manifest = jsonfile.parse(Manifest, fields)
            _check(manifest)
        except (ValueError, RecursionError) as error:
            raise self.archive.fault(f"its manifest is wrong: {str(error)[:500]}") from error
        return manifest


def _check(manifest: Manifest) -> None:
    """Raise unless the parts of a manifest agree.

    Raises:
        ValueError: They do not.
    """
    count = len(manifest.artifacts)
    files = {member.path for member in manifest.files}
    if len({machine.name for machine in manifest.machines}) != len(manifest.machines):
        raise ValueError("two machines have one name")
    for machine in manifest.machines:
        for disk in machine.disks:
            numbers = [*disk.sources, *([] if disk.base is None else [disk.base])]
            if not all(0 <= number < count for number in numbers):
                raise ValueError(f"disk {disk.name} of {machine.name} needs an unknown artifact")
            if not disk.path.startswith(f"{machine.folder}/disks/") or disk.path not in files:
                raise ValueError(f"disk {disk.name} of {machine.name} is not in it")
            if disk.base_format not in ("raw", "qcow2") or disk.size < 0:
                raise ValueError(f"disk {disk.name} of {machine.name} has an unknown format")
        if not machine.cold and f"{machine.folder}/{STATE}" not in files:
            raise ValueError(f"the state of machine {machine.name} is not in it")
