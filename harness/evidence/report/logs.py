"""The logs of a test for its report: bounded, on the clock of the test, and harmless.

A *log* is plain JSON. Its text comes in *chunks*, each with its time::

    {"machine": "skiff", "source": "console", "name": "skiff/serial.cast", "size": [80, 24],
     "chunks": [12, 40, 1035, 17],      pairs: milliseconds since the chunk before, UTF-16 units of text
     "start": 250,                      milliseconds from the start of the test to time 0 of the chunks
     "text": "...", "omitted": 0}

Of a log that is longer than :data:`HEAD` and :data:`TAIL` together the middle is left out; ``omitted``
is the number of bytes, and the text says so where they were. Nothing of a guest is trusted: a line that
cannot be read is shown as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

HEAD: Final = 256 * 1024
"""Bytes that are kept of the beginning of a file."""

TAIL: Final = 768 * 1024
"""Bytes that are kept of its end, where the failure is."""

Log = dict[str, Any]
Row = tuple[float, str]
"""A time in seconds of the epoch, and the text of a chunk."""


def console(folder: Path, machine: str, name: str, began: float) -> Log | None:
    """Return the log of a console; of its recording, or of the raw log where there is no recording."""
    cast = folder / "serial.cast"
    if not cast.is_file():
        return plain(folder / "serial.log", machine, "console", name, began)
    lines, omitted = _lines(cast)
    try:
        header = json.loads(next(lines, "") or "null")
        # Recordings of older versions have whole seconds only.
        zero = float(header.get("began", header["timestamp"]))
        size = [int(header["width"]), int(header["height"])]
    except (ValueError, TypeError, KeyError, AttributeError):
        return plain(folder / "serial.log", machine, "console", name, began)
    rows: list[Row] = []
    for line in lines:
        if line is None:
            rows.append((rows[-1][0] if rows else zero, _gap(omitted, f"{name}/serial.cast")))
            continue
        try:
            seconds, code, text = json.loads(line)
            seconds = zero + float(seconds)
        except (ValueError, TypeError):
            continue
        if code == "o" and isinstance(text, str):
            rows.append((seconds, text))
        elif code == "m":
            rows.append((seconds, f"\r\n[{text}]\r\n"))
    return _log(machine, "console", f"{name}/serial.cast", began, rows, omitted) | {"size": size}


def ssh(path: Path, machine: str, name: str, began: float) -> Log | None:
    """Return the log of the commands over SSH; ``None`` if there were none."""
    return _jsonl(path, machine, "ssh", name, began, _ssh)


def qmp(path: Path, machine: str, name: str, began: float) -> Log | None:
    """Return the log of QEMU's monitor."""
    return _jsonl(path, machine, "qmp", name, began, _qmp)


def requests(path: Path, server: str, name: str, began: float, until: float) -> Log | None:
    """Return the requests to a server between two moments; the file has those of the whole run."""
    log = _jsonl(path, server, "service", name, began, _request, (began, until))
    return log if log is not None and log["text"] else None


def faults(path: Path, segment: str, name: str, began: float) -> Log | None:
    """Return the log of what a test did to the links of a segment; ``None`` if it did nothing."""
    return _jsonl(path, segment, "network", name, began, _fault)


