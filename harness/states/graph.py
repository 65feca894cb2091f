"""The graph of states: the inputs of each state, and whether a saved one is still valid.

A state is declared by its steps, a function beside a profile or in a suite::

    @state
    def live(lab): ...  # returns a machine that it booted

    @state(parent=live)
    def installed(lab, machine): ...  # goes on from ``machine``, a fork of ``live``

The key of a state is the digest of all its inputs, the code of its steps included. So a saved state
never has to be declared out of date: when an input changes, the state has another key and is built.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Final, overload

from harness import arch as arches
from harness import paths, seed
from harness.console import driver
from harness.errors import UsageError
from harness.host.accel import Accel, cpu_model
from harness.qemu import argv
from harness.qemu.binary import Qemu
from harness.states.manifest import FORMAT

Steps = Callable[..., Any]

_POINTS: Final = "harness.points"
"""The module of the states that every image has."""

_PROFILES: Final = "harness.profiles."
"""The modules of Harness' own profiles, whose helpers count as the profiles do."""

_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})
"""The folders of installed packages."""


@dataclass(frozen=True, eq=False)
class State:
    """A named point that a test can start from.

    Attributes:
        name: The name in listings.
        steps: The function that reaches it: ``steps(lab)`` for a root, ``steps(lab, machine)`` with a
            parent; returns the machine to save.
        parent: The state from which the steps go on.
        uses: Further functions, classes and values that decide the result of the steps and that
            their code does not name.
        machines: The number of its machines.
    """

    name: str
    steps: Steps
    parent: State | None = None
    uses: tuple[object, ...] = ()
    machines: int = 1

    @property
    def chain(self) -> tuple[State, ...]:
        """The states from the root to this one."""
        before = self.parent.chain if self.parent is not None else ()
        return (*before, self)


class GroupState(State):
    """A state of a cluster: its machines are saved, and forked, together with their segments.

    Its steps are ``steps(lab, cluster)``: the cluster has :attr:`machines` forks of the parent, or is a
    fork of a parent that is a state of a cluster as well. They return the cluster to save, an object
    with ``machines`` and ``segments`` by name.
    """


@overload
def state(steps: Steps, /) -> State: ...
@overload
def state(
    *, parent: State | None = None, name: str = "", uses: tuple[object, ...] = ()
) -> Callable[[Steps], State]: ...
@overload
def state(
    *,
    parent: State | None = None,
    name: str = "",
    uses: tuple[object, ...] = (),
    machines: int,
) -> Callable[[Steps], GroupState]: ...
def state(
    steps: Steps | None = None,
    /,
    *,
    parent: State | None = None,
    name: str = "",
    uses: tuple[object, ...] = (),
    machines: int | None = None,
) -> State | Callable[[Steps], State] | Callable[[Steps], GroupState]:
    """Declare a state; a decorator, with or without arguments.

    Args:
        steps: The function that reaches it.
        parent: The state from which the steps go on.
        name: Its name; the name of the function by default.
        uses: As :attr:`State.uses`.
        machines: The number of machines of a state of a cluster: see :class:`GroupState`.

    Raises:
        UsageError: ``parent`` is not a state, or is one of a cluster and this one is not; or there is no
            machine.
    """
    if parent is not None and not isinstance(parent, State):
        raise UsageError(f"the parent of a state must be a state, not {parent!r}")
    if machines is not None:
        return _declare_group(machines, parent, name, uses)
    if isinstance(parent, GroupState):
        raise UsageError(
            f"{parent.name} is the state of a cluster, so a state on it is one as well",
            hint=f"@state(parent=..., machines={parent.machines})",
        )

    def declare(function: Steps) -> State:
        return State(name or function.__name__, function, parent, uses)

    return declare if steps is None else declare(steps)


def _declare_group(
    machines: int, parent: State | None, name: str, uses: tuple[object, ...]
) -> Callable[[Steps], GroupState]:
    if machines < 1:
        raise UsageError(f"a state of a cluster has one machine at least, not {machines!r}")
    number = machines

    def declare(function: Steps) -> GroupState:
        return GroupState(name or function.__name__, function, parent, uses, number)

    return declare


