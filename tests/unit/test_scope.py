"""Failure scopes: which waits a failure ends, and which failure each of them raises."""

from __future__ import annotations

import itertools
import os
import select
import threading
from collections.abc import Callable

import pytest

from harness.errors import GuestStoppedError, HarnessError, PanicError, QemuExitedError
from harness.scope import Scope

PANIC = PanicError("machine b: the kernel panicked")
EXIT = QemuExitedError("QEMU of machine a ended")
STOP = GuestStoppedError("machine a was stopped")


class Leaf:
    """A part of a machine; it keeps the errors that end its waits."""

    def __init__(self, scope: Scope) -> None:
        self.errors: list[HarnessError] = []
        self.scope = scope
        scope.add(self)

    def fail(self, error: HarnessError) -> None:
        self.errors.append(error)


class Tree:
    """A test with two machines, below a run with another test."""

    def __init__(self) -> None:
        self.run = Scope("run")
        self.test = self.run.child("test", boundary=True)
        self.cluster = self.test.child("cluster")
        self.a, self.b = self.cluster.child("machine a"), self.cluster.child("machine b")
        self.other_test = self.run.child("other test", boundary=True)
        self.service, self.on_a, self.on_b = Leaf(self.test), Leaf(self.a), Leaf(self.b)
        self.elsewhere = Leaf(self.other_test.child("machine c"))

    def errors(self) -> list[list[HarnessError]]:
        leaves = (self.service, self.on_a, self.on_b, self.elsewhere)
        return [leaf.errors for leaf in leaves]


def test_a_failure_ends_every_wait_of_the_test_and_no_other() -> None:
    tree = Tree()
    tree.b.fail(PANIC)
    assert tree.errors() == [[PANIC], [PANIC], [PANIC], []]
    assert tree.test.failure is tree.cluster.failure is tree.a.failure is PANIC
    assert tree.run.failure is tree.other_test.failure is None
    with pytest.raises(PanicError) as caught:
        tree.a.check()
    assert caught.value is PANIC


def test_the_first_failure_stays() -> None:
    tree = Tree()
    tree.b.fail(PANIC)
    tree.a.fail(EXIT)
    assert tree.errors() == [[PANIC], [PANIC], [PANIC], []]
    assert tree.test.failure is tree.a.failure is PANIC


def test_an_intended_end_ends_the_waits_on_one_machine() -> None:
    tree = Tree()
    tree.a.end(STOP)
    assert tree.errors() == [[], [STOP], [], []]
    tree.a.fail(EXIT)  # the console's last words
    assert tree.errors() == [[], [STOP], [], []]
    tree.b.fail(PANIC)
    assert tree.errors() == [[PANIC], [STOP], [PANIC], []]
    assert tree.a.failure is STOP
    assert tree.test.failure is PANIC


def test_a_closed_scope_has_left_the_tree() -> None:
    tree = Tree()
    tree.a.close()
    tree.a.close()
    tree.b.fail(PANIC)
    assert tree.errors() == [[PANIC], [], [PANIC], []]
    beside = Tree()
    beside.a.close()
    beside.a.fail(EXIT)
    assert beside.errors() == [[], [], [], []]
    assert beside.test.failure is None


def test_a_failure_stops_at_a_closed_scope_above_it() -> None:
    tree = Tree()
    tree.cluster.close()
    tree.a.fail(EXIT)
    assert tree.errors() == [[], [EXIT], [EXIT], []]
    assert tree.test.failure is None


def test_a_leaf_or_a_machine_that_comes_after_the_failure_fails_at_once() -> None:
    tree = Tree()
    tree.b.fail(PANIC)
    assert Leaf(tree.a).errors == [PANIC]
    assert Leaf(tree.test.child("machine d")).errors == [PANIC]
    # A boundary begins anew: the tests of a module may start after its shared machine failed.
    assert Leaf(tree.test.child("nested", boundary=True)).errors == []


def test_a_failure_above_a_boundary_ends_the_waits_below_it() -> None:
    tree = Tree()
    tree.run.fail(EXIT)
    assert tree.errors() == [[EXIT], [EXIT], [EXIT], [EXIT]]


def test_a_removed_leaf_is_left_alone() -> None:
    tree = Tree()
    tree.a.remove(tree.on_a)
    tree.a.remove(tree.on_a)
    tree.b.fail(PANIC)
    assert tree.errors() == [[PANIC], [], [PANIC], []]


def test_a_long_lived_parent_keeps_no_child_that_was_closed() -> None:
    run = Scope("run")
    for number in range(10):
        with run.child(f"test {number}", boundary=True) as test, test.child("machine") as machine:
            Leaf(machine)
    assert run._children == []
    with run.child("test", boundary=True) as test:
        pass
    # A machine that starts too late is not kept either.
    test.child("machine")
    assert test._children == []


def test_a_leaf_that_breaks_does_not_spare_the_others() -> None:
    tree = Tree()

    class Broken(Leaf):
        def fail(self, error: HarnessError) -> None:
            raise RuntimeError("broken")

    Broken(tree.test)
    last = Leaf(tree.test)
    with pytest.raises(RuntimeError, match="broken"):
        tree.b.fail(PANIC)
    assert last.errors == tree.on_a.errors == [PANIC]


def test_a_leaf_may_call_its_scope() -> None:
    """A console that ends reports its end to the scope that has just ended it."""
    tree = Tree()

    class Reporting(Leaf):
        def fail(self, error: HarnessError) -> None:
            self.scope.fail(EXIT)
            self.scope.remove(self)
            super().fail(error)

    leaf = Reporting(tree.a)
    thread = threading.Thread(target=tree.b.fail, args=[PANIC], daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert leaf.errors == [PANIC]


def test_an_alarm_hangs_up_when_its_scope_fails() -> None:
    tree = Tree()
    waiter = select.poll()
    with tree.a.alarm() as early:
        waiter.register(early, 0)
        assert waiter.poll(0) == []
        threading.Timer(0.05, tree.b.fail, [PANIC]).start()
        assert waiter.poll(20_000) == [(early, select.POLLHUP)]
        waiter.unregister(early)
    with tree.a.alarm() as late:
        waiter.register(late, 0)
        assert waiter.poll(0) == [(late, select.POLLHUP)]
    assert tree.a._leaves == [tree.on_a]
    for descriptor in (early, late):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_threads_that_fail_at_once_agree_on_the_first() -> None:
    for _ in range(200):
        tree = Tree()
        begin = threading.Barrier(4)
        errors = [PanicError(str(number)) for number in range(2)]
        late: list[Leaf] = []

        def run(call: Callable[[], object], begin: threading.Barrier = begin) -> None:
            begin.wait()
            call()

        def join(tree: Tree = tree, late: list[Leaf] = late) -> None:
            late.append(Leaf(tree.cluster.child("machine e")))

        calls: list[Callable[[], object]] = [
            lambda tree=tree, errors=errors: tree.a.fail(errors[0]),  # type: ignore[misc]
            lambda tree=tree, errors=errors: tree.b.fail(errors[1]),  # type: ignore[misc]
            join,
        ]
        threads = [threading.Thread(target=run, args=[call]) for call in calls]
        for thread in threads:
            thread.start()
        begin.wait()
        for thread in threads:
            thread.join()
        first = tree.test.failure
        seen = list(itertools.chain(tree.on_a.errors, tree.on_b.errors, *(x.errors for x in late)))
        assert first in errors
        assert set(map(id, seen)) == {id(first)}
        assert len(seen) >= 3
