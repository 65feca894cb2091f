"""How the machines of a fork begin to run at the same moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Together:
    """Where machines that have been loaded wait for each other, and then begin to run.

    Args:
        count: The number of machines.
        begun: Called once, by one of them, when all run.
    """

    def __init__(self, count: int, begun: Callable[[], object]) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Wait until all are loaded; the block lets one run; its end waits until all run."""
        raise NotImplementedError
        yield

    @property
    def now(self) -> float:
        """The time, in seconds of the epoch, that the clocks of all get."""
        raise NotImplementedError
