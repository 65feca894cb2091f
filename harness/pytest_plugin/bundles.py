"""A bundle for each failed test: its evidence, and its machines as they were when it failed.

The machines are saved when the report of the failure is made: fixtures still hold them. The file is
written when the test has ended, since its evidence is complete then. Neither can change the verdict.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.pytest_plugin import known, secrets, seeds, tries
from harness.pytest_plugin import session as sessions

if TYPE_CHECKING:
    from harness.bundles.pack import Moments
    from harness.evidence.bundle import Host, Manifest, Test
    from harness.lab import Lab
    from harness.machine import Machine

MODES: Final = ("auto", "machine", "evidence", "none")

BUDGET: Final = 10 * 1024**3
"""Bytes that the bundles of all runs may take."""

SIGNATURES: Final = 3
"""Of how many different failures a run saves the machines."""

_KNOWN: Final = "known"

_CLAIMS: Final = ".bundles"
"""In the run's folder: the signatures whose machines are saved, a line each."""

_REPEATED: Final = {
    "accel": "--accel",
    "services": "--services",
    "timeout_scale": "--timeout-scale",
    "cuts": "--cuts",
    "cut": "--cut",
    "cut_seed": "--cut-seed",
    "recording": "--recording",
}
"""Options that a repetition gets if they were given."""


@dataclass
class Pending:
    """The bundle of a try that has failed.

    Attributes:
        test: What the manifest says of the test.
        moments: The machines at the moment of its failure.
        folder: The folder of their files.
        path: The file that is to be written.
    """

    test: Test
    moments: Moments
    folder: Path
    path: Path


PENDING: Final = pytest.StashKey[Pending]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of bundles."""
    group = parser.getgroup("harness")
    group.addoption(
        "--bundle",
        default="auto",
        choices=MODES,
        help="what the bundle of a failed test carries: its evidence and its machines (auto; machine"
        " also where a secret has entered one, and with --untrusted), its evidence alone, or none"
        " (default: %(default)s)",
    )
    group.addoption(
        "--bundle-limit",
        default=None,
        metavar="SIZE",
        help="the bytes that a bundle may have before its machines are left out (default: 1GiB)",
    )
    group.addoption(
        "--bundle-budget",
        default=None,
        metavar="SIZE",
        help="the bytes that the bundles of all runs in the folder of evidence may take; at the end of a"
        " run the oldest of earlier runs go (default: 10GiB)",
    )
    group.addoption(
        "--untrusted",
        action="store_true",
        help="the run judges what a stranger has changed: bundles carry no machines, since RAM and disks"
        " cannot be redacted",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse limits that are no sizes."""
    for name in ("limit", "budget"):
        value = getattr(config.option, f"bundle_{name}")
        if value is not None:
            from harness.errors import UsageError
            from harness.spec import parse_size

            try:
                parse_size(value)
            except UsageError as error:
                raise pytest.UsageError(f"--bundle-{name}: {error}") from error


