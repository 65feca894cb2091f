"""Which scenarios run, and by how many workers: capabilities, tiers, ``-n auto``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.pytest_plugin import session as sessions
from harness.pytest_plugin import tiers


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Iterator[None]:
    """Make ``-n auto`` mean as many workers as this host carries machines."""
    count: int = yield  # type: ignore[assignment]
    if not sessions.of(config).engaged:
        return count  # type: ignore[return-value]
    from harness.host.admission import workers
    from harness.host.capacity import capacity

    return min(count, workers(capacity()))  # type: ignore[return-value]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which image is tested, and where the evidence goes."""
    session = sessions.of(config)
    if not session.engaged:
        return []
    from harness.errors import HarnessError

    try:
        image = session.lab.reference
    except HarnessError:
        image = "none"  # a test that needs one says why
    if session.several:
        image += f" on {' and '.join(session.arches)}"
    return [f"harness: image {image}, evidence in {session.run.path}"]


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of an image once for each architecture, in a run of several.

    The architecture is the last parameter: ``test_x[panic-aarch64]``.
    """
    session = sessions.of(metafunc.config)
    if session.several and sessions.ARCH in metafunc.fixturenames:
        metafunc.parametrize(sessions.ARCH, session.arches, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out the scenarios of larger tiers; skip those that the image is not made for.

    A skip names the file that would declare the architecture, or the capability.

    Raises:
        pytest.UsageError: An ``image.yaml`` or a mark is wrong; a scenario needs something that is not a
            capability; or the image's profile lacks words that go with a capability.
    """
    try:
        _select(config, items)
    except pytest.UsageError as error:
        if hasattr(config, "workerinput"):
            # pytest-xdist drops the error of a worker's collection, but shows this reason.
            session.shouldstop = str(error)
        raise


def _select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select in place; raises as :func:`pytest_collection_modifyitems`."""
    if sessions.of(config).engaged:
        tiers.leave_out(config, items)
    session = sessions.of(config)
    if any(sessions.ARCH in getattr(item, "fixturenames", ()) for item in items):
        _check_catalog(session)
    for item in items:
        if session.several and (arch := session.arch_of(item)) not in ("", *session.present):
            image = session.lab.image
            reason = f"image {image.name} has no arch {arch}: describe it in {image.path}"
            item.add_marker(pytest.mark.skip(reason=reason))
            continue
        if needed := tiers.needs(item):
            _check(session, item, needed)


def _check_catalog(session: sessions.Session) -> None:
    """Refuse a wrong ``image.yaml`` once, instead of in each test.

    Raises:
        pytest.UsageError: As :func:`pytest_collection_modifyitems`.
    """
    from harness.errors import CatalogError

    try:
        _ = session.lab.catalog
    except CatalogError as error:
        raise pytest.UsageError(str(error)) from error


def _check(session: sessions.Session, item: pytest.Item, needed: list[str]) -> None:
    """Skip an item whose capabilities the image lacks.

    Raises:
        pytest.UsageError: As :func:`pytest_collection_modifyitems`.
    """
    from harness import profiles
    from harness.catalog import CAPABILITIES, is_capability
    from harness.errors import HarnessError

    for name in needed:
        if not is_capability(name):
            raise pytest.UsageError(
                f"{item.nodeid} needs {name!r}, which is not a capability"
                f" (choose {', '.join(CAPABILITIES)}; a capability of your own begins with x-)"
            )
    try:
        image = session.lab_on(session.arch_of(item)).image
        profile = profiles.of(image)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    if absent := [name for name in needed if name not in image.capabilities]:
        reason = f"image {image.name} does not declare {', '.join(absent)} in {image.path}"
        item.add_marker(pytest.mark.skip(reason=reason))
    elif words := profiles.lacking(profile, needed):
        raise pytest.UsageError(
            f"image {image.name} declares {', '.join(needed)}, but its profile {image.profile} lacks"
            f" {', '.join(words)}\n"
            f"  try: add them, see docs/how-to/profiles.md; or take the capability out of {image.path}"
        )
