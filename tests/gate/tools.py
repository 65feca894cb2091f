"""The tools that judge the workflows and the report, installed once, in fixed versions.

The cache is ``gate-tests`` below Harness' own, so that all checkouts of a host share it. A test whose
tool cannot be had is skipped, and says why.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from harness.paths import cache_dir

ACT = "github.com/nektos/act@v0.2.89"
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
ZIZMOR = "zizmor==1.32.0"
AXE = "axe-core@4.10.3"
AXE_SHA512 = (
    "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg=="
)
"""As the registry's ``dist.integrity`` has it: base64."""


def go_tool(module: str) -> Path:
    """Return the program of a Go module, ``PATH@VERSION``; installs it if it is not there."""
    path, _, version = module.partition("@")
    name = path.rpartition("/")[2]
    folder = cache_dir() / "gate-tests" / f"{name}-{version}"
    go = shutil.which("go")
    with _Lock(folder):
        if not (folder / name).exists():
            if go is None:
                pytest.skip(f"needs Go 1.24 or newer on the PATH, to install {module}")
            # No toolchain from elsewhere; the module's own go.mod says what it needs.
            environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"}
            _install([go, "install", module], environment)
    return folder / name


def python_tool(requirement: str) -> Path:
    """Return the program of a package of PyPI, ``NAME==VERSION``; installs it if it is not there."""
    name = requirement.partition("=")[0]
    folder = cache_dir() / "gate-tests" / requirement.replace("==", "-")
    program = folder / "bin" / name
    with _Lock(folder):
        if not program.exists():
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            _install([*pip, "--no-input", "--target", str(folder), requirement], dict(os.environ))
    return program


def npm_package(requirement: str, sha512: str) -> Path:
    """Return the folder of a package of npm, ``NAME@VERSION``; fetches it if it is not there.

    No script of it runs.
    """
    folder = cache_dir() / "gate-tests" / requirement.replace("@", "-")
    npm = shutil.which("npm")
    with _Lock(folder):
        if not (folder / "package").exists():
            if npm is None:
                pytest.skip(f"needs npm on the PATH, to fetch {requirement}: apt install npm")
            folder.mkdir(exist_ok=True)
            pack = [npm, "pack", "--silent", "--pack-destination", str(folder), requirement]
            _install(pack, dict(os.environ))
            archive = next(folder.glob("*.tgz"))
            digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            assert digest == sha512, f"{requirement} is another file than when it was pinned"
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    return folder / "package"


def _install(command: list[str], environment: dict[str, str]) -> None:
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        last = (process.stderr.strip() or "no message").splitlines()[-1]
        pytest.skip(f"{' '.join(command[-2:])} failed: {last}; is there a network, or a proxy?")


class _Lock:
    """Holds the lock of a tool: workers of pytest-xdist would install it several times."""

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._path = folder.with_name(f"{folder.name}.lock")

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()
