"""The accelerator that runs a guest, and the probe behind ``--accel auto|kvm|tcg``.

``auto`` uses KVM only if it proves itself: the guest code of :mod:`harness.host.probe`, 64-bit and
paged, must run under KVM at least as fast as under TCG, QEMU's emulator. The measurement is stored and
stays valid until the host reboots, or until QEMU, the KVM device, the processor or the guest code
changes. Whether the device exists and can be opened is checked each time, because that can change.
"""

from __future__ import annotations

import errno
import getpass
import grp
import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from harness import arch as arches
from harness.deadline import UNSCALED
from harness.errors import AcceleratorError, UnknownNameError
from harness.host import measured
from harness.host import probe as guest
from harness.host.probe.measure import End, ProbeRun, run

CHOICES: Final = ("auto", "kvm", "tcg")

DEVICE: Final = Path("/dev/kvm")
"""The device of the kernel's KVM."""

# Two runs of at most 1.4 s each keep the whole probe within 3 s. KVM on real hardware does the work
# in a tenth of a second, TCG in a quarter.
_RUN_LIMIT: Final = 1.4


@dataclass(frozen=True, slots=True)
class Accel:
    """The accelerator of a guest.

    Attributes:
        name: ``kvm`` or ``tcg``, as QEMU's ``-accel`` takes it.
        reason: Why it was chosen; a clause for a person, without a full stop.
        cpu: The CPU model that the probe ran with under KVM; empty for TCG.
        doubt: What the probe said against it, where it was requested all the same; else empty.
    """

    name: Literal["kvm", "tcg"]
    reason: str
    cpu: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Kvm:
    """What this host's KVM is worth to a guest.

    Attributes:
        state: ``usable``, it proved itself; ``useless``, the device opens, and guests do not run as
            they should; ``forbidden``, this user may not open the device; ``broken``, it cannot be
            opened for another reason; ``absent``, there is no device; ``foreign``, the guest is of
            another architecture than the host.
        reason: Why, and what helps; a clause for a person, without a full stop.
    """

    state: Literal["usable", "useless", "forbidden", "broken", "absent", "foreign"]
    reason: str


def kvm(arch: str, *, qemu: Path, cache_dir: Path) -> Kvm:
    """Return what this host's KVM is worth, within 3 s, or at once if a measurement is stored.

    Args:
        arch: The guest's architecture.
        qemu: The QEMU for that architecture.
        cache_dir: As for :func:`probe`.

    Raises:
        UnknownNameError: Harness has no such arch.
        QemuMissingError: QEMU cannot be executed.
    """
    arches.of(arch)
    if reason := _foreign(arch):
        return Kvm("foreign", reason)
    if obstacle := _obstacle(DEVICE):
        return obstacle
    measurement = _stored_or_measured(qemu, arch, cache_dir)
    return Kvm("usable" if measurement.proven else "useless", measurement.reason)


def probe(choice: str, arch: str, *, qemu: Path, cache_dir: Path) -> Accel:
    """Return the accelerator for a guest, within 3 s, or at once if a measurement is stored.

    ``auto`` returns KVM if it proves itself and TCG otherwise. ``kvm`` returns KVM wherever QEMU can
    start a guest with it; if the probe speaks against it, ``doubt`` says so.

    Args:
        choice: ``auto``, ``kvm`` or ``tcg``.
        arch: The guest's architecture.
        qemu: The QEMU for that architecture.
        cache_dir: The folder for the measurement; created if absent. If it cannot be written,
            nothing is stored.

    Raises:
        UnknownNameError: Harness has no such choice or arch.
        AcceleratorError: ``kvm`` was requested and cannot be used; says why.
        QemuMissingError: QEMU cannot be executed.
    """
    if choice not in CHOICES:
        raise UnknownNameError("accelerator", choice, CHOICES)
    arches.of(arch)
    if choice == "tcg":
        return Accel("tcg", "it was requested")
    obstacle = _foreign(arch) or _closed(DEVICE)
    if obstacle:
        return _without_kvm(choice, obstacle)
    kvm = _stored_or_measured(qemu, arch, cache_dir)
    if kvm.proven:
        return Accel("kvm", kvm.reason, kvm.cpu)
    if choice == "kvm" and kvm.cpu:
        doubt = f"KVM was requested, although {kvm.reason}"
        return Accel("kvm", f"it was requested, although {kvm.reason}", kvm.cpu, doubt)
    return _without_kvm(choice, kvm.reason)


