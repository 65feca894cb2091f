"""Which accelerator runs a guest, and why: the probe behind ``--accel auto|kvm|tcg``.

``auto`` takes KVM only if it proves itself: the guest code of :mod:`harness.qemu.probe`, 64-bit and
paged, has to run under KVM at least as fast as under TCG, QEMU's emulator. What was measured is
remembered until the host boots again, or until QEMU, the processor or the guest code is another.
Whether the device is there and may be opened is looked at each time, for that can change.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import grp
import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from harness import deadline, measured
from harness.errors import HostError, UnknownNameError
from harness.qemu import probe as guest
from harness.qemu.probe.measure import End, Run, run
from harness.spec import ARCHES

CHOICES: Final = ("auto", "kvm", "tcg")

_DEVICE: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CPUINFO: Final = Path("/proc/cpuinfo")

# Two runs, at most 1.4 s each, keep the whole probe within 3 s. A KVM whose hardware is real does
# the work in a tenth of a second, TCG in a quarter.
_RUN_LIMIT: Final = 1.4

# Under TCG: on arm64 "max" costs half as much time again as cortex-a57, even with
# pauth-impdef=on, which spares the slow cipher of pointer authentication: 125 s against 84 s to the
# login of skiff.
_TCG_CPU: Final = {"x86_64": "max", "aarch64": "cortex-a57"}

# Under KVM "host" is the processor as it is. Some KVMs refuse one of its registers, and QEMU ends;
# a plain model then still tells what this KVM is worth.
_KVM_CPUS: Final = {"x86_64": ("host", "qemu64"), "aarch64": ("host",)}


@dataclass(frozen=True, slots=True)
class Accel:
    """The accelerator of a guest.

    Attributes:
        name: ``kvm`` or ``tcg``, as QEMU's ``-accel`` takes it.
        reason: Why this one; a clause for a person, without a full stop.
        cpu: The CPU model that KVM was seen to run with; empty for TCG.
    """

    name: Literal["kvm", "tcg"]
    reason: str
    cpu: str = ""


def probe(choice: str, arch: str, *, qemu: Path, cache_dir: Path) -> Accel:
    """Return the accelerator for a guest, within 3 s, or at once if it was measured before.

    ``auto`` takes KVM if it is proven and TCG otherwise. ``kvm`` is obeyed wherever QEMU can start
    a guest with it, with a reason that says so if that guest will be slow.

    Args:
        choice: ``auto``, ``kvm`` or ``tcg``.
        arch: The guest's.
        qemu: The QEMU of that arch.
        cache_dir: Where the measurement is remembered; made if absent. If it cannot be written to,
            nothing is remembered.

    Raises:
        UnknownNameError: if Harness knows no such choice or arch.
        HostError: if ``kvm`` is asked for and cannot be had; says why.
        QemuMissingError: if QEMU cannot be executed.
    """
    if choice not in CHOICES:
        raise UnknownNameError("accelerator", choice, CHOICES)
    if arch not in ARCHES:
        raise UnknownNameError("arch", arch, ARCHES)
    if choice == "tcg":
        return Accel("tcg", "it was asked for")
    obstacle = _foreign(arch) or _closed(_DEVICE)
    if obstacle:
        return _without_kvm(choice, obstacle)
    measured = _remembered(qemu, arch, cache_dir)
    if measured.proven:
        return Accel("kvm", measured.reason, measured.cpu)
    if choice == "kvm" and measured.cpu:
        return Accel("kvm", f"it was asked for, though {measured.reason}", measured.cpu)
    return _without_kvm(choice, measured.reason)


def cpu_model(accel: Accel, arch: str) -> str:
    """Return QEMU's name of the CPU model to give a guest.

    Under KVM that is the host's own processor; under TCG the model with which ``arch`` is fastest
    of those that current distributions run on.
    """
    if accel.name == "kvm":
        return accel.cpu or "host"
    return _TCG_CPU[arch]


def _without_kvm(choice: str, reason: str) -> Accel:
    if choice == "kvm":
        raise HostError(f"KVM cannot be used: {reason}", hint="--accel auto, or --accel tcg")
    return Accel("tcg", reason)


def _host_arch() -> str:
    machine = platform.machine()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _foreign(arch: str) -> str:
    """Return why a guest of ``arch`` cannot run on this processor; empty if it can."""
    host = _host_arch()
    return "" if arch == host else f"the guest is {arch} and this host is {host}"


def _closed(device: Path) -> str:
    """Return why the KVM device cannot be opened, and what to do; empty if it can be."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            f"{device} does not exist: this host has no hardware virtualisation, its firmware has "
            "switched it off, or the kernel's kvm module is not loaded"
        )
    except PermissionError:
        return f"{device} may not be opened: {_who_may(device)}"
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return f"{device} has no driver behind it: load the kernel's kvm module"
        return f"{device} cannot be opened: {error.strerror}"
    return ""


