"""A spec as JSON and back: what a snapshot says of its machine, and what a key is made of."""

from __future__ import annotations

import dataclasses
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
                # States saved before there were services have none.
                "reach": tuple(Reach(**each) for each in nic.get("reach", ())),
            }
        )
        for nic in told["nics"]
    )
    told["console"] = ConsoleDevice(told["console"])
    told["credentials"] = tuple((str(name), str(value)) for name, value in told["credentials"])
    # States saved before there were TPMs have none.
    if (tpm := told.pop("tpm", None)) is not None:
        told["tpm"] = Tpm(_path(tpm["state"]))
    return MachineSpec(**told)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