def plain(path: Path, machine: str, source: str, name: str, began: float) -> Log | None:
    """Return a file of text, all of it at one time; ``None`` if it is empty or missing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            kept = [_read(file, 0, min(size, HEAD + TAIL))]
            omitted = max(0, size - HEAD - TAIL)
            if omitted:
                kept = [_read(file, 0, HEAD), _read(file, size - TAIL, TAIL)]
    except OSError:
        return None
    if not size:
        return None
    label = f"{name}/{path.name}"
    text = _gap(omitted, label).join(part.decode(errors="replace") for part in kept)
    return _log(machine, source, label, began, [(began, text)], omitted) | {"timed": False}


def _jsonl(
    path: Path,
    machine: str,
    source: str,
    name: str,
    began: float,
    describe: Callable[[dict[str, Any]], Row],
    span: tuple[float, float] | None = None,
) -> Log | None:
    if not path.is_file():
        return None
    lines, omitted = _lines(path)
    rows: list[Row] = []
    for line in lines:
        last = rows[-1][0] if rows else began
        if line is None:
            rows.append((last, _gap(omitted, f"{name}/{path.name}")))
            continue
        try:
            when, text = describe(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            when, text = last, line
        if span is None or span[0] <= when <= span[1]:
            rows.append((when, text.rstrip() + "\n"))
    return _log(machine, source, f"{name}/{path.name}", began, rows, omitted)


def _ssh(entry: dict[str, Any]) -> Row:
    when = float(entry["t"])
    seconds = f"{float(entry['seconds']):.2f} s" if "seconds" in entry else ""
    if "connect" in entry:
        return when, f"connected as {entry['connect']} at try {entry['tries']}, {seconds}"
    kind = next(word for word in ("run", "stream", "sftp", "cat") if word in entry)
    ended = entry.get("error") or ", ".join(
        part for part in (f"status {entry['status']}" if "status" in entry else "", seconds) if part
    )
    sign = "$" if kind in ("run", "stream") else f"{kind}:"
    text = f"{sign} {entry[kind]}  [{ended}]"
    return when, "\n".join(
        [text, *(str(entry[out]) for out in ("stdout", "stderr") if entry.get(out))]
    )


def _qmp(entry: dict[str, Any]) -> Row:
    when = float(entry["t"])
    if "send" in entry:
        sent = entry["send"]
        return when, f"> {sent.get('execute', '')} {_brief(sent.get('arguments', {}))}"
    got = entry["receive"]
    if "event" in got:
        return when, f"{got['event']} {_brief(got.get('data', {}))}"
    return when, f"< {_brief(got.get('return', got))}"


def _request(entry: dict[str, Any]) -> Row:
    fault = f"  fault: {entry['fault']}" if entry.get("fault") else ""
    what = f"{entry['method']} {entry['path']}  [{entry['status']}, {entry['bytes']} bytes]"
    return float(entry["when"]), what + fault


def _fault(entry: dict[str, Any]) -> Row:
    number = entry.get("fault")
    words = [str(entry["do"]), "" if number is None else f"fault {number}"]
    words += [", ".join(f"{source} -> {target}" for source, target in entry.get("links") or [])]
    if entry["do"] == "heal" and number is None:
        words.append("all faults")
    more = {
        key: value for key, value in entry.items() if key in ("impairment", "flapping") and value
    }
    words += [_brief(value) for value in more.values()]
    return float(entry["t"]), " ".join(filter(None, words))


def _brief(value: object) -> str:
    text = json.dumps(value) if value not in ({}, []) else ""
    return text if len(text) <= 600 else f"{text[:600]}... ({len(text)} characters)"


def _log(machine: str, source: str, name: str, began: float, rows: list[Row], omitted: int) -> Log:
    chunks: list[int] = []
    parts: list[str] = []
    last = start = round((rows[0][0] - began) * 1000) if rows else 0
    for when, part in rows:
        now = round((when - began) * 1000)
        clean = harmless(part)
        chunks += (now - last, len(clean) + sum(map("\uffff".__lt__, clean)))
        parts.append(clean)
        last = now
    return {
        "machine": machine,
        "source": source,
        "name": name,
        "start": start,
        "chunks": chunks,
        "text": "".join(parts),
        "omitted": omitted,
    }


def harmless(text: str) -> str:
    """Return text that UTF-8 can encode: half a surrogate pair is replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _gap(omitted: int, name: str) -> str:
    return f"\r\n[... {omitted / 2**20:.1f} MiB are left out here; {name} has them ...]\r\n"


def _lines(path: Path) -> tuple[Iterator[str | None], int]:
    """Return the lines of a file, with ``None`` where some are left out, and the bytes left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size <= HEAD + TAIL:
                return iter(_split(_read(file, 0, size))), 0
            head, tail = _read(file, 0, HEAD), _read(file, size - TAIL, TAIL)
    except OSError:
        return iter(()), 0
    # A line that the cut goes through is no JSON any more.
    head, tail = head[: head.rfind(b"\n") + 1], tail[tail.find(b"\n") + 1 :]
    return iter([*_split(head), None, *_split(tail)]), size - len(head) - len(tail)


def _split(content: bytes) -> list[str]:
    # Not splitlines(), which also splits where a guest's own words have a separator of Unicode.
    return [line for line in content.decode(errors="replace").split("\n") if line]


def _read(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    return bytes(file.read(length))
