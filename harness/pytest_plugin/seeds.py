"""Seeds: a scenario whose clients and faults go by a seed runs once for each.

::

    def test_it(cluster, fault_seed):
        with cluster.history(seed=fault_seed) as clients: ...

``--seeds 50`` runs it with the seeds 1 to 50, ``--seed 7`` with the seed 7 alone: what a nightly run
found is repeated.
"""

from __future__ import annotations

from typing import Final

import pytest

FIXTURE: Final = "fault_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of seeds."""
    group = parser.getgroup("harness: seeds")
    group.addoption(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="run each scenario that takes fault_seed with the seeds 1 to N (default: %(default)s)",
    )
    group.addoption(
        "--seed",
        type=int,
        action="append",
        default=[],
        metavar="S",
        help="run each scenario that takes fault_seed with this seed alone; can be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options."""
    if config.option.seeds < 1:
        raise pytest.UsageError(f"--seeds must be at least 1, not {config.option.seeds}")
    if config.option.seed and config.option.seeds > 1:
        raise pytest.UsageError("--seeds and --seed exclude each other\n  try: one of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test that takes a seed run with each."""
    option = metafunc.config.option
    seeds = option.seed or range(1, option.seeds + 1)
    if FIXTURE in metafunc.fixturenames and list(seeds) != [1]:
        metafunc.parametrize(FIXTURE, seeds, ids=[f"seed {seed}" for seed in seeds], indirect=True)


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of clients and faults: 1, or what ``--seeds`` and ``--seed`` say."""
    return getattr(request, "param", 1)
