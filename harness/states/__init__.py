"""States: machines saved at a named point, and forked from there.

:mod:`~harness.states.snapshot` describes a saved machine, :mod:`~harness.states.save` saves it,
:mod:`~harness.states.restore` resumes a fork from it, :mod:`~harness.states.group` does both with
several machines, :mod:`~harness.states.graph` finds the inputs of a
state, :mod:`~harness.states.cache` keeps states on the host.
``docs/how-to/states.md`` explains them to the author of a suite.
"""

from harness.states.cache import Lease, StateCache
from harness.states.graph import GroupState, State, state
from harness.states.group import Group, restore_group, save_group
from harness.states.snapshot import Snapshot

__all__ = [
    "Group",
    "GroupState",
    "Lease",
    "Snapshot",
    "State",
    "StateCache",
    "restore_group",
    "save_group",
    "state",
]
