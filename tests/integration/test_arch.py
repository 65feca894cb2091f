"""Architectures that the image, the host or a file does not have: each is said before a guest starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from fixtures.project import ROOT, Finished, Project
from harness import Lab
from harness import arch as arches
from harness.arch import ARCHES
from harness.errors import UsageError
from harness.qemu import firmware
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec

FOREIGN = next(arch for arch in ARCHES if arch != arches.host())
OTHER = dict(zip(ARCHES, reversed(ARCHES), strict=True))

IMAGE = """\
name: {name}
summary: A disk of zeros
profile: micro
build: {{script: build, inputs: [build]}}
arches:
"""
ARCH = """\
  {arch}:
    firmware: uefi
    artifacts: {{live: {{file: disk.raw}}}}
"""
BUILD = """\
#!/bin/sh
truncate -s 1M "$8/disk.raw"
"""
TEST = """\
def test_boot(lab):
    lab.boot()
"""


@pytest.fixture
def projects(project: Project) -> Project:
    """Return a project with an image for one arch and an image for both."""
    for name, named in (("mono", (arches.host(),)), ("duo", ARCHES)):
        text = IMAGE.format(name=name) + "".join(ARCH.format(arch=arch) for arch in named)
        project.write(f"images/{name}/image.yaml", text)
        project.write(f"images/{name}/build", BUILD).chmod(0o755)
    project.write("test_boot.py", TEST)
    project.env |= {"HARNESS_CACHE": str(project.folder / "cache"), "PYTHONPATH": str(ROOT)}
    return project


def acceptance(project: Project, *arguments: str, env: Mapping[str, str] = {}) -> Finished:
    command = (sys.executable, "-m", "harness.cli", "acceptance", "test_boot.py", *arguments)
    return project.run(*command, **env)


def lab(project: Project, *arguments: str, env: Mapping[str, str] = {}) -> Finished:
    """Boot the image by a script for ``harness lab``."""
    command = f"{sys.executable} -m harness.cli lab {' '.join(arguments)}"
    return project.run("sh", "-c", f"echo 'lab.boot()' | {command}", **env)


def both(project: Project, *arguments: str, env: Mapping[str, str] = {}) -> str:
    """Return what both commands say of something that the host lacks."""
    judged = acceptance(project, "--image", "duo", "--arch", FOREIGN, *arguments, env=env)
    assert judged.status == 11, judged.text
    assert "tried once more" not in judged.text
    assert "retried" not in judged.text
    assert "verdict infra" in judged.text
    scripted = lab(project, "duo", "--arch", FOREIGN, *arguments, env=env)
    assert scripted.status == 3, scripted.text
    return scripted.text


def test_an_image_without_the_arch_is_wrong_usage(projects: Project) -> None:
    result = acceptance(projects, "--image", "mono", "--arch", FOREIGN)
    assert result.status == 4
    for each in (result, lab(projects, "mono", "--arch", FOREIGN)):
        assert f"unknown arch of mono '{FOREIGN}'" in each.text
        assert f"known: {arches.host()}" in each.text
    command = (sys.executable, "-m", "harness.cli", "images", "build", "mono", "--arch", FOREIGN)
    assert projects.run(*command).status == 2


def test_a_missing_qemu_names_its_package(projects: Project, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "truncate", "qemu-img", "setpriv"):
        program = shutil.which(name)
        assert program is not None
        (tools / name).symlink_to(program)
    text = both(projects, env={"PATH": str(tools)})
    assert f"{arches.of(FOREIGN).qemu} is not installed" in text
    assert f"install the package {arches.of(FOREIGN).qemu_package}" in text


def test_a_missing_firmware_names_its_package(projects: Project, tmp_path: Path) -> None:
    # docs/interop/firmware.json of QEMU: an empty file hides the system's of the same name.
    hidden = tmp_path / "home" / ".config" / "qemu" / "firmware"
    hidden.mkdir(parents=True)
    for path in firmware.descriptors(firmware.DIRECTORIES):
        if FOREIGN in path.name:
            (hidden / path.name).touch()
    text = both(projects, env={"HOME": str(tmp_path / "home")})
    assert f"no uefi firmware for {FOREIGN}" in text
    assert f"install the package {arches.of(FOREIGN).uefi_package}" in text


def test_kvm_for_a_foreign_arch_is_refused(projects: Project) -> None:
    text = both(projects, "--accel", "kvm")
    assert f"the guest is {FOREIGN} and this host is {arches.host()}" in text
    assert "--accel auto" in text


# --- files of another arch ----------------------------------------------------------------------


def gpt(path: Path, kind: UUID) -> Path:
    """Write a disk of 1 MiB with a table of one partition of this type."""
    content = bytearray(MIB)
    content[512 : 512 + 92] = (
        b"EFI PART"
        + bytes(64)
        + (2).to_bytes(8, "little")
        + ((1).to_bytes(4, "little") + (128).to_bytes(4, "little") + bytes(4))
    )
    content[1024 : 1024 + 16] = kind.bytes_le
    content[1024 + 32 : 1024 + 40] = (64).to_bytes(8, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("arch", ARCHES)
def test_an_image_s_file_for_another_arch_is_said_with_its_name(
    projects: Project, arch: str
) -> None:
    name, kind = next(iter(arches.of(OTHER[arch]).marks.partitions.items()))
    disk = gpt(projects.folder / "disk", kind)
    projects.write("images/duo/build", f'#!/bin/sh\ncp {disk} "$8/disk.raw"\n')
    judged = acceptance(projects, "--image", "duo", "--arch", arch)
    assert judged.status == 10, judged.text
    assert "verdict test" in judged.text
    scripted = lab(projects, "duo", "--arch", arch)
    assert scripted.status == 2
    for result in (judged, scripted):
        what = (
            f"disk.raw, the artifact 'live' of duo/default:1 on {arch}, is made for {OTHER[arch]}"
        )
        assert f"{what}, not for {arch}" in result.text
        assert name in result.text
        assert f"--arch {OTHER[arch]}" in result.text


@pytest.mark.parametrize("arch", ARCHES)
def test_a_disk_and_a_kernel_of_another_arch_are_refused_before_a_guest_starts(
    lab: Lab, tmp_path: Path, arch: str
) -> None:
    kind = next(iter(arches.of(OTHER[arch]).marks.partitions.values()))
    disk = Disk("root", base=gpt(tmp_path / "disk", kind))
    own = lab.select("micro", arch)
    with pytest.raises(UsageError, match=f"disk root, .*, is made for {OTHER[arch]}"):
        lab.boot(own, name="disk", disks=[replace(disk, boot_index=0)], authorize=False)
    files = lab.artifacts(lab.select("micro", OTHER[arch]))
    boot = Firmware(FirmwareKind.KERNEL, files["kernel"], files["initrd"], "")
    with pytest.raises(UsageError, match=f"kernel .* is made for {OTHER[arch]}, not for {arch}"):
        lab.launch(MachineSpec("kernel", arch, boot), own)
    for name in ("disk", "kernel"):
        assert not (lab.folder / name / "qemu.stderr").exists()
