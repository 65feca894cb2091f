from __future__ import annotations

import base64
import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.arch import ARCHES, of
from harness.console.complaints import COMPLAINTS
from harness.errors import UsageError
from harness.qemu import argv
from harness.qemu.argv import Allocations, DiskFile, Ram
from harness.qemu.firmware import FlashFirmware
from harness.qemu.record import FORMAT, MachineRecord
from harness.qemu.script import record_machine, script
from harness.spec import (
    MIB,
    ConsoleDevice,
    Disk,
    Firmware,
    FirmwareKind,
    GuestForward,
    MachineSpec,
    Nic,
    Tpm,
)
from tests.programs import need

COMMANDS = Path(__file__).with_name("argv.json")
"""The command lines of :func:`variants`, as they were before the facts moved to harness.arch."""

KERNEL = Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"), "console=ttyS0 quiet")
ALLOCATIONS = Allocations(
    Path("/usr/bin/qemu"), "pc-q35-10.0", "tcg", "max", console_fds=(5, 7), qmp_fd=6
)
FLASH = FlashFirmware(Path("/code"), Path("/vars"), "raw", False, Path("/d.json"))


def record(
    spec: MachineSpec,
    allocations: Allocations,
    disks: Path,
    evidence: Path,
    provenance: Mapping[str, object] = {},
) -> Path:
    """Write a machine's record and script; return the path of the script."""
    record_machine(spec, allocations, folder=disks, evidence=evidence, provenance=provenance)
    return evidence / "qemu.sh"


def options(words: tuple[str, ...], name: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def variants() -> Iterator[tuple[str, MachineSpec, Allocations]]:
    """Yield a plain and a full machine for each arch, accelerator and firmware, with its name."""
    for arch in ARCHES:
        for accel in ("tcg", "kvm"):
            for kind in FirmwareKind:
                if kind is FirmwareKind.BIOS and arch == "aarch64":
                    continue
                kernel = kind is FirmwareKind.KERNEL
                spec = MachineSpec("m", arch, KERNEL if kernel else Firmware(kind))
                allocations = replace(ALLOCATIONS, accel=accel, machine=of(arch).machine)
                if kind in (FirmwareKind.UEFI, FirmwareKind.UEFI_SECURE):
                    flash = replace(FLASH, smm=kind is FirmwareKind.UEFI_SECURE)
                    allocations = replace(
                        allocations, firmware=flash, variables=Path("/d/efivars.fd")
                    )
                yield f"{arch} {accel} {kind} plain", spec, allocations
                yield f"{arch} {accel} {kind} full", *full(spec, allocations)


def full(spec: MachineSpec, allocations: Allocations) -> tuple[MachineSpec, Allocations]:
    """Return a machine with every part that a machine can have."""
    kernel = spec.firmware.kind is FirmwareKind.KERNEL
    spec = replace(
        spec,
        cpus=3,
        memory=512 * MIB,
        disks=(
            Disk("root", base=Path("/b"), boot_index=0),
            Disk("seed", base=Path("/s"), readonly=True),
        ),
        nics=(Nic(outbound=True), Nic("lan", forward=())),
        console=ConsoleDevice.VIRTIO,
        credentials=(("a", "b,c"),),
        display=True,
        tpm=None if kernel else Tpm(),
    )
    return spec, replace(
        allocations,
        credentials=Path("/d/credentials"),
        disks={
            "root": DiskFile(Path("/d/root.qcow2"), "qcow2"),
            "seed": DiskFile(Path("/s"), "raw"),
        },
        ram=Ram(Path("/r"), private=True),
        incoming=Path("/dev"),
        tpm_state=None if kernel else Path("/d/tpm"),
        tpm_fd=None if kernel else 9,
    )


# --- the command line ---------------------------------------------------------------------------


def test_the_command_lines_of_every_arch_are_unchanged() -> None:
    commands = {name: list(argv.build(spec, allocations)) for name, spec, allocations in variants()}
    assert commands == json.loads(COMMANDS.read_text())


def test_argv_is_a_function_of_its_arguments() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL)
    assert argv.build(spec, ALLOCATIONS) == argv.build(spec, ALLOCATIONS)


