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

from harness import deadline
from harness.errors import HostError, QemuMissingError, UnknownNameError
from harness.qemu import accel, probe
from harness.qemu.probe import __main__ as assembling
from harness.qemu.probe import measure
from harness.spec import ARCHES

ALL = f"head -c {probe.ROUNDS} /dev/zero | tr '\\0' ."
FAST = f"done=$({ALL}); printf b${{done}}Z"
SLOW = "printf b.; exec sleep 600"
EMULATED = f"printf b; sleep 0.05; {ALL}; printf Z"

FakeQemu = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> FakeQemu:
    """Make a QEMU that does, for each accelerator, what a piece of shell says."""

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


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a host of its own: x86_64, with a KVM device that opens."""
    device, boot = tmp_path / "kvm", tmp_path / "boot_id"
    device.touch()
    boot.write_text("first\n")
    monkeypatch.setattr(accel, "_DEVICE", device)
    monkeypatch.setattr(accel, "_BOOT_ID", boot)
    monkeypatch.setattr(accel, "_host_arch", lambda: "x86_64")
    # The fakes end by themselves, or by the time that the other accelerator took.
    monkeypatch.setattr(accel, "_RUN_LIMIT", 60.0)
    return tmp_path


def starts(host: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len((host / "started").read_text().splitlines())
    return 0


def ask(qemu: Path, choice: str = "auto", arch: str = "x86_64") -> accel.Accel:
    return accel.probe(choice, arch, qemu=qemu, cache_dir=qemu.parent / "cache")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead, and waits for whoever reaps orphans here.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_kvm_that_is_faster_is_taken(fake: FakeQemu) -> None:
    found = ask(fake(FAST))
    assert found.name == "kvm"
    assert found.cpu == "host"
    assert "times as fast as TCG" in found.reason


def test_kvm_that_is_slower_is_not_taken_and_its_qemu_is_gone(fake: FakeQemu, host: Path) -> None:
    found = ask(fake(SLOW))
    assert found.name == "tcg"
    assert f"KVM did 1 of {probe.ROUNDS} rounds of 64-bit paged guest code" in found.reason
    assert "TCG did all in" in found.reason
    assert not alive(int((host / "pid").read_text()))


def test_kvm_that_would_finish_later_than_tcg_is_not_taken(fake: FakeQemu) -> None:
    assert ask(fake(f"printf b; sleep 5; {ALL}; printf Z")).name == "tcg"


def test_kvm_that_never_gets_to_64_bit_code_is_not_taken(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_RUN_LIMIT", 1.5)
    found = ask(fake("exec sleep 600"))
    assert found.name == "tcg"
    assert "did not get to 64-bit paged guest code within 1.5 s" in found.reason


@pytest.mark.parametrize("told", [f"printf b; {ALL}; printf '!'", "printf b...Z"])
def test_kvm_that_computes_wrongly_is_not_taken(fake: FakeQemu, told: str) -> None:
    found = ask(fake(told))
    assert found.name == "tcg"
    assert "wrongly" in found.reason


def test_qemu_that_dies_in_the_middle_is_quoted(fake: FakeQemu) -> None:
    found = ask(fake("printf b..; echo 'KVM internal error. Suberror: 1' >&2; exit 1"))
    assert found.name == "tcg"
    assert "QEMU died" in found.reason
    assert "KVM internal error. Suberror: 1" in found.reason


def test_a_refused_cpu_model_is_replaced_and_named(fake: FakeQemu) -> None:
    refusal = "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; exit 134"
    found = ask(fake(f'case "$*" in *"-cpu host"*) {refusal};; esac; {FAST}'))
    assert (found.name, found.cpu) == ("kvm", "qemu64")
    assert "refuses the CPU model host: failed to set MSR 0x10a to 0x69)" in found.reason
    assert accel.cpu_model(found, "x86_64") == "qemu64"


def test_qemu_without_kvm(fake: FakeQemu) -> None:
    qemu = fake("echo 'qemu: -accel kvm: invalid accelerator kvm' >&2; exit 1")
    assert ask(qemu) == accel.Accel("tcg", "this QEMU is built without KVM")
    with pytest.raises(HostError, match="built without KVM"):
        ask(qemu, "kvm")


def test_qemu_that_does_not_start_with_kvm_is_quoted(fake: FakeQemu) -> None:
    qemu = fake("echo 'qemu-system-x86_64: failed to initialize kvm: Busy' >&2; exit 1")
    assert ask(qemu).reason.endswith("does not start with KVM: failed to initialize kvm: Busy")
    with pytest.raises(HostError, match="failed to initialize kvm: Busy"):
        ask(qemu, "kvm")


def test_endless_words_on_stderr_do_not_end_the_wait(fake: FakeQemu) -> None:
    assert ask(fake("printf b; exec yes error >&2")).name == "tcg"


def test_of_what_qemu_says_the_end_is_kept(fake: FakeQemu) -> None:
    qemu = fake("yes noise | head -n 200000 >&2; echo last >&2; exit 1")
    found = measure.run(qemu, "x86_64", "kvm", "host", limit=deadline.after(60.0))
    assert found.end is measure.End.DIED
    assert found.said.endswith("noise\nlast")
    assert len(found.said) <= 4096


def test_tcg_that_is_late_still_gives_the_measure_but_nothing_is_remembered(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_RUN_LIMIT", 1.5)
    found = ask(fake(SLOW, tcg="printf b; head -c 128 /dev/zero | tr '\\0' .; exec sleep 600"))
    assert found.name == "tcg"
    assert "TCG did 128 in" in found.reason
    assert not (host / "cache").exists()


def test_a_near_miss_is_measured_again(fake: FakeQemu, host: Path) -> None:
    near = f"printf b; head -c {probe.ROUNDS - 1} /dev/zero | tr '\\0' .; exec sleep 600"
    assert ask(fake(near)).name == "tcg"
    assert not (host / "cache").exists()


def test_without_tcg_kvm_is_taken_if_it_does_its_work(fake: FakeQemu) -> None:
    found = ask(fake(FAST, tcg="echo 'invalid accelerator tcg' >&2; exit 1"))
    assert found == accel.Accel("kvm", "KVM runs 64-bit paged guest code", "host")


def test_the_measurement_is_remembered(fake: FakeQemu, host: Path) -> None:
    qemu = fake(SLOW)
    first = ask(qemu)
    assert starts(host) == 2
    assert ask(qemu) == first
    assert starts(host) == 2
    assert [path.name for path in (host / "cache").iterdir()] == ["accel-x86_64.json"]


def test_another_boot_is_measured_again(fake: FakeQemu, host: Path) -> None:
    qemu = fake(SLOW)
    ask(qemu)
    (host / "boot_id").write_text("second\n")
    ask(qemu)
    assert starts(host) == 4


def test_another_qemu_is_measured_again(fake: FakeQemu, host: Path) -> None:
    assert ask(fake(SLOW)).name == "tcg"
    assert ask(fake(FAST + " ")).name == "kvm"
    assert starts(host) == 4


def test_another_processor_is_measured_again(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = fake(SLOW)
    info = host / "cpuinfo"
    monkeypatch.setattr(accel, "_CPUINFO", info)
    info.write_text("model name\t: One\ncpu MHz\t: 1\n")
    ask(qemu)
    info.write_text("model name\t: One\ncpu MHz\t: 2\n")
    ask(qemu)
    assert starts(host) == 2
    info.write_text("model name\t: Two\ncpu MHz\t: 2\n")
    ask(qemu)
    assert starts(host) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"key": 1, "measured": {}}'],
)
def test_a_broken_memory_is_ignored_and_replaced(
    fake: FakeQemu, host: Path, content: bytes
) -> None:
    qemu = fake(SLOW)
    first = ask(qemu)
    memory = host / "cache" / "accel-x86_64.json"
    good = memory.read_bytes()
    memory.write_bytes(content)
    assert ask(qemu).name == first.name
    assert starts(host) == 4
    assert len(memory.read_bytes()) == pytest.approx(len(good), abs=8)


def test_a_memory_with_the_right_key_and_wrong_content_is_ignored(
    fake: FakeQemu, host: Path
) -> None:
    qemu = fake(SLOW)
    ask(qemu)
    memory = host / "cache" / "accel-x86_64.json"
    memory.write_text(memory.read_text().replace('"reason"', '"raisin"'))
    ask(qemu)
    assert starts(host) == 4


def test_a_cache_that_cannot_be_written_costs_the_memory_only(fake: FakeQemu, host: Path) -> None:
    (host / "cache").write_text("a file where the folder would be")
    assert ask(fake(SLOW)).name == "tcg"


def test_a_foreign_arch_is_emulated(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    found = ask(qemu, arch="aarch64")
    assert found == accel.Accel("tcg", "the guest is aarch64 and this host is x86_64")
    with pytest.raises(HostError, match="the guest is aarch64"):
        ask(qemu, "kvm", "aarch64")
    assert starts(host) == 0


def test_no_device(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    (host / "kvm").unlink()
    found = ask(qemu)
    assert found.name == "tcg"
    assert f"{host}/kvm does not exist" in found.reason
    with pytest.raises(HostError, match="does not exist"):
        ask(qemu, "kvm")


def deny(monkeypatch: pytest.MonkeyPatch, device: Path, number: int) -> None:
    real = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777, **more: int) -> int:
        if path == device:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", refuse)


def test_a_device_of_a_group_names_the_group_to_join(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "kvm").chmod(0o660)
    deny(monkeypatch, host / "kvm", errno.EACCES)
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("virt", "x", gid, [])))
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    found = ask(fake(FAST))
    assert found.name == "tcg"
    assert "belongs to the group virt: 'sudo usermod -aG virt ann'" in found.reason


@pytest.mark.parametrize("mode", [0o660, 0o600])
def test_a_device_denied_to_its_own_group_blames_the_container(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (host / "kvm").chmod(mode)
    # A member of the group finds it denied all the same; with 0600 there is no group to join.
    member = [(host / "kvm").stat().st_gid] if mode == 0o660 else []
    monkeypatch.setattr(os, "getgroups", lambda: member)
    deny(monkeypatch, host / "kvm", errno.EPERM)
    found = ask(fake(FAST))
    assert "the host or the container denies it" in found.reason


def test_a_device_without_a_driver(
    fake: FakeQemu, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, host / "kvm", errno.ENODEV)
    assert "load the kernel's kvm module" in ask(fake(FAST)).reason


def test_the_device_is_looked_at_each_time(fake: FakeQemu, host: Path) -> None:
    qemu = fake(FAST)
    assert ask(qemu).name == "kvm"
    (host / "kvm").unlink()
    assert ask(qemu).name == "tcg"
    (host / "kvm").touch()
    assert ask(qemu).name == "kvm"
    assert starts(host) == 2


def test_kvm_by_force_is_obeyed_and_said_to_be_slow(fake: FakeQemu) -> None:
    found = ask(fake(SLOW), "kvm")
    assert (found.name, found.cpu) == ("kvm", "host")
    assert found.reason.startswith("it was asked for, though KVM did 1 of")


def test_tcg_by_choice_starts_nothing(fake: FakeQemu, host: Path) -> None:
    assert ask(fake(FAST), "tcg") == accel.Accel("tcg", "it was asked for")
    assert starts(host) == 0


def test_unknown_names_list_the_known_ones(fake: FakeQemu) -> None:
    with pytest.raises(UnknownNameError, match="auto, kvm, tcg"):
        ask(fake(FAST), "xen")
    with pytest.raises(UnknownNameError, match="aarch64, x86_64"):
        ask(fake(FAST), arch="riscv64")


def test_a_qemu_that_is_not_there(host: Path) -> None:
    with pytest.raises(QemuMissingError, match="cannot be executed"):
        ask(host / "none")


def test_cpu_models() -> None:
    assert accel.cpu_model(accel.Accel("tcg", ""), "x86_64") == "max"
    assert accel.cpu_model(accel.Accel("tcg", ""), "aarch64") == "cortex-a57"
    assert accel.cpu_model(accel.Accel("kvm", ""), "aarch64") == "host"


def test_qemu_does_not_outlive_a_killed_prober(fake: FakeQemu, host: Path) -> None:
    ready = host / "ready"
    os.mkfifo(ready)
    # Without a measure by TCG, KVM is given long enough to be killed in the middle.
    qemu = fake(f"echo >{ready}; exec sleep 600", tcg="exit 1")
    code = (
        "import sys; from pathlib import Path; from harness.qemu import accel\n"
        "accel._DEVICE = Path('/dev/null'); accel._RUN_LIMIT = 600.0\n"
        "accel._host_arch = lambda: 'x86_64'\n"
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
def test_the_committed_code_is_what_the_source_says(arch: str) -> None:
    prefix = assembling.assembler(arch)
    if prefix is None:
        package = f"binutils-{arch.replace('_', '-')}-linux-gnu"
        pytest.skip(f"no assembler for {arch} here; the package {package} has one")
    assert assembling.assemble(arch, prefix) == probe.binary(arch).read_bytes()


@pytest.mark.parametrize("arch", ARCHES)
def test_the_source_does_as_many_rounds_as_are_counted(arch: str) -> None:
    assert f"ROUNDS, {probe.ROUNDS}\n" in probe.source(arch).read_text()