def cpu_model(accel: Accel, arch: str, baseline: str = "") -> str:
    """Return QEMU's name of the CPU model for a guest.

    Under KVM that is the host's own processor, under TCG the model that carries the baseline at the
    lowest cost.

    Args:
        accel: The accelerator.
        arch: The guest's architecture.
        baseline: The instructions that the guest is built for; the architecture's default if empty.

    Raises:
        UnknownNameError: There is no such arch or baseline.
        AcceleratorError: Under KVM, this host's processor does not carry the baseline; names what it
            lacks.
    """
    level = arches.baseline(arch, baseline)
    if accel.name != "kvm":
        return level.cpu_tcg
    if missing := level.flags - _flags():
        raise AcceleratorError(
            f"this host's processor does not carry {baseline or arches.of(arch).baseline},"
            f" for which the image is built: it lacks {', '.join(sorted(missing))}",
            hint="--accel tcg emulates it; or run it on another host",
        )
    return accel.cpu or "host"


def _flags() -> set[str]:
    """Return what the host's processor says that it can do, in Linux' words."""
    lines = measured.processor("flags", "Features")
    return {word for line in lines for word in line.partition(":")[2].split()}


def _without_kvm(choice: str, reason: str) -> Accel:
    if choice == "kvm":
        raise AcceleratorError(f"KVM cannot be used: {reason}", hint="--accel auto, or --accel tcg")
    return Accel("tcg", reason)


def _foreign(arch: str) -> str:
    """Return why this processor cannot run a guest of ``arch``; empty if it can."""
    host = arches.host()
    return "" if arch == host else f"the guest is {arch} and this host is {host}"


def _closed(device: Path) -> str:
    """Return why the KVM device cannot be opened, and the remedy; empty if it can be opened."""
    obstacle = _obstacle(device)
    return obstacle.reason if obstacle else ""


