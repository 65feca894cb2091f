from __future__ import annotations

from pathlib import Path

import pytest

from harness import arch, paths
from harness.errors import UnknownNameError, UsageError
from harness.spec import (
    GIB,
    MIB,
    Disk,
    Firmware,
    FirmwareKind,
    GuestForward,
    MachineSpec,
    Nic,
    Tpm,
    format_size,
    parse_size,
)

BIOS = Firmware(FirmwareKind.BIOS)


def test_equal_specs_are_equal_and_have_equal_hashes() -> None:
    first = MachineSpec("m", "x86_64", BIOS, disks=(Disk("a", size=MIB),))
    second = MachineSpec("m", "x86_64", BIOS, disks=(Disk("a", size=MIB),))
    assert first == second
    assert hash(first) == hash(second)


def test_a_mac_is_local_stable_and_differs_between_machines() -> None:
    first = MachineSpec("first", "x86_64", BIOS)
    second = MachineSpec("second", "x86_64", BIOS)
    nic = Nic()
    assert first.mac(nic) == first.mac(nic) != second.mac(nic)
    assert int(first.mac(nic).split(":")[0], 16) & 0b11 == 0b10
    assert first.mac(Nic(mac="52:54:00:00:00:01")) == "52:54:00:00:00:01"


def test_an_unknown_arch_lists_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="aarch64"):
        MachineSpec("m", "aarch", BIOS)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Disk("d"), "needs a size"),
        (lambda: Disk("d", size="4GiB"), "bytes, not '4GiB'"),  # type: ignore[arg-type]
        (lambda: Disk("d", size=1000), "multiple of 512"),
        (lambda: Disk("D", size=MIB), "valid disk name"),
        (lambda: Disk("d", size=MIB, serial="x" * 21), "at most 20"),
        (lambda: Disk("d", size=MIB, serial="a,b"), "serial"),
        (lambda: Disk("d", base=Path("x"), format="vhd"), "choose raw, qcow2"),
        (lambda: Disk("d", size=MIB, readonly=True), "writable"),
        (lambda: Firmware(FirmwareKind.KERNEL), "needs the path of a kernel"),
        (lambda: Firmware(FirmwareKind.BIOS, kernel=Path("k")), "needs the path of a kernel"),
        (lambda: MachineSpec("m", "x86_64", BIOS, cpus=0), "cpus must be at least 1"),
        (lambda: MachineSpec("m", "x86_64", BIOS, memory=MIB), "memory"),
        (
            lambda: MachineSpec("m", "x86_64", BIOS, memory="512MiB"),  # type: ignore[arg-type]
            "write 512 \\* MIB",
        ),
        (
            lambda: MachineSpec(
                "m", "x86_64", BIOS, disks=(Disk("d", size=MIB), Disk("d", size=MIB))
            ),
            "two disks named d",
        ),
        (
            lambda: MachineSpec(
                "m",
                "x86_64",
                BIOS,
                disks=(Disk("a", size=MIB, serial="s"), Disk("b", size=MIB, serial="s")),
            ),
            "two serials named s",
        ),
    ],
)
def test_an_impossible_machine_is_refused_with_a_reason(create: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create()  # type: ignore[operator]


def test_sizes_are_parsed_and_formatted() -> None:
    assert parse_size("4GiB") == 4 * GIB
    assert parse_size("512 MiB") == 512 * MIB
    assert parse_size("4096") == 4096
    assert format_size(3 * GIB // 2) == "1.5 GiB"
    for wrong in ("4GB", "", "-1", "1.5GiB", "GiB"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(wrong)


def test_a_tpm_excludes_a_direct_kernel_boot_where_qemu_breaks_it() -> None:
    kernel = Firmware(FirmwareKind.KERNEL, Path("k"))
    with pytest.raises(UsageError, match="initrd over the ACPI tables"):
        MachineSpec("m", "x86_64", kernel, tpm=Tpm())
    MachineSpec("m", "aarch64", kernel, tpm=Tpm())


def test_the_host_s_arch_has_qemu_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, name in (("arm64", "aarch64"), ("x86_64", "x86_64"), ("riscv64", "riscv64")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert arch.host() == name


# --- paths --------------------------------------------------------------------------------------


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a user without HOME and without a passwd entry."""
    for name in ("HOME", "HARNESS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", no_entry)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_to_set_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="set HARNESS_CACHE"):
        paths.cache_dir()
    monkeypatch.setenv("HARNESS_CACHE", "~/cache")
    with pytest.raises(UsageError, match="set HARNESS_CACHE"):
        paths.cache_dir()
    monkeypatch.setenv("HARNESS_CACHE", "/cache")
    assert paths.cache_dir() == Path("/cache")
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/base")
    assert paths.cache_dir() == Path("/base/harness")


def test_bundled_folders_are_the_checkout_s_or_the_wheel_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (paths.bundled("images") / "micro" / "image.yaml").is_file()
    assert (paths.bundled("suites") / "boot").is_dir()
    package = tmp_path / "harness"
    package.mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    assert paths.bundled("suites") == tmp_path / "suites"
    (package / "_bundled").mkdir()
    assert paths.bundled("suites") == package / "_bundled" / "suites"


def test_a_folder_of_images_beside_an_installed_package_is_not_harness_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "harness"
    (package / "_bundled").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    assert paths.catalog_dirs("more") == (Path("more").absolute(),)


def test_an_interface_on_a_segment_reaches_nothing_else() -> None:
    for wrong in ({"forward": (22,)}, {"outbound": True}):
        with pytest.raises(UsageError, match="on segment lan it reaches neither the host"):
            Nic("lan", segment="lan", **{"forward": (), **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="on segment lan"):
        Nic("lan", forward=(), segment="lan", guest_forwards=(GuestForward("updates"),))
    with pytest.raises(UsageError, match="'Lan' is not a valid segment name"):
        Nic.on("Lan", "lan")


def test_the_port_of_an_interface_is_named_after_its_machine() -> None:
    nics = (Nic(), Nic.on("lan"), Nic.on("lan", "second"), Nic.on("wan"))
    spec = MachineSpec("node-1", "x86_64", BIOS, nics=nics)
    assert [spec.port(nic) for nic in nics[1:]] == ["node-1", "node-1.second", "node-1"]
    assert len({spec.mac(nic) for nic in nics}) == 4
