"""Pushes files to a registry as an OCI artifact: one layer a file, named by annotation.

This is the part of the OCI distribution specification 1.1 that a push needs ("Pushing blobs:
monolithically", "Pushing manifests"), over plain HTTP. The ``oras`` library does the same, but it reads
the user's own credentials of registries, which tests must not touch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import requests

from harness.errors import ServiceError

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.empty.v1+json"
LAYER_TYPE: Final = "application/octet-stream"
TITLE: Final = "org.opencontainers.image.title"

ANSWER: Final = 300.0
"""Seconds within which the registry, which is on this host, answers."""


def push(
    registry: tuple[str, int], files: Sequence[Path], repository: str, tag: str
) -> dict[str, Any]:
    """Push files and return the manifest.

    Args:
        registry: Host and port.
        files: The files; each becomes a layer with the file's name as its title.
        repository: The repository, such as ``os/skiff``.
        tag: The tag, such as ``2``.

    Raises:
        ServiceError: The registry refused, or does not answer.
        OSError: A file cannot be read.
    """
    base = f"http://{registry[0]}:{registry[1]}/v2/{repository}/"
    with requests.Session() as session:
        # A server on the loopback needs neither the host's HTTP proxies nor its credentials.
        session.trust_env = False
        layers = []
        for path in files:
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size = path.stat().st_size
            _push_blob(session, base, digest, path)
            layers.append(
                _descriptor(LAYER_TYPE, digest, size) | {"annotations": {TITLE: path.name}}
            )
        empty = b"{}"
        digest = f"sha256:{hashlib.sha256(empty).hexdigest()}"
        _push_blob(session, base, digest, empty)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": LAYER_TYPE,
            "config": _descriptor(CONFIG_TYPE, digest, len(empty)),
            "layers": layers,
        }
        _ask(
            session,
            "PUT",
            urljoin(base, f"manifests/{tag}"),
            201,
            data=json.dumps(manifest).encode(),
            headers={"Content-Type": MANIFEST_TYPE},
        )
    return manifest


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _push_blob(session: requests.Session, base: str, digest: str, source: Path | bytes) -> None:
    """Upload a blob, unless the registry has it."""
    answer = _ask(session, "HEAD", urljoin(base, f"blobs/{digest}"), 200, 404)
    if answer.status_code == 200:
        return
    upload = _ask(session, "POST", urljoin(base, "blobs/uploads/"), 202)
    location = urljoin(base, upload.headers["Location"])
    location += ("&" if "?" in location else "?") + f"digest={digest}"
    headers = {"Content-Type": "application/octet-stream"}
    if isinstance(source, bytes):
        _ask(session, "PUT", location, 201, data=source, headers=headers)
        return
    with source.open("rb") as file:
        # requests sends an empty file object chunked, but the registry requires the length.
        data = file if source.stat().st_size else b""
        _ask(session, "PUT", location, 201, data=data, headers=headers)


def _ask(
    session: requests.Session, method: str, url: str, *expected: int, **options: Any
) -> requests.Response:
    try:
        answer = session.request(method, url, timeout=ANSWER, **options)
    except requests.RequestException as error:
        raise ServiceError(f"the registry does not answer {method} {url}: {error}") from error
    if answer.status_code not in expected:
        raise ServiceError(
            f"the registry answered {method} {url} with {answer.status_code}",
            evidence=answer.text[:2000],
        )
    return answer
