"""Report what this host can do and what it lacks.

The report covers QEMU, firmware, the accelerator and the reason for it, and memory and CPU as the
cgroup limits them. --boot boots the micro image on each architecture. The exit status is 3 if the host
lacks something that Harness needs.

--gate says instead whether this host is fit to run a job of a gate, within 5 s: KVM, memory, disk,
shared memory, versions and the age of the runner image; in a pod also that the metadata service and the
API server of the cluster cannot be reached, and anywhere that --neighbour cannot. The exit status is 11
(infra) if it is not fit. With --plan and --job, the needs of the job are the measure, and an unfit host
leaves a results.json in --results that says so for each test of the job.

JSON: {"ok": BOOL, "findings": [{"name", "ok", "needed", "text", "data"}]}
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from harness import arch as arches
from harness import paths
from harness.arch import ARCHES
from harness.cli import _runner
from harness.cli.options import add_json, print_json
from harness.errors import HarnessError
from harness.host import capacity as host
from harness.host import runner
from harness.host.accel import CHOICES
from harness.host.finding import Finding
from harness.lab import Lab
from harness.qemu import binary, firmware
from harness.spec import FirmwareKind, format_size
from harness.states import filesystem

MOVE_CACHE: Final = "put the cache on a local disk (ext4, XFS, btrfs): HARNESS_CACHE=/path"

TOOLS: Final = {
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "swtpm": "swtpm",
    "mmdebstrap": "mmdebstrap",
    "cpio": "cpio",
    "tesseract": "tesseract-ocr",
}
"""Programs that Harness runs, and Debian's package of each."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_json(parser)
    parser.add_argument(
        "--boot", action="store_true", help="boot the micro image on each architecture"
    )
    parser.add_argument(
        "--accel",
        default="auto",
        choices=CHOICES,
        help="the accelerator to try; auto takes KVM if it proves itself (default: %(default)s)",
    )
    _runner.configure(parser)


def main(options: argparse.Namespace) -> int:
    """Print the report."""
    if options.gate:
        return _gate(options)
    _runner.refuse_without_gate(options)
    findings = [*_host(), *_tools()]
    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as evidence:
        for arch in ARCHES:
            with _lab(arch, options.accel, evidence) as lab:
                findings += _arch(arch, lab)
        if options.boot:
            for arch in ARCHES:
                with _lab(arch, options.accel, evidence) as lab:
                    findings.append(_boot(arch, lab))
    return 0 if _print(findings, json=options.json) else 3


def _gate(options: argparse.Namespace) -> int:
    """Print whether this host is fit for a job of a gate."""
    job = _runner.job(options)
    with _runner.attempts(options) as attempts:
        findings = _runner.findings(job)
        findings += [each for each in _tools() if each.needed]
        with (
            tempfile.TemporaryDirectory(prefix="harness-doctor-") as evidence,
            _lab(job.arch, options.accel, evidence) as lab,
        ):
            findings += _arch(job.arch, lab)
        findings += [runner.isolation(answer) for answer in attempts.answers()]
    good = _print(findings, json=options.json)
    if not good:
        _runner.leave_results(job, findings)
    return 0 if good else _runner.UNFIT


def _print(findings: list[Finding], *, json: bool) -> bool:
    """Print a report; return whether nothing that is needed is missing."""
    good = all(finding.ok for finding in findings if finding.needed)
    if json:
        print_json({"ok": good, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = "ok" if finding.ok else ("MISSING" if finding.needed else "-")
            first, *rest = finding.text.splitlines()
            print(f"{mark:8}{finding.name:18}{first}")
            for line in rest:
                print(f"{'':26}{line}")
    return good


def _lab(arch: str, accel: str, evidence: str) -> Lab:
    # No folder of images: the doctor judges the host by Harness' own micro, whatever the project has.
    return Lab("micro", arch=arch, accel=accel, images=(), evidence=evidence)


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
        Finding(
            "cache",
            True,
            f"{cache}, {format_size(free)} free",
            {"path": str(cache), "free": free},
        ),
        _cache_file_system(cache),
    ]


def _cache_file_system(cache: Path) -> Finding:
    """Check that the cache can be written and that its file system keeps saved states small."""
    name = "cache file system"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lacks = filesystem.lacks(cache)
    except OSError as error:
        return Finding(name, False, f"{error}\n{MOVE_CACHE}")
    if lacks:
        return Finding(name, False, "\n".join([*lacks, MOVE_CACHE]), lacks, needed=False)
    return Finding(name, True, "stores and reports holes in files, maps files", lacks)


def _tools() -> list[Finding]:
    findings = []
    for tool, package in TOOLS.items():
        path = shutil.which(tool)
        findings.append(
            Finding(
                tool,
                path is not None,
                path or f"not installed: package {package}",
                path,
                needed=tool in ("qemu-img", "setpriv"),
            )
        )
    return findings


def _try(name: str, look: Callable[[], tuple[str, Any]], *, needed: bool = True) -> Finding:
    """Return the finding of ``look``; an error of Harness makes it a bad one."""
    try:
        text, data = look()
    except HarnessError as error:
        return Finding(name, False, str(error), needed=needed)
    return Finding(name, True, text, data, needed)


def _arch(arch: str, lab: Lab) -> list[Finding]:
    def qemu() -> tuple[str, Any]:
        program = binary.find(arch)
        text = f"{program.path} {program.version}, machine {program.machine}"
        return text, {
            "path": str(program.path),
            "version": program.version,
            "machine": program.machine,
        }

    def flash() -> tuple[str, Any]:
        image = firmware.find(arch, FirmwareKind.UEFI)
        assert image is not None
        return f"{image.code} (by {image.descriptor.name})", {"code": str(image.code)}

    def accelerator() -> tuple[str, Any]:
        started = time.monotonic()
        accel = lab.accelerator(arch)
        seconds = time.monotonic() - started
        return f"{accel.name}: {accel.reason}", {
            "accel": accel.name,
            "reason": accel.reason,
            "seconds": round(seconds, 3),
        }

    needed = arch in (ARCHES[0], arches.host())
    return [
        _try(f"qemu {arch}", qemu, needed=needed),
        _try(f"uefi {arch}", flash, needed=needed),
        _try(f"accel {arch}", accelerator, needed=needed),
    ]


def _boot(arch: str, lab: Lab) -> Finding:
    def boot() -> tuple[str, Any]:
        lab.artifacts()  # a build is not part of the boot
        accel = lab.accelerator(arch).name
        started = time.monotonic()
        machine = lab.boot(name="doctor")
        machine.os.login()
        prompt = time.monotonic() - started
        kernel = machine.console.run("uname -r").stdout.strip()
        machine.ssh.run("true").check()
        over_ssh = time.monotonic() - started
        return (
            f"kernel {kernel} at the prompt after {prompt:.1f} s, over SSH after {over_ssh:.1f} s"
            f" ({accel})",
            {"prompt": prompt, "ssh": over_ssh, "kernel": kernel},
        )

    return _try(f"boot {arch}", boot)
