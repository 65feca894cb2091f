"""The folders that Harness uses on the host, and every environment variable that it reads.

This is the only module that reads the environment; files and options configure everything else.

===========================  ============================================================
``HARNESS_CACHE``            Folder of the cache of artifacts, states and logs.
``XDG_CACHE_HOME``           Base of the cache if ``HARNESS_CACHE`` is not set
                             (XDG Base Directory Specification 0.8); ``~/.cache`` by default.
``XDG_RUNTIME_DIR``          Base of the folder with the sockets of running tests; the cache if
                             it is not set, or is no folder of this user.
``HARNESS_TRACKER_TOKEN``    The token with which ``harness history issues`` files issues.
``KUBERNETES_SERVICE_HOST``  With ``KUBERNETES_SERVICE_PORT``: the address of the cluster's API
                             server, which Kubernetes sets in each pod; ``harness doctor
                             --gate`` proves that it cannot be reached.
===========================  ============================================================

The build scripts of images are separate programs and may read more. Those of this project read
``HARNESS_DEBIAN_MIRROR``, the address of a Debian archive, where the host's apt is configured for none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from harness.errors import UsageError

KNOWN: Final = "known.yaml"
"""The name of a project's file of known failures."""

TRACKER_TOKEN: Final = "HARNESS_TRACKER_TOKEN"
"""The variable with the tracker's token. A name of its own: a token that is there for another purpose
files no issues."""

_PACKAGE: Final = Path(__file__).resolve().parent


def cache_dir() -> Path:
    """Return the folder of the cache; it may not exist yet.

    A relative ``HARNESS_CACHE`` starts at the working folder. A relative ``XDG_CACHE_HOME`` is
    ignored, as its specification requires.

    Raises:
        UsageError: The path starts at the home folder, and this user has none.
    """
    try:
        if own := os.environ.get("HARNESS_CACHE"):
            return Path(own).expanduser().absolute()
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():
            base = Path.home() / ".cache"
    except RuntimeError as error:
        raise UsageError(
            f"no folder for the cache: user {os.getuid()} has no HOME and no passwd entry",
            hint="set HARNESS_CACHE to a folder that this user can write to",
        ) from error
    return base / "harness"


def live_dirs() -> tuple[Path, ...]:
    """Return the folders that may have sockets of running tests; new ones go to the first.

    All of them are searched: a run that cron started has no ``XDG_RUNTIME_DIR``.

    Raises:
        UsageError: This user has no folder for the cache.
    """
    own = cache_dir() / "live"
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if base.is_absolute() and base.is_dir() and os.access(base, os.W_OK):
        return (base / "harness", own)
    return (own,)


def tracker_token() -> str:
    """Return the token with which issues are filed; empty if there is none.

    A secret that a workflow does not have arrives as an empty text.
    """
    return os.environ.get(TRACKER_TOKEN, "").strip()


def kubernetes_api() -> tuple[str, str] | None:
    """Return the host and the port of the cluster's API server; ``None`` outside of a pod.

    Source: Kubernetes documentation, *Accessing the Kubernetes API from a Pod*.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    return (host, os.environ.get("KUBERNETES_SERVICE_PORT", "443")) if host else None


def catalog_dirs(*further: str | Path) -> tuple[Path, ...]:
    """Return the folders of images: Harness' own, if there is one, and further ones."""
    own = bundled("images")
    return (*((own,) if own.is_dir() else ()), *(Path(folder).absolute() for folder in further))


def bundled(name: str) -> Path:
    """Return a folder that belongs to Harness itself: ``images`` or ``suites``; it may not exist.

    In an installed wheel that is ``harness/_bundled/NAME``, in a checkout the top-level folder.
    """
    installed = _PACKAGE / "_bundled"
    return (installed if installed.is_dir() else _PACKAGE.parent) / name
