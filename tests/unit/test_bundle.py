"""Bundles: the manifest, packing with saved machines, taking disks out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts.entry import File
from harness.artifacts.entry import Manifest as EntryManifest
from harness.bundles import pack, resume
from harness.bundles.pack import Moment, Moments, Packing
from harness.errors import BundleError
from harness.evidence import bundle_archive as archives
from harness.evidence.bundle import Bundle, Host, Manifest, SavedMachine, Test
from harness.evidence.secrets import Secrets
from harness.qemu.disk import qemu_img
from harness.spec import MIB, Account, Disk, Firmware, FirmwareKind, MachineSpec
from harness.states.snapshot import DEVICES, Snapshot

TEST = Test(
    id="suites/boot/test_live.py::test_it",
    arch="x86_64",
    verdict="product",
    reason="AssertionError: the sekret word",
    signature="0123456789abcdef",
    phase="call",
    file="suites/boot/test_live.py",
    sha256="",
    arguments=("suites/boot/test_live.py::test_it", "--image=leaf"),
    seeds={"cut_seed": "1"},
    time="2026-11-29T01:02:03+00:00",
)
DRAFT = Manifest(TEST, "leaf/core:1", "f" * 64, {"harness": "0.1.0"}, Host({}, "", {}))
PROVENANCE = {"image": "leaf", "variant": "core", "version": "1", "inputs": "f" * 64}


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """Return a cache's folder of entries, with one image."""
    folder = tmp_path / "entries/leaf-core-1-x86_64-ffffffffffffffffffff"
    folder.mkdir(parents=True)
    content = bytes(range(256)) * 16 + b"".join(n.to_bytes(4096, "big") for n in range(1, 1024))
    (folder / "disk.raw").write_bytes(content)
    member = archives.Member.of("disk.raw", folder / "disk.raw")
    files = {"disk": File("disk.raw", member.sha256, member.size)}
    EntryManifest("leaf", "x86_64", "1", "core", "f" * 64, 0.0, 0.0, files).write(folder)
    return tmp_path / "entries"


@pytest.fixture
def saved(tmp_path: Path, entries: Path) -> Snapshot:
    """Return a saved machine whose disk is mostly a copy of the image's."""
    folder = tmp_path / "saved/leaf"
    (folder / "disks").mkdir(parents=True)
    (folder / DEVICES).write_bytes(b"stream" * 1000)
    base = next(entries.glob("*/disk.raw"))
    whole, overlay = folder / "disks/whole.qcow2", folder / "disks/overlay.qcow2"
    qemu_img("convert", "-O", "qcow2", str(base), str(whole))
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay))
    subprocess.run(["qemu-io", "-c", "write -P 7 64k 64k", str(overlay)], check=True)
    spec = MachineSpec(
        "leaf",
        "x86_64",
        Firmware(FirmwareKind.UEFI),
        disks=(Disk("whole", size=4 * MIB), Disk("overlay", base=base)),
    )
    return Snapshot(
        folder, spec, "pc-q35-10.0", "tcg", "max", "10.0.2", 1.0, account=Account("root", "leaf")
    )


def packed(
    tmp_path: Path, entries: Path, saved: Snapshot, secrets: Secrets | None = None, **options: Any
) -> Path:
    evidence = tmp_path / "evidence"
    (evidence / "leaf").mkdir(parents=True, exist_ok=True)
    (evidence / "leaf/serial.log").write_text("the sekret word\n")
    (evidence / "leaf/disks").mkdir(exist_ok=True)
    (evidence / "leaf/disks/big.qcow2").write_bytes(b"no evidence")
    moments = Moments({"leaf": Moment(saved, "running", PROVENANCE, "leaf")})
    packing = Packing(DRAFT, entries, secrets or Secrets())
    return packing.write(evidence / "bundle.tar.zst", {"": evidence}, moments, **options)


def test_a_disk_is_its_difference_and_comes_back(
    tmp_path: Path, entries: Path, saved: Snapshot
) -> None:
    path = packed(tmp_path, entries, saved)
    out = tmp_path / "out"
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        archives.extract(bundle.archive, manifest.files, out)
    (machine,) = manifest.machines
    (artifact,) = manifest.artifacts
    whole, overlay = machine.disks
    assert (artifact.image, artifact.name) == ("leaf/core:1", "disk")
    assert whole.path.endswith("whole.delta")
    assert (overlay.path.endswith("overlay.qcow2"), overlay.base) == (True, 0)
    assert (out / whole.path).stat().st_size < 400 * 1024 < whole.size
    # Elsewhere the image lies in another place.
    elsewhere = tmp_path / "elsewhere.raw"
    next(entries.glob("*/disk.raw")).rename(elsewhere)
    snapshot = resume._unpack(machine, out, {0: elsewhere})
    assert [disk.name for disk in snapshot.spec.disks] == ["whole", "overlay"]
    for disk in snapshot.spec.disks:
        assert disk.base is not None
        raw = tmp_path / f"{disk.name}.raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", str(disk.base), str(raw))
        content = bytearray(elsewhere.read_bytes())
        if disk.name == "overlay":
            content[64 * 1024 : 128 * 1024] = b"\7" * 64 * 1024
        assert raw.read_bytes() == bytes(content)
    assert snapshot.streamed
    assert snapshot.devices.read_bytes() == b"stream" * 1000
    paths = [member.path for member in manifest.files]
    assert "evidence/leaf/serial.log" in paths
    assert not any("big.qcow2" in each for each in paths)


