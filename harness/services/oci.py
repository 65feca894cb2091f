"""Pushes files to a registry as an OCI artifact: one layer a file, named by annotation.

This is the part of the OCI distribution specification 1.1 that a push needs ("Pushing blobs:
monolithically", "Pushing manifests"), over plain HTTP. The ``oras`` library does the same, and on its
way reads the user's own credentials of registries, which tests are not to touch.
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
"""Seconds that the registry, which is on this host, may take for an answer."""


def push(
    registry: tuple[str, int], files: Sequence[Path], repository: str, tag: str
) -> dict[str, Any]:
    """Push files and return the manifest.

    Args:
        registry: Host and port.
        files: Each becomes a layer with its name as title.
        repository: Such as ``os/skiff``.
        tag: Such as ``2``.

    Raises:
        ServiceError: if the registry refuses, or does not answer.
        OSError: if a file cannot be read.
    """
    base = f"http://{registry[0]}:{registry[1]}/v2/{repository}/"
    with requests.Session() as session:
        # Neither proxies nor credentials of the host concern a server on its loopback.
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
    there = _ask(session, "HEAD", urljoin(base, f"blobs/{digest}"), 200, 404)
    if there.status_code == 200:
        return
    begun = _ask(session, "POST", urljoin(base, "blobs/uploads/"), 202)
    location = urljoin(base, begun.headers["Location"])
    location += ("&" if "?" in location else "?") + f"digest={digest}"
    headers = {"Content-Type": "application/octet-stream"}
    if isinstance(source, bytes):
        _ask(session, "PUT", location, 201, data=source, headers=headers)
        return
    with source.open("rb") as file:
        # An empty file object would be sent chunked, without the length that the registry wants.
        data = file if source.stat().st_size else b""
        _ask(session, "PUT", location, 201, data=data, headers=headers)


def _ask(
    session: requests.Session, method: str, url: str, *wanted: int, **options: Any
) -> requests.Response:
    try:
        answer = session.request(method, url, timeout=ANSWER, **options)
    except requests.RequestException as error:
        raise ServiceError(f"the registry does not answer {method} {url}: {error}") from error
    if answer.status_code not in wanted:
        raise ServiceError(
            f"the registry answers {method} {url} with {answer.status_code}",
            evidence=answer.text[:2000],
        )
    return answer
