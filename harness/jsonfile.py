"""JSON files: written in one step, and read as the dataclass that they were written from.

A *record* is a dataclass in a file, beside the name of its format. pydantic checks each field when the
record is read; it is imported at the first use, since importing it takes a while.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness.errors import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

RecordT = TypeVar("RecordT")


class OtherFormatError(ValueError):
    """The file holds a record in another format."""


def write(path: Path, content: object, *, mode: int = 0o666, durable: bool = False) -> None:
    """Replace a file atomically: a reader sees the old content or the new content, each complete.

    Args:
        path: The file; its folder exists.
        content: A value that :mod:`json` can encode.
        mode: The permissions of the file, less the umask of the process.
        durable: Whether to sync the content to the disk first, so that it survives a power cut.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    write_text(path, json.dumps(content, indent=1) + "\n", mode=mode, durable=durable)


def write_text(path: Path, text: str, *, mode: int = 0o666, durable: bool = False) -> None:
    """Replace a file of text, in UTF-8, as :func:`write` replaces one of JSON."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            output.write(text)
            output.flush()
            if durable:
                os.fsync(output.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def save(
    path: Path,
    record: object,
    *,
    format: int | str,
    omit: Collection[str] = (),
    mode: int = 0o666,
) -> None:
    """Write a record so that it survives a power cut.

    Args:
        path: The file; its folder exists.
        record: A dataclass.
        format: The name of its format.
        omit: Fields that the file does not hold.
        mode: The permissions of the file, less the umask of the process.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    fields = {name: value for name, value in dump(record).items() if name not in omit}
    write(path, {"format": format, **fields}, mode=mode, durable=True)


def load(path: Path, kind: type[RecordT], *, format: int | str, **omitted: object) -> RecordT:
    """Return the record in a file that :func:`save` wrote.

    Args:
        path: The file.
        kind: The dataclass.
        format: The name of its format.
        **omitted: The fields that the file does not hold, as plain JSON.

    Raises:
        OSError: The file cannot be read.
        OtherFormatError: The record has another format.
        ValueError: The file does not hold such a record.
    """
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} does not name its format")
    if content.pop("format") != format:
        raise OtherFormatError(f"{path} has another format than {format}")
    return parse(kind, content | omitted)


def dump(record: object) -> dict[str, Any]:
    """Return a dataclass as plain JSON."""
    fields: dict[str, Any] = _adapter(cast(Any, type(record))).dump_python(record, mode="json")
    return fields


def parse(kind: type[RecordT], content: object) -> RecordT:
    """Return the dataclass that :func:`dump` made plain JSON of.

    Raises:
        ValueError: A field is missing or has another type, or the dataclass refuses its value.
    """
    from pydantic import ValidationError

    try:
        record: RecordT = _adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True)
    except UsageError as error:
        raise ValueError(error.what) from error
    except ValidationError as error:
        # Without the values: some are secret.
        faults = (
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise ValueError("; ".join(faults)) from None
    return record


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
