"""Finds many byte strings in one pass, by the algorithm of Aho and Corasick.

The automaton is that of the Rust crate ``aho-corasick``, by way of the package ``ahocorasick_rs``. Of
matches that overlap it reports the leftmost: in this mode, and for up to 64 strings, it looks for
their first bytes with vector instructions (its ``packed`` module, "Teddy"), which takes a hundredth of
the time of one ``memmem`` for each string. Above that it still takes one pass.

The output is bytes of any kind, so the strings are bytes as well.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Final

from ahocorasick_rs import BytesAhoCorasick, MatchKind

_PIECE: Final = 64 * 1024
"""Bytes that are searched at a time: the matches of a piece are a list."""


class Literals:
    """A set of byte strings to find.

    Args:
        texts: The byte strings; none is empty.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._automaton = BytesAhoCorasick(texts, matchkind=MatchKind.LeftmostFirst)
        self._longest = max(map(len, texts), default=1)
        self._hidden = _hidden(tuple(texts))

    def find(self, data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the start and the index of each text in ``data[start:end]``, in order.

        A text that begins inside another one is not reported; :meth:`within` tells of it.

        The time is linear in the length; the memory is bounded.
        """
        past = start
        with memoryview(data) as view:
            while start < end:
                stop = min(end, start + _PIECE)
                with view[start:stop] as piece:
                    matches = self._automaton.find_matches_as_indexes(piece)
                for index, first, last in matches:
                    yield start + first, index
                    past = start + last
                # A text may lie across the border of two pieces.
                start = stop if stop == end else max(past, stop - self._longest + 1)

    def within(self, index: int) -> tuple[int, ...]:
        """Return the indexes of the texts that a match may hide, itself included."""
        return self._hidden[index]


@functools.lru_cache(maxsize=16)
def _hidden(texts: tuple[bytes, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the indexes of the texts that each text may hide; each console has the same texts."""
    return tuple(
        tuple(index for index, other in enumerate(texts) if _overlaps(text, other))
        for text in texts
    )


def _overlaps(text: bytes, other: bytes) -> bool:
    """Return whether ``other`` may begin inside of ``text``."""
    return any(text.startswith(other, at) or other.startswith(text[at:]) for at in range(len(text)))
