"""The bytes that a terminal sends for each key.

Source: xterm's ``ctlseqs`` ("PC-Style Function Keys", "VT220-Style Function Keys"). EDK2's terminal
driver, GRUB, and curses programs with an xterm or vt220 terminfo entry read the same sequences.
"""

from __future__ import annotations

from typing import Final

from harness.errors import UnknownNameError

_CURSOR: Final = {"up": b"A", "down": b"B", "right": b"C", "left": b"D", "home": b"H", "end": b"F"}
"""The keys that DECCKM changes: ``ESC O x`` in application mode, ``ESC [ x`` otherwise."""

_NAMES: Final = {
    "Up": b"",
    "Down": b"",
    "Left": b"",
    "Right": b"",
    "Home": b"",
    "End": b"",
    "PageUp": b"\x1b[5~",
    "PageDown": b"\x1b[6~",
    "Insert": b"\x1b[2~",
    "Delete": b"\x1b[3~",
    "Tab": b"\t",
    "BackTab": b"\x1b[Z",
    "Enter": b"\r",
    "Escape": b"\x1b",
    "Backspace": b"\x7f",
    "Space": b" ",
    "F1": b"\x1bOP",
    "F2": b"\x1bOQ",
    "F3": b"\x1bOR",
    "F4": b"\x1bOS",
    "F5": b"\x1b[15~",
    "F6": b"\x1b[17~",
    "F7": b"\x1b[18~",
    "F8": b"\x1b[19~",
    "F9": b"\x1b[20~",
    "F10": b"\x1b[21~",
    "F11": b"\x1b[23~",
    "F12": b"\x1b[24~",
}

_ALIASES: Final = {
    "esc": "escape",
    "return": "enter",
    "pgup": "pageup",
    "pgdn": "pagedown",
    "pgdown": "pagedown",
    "del": "delete",
    "ins": "insert",
    "shift-tab": "backtab",
}

_KEYS: Final = {name.lower(): data for name, data in _NAMES.items()}

KEY_NAMES: Final = (*_NAMES, "Ctrl-X", "Alt-x")
"""The names that :func:`key_bytes` accepts, besides single characters."""


def canonical(key: str) -> str:
    """Return the name of a key in lower case, and the one that :data:`KEY_NAMES` has for its aliases."""
    name = key.lower()
    return _ALIASES.get(name, name)


def key_bytes(key: str, *, application: bool = False) -> bytes:
    """Return the bytes that a terminal sends for a key.

    Args:
        key: A name in :data:`KEY_NAMES`, in any case; ``Ctrl-`` and a character; ``Alt-`` and
            another key; or one character.
        application: Whether the guest has switched the cursor keys to application mode
            (``ESC[?1h``), as curses programs do.

    Raises:
        UnknownNameError: The key does not exist.
    """
    if len(key) == 1:
        return key.encode()
    name = canonical(key)
    if name in _CURSOR:
        return (b"\x1bO" if application else b"\x1b[") + _CURSOR[name]
    if name in _KEYS:
        return _KEYS[name]
    if name.startswith("alt-") and len(key) > len("alt-"):
        return b"\x1b" + key_bytes(key[len("alt-") :], application=application)
    if name.startswith("ctrl-"):
        rest = name[len("ctrl-") :]
        if rest == "space":
            return b"\x00"
        # Ctrl clears the upper bits of the characters from @ to _, which gives ASCII's C0 set.
        if len(rest) == 1 and "@" <= rest.upper() <= "_":
            return bytes([ord(rest.upper()) & 0x1F])
        if rest == "?":
            return b"\x7f"
    raise UnknownNameError("key", key, KEY_NAMES)
