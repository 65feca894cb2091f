from __future__ import annotations

import contextlib
import errno
import getpass
import grp
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import arch as arches
from harness.arch import ARCHES
from harness.deadline import UNSCALED
from harness.errors import AcceleratorError, QemuMissingError, UnknownNameError
from harness.host import accel, measured, probe
from harness.host.probe import __main__ as assembling
from harness.host.probe import measure
from tests.programs import need

ALL = f"head -c {probe.ROUNDS} /dev/zero | tr '\\0' ."

FAST = f"done=$({ALL}); printf b${{done}}Z"
SLOW = "printf b.; exec sleep 600"
EMULATED = f"printf b; sleep 0.05; {ALL}; printf Z"

FakeQemu = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> FakeQemu:
    """Return a function that creates a QEMU which runs a piece of shell for each accelerator."""

    def make(kvm: str, tcg: str = EMULATED) -> Path:
        path = tmp_path / "qemu-system-x86_64"
        path.write_text(
            f'#!/bin/sh\nhere={tmp_path}\necho "$*" >>$here/started\n'
            f'case "$*" in\n*"-accel kvm"*)\necho $$ >$here/pid\n{kvm}\n;;\n'
            f"*) {tcg}\n;;\nesac\n"
        )
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(measured, "CPUINFO", path)
    return path


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own host: x86_64, with a KVM device that opens."""
    device, boot = tmp_path / "kvm", tmp_path / "boot_id"
    device.touch()
    boot.write_text("first\n")
    monkeypatch.setattr(accel, "DEVICE", device)
    monkeypatch.setattr(measured, "BOOT_ID", boot)
    monkeypatch.setattr("harness.arch.platform.machine", lambda: "x86_64")
    # The fakes end by themselves, or after the time that the other accelerator took.
    monkeypatch.setattr(accel, "_RUN_LIMIT", 60.0)
    return tmp_path


def starts(host: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len((host / "started").read_text().splitlines())
    return 0


def probed(qemu: Path, choice: str = "auto", arch: str = "x86_64") -> accel.Accel:
    return accel.probe(choice, arch, qemu=qemu, cache_dir=qemu.parent / "cache")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead; it only waits for the reaper of orphans.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_kvm_that_is_faster_is_used(fake: FakeQemu) -> None:
    result = probed(fake(FAST))
    assert result.name == "kvm"
    assert result.cpu == "host"
    assert "times as fast as TCG" in result.reason


def test_kvm_that_is_slower_is_not_used_and_its_qemu_ends(fake: FakeQemu, host: Path) -> None:
    result = probed(fake(SLOW))
    assert result.name == "tcg"
    assert f"KVM did 1 of {probe.ROUNDS} rounds of 64-bit paged guest code" in result.reason
    assert "TCG did all in" in result.reason
    assert not alive(int((host / "pid").read_text()))


def test_kvm_that_would_finish_later_than_tcg_is_not_used(fake: FakeQemu) -> None:
    assert probed(fake(f"printf b; sleep 5; {ALL}; printf Z")).name == "tcg"


def test_kvm_that_never_starts_64_bit_code_is_not_used(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_RUN_LIMIT", 1.5)
    result = probed(fake("exec sleep 600"))
    assert result.name == "tcg"
    assert "did not start 64-bit paged guest code within 1.5 s" in result.reason


@pytest.mark.parametrize("output", [f"printf b; {ALL}; printf '!'", "printf b...Z"])
def test_kvm_that_computes_wrongly_is_not_used(fake: FakeQemu, output: str) -> None:
    result = probed(fake(output))
    assert result.name == "tcg"
    assert "wrongly" in result.reason


def test_the_message_of_a_qemu_that_dies_is_quoted(fake: FakeQemu) -> None:
    # The time of TCG bounds that of KVM. A fake takes next to none, and under load KVM would be late
    # before it dies: without one, the probe waits for the end.
    kvm = "printf b..; echo 'KVM internal error. Suberror: 1' >&2; exit 1"
    result = probed(fake(kvm, tcg="exit 1"))
    assert result.name == "tcg"
    assert "QEMU died" in result.reason
    assert "KVM internal error. Suberror: 1" in result.reason


def test_a_refused_cpu_model_is_replaced_and_reported(fake: FakeQemu) -> None:
    refusal = "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; exit 134"
    result = probed(fake(f'case "$*" in *"-cpu host"*) {refusal};; esac; {FAST}'))
    assert (result.name, result.cpu) == ("kvm", "qemu64")
    assert "refuses the CPU model host: failed to set MSR 0x10a to 0x69)" in result.reason
    assert accel.cpu_model(result, "x86_64") == "qemu64"


def test_a_qemu_without_kvm_falls_back_to_tcg(fake: FakeQemu) -> None:
    qemu = fake("echo 'qemu: -accel kvm: invalid accelerator kvm' >&2; exit 1")
    assert probed(qemu) == accel.Accel("tcg", "this QEMU is built without KVM")
    with pytest.raises(AcceleratorError, match="built without KVM"):
        probed(qemu, "kvm")


def test_the_message_of_a_qemu_that_does_not_start_with_kvm_is_quoted(fake: FakeQemu) -> None:
    qemu = fake("echo 'qemu-system-x86_64: failed to initialize kvm: Busy' >&2; exit 1")
    assert probed(qemu).reason.endswith("does not start with KVM: failed to initialize kvm: Busy")
    with pytest.raises(AcceleratorError, match="failed to initialize kvm: Busy"):
        probed(qemu, "kvm")


def test_endless_output_on_stderr_does_not_block_the_probe(fake: FakeQemu) -> None:
    assert probed(fake("printf b; exec yes error >&2")).name == "tcg"


def test_the_end_of_qemu_s_stderr_is_kept(fake: FakeQemu) -> None:
    qemu = fake("yes noise | head -n 200000 >&2; echo last >&2; exit 1")
    result = measure.run(qemu, "x86_64", "kvm", "host", limit=UNSCALED.after(60))
    assert result.end is measure.End.DIED
    assert result.stderr.endswith("noise\nlast")
    assert len(result.stderr) <= 4096


def test_an_unfinished_tcg_run_still_gives_the_reference_but_nothing_is_stored(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_RUN_LIMIT", 1.5)
    result = probed(fake(SLOW, tcg="printf b; head -c 128 /dev/zero | tr '\\0' .; exec sleep 600"))
    assert result.name == "tcg"
    assert "TCG did 128 in" in result.reason
    assert not (host / "cache").exists()


def test_a_near_miss_is_not_stored(fake: FakeQemu, host: Path) -> None:
    near = f"printf b; head -c {probe.ROUNDS - 1} /dev/zero | tr '\\0' .; exec sleep 600"
    assert probed(fake(near)).name == "tcg"
    assert not (host / "cache").exists()


def test_without_tcg_kvm_is_used_if_it_does_its_work(fake: FakeQemu) -> None:
    result = probed(fake(FAST, tcg="echo 'invalid accelerator tcg' >&2; exit 1"))
    assert result == accel.Accel("kvm", "KVM runs 64-bit paged guest code", "host")


def test_the_measurement_is_stored(fake: FakeQemu, host: Path) -> None:
    qemu = fake(SLOW)
    first = probed(qemu)
    assert starts(host) == 2
    assert probed(qemu) == first
    assert starts(host) == 2
    assert [path.name for path in (host / "cache").iterdir()] == ["accel-x86_64.json"]


def test_a_reboot_invalidates_the_measurement(fake: FakeQemu, host: Path) -> None:
    qemu = fake(SLOW)
    probed(qemu)
    (host / "boot_id").write_text("second\n")
    probed(qemu)
    assert starts(host) == 4


def test_another_qemu_invalidates_the_measurement(fake: FakeQemu, host: Path) -> None:
    assert probed(fake(SLOW)).name == "tcg"
    assert probed(fake(FAST + " ")).name == "kvm"
    assert starts(host) == 4


def test_another_processor_invalidates_the_measurement(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = fake(SLOW)
    info = host / "cpuinfo"
    monkeypatch.setattr(measured, "CPUINFO", info)
    info.write_text("model name\t: One\ncpu MHz\t: 1\n")
    probed(qemu)
    info.write_text("model name\t: One\ncpu MHz\t: 2\n")
    probed(qemu)
    assert starts(host) == 2
    info.write_text("model name\t: Two\ncpu MHz\t: 2\n")
    probed(qemu)
    assert starts(host) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"key": 1, "measured": {}}'],
)
def test_a_damaged_measurement_is_ignored_and_replaced(
    fake: FakeQemu, host: Path, content: bytes
) -> None:
    qemu = fake(SLOW)
    first = probed(qemu)
    path = host / "cache" / "accel-x86_64.json"
    good = path.read_bytes()
    path.write_bytes(content)
    assert probed(qemu).name == first.name
    assert starts(host) == 4
    assert len(path.read_bytes()) == pytest.approx(len(good), abs=8)


def test_a_measurement_with_the_right_key_and_wrong_content_is_ignored(
    fake: FakeQemu, host: Path
) -> None:
    qemu = fake(SLOW)
    probed(qemu)
    path = host / "cache" / "accel-x86_64.json"
    path.write_text(path.read_text().replace('"reason"', '"raisin"'))
    probed(qemu)
    assert starts(host) == 4


def test_a_cache_that_cannot_be_written_costs_the_memory_only(fake: FakeQemu, host: Path) -> None:
    (host / "cache").write_text("a file where the folder would be")
    assert probed(fake(SLOW)).name == "tcg"


def test_a_foreign_arch_is_emulated(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    result = probed(qemu, arch="aarch64")
    assert result == accel.Accel("tcg", "the guest is aarch64 and this host is x86_64")
    with pytest.raises(AcceleratorError, match="the guest is aarch64"):
        probed(qemu, "kvm", "aarch64")
    assert starts(host) == 0


def test_a_missing_device_is_reported(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    (host / "kvm").unlink()
    result = probed(qemu)
    assert result.name == "tcg"
    assert f"{host}/kvm does not exist" in result.reason
    with pytest.raises(AcceleratorError, match="does not exist"):
        probed(qemu, "kvm")


def deny(monkeypatch: pytest.MonkeyPatch, device: Path, number: int) -> None:
    real = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777, **more: int) -> int:
        if path == device:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", refuse)


def test_the_group_of_the_device_is_named(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "kvm").chmod(0o660)
    deny(monkeypatch, host / "kvm", errno.EACCES)
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("virt", "x", gid, [])))
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    result = probed(fake(FAST))
    assert result.name == "tcg"
    assert "belongs to the group virt: 'sudo usermod -aG virt ann'" in result.reason


@pytest.mark.parametrize("mode", [0o660, 0o600])
def test_a_device_that_its_own_group_may_not_open_blames_the_container(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (host / "kvm").chmod(mode)
    # A member of the group is denied too; with mode 0600 there is no group to join.
    member = [(host / "kvm").stat().st_gid] if mode == 0o660 else []
    monkeypatch.setattr(os, "getgroups", lambda: member)
    deny(monkeypatch, host / "kvm", errno.EPERM)
    result = probed(fake(FAST))
    assert "the host or the container denies access" in result.reason


def test_a_device_without_a_driver_needs_the_module(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, host / "kvm", errno.ENODEV)
    assert "load the kernel's kvm module" in probed(fake(FAST)).reason


def test_the_device_is_checked_each_time(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    assert probed(qemu).name == "kvm"
    (host / "kvm").unlink()
    assert probed(qemu).name == "tcg"
    (host / "kvm").touch()
    assert probed(qemu).name == "kvm"


@pytest.mark.parametrize(
    "change",
    [
        lambda device: device.chmod(0o606),
        lambda device: os.utime(device, (1, 1)),
        lambda device: (device.rename(device.with_name("old")), device.touch()),
    ],
    ids=["mode", "time", "another one"],
)
def test_a_changed_device_makes_the_measurement_void(
    fake: FakeQemu, host: Path, change: Callable[[Path], object]
) -> None:
    qemu = fake(SLOW)
    assert not probed(qemu).doubt
    assert starts(host) == 2
    with (host / "kvm").open("rb"):
        pass  # its use changes nothing
    assert probed(qemu).name == "tcg"
    assert starts(host) == 2
    change(host / "kvm")
    assert probed(qemu).name == "tcg"
    assert starts(host) == 4


def test_a_requested_kvm_is_used_and_reported_as_slow(fake: FakeQemu) -> None:
    result = probed(fake(SLOW), "kvm")
    assert (result.name, result.cpu) == ("kvm", "host")
    assert result.reason.startswith("it was requested, although KVM did 1 of")
    assert result.doubt.startswith("KVM was requested, although KVM did 1 of")
    assert "the KVM of this host seems to have no hardware under it" in result.doubt


def test_a_requested_tcg_starts_nothing(fake: FakeQemu, host: Path) -> None:
    assert probed(fake(FAST), "tcg") == accel.Accel("tcg", "it was requested")
    assert starts(host) == 0


def test_an_unknown_name_lists_the_valid_ones(fake: FakeQemu) -> None:
    with pytest.raises(UnknownNameError, match="auto, kvm, tcg"):
        probed(fake(FAST), "xen")
    with pytest.raises(UnknownNameError, match="aarch64, x86_64"):
        probed(fake(FAST), arch="riscv64")


def test_a_missing_qemu_is_reported(host: Path) -> None:
    with pytest.raises(QemuMissingError, match="cannot be executed"):
        probed(host / "none")


def test_the_cpu_model_follows_the_accelerator_and_the_arch(cpuinfo: Path) -> None:
    cpuinfo.write_text("Features\t: fp asimd evtstrm\n")
    # The emulator copies by "rep movsb" a byte at a time.
    assert accel.cpu_model(accel.Accel("tcg", ""), "x86_64").startswith("max,-erms,")
    # Pointer authentication is a cipher for each call of a function.
    assert accel.cpu_model(accel.Accel("tcg", ""), "aarch64").startswith("max,pauth=off,")
    assert accel.cpu_model(accel.Accel("kvm", ""), "aarch64") == "host"


def test_a_processor_without_the_baseline_is_refused_under_kvm(cpuinfo: Path) -> None:
    v2 = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
    cpuinfo.write_text(f"model name : avx2\nflags : fpu {v2} avx\n")
    kvm = accel.Accel("kvm", "", "host")
    assert accel.cpu_model(kvm, "x86_64") == "host"
    with pytest.raises(AcceleratorError, match=r"x86-64-v3.* it lacks abm, avx2, bmi1") as caught:
        accel.cpu_model(kvm, "x86_64", "x86-64-v3")
    assert "--accel tcg" in caught.value.hint
    assert accel.cpu_model(accel.Accel("tcg", ""), "x86_64", "x86-64-v3").startswith("max")


def test_qemu_does_not_outlive_a_killed_prober(fake: FakeQemu, host: Path) -> None:
    need("setpriv")
    ready = host / "ready"
    os.mkfifo(ready)
    # Without a reference by TCG, KVM runs long enough to be killed in the middle.
    qemu = fake(f"echo >{ready}; exec sleep 600", tcg="exit 1")
    code = (
        "import platform; from pathlib import Path; from harness.host import accel\n"
        "accel.DEVICE = Path('/dev/null'); accel._RUN_LIMIT = 600.0\n"
        "platform.machine = lambda: 'x86_64'\n"
        f"accel.probe('auto', 'x86_64', qemu=Path({str(qemu)!r}), cache_dir=Path('/none'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as prober:
        with ready.open() as fifo:
            fifo.read()
        pidfd = os.pidfd_open(int((host / "pid").read_text()))
        prober.send_signal(signal.SIGKILL)
    try:
        assert select.select([pidfd], [], [], 30.0)[0] == [pidfd]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_the_rom_starts_at_its_reset_vector() -> None:
    rom = probe.image("x86_64")
    assert len(rom) == 0x10000
    assert rom[0xFFF0:0xFFF5] == bytes.fromhex("ea000000f0")
    assert len(probe.binary("x86_64").read_bytes()) < 0xFFF0


@pytest.mark.parametrize("arch", ARCHES)
def test_the_committed_code_matches_the_source(arch: str) -> None:
    prefix = assembling.assembler(arch)
    if prefix is None:
        package = arches.of(arch).probe.assembler
        pytest.skip(f"no assembler for {arch} here: install the package {package}")
    assert assembling.assemble(arch, prefix) == probe.binary(arch).read_bytes()


@pytest.mark.parametrize("arch", ARCHES)
def test_the_source_and_the_counter_have_the_same_rounds(arch: str) -> None:
    assert f"ROUNDS, {probe.ROUNDS}\n" in probe.source(arch).read_text()
