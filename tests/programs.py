"""Programs of the host, and modules, that some tests need. A test that lacks one is skipped."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = {
    "base64": "coreutils",
    "bash": "bash",
    "busybox": "busybox",
    "dash": "dash",
    "debugfs": "e2fsprogs",
    "etcd": "etcd-server",
    "flock": "util-linux",
    "git": "git",
    "jq": "jq",
    "kubectl": "kubernetes-client",
    "mcopy": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.fat": "dosfstools",
    "qemu-img": "qemu-utils",
    "sed": "sed",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "sfdisk": "fdisk",
    "shellcheck": "shellcheck",
    "ssh-keygen": "openssh-client",
    "tesseract": "tesseract-ocr",
    "unshare": "util-linux",
    "tshark": "tshark",
    "zstd": "zstd",
}
"""The Debian package of each program."""


HEARS_HANGUPS = ("env", "--default-signal=HUP")
"""The beginning of a command that a closed terminal ends, also where nohup(1) started the tests."""


def need(program: str) -> None:
    """Skip the test that runs if the host lacks a program."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: install the package {PACKAGES[program]}")


def needs(program: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test if the host lacks a program."""
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"needs {program}: install the package {PACKAGES[program]}",
    )


def need_module(name: str) -> None:
    """Skip the test that runs if Python lacks a module: that of the runner image has no build tools."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs the Python package {name}: ./run setup installs it in a checkout")


def fetch(program: str, folder: Path) -> Path:
    """Return the path of a program: the host's, or that of its package, which is not installed.

    To install the package of a server may start it.

    Args:
        program: The program; it needs nothing else of its package.
        folder: An empty folder to unpack the package in.
    """
    if path := shutil.which(program):
        return Path(path)
    package = PACKAGES[program]
    try:
        for command in (
            ["apt-get", "download", package],
            ["sh", "-c", "dpkg-deb --extract ./*.deb ."],
        ):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs {program}: install the package {package}; to fetch it failed: {error}")
    return folder / "usr/bin" / program
