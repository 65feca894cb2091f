"""What a run would collect, as JSON, for the plan of a gate: ``--collect-only --collect-json FILE``.

::

    {"format": 1, "root": "/home/me/kite", "left_out": {"nightly": 12},
     "tests": [{"id": "suites/boot/test_live.py::test_no_unit_has_failed",
                "file": "suites/boot/test_live.py", "tier": "gate", "other_arch": "gate", "cost": 5.0,
                "uses": {"live": 25.0}, "needs": ["systemd"], "image": true, "together": ""}],
     "files": {"suites/boot/test_live.py": ["conftest.py", "suites/conftest.py"]}}

``together`` is the same for tests that share a machine, and empty for the others. ``files`` has what the
file of a test depends on; :mod:`harness.gate.trace` says what it sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.pytest_plugin import ordering, tiers
from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.gate.trace import Tracer

FORMAT: Final = 1

_tracers: Final[list[Tracer]] = []
"""The tracer; it begins before there is a place of pytest's to keep it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("harness: jobs of a plan")
    group.addoption(
        "--collect-json",
        default=None,
        metavar="FILE",
        help="with --collect-only: write what was collected, for harness plan",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin to trace, before the first conftest.py is imported."""
    if early_config.known_args_namespace.collect_json is not None:
        from harness.gate.trace import Tracer

        tracer = Tracer(early_config.rootpath)
        tracer.start()
        _tracers.append(tracer)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the option in a run that runs tests."""
    option = config.option
    if option.collect_json is not None and not option.collectonly:
        raise pytest.UsageError("--collect-json goes with --collect-only: nothing runs")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the file."""
    config = session.config
    if (name := config.option.collect_json) is None:
        return
    from harness import jsonfile
    from harness.gate import trace

    edges: dict[str, set[str]] = {}
    while _tracers:
        tracer = _tracers.pop()
        tracer.stop()
        edges.update(tracer.edges)
    tests = [_test(item) for item in session.items]
    files = dict.fromkeys(test["file"] for test in tests)
    content = {
        "format": FORMAT,
        "root": str(config.rootpath),
        "left_out": tiers.left_out(config),
        "tests": tests,
        "files": trace.closure(config.rootpath, files, edges, trace.search_path(config.rootpath)),
    }
    jsonfile.write(config.invocation_params.dir / Path(name), content)


def _test(item: pytest.Item) -> dict[str, Any]:
    session = sessions.of(item.config)
    tier = tiers.tier_of(item)
    return {
        "id": item.nodeid,
        "file": item.nodeid.partition("::")[0],
        "tier": tier.name,
        "other_arch": tier.on(True),
        "cost": tier.cost,
        "uses": dict(ordering.shared_costs(item)),
        "needs": tiers.needs(item),
        "image": sessions.ARCH in getattr(item, "fixturenames", ()),
        "together": session.sharing(item) if ordering.is_shared(item) else "",
    }
