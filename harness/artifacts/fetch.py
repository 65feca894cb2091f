"""Fetches a file by its URL and checksum.

``requests`` transfers the file and retries failed requests. A transfer that breaks off is resumed where
it broke off, if the server supports ranges (RFC 9110, section 14).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from harness.cache import Say
from harness.cache.space import full
from harness.errors import ChecksumError, StoreError
from harness.spec import format_size

if TYPE_CHECKING:
    import requests

_CHUNK: Final = 1024 * 1024
_ATTEMPTS: Final = 5
_TIMEOUT: Final = (30, 120)
"""Seconds to connect; seconds of silence during the transfer."""

_SHA512: Final = 128
"""Digits of a SHA-512."""

_BUSY: Final = (429, 500, 502, 503, 504)


def fetch(url: str, destination: Path, digest: str, *, say: Say) -> None:
    """Fetch a file; afterwards it has the checksum, or does not exist.

    Args:
        url: A URL of the scheme ``https``, ``http`` or ``file``.
        destination: The file to write.
        digest: The checksum in hexadecimal: a SHA-256, or a SHA-512 by its length.
        say: Takes lines of progress.

    Raises:
        ChecksumError: The file has another checksum.
        DiskFullError: The server announces more bytes than the disk has free.
        StoreError: The file cannot be fetched.
        OSError: The file cannot be written.
    """
    name = "sha512" if len(digest) == _SHA512 else "sha256"
    hasher = hashlib.new(name)
    try:
        with destination.open("wb") as file:
            for chunk in _chunks(url, destination, say):
                hasher.update(chunk)
                file.write(chunk)
        if hasher.hexdigest() != digest.lower():
            raise ChecksumError(
                f"{url} has another checksum than expected:\n"
                f"  expected {name} {digest.lower()}\n"
                f"  fetched  {name} {hasher.hexdigest()}",
                hint="check whether upstream published a new file; if so, use its checksum",
            )
    except BaseException:
        with contextlib.suppress(OSError):
            destination.unlink(missing_ok=True)
        raise


def _chunks(url: str, destination: Path, say: Say) -> Iterator[bytes]:
    parts = urlsplit(url)
    if parts.scheme == "file":
        yield from _local(url, Path(unquote(parts.path)))
    else:
        yield from _remote(url, destination, say)


def _local(url: str, path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StoreError(f"{url} cannot be read: {error.strerror}") from error
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _remote(url: str, destination: Path, say: Say) -> Iterator[bytes]:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retries = Retry(total=_ATTEMPTS, backoff_factor=1, status_forcelist=_BUSY)
    received = 0
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retries))
        session.mount("https://", HTTPAdapter(max_retries=retries))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for chunk in _transfer(session, url, received, destination, say):
                    received += len(chunk)
                    yield chunk
                return
            except requests.HTTPError as error:
                raise StoreError(f"{url} cannot be fetched: {error}") from error
            except requests.RequestException as error:
                if attempt == _ATTEMPTS or not received:
                    # No byte arrived, so the adapter's own retries are used up.
                    raise StoreError(
                        f"{url} cannot be fetched: {error}",
                        hint="check that this host reaches it; set https_proxy if it needs a proxy",
                    ) from error
                say(f"{url}: the connection broke after {format_size(received)}; resuming there")


def _transfer(
    session: requests.Session,
    url: str,
    start: int,
    destination: Path,
    say: Say,
) -> Iterator[bytes]:
    """Yield the file from the byte at offset ``start``."""
    import requests

    # identity: a content encoding would change the number of bytes.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        skip = start if response.status_code != requests.codes.partial_content else 0
        length = int(response.headers.get("Content-Length", 0)) - skip
        if length > shutil.disk_usage(destination.parent).free:
            raise full(destination.parent, f"{url} needs {format_size(length)}")
        if not start:
            say(f"fetching {url}" + (f" ({format_size(length)})" if length > 0 else ""))
        for chunk in response.iter_content(_CHUNK):
            # A server without ranges sends the whole file again.
            dropped = min(skip, len(chunk))
            skip -= dropped
            if dropped < len(chunk):
                yield chunk[dropped:]
