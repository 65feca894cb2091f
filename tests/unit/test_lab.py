"""A lab that several threads use: each part is made once, and each machine has a name of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from harness import Lab
from harness.lab.parts import Point
from harness.states import Lease, State, StateCache
from harness.states.graph import state

THREADS = 8

ResultT = TypeVar("ResultT")


def at_once(function: Callable[[], ResultT]) -> list[ResultT]:
    """Return what a function returns in each of eight threads that start together."""
    together = threading.Barrier(THREADS)

    def call() -> ResultT:
        together.wait(60)
        return function()

    with ThreadPoolExecutor(THREADS) as pool:
        return [each.result() for each in [pool.submit(call) for _ in range(THREADS)]]


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Let threads take turns as often as CPython can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("round_", range(10))
def test_threads_share_the_folder_the_timeline_and_the_key(tmp_path: Path, round_: int) -> None:
    with Lab("micro", evidence=tmp_path / str(round_)) as lab:
        views = at_once(lambda: (lab.folder, id(lab.timeline), lab.key.public))
        assert len(set(views)) == 1


def test_a_child_without_a_folder_writes_to_its_labs_timeline(tmp_path: Path) -> None:
    with Lab("micro", evidence=tmp_path) as lab, lab.child("part") as part:
        assert part.folder == lab.folder
        assert part.timeline is lab.timeline


@state
def waited_for(lab: Lab) -> None:
    """A state that no test builds."""


def test_threads_that_ask_for_a_state_share_one_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased = []

    def lease(*_: object, **__: object) -> Lease:
        leased.append(threading.get_ident())
        # Long enough for every other thread to ask: none may lease a second time.
        threading.Event().wait(0.2)
        return Lease.__new__(Lease)

    monkeypatch.setattr(StateCache, "lease", lease)
    monkeypatch.setattr(Lease, "close", lambda _: None)
    monkeypatch.setattr(Lab, "state_inputs", lambda *_: {})
    with Lab("micro", evidence=tmp_path) as lab:
        assert isinstance(waited_for, State)
        assert len(set(map(id, at_once(lambda: lab.state(waited_for))))) == 1
    assert len(leased) == 1


def test_a_discarded_state_is_not_lent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try of a test gets no state that its first try built."""
    discarded = []
    monkeypatch.setattr(StateCache, "lease", lambda *_, **__: Lease.__new__(Lease))
    monkeypatch.setattr(StateCache, "discard", lambda _, lease, *__: discarded.append(lease))
    monkeypatch.setattr(Lease, "close", lambda _: None)
    monkeypatch.setattr(Lab, "state_inputs", lambda *_: {})
    with Lab("micro", evidence=tmp_path) as lab:
        first = lab.state(waited_for)
        lab.discard([Point(lab.image, waited_for)], "its test failed")
        assert lab.state(waited_for) is not first
    assert discarded == [first]
