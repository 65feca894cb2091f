"""Turns pydantic's errors into messages that begin with ``file:line``."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from harness.catalog.document import Document, Location
from harness.catalog.model import Image


def explain(doc: Document, detail: dict[str, Any], model: type[BaseModel] = Image) -> str:
    """Return one error of pydantic as a line that begins with ``file:line``.

    Args:
        doc: The document.
        detail: The error.
        model: The model of the whole document.
    """
    location: Location = tuple(step for step in detail["loc"] if step != "[key]")
    location += tuple(detail.get("ctx", {}).get("at", ()))
    kind = detail["type"]
    if kind == "extra_forbidden":
        *parent, key = location
        allowed = _allowed_keys(model, tuple(parent))
        near = difflib.get_close_matches(str(key), allowed, n=3, cutoff=0.5)
        guess = f"; did you mean {' or '.join(near)}?" if near else ";"
        text = f"unknown key {key!r}{guess} known keys: {', '.join(allowed)}"
        return f"{doc.where(location)}: {_dotted(parent)}{text}"
    if kind == "missing":
        *parent, key = location
        return f"{doc.where(tuple(parent))}: {_dotted(parent)}the key {key!r} is missing"
    message = detail["msg"]
    if kind != "catalog":
        value = repr(detail["input"])
        message = message[:1].lower() + message[1:]
        message += f", not {value if len(value) <= 60 else value[:57] + '...'}"
        if kind == "string_type" and isinstance(detail["input"], (int, float)):
            message += f'; quote it: "{doc.texts.get(location, detail["input"])}"'
    return f"{doc.where(location)}: {_dotted(location)}{message}"


def _dotted(location: Iterable[str | int]) -> str:
    path = ".".join(map(str, location))
    return f"{path}: " if path else ""


def _allowed_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the model at ``location`` allows; empty if it allows any key."""
    current: Any = model
    for step in location:
        if isinstance(step, int):
            # The model of a list's items came with the list.
            continue
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(step))
            current = field.annotation if field else None
        else:
            current = _inner(current, dict)
        current = _inner(current, BaseModel) or current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return sorted(current.model_fields)
    return []


def _inner(annotation: Any, kind: type) -> Any:
    """Return the model inside an annotation such as ``Model | None``, or a ``dict``'s value type."""
    arguments: tuple[Any, ...] = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return arguments[1] if kind is dict else None
    for argument in arguments:
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return None
