"""How often a guest has restarted."""

from __future__ import annotations

import pytest

from harness.machine.power import count_restarts


@pytest.mark.parametrize(
    ("times", "restarts"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([5.0], 1, id="one"),
        pytest.param([5.0, 5.2], 1, id="SeaBIOS resets once more"),
        pytest.param([5.0, 5.2, 30.0, 30.1], 2, id="twice with SeaBIOS"),
        pytest.param([5.0, 7.0, 9.0], 3, id="a quick loop"),
        # Seen as one restart before: each reset came soon after another.
        pytest.param([float(at) / 2 for at in range(40)], 20, id="a loop of half a second"),
        pytest.param([at / 100 for at in range(40)], 20, id="a loop of 10 ms"),
    ],
)
def test_restarts_are_counted(times: list[float], restarts: int) -> None:
    assert count_restarts(times, len(times)) == restarts


def test_resets_before_a_mark_do_not_count() -> None:
    times = [5.0, 5.2, 30.0, 30.1, 50.0]
    assert count_restarts(times, 3) == 2
    assert count_restarts(times, 2) == 1  # The first of these two belongs to an older one.
    assert count_restarts(times, 0) == 0