def _obstacle(device: Path) -> Kvm | None:
    """Return why the KVM device cannot be opened; ``None`` if it can be opened."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Kvm(
            "absent",
            f"{device} does not exist: this host has no hardware virtualisation, its firmware "
            "disables it, or the kernel's kvm module is not loaded",
        )
    except PermissionError:
        return Kvm("forbidden", f"{device} may not be opened by this user: {_permission(device)}")
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return Kvm("broken", f"{device} has no driver behind it: load the kernel's kvm module")
        return Kvm("broken", f"{device} cannot be opened: {error.strerror}")
    return None


def _permission(device: Path) -> str:
    """Return how this user gets access to a device that they may not open."""
    try:
        state = device.stat()
    except OSError as error:
        return str(error.strerror)
    if not state.st_mode & 0o060 or state.st_gid in os.getgroups():
        # Only the owner may open it, or something other than its mode forbids it, as in a container.
        return "the host or the container denies access; pass the device in"
    try:
        group = grp.getgrgid(state.st_gid).gr_name
    except KeyError:
        return f"it belongs to the group with the number {state.st_gid}; join that group"
    return (
        f"it belongs to the group {group}: 'sudo usermod -aG {group} {_user()}', then log in again"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True, slots=True)
class _Kvm:
    """The result of the probe.

    Attributes:
        proven: Whether KVM is worth using.
        reason: Why, or why not.
        cpu: The CPU model that runs at all under KVM; empty for none.
    """

    proven: bool
    reason: str
    cpu: str

    @classmethod
    def of(cls, measurement: dict[str, Any] | None) -> _Kvm | None:
        match measurement:
            case {"proven": bool(proven), "reason": str(reason), "cpu": str(cpu)}:
                return cls(proven, reason, cpu)
        return None


def _stored_or_measured(qemu: Path, arch: str, cache_dir: Path) -> _Kvm:
    """Return the measurement since this host booted, and measure if there is none."""
    key = _key(qemu, arch)
    path = cache_dir / f"accel-{arch}.json"
    stored = _Kvm.of(measured.recall(path, key))
    if stored is not None:
        return stored
    kvm, sure = _measure(qemu, arch)
    if sure:
        measured.store(path, key, asdict(kvm))
    return kvm


def _key(qemu: Path, arch: str) -> dict[str, str]:
    """Return the key of a measurement: this boot of this host, its KVM, this QEMU, this guest code."""
    try:
        program = qemu.resolve()
        state = program.stat()
        version = f"{program} {state.st_size} {state.st_mtime_ns}"
    except OSError:
        version = str(qemu)
    lines = measured.processor(
        *("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    )
    return {
        "boot": measured.boot_id(),
        "device": _identity(DEVICE),
        "processor": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "qemu": version,
        "guest": hashlib.sha256(guest.image(arch)).hexdigest(),
    }


def _identity(device: Path) -> str:
    """Return what changes when a device is replaced, or the kernel's module creates it again.

    Its use changes none of it: ``st_ctime`` follows the mode, the owner and the links (``inode(7)``).
    """
    try:
        state = device.stat()
    except OSError as error:
        return str(error.strerror)
    return (
        f"{state.st_dev}:{state.st_ino} rdev {state.st_rdev} mode {state.st_mode:o}"
        f" owner {state.st_uid}:{state.st_gid} at {state.st_mtime_ns} {state.st_ctime_ns}"
    )


def _measure(qemu: Path, arch: str) -> tuple[_Kvm, bool]:
    """Return how KVM performs on this host, and whether the result is sure enough to store."""
    row = arches.of(arch)
    tcg = _run(qemu, arch, "tcg", arches.baseline(arch).cpu_tcg, None)
    # On a busy host TCG may not finish. Its speed so far gives the time for the whole work.
    reference = tcg.seconds * guest.ROUNDS / tcg.rounds if tcg.rounds else None
    refused = ""
    for cpu in row.cpus_kvm:
        kvm = _run(qemu, arch, "kvm", cpu, reference)
        if kvm.began or kvm.end is not End.DIED:
            break
        refused = refused or _complaint(kvm.stderr) or "it ended without a message"
        if "invalid accelerator" in kvm.stderr:
            return _Kvm(False, "this QEMU is built without KVM", ""), True
    else:
        return _Kvm(False, f"QEMU does not start with KVM: {refused}", ""), True
    aside = f" (QEMU refuses the CPU model host: {refused})" if refused else ""
    work = "64-bit paged guest code"
    if kvm.end is End.DONE:
        ratio = f" {reference / kvm.seconds:.1f} times as fast as TCG" if reference else ""
        return _Kvm(True, f"KVM runs {work}{ratio}{aside}", cpu), reference is not None
    if kvm.end is End.WRONG:
        return _Kvm(False, f"KVM runs {work} wrongly{aside}", cpu), True
    if kvm.end is End.DIED:
        message = _complaint(kvm.stderr) or "it ended without a message"
        return _Kvm(False, f"QEMU died running {work} under KVM: {message}{aside}", cpu), True
    progress = f"KVM did {kvm.rounds} of {guest.ROUNDS} rounds of {work} in {kvm.seconds:.2f} s"
    if not kvm.began:
        progress = f"KVM did not start {work} within {_RUN_LIMIT:.1f} s"
    if reference is None:
        return _Kvm(False, progress + aside, cpu), False
    comparison = f"TCG did all in {reference:.2f} s"
    if tcg.end is not End.DONE:
        comparison = f"TCG did {tcg.rounds} in {tcg.seconds:.2f} s"
    cause = "the KVM of this host seems to have no hardware under it"
    # A KVM that is far too slow is useless; one that is nearly as fast may have met a busy moment.
    sure = tcg.end is End.DONE and kvm.rounds < guest.ROUNDS / 4
    return _Kvm(False, f"{progress}, {comparison}: {cause}{aside}", cpu), sure


def _run(qemu: Path, arch: str, accel: str, cpu: str, work: float | None) -> ProbeRun:
    return run(qemu, arch, accel, cpu, limit=UNSCALED.after(_RUN_LIMIT), work=work)


def _complaint(text: str) -> str:
    """Return the line of QEMU's stderr that names the fault; empty if there is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    faults = [line for line in lines if "error" in line or "failed" in line] or lines
    if not faults:
        return ""
    # "qemu-system-x86_64: error: ..."
    return re.sub(r"^\S*qemu\S*: (error: )?", "", faults[0])
