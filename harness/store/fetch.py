"""Fetches a file by its address and digest.

``requests`` and its retries do the transfer; a connection that breaks in the middle goes on where
it broke, if the server can (RFC 9110, section 14).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from harness.errors import ChecksumError, StoreError
from harness.spec import format_size
from harness.store.space import full

if TYPE_CHECKING:
    import requests

_CHUNK: Final = 1024 * 1024
_ATTEMPTS: Final = 5
_TIMEOUT: Final = (30, 120)
"""Seconds to connect, and of silence in a transfer."""

_BUSY: Final = (429, 500, 502, 503, 504)


def fetch(url: str, destination: Path, sha256: str, *, progress: Callable[[str], None]) -> None:
    """Fetch a file; it is there and right when this returns, and not there when it raises.

    Args:
        url: ``https:``, ``http:`` or ``file:``.
        destination: The file to write.
        sha256: The digest that it must have, in hexadecimal.
        progress: Told in plain lines what is done.

    Raises:
        ChecksumError: if the digest is another one.
        DiskFullError: if the server says that it is longer than the space left.
        StoreError: if it cannot be fetched.
        OSError: if it cannot be written.
    """
    hasher = hashlib.sha256()
    try:
        with destination.open("wb") as file:
            for chunk in _chunks(url, destination, progress):
                hasher.update(chunk)
                file.write(chunk)
        if hasher.hexdigest() != sha256.lower():
            raise ChecksumError(
                f"{url} is not the file that was asked for:\n"
                f"  wanted sha256 {sha256.lower()}\n"
                f"  got    sha256 {hasher.hexdigest()}",
                hint="see whether upstream published a new file; if so, take its digest from there",
            )
    except BaseException:
        with contextlib.suppress(OSError):
            destination.unlink(missing_ok=True)
        raise


def _chunks(url: str, destination: Path, progress: Callable[[str], None]) -> Iterator[bytes]:
    parts = urlsplit(url)
    if parts.scheme == "file":
        yield from _local(url, Path(unquote(parts.path)))
    else:
        yield from _remote(url, destination, progress)


def _local(url: str, path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StoreError(f"{url} cannot be read: {error.strerror}") from error
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _remote(url: str, destination: Path, progress: Callable[[str], None]) -> Iterator[bytes]:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retries = Retry(total=_ATTEMPTS, backoff_factor=1, status_forcelist=_BUSY)
    got = 0
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retries))
        session.mount("https://", HTTPAdapter(max_retries=retries))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for chunk in _transfer(session, url, got, destination, progress):
                    got += len(chunk)
                    yield chunk
                return
            except requests.HTTPError as error:
                raise StoreError(f"{url} cannot be fetched: {error}") from error
            except requests.RequestException as error:
                if attempt == _ATTEMPTS or not got:
                    # Without a byte, the retries of the adapter are used up already.
                    raise StoreError(
                        f"{url} cannot be fetched: {error}",
                        hint="see whether this host reaches it; a proxy goes into https_proxy",
                    ) from error
                progress(
                    f"{url}: the connection broke after {format_size(got)}; going on from there"
                )


def _transfer(
    session: requests.Session,
    url: str,
    start: int,
    destination: Path,
    progress: Callable[[str], None],
) -> Iterator[bytes]:
    """Yield the file from byte ``start`` on."""
    import requests

    # identity: with a content encoding, bytes counted here are not the server's.
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
            progress(f"fetching {url}" + (f" ({format_size(length)})" if length > 0 else ""))
        for chunk in response.iter_content(_CHUNK):
            # A server that knows no ranges sends it all again.
            dropped = min(skip, len(chunk))
            skip -= dropped
            if dropped < len(chunk):
                yield chunk[dropped:]
