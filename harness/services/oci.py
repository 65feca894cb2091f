"""Pushes files to a registry as an OCI artifact: one layer a file, named by annotation.

An image index gives the artifacts of several architectures one reference (OCI image specification 1.1,
image-index.md).

This is the part of the OCI distribution specification 1.1 that a push needs ("Pushing blobs:
monolithically", "Pushing manifests"), over plain HTTP. The ``oras`` library does the same, but it reads
the user's own credentials of registries, which tests must not touch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import requests

from harness import arch as arches
from harness.errors import ServiceError

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
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
    with _repository(registry, repository) as target:
        manifest = target.artifact(files)
        target.put(MANIFEST_TYPE, manifest, tag)
    return manifest


def push_index(
    registry: tuple[str, int],
    sets: Sequence[tuple[str, Sequence[Path]]],
    repository: str,
    tag: str,
) -> dict[str, Any]:
    """Push an artifact for each set and an index of them, and return the index.

    Args:
        registry: Host and port.
        sets: Architectures and their files. The entries of the index have their order; several may be
            for one architecture.
        repository: The repository, such as ``os/skiff``.
        tag: The tag, such as ``2``. The artifacts have no tags.

    Raises:
        UnknownNameError: There is no such architecture.
        ServiceError: The registry refused, or does not answer.
        OSError: A file cannot be read.
    """
    platforms = [{"os": "linux", "architecture": arches.of(arch).oci} for arch, _ in sets]
    with _repository(registry, repository) as target:
        entries = []
        for platform, (_, files) in zip(platforms, sets, strict=True):
            described = target.put(MANIFEST_TYPE, target.artifact(files))
            entries.append(described | {"platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        target.put(INDEX_TYPE, index, tag)
    return index


@contextlib.contextmanager
def _repository(registry: tuple[str, int], name: str) -> Iterator[_Repository]:
    with requests.Session() as session:
        # A server on the loopback needs neither the host's HTTP proxies nor its credentials.
        session.trust_env = False
        yield _Repository(session, f"http://{registry[0]}:{registry[1]}/v2/{name}/")


class _Repository:
    """A repository to push to."""

    def __init__(self, session: requests.Session, base: str) -> None:
        self._session = session
        self._base = base

    def artifact(self, files: Sequence[Path]) -> dict[str, Any]:
        """Upload files, and return the manifest that has them as its layers."""
        layers = []
        for path in files:
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            self._upload(digest, path)
            layer = _descriptor(LAYER_TYPE, digest, path.stat().st_size)
            layers.append(layer | {"annotations": {TITLE: path.name}})
        empty = b"{}"
        config = _descriptor(CONFIG_TYPE, _digest(empty), len(empty))
        self._upload(config["digest"], empty)
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": LAYER_TYPE,
            "config": config,
            "layers": layers,
        }

    def put(self, kind: str, manifest: dict[str, Any], tag: str | None = None) -> dict[str, Any]:
        """Store a manifest or an index, under a tag or by its digest alone; return its descriptor."""
        body = json.dumps(manifest).encode()
        descriptor = _descriptor(kind, _digest(body), len(body))
        self._ask(
            "PUT",
            urljoin(self._base, f"manifests/{tag or descriptor['digest']}"),
            201,
            data=body,
            headers={"Content-Type": kind},
        )
        return descriptor

    def _upload(self, digest: str, source: Path | bytes) -> None:
        """Upload a blob, unless the registry has it."""
        answer = self._ask("HEAD", urljoin(self._base, f"blobs/{digest}"), 200, 404)
        if answer.status_code == 200:
            return
        upload = self._ask("POST", urljoin(self._base, "blobs/uploads/"), 202)
        location = urljoin(self._base, upload.headers["Location"])
        location += ("&" if "?" in location else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        if isinstance(source, bytes):
            self._ask("PUT", location, 201, data=source, headers=headers)
            return
        with source.open("rb") as file:
            # requests sends an empty file object chunked, but the registry requires the length.
            data = file if source.stat().st_size else b""
            self._ask("PUT", location, 201, data=data, headers=headers)

    def _ask(self, method: str, url: str, *expected: int, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=ANSWER, **options)
        except requests.RequestException as error:
            raise ServiceError(f"the registry does not answer {method} {url}: {error}") from error
        if answer.status_code not in expected:
            raise ServiceError(
                f"the registry answered {method} {url} with {answer.status_code}",
                evidence=answer.text[:2000],
            )
        return answer


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}
