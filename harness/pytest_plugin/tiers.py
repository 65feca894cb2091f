"""Tiers: how much of the suites a run takes, ``--tier smoke|gate|nightly``.

A scenario says in which tier it runs first, what it costs, and what it alone would catch::

    @pytest.mark.tier("nightly", cost=150, catches="a menu that lost the old version's entry")
    def test_rollback_by_the_boot_menu(machine): ...

Each tier includes those before it: ``smoke`` is one scenario of each suite, ``gate`` judges a change,
``nightly`` is everything. A test without a mark is of ``gate``. The mark of a parameter replaces that
of its test.

In a run of several architectures (``--arch all``) a scenario may be of a larger tier on all but the
first: ``tier("smoke", other_arches="gate")`` is what only the first needs in a smoke run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from harness.pytest_plugin import session as sessions

TIERS: Final = ("smoke", "gate", "nightly")
"""The tiers, from the smallest to the one that has all tests."""

DEFAULT: Final = "gate"
"""The tier of a run without ``--tier``, and of a test without a mark."""

MARKER: Final = (
    "tier(name, *, cost=None, catches='', uses=(), other_arches=''): the smallest tier that runs the"
    " test (smoke, gate, nightly); its seconds on the reference host, what it alone would catch, the"
    " states and builds that it shares with other tests, its tier on further architectures of a run"
)

_LEFT_OUT: Final = pytest.StashKey[dict[str, int]]()
_REPORT: Final = "harness_left_out"
"""The key under which a worker of pytest-xdist reports what it left out."""


@dataclass(frozen=True, slots=True)
class Tier:
    """What the mark of a test says.

    Attributes:
        name: The smallest tier that runs the test.
        cost: Its seconds on the reference host (two cores, no KVM), beside another test, with all
            that it :attr:`uses` there already; ``None`` if the mark does not say.
        catches: The fault that no other test would find.
        uses: What the test shares with others and the first of them makes: a state by its name; a
            version by its role, such as ``new``.
        other_arches: The smallest tier that runs the test on the architectures of a run after the first
            that the image has; empty for :attr:`name`.
    """

    name: str = DEFAULT
    cost: float | None = None
    catches: str = ""
    uses: Sequence[str] = ()
    other_arches: str = ""

    def __post_init__(self) -> None:
        for name in (self.name, self.other_arches or self.name):
            if name not in TIERS:
                raise ValueError(f"{name!r} is not a tier (choose {', '.join(TIERS)})")
        if TIERS.index(self.other_arches or self.name) < TIERS.index(self.name):
            raise ValueError(
                f"other_arches is {self.name} or a larger tier, not {self.other_arches!r}"
            )
        try:
            positive = self.cost is None or self.cost > 0
        except TypeError:
            positive = False
        if not positive:
            raise ValueError(f"cost is a positive number of seconds, not {self.cost!r}")
        if isinstance(self.uses, str):
            raise ValueError(f"uses is a sequence of names, not {self.uses!r}")

    def on(self, other_arch: bool) -> str:
        """Return the smallest tier that runs the test: on the first architecture, or on another one."""
        return (self.other_arches if other_arch else "") or self.name


def tier_of(item: pytest.Item) -> Tier:
    """Return what the mark of a test says.

    Raises:
        pytest.UsageError: The mark is malformed.
    """
    # pytest lists the marks of a parameter behind those of its function.
    own = [mark for mark in item.own_markers if mark.name == "tier"]
    mark = own[-1] if own else item.get_closest_marker("tier")
    if mark is None:
        return Tier()
    try:
        return Tier(*mark.args, **mark.kwargs)
    except (TypeError, ValueError) as error:
        # The message of a TypeError names the method that the mark stands for.
        reason = str(error).replace("Tier.__init__()", "tier()")
        raise pytest.UsageError(f"{item.nodeid}: wrong marker tier: {reason}") from error


def needs(item: pytest.Item) -> list[str]:
    """Return the capabilities that a test's marks ``needs`` name, each once."""
    return list(dict.fromkeys(name for mark in item.iter_markers("needs") for name in mark.args))


def chosen(config: pytest.Config) -> str:
    """Return the tier of a run."""
    return config.option.tier or DEFAULT


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tiers."""
    group = parser.getgroup("harness")
    group.addoption(
        "--tier",
        choices=TIERS,
        default=None,
        help="how much runs: smoke, one scenario of each suite; gate, what judges a change; nightly,"
        f" everything, and many crash points of each sweep (default: {DEFAULT})",
    )
    group.addoption(
        "--all",
        action="store_const",
        dest="tier",
        const=TIERS[-1],
        help=f"the same as --tier {TIERS[-1]}",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that a run's tier does not have, in place, and remember how many.

    Raises:
        pytest.UsageError: The mark of a test is malformed.
    """
    session = sessions.of(config)
    names = {item: tier_of(item).on(session.is_on_other_arch(item)) for item in items}
    most = TIERS.index(chosen(config))
    others = {item: name for item, name in names.items() if TIERS.index(name) > most}
    if others:
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]
        config.stash[_LEFT_OUT] = dict(Counter(others.values()))


def left_out(config: pytest.Config) -> dict[str, int]:
    """Return how many tests a run left out, by their tier."""
    counts: dict[str, int] = config.stash.get(_LEFT_OUT, {})
    return counts


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report to the controller of pytest-xdist, which collects no tests itself."""
    output: dict[str, Any] = getattr(session.config, "workeroutput", {})
    output[_REPORT] = session.config.stash.get(_LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the report of a worker of pytest-xdist; all of them left the same out."""
    if counts := getattr(node, "workeroutput", {}).get(_REPORT):
        node.config.stash[_LEFT_OUT] = counts


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests were left out, and how to run them."""
    if counts := config.stash.get(_LEFT_OUT, {}):
        terminalreporter.write_line(summary(chosen(config), counts))


def summary(tier: str, counts: dict[str, int]) -> str:
    """Return the line that says how many tests of other tiers a run left out."""
    others = [name for name in TIERS if name in counts]
    listed = " and ".join(f"{counts[name]} of tier {name}" for name in others)
    return f"tier {tier}: left out {listed}; --tier {others[-1]} runs them as well"