def inputs(
    point: State,
    *,
    image: Mapping[str, str],
    arch: str,
    baseline: str,
    accel: Accel,
    qemu: Qemu,
    profile: type,
    boot: Callable[..., object],
    parent: str = "",
    provider: type | None = None,
) -> dict[str, str]:
    """Return all inputs of a state, each under a name for people.

    Harness' own code counts by the version of Harness. In a checkout the version stays the same while
    the code changes. So the code that decides the content of a machine counts by its text, too: the
    steps, the profile, ``boot`` (it chooses disks, credentials and seed), QEMU's options, the writer of
    seeds and the console's driver, which runs in the guest. The code that starts and attaches a machine
    does not count: QEMU's options decide everything that the guest sees of it. If it counted, each edit
    of Harness would make its developer wait for all states to be built again.

    Args:
        point: The state.
        image: The name of the image and the digests of its contents, by name.
        arch: The architecture.
        baseline: The image's baseline; empty for the default one.
        accel: The accelerator.
        qemu: The QEMU.
        profile: The profile of the image.
        boot: The function of the lab that chooses the spec of a machine.
        parent: The key of the parent; empty for a root.
        provider: The provider of the image's clusters, where their machines are of this image.
    """
    program = qemu.path.resolve().stat()
    named = {
        "format of states": FORMAT,
        "version of Harness": _version(),
        "code: QEMU's options": _digest(inspect.getsource(argv) + inspect.getsource(arches)),
        "code: seeds": _digest(inspect.getsource(seed)),
        "code: the console's driver": _digest(inspect.getsource(driver)),
        "arch": arch,
        "accelerator": accel.name,
        "machine type": qemu.machine,
        "CPU model": cpu_model(accel, arch, baseline),
        "QEMU": f"{qemu.version}, {program.st_size} bytes of {program.st_mtime_ns}",
        **{f"image: {name}": value for name, value in image.items()},
    }
    if isinstance(point, GroupState):
        named["machines"] = str(point.machines)
    if parent:
        named["parent"] = parent
    kinds = (*profile.__mro__, *(() if provider is None else provider.__mro__))
    bases = (base for base in kinds if base is not object)
    for name, text in sorted(code_of(point.steps, *point.uses, boot, *bases).items()):
        named[f"code: {name}"] = _digest(text)
    return named


def _version() -> str:
    try:
        return importlib.metadata.version("harness-os")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"


def key_of(named: Mapping[str, str]) -> str:
    """Return the key of a state with these inputs: a SHA-256, in hexadecimal."""
    return _digest(json.dumps(sorted(named.items())))


