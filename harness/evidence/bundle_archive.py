"""The container of a bundle: one tar archive in one zstd frame, and the checksum of both behind it.

::

    zstd frame         a tar archive (POSIX.1-2001 ustar): manifest.json, then the files that it lists
    skippable frame    MARK and the SHA-256 of all bytes before it (RFC 8878, section 3.1.2)

``tar --zstd -xf`` reads it: zstd passes over skippable frames. This module reads more strictly. The
checksum is compared before anything is parsed, so damage is found first. Every header of the archive has
to be the very bytes that :func:`write` would write for the manifest's next file: there are no links, no
devices, no second names, and no path that the manifest does not list. Each file has the size and the
digest that the manifest says. Memory is bounded: pieces of :data:`PIECE` bytes, and a window of zstd of
at most :data:`WINDOW` bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from harness.errors import BundleError, DiskFullError

MANIFEST: Final = "manifest.json"

MARK: Final = b"Harness bundle\n\x01"
"""Begins the skippable frame; its last byte is the format of the container."""

PIECE: Final = 1 << 20
WINDOW: Final = 1 << 27
MANIFEST_MOST: Final = 4 << 20
"""Bytes that a manifest has at most."""

FILES_MOST: Final = 20_000

RATIO: Final = 4096
SPARE: Final = 1 << 30
"""The files of a bundle have at most ``RATIO`` times its bytes, and ``SPARE``: more would be a bomb."""

_BLOCK: Final = tarfile.BLOCKSIZE
_SKIPPABLE: Final = 0x184D2A50
_DIGEST: Final = 32
_TRAILER: Final = 8 + len(MARK) + _DIGEST
_LEVEL: Final = 3
"""zstd's own default. Of the RAM of a skiff (227 MB) level 1 made 72 MB, and 3 made 66 MB as fast."""

_THREADS: Final = 2
_COMPONENT: Final = re.compile(r"[^/\x00-\x1f\x7f\\]{1,255}")
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{64}")


