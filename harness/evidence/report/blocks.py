r"""How a record is stored in a page: an index, and a compressed block for each test.

Consoles of machines of one image say the same: a line that several tests have is stored once, and their
blocks have its number instead. A kernel's timestamp in front of a line is stored apart from it.

A text is stored as ``{"lines": [...], "stamps": [...]}``. Each entry of ``lines`` is a string, or the
distance of its number in the shared lines from that of the last such entry. A line that begins with
``\0`` has its timestamp, in microseconds since the one before, in ``stamps``; one that begins with
``\1`` is what follows that character. ``script/base.js`` decodes the same.

Compression is zlib's format, which a browser's ``DecompressionStream("deflate")`` reads.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from harness.evidence.report import shape
from harness.evidence.report.record import FORMAT, Record, Test

LARGEST: Final = 64 * 1024 * 1024
"""Bytes that a block may have when it is unpacked; a page that is read may come from anywhere."""

_STAMP: Final = re.compile(r"\[( *\d+)\.(\d{6})\] ")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_SHARED: Final = "lines"
_LONGEST_SHARED: Final = 400


def encode(record: Record) -> dict[str, str]:
    """Return the blocks of a record by their names: ``index``, ``lines``, and a number for each test."""
    details = [test["detail"] for test in _tests(record) if test.get("detail")]
    shared = _shared(details)
    numbers = {line: number for number, line in enumerate(shared)}
    blocks = {"index": "", _SHARED: _pack(shared)}
    runs = []
    for run in record["runs"]:
        tests = []
        for test in run["tests"]:
            entry = {name: value for name, value in test.items() if name != "detail"}
            if detail := test.get("detail"):
                entry["block"] = str(len(blocks) - 2)
                blocks[entry["block"]] = _pack(_encoded(detail, numbers))
            tests.append(entry)
        runs.append(run | {"tests": tests})
    blocks["index"] = _pack({"format": FORMAT, "runs": runs})
    return blocks


def decode(blocks: dict[str, str]) -> Record:
    """Return the record of blocks.

    Raises:
        ValueError: The blocks are damaged, too large, or those of another format.
    """
    try:
        record: Record = _unpack(blocks["index"])
        if record["format"] != FORMAT:
            raise ValueError(f"it has format {record['format']!r}, and this Harness reads {FORMAT}")
        shared = _unpack(blocks[_SHARED])
        for test in _tests(record):
            name = test.pop("block", None)
            test["detail"] = _decoded(_unpack(blocks[name]), shared) if name is not None else None
        shape.check(record, shape.Record)
    except (KeyError, TypeError, IndexError, AttributeError, zlib.error, RecursionError) as error:
        raise ValueError(f"it is damaged: {error!r}") from error
    return record


def _tests(record: Record) -> Iterator[Test]:
    for run in record["runs"]:
        yield from run["tests"]


def _shared(details: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines that more than one test has, in the order in which they first come."""
    seen: dict[str, int] = {}
    for number, detail in enumerate(details):
        for log in detail["logs"]:
            for line in log["text"].split("\n"):
                bare = _split(line)[1]
                if 4 < len(bare) <= _LONGEST_SHARED:
                    # -1 for a line of several tests; otherwise the number of its test.
                    seen[bare] = number if seen.get(bare, number) == number else -1
    return [line for line, number in seen.items() if number == -1]


def _split(line: str) -> tuple[int | None, str]:
    """Return the timestamp of a line, in microseconds, and the rest, marked if it has one."""
    match = _STAMP.match(line)
    if match is None:
        return None, f"\1{line}" if line[:1] in ("\0", "\1") else line
    stamp = int(match[1]) * 1_000_000 + int(match[2])
    if _stamped(stamp) != match[0] or stamp > 2**52:
        return None, line
    return stamp, f"\0{line[match.end() :]}"


def _stamped(stamp: int) -> str:
    return f"[{stamp // 1_000_000:5}.{stamp % 1_000_000:06}] "


def _encoded(detail: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    return detail | {
        "logs": [log | {"text": _encode_text(log["text"], numbers)} for log in detail["logs"]]
    }


def _encode_text(text: str, numbers: dict[str, int]) -> dict[str, Any]:
    lines: list[int | str] = []
    stamps: list[int] = []
    last_number = last_stamp = 0
    for line in text.split("\n"):
        stamp, bare = _split(line)
        if stamp is not None:
            stamps.append(stamp - last_stamp)
            last_stamp = stamp
        number = numbers.get(bare)
        if number is None:
            lines.append(bare)
        else:
            lines.append(number - last_number)
            last_number = number
    return {"lines": lines, "stamps": stamps}


def _decoded(detail: dict[str, Any], shared: list[str]) -> dict[str, Any]:
    return detail | {
        "logs": [log | {"text": _decode_text(log["text"], shared)} for log in detail["logs"]]
    }


def _decode_text(text: dict[str, Any], shared: list[str]) -> str:
    parts: list[str] = []
    stamps = iter(text["stamps"])
    number = stamp = size = 0
    for entry in text["lines"]:
        if isinstance(entry, int):
            number += entry
        line: str = shared[number] if isinstance(entry, int) else entry
        if line.startswith("\0"):
            stamp += next(stamps, 0)
            line = _stamped(stamp) + line[1:]
        elif line.startswith("\1"):
            line = line[1:]
        size += len(line)
        if size > LARGEST:
            raise ValueError("a log is too large")
        parts.append(line)
    return "\n".join(parts)


def _pack(content: object) -> str:
    plain = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


def _unpack(block: str) -> Any:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(block, validate=True), LARGEST)
    if not unpacking.eof:
        raise ValueError("a block is cut short or too large")
    value = json.loads(content, parse_constant=_refuse)
    if _SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode()  # fails if it is half a pair
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