def test_the_guest_waits_until_console_and_monitor_are_attached() -> None:
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), ALLOCATIONS)
    assert "-S" in words
    assert "-no-shutdown" in words
    assert options(words, "-add-fd") == ["fd=5,set=1", "fd=7,set=2"]
    assert "file,id=console,path=/dev/fdset/1,append=on,input-path=/dev/fdset/2" in words
    assert "socket,id=qmp,fd=6" in words


def test_by_hand_the_guest_runs_at_once_on_the_terminal() -> None:
    allocations = argv.by_hand(ALLOCATIONS, Path("/d"))
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), allocations)
    assert "-S" not in words
    assert "-no-shutdown" not in words
    assert "stdio,id=console,signal=off" in words


def test_a_tpm_has_a_descriptor_in_a_run_and_a_path_by_hand(tmp_path: Path) -> None:
    uefi = Firmware(FirmwareKind.UEFI)
    disks = tmp_path / "disks"
    allocations = replace(ALLOCATIONS, tpm_state=disks / "tpm", tpm_fd=9)
    for arch, device in (("x86_64", "tpm-tis"), ("aarch64", "tpm-tis-device")):
        words = argv.build(MachineSpec("m", arch, uefi, tpm=Tpm()), allocations)
        assert "socket,id=tpm,fd=9" in options(words, "-chardev")
        assert f"{device},tpmdev=tpm0" in options(words, "-device")
    assert "-tpmdev" not in argv.build(MachineSpec("m", "x86_64", uefi), allocations)
    spec = MachineSpec("m", "x86_64", uefi, tpm=Tpm(Path("/kept/tpm")))
    text = record(spec, allocations, disks, tmp_path).read_text()
    assert '[ -e "$disks/tpm" ] || cp -r /kept/tpm "$disks/tpm"' in text
    start = (
        "swtpm socket --tpm2 --terminate --tpmstate dir=/proc/self/fd/8 --ctrl type=unixio,path="
    )
    assert start in text
    assert '8<"$disks/tpm" 9<"$sockets"\n' in text
    assert text.index(start) < text.index("exec ")
    assert 'socket,id=tpm,path=$sockets_value/swtpm.sock"' in text


def test_the_network_is_closed_by_default_and_qemu_picks_the_host_ports() -> None:
    closed, opened = (
        options(argv.build(MachineSpec("m", "x86_64", KERNEL, nics=(nic,)), ALLOCATIONS), "-netdev")
        for nic in (Nic(forward=(22, 80)), Nic(outbound=True))
    )
    assert "restrict=on" in closed[0]
    assert closed[0].count("hostfwd=tcp:127.0.0.1:0-:") == 2
    assert closed[0].endswith("-:80")
    assert "restrict=off" in opened[0]


def test_commas_in_paths_are_doubled() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, disks=(Disk("d", size=512),))
    allocations = replace(ALLOCATIONS, disks={"d": DiskFile(Path("/a,b/d.qcow2"), "qcow2")})
    assert "file.filename=/a,,b/d.qcow2" in options(argv.build(spec, allocations), "-blockdev")[0]


def test_disks_have_serial_boot_index_and_read_only() -> None:
    spec = MachineSpec(
        "m",
        "x86_64",
        Firmware(FirmwareKind.UEFI),
        disks=(
            Disk("live", base=Path("/l"), boot_index=0),
            Disk("target", size=512, serial="T-1"),
            Disk("seed", base=Path("/s"), readonly=True),
        ),
    )
    files = {name: DiskFile(Path(f"/{name}"), "raw") for name in ("live", "target", "seed")}
    words = argv.build(spec, replace(ALLOCATIONS, disks=files))
    live, target, seed = (device for device in options(words, "-device") if "virtio-blk" in device)
    assert "bootindex=0" in live
    assert "serial=T-1" in target
    assert "bootindex" not in target
    assert "serial=seed" in seed
    read_only = ["read-only=on" in blockdev for blockdev in options(words, "-blockdev")]
    assert read_only == [False, False, True]


