"""Whether this host is fit to run a job of a gate: ``harness doctor --gate``.

A job that starts on an unfit runner loses its tests to it, and their failures look like the image's.
These checks take at most 5 s and come first. Each finding that is not ok says what to do.
"""

from __future__ import annotations

import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import jsonfile
from harness.host import accel
from harness.host.capacity import Capacity
from harness.host.finding import Finding
from harness.host.reach import Answer, Endpoint
from harness.spec import format_size

IMAGE: Final = Path("/opt/harness/image.json")
"""When and from what the runner image was built; ``runners/Containerfile`` writes it."""

WARN_DAYS: Final = 21
OLD_DAYS: Final = 30
"""GitHub stops sending jobs to a runner that was not updated within 30 days of a release: "deprecated
and cannot receive messages" (actions/runner#4392, actions/actions-runner-controller#4242). An image that
is younger than that has a runner that is."""

METADATA: Final = "169.254.169.254:80"
"""The metadata service of AWS, Azure, Google Cloud and others: it gives credentials of the node to
whoever asks."""

_MIB: Final = 1024 * 1024
_SHM: Final = Path("/dev/shm")
_NODE: Final = "try another node; for a pod: resources.limits, and the labels of its runner set"


@dataclass(frozen=True, slots=True)
class RunnerImage:
    """The record of a runner image.

    Attributes:
        built: When, in ISO 8601 with its time zone.
        commit: The commit of Harness in it; empty if unknown.
    """

    built: str
    commit: str = ""


def kvm(device: accel.Kvm, *, needed: bool) -> Finding:
    """Return the finding on KVM: whether it is absent, forbidden or useless.

    Args:
        device: What KVM is worth.
        needed: Whether the job has to have it. Otherwise its guests are emulated, which is slower.
    """
    remedy = {
        "absent": "schedule the pod onto a node that offers squat.ai/kvm, and request that resource",
        "forbidden": "give the pod the node's kvm group (supplementalGroups), or the device mode 0666",
        "broken": "load kvm_intel or kvm_amd on the node, then restart its device plugin",
        "useless": "use a node with hardware virtualisation: nested KVM without it is slower than none",
        "foreign": "send the job to a runner of its own architecture, or do not ask for KVM",
    }
    data = {"state": device.state}
    text = f"{device.state}: {device.reason}"
    if device.state == "usable":
        return Finding("kvm", True, text, data, needed)
    if needed:
        text += f"\n{remedy[device.state]}"
    return Finding("kvm", False, text, data, needed)


def memory(capacity: Capacity, need: int, *, in_pod: bool) -> list[Finding]:
    """Return the findings on memory.

    Args:
        capacity: What this process may use.
        need: MiB that the job needs.
        in_pod: Whether this is a pod, which has to have a limit of its own.
    """
    has = f"{format_size(capacity.memory)} (limit: {capacity.limit})"
    data = {"memory": capacity.memory, "limit": capacity.limit, "needed": need * _MIB}
    findings = [Finding("memory", True, f"{has}, {need} MiB needed", data)]
    if capacity.memory < need * _MIB:
        text = f"{has}, and the job needs {need} MiB: the kernel would kill QEMU in mid-test"
        findings = [Finding("memory", False, f"{text}\n{_NODE}", data)]
    if in_pod and capacity.limit == "host":
        text = (
            "this pod has none: it can take the node's memory, and be evicted with its neighbours"
        )
        hint = "set resources.limits.memory equal to requests.memory"
        findings.append(Finding("memory limit", False, f"{text}\n{hint}", None, needed=False))
    return findings


def disk(folder: Path, need: int) -> Finding:
    """Return the finding on the disk that artifacts, states and evidence go to.

    Args:
        folder: A folder that exists.
        need: MiB that the job needs.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", False, f"{folder}: {error.strerror}\n{_NODE}")
    data = {"path": str(folder), "free": free, "needed": need * _MIB}
    text = f"{folder}: {format_size(free)} free, {need} MiB needed"
    if free >= need * _MIB:
        return Finding("disk", True, text, data)
    remedy = (
        "free the volume, or raise resources.limits.ephemeral-storage or the volume's sizeLimit"
    )
    return Finding("disk", False, f"{text}\n{remedy}", data)


def shared_memory(folder: Path = _SHM) -> Finding:
    """Return the finding on memory that has a file descriptor, and on ``/dev/shm``.

    The RAM of a machine that is going to be saved is a memory file (``memfd_create(2)``). The limit of
    the pod counts it, and the size of ``/dev/shm`` (64 MiB in a pod) does not matter to it.
    """
    try:
        os.close(os.memfd_create("harness-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        text = f"memfd_create fails: {error.strerror}; no machine can be saved"
        return Finding("shm", False, f"{text}\nuse the seccomp profile RuntimeDefault")
    if not os.access(folder, os.W_OK):
        text = f"{folder} cannot be written"
        remedy = "mount an emptyDir with medium: Memory there, or leave the runtime's own in place"
        return Finding("shm", False, f"{text}\n{remedy}", needed=False)
    size = os.statvfs(folder)
    free = size.f_bavail * size.f_frsize
    text = f"memory files work; {folder}: {format_size(free)} free"
    return Finding("shm", True, text, {"path": str(folder), "free": free})


def age(record: Path, now: datetime.datetime) -> Finding:
    """Return the finding on the age of the runner image.

    Args:
        record: The file that says when it was built.
        now: The time, with its time zone.
    """
    rebuild = "build and roll out the runner image anew: the workflow images.yml does so each week"
    try:
        image = jsonfile.load(record, RunnerImage, format=1)
        built = datetime.datetime.fromisoformat(image.built)
        days = (now - built).total_seconds() / 86400
    except FileNotFoundError:
        return Finding("runner age", True, "not in a runner image", needed=False)
    except (OSError, ValueError, TypeError) as error:
        # TypeError: a time without a zone cannot be compared.
        return Finding("runner age", False, f"{record}: {error}\n{rebuild}")
    data = {"built": image.built, "days": round(days, 1), "commit": image.commit}
    text = f"the image is {days:.0f} days old (built {image.built})"
    if days < -1:
        clock = "the clock of this node or that of the builder is wrong: set it (NTP)"
        return Finding(
            "runner age", False, f"the image is from the future: {image.built}\n{clock}", data
        )
    if days >= OLD_DAYS:
        text += f": from {OLD_DAYS} days on, GitHub may send it no job"
        return Finding("runner age", False, f"{text}\n{rebuild}", data)
    if days >= WARN_DAYS:
        text += f": at {OLD_DAYS} days this runner is refused"
        return Finding("runner age", False, f"{text}\n{rebuild}", data, needed=False)
    return Finding("runner age", True, text, data)


def isolation(answer: Answer) -> Finding:
    """Return the finding on an address that must not answer."""
    each: Endpoint = answer.endpoint
    data = {"address": str(each), "connected": answer.connected, "how": answer.how}
    text = f"{each}: {answer.how}"
    if answer.connected:
        return Finding(each.name, False, f"{text}, and must not\n{each.hint}", data)
    return Finding(each.name, True, text, data)
