"""An artificial load: programs that compute for ever, as a busy runner has them beside a test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

_BURN: Final = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    sum(number * number for number in range(200_000))
"""
"""It ends with its parent, however that ends."""


@contextlib.contextmanager
def load(programs: int) -> Iterator[None]:
    """Run ``programs`` programs that compute, in the block."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-I", "-S", "-c"]
        for _ in range(programs):
            burner = stack.enter_context(
                subprocess.Popen([*command, _BURN, str(os.getpid())], stdout=subprocess.DEVNULL)
            )
            stack.callback(burner.kill)
        yield
