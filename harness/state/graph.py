"""The graph of states: what each is made of, and so whether a cached one still holds.

A state is declared by its steps, a function beside a profile or in a suite::

    @state
    def live(boot): ...            # returns a machine it booted

    @state(parent=live)
    def installed(boot, machine): ...   # goes on from a fork of ``live``

Its key is the digest of all that made it, so that a state never has to be declared out of date.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, overload

from harness.console import driver
from harness.errors import UsageError
from harness.qemu import argv
from harness.qemu.accel import Accel, cpu_model
from harness.qemu.binary import Qemu
from harness.state.codec import to_json
from harness.state.record import FORMAT

Steps = Callable[..., Any]

_DEPTH: Final = 64


@dataclass(frozen=True, eq=False)
class State:
    """A named point that a test can start from.

    Attributes:
        name: What listings call it.
        steps: What reaches it: ``steps(boot)`` for a root, ``steps(boot, machine)`` with a parent;
            returns the machine to save.
        parent: The state that the steps go on from.
        uses: Further functions, classes and values that decide what the steps do, where reading
            the steps' code does not show them.
    """

    name: str
    steps: Steps
    parent: State | None = None
    uses: tuple[object, ...] = ()

    @property
    def chain(self) -> tuple[State, ...]:
        """The states from the root to this one."""
        before = self.parent.chain if self.parent is not None else ()
        return (*before, self)


@overload
def state(steps: Steps, /) -> State: ...
@overload
def state(
    *, parent: State | None = None, name: str = "", uses: tuple[object, ...] = ()
) -> Callable[[Steps], State]: ...
def state(
    steps: Steps | None = None,
    /,
    *,
    parent: State | None = None,
    name: str = "",
    uses: tuple[object, ...] = (),
) -> State | Callable[[Steps], State]:
    """Declare a state; a decorator, with or without arguments.

    Args:
        steps: The function that reaches it.
        parent: The state that the steps go on from.
        name: Its name; the function's by default.
        uses: As :attr:`State.uses`.

    Raises:
        UsageError: if ``parent`` is no state.
    """
    if parent is not None and not isinstance(parent, State):
        raise UsageError(f"the parent of a state is a state, not {parent!r}")

    def declare(function: Steps) -> State:
        return State(name or function.__name__, function, parent, uses)

    return declare if steps is None else declare(steps)


def inputs(
    wanted: State,
    *,
    image: Mapping[str, str],
    arch: str,
    accel: Accel,
    qemu: Qemu,
    words: type,
    parent: str = "",
) -> dict[str, str]:
    """Return all that decides what a state is, each under a name for people.

    Args:
        wanted: The state.
        image: What names the image and its contents.
        arch: Its arch.
        accel: The accelerator.
        qemu: The QEMU.
        words: The image's profile, whose code counts.
        parent: The key of its parent.
    """
    program = qemu.path.resolve().stat()
    told = {
        "format of states": FORMAT,
        "version of Harness": _version(),
        "code: QEMU's options": _digest(inspect.getsource(argv)),
        "code: the console's driver": _digest(inspect.getsource(driver)),
        "arch": arch,
        "accelerator": accel.name,
        "CPU model": cpu_model(accel, arch),
        "QEMU": f"{qemu.version}, {program.st_size} bytes of {program.st_mtime_ns}",
        **{f"image: {name}": value for name, value in image.items()},
    }
    if parent:
        told["parent"] = parent
    roots = (wanted.steps, *wanted.uses, *(c for c in words.__mro__ if c is not object))
    for name, text in sorted(code_of(*roots).items()):
        told[f"code: {name}"] = _digest(text)
    return told


def _version() -> str:
    try:
        return importlib.metadata.version("harness-os")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"


def key_of(told: Mapping[str, str]) -> str:
    """Return the key of a state made of these inputs: a SHA-256, in hexadecimal."""
    return _digest(json.dumps(sorted(told.items())))


def explain(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Return what differs between two states' inputs, a line each."""
    lines = []
    for name in sorted({*now, *before}):
        if now.get(name) == before.get(name):
            continue
        if name not in before:
            lines.append(f"{name}: new")
        elif name not in now:
            lines.append(f"{name}: gone")
        else:
            lines.append(f"{name}: was {_short(before[name])}, is {_short(now[name])}")
    return lines


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:12]


# --- code ---------------------------------------------------------------------------------------


def code_of(*roots: object) -> dict[str, str]:
    """Return the source of functions and classes and of what they use, by qualified name.

    Followed are names of the same top-level package that the code refers to by name: helpers,
    constants, classes. The library's own modules count by Harness' version, except where they are
    among the roots, as a profile is.

    Args:
        roots: Functions, classes, states, or values.
    """
    found: dict[str, str] = {}
    pending: list[tuple[str, object, bool]] = [(_name(root), root, True) for root in roots]
    while pending:
        name, thing, root = pending.pop()
        if isinstance(thing, State):
            continue  # a state counts by its key
        if isinstance(thing, functools.partial):
            pending += [(_name(each), each, True) for each in (thing.func, *thing.args)]
            continue
        thing = inspect.unwrap(thing) if callable(thing) else thing
        if not isinstance(thing, (type, types.FunctionType)):
            if not isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)):
                found[name] = _value(thing)
            continue
        name = f"{thing.__module__}.{thing.__qualname__}"
        if name in found or (not root and not _own(thing)):
            continue
        try:
            found[name] = inspect.getsource(thing)
        except (OSError, TypeError):
            found[name] = _value(thing)
            continue
        pending += [(each, value, False) for each, value in _used(thing)]
    return found


def _name(thing: object) -> str:
    return (
        f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"
    )


def _own(thing: type | types.FunctionType) -> bool:
    """Whether code is of somebody who declares states, not of a library or of Python."""
    top = thing.__module__.partition(".")[0]
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    return (
        top not in ("harness", "builtins")
        and "site-packages" not in file
        and (top not in sys.stdlib_module_names)
    )


def _used(thing: type | types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield what code refers to by global name."""
    members = vars(thing).values() if isinstance(thing, type) else (thing,)
    for member in members:
        function = getattr(member, "__func__", member)
        if isinstance(function, property):
            function = function.fget
        if not isinstance(function, types.FunctionType):
            continue
        space = function.__globals__
        for name in _names(function.__code__):
            if name in space and not hasattr(builtins, name):
                yield f"{function.__module__}.{name}", space[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _value(thing: object) -> str:
    """Return a constant as text that is the same in each process."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return json.dumps(to_json(thing), sort_keys=True, default=_kind)
    if isinstance(thing, (set, frozenset)):
        return json.dumps(sorted(map(repr, thing)))
    try:
        return json.dumps(thing, sort_keys=True)
    except (TypeError, ValueError):
        return _kind(thing)


def _kind(thing: object) -> str:
    # The text of an object may have its address, which is another in each process.
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
