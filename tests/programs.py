"""Programs of the host that some unit tests run. A test whose program is missing is skipped."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {
    "base64": "coreutils",
    "bash": "bash",
    "busybox": "busybox",
    "dash": "dash",
    "flock": "util-linux",
    "git": "git",
    "jq": "jq",
    "mcopy": "mtools",
    "mkfs.fat": "dosfstools",
    "qemu-img": "qemu-utils",
    "sed": "sed",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "sfdisk": "fdisk",
    "shellcheck": "shellcheck",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "tshark": "tshark",
    "zstd": "zstd",
}
"""The Debian package of each program."""


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
