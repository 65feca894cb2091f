"""The keys of a machine's keyboard: those that a person presses for a name or a character.

QEMU names a key by its place on the keyboard (``QKeyCode`` in its QMP reference). Characters are those
of a US keyboard, which firmware and boot loaders assume; a guest with another layout takes the same
keys for other characters.
"""

from __future__ import annotations

from typing import Final

from harness.console.keys import KEY_NAMES, canonical
from harness.errors import UnknownNameError, UsageError

_KEYS: Final = {
    "up": "up",
    "down": "down",
    "left": "left",
    "right": "right",
    "home": "home",
    "end": "end",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "insert": "insert",
    "delete": "delete",
    "tab": "tab",
    "enter": "ret",
    "escape": "esc",
    "backspace": "backspace",
    "space": "spc",
} | {f"f{number}": f"f{number}" for number in range(1, 13)}
"""The codes of named keys, by their names in :data:`~harness.console.keys.KEY_NAMES`."""

_MODIFIERS: Final = ("ctrl", "alt", "shift")

_PLAIN: Final = {
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    " ": "spc",
    "\n": "ret",
    "\r": "ret",
    "\t": "tab",
    "\x1b": "esc",
    "\x08": "backspace",
    "\x7f": "backspace",
}

_SHIFTED: Final = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))
"""The character that is on the same key, below each one that needs Shift."""

NAMES: Final = (*KEY_NAMES, "Ctrl-Alt-Delete")


def chord(key: str) -> tuple[str, ...]:
    """Return the codes of the keys that are down together for a name or a character.

    Args:
        key: A name in :data:`~harness.console.keys.KEY_NAMES`, in any case; one character; or one of
            both after ``Ctrl-``, ``Alt-`` and ``Shift-``, of which there may be several.

    Raises:
        UnknownNameError: The key does not exist.
    """
    if len(key) == 1:
        return _character(key)
    name = canonical(key)
    if name == "backtab":
        return ("shift", "tab")
    if name in _KEYS:
        return (_KEYS[name],)
    modifier, dash, rest = key.partition("-")
    if dash and rest and modifier.lower() in _MODIFIERS:
        held = modifier.lower()
        # "Ctrl-C" names the key, as keyboards have it printed; Shift is another modifier.
        keys = chord(rest.lower() if held == "ctrl" and len(rest) == 1 else rest)
        return keys if held in keys else (held, *keys)
    raise UnknownNameError("key", key, NAMES)


def _character(character: str) -> tuple[str, ...]:
    if character in _SHIFTED:
        return ("shift", *_character(_SHIFTED[character]))
    if character in _PLAIN:
        return (_PLAIN[character],)
    if character.isascii() and character.isalnum():
        lower = character.lower()
        return ("shift", lower) if character != lower else (lower,)
    raise UsageError(
        f"no key of a US keyboard types {character!r}",
        hint="type ASCII, or type on the console or over SSH",
    )
