"""A process for tests to kill: builds, discards and collects states that only look like machines."""

from __future__ import annotations

from pathlib import Path

from harness.states import StateCache
from tests.moments import serve
from tests.unit.test_states_cache import KEY, Builder


def churn(action: str, root: str) -> None:
    cache = StateCache(Path(root))
    build = Builder()
    if action == "build":
        cache.lease("new", {}, KEY, build).close()
    elif action == "discard":
        cache.discard(cache.lease("live", {}, KEY, build))
        cache.lease("live", {}, KEY, build).close()
    elif action == "collect":
        cache.gc(everything=True)


if __name__ == "__main__":
    serve(churn)
