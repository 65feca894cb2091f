"""How long a test takes: the median of the runs that passed, outliers clipped; else its mark's cost.

A host that was busy makes a test longer and never shorter, so the reference of a test is its low median.
What is over :data:`CLIP` times that, or below it by as much, counts as that bound; the median of what
results is the test's. Of runs that failed nothing counts: a failure may come early, or at a deadline.

A test that has no history costs what its :mod:`mark <harness.pytest_plugin.tiers>` says, on a host as
fast as history shows: the median ratio of measured seconds and marks, on the same image and
architecture; without any history, as fast as the architecture is emulated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness import arch as arches
from harness.errors import Verdict
from harness.evidence.results import plain_id

NEWEST: Final = 15
"""Passes of a test that count; older ones were of another suite, on other hosts."""

CLIP: Final = 2.0
"""How many times its reference a measured duration may be; the rest is clipped."""

Key = tuple[str, str, str]
"""The name of an image, the architecture, the plain node id."""


@dataclass(frozen=True)
class Timings:
    """The durations of tests in earlier runs.

    Attributes:
        samples: The seconds of each pass, the oldest first.
    """

    samples: Mapping[Key, Sequence[float]] = field(default_factory=dict)

    def measured(self, image: str, arch: str, test: str) -> float | None:
        """Return the seconds that a test took; ``None`` for one that has not passed yet.

        Args:
            image: The image's name.
            arch: The architecture.
            test: The node id in a run of this architecture alone.
        """
        # A test that uses no image has no architecture in the results.
        samples = self.samples.get((image, arch, test)) or self.samples.get((image, "", test))
        return typical(samples) if samples else None


def typical(samples: Sequence[float]) -> float:
    """Return the median of durations, outliers clipped."""
    reference = statistics.median_low(samples)
    clipped = [min(max(each, reference / CLIP), reference * CLIP) for each in samples]
    return statistics.median(clipped)


def timings(runs: Iterable[Mapping[str, Any]]) -> Timings:
    """Return the durations in the results of runs, which begin with the oldest.

    Args:
        runs: What their ``results.json`` files hold. What is not as it should be is left out: it costs
            a good estimate, and no test.
    """
    samples: dict[Key, list[float]] = {}
    for run in runs:
        image = run.get("image")
        name = str(image.get("name", "")) if isinstance(image, Mapping) else ""
        for test in run.get("tests", ()):
            seconds = test.get("seconds")
            if test.get("verdict") != Verdict.PASSED.value or not isinstance(seconds, Mapping):
                continue
            phases = [each for each in seconds.values() if isinstance(each, (int, float))]
            total = math.fsum(phases)
            if not (phases and 0 < total < math.inf):
                continue
            arch = str(test.get("arch", ""))
            key = (name, arch, plain_id(str(test.get("id", "")), arch))
            samples.setdefault(key, []).append(total)
    return Timings({key: values[-NEWEST:] for key, values in samples.items()})


def pace(timings: Timings, image: str, arch: str, marks: Mapping[str, float]) -> float:
    """Return how many times the seconds of its mark a test takes on an image and an architecture.

    Args:
        timings: History.
        image: The image's name.
        arch: The architecture.
        marks: The costs that marks name, by plain node id.
    """
    ratios = sorted(
        measured / cost
        for test, cost in marks.items()
        if (measured := timings.measured(image, arch, test)) is not None
    )
    if ratios:
        return statistics.median(ratios)
    reference = arches.of(arches.ARCHES[0]).emulation
    return arches.of(arch).emulation / reference