def test_a_display_needs_the_memory_of_the_vga_adapter_which_comes_with_smm() -> None:
    spec = MachineSpec("m", "x86_64", Firmware(FirmwareKind.BIOS))
    for display, smm in ((False, "off"), (True, "on")):
        words = argv.build(replace(spec, display=display), ALLOCATIONS)
        assert options(words, "-machine")[0].startswith(f"pc-q35-10.0,smm={smm}")


def test_the_firmware_of_arm64_waits_for_no_key() -> None:
    allocations = replace(ALLOCATIONS, firmware=FLASH, variables=Path("/mine"))
    for name, boot in (("aarch64", ["menu=on,splash-time=0"]), ("x86_64", [])):
        words = argv.build(MachineSpec("m", name, Firmware(FirmwareKind.UEFI)), allocations)
        assert options(words, "-boot") == boot
        assert "-boot" not in argv.build(MachineSpec("m", name, KERNEL), ALLOCATIONS)


def test_direct_kernel_boot_tries_no_disk() -> None:
    """QEMU's ROM with the kernel has the boot index 0; a disk with the same would be an error."""
    spec = MachineSpec("m", "x86_64", KERNEL, disks=(Disk("live", base=Path("/l"), boot_index=0),))
    allocations = replace(ALLOCATIONS, disks={"live": DiskFile(Path("/l"), "raw")})
    assert "bootindex" not in " ".join(argv.build(spec, allocations))


def test_the_bios_writes_to_the_serial_port_unless_there_is_a_display() -> None:
    for firmware in (KERNEL, Firmware(FirmwareKind.BIOS)):
        spec = MachineSpec("m", "x86_64", firmware)
        assert ",graphics=off" in options(argv.build(spec, ALLOCATIONS), "-machine")[0]
        spec = replace(spec, display=True)
        assert "graphics" not in options(argv.build(spec, ALLOCATIONS), "-machine")[0]


def test_uefi_has_two_flash_devices_and_smm_where_needed() -> None:
    spec = MachineSpec("m", "x86_64", Firmware(FirmwareKind.UEFI_SECURE))
    allocations = replace(ALLOCATIONS, firmware=replace(FLASH, smm=True), variables=Path("/mine"))
    words = argv.build(spec, allocations)
    assert options(words, "-machine")[0].startswith("pc-q35-10.0,smm=on")
    drives = options(words, "-drive")
    assert "readonly=on,file=/code" in drives[0]
    assert drives[1].endswith("file=/mine")
    assert "driver=cfi.pflash01,property=secure,value=on" in words


@pytest.mark.parametrize(
    ("arch", "accel", "firmware", "kinds"),
    [
        ("x86_64", "tcg", FLASH, ("tsc",)),  # It has no PIT.
        ("x86_64", "tcg", None, ()),
        ("x86_64", "kvm", FLASH, ()),
        ("aarch64", "tcg", FLASH, ()),
    ],
)
def test_a_machine_without_a_pit_has_linux_distrust_its_tsc(
    arch: str, accel: str, firmware: FlashFirmware | None, kinds: tuple[str, ...]
) -> None:
    spec = MachineSpec("m", arch, Firmware(FirmwareKind.UEFI) if firmware else KERNEL)
    allocations = replace(ALLOCATIONS, accel=accel, firmware=firmware, variables=Path("/mine"))
    assert argv.provoked_complaints(spec, allocations) == kinds
    assert ("pit=off" in ",".join(options(argv.build(spec, allocations), "-machine"))) == bool(
        kinds
    )
    assert {complaint.name for complaint in COMPLAINTS} >= set(kinds)


def with_credentials(*credentials: tuple[str, str], arch: str = "x86_64") -> MachineSpec:
    return MachineSpec("m", arch, KERNEL, credentials=credentials)