def test_a_machine_that_knows_a_secret_is_withheld(
    tmp_path: Path, entries: Path, saved: Snapshot
) -> None:
    secrets = Secrets()
    secrets.declare("word", "sekret")
    path = packed(tmp_path, entries, saved, secrets)
    with Bundle(path) as bundle:
        assert bundle.manifest.machines == ()
        assert bundle.manifest.withheld[0].why == "secret word has entered it"
        assert b"sekret" not in bundle.archive.manifest
    (tmp_path / "evidence/leaf/serial.log").unlink()
    (saved.folder / DEVICES).write_bytes(b"RAM" * 700_000 + b"sekret")
    secrets = Secrets()
    secrets.declare("other", "another word")
    with Bundle(packed(tmp_path, entries, saved, secrets)) as bundle:
        assert [machine.name for machine in bundle.manifest.machines] == ["leaf"]


@pytest.mark.parametrize(
    "place",
    [
        lambda saved: replace(saved, account=Account("root", "sekret")),
        lambda saved: replace(saved, spec=replace(saved.spec, credentials=(("a", "sekret"),))),
        lambda saved: (saved.folder / DEVICES).write_bytes(b"RAM" * 700_000 + b"sekret") and saved,
    ],
    ids=["account", "credential", "ram"],
)
def test_a_secret_is_looked_for_in_the_machine_itself(
    tmp_path: Path, entries: Path, saved: Snapshot, place: Callable[[Snapshot], Snapshot]
) -> None:
    packing = Packing(DRAFT, entries)
    packing.secrets.declare("word", "sekret")
    assert packing._secrets_in(saved) == set()
    assert packing._secrets_in(place(saved)) == {"word"}


def test_machines_are_left_out_of_what_would_be_too_large(
    tmp_path: Path, entries: Path, saved: Snapshot
) -> None:
    path = packed(tmp_path, entries, saved, most=1000)
    with Bundle(path) as bundle:
        manifest = bundle.manifest
    assert (manifest.machines, manifest.artifacts) == ((), ())
    assert "would be larger than 1000 B" in manifest.withheld[0].why
    assert {member.path.partition("/")[0] for member in manifest.files} == {"evidence"}


def test_a_foreign_base_withholds_the_machine(
    tmp_path: Path, entries: Path, saved: Snapshot
) -> None:
    path = packed(tmp_path, entries.parent / "other", saved)
    with Bundle(path) as bundle:
        assert bundle.manifest.machines == ()
        assert "no file of an image" in bundle.manifest.withheld[0].why


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda m: m.update(format=2), "has format 2, and this Harness reads 1"),
    "no format": (lambda m: m.pop("format"), "does not name its format"),
    "more": (lambda m: m.update(more=1), "manifest is wrong"),
    "less": (lambda m: m.pop("test"), "manifest is wrong"),
    "artifact": (lambda m: m.update(artifacts=[]), "needs an unknown artifact"),
    "twins": (lambda m: m["machines"].append(m["machines"][0]), "two machines have one name"),
    "disk elsewhere": (
        lambda m: m["machines"][0]["disks"][0].update(path="evidence/leaf/serial.log"),
        "is not in it",
    ),
    "no state": (
        lambda m: m["machines"][0].update(name="other", disks=[]),
        "state of machine other is not in it",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, entries: Path, saved: Snapshot, name: str
) -> None:
    path = packed(tmp_path, entries, saved)
    out = tmp_path / "out"
    with Bundle(path) as bundle:
        members = bundle.manifest.files
        content = json.loads(bundle.archive.manifest)
        archives.extract(bundle.archive, members, out)
    change, why = CHANGES[name]
    change(content)
    archives.write(path, json.dumps(content).encode(), [(m, out / m.path) for m in members])
    with pytest.raises(BundleError, match=why):
        Bundle(path)


def test_a_disk_that_reads_files_of_the_host_is_refused(
    tmp_path: Path, entries: Path, saved: Snapshot
) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    bad = tmp_path / "bad.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(tmp_path / "secret"), "-F", "raw", str(bad))
    assert resume._is_overlay(bad.read_bytes()[:104], "d")
    data = f"data_file={tmp_path / 'secret'},data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", data, str(bad), "1M")
    with pytest.raises(BundleError, match="keeps its data in another file"):
        resume._is_overlay(bad.read_bytes()[:104], "d")
    with pytest.raises(BundleError, match="no qcow2 file"):
        resume._is_overlay(b"raw" * 100, "d")
    # A machine's manifest says that its disk is whole, and the disk has a base all the same.
    path = packed(tmp_path, entries, saved)
    out = tmp_path / "out"
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        archives.extract(bundle.archive, manifest.files, out)
    (machine,) = manifest.machines
    lying = replace(machine, disks=(replace(machine.disks[1], base=None),))
    with pytest.raises(BundleError, match="contradicts its manifest"):
        resume._unpack(lying, out, {})


@pytest.mark.parametrize(
    "base", ["/etc/passwd", "file:/etc/passwd", "file:machines/leaf/../../x", "image:7", "file:"]
)
def test_a_reference_leads_nowhere_else(tmp_path: Path, base: str) -> None:
    machine = SavedMachine("leaf", "leaf", "x86_64", "running", "", {}, ())
    with pytest.raises(BundleError, match="which is nowhere"):
        resume._resolved(base, tmp_path, machine, {})


def test_links_and_other_tries_are_no_evidence(tmp_path: Path) -> None:
    (tmp_path / "try-2").mkdir()
    (tmp_path / "try-2/serial.log").touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "timeline.json").touch()
    assert [path.name for path in pack._walk(tmp_path)] == ["timeline.json"]
