"""Packs a bundle: the machines at the moment of failure, then everything when the test has ended.

Nothing here changes a test's verdict. What cannot be saved is named in the manifest, with the reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from harness import jsonfile
from harness.artifacts.entry import Manifest as EntryManifest
from harness.deadline import UNSCALED, Deadline
from harness.errors import HarnessError, first_line_of
from harness.evidence import bundle, bundle_archive, bundle_delta
from harness.evidence.bundle import Artifact, Manifest, SavedDisk, SavedMachine, Withheld
from harness.evidence.bundle_archive import Member, TooLargeError
from harness.evidence.secrets import Secrets
from harness.machine import Machine
from harness.network import Segment
from harness.qemu import disk as disks
from harness.spec import GIB, MIB, format_size
from harness.states.snapshot import DEVICES, TPM, VARIABLES, Snapshot

SECONDS: Final = 120.0
"""Seconds that all machines of a test may take to be saved."""

ANSWER: Final = 20.0
"""Seconds in which QEMU answers, or is taken for one that hangs."""

LIMIT: Final = 1 * GIB
"""Bytes that a bundle may have, before its machines are left out."""

RAW_MOST: Final = 8 * GIB - 1
"""Bytes of a file in a bundle: the size that a header of ustar can say."""

EVIDENCE_MOST: Final = 256 * MIB
"""Bytes of a file of evidence in a bundle."""

_WORTH: Final = 1 * MIB
"""Bytes from which on a disk is compared with files of the image."""

_SKIPPED: Final = frozenset({"disks", "bundle"})


@dataclass(frozen=True, slots=True)
class Moment:
    """A machine as it was when its test failed.

    Attributes:
        snapshot: What was saved of it.
        power: QEMU's word for what it was doing.
        provenance: The image, its version and its digests.
        evidence: The name of the folder of its evidence.
        firmware: The SHA-256 of its UEFI firmware's code.
    """

    snapshot: Snapshot
    power: str
    provenance: Mapping[str, object]
    evidence: str
    firmware: str = ""


@dataclass
class Moments:
    """The machines of a test at the moment of its failure.

    Attributes:
        machines: Those that were saved, by name.
        segments: The folders of the segments that were saved, by name.
        withheld: Those that were not, and why.
    """

    machines: dict[str, Moment] = field(default_factory=dict)
    segments: dict[str, Path] = field(default_factory=dict)
    withheld: list[Withheld] = field(default_factory=list)


def salvage(
    machines: Iterable[Machine[Any]],
    folder: Path,
    *,
    inside: Path,
    limit: Deadline | None = None,
    most: int = RAW_MOST,
) -> Moments:
    """Save all machines of a failed test, and their segments, as they are now; they go on afterwards.

    All of them stop before the first one is saved, so that they are saved at one moment: the segments
    first, since a machine then takes what was handed to it, and nothing is lost.

    Args:
        machines: The machines; of several with one name, the last one counts.
        folder: The folder that gets ``machines/NAME`` and ``segments/NAME``.
        inside: The folder of the images' files: a disk is saved as its difference from these.
        limit: When to give up; :data:`SECONDS` by default.
        most: Bytes that the RAM and devices of one may take.
    """
    limit = limit or UNSCALED.after(SECONDS)
    moments = Moments()
    last = {machine.name: machine for machine in machines}
    with contextlib.ExitStack() as ending:
        segments = _stop_segments(last.values(), ending, moments)
        powers = {}
        for name, machine in last.items():
            try:
                powers[name] = _pause(machine, ending)
            except HarnessError as error:
                moments.withheld.append(Withheld(f"machine {name}", first_line_of(error)))
        for name, segment in segments.items():
            place = folder / bundle.SEGMENTS / name
            try:
                place.mkdir(parents=True)
                segment.save().write(place)
            except (HarnessError, OSError) as error:
                moments.withheld.append(Withheld(f"segment {name}", first_line_of(error)))
                continue
            moments.segments[name] = place
        for name, machine in last.items():
            if name not in powers:
                continue
            place = folder / bundle.MACHINES / name
            try:
                saved = machine.salvage(place, inside=inside, limit=limit, most=most)
                firmware = _firmware(machine)
            except (HarnessError, OSError) as error:
                shutil.rmtree(place, ignore_errors=True)
                moments.withheld.append(Withheld(f"machine {name}", first_line_of(error)))
                continue
            moments.machines[name] = Moment(
                saved, powers[name], machine.provenance, machine.evidence.name, firmware
            )
    return moments


def _stop_segments(
    machines: Iterable[Machine[Any]], ending: contextlib.ExitStack, moments: Moments
) -> dict[str, Segment]:
    """Let the segments of machines stand still until the stack is closed; return them by name."""
    segments: dict[str, Segment] = {}
    for machine in machines:
        for name, segment in machine.segments.items():
            if segments.setdefault(name, segment) is not segment:
                moments.withheld.append(Withheld(f"segment {name}", "two segments have this name"))
    for segment in segments.values():
        with contextlib.suppress(HarnessError, OSError):
            # Resumed after the machines, which the stack gets later.
            ending.enter_context(segment.standing_still())
    return segments


def _pause(machine: Machine[Any], ending: contextlib.ExitStack) -> str:
    """Stop a machine and see to it that it runs on; return what it did.

    Raises:
        QmpError, WaitTimeoutError: QEMU does not answer.
    """
    if not machine.running:
        return "off" if machine.powered_off else "ended"
    limit = UNSCALED.after(ANSWER)
    status = machine.qmp.execute("query-status", deadline=limit)
    machine.qmp.execute("stop", deadline=limit)
    if status["running"]:
        ending.callback(_resume, machine)
    return str(status["status"])


def _resume(machine: Machine[Any]) -> None:
    with contextlib.suppress(HarnessError):
        if machine.running:
            machine.qmp.execute("cont", deadline=UNSCALED.after(10))


def _firmware(machine: Machine[Any]) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((machine.evidence / "machine.json").read_bytes())
        return str(record["versions"]["firmware"])
    return ""


# --- the file ---------------------------------------------------------------------------------


@dataclass
class Packing:
    """A bundle that is being made.

    Args:
        draft: The manifest without machines and files.
        entries: The folder of the images' files, in the cache.
        secrets: The declared secrets.
        keep_secrets: Whether machines are carried that a secret has entered.
    """

    draft: Manifest
    entries: Path
    secrets: Secrets = field(default_factory=Secrets)
    keep_secrets: bool = False
    _artifacts: list[Artifact] = field(default_factory=list)
    _files: list[tuple[Member, Path]] = field(default_factory=list)
    _machines: list[SavedMachine] = field(default_factory=list)
    _segments: list[str] = field(default_factory=list)
    _withheld: list[Withheld] = field(default_factory=list)
    _redacted: set[str] = field(default_factory=set)

    def write(
        self,
        path: Path,
        evidence: Mapping[str, Path],
        moments: Moments,
        *,
        most: int = LIMIT,
    ) -> Path:
        """Write the bundle and return its path.

        Args:
            path: The file.
            evidence: Folders of evidence, by their path below ``evidence``.
            moments: The machines; their files may be moved.
            most: Bytes that it may have; without its machines, it may be larger.

        Raises:
            OSError: A file cannot be read or written.
            HarnessError: A disk cannot be read.
        """
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bundle-") as scratch:
            self._withheld = [*self.draft.withheld, *moments.withheld]
            holders = self._add_evidence(evidence, Path(scratch))
            bare = list(self._files)
            for name, place in moments.segments.items():
                self._add_segment(name, place)
            for name, moment in moments.machines.items():
                self._add_machine(name, moment, holders.get(moment.evidence, set()))
            try:
                bundle_archive.write(path, self._manifest(), self._files, most=most)
            except TooLargeError:
                why = f"the bundle would be larger than {format_size(most)}"
                self._withheld += [Withheld(f"machine {each.name}", why) for each in self._machines]
                self._machines, self._artifacts, self._segments = [], [], []
                self._files = bare
                bundle_archive.write(path, self._manifest(), self._files)
        return path

    def _manifest(self) -> bytes:
        test = self.draft.test
        clean = self.secrets.redacted
        # Whatever is text here is redacted, too: the reason of a failure may quote a secret.
        test = replace(
            test,
            id=clean(test.id),
            file=clean(test.file),
            reason=clean(test.reason),
            signature=clean(test.signature),
            arguments=tuple(clean(each) for each in test.arguments),
        )
        withheld = tuple(Withheld(clean(each.what), clean(each.why)) for each in self._withheld)
        return replace(
            self.draft,
            test=test,
            artifacts=tuple(self._artifacts),
            machines=tuple(self._machines),
            segments=tuple(self._segments),
            withheld=withheld,
            redacted=tuple(sorted(self._redacted)),
            files=tuple(member for member, _ in self._files),
        ).dump()

    # --- evidence -----------------------------------------------------------------------------

    def _add_evidence(self, folders: Mapping[str, Path], scratch: Path) -> dict[str, set[str]]:
        """Add the files of evidence; return the secrets by the folder that holds them."""
        holders: dict[str, set[str]] = {}
        number = 0
        for above, folder in folders.items():
            for file in _walk(folder):
                relative = file.relative_to(folder)
                place = "/".join([bundle.EVIDENCE, *([above] if above else []), *relative.parts])
                path = self._free(self.secrets.redacted(place))
                if path != place:
                    self._redacted |= self.secrets.names_in_text(place)
                size = file.stat().st_size
                if size > EVIDENCE_MOST or not bundle_archive.fits(path, size):
                    why = "its name does not fit" if size <= EVIDENCE_MOST else f"{size} bytes"
                    self._withheld.append(Withheld(path.encode("ascii", "replace").decode(), why))
                    continue
                if self.secrets:
                    copy = scratch / str(number)
                    number += 1
                    with file.open("rb") as source, copy.open("xb") as target:
                        held = self.secrets.redact(source, target)
                    self._redacted |= held
                    holders.setdefault(relative.parts[0], set()).update(held)
                    self._add(path, copy)
                else:
                    self._add(path, file)
        return holders

    def _free(self, path: str) -> str:
        """Return a path that is not in the bundle; redaction may make two names equal."""
        known = {member.path for member, _ in self._files} if self.secrets else set()
        numbers = itertools.count(2)
        free = path
        while free in known:
            free = f"{path}-{next(numbers)}"
        return free

    def _add(self, path: str, file: Path) -> Member:
        member = Member.of(path, file)
        self._files.append((member, file))
        return member

    # --- machines -----------------------------------------------------------------------------

    def _add_segment(self, name: str, place: Path) -> None:
        files = sorted(file for file in place.iterdir() if file.is_file())
        held: set[str] = set()
        for file in files:
            with file.open("rb") as source:
                held |= self.secrets.names_in_memory(source)
        if held and not self.keep_secrets:
            why = f"secret {', '.join(sorted(held))} was on its way"
            self._withheld.append(Withheld(f"segment {name}", why))
            return
        for file in files:
            self._add(f"{bundle.SEGMENTS}/{name}/{file.name}", file)
        self._segments.append(name)

    def _add_machine(self, name: str, moment: Moment, held: set[str]) -> None:
        saved = moment.snapshot
        secret = held | self._secrets_in(saved)
        if secret and not self.keep_secrets:
            why = f"secret {', '.join(sorted(secret))} has entered it"
            self._withheld.append(Withheld(f"machine {name}", why))
            return
        before = len(self._files)
        home = f"{bundle.MACHINES}/{name}"
        try:
            places = {disk.name: f"{home}/disks/{disk.name}.qcow2" for disk in saved.spec.disks}
            saved_disks = tuple(
                self._add_disk(disk.name, places[disk.name], saved, moment)
                for disk in saved.spec.disks
                if not disk.readonly
            )
            snapshot = self._references(saved, home)
            if not saved.cold:
                self._add(f"{home}/{bundle.STATE}", saved.folder / DEVICES)
            if saved.variables is not None:
                self._add(f"{home}/{VARIABLES}", saved.variables)
            for file in sorted((saved.folder / TPM).rglob("*")):
                if file.is_file():
                    self._add(f"{home}/{file.relative_to(saved.folder)}", file)
            unfit = [
                member.path
                for member, _ in self._files[before:]
                if not bundle_archive.fits(member.path, member.size)
            ]
            if unfit:
                raise OSError(
                    f"{unfit[0]} is too large for a bundle, or has a name that does not fit"
                )
        except (OSError, HarnessError) as error:
            del self._files[before:]
            why = error.what if isinstance(error, HarnessError) else str(error)
            self._withheld.append(Withheld(f"machine {name}", why))
            return
        image = "{image}/{variant}:{version}".format_map(moment.provenance)
        self._machines.append(
            SavedMachine(
                name=name,
                image=image,
                arch=saved.spec.arch,
                power=moment.power,
                cold=saved.cold,
                snapshot=snapshot,
                disks=saved_disks,
                firmware=moment.firmware,
            )
        )

    def _secrets_in(self, saved: Snapshot) -> set[str]:
        """Return the secrets in a machine's spec, RAM and disks."""
        if not self.secrets:
            return set()
        spec = saved.spec
        words = [spec.firmware.cmdline, *(value for _, value in spec.credentials)]
        words.append(saved.account.password if saved.account is not None else "")
        held = set().union(*(self.secrets.names_in_text(word) for word in words))
        for file in sorted(saved.folder.rglob("*")):
            if file.is_file() and file.name != "snapshot.json":
                with file.open("rb") as source:
                    held |= self.secrets.names_in_memory(source)
        return held

    def _add_disk(self, name: str, path: str, saved: Snapshot, moment: Moment) -> SavedDisk:
        file = saved.folder / "disks" / f"{name}.qcow2"
        whole = Member.of(path, file)
        output = disks.qemu_img("info", "-U", "--output=json", "-f", "qcow2", str(file))
        info = json.loads(output)
        base, kind = info.get("backing-filename"), str(info.get("backing-filename-format", "raw"))
        number = None
        if base is not None:
            number = self._artifact(Path(base))
            if number is None:
                raise OSError(f"disk {name} is an overlay on {base}, which is no file of an image")
        sources: tuple[int, ...] = ()
        if whole.size >= _WORTH:
            numbers = self._sources(moment)
            delta = file.with_suffix(".delta")
            with delta.open("xb") as target:
                bundle_delta.encode(file, [self._place(each) for each in numbers], target)
            if numbers and delta.stat().st_size < whole.size:
                file, path, sources = delta, path.removesuffix(".qcow2") + ".delta", numbers
        self._add(path, file)
        return SavedDisk(name, path, whole.size, whole.sha256, number, kind, sources)

    def _references(self, saved: Snapshot, home: str) -> dict[str, Any]:
        """Return a snapshot as plain JSON, with references for the paths in it."""
        spec = saved.spec
        all_disks = []
        for disk in spec.disks:
            if disk.readonly:
                assert disk.base is not None
                base = Path(self._refer(disk.base, home))
                all_disks.append(replace(disk, base=base))
            else:
                base = Path(f"file:{home}/disks/{disk.name}.qcow2")
                all_disks.append(replace(disk, base=base, format="qcow2", in_place=False))
        firmware = spec.firmware
        if firmware.kernel is not None:
            initrd = firmware.initrd
            firmware = replace(
                firmware,
                kernel=Path(self._refer(firmware.kernel, home)),
                initrd=Path(self._refer(initrd, home)) if initrd is not None else None,
            )
        tpm = replace(spec.tpm, state=None) if spec.tpm is not None else None
        spec = replace(spec, disks=tuple(all_disks), firmware=firmware, tpm=tpm)
        content = jsonfile.dump(replace(saved, spec=spec, files=(), bases=()))
        return {key: value for key, value in content.items() if key != "folder"}

    def _refer(self, path: Path, home: str) -> str:
        """Return the reference for a file: an artifact, or a file that the bundle then carries."""
        if (number := self._artifact(path)) is not None:
            return f"image:{number}"
        place = f"{home}/files/{path.name}"
        known = {member.path: file for member, file in self._files}
        count = 1
        while place in known and known[place] != path:
            count += 1
            place = f"{home}/files/{count}-{path.name}"
        if place not in known:
            self._add(place, path)
        return f"file:{place}"

    # --- artifacts ----------------------------------------------------------------------------

    def _artifact(self, path: Path) -> int | None:
        """Return the number of an image's file; ``None`` if the path is not one."""
        with contextlib.suppress(OSError):
            path = path.resolve()
        entries = self.entries.resolve()
        if not path.is_relative_to(entries):
            return None
        folder = entries / path.relative_to(entries).parts[0]
        manifest = EntryManifest.read(folder)
        names = (
            {} if manifest is None else {folder / f.file: n for n, f in manifest.artifacts.items()}
        )
        if manifest is None or path not in names:
            return None
        return self._number(manifest, names[path])

    def _number(self, manifest: EntryManifest, name: str) -> int:
        file = manifest.artifacts[name]
        image = f"{manifest.name}/{manifest.variant}:{manifest.version}"
        artifact = Artifact(image, manifest.arch, name, file.size, file.sha256, manifest.key)
        if artifact not in self._artifacts:
            self._artifacts.append(artifact)
        return self._artifacts.index(artifact)

    def _entry(self, inputs: str) -> tuple[Path, EntryManifest] | None:
        for folder in self.entries.glob(f"*-{inputs[:20]}"):
            if (manifest := EntryManifest.read(folder)) is not None and manifest.key == inputs:
                return folder, manifest
        return None

    def _sources(self, moment: Moment) -> tuple[int, ...]:
        """Return the numbers of the files of a machine's image that its disks may be copies of."""
        entry = self._entry(str(moment.provenance.get("inputs", "")) or "none")
        if entry is None:
            return ()
        manifest = entry[1]
        worth = [name for name, file in sorted(manifest.artifacts.items()) if file.size >= _WORTH]
        return tuple(self._number(manifest, name) for name in worth)

    def _place(self, number: int) -> Path:
        artifact = self._artifacts[number]
        entry = self._entry(artifact.inputs)
        if entry is None:
            raise OSError(f"{artifact.image} has been removed from the cache")
        return entry[0] / entry[1].artifacts[artifact.name].file


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of evidence below a folder: no disks, no other tries, no bundles, no links."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            each for each in folders if each not in _SKIPPED and not each.startswith(("try-", "."))
        )
        for name in sorted(files):
            path = Path(place, name)
            if not name.endswith(bundle.FILE) and path.is_file() and not path.is_symlink():
                yield path


__all__: Sequence[str] = ["LIMIT", "Moment", "Moments", "Packing", "salvage"]
