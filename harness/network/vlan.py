"""VLANs: which of them a port belongs to (IEEE 802.1Q)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from harness.errors import UsageError

TPID: Final = b"\x81\x00"
"""The type that begins a tag (IEEE 802.1Q-2018, 9.4, table 9-1)."""

LARGEST: Final = 4094
"""0 marks a tag with a priority alone, and 4095 is reserved (IEEE 802.1Q-2018, 9.6, table 9-2)."""


@dataclass(frozen=True, slots=True)
class Vlan:
    """The VLANs of a port; the default is an access port of VLAN 1.

    Attributes:
        untagged: The VLAN of frames without a tag, in both directions; ``None`` drops them.
        tagged: The VLANs whose frames have a tag, in both directions.

    Raises:
        UsageError: A number is out of range, or a VLAN is both.
    """

    untagged: int | None = 1
    tagged: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for number in (*self.tagged, *([] if self.untagged is None else [self.untagged])):
            if isinstance(number, bool) or not isinstance(number, int):
                raise UsageError(f"a VLAN is a number, not {number!r}")
            if not 1 <= number <= LARGEST:
                raise UsageError(f"a VLAN is 1 to {LARGEST}, not {number}")
        if self.untagged in self.tagged:
            raise UsageError(f"VLAN {self.untagged} is either tagged or untagged on a port")
        if self.untagged is None and not self.tagged:
            raise UsageError("a port without a VLAN carries nothing")

    @classmethod
    def access(cls, number: int) -> Self:
        """Return the VLANs of a port whose machine knows of none: all frames are in this one."""
        return cls(number)

    @classmethod
    def trunk(cls, tagged: Iterable[int], *, native: int | None = None) -> Self:
        """Return the VLANs of a port that carries several.

        Args:
            tagged: The VLANs whose frames have a tag.
            native: The VLAN of frames without one; ``None`` drops them.
        """
        return cls(native, frozenset(tagged))

    def dump(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {"untagged": self.untagged, "tagged": sorted(self.tagged)}

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return what :meth:`dump` made plain JSON of."""
        return cls(values["untagged"], frozenset(values["tagged"]))
