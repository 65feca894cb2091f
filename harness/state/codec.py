"""A spec as JSON and back: what a snapshot says of its machine, and what a key is made of."""

from __future__ import annotations

import dataclasses
import hashlib
from enum import Enum
from pathlib import Path
from typing import Any

from harness.spec import ConsoleDevice, Disk, Firmware, FirmwareKind, MachineSpec, Nic, Reach, Tpm


def to_json(value: Any) -> Any:
    """Return dataclasses, enums, paths and tuples as what ``json`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, dict):
        return {str(name): to_json(each) for name, each in value.items()}
    return value


def shape(*kinds: type) -> str:
    """Return a digest of the fields of dataclasses, which are the names in their JSON."""
    told = [(kind.__name__, [field.name for field in dataclasses.fields(kind)]) for kind in kinds]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def spec_from_json(data: dict[str, Any]) -> MachineSpec:
    """Return the spec that :func:`to_json` was given.

    Raises:
        KeyError, TypeError, ValueError, UsageError: if it is not one.
    """
    told = dict(data)
    firmware = dict(told["firmware"])
    told["firmware"] = Firmware(
        FirmwareKind(firmware["kind"]),
        _path(firmware["kernel"]),
        _path(firmware["initrd"]),
        str(firmware["cmdline"]),
    )
    told["disks"] = tuple(Disk(**{**disk, "base": _path(disk["base"])}) for disk in told["disks"])
    told["nics"] = tuple(
        Nic(
            **{
                **nic,
                "forward": tuple(nic["forward"]),
                "reach": tuple(Reach(**each) for each in nic["reach"]),
            }
        )
        for nic in told["nics"]
    )
    told["console"] = ConsoleDevice(told["console"])
    told["credentials"] = tuple((str(name), str(value)) for name, value in told["credentials"])
    if told["tpm"] is not None:
        told["tpm"] = Tpm(_path(told["tpm"]["state"]))
    return MachineSpec(**told)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
