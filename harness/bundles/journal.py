"""The journal and the failed units of a machine whose test has failed, as files of its evidence.

A machine that answers is asked. Of one that does not, the disks are read, without root: systemd-journald
keeps its journal below ``/var/log/journal`` (systemd-journald.service(8)). Each ext4 partition of a disk
that the machine can write is looked at: its root may hold that folder, or ``log/journal`` where the
partition is ``/var`` itself. The partition is copied by ``qemu-img``, which leaves its holes out;
``e2fsck`` replays what the file system had not finished; ``debugfs`` takes the files out by their
numbers; and ``journalctl`` of the host prints them. Where a host has no ``journalctl``, the files
themselves are kept.

What the guest had in memory is not on its disk: a guest that hangs or panics takes the words of its last
seconds with it. A guest writes dirty pages after 30 seconds (``vm.dirty_expire_centisecs`` in the Linux
kernel's sysctl documentation), and journald syncs at once what is critical or worse
(``SyncIntervalSec=`` in journald.conf(5)).

A disk is a guest's: names and sizes are checked, and each program has a limit of time and of what it
writes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.deadline import UNSCALED, Deadline, run
from harness.errors import HarnessError, HostError, WaitTimeoutError, first_line_of
from harness.machine import Machine
from harness.powercut.partitions import partitions
from harness.qemu.argv import DiskFile
from harness.qemu.disk import qemu_img, virtual_size
from harness.result import Result
from harness.spec import GIB, MIB, format_size

JOURNAL: Final = "journal.txt"
"""The journal of the machine's last boot; its first line says where it is from."""

FAILED: Final = "failed-units.txt"
"""The units that have failed, a line each."""

RAW: Final = "journal"
"""The folder of the journal's own files, where the host cannot print them."""

SECONDS: Final = 60.0
"""Seconds that all machines of a test may take."""

_ANSWER: Final = 20.0
_LINES: Final = 5000
"""Lines of a journal that are kept: the last ones."""

_PLACES: Final = ("/var/log/journal", "/log/journal")
_FILE: Final = re.compile(r"[A-Za-z0-9@._+-]{1,128}\.journal~?", re.ASCII)
_MACHINE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LARGEST_PARTITION: Final = 32 * GIB
_LARGEST_JOURNAL: Final = 256 * MIB
_TABLE: Final = 1 * MIB

_MESSAGES: Final = (
    "d9b373ed55a64feb8242e02dbe79a49c",
    "be02cf6855d2428ba40df7e9d022f03d",
)
"""``SD_MESSAGE_UNIT_FAILURE_RESULT`` and ``SD_MESSAGE_UNIT_FAILED`` of systemd's sd-messages.h."""


def collect(machines: Sequence[Machine[Any]], limit: Deadline | None = None) -> None:
    """Write the journal of each machine whose image runs systemd into the machine's evidence.

    Nothing here raises: what could not be read, and why, is the content of :data:`JOURNAL`.

    Args:
        machines: The machines of a test that has failed.
        limit: When to give up; :data:`SECONDS` by default.
    """
    limit = limit or UNSCALED.after(SECONDS)
    for machine in machines:
        if "systemd" not in machine.os.selection.capabilities:
            continue
        with machine.timeline.step("read the journal", machine=machine.name) as step:
            try:
                step.data["from"] = _collect(machine, limit)
            except (HarnessError, OSError, ValueError) as error:
                step.data["why"] = why = first_line_of(error)
                with contextlib.suppress(OSError):
                    _write(machine.evidence / JOURNAL, f"could not be read: {why}")


def _collect(machine: Machine[Any], limit: Deadline) -> str:
    status = _status(machine)
    if status == "running" and machine.failure is None:
        with contextlib.suppress(HarnessError, OSError):
            _ask(machine, min(limit, UNSCALED.after(_ANSWER), key=lambda each: each.remaining()))
            return "the machine"
    with (
        _paused(machine, status),
        tempfile.TemporaryDirectory(dir=machine.evidence, prefix=".disk-") as at,
    ):
        return _read(machine, Path(at), limit)


def _write(path: Path, head: str, text: str = "") -> None:
    # The first line is ours, whatever the guest has written.
    path.write_text(f"# {head}\n{text}", errors="replace")


# --- a machine that answers -------------------------------------------------------------------


