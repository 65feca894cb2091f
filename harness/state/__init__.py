"""States: a machine saved at a named point, and forked from there.

:mod:`~harness.state.snapshot` is what is saved of a machine, :mod:`~harness.state.save` saves it,
:mod:`~harness.state.restore` lets a fork go on from it, :mod:`~harness.state.graph` says what a state
is made of, :mod:`~harness.state.cache` keeps states on the host. ``docs/states.md`` explains them to
someone who writes a suite.
"""

from harness.state.cache import Lease, StateCache
from harness.state.graph import State, state
from harness.state.snapshot import Snapshot

__all__ = ["Lease", "Snapshot", "State", "StateCache", "state"]