def test_credentials_use_smbios_or_fw_cfg_on_machines_without_it() -> None:
    secret = 'ssh-ed25519 AAAA, "x"\nline'
    encoded = base64.b64encode(secret.encode()).decode()
    words = argv.build(with_credentials(("n", secret)), ALLOCATIONS)
    expected = f"type=11,value=io.systemd.credential.binary:n={encoded}"
    assert options(words, "-smbios") == [expected]
    assert options(words, "-fw_cfg") == []
    allocations = replace(ALLOCATIONS, credentials=Path("/a,b"))
    words = argv.build(with_credentials(("n,m", "a,b"), arch="aarch64"), allocations)
    expected = "name=opt/io.systemd.credentials/n,,m,file=/a,,b/n,,m"
    assert options(words, "-fw_cfg") == [expected]
    assert options(words, "-smbios") == []


@pytest.mark.parametrize("size", [46_000, 52_000, 200_000, 1_000_000])
def test_the_largest_credentials_are_files_where_strings_are_too_small(size: int) -> None:
    name = "ssh.ephemeral-authorized_keys-all"  # too long for fw_cfg
    spec = with_credentials(("large", "x" * size), (name, "key"), ("small", "y" * 10_000))
    words = argv.build(spec, replace(ALLOCATIONS, credentials=Path("/c")))
    assert options(words, "-fw_cfg") == ["name=opt/io.systemd.credentials/large,file=/c/large"]
    strings = options(words, "-smbios")
    assert [name in strings[0], "small" in strings[1], len(strings)] == [True, True, 2]
    # The 16-bit length of all SMBIOS tables, and the longest argument of a program.
    assert sum(map(len, strings)) < 0xFFFF
    assert max(map(len, words)) < 128 * 1024


@pytest.mark.parametrize(
    ("name", "size", "arch", "message"),
    [
        ("a-name-of-29-characters-------", 1, "aarch64", "30 characters, and that of a fw_cfg"),
        (
            "ssh.ephemeral-authorized_keys-all",
            52_000,
            "x86_64",
            "that of a fw_cfg file has at most 28",
        ),
        ("big", 1024 * 1024 + 1, "x86_64", "1048577 bytes, and systemd takes 1048576"),
        ("a/b", 1, "x86_64", "'a/b' is not a valid name of a credential"),
        ("a=b", 1, "x86_64", "not a valid name"),
        ("a b", 1, "x86_64", "not a valid name"),
        ("..", 1, "x86_64", "not a valid name"),
        ("", 1, "x86_64", "not a valid name"),
    ],
)
def test_a_credential_that_no_way_carries_is_refused(
    name: str, size: int, arch: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_credentials((name, "x" * size), arch=arch)


def test_two_credentials_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two credentials named n"):
        with_credentials(("n", "a"), ("n", "b"))


def test_the_text_of_a_spec_shows_no_credentials() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, credentials=(("password", "hunter2"),))
    assert "hunter2" not in repr(spec)


def test_a_virtio_console_replaces_the_serial_port() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, console=ConsoleDevice.VIRTIO)
    words = argv.build(spec, ALLOCATIONS)
    assert "virtconsole,bus=console-bus.0,chardev=console" in words
    assert "-serial" not in words


def test_a_rendered_command_is_the_same_words_for_a_shell() -> None:
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), ALLOCATIONS)
    assert tuple(shlex.split(argv.render(words).replace("\\\n", " "))) == words


# --- qemu.sh and machine.json -------------------------------------------------------------------


def test_the_script_creates_missing_disks_and_refers_to_its_own_folder(tmp_path: Path) -> None:
    spec = MachineSpec(
        "m", "x86_64", KERNEL, disks=(Disk("root", base=Path("/base img"), size=1024),)
    )
    folder = tmp_path / "disks"
    allocations = replace(ALLOCATIONS, disks={"root": DiskFile(folder / "root.qcow2", "qcow2")})
    text = record(spec, allocations, folder, tmp_path).read_text()
    assert "-b '/base img' -F raw " in text
    assert '"$disks/root.qcow2" 1024' in text
    assert str(folder) not in text
    assert "fd=5" not in text


