from __future__ import annotations

import base64
import shlex
from dataclasses import replace
from pathlib import Path

from harness.qemu import argv
from harness.qemu.argv import Allocations, DiskFile
from harness.qemu.firmware import FlashFirmware
from harness.qemu.script import reproduce
from harness.spec import ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic, Tpm

KERNEL = Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"), "console=ttyS0 quiet")
GIVEN = Allocations(Path("/usr/bin/qemu"), "tcg", "max", console_fd=5, qmp_fd=6)


def options(words: tuple[str, ...], name: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def test_argv_is_a_function_of_its_arguments() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL)
    assert argv.build(spec, GIVEN) == argv.build(spec, GIVEN)


def test_the_guest_waits_until_console_and_monitor_are_attached() -> None:
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), GIVEN)
    assert "-S" in words
    assert "-no-shutdown" in words
    assert "socket,id=console,fd=5" in words
    assert "socket,id=qmp,fd=6" in words


def test_by_hand_runs_at_once_on_the_terminal() -> None:
    given = argv.by_hand(GIVEN, Path("/d"))
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), given)
    assert "-S" not in words
    assert "-no-shutdown" not in words
    assert "stdio,id=console,signal=off" in words


def test_a_tpm_is_reached_by_a_descriptor_and_by_hand_by_a_path(tmp_path: Path) -> None:
    uefi = Firmware(FirmwareKind.UEFI)
    disks = tmp_path / "disks"
    given = replace(GIVEN, tpm_state=disks / "tpm", tpm_fd=9)
    for arch, device in (("x86_64", "tpm-tis"), ("aarch64", "tpm-tis-device")):
        words = argv.build(MachineSpec("m", arch, uefi, tpm=Tpm()), given)
        assert "socket,id=tpm,fd=9" in options(words, "-chardev")
        assert f"{device},tpmdev=tpm0" in options(words, "-device")
    assert "-tpmdev" not in argv.build(MachineSpec("m", "x86_64", uefi), given)
    spec = MachineSpec("m", "x86_64", uefi, tpm=Tpm(Path("/kept/tpm")))
    script = reproduce(spec, given, disks, tmp_path / "qemu.sh").read_text()
    assert '[ -e "$disks/tpm" ] || cp -r /kept/tpm "$disks/tpm"' in script
    start = 'swtpm socket --tpm2 --terminate --tpmstate dir="$disks/tpm" --ctrl type=unixio,path='
    assert start in script
    assert script.index(start) < script.index("exec ")
    assert 'socket,id=tpm,path=$sockets/swtpm.sock"' in script


def test_user_network_has_no_way_out_unless_asked_and_qemu_picks_the_port() -> None:
    closed, opened = (
        options(argv.build(MachineSpec("m", "x86_64", KERNEL, nics=(nic,)), GIVEN), "-netdev")[0]
        for nic in (Nic(forward=(22, 80)), Nic(outbound=True))
    )
    assert "restrict=on" in closed
    assert closed.count("hostfwd=tcp:127.0.0.1:0-:") == 2
    assert closed.endswith("-:80")
    assert "restrict=off" in opened


def test_commas_are_doubled_in_paths() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, disks=(Disk("d", size=512),))
    given = replace(GIVEN, disks={"d": DiskFile(Path("/a,b/d.qcow2"), "qcow2")})
    assert "file.filename=/a,,b/d.qcow2" in options(argv.build(spec, given), "-blockdev")[0]


def test_disk_serial_boot_index_and_read_only() -> None:
    spec = MachineSpec(
        "m",
        "x86_64",
        KERNEL,
        disks=(
            Disk("live", base=Path("/l"), boot_index=0),
            Disk("target", size=512, serial="T-1"),
            Disk("seed", base=Path("/s"), readonly=True),
        ),
    )
    files = {name: DiskFile(Path(f"/{name}"), "raw") for name in ("live", "target", "seed")}
    words = argv.build(spec, replace(GIVEN, disks=files))
    live, target, seed = (each for each in options(words, "-device") if "virtio-blk" in each)
    assert "bootindex=0" in live
    assert "serial=T-1" in target
    assert "bootindex" not in target
    assert "serial=seed" in seed
    read_only = ["read-only=on" in each for each in options(words, "-blockdev")]
    assert read_only == [False, False, True]


def test_uefi_flash_and_smm() -> None:
    flash = FlashFirmware(Path("/code"), Path("/vars"), "raw", True, Path("/x.json"))
    spec = MachineSpec("m", "x86_64", Firmware(FirmwareKind.UEFI_SECURE))
    words = argv.build(spec, replace(GIVEN, firmware=flash, variables=Path("/mine")))
    assert options(words, "-machine")[0].startswith("q35,smm=on")
    drives = options(words, "-drive")
    assert "readonly=on,file=/code" in drives[0]
    assert drives[1].endswith("file=/mine")
    assert "driver=cfi.pflash01,property=secure,value=on" in words


def test_credentials_go_by_smbios_or_by_fw_cfg_where_there_is_none() -> None:
    secret = 'ssh-ed25519 AAAA, "x"\nline'
    on_pc = MachineSpec("m", "x86_64", KERNEL, credentials=(("n", secret),))
    encoded = base64.b64encode(secret.encode()).decode()
    wanted = f"type=11,value=io.systemd.credential.binary:n={encoded}"
    assert options(argv.build(on_pc, GIVEN), "-smbios") == [wanted]
    on_arm = MachineSpec("m", "aarch64", KERNEL, credentials=(("n", "a,b"),))
    wanted = "name=opt/io.systemd.credentials/n,string=a,,b"
    assert options(argv.build(on_arm, GIVEN), "-fw_cfg") == [wanted]


def test_credentials_stay_out_of_a_spec_s_text() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, credentials=(("password", "hunter2"),))
    assert "hunter2" not in repr(spec)


def test_virtio_console() -> None:
    spec = MachineSpec("m", "x86_64", KERNEL, console=ConsoleDevice.VIRTIO)
    words = argv.build(spec, GIVEN)
    assert "virtconsole,bus=console-bus.0,chardev=console" in words
    assert "-serial" not in words


def test_rendered_command_is_the_same_words_for_a_shell() -> None:
    words = argv.build(MachineSpec("m", "x86_64", KERNEL), GIVEN)
    assert tuple(shlex.split(argv.render(words).replace("\\\n", " "))) == words


def test_script_makes_absent_disks_and_refers_to_its_own_folder(tmp_path: Path) -> None:
    spec = MachineSpec(
        "m", "x86_64", KERNEL, disks=(Disk("root", base=Path("/base img"), size=1024),)
    )
    folder = tmp_path / "disks"
    given = replace(GIVEN, disks={"root": DiskFile(folder / "root.qcow2", "qcow2")})
    text = reproduce(spec, given, folder, tmp_path / "qemu.sh").read_text()
    assert "-b '/base img' -F raw " in text
    assert '"$disks/root.qcow2" 1024' in text
    assert str(folder) not in text
    assert "fd=5" not in text
