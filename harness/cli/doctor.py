"""Say what this host can do, and what it lacks.

Looks at QEMU, firmware, the accelerator and its reason, memory and CPU as the cgroup allows them.
--boot boots the micro image on each arch. Exit status 3 if something that is needed is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import host, paths, profiles
from harness.catalog import load
from harness.errors import HarnessError
from harness.keys import KeyPair
from harness.machine import Machine
from harness.qemu import accel, binary, firmware
from harness.spec import ARCHES, FirmwareKind, format_size
from harness.state import filesystem
from harness.store import Store
from harness.turns import Turns

MOVE_CACHE: Final = "put the cache on a local disk (ext4, XFS, btrfs): HARNESS_CACHE=/path"

TOOLS: Final = {
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "swtpm": "swtpm",
    "mmdebstrap": "mmdebstrap",
    "cpio": "cpio",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        ok: Whether it serves.
        text: What was found.
        data: The same for programs.
        needed: Whether Harness cannot work without it.
    """

    name: str
    ok: bool
    text: str
    data: Any = None
    needed: bool = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--boot", action="store_true", help="boot the micro image on each arch")
    parser.add_argument("--accel", default="auto", choices=("auto", "kvm", "tcg"))


def main(options: argparse.Namespace) -> int:
    """Print the report."""
    findings = [*_host(), *_tools()]
    for arch in ARCHES:
        findings += _arch(arch, options.accel)
    if options.boot:
        findings += [_boot(arch, options.accel) for arch in ARCHES]
    good = all(finding.ok for finding in findings if finding.needed)
    if options.json:
        report = {
            "ok": good,
            "findings": [
                {"name": each.name, "ok": each.ok, "text": each.text, "data": each.data}
                for each in findings
            ],
        }
        print(json.dumps(report, indent=2, default=str))
    else:
        for each in findings:
            mark = "ok" if each.ok else ("MISSING" if each.needed else "-")
            first, *rest = each.text.splitlines()
            print(f"{mark:8}{each.name:18}{first}")
            for line in rest:
                print(f"{'':26}{line}")
    return 0 if good else 3


def _host() -> list[Finding]:
    room = host.capacity()
    cache = paths.cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return [
        Finding("host", True, f"{platform.platform()}, Python {platform.python_version()}"),
        Finding(
            "cpu",
            True,
            f"{room.cpus:g} (limit: {room.cpu_limit})",
            {"cpus": room.cpus, "limit": room.cpu_limit},
        ),
        Finding(
            "memory",
            True,
            f"{format_size(room.memory)}, {format_size(room.available)} free (limit: {room.limit})",
            {"memory": room.memory, "available": room.available, "limit": room.limit},
        ),
        Finding("cache", True, f"{cache}, {format_size(free)} free", {"path": cache, "free": free}),
        _cache_file_system(cache),
    ]


def _cache_file_system(cache: Path) -> Finding:
    """Look whether the cache can be written, and has what saved states are kept cheap by."""
    name = "cache file system"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        found = filesystem.lacks(cache)
    except OSError as error:
        return Finding(name, False, f"{error}\n{MOVE_CACHE}")
    if found:
        return Finding(name, False, "\n".join([*found, MOVE_CACHE]), found, needed=False)
    return Finding(name, True, "keeps and tells holes in files, maps them", found)


def _tools() -> list[Finding]:
    findings = []
    for tool, package in TOOLS.items():
        found = shutil.which(tool)
        findings.append(
            Finding(
                tool,
                found is not None,
                found or f"not installed: package {package}",
                found,
                needed=tool in ("qemu-img", "setpriv"),
            )
        )
    return findings


def _try(name: str, look: Callable[[], tuple[str, Any]], *, needed: bool = True) -> Finding:
    try:
        text, data = look()
    except HarnessError as error:
        return Finding(name, False, str(error), needed=needed)
    return Finding(name, True, text, data, needed)


def _arch(arch: str, choice: str) -> list[Finding]:
    def qemu() -> tuple[str, Any]:
        found = binary.find(arch)
        return f"{found.path} {found.version}", {"path": found.path, "version": found.version}

    def flash() -> tuple[str, Any]:
        found = firmware.find(arch, FirmwareKind.UEFI)
        assert found is not None
        return f"{found.code} (by {found.descriptor.name})", {"code": found.code}

    def accelerator() -> tuple[str, Any]:
        started = time.monotonic()
        found = accel.probe(choice, arch, qemu=binary.find(arch).path, cache_dir=paths.cache_dir())
        seconds = time.monotonic() - started
        return f"{found.name}: {found.reason}", {
            "accel": found.name,
            "reason": found.reason,
            "seconds": round(seconds, 3),
        }

    needed = arch == "x86_64" or platform.machine() == arch
    return [
        _try(f"qemu {arch}", qemu, needed=needed),
        _try(f"uefi {arch}", flash, needed=needed),
        _try(f"accel {arch}", accelerator, needed=needed),
    ]


def _say(line: str) -> None:
    # Not among the findings, which a program may read.
    print(f"harness: {line}", file=sys.stderr)


def _boot(arch: str, choice: str) -> Finding:
    def boot() -> tuple[str, Any]:
        selection = load(*paths.catalog_dirs(), known_profiles=profiles.names()).resolve(
            "micro", arch
        )
        files = Store(paths.cache_dir()).artifacts(selection, progress=_say).files
        found = accel.probe(choice, arch, qemu=binary.find(arch).path, cache_dir=paths.cache_dir())
        turns = Turns(paths.cache_dir(), lambda _: found)
        profile = profiles.of(selection.image)
        key = KeyPair.generate()
        spec = profile.spec(
            selection, files, name="doctor", credentials=profile.credentials(key.public)
        )
        with tempfile.TemporaryDirectory(prefix="harness-doctor-") as folder:
            machine = Machine(
                spec, accel=turns.accel, key=key, evidence=Path(folder), admit=turns.take
            )
            machine.os = profile(machine, selection)
            started = time.monotonic()
            with machine:
                machine.os.login()
                prompt = time.monotonic() - started
                kernel = machine.console.run("uname -r").stdout.strip()
                machine.ssh.run("true").check()
                over_ssh = time.monotonic() - started
        return (
            f"kernel {kernel} at the prompt after {prompt:.1f} s, over SSH after {over_ssh:.1f} s"
            f" ({found.name})",
            {"prompt": prompt, "ssh": over_ssh, "kernel": kernel},
        )

    return _try(f"boot {arch}", boot)
