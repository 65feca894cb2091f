"""A file as its difference from files that the reader has: blocks of them, and the bytes that are new.

An installed system is mostly a copy of its medium: of skiff's disk (197 MB) all but 5 MB are blocks of
the image. A block counts as the same if it is, at any offset of the source that is a multiple of
:data:`BLOCK`: partitions and clusters of qcow2 begin at such offsets.

::

    MAGIC, then operations: kind, number of the source, length, offset (little endian: B, H, Q, Q)
    ZERO      length bytes of zero
    BYTES     the length bytes that follow
    COPY      length bytes of a source from an offset
    END       the last one; length is that of the whole file
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

MAGIC: Final = b"Harness delta\n\x00\x01"
BLOCK: Final = 4096
BLOCKS_MOST: Final = 500_000
"""Blocks of sources that are remembered, of some 150 bytes each."""

ZERO, BYTES, COPY, END = range(4)

_OPERATION: Final = struct.Struct("<BHQQ")
_PIECE: Final = 1 << 20
_ZEROS: Final = bytes(BLOCK)


class DeltaError(ValueError):
    """The delta is damaged, or does not fit its sources."""


def encode(target: Path, sources: Sequence[Path], output: IO[bytes]) -> None:
    """Write a file as its difference from others.

    Raises:
        OSError: A file cannot be read or written.
    """
    known: dict[bytes, tuple[int, int]] = {}
    for number, source in enumerate(sources):
        with source.open("rb") as file:
            for offset, block in _blocks(file):
                if len(known) >= BLOCKS_MOST:
                    break
                if block is not None and len(block) == BLOCK:
                    known.setdefault(_key(block), (number, offset))
    output.write(MAGIC)
    run = _Run(output)
    with target.open("rb") as file:
        for _, block in _blocks(file):
            if block is None or block == _ZEROS[: len(block)]:
                run.zeros(BLOCK if block is None else len(block))
            elif (place := known.get(_key(block))) is not None:
                run.copy(*place)
            else:
                run.literal(block)
        run.end()


def _key(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=20).digest()


def _blocks(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield offset and content of each block; ``None`` is a whole block in a hole."""
    size = os.fstat(file.fileno()).st_size
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
        except OSError:
            start = size  # only a hole is left, or the file system reports none
            if not _is_hole(file, offset):
                start = offset
        hole = (min(start, size) - offset) // BLOCK
        for _ in range(hole):
            yield offset, None
            offset += BLOCK
        if not (piece := os.pread(file.fileno(), _PIECE, offset)):
            return  # cut short meanwhile, or the holes reach its end
        for begin in range(0, len(piece), BLOCK):
            yield offset, piece[begin : begin + BLOCK]
            offset += len(piece[begin : begin + BLOCK])


def _is_hole(file: IO[bytes], offset: int) -> bool:
    try:
        return os.lseek(file.fileno(), offset, os.SEEK_HOLE) == offset
    except OSError:
        return False


class _Run:
    """Joins operations on neighbouring blocks, and writes each when it ends."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._kind = END
        self._source = self._offset = self._length = self._total = 0
        self._bytes = bytearray()

    def zeros(self, length: int) -> None:
        self._add(ZERO, length)

    def copy(self, source: int, offset: int) -> None:
        follows = (source, offset) == (self._source, self._offset + self._length)
        if self._kind == COPY and not follows:
            self._flush()
        if self._kind != COPY:
            self._flush()
            self._source, self._offset = source, offset
        self._add(COPY, BLOCK)

    def literal(self, block: bytes) -> None:
        self._add(BYTES, len(block))
        self._bytes += block
        if len(self._bytes) >= _PIECE:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._output.write(_OPERATION.pack(END, 0, self._total, 0))

    def _add(self, kind: int, length: int) -> None:
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._length += length
        self._total += length

    def _flush(self) -> None:
        if self._length:
            place = (self._source, self._offset) if self._kind == COPY else (0, 0)
            self._output.write(_OPERATION.pack(self._kind, place[0], self._length, place[1]))
            self._output.write(self._bytes)
        self._kind, self._length = END, 0
        self._bytes.clear()


def decode(delta: IO[bytes], sources: Sequence[Path], output: IO[bytes], size: int) -> None:
    """Write the file that :func:`encode` was given into an empty file.

    Args:
        delta: The delta.
        sources: The same files, in the same order.
        output: The empty file.
        size: The bytes that it is to have.

    Raises:
        DeltaError: The delta is damaged, or does not fit its sources.
        OSError: A file cannot be read or written.
    """
    if delta.read(len(MAGIC)) != MAGIC:
        raise DeltaError("it does not begin as a delta does")
    total = 0
    opened = [source.open("rb") for source in sources]
    try:
        while True:
            kind, number, length, offset = _OPERATION.unpack(_exactly(delta, _OPERATION.size))
            if kind == END:
                if length != total or total != size or delta.read(1):
                    raise DeltaError(f"it makes {total} bytes, not {size}")
                output.truncate(size)
                return
            total += length
            if not length or total > size:
                raise DeltaError(f"it makes more than {size} bytes")
            if kind == ZERO:
                output.seek(length, os.SEEK_CUR)
            elif kind == BYTES:
                _move(delta, output, length)
            elif kind == COPY and number < len(opened):
                source = opened[number]
                source.seek(min(offset, os.fstat(source.fileno()).st_size))
                _move(source, output, length)
            else:
                raise DeltaError("it has an unknown operation")
    finally:
        for each in opened:
            each.close()


def _move(source: IO[bytes], output: IO[bytes], length: int) -> None:
    while length:
        piece = _exactly(source, min(length, _PIECE))
        output.write(piece)
        length -= len(piece)


def _exactly(source: IO[bytes], count: int) -> bytes:
    piece = source.read(count)
    if len(piece) != count:
        raise DeltaError("it ends too early")
    return piece