# --- one test ---------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Save the machines of a test that has just failed; write its bundle when it has ended.

    Their journals are read, too, whether there is a bundle or not.
    """
    report: pytest.TestReport = yield  # type: ignore[assignment]
    config = item.config
    if tries.TRIES not in item.stash:
        return report  # type: ignore[return-value]
    # The failure of a test stays what it is, whatever goes wrong here.
    try:
        first = item.stash[tries.TRIES].current.failure is report
        before = item.stash.get(PENDING, None)
        # A known failure does not hide another one that follows.
        red = report.outcome == "failed" and before is not None and before.test.verdict == _KNOWN
        if first or red:
            if config.option.bundle != "none":
                _capture(item, report)
            if machines := _machines(item):
                from harness.bundles import journal

                journal.collect(machines)
        if call.when == "teardown" and PENDING in item.stash:
            pending = item.stash[PENDING]
            del item.stash[PENDING]
            _write(item, pending)
    except Exception as error:
        report.sections.append(("Bundle", f"none could be made: {error!r}"))
    return report  # type: ignore[return-value]


def _capture(item: pytest.Item, report: pytest.TestReport) -> None:
    from harness.bundles.pack import Moments, salvage
    from harness.evidence.bundle import FILE, Withheld
    from harness.evidence.run import slug

    own = item.stash[tries.TRIES].current.folder
    home = own or _shared(item)
    if home is None or not home.is_dir():
        return  # no machine, and nothing else of Harness, has been used
    folder = home / "bundle"
    # Other tests may share the folder of their module.
    path = home / (FILE if own is not None else f"{slug(item.nodeid)}.{FILE}")
    test = _test(item, report)
    pending = item.stash[PENDING] = Pending(test, Moments(), folder, path)
    machines = _machines(item)
    if not machines:
        return
    lab = _lab(item)
    why = _refusal(item, report, machines, home) or _claim(sessions.of(item.config).run.path, test)
    if why:
        pending.moments.withheld.append(Withheld("machines", why))
        return
    # Below "disks": the next run removes it, should this one be killed.
    place = folder / "disks"
    free = shutil.disk_usage(home).free
    pending.moments = salvage(machines, place, inside=lab.store.root / "entries", most=free // 2)


def _shared(item: pytest.Item) -> Path | None:
    session = sessions.of(item.config)
    used = "shared_lab" in getattr(item, "fixturenames", ())
    return session.shared.get(session.sharing(item)) if used else None


def _labs(item: pytest.Item) -> list[Lab]:
    values = getattr(item, "funcargs", None) or {}
    return [values[name] for name in ("shared_lab", "lab") if name in values]


def _lab(item: pytest.Item) -> Lab:
    session = sessions.of(item.config)
    return session.lab_on(session.arch_of(item))


def _machines(item: pytest.Item) -> list[Machine[Any]]:
    return [machine for lab in _labs(item) for machine in lab.machines]


def _refusal(
    item: pytest.Item, report: pytest.TestReport, machines: list[Machine[Any]], home: Path
) -> str:
    """Return why the machines of a test are not saved; empty if they are."""
    from harness.spec import format_size

    option = item.config.option
    if option.bundle == "evidence":
        return "--bundle=evidence"
    if option.untrusted and option.bundle != "machine":
        return "the run judges what a stranger has changed (--untrusted)"
    if known.is_excused(report) and option.bundle != "machine":
        # It has an issue, and a person who cares for it; the machines are those of news.
        return f"the failure is known ({getattr(report, known.ATTRIBUTE)['entry']})"
    # At worst, no page is zero, and the bundle lies beside its parts.
    needed = 2 * sum(machine.spec.memory for machine in machines if machine.running)
    free = shutil.disk_usage(home).free
    if free < needed:
        return f"they may need {format_size(needed)} of disk, and {format_size(free)} are free"
    return ""


def _claim(run: Path, test: Test) -> str:
    """Claim the machines of a failure for this test; return why another bundle has them."""
    with (run / _CLAIMS).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        claims = dict(line.split(" ", 1) for line in file.read().splitlines())
        if test.signature in claims:
            return (
                f"{claims[test.signature]} failed in the same way before, and its bundle has them"
            )
        if len(claims) >= SIGNATURES:
            return f"the bundles of {SIGNATURES} other failures of the run have theirs"
        file.write(f"{test.signature} {test.id}\n")
    return ""


def _write(item: pytest.Item, pending: Pending) -> None:
    from harness.bundles.pack import LIMIT, Packing
    from harness.spec import parse_size

    option = item.config.option
    folder = pending.folder.parent
    evidence = {"": folder}
    if (shared := _shared(item)) is not None and shared.is_dir() and shared != folder:
        evidence["shared"] = shared
    packing = Packing(
        _draft(item, pending.test),
        _lab(item).store.root / "entries",
        secrets.of(item.config),
        keep_secrets=option.bundle == "machine",
    )
    most = LIMIT if option.bundle_limit is None else parse_size(option.bundle_limit)
    try:
        packing.write(pending.path, evidence, pending.moments, most=most)
    finally:
        shutil.rmtree(pending.folder, ignore_errors=True)


# --- what the manifest says -------------------------------------------------------------------


def _test(item: pytest.Item, report: pytest.TestReport) -> Test:
    from harness.evidence.bundle import Test
    from harness.evidence.signature import failed_step, signature

    session = sessions.of(item.config)
    clean = functools.partial(secrets.clean, item.config)
    place = item.stash[tries.TRIES].current.folder
    properties = dict(report.user_properties)
    verdict = str(properties.get("verdict", "test"))
    reason = tries.reason(report)
    arch = session.arch_of(item)
    digest = ""
    with contextlib.suppress(OSError):
        digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
    return Test(
        id=item.nodeid,
        arch=arch,
        verdict=verdict,
        reason=reason,
        signature=str(properties.get("signature") or "")
        or signature(item.nodeid, verdict, reason, step=failed_step(place, reason, clean)),
        phase=str(report.when),
        file=item.nodeid.partition("::")[0],
        sha256=digest,
        arguments=tuple(_arguments(item, arch)),
        seeds=_seeds(item),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _arguments(item: pytest.Item, arch: str) -> Iterator[str]:
    config = item.config
    session = sessions.of(config)
    yield session.plain_id(item.nodeid, arch)
    if arch:
        with contextlib.suppress(Exception):
            image = session.lab_on(arch).image
            yield f"--image={image.name}/{image.variant}:{image.version}"
        yield f"--arch={arch}"
    if (seed := _fault_seed(item)) is not None:
        yield f"--seed={seed}"
    for folder in config.option.images:
        yield f"--images={folder}"
    for name, option in _REPEATED.items():
        value = getattr(config.option, name, None)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each not in ("auto", 1.0):
                yield f"{option}={each}"


def _fault_seed(item: pytest.Item) -> object:
    """Return the seed of clients and faults that a test was run with; ``None`` if it has the default."""
    return getattr(getattr(item, "callspec", None), "params", {}).get(seeds.FIXTURE)


def _seeds(item: pytest.Item) -> dict[str, str]:
    """Return the values of all options that are seeds, those of other plugins included."""
    values = {
        name: str(value)
        for name, value in sorted(vars(item.config.option).items())
        if name.endswith("seed") and isinstance(value, (int, str)) and value != ""
    }
    if (seed := _fault_seed(item)) is not None:
        values[seeds.FIXTURE] = str(seed)
    return values


def _draft(item: pytest.Item, test: Test) -> Manifest:
    import importlib.metadata

    from harness.artifacts import digest_inputs
    from harness.errors import HarnessError
    from harness.evidence.bundle import Manifest

    lab = _lab(item)
    versions = {"python": platform.python_version(), "pytest": pytest.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["harness"] = importlib.metadata.version("harness-os")
    image = inputs = ""
    with contextlib.suppress(HarnessError):
        chosen = lab.image
        image = f"{chosen.name}/{chosen.variant}:{chosen.version}"
        inputs = digest_inputs(chosen)
    return Manifest(test, image, inputs, versions, _host(lab, test.arch))


def _host(lab: Lab, arch: str) -> Host:
    from harness.errors import HarnessError
    from harness.evidence.bundle import Host
    from harness.host.cpu import vendor
    from harness.qemu import binary

    accel: dict[str, str] = {}
    qemu: dict[str, str] = {}
    with contextlib.suppress(HarnessError):
        if arch:
            qemu[arch] = binary.find(arch).version
            accel[arch] = lab.accelerator(arch).name
    return Host(accel, vendor(), qemu)


# --- the summary ------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the lines that repeat a failure and resume its machines, ready to paste."""
    session = sessions.of(config)
    if not session.engaged or not session.run.used:
        return
    from harness.errors import HarnessError
    from harness.evidence.bundle import FILE, Bundle

    _trim(terminalreporter, config)
    paths = sorted(session.run.path.glob(f"**/*{FILE}"))
    if paths:
        terminalreporter.section("bundles")
    for path in paths:
        try:
            with Bundle(path) as bundle:
                manifest = bundle.manifest
        except HarnessError as error:
            terminalreporter.write_line(str(error))
            continue
        terminalreporter.write_line(f"{manifest.test.id}")
        terminalreporter.write_line(f"         harness repro {quote(str(path))}")
        if manifest.machines:
            terminalreporter.write_line(f"         harness resurrect {quote(str(path))}")
        for withheld in manifest.withheld:
            terminalreporter.write_line(f"         without {withheld.what}: {withheld.why}")


def _trim(terminal: Any, config: pytest.Config) -> None:
    """Keep the bundles of all runs within their budget, and say so where it takes effect."""
    from harness.evidence.run import trim
    from harness.spec import format_size, parse_size

    run = sessions.of(config).run.path
    budget = config.option.bundle_budget
    most = BUDGET if budget is None else parse_size(budget)
    count, freed = trim(run.parent, most, run)
    if count:
        bundles = "bundle" if count == 1 else "bundles"
        terminal.write_line(
            f"{count} {bundles} of earlier runs removed, the oldest first ({format_size(freed)}):"
            f" all may take {format_size(most)} (--bundle-budget)"
        )