def _ask(machine: Machine[Any], limit: Deadline) -> None:
    """Have the machine print its journal.

    Raises:
        HarnessError: It does not.
    """

    def run(command: str) -> Result:
        words = machine.os.as_root(f"sh -c {shlex.quote(command)}")
        if machine.use_console_shell:
            return machine.console.run(words, limit)
        return machine.ssh.run(words, limit)

    journal = run(f"{_journalctl()} | cat").check()
    failed = run("systemctl --failed --no-legend --no-pager --plain | cat").check()
    _write(machine.evidence / JOURNAL, "the machine's own answer: journalctl -b", journal.stdout)
    _write(machine.evidence / FAILED, "the machine's own answer: systemctl --failed", failed.stdout)


def _journalctl(*arguments: str) -> str:
    words = ("journalctl", *arguments, "-b", "-q", "--no-pager", "-o", "short-monotonic")
    return shlex.join([*words, "-n", str(_LINES)])


# --- a machine that does not ------------------------------------------------------------------


def _status(machine: Machine[Any]) -> str:
    """Return QEMU's word for what a machine does; empty if QEMU has ended or hangs itself."""
    with contextlib.suppress(HarnessError):
        if machine.running:
            return str(machine.qmp.execute("query-status", deadline=UNSCALED.after(5))["status"])
    return ""


@contextlib.contextmanager
def _paused(machine: Machine[Any], status: str) -> Iterator[None]:
    """Let a machine stand still, so that its disk is whole: QEMU writes out what it holds back."""
    if status:
        with contextlib.suppress(HarnessError):
            machine.qmp.execute("stop", deadline=UNSCALED.after(_ANSWER))
    try:
        yield
    finally:
        if status == "running" and machine.running:
            with contextlib.suppress(HarnessError):
                machine.qmp.execute("cont", deadline=UNSCALED.after(5))


def _read(machine: Machine[Any], scratch: Path, limit: Deadline) -> str:
    """Write the journal of the first disk that has one, and return where that was.

    Raises:
        HostError: No disk has one, or a program is missing.
    """
    debugfs = _program("debugfs")
    e2fsck = _program("e2fsck")
    seen = []
    for disk in machine.spec.disks:
        if disk.readonly:
            continue
        file = machine.disk(disk.name)
        for part in _parts(file, scratch, limit):
            seen.append(f"{part.name} of {disk.name}")
            copy = scratch / "partition"
            try:
                _copy(file, part, copy, limit)
                _run(e2fsck, "-p", "-E", "journal_only", copy.name, at=scratch, limit=limit)
                has_journal = _take(debugfs, copy, scratch / RAW, limit)
            finally:
                copy.unlink(missing_ok=True)
            if has_journal:
                _print(machine.evidence, scratch / RAW, f"{part.name} of disk {disk.name}", limit)
                return seen[-1]
    raise HostError(f"no journal is on its disks (looked at: {', '.join(seen) or 'no ext4'})")


@dataclass(frozen=True, slots=True)
class _Part:
    """An ext4 file system on a disk: its name, and where it is, in bytes."""

    name: str
    start: int
    size: int


def _parts(file: DiskFile, scratch: Path, limit: Deadline) -> Iterator[_Part]:
    """Yield the ext4 file systems of a disk; the last one first, since state lies behind the system."""
    size = virtual_size(file)
    head = scratch / "head"
    whole = _Part("the whole", 0, size)
    _copy(file, _Part("", 0, min(size, _TABLE)), head, limit)
    listed = [
        _Part(f"partition {part.label!r}", part.start, part.size) for part in partitions(head)
    ]
    for part in reversed(listed or [whole]):
        inside = part.start >= 0 and part.size > 4096 and part.start + part.size <= size
        if not inside or part.size > _LARGEST_PARTITION:
            continue
        _copy(file, _Part("", part.start, 4096), head, limit)
        # The magic of ext2 and its successors: "Layout", Documentation/filesystems/ext4 of Linux.
        if head.read_bytes()[1024 + 56 : 1024 + 58] == b"\x53\xef":
            yield part