QEMU_STUB = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >"$OUT"
"""


@pytest.mark.parametrize("odd", ["a,b", "a b", "it's", '$HOME `x` \\ "q"', "a=b:c"])
def test_the_script_starts_a_machine_in_any_folder(
    tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program gets its own syntax: commas, blanks and quotes in the paths of everything."""
    need("base64")
    need("sed")
    base = tmp_path / odd
    tools, disks, temporary = tmp_path / "bin", base / "evidence" / "disks", base / "tmp"
    for folder in (tools, disks, temporary):
        folder.mkdir(parents=True)
    qemu = tools / "qemu"
    qemu.write_text(QEMU_STUB)
    # Writes into the folder of its state, as swtpm does.
    (tools / "swtpm").write_text(
        '#!/bin/sh\nwhile [ "$1" != --tpmstate ]; do shift; done\n'
        'touch "${2#dir=}/state"\ncase $4 in *,path=*) touch "${4#*,path=}" ;; esac\n'
    )
    for program in (qemu, tools / "swtpm"):
        program.chmod(0o755)
    spec = MachineSpec(
        "m",
        "x86_64",
        Firmware(FirmwareKind.UEFI),
        disks=(Disk("own", base=disks / "own.raw", in_place=True),),
        credentials=(("large$,x", "x" * 60_000),),
        tpm=Tpm(),
    )
    (disks / "own.raw").touch()
    allocations = replace(
        ALLOCATIONS,
        qemu=qemu,
        disks={"own": DiskFile(disks / "own.raw", "raw")},
        credentials=disks / "credentials",
        tpm_state=disks / "tpm",
        tpm_fd=9,
    )
    path = record(spec, allocations, disks, disks.parent)
    out = base / "out"
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    process = subprocess.run(["sh", str(path)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    words = tuple(out.read_text().splitlines())

    def value(option: str, key: str) -> Path:
        """Return the value of a key of an option, as QEMU reads it."""
        text = next(text for text in options(words, option) if f",{key}=" in f",{text}")
        match = re.search(rf"(?:^|,){re.escape(key)}=((?:[^,]|,,)*)", text)
        assert match is not None
        return Path(match[1].replace(",,", ","))

    assert value("-blockdev", "file.filename") == disks / "own.raw"
    assert value("-fw_cfg", "file") == disks / "credentials" / "large$,x"
    assert value("-fw_cfg", "file").read_text() == "x" * 60_000
    assert (disks / "tpm" / "state").exists()
    assert next(temporary.glob("*/swtpm.sock")).parent == value("-chardev", "path").parent


def every_machine() -> Iterator[tuple[str, MachineSpec, Allocations]]:
    """Yield all variants, and a machine that reaches a service."""
    yield from variants()
    spec = MachineSpec("m", "x86_64", KERNEL, nics=(Nic(guest_forwards=(GuestForward("s"),)),))
    ram = Ram(Path("/proc/self/fd/9"), private=False, saved=Path("/saved"))
    yield "saveable", MachineSpec("m", "x86_64", KERNEL), replace(ALLOCATIONS, ram=ram)
    yield "service", spec, replace(ALLOCATIONS, services={"s": ("127.0.0.1", 40123)})


def test_the_script_of_a_record_that_was_read_back_is_byte_for_byte_the_same(
    tmp_path: Path,
) -> None:
    for name, spec, allocations in every_machine():
        provenance: dict[str, Any] = {"image": "micro:1", "digests": {"kernel": "ab" * 32}}
        record = record_machine(
            spec, allocations, folder=Path("/d"), evidence=tmp_path, provenance=provenance
        )
        again = MachineRecord.read(tmp_path / "machine.json")
        assert again == record, name
        assert script(again).encode() == (tmp_path / "qemu.sh").read_bytes(), name
        assert again.argv == argv.build(spec, allocations)
        assert again.provenance == provenance


def test_the_script_of_a_record_depends_on_nothing_but_the_record(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).touch()
    base = tmp_path / "base"
    base.symlink_to("first")
    spec = MachineSpec("m", "x86_64", KERNEL, disks=(Disk("root", base=base),))
    file = DiskFile(tmp_path / "disks" / "root.qcow2", "qcow2")
    allocations = replace(ALLOCATIONS, disks={"root": file})
    path = record(spec, allocations, tmp_path / "disks", tmp_path)
    base.unlink()
    base.symlink_to("second")
    text = script(MachineRecord.read(tmp_path / "machine.json"))
    assert text == path.read_text()
    assert str(tmp_path / "first") in text


def test_the_record_says_when_and_with_which_programs(tmp_path: Path) -> None:
    code = tmp_path / "code.fd"
    code.write_bytes(b"firmware")
    allocations = replace(
        ALLOCATIONS, firmware=replace(FLASH, code=code), variables=tmp_path / "efivars.fd"
    )
    spec = MachineSpec("m", "x86_64", Firmware(FirmwareKind.UEFI))
    record(spec, allocations, tmp_path, tmp_path, provenance={"from": tmp_path})
    content = json.loads((tmp_path / "machine.json").read_text())
    assert content["format"] == FORMAT
    assert content["time"].endswith("+00:00")
    assert set(content["versions"]) == {"harness", "qemu", "firmware"}
    assert len(content["versions"]["firmware"]) == 64
    assert content["provenance"] == {"from": str(tmp_path)}
    assert content["allocations"]["machine"] == "pc-q35-10.0"
    assert "-machine pc-q35-10.0," in (tmp_path / "qemu.sh").read_text()


def test_only_the_owner_reads_the_record_which_holds_credentials(tmp_path: Path) -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, credentials=(("password", "hunter2"),))
    record(spec, ALLOCATIONS, tmp_path, tmp_path)
    path = tmp_path / "machine.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MachineRecord.read(path).spec.credentials == (("password", "hunter2"),)


def changed(content: dict[str, Any], *keys: str, value: object) -> str:
    *parents, last = keys
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(content)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    record(MachineSpec("m", "x86_64", KERNEL), ALLOCATIONS, tmp_path, tmp_path)
    path = tmp_path / "machine.json"
    text = path.read_text()
    for damage in (
        "",
        "{",
        "[]",
        changed(json.loads(text), "format", value=FORMAT + 1),
        changed(json.loads(text), "further", value=1),
        changed(json.loads(text), "spec", "further", value=1),
        changed(json.loads(text), "spec", "cpus", value="2"),
        changed(json.loads(text), "spec", "cpus", value=0),
        changed(json.loads(text), "spec", "arch", value="vax"),
        changed(json.loads(text), "allocations", value={}),
    ):
        path.write_text(damage)
        with pytest.raises(UsageError):
            MachineRecord.read(path)
    path.write_text(changed(json.loads(text), "format", value=FORMAT + 1))
    with pytest.raises(UsageError, match="has format 3, and this Harness reads 2"):
        MachineRecord.read(path)
    path.unlink()
    with pytest.raises(UsageError, match="is not the record of a machine"):
        MachineRecord.read(path)


def test_an_interface_on_a_segment_gets_its_socket_and_by_hand_a_hub(tmp_path: Path) -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, nics=(Nic(), Nic.on("lan"), Nic.on("wan", "second")))
    words = argv.build(spec, replace(ALLOCATIONS, segments={"lan": 7, "second": 8}))
    assert options(words, "-netdev")[1:] == [
        "dgram,id=lan,local.type=fd,local.str=7",
        "dgram,id=second,local.type=fd,local.str=8",
    ]
    assert options(words, "-device")[1].startswith(
        "virtio-net-pci,netdev=lan,id=lan-device,mac=52:"
    )
    allocations = replace(ALLOCATIONS, segments={"lan": 7, "second": 8})
    text = record(spec, allocations, tmp_path, tmp_path).read_text()
    assert "-netdev hubport,id=lan,hubid=1" in text
    assert "-netdev hubport,id=second,hubid=2" in text
    again = MachineRecord.read(tmp_path / "machine.json")
    assert again.spec == spec
    assert again.allocations.segments == {"lan": 7, "second": 8}