def explain(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Return the differences between the inputs of two states, a line each."""
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
    """Return the source of functions and classes and of everything that they use, by qualified name.

    Code is followed from name to name, to helpers, constants and classes in its own module and in the
    modules that it imports, as long as the author of states wrote them. That excludes Python, installed
    packages and Harness. Three parts of Harness are followed even so: the states that every image has
    (``harness.points``), the profiles, and the suites, which are installed with the wheel.

    Args:
        roots: Functions, classes, states or values; they count wherever they are from.
    """
    sources: dict[str, str] = {}
    seen: set[int] = set()
    pending: list[tuple[str, object, bool]] = [(_name(root), root, True) for root in roots]
    while pending:
        name, thing, is_root = pending.pop()
        if isinstance(thing, State):
            pending += [(_name(used), used, is_root) for used in (thing.steps, *thing.uses)]
            if isinstance(thing, GroupState):
                sources[f"{name}: machines"] = str(thing.machines)
            if thing.parent is not None:
                pending.append((_name(thing.parent.steps), thing.parent, is_root))
            continue
        if isinstance(thing, functools.partial):
            pending += [(_name(used), used, True) for used in (thing.func, *thing.args)]
            continue
        thing = inspect.unwrap(thing) if callable(thing) else thing
        if not isinstance(thing, (type, types.FunctionType)):
            if not isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)):
                sources[name] = _value(thing)
                pending += [(name, member, False) for member in _code_in(thing)]
            continue
        if id(thing) in seen or not (is_root or _is_followed(thing.__module__, _file(thing))):
            continue
        seen.add(id(thing))
        name = f"{thing.__module__}.{thing.__qualname__}"
        try:
            # pytest imports files below different folders under the same bare name, such as conftest.
            sources[name] = sources.get(name, "") + inspect.getsource(thing)
        except (OSError, TypeError):
            sources[name] = _value(thing)
            continue
        pending += [(name, value, False) for name, value in _used(thing)]
    return sources


def _name(thing: object) -> str:
    return (
        f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"
    )


def _file(thing: type | types.FunctionType) -> str:
    """Return the file of a function or class; empty if it has none."""
    if isinstance(thing, types.FunctionType):
        return thing.__code__.co_filename
    return getattr(sys.modules.get(thing.__module__), "__file__", None) or ""


def _is_followed(module: str, file: str) -> bool:
    """Return whether the code of a module belongs to the author of states."""
    path = Path(file)
    if (
        module == _POINTS
        or module.startswith(_PROFILES)
        or (file and path.resolve().is_relative_to(paths.bundled("suites")))
    ):
        return True
    top = module.partition(".")[0]
    return (
        top not in ("harness", "builtins")
        and top not in sys.stdlib_module_names
        and _PACKAGES.isdisjoint(path.parts)
    )


def _used(thing: type | types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield everything that code refers to by a global name, or by a name in a module."""
    if isinstance(thing, type):
        for base in thing.__bases__:
            yield _name(base), base
    for function in _functions(thing):
        space = function.__globals__
        names = sorted(set(_names(function.__code__)))
        seen: set[int] = set()
        for name in names:
            if name in space and not hasattr(builtins, name):
                yield from _reached(f"{function.__module__}.{name}", space[name], names, seen)


def _functions(thing: type | types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield a function, or those of a class, without their decorators."""
    for member in vars(thing).values() if isinstance(thing, type) else (thing,):
        candidates: tuple[object, ...] = (member,)
        if isinstance(member, (staticmethod, classmethod)):
            candidates = (member.__func__,)
        elif isinstance(member, property):
            candidates = (member.fget, member.fset, member.fdel)
        elif isinstance(member, functools.cached_property):
            candidates = (member.func,)
        for candidate in candidates:
            function = inspect.unwrap(candidate) if callable(candidate) else candidate
            if isinstance(function, types.FunctionType):
                yield function


def _reached(
    name: str, value: object, names: list[str], seen: set[int]
) -> Iterator[tuple[str, object]]:
    """Yield a value and, if it is a module that is followed, its members with one of the names."""
    yield name, value
    if not isinstance(value, types.ModuleType) or id(value) in seen:
        return
    seen.add(id(value))
    if value.__name__ == "harness":
        # The front door: it loads each public name at its first use.
        members: Set[str] = set(value.__all__)
    elif _is_followed(value.__name__, getattr(value, "__file__", None) or ""):
        members = vars(value).keys()
    else:
        return
    for member in names:
        if member in members:
            inside = getattr(value, member)
            yield from _reached(f"{value.__name__}.{member}", inside, names, seen)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _code_in(thing: object) -> Iterator[object]:
    """Yield the functions, classes and states that a constant holds: a table of steps, say."""
    members: Iterable[object] = ()
    if isinstance(thing, dict):
        members = (*thing.keys(), *thing.values())
    elif isinstance(thing, (list, tuple)):
        members = thing
    for member in members:
        if isinstance(member, (type, types.FunctionType, functools.partial, State)):
            yield member


def _value(thing: object) -> str:
    """Return a constant as text that is the same in each process."""
    try:
        return _text(thing)
    except RecursionError:  # it contains itself
        return _kind(thing)


def _text(thing: object) -> str:
    return json.dumps(_plain(thing), sort_keys=True)


def _plain(thing: object) -> Any:
    """Return a value as one that JSON has."""
    if isinstance(thing, Enum):
        return _plain(thing.value)
    if thing is None or isinstance(thing, (str, int, float)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [_plain(member) for member in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(map(_text, thing))
    if isinstance(thing, dict):
        # Keys as texts: JSON has no others, and would take 1 and "1" for the same.
        return {_text(key): _plain(value) for key, value in thing.items()}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {
            field.name: _plain(getattr(thing, field.name)) for field in dataclasses.fields(thing)
        }
    if isinstance(thing, PurePath):
        return str(thing)
    if isinstance(thing, bytes):
        return thing.hex()
    if isinstance(thing, re.Pattern):
        return [_plain(thing.pattern), thing.flags]
    return _kind(thing)


def _kind(thing: object) -> str:
    # The text of an object may contain its address, which differs from process to process.
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