def _copy(file: DiskFile, part: _Part, target: Path, limit: Deadline) -> None:
    """Copy a part of a disk into a raw file; what is zero stays a hole.

    Raises:
        HostError: There is too little space, or the disk cannot be read.
        WaitTimeoutError: The deadline passed.
    """
    free = shutil.disk_usage(target.parent).free
    if free < part.size:
        raise HostError(f"{format_size(part.size)} may be needed, {format_size(free)} are free")
    source = {
        "driver": "raw",
        "offset": part.start,
        "size": part.size,
        "file": {
            "driver": file.format,
            # Bytes of the disk, not of its file: "raw" is a driver for both.
            "file": {"driver": "file", "filename": str(file.path)},
        },
    }
    target.unlink(missing_ok=True)
    qemu_img("convert", "-U", "-O", "raw", f"json:{json.dumps(source)}", str(target), limit=limit)


def _take(debugfs: str, copy: Path, target: Path, limit: Deadline) -> bool:
    """Take the files of a journal out of a file system; return whether there are any."""
    target.mkdir(exist_ok=True)
    left = _LARGEST_JOURNAL
    count = 0
    for place in _PLACES:
        for number, name, _ in _list(debugfs, copy, place, limit):
            if not _MACHINE.fullmatch(name):
                continue
            files = sorted(
                _list(debugfs, copy, f"<{number}>", limit),
                # "system.journal" is the current one; of the others the name has the age.
                key=lambda each: ("@" not in each[1], each[1]),
                reverse=True,
            )
            for inode, file, size in files:
                if size > left or not _FILE.fullmatch(file):
                    continue
                left -= size
                count += 1
                words = f"dump <{inode}> {count}-{file}"
                _run(debugfs, "-R", words, str(copy), at=target, limit=limit)
    return count > 0


def _list(debugfs: str, copy: Path, place: str, limit: Deadline) -> Iterator[tuple[int, str, int]]:
    """Yield number, name and size of each entry of a folder; none if there is no such folder.

    ``ls -p`` prints ``/NUMBER/MODE/UID/GID/NAME/SIZE/`` (debugfs(8)).
    """
    output = _run(debugfs, "-R", f"ls -p {place}", str(copy), at=copy.parent, limit=limit)
    for line in output.splitlines():
        fields = line.split("/")
        if len(fields) == 8 and fields[1].isdecimal() and int(fields[1]):
            size = int(fields[6]) if fields[6].isdecimal() else 0
            yield int(fields[1]), fields[5], size


def _print(evidence: Path, files: Path, where: str, limit: Deadline) -> None:
    """Write the journal as text; without ``journalctl`` on this host, keep its files."""
    head = f"from {where}, as the machine did not answer; its last seconds may be missing"
    if shutil.which("journalctl") is None:
        shutil.rmtree(evidence / RAW, ignore_errors=True)
        shutil.copytree(files, evidence / RAW)
        line = f"{_journalctl(f'--directory={RAW}')}\n"
        _write(evidence / JOURNAL, f"{head}; this host has no journalctl. To read it, here:", line)
        return
    directory = f"--directory={files}"
    journal = _run(*shlex.split(_journalctl(directory)), at=files, limit=limit)
    _write(evidence / JOURNAL, head, journal)
    matches = [f"MESSAGE_ID={each}" for each in _MESSAGES]
    failed = _run(*shlex.split(_journalctl(directory)), *matches, at=files, limit=limit)
    _write(evidence / FAILED, f"what the journal says of failures, {head}", failed)


def _program(name: str) -> str:
    """Return the path of a program of e2fsprogs, which may be in root's folders only.

    Raises:
        HostError: It is not installed.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise HostError(f"{name} is not installed", hint="install the package e2fsprogs")
    return path


def _run(*command: str, at: Path, limit: Deadline) -> str:
    """Run a program on a guest's data and return its output, whatever its status.

    Raises:
        WaitTimeoutError: The deadline passed.
        OSError: It cannot be run.
    """
    limits = [f"--fsize={_LARGEST_PARTITION}", f"--cpu={int(SECONDS)}", "--"]
    prefix = ["prlimit", *limits] if shutil.which("prlimit") else []
    try:
        ended = run([*prefix, *command], limit, at=at)
    except subprocess.TimeoutExpired as error:
        raise WaitTimeoutError(f"{Path(command[0]).name} on a guest's disk", limit) from error
    return ended.stdout.decode(errors="replace")


__all__: Sequence[str] = ["FAILED", "JOURNAL", "RAW", "collect"]