def _who_may(device: Path) -> str:
    """Return who may open a device that this user may not, and how to become one of them."""
    try:
        state = device.stat()
    except OSError as error:
        return str(error.strerror)
    if not state.st_mode & 0o060 or state.st_gid in os.getgroups():
        # Either only its owner may, or something else than its mode forbids it: a container.
        return "the host or the container denies it to this user; have it passed in"
    try:
        group = grp.getgrgid(state.st_gid).gr_name
    except KeyError:
        return f"it belongs to the group with the number {state.st_gid}; join that"
    return (
        f"it belongs to the group {group}: 'sudo usermod -aG {group} {_user()}', then log in again"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the guest code showed of KVM.

    Attributes:
        proven: Whether KVM is worth using.
        reason: Why, or why not.
        cpu: The CPU model it runs with at all; empty for none.
    """

    proven: bool
    reason: str
    cpu: str


def _remembered(qemu: Path, arch: str, cache_dir: Path) -> _Measured:
    """Return what was measured since this host booted, or measure it."""
    key = _key(qemu, arch)
    path = cache_dir / f"accel-{arch}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            known = stored["measured"]
            return _Measured(bool(known["proven"]), str(known["reason"]), str(known["cpu"]))
    found, sure = _measure(qemu, arch)
    if sure:
        with contextlib.suppress(OSError):
            measured.store(path, {"key": key, "measured": asdict(found)})
    return found


def _key(qemu: Path, arch: str) -> dict[str, str]:
    """Return what a measurement holds for: this boot of this host, this QEMU, this guest code.

    The boot id alone is not enough: a virtual machine that is resumed on another host keeps it.
    """
    try:
        program = qemu.resolve()
        state = program.stat()
        version = f"{program} {state.st_size} {state.st_mtime_ns}"
    except OSError:
        version = str(qemu)
    # "processor", "cpu MHz" and the like differ from one reading to the next.
    kept = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    lines = {line for line in measured.read_text(_CPUINFO).splitlines() if line.startswith(kept)}
    return {
        "boot": measured.read_text(_BOOT_ID).strip(),
        "processor": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest(),
        "qemu": version,
        "guest": hashlib.sha256(guest.image(arch)).hexdigest(),
    }


def _measure(qemu: Path, arch: str) -> tuple[_Measured, bool]:
    """Return what KVM is worth on this host, and whether that is sure enough to remember."""
    tcg = _run(qemu, arch, "tcg", _TCG_CPU[arch], None)
    # A busy host may not let TCG finish: what it would have taken follows from what it did.
    reference = tcg.seconds * guest.ROUNDS / tcg.rounds if tcg.rounds else None
    refused = ""
    for cpu in _KVM_CPUS[arch]:
        kvm = _run(qemu, arch, "kvm", cpu, reference)
        if kvm.began or kvm.end is not End.DIED:
            break
        refused = refused or _complaint(kvm.said) or "it ended without a word"
        if "invalid accelerator" in kvm.said:
            return _Measured(False, "this QEMU is built without KVM", ""), True
    else:
        return _Measured(False, f"QEMU does not start with KVM: {refused}", ""), True
    aside = f" (QEMU refuses the CPU model host: {refused})" if refused else ""
    work = "64-bit paged guest code"
    if kvm.end is End.DONE:
        ratio = f" {reference / kvm.seconds:.1f} times as fast as TCG" if reference else ""
        return _Measured(True, f"KVM runs {work}{ratio}{aside}", cpu), reference is not None
    if kvm.end is End.WRONG:
        return _Measured(False, f"KVM runs {work} wrongly{aside}", cpu), True
    if kvm.end is End.DIED:
        said = _complaint(kvm.said) or "it ended without a word"
        return _Measured(False, f"QEMU died running {work} under KVM: {said}{aside}", cpu), True
    did = f"KVM did {kvm.rounds} of {guest.ROUNDS} rounds of {work} in {kvm.seconds:.2f} s"
    if not kvm.began:
        did = f"KVM did not get to {work} within {_RUN_LIMIT:.1f} s"
    if reference is None:
        return _Measured(False, did + aside, cpu), False
    than = f"TCG did all in {reference:.2f} s"
    if tcg.end is not End.DONE:
        than = f"TCG did {tcg.rounds} in {tcg.seconds:.2f} s"
    why = "the KVM of this host seems to have no hardware under it"
    # Far off is far off; what was near may have been the load of a moment.
    sure = tcg.end is End.DONE and kvm.rounds < guest.ROUNDS / 4
    return _Measured(False, f"{did}, {than}: {why}{aside}", cpu), sure


def _run(qemu: Path, arch: str, accel: str, cpu: str, work: float | None) -> Run:
    limit = deadline.after(_RUN_LIMIT, scaled=False)
    return run(qemu, arch, accel, cpu, limit=limit, work=work)


def _complaint(text: str) -> str:
    """Return the line of QEMU's stderr that says what went wrong; empty if there is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    faults = [line for line in lines if "error" in line or "failed" in line] or lines
    if not faults:
        return ""
    # "qemu-system-x86_64: error: ..."
    return re.sub(r"^\S*qemu\S*: (error: )?", "", faults[0])