class TooLargeError(Exception):
    """The archive would be larger than its limit."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a bundle.

    Attributes:
        path: Its path, relative, with ``/``.
        size: Bytes.
        sha256: Its SHA-256, in hexadecimal.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, file: Path) -> Member:
        """Return the member for a file as it is now; one that grows later is cut there.

        Raises:
            OSError: The file cannot be read.
        """
        digest = hashlib.sha256()
        size = 0
        with file.open("rb") as source:
            left = os.fstat(source.fileno()).st_size
            while left and (piece := source.read(min(PIECE, left))):
                digest.update(piece)
                size += len(piece)
                left -= len(piece)
        return cls(path, size, digest.hexdigest())


def header(path: str, size: int) -> bytes:
    """Return the header of a file in the archive.

    Raises:
        ValueError: The path or the size does not fit into a header of ustar.
    """
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o600
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def fits(path: str, size: int) -> bool:
    """Return whether a file can be in a bundle: its name is plain, and ustar can hold it."""
    try:
        check_paths([Member(path, size, "0" * 64)])
        header(path, size)
    except (ValueError, UnicodeError):
        return False
    return True


def check_paths(members: Sequence[Member]) -> None:
    """Raise unless all paths are plain, relative, below one folder, and different.

    Raises:
        ValueError: Names the path.
    """
    if len(members) > FILES_MOST:
        raise ValueError(f"it lists {len(members)} files, and {FILES_MOST} are the most")
    files: set[str] = {MANIFEST}
    folders: set[str] = set()
    for member in members:
        parts = member.path.split("/")
        if not all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in parts):
            raise ValueError(f"{member.path!r} is not a plain relative path")
        if member.path in files:
            raise ValueError(f"{member.path!r} is in it twice")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        files.add(member.path)
        folders |= above
        if member.size < 0 or not _HEXADECIMAL.fullmatch(member.sha256):
            raise ValueError(f"{member.path!r} has no size and digest")
    if both := files & folders:
        raise ValueError(f"{min(both)!r} is a file and a folder")


# --- writing ----------------------------------------------------------------------------------


def write(
    path: Path,
    manifest: bytes,
    files: Sequence[tuple[Member, Path]],
    *,
    most: int | None = None,
) -> int:
    """Write a bundle and return its size in bytes; a reader never sees half of it.

    Only its owner may read the file.

    Args:
        path: The file.
        manifest: The manifest, which lists the files in this order.
        files: Each file of the bundle, and the file with its content.
        most: Bytes that the bundle may have.

    Raises:
        TooLargeError: It would have more.
        OSError: A file cannot be read or written, or has changed meanwhile.
    """
    import zstandard

    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            sink = _Sink(output, most)
            packer = zstandard.ZstdCompressor(
                level=_LEVEL, threads=_THREADS, write_checksum=True, write_content_size=False
            )
            with packer.stream_writer(sink, closefd=False) as archive:  # type: ignore[arg-type]
                archive.write(header(MANIFEST, len(manifest)) + _padded(manifest))
                for member, source in files:
                    archive.write(header(member.path, member.size))
                    _copy(member, source, archive)
                archive.write(bytes(2 * _BLOCK))
            digest = sink.digest.digest()
            body = _SKIPPABLE.to_bytes(4, "little") + (len(MARK) + _DIGEST).to_bytes(4, "little")
            output.write(body + MARK + digest)
            size = output.tell()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return size


class _Sink:
    """Takes the compressed bytes: counts them, and keeps their digest."""

    def __init__(self, output: IO[bytes], most: int | None) -> None:
        self._output = output
        self._left = most
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        if self._left is not None:
            self._left -= len(data)
            if self._left < _TRAILER:
                raise TooLargeError
        self.digest.update(data)
        return self._output.write(data)

    def flush(self) -> None:
        self._output.flush()


def _copy(member: Member, source: Path, archive: Any) -> None:
    digest = hashlib.sha256()
    left = member.size
    with source.open("rb") as file:
        while left and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            archive.write(piece)
            left -= len(piece)
    if left or digest.hexdigest() != member.sha256:
        raise OSError(f"{source} has changed while it was written into a bundle")
    archive.write(bytes(-member.size % _BLOCK))


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _BLOCK)


# --- reading ----------------------------------------------------------------------------------


class Archive:
    """A bundle that is open for reading; a context manager.

    Args:
        path: The file.

    Raises:
        BundleError: The file is no bundle, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._size = self._check_whole()
            self._body = _Body(self._file, self._size)
            self.manifest = self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fault(self, why: str) -> BundleError:
        """Return the error that says what is wrong with this file."""
        return BundleError(
            f"{self.path} is not a bundle that can be used: {why}",
            hint="copy it once more from where it was made; its sha256sum there and here must agree",
        )

    def _check_whole(self) -> int:
        """Compare the checksum of the file; return the bytes before the trailer."""
        if not os.path.isfile(self.path):  # noqa: PTH113 - a pipe has no size
            raise self.fault("it is not a file")
        body = os.fstat(self._file.fileno()).st_size - _TRAILER
        start = _SKIPPABLE.to_bytes(4, "little") + (len(MARK) + _DIGEST).to_bytes(4, "little")
        if body > 0:
            self._file.seek(body)
            trailer = self._file.read(_TRAILER)
        if body <= 0 or not trailer.startswith(start + MARK[:-1]):
            raise self.fault("it is cut short, or it is another kind of file")
        if trailer[len(start) + len(MARK) - 1] != MARK[-1]:
            raise self.fault("another version of Harness wrote it")
        digest = hashlib.sha256()
        self._file.seek(0)
        left = body
        while left and (piece := self._file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        if digest.digest() != trailer[-_DIGEST:]:
            raise self.fault("its checksum is wrong: it is damaged")
        return body

    def _read_manifest(self) -> bytes:
        first = self._take(_BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(first, "utf-8", "strict")
            proper = info.name == MANIFEST and 0 < info.size <= MANIFEST_MOST
            proper = proper and first == header(MANIFEST, info.size)
        except (tarfile.TarError, ValueError, UnicodeError) as error:
            raise self.fault(f"it does not begin with {MANIFEST}") from error
        if not proper:
            raise self.fault(f"it does not begin with {MANIFEST}")
        content = self._take(info.size)
        self._skip_padding(info.size)
        return content

    def contents(self, members: Sequence[Member]) -> Iterator[tuple[Member, Iterator[bytes]]]:
        """Yield each file with the pieces of its content; to be called once.

        The pieces of a file that the caller does not take are read all the same.

        Args:
            members: All files of the bundle, in the order of the manifest.

        Raises:
            BundleError: The archive does not hold these files.
        """
        try:
            check_paths(members)
            headers = [header(member.path, member.size) for member in members]
        except (ValueError, UnicodeError) as error:
            raise self.fault(str(error)) from error
        if sum(member.size for member in members) > RATIO * self._size + SPARE:
            raise self.fault("its files are too large for its size")
        for member, expected in zip(members, headers, strict=True):
            if self._take(_BLOCK) != expected:
                raise self.fault(f"the next file in it is not {member.path}")
            pieces = self._pieces(member)
            yield member, pieces
            for _ in pieces:
                pass
        if self._take(2 * _BLOCK) != bytes(2 * _BLOCK) or self._body.read(1):
            raise self.fault("there is more in it than its manifest lists")

    def _pieces(self, member: Member) -> Iterator[bytes]:
        digest = hashlib.sha256()
        left = member.size
        while left:
            piece = self._take(min(PIECE, left))
            digest.update(piece)
            left -= len(piece)
            yield piece
        self._skip_padding(member.size)
        if digest.hexdigest() != member.sha256:
            raise self.fault(f"{member.path} has another digest than the manifest says")

    def _skip_padding(self, size: int) -> None:
        count = -size % _BLOCK
        if count and self._take(count) != bytes(count):
            raise self.fault("there is more in it than its manifest lists")

    def _take(self, count: int) -> bytes:
        """Return the next bytes of the archive."""
        parts = []
        while count:
            try:
                part = self._body.read(count)
            except ValueError as error:
                raise self.fault(f"zstd refuses it: {error}") from error
            if not part:
                raise self.fault("it ends too early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class _Body:
    """The archive, decompressed as it is read; ``ValueError`` says that it cannot be."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        import zstandard

        file.seek(0)
        self._error = zstandard.ZstdError
        source = _Part(file, size)
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self._reader = unpacker.stream_reader(
            source,  # type: ignore[arg-type]
            read_size=1 << 17,
            read_across_frames=True,
            closefd=False,
        )

    def read(self, count: int) -> bytes:
        try:
            return self._reader.read(min(count, PIECE))
        except (self._error, MemoryError) as error:
            raise ValueError(str(error)) from error


class _Part:
    """The first bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int = -1) -> bytes:
        piece = self._file.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(piece)
        return piece


def extract(
    archive: Archive,
    members: Sequence[Member],
    folder: Path,
    wanted: Callable[[str], bool] = lambda path: True,
) -> None:
    """Write the files of a bundle into a new folder, which is removed if that fails.

    Args:
        archive: The bundle.
        members: All its files.
        folder: The folder; it must not exist. Only its owner may read it.
        wanted: Returns whether a path is to be written; the others are read and compared, too.

    Raises:
        BundleError: The bundle does not hold these files.
        DiskFullError: There is less space than its files need.
        OSError: A file cannot be written.
    """
    size = sum(member.size for member in members if wanted(member.path))
    free = shutil.disk_usage(next(each for each in folder.parents if each.exists())).free
    if size > free:
        raise DiskFullError(f"{archive.path} needs {size} bytes in {folder}, and {free} are free")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        for member, pieces in archive.contents(members):
            if not wanted(member.path):
                continue
            path = folder / member.path
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o600), "wb") as output:
                for piece in pieces:
                    output.write(piece)
        undo.pop_all()
