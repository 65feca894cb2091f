"""Stores in memory for the tests of histories: a correct one, and one for each fault."""

from __future__ import annotations

import itertools
import random
import threading
from ipaddress import IPv4Interface
from typing import Any, ClassVar

from harness.cluster import Member
from harness.errors import JoinRefusedError, OperationRefusedError, OutcomeUnknownError

LOST_ANSWER = OutcomeUnknownError("no answer within 5 s")
REFUSAL = OperationRefusedError("there is no leader")


class Correct:
    """A linearizable store; an operation takes a moment before and after it takes effect.

    Args:
        seed: Decides how long operations take, and what else goes by chance.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.values: dict[str, str] = {}
        self._never = threading.Event()

    def write(self, key: str, value: str) -> None:
        self._dawdle()
        with self.lock:
            self.store(key, value)
        self._dawdle()

    def read(self, key: str) -> str | None:
        self._dawdle()
        with self.lock:
            value = self.load(key)
        self._dawdle()
        return value

    def store(self, key: str, value: str) -> None:
        """Store a value; the lock is held."""
        self.values[key] = value

    def load(self, key: str) -> str | None:
        """Return a value; the lock is held."""
        return self.values.get(key)

    def _dawdle(self) -> None:
        with self.lock:
            seconds = self.chance.random() / 500
        self._never.wait(seconds)


class Unreliable(Correct):
    """Correct as well: refuses some operations, and does not answer some that it does, late or never."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._late: list[tuple[str, str]] = []

    def store(self, key: str, value: str) -> None:
        if self._late and self.chance.random() < 0.3:
            super().store(*self._late.pop(0))
        fate = self.chance.random()
        if fate < 0.1:
            raise REFUSAL
        if fate < 0.2:
            raise LOST_ANSWER
        if fate < 0.3:
            self._late.append((key, value))
            raise LOST_ANSWER
        super().store(key, value)
        if fate < 0.4:
            raise LOST_ANSWER

    def load(self, key: str) -> str | None:
        if self.chance.random() < 0.1:
            raise self.chance.choice([REFUSAL, LOST_ANSWER])
        return super().load(key)


class Forgetful(Correct):
    """Acknowledges before it stores, and loses some writes."""

    def store(self, key: str, value: str) -> None:
        if self.chance.random() > 0.2:
            super().store(key, value)


class Oblivious(Correct):
    """Stores nothing."""

    def store(self, key: str, value: str) -> None:
        pass


class Lagging(Correct):
    """A leader and a follower that is some writes behind; half of the reads ask the follower."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._log: list[tuple[str, str]] = []
        self._follower: dict[str, str] = {}

    def store(self, key: str, value: str) -> None:
        super().store(key, value)
        self._log.append((key, value))
        if len(self._log) > 6:
            behind, old = self._log.pop(0)
            self._follower[behind] = old

    def load(self, key: str) -> str | None:
        return self.chance.choice([self.values, self._follower]).get(key)


class SplitBrain(Correct):
    """Two sides that both acknowledge, until one takes over the other's values."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._operations = itertools.count()

    def store(self, key: str, value: str) -> None:
        self._side()[key] = value

    def load(self, key: str) -> str | None:
        return self._side().get(key)

    def _side(self) -> dict[str, str]:
        if next(self._operations) % 100 == 99:
            self._sides[1].clear()
            self._sides[1].update(self._sides[0])
        return self.chance.choice(self._sides)


class Inventive(Correct):
    """Returns values that nobody wrote, now and then: another key's."""

    def load(self, key: str) -> str | None:
        if self.chance.random() < 0.1 and self.values:
            return self.chance.choice(list(self.values.values())) + "?"
        return super().load(key)


class Disobedient(Correct):
    """Refuses some writes, and does them all the same."""

    def store(self, key: str, value: str) -> None:
        super().store(key, value)
        if self.chance.random() < 0.2:
            raise REFUSAL


class Repeating(Correct):
    """Applies some writes a second time after a newer one, as a retry by a proxy may."""

    def store(self, key: str, value: str) -> None:
        older = self.values.get(key)
        super().store(key, value)
        if older is not None and self.chance.random() < 0.3:
            super().store(key, older)


class Unordered(Correct):
    """Two replicas, written one after the other; a read asks either, while a write is under way, too."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._replica: dict[str, str] = {}

    def write(self, key: str, value: str) -> None:
        super().write(key, value)
        for _ in range(5):
            self._dawdle()
        with self.lock:
            self._replica[key] = value

    def load(self, key: str) -> str | None:
        return self.chance.choice([self.values, self._replica]).get(key)


class Broken(Correct):
    """Raises an error that no store may raise, at the n-th operation."""

    def __init__(self, seed: int, error: Exception, after: int = 5) -> None:
        super().__init__(seed)
        self._error = error
        self._left = after

    def store(self, key: str, value: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error
        super().store(key, value)


class Hanging(Correct):
    """Answers nothing any more once it hangs, until it is let go."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.hangs = threading.Event()
        self.go = threading.Event()

    def write(self, key: str, value: str) -> None:
        self.hangs.set()
        self.go.wait()

    read = Correct.read


class Memory:
    """A provider whose members are in memory; its machines are names."""

    name: ClassVar[str] = "memory"
    ports: ClassVar[tuple[int, ...]] = (1234,)
    virtual_address = IPv4Interface("10.77.1.1/16")

    def __init__(self, segment: Any = None) -> None:
        self._store = Correct(0)
        self._prepared: set[Any] = set()
        self._members: list[Any] = []

    def prepare(self, machine: Any, machines: Any, *, name: str | None = None) -> None:
        assert machine in machines
        assert name is None
        self._prepared.add(machine)

    def first(self, machine: Any) -> None:
        assert not self._members
        self._admit(machine)

    def token(self, via: Any, lifetime: float | None = None) -> str:
        assert via in self._members
        return f"token of {via}"

    def join(self, machine: Any, via: Any = None, *, token: str | None = None) -> None:
        assert via in self._members or token
        if machine in self._members:
            raise JoinRefusedError("duplicate-name")
        self._admit(machine)

    def configuration(self, name: str, via: Any, *, token: str | None = None) -> str:
        return f"{name} {token or self.token(via)}"

    def leave(self, name: str, via: Any) -> None:
        assert via in self._members
        self._members.remove(name)

    def members(self, via: Any) -> list[Member]:
        assert via in self._members
        return [Member(name) for name in sorted(self._members)]

    def leader(self, via: Any) -> str | None:
        return self._members[0] if via in self._members else None

    def healthy(self, machine: Any) -> bool:
        return machine in self._members

    def holds(self, machine: Any) -> bool:
        return machine in self._members[:1]

    def write(self, machine: Any, key: str, value: str) -> None:
        self._check(machine)
        self._store.write(key, value)

    def read(self, machine: Any, key: str) -> str | None:
        self._check(machine)
        return self._store.read(key)

    def _check(self, machine: Any) -> None:
        if machine not in self._members:
            raise REFUSAL

    def _admit(self, machine: Any) -> None:
        assert machine in self._prepared
        self._members.append(machine)
