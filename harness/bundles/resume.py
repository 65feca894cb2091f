"""Resumes the machines of a bundle on this host."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.artifacts import Store
from harness.errors import BundleError, HarnessError
from harness.evidence import bundle_archive, bundle_delta
from harness.evidence.bundle import (
    MACHINES,
    SEGMENTS,
    STATE,
    Artifact,
    Bundle,
    SavedDisk,
    SavedMachine,
)
from harness.host.cpu import vendor
from harness.lab import Lab
from harness.machine import Machine
from harness.network import SegmentState
from harness.qemu import binary
from harness.qemu import disk as disks
from harness.states import portable
from harness.states.portable import Place
from harness.states.snapshot import DEVICES, Snapshot

_QCOW2: Final = b"QFI\xfb"
_EXTERNAL_DATA: Final = 1 << 2
"""The incompatible feature of a qcow2 file whose data are in another file (``docs/interop/qcow2``)."""


def snapshot_of(machine: SavedMachine, folder: Path) -> Snapshot:
    """Return the snapshot of a machine, with references for its paths.

    Raises:
        BundleError: It is not a snapshot of this version of Harness.
    """
    try:
        saved = jsonfile.parse(Snapshot, {**machine.snapshot, "folder": str(folder)})
    except ValueError as error:
        raise BundleError(
            f"machine {machine.name} of the bundle is of another version of Harness, or damaged",
            evidence=str(error),
        ) from error
    if (saved.spec.name, saved.spec.arch) != (machine.name, machine.arch) or (
        saved.cold != machine.cold or saved.files or saved.bases
    ):
        raise BundleError(f"machine {machine.name} of the bundle contradicts its manifest")
    return saved


def check(bundle: Bundle, machine: SavedMachine, accel: str) -> Snapshot:
    """Raise unless a machine of a bundle can be resumed on this host; return its snapshot.

    Args:
        bundle: The bundle.
        machine: The machine.
        accel: The accelerator of guests of its architecture here.

    Raises:
        BundleError: It cannot; says why.
    """
    manifest = bundle.manifest
    saved = snapshot_of(machine, Path("/"))
    there = Place(saved.qemu, saved.accel, manifest.host.cpu_vendor)
    qemu = binary.find(machine.arch)
    here = Place(qemu.version, accel, vendor())
    try:
        portable.check(saved, there, here, binary.machine_types(qemu))
    except BundleError as error:
        error.hint = f"harness repro {bundle.path} runs its test again"
        raise
    return saved


def resume(
    bundle: Bundle, machines: Sequence[SavedMachine], folder: Path, lab: Lab
) -> list[Machine[Any]]:
    """Take machines out of a bundle and let them run on.

    Args:
        bundle: The bundle.
        machines: Those of its machines that are to run.
        folder: A new folder for their files; they are in use until the machines end.
        lab: The lab whose machines they become.

    Raises:
        BundleError: The bundle is damaged, or an image here is another one.
        HarnessError: An image cannot be had; or a machine does not start.
    """
    manifest = bundle.manifest
    numbers = {each for machine in machines for each in _needed(machine)}
    artifacts = {each: _obtain(manifest.artifacts[each], lab) for each in sorted(numbers)}
    names = {nic.segment for machine in machines for nic in _spec(machine).nics if nic.segment}
    homes = tuple(f"{machine.folder}/" for machine in machines)
    homes += tuple(f"{SEGMENTS}/{name}/" for name in names)
    bundle_archive.extract(
        bundle.archive, manifest.files, folder, lambda path: path.startswith(homes)
    )
    segments = {}
    for name in sorted(names):
        saved = name in manifest.segments
        state = SegmentState.read(folder / SEGMENTS / name) if saved else None
        segments[name] = lab.segment(name, state=state)
    running = []
    for machine in machines:
        snapshot = _unpack(machine, folder, artifacts)
        mine = {nic.segment: segments[nic.segment] for nic in snapshot.spec.nics if nic.segment}
        running.append(
            lab.fork(
                snapshot, image=machine.image, name=machine.name, segments=tuple(mine.values())
            )
        )
    # A saved one stands still until all its machines run.
    for name in names & set(manifest.segments):
        segments[name].resume()
    return running


def _spec(machine: SavedMachine) -> Any:
    return snapshot_of(machine, Path("/")).spec


def _needed(machine: SavedMachine) -> set[int]:
    """Return the numbers of the artifacts that a machine refers to."""
    spec = _spec(machine)
    paths = [spec.firmware.kernel, spec.firmware.initrd, *(disk.base for disk in spec.disks)]
    numbers = {
        int(match[1])
        for path in paths
        if path is not None and (match := re.fullmatch(r"image:(\d{1,4})", str(path)))
    }
    for disk in machine.disks:
        numbers |= {*disk.sources, *(() if disk.base is None else (disk.base,))}
    return numbers


def _obtain(artifact: Artifact, lab: Lab) -> Path:
    """Return the path of an image's file in this host's cache, by its digest.

    One that is there is taken, whatever ``image.yaml`` says now. Otherwise the image is built.

    Raises:
        BundleError: What is built or fetched is another file.
        HarnessError: The image cannot be had.
    """
    if (path := _cached(artifact, lab.store)) is not None:
        return path
    try:
        selection = lab.catalog.resolve(artifact.image, artifact.arch)
        lease = lab.artifacts(selection)
    except HarnessError as error:
        error.add_note(f"the bundle needs {artifact.name} of {artifact.image}")
        raise
    file = lease.manifest.artifacts.get(artifact.name)
    if file is None or file.sha256 != artifact.sha256:
        same = lease.manifest.key == artifact.inputs
        why = (
            "it was built again, and its build does not make the same file twice"
            if same
            else "it is made from other files than at the time of the failure"
        )
        raise BundleError(
            f"{artifact.name} of image {artifact.image} is another file here: {why}",
            evidence=f"sha256 {artifact.sha256} in the bundle",
            hint=f"copy entries/*-{artifact.inputs[:20]} of the cache from where the test failed, or"
            " run the test again: harness repro",
        )
    return lease[artifact.name]


def _cached(artifact: Artifact, store: Store) -> Path | None:
    for entry in store.list():
        manifest = entry.manifest
        file = manifest.artifacts.get(artifact.name) if manifest is not None else None
        if file is not None and (file.sha256, file.size) == (artifact.sha256, artifact.size):
            # Lent until this process ends.
            lease = store.lend(entry.id)
            path = lease[artifact.name]
            if path.is_file() and path.stat().st_size == artifact.size:
                return path
    return None


def _unpack(machine: SavedMachine, folder: Path, artifacts: Mapping[int, Path]) -> Snapshot:
    """Return the snapshot of a machine whose files are in ``folder``, ready to be forked."""
    home = folder / MACHINES / machine.name
    if not machine.cold:
        (home / STATE).rename(home / DEVICES)
    (home / "disks").mkdir(parents=True, exist_ok=True)
    for disk in machine.disks:
        _restore_disk(disk, folder, artifacts)
    saved = snapshot_of(machine, home)
    spec = saved.spec

    def place(path: Path | None) -> Path | None:
        return None if path is None else _resolved(str(path), folder, machine, artifacts)

    return replace(
        saved,
        spec=replace(
            spec,
            disks=tuple(replace(disk, base=place(disk.base)) for disk in spec.disks),
            firmware=replace(
                spec.firmware,
                kernel=place(spec.firmware.kernel),
                initrd=place(spec.firmware.initrd),
            ),
        ),
    )


def _resolved(
    reference: str, folder: Path, machine: SavedMachine, artifacts: Mapping[int, Path]
) -> Path:
    kind, _, rest = reference.partition(":")
    if kind == "image" and rest.isdecimal() and int(rest) in artifacts:
        return artifacts[int(rest)]
    path = folder / rest
    plain = ".." not in rest.split("/") and rest.startswith(f"{machine.folder}/")
    if kind == "file" and plain and path.is_file():
        return path
    raise BundleError(
        f"machine {machine.name} of the bundle refers to {reference!r}, which is nowhere"
    )


def _restore_disk(disk: SavedDisk, folder: Path, artifacts: Mapping[int, Path]) -> None:
    """Make the qcow2 file of a disk, on its base in this host's cache."""
    path = (folder / disk.path).with_suffix(".qcow2")
    if disk.path.endswith(".delta"):
        delta = folder / disk.path
        try:
            with delta.open("rb") as source, path.open("xb") as output:
                sources = [artifacts[number] for number in disk.sources]
                bundle_delta.decode(source, sources, output, disk.size)
        except bundle_delta.DeltaError as error:
            raise BundleError(f"disk {disk.name} of the bundle is damaged: {error}") from error
        delta.unlink()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = file.read(104)
    if digest != disk.sha256:
        raise BundleError(
            f"disk {disk.name} of the bundle has another digest than its manifest says"
        )
    overlay = _is_overlay(start, disk.name)
    if overlay != (disk.base is not None):
        raise BundleError(f"disk {disk.name} of the bundle contradicts its manifest")
    if disk.base is not None:
        # Only the name of the base changes (-u): its content is the same, as its digest says.
        base = str(artifacts[disk.base])
        disks.qemu_img(
            *("rebase", "-u", "-f", "qcow2", "-b", base, "-F", disk.base_format, str(path))
        )


def _is_overlay(start: bytes, name: str) -> bool:
    """Return whether a qcow2 file has a base, from its header.

    A file that reads others, by a base or external data, would show this host's files to a guest.

    Raises:
        BundleError: It is no qcow2 file that Harness would have written.
    """
    if len(start) < 80 or start[:4] != _QCOW2:
        raise BundleError(f"disk {name} of the bundle is no qcow2 file")
    version, backing = struct.unpack(">IQ", start[4:16])
    features = struct.unpack(">Q", start[72:80])[0] if version >= 3 else 0
    if version not in (2, 3) or features & _EXTERNAL_DATA:
        raise BundleError(f"disk {name} of the bundle keeps its data in another file")
    return bool(backing)
