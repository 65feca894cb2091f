"""Clocks of calm seconds, for deadlines of tests."""

from __future__ import annotations

import time

from harness.deadline import Conditions


class Loaded:
    """The clock of a host under load: a calm second takes eight."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def calm(self) -> float:
        return (time.monotonic() - self.began) / 8

    def stretch(self) -> float:
        return 8.0

    def during(self, since: float) -> Conditions:
        return Conditions(8.0)
