"""How systemd credentials are handed to a guest: as SMBIOS strings, or as files of QEMU's fw_cfg.

systemd imports both (``systemd.system-credentials(7)``, ``src/core/import-creds.c``). A guest needs the
kernel module ``dmi-sysfs`` for the strings, and ``qemu_fw_cfg`` for the files. The limits:

* All SMBIOS tables together have at most 65,535 bytes: the 16-bit length in the entry point of SMBIOS
  2.x (DMTF DSP0134, 5.2.1). For larger tables QEMU 9.1 and later build an SMBIOS 3 entry point, and lose
  the strings: ``smbios_build_type_11_table`` in ``hw/smbios/smbios.c`` has freed them in the first
  attempt. With ``smbios-entry-point-type=64`` SeaBIOS and Linux find such tables corrupted.
* A table has at most 255 strings, and a string begins at 1 (DSP0134, 6.1.3, 7.12).
* The name of a fw_cfg file has at most 55 characters (``FW_CFG_MAX_FILE_PATH``, ``fw_cfg(4)`` of QEMU's
  ``docs/specs``), of which systemd's prefix takes 27.
* systemd takes credentials of at most 1 MiB in all (``CREDENTIALS_TOTAL_SIZE_MAX`` in
  ``src/shared/creds-util.h``), with names of at most 255 printable ASCII characters without ``:`` and
  ``/`` (``credential_name_valid``).

So credentials are strings as long as they fit; then the largest ones become files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.errors import UsageError

Credentials = Sequence[tuple[str, str]]
"""Names and values."""

PREFIX: Final = "opt/io.systemd.credentials/"
"""The folder of the fw_cfg files that systemd imports."""

FILE_NAME: Final = 55 - len(PREFIX)
"""The longest name, in characters, of a credential that is a file."""

STRINGS_ROOM: Final = 60 * 1024
"""Bytes of all strings; the rest of the 64 KiB is left to the tables that describe the machine."""

STRINGS_MOST: Final = 255

TOTAL: Final = 1024 * 1024
"""Bytes of all values that systemd takes."""

# "=" ends the name in an SMBIOS string.
_NAME: Final = re.compile(r"(?!\.{1,2}$)[!-~]{1,255}")
_NAME_WITHOUT: Final = ":/="


@dataclass(frozen=True, slots=True)
class Passage:
    """How the credentials of one machine are handed over.

    Attributes:
        strings: The SMBIOS type 11 strings.
        files: Names and values of the fw_cfg files.
    """

    strings: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def passage(credentials: Credentials, *, smbios: bool) -> Passage:
    """Return how credentials are handed over.

    Args:
        credentials: Names and values.
        smbios: Whether the guest can read SMBIOS tables.

    Raises:
        UsageError: No way carries them; names the limit.
    """
    for name, _ in credentials:
        if not _NAME.fullmatch(name) or any(sign in name for sign in _NAME_WITHOUT):
            raise UsageError(
                f"{name!r} is not a valid name of a credential (at most 255 printable ASCII"
                f" characters, without space and {' '.join(_NAME_WITHOUT)})"
            )
    total = sum(len(value.encode()) for _, value in credentials)
    if total > TOTAL:
        raise UsageError(
            f"the credentials have {total} bytes, and systemd takes {TOTAL} in all",
            hint="put large data on a disk of the machine, or into a seed",
        )
    strings = {name: _string(name, value) for name, value in credentials} if smbios else {}
    by_size = sorted(strings, key=lambda name: len(strings[name]))
    while strings and not _fit(list(strings.values())):
        del strings[by_size.pop()]
    files = tuple((name, value) for name, value in credentials if name not in strings)
    for name, value in files:
        if len(name) > FILE_NAME:
            size = len(value.encode())
            raise UsageError(
                f"the credential {name} ({size} bytes) cannot be handed over: its name has"
                f" {len(name)} characters, and that of a fw_cfg file has at most {FILE_NAME}",
                hint=f"the SMBIOS strings of a machine carry {STRINGS_ROOM} bytes in base64, long"
                " names included"
                if smbios
                else "boot by UEFI: this machine has no SMBIOS with direct kernel boot; or choose a"
                " shorter name",
            )
    return Passage(tuple(strings.values()), files)


def _string(name: str, value: str) -> str:
    encoded = base64.b64encode(value.encode()).decode()
    return f"io.systemd.credential.binary:{name}={encoded}"


def _fit(strings: Sequence[str]) -> bool:
    # Each string ends in a null byte.
    return len(strings) <= STRINGS_MOST and sum(len(s) + 1 for s in strings) <= STRINGS_ROOM
