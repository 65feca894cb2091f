"""Makes a plan: catalogue, suites, changes and history become jobs.

:func:`gather` asks the project: it loads the catalogue and ``gate.yaml``, asks git what has changed, and
has pytest collect each suite for each image. :func:`make` is pure and turns the answers into a plan.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from harness import paths, profiles
from harness.arch import ARCHES
from harness.catalog import Catalog, Image
from harness.catalog import load as load_catalog
from harness.cluster import providers
from harness.errors import UnknownNameError, UsageError
from harness.gate import changes, packing, rules, select
from harness.gate import plan as plans
from harness.gate.collection import Collection, Test, collect
from harness.gate.packing import Shard, Unit
from harness.gate.plan import MOST_JOBS, ImageRow, Job, Needs, Plan
from harness.gate.rules import TIERS, Gate, Suite
from harness.gate.select import Effect, Selection
from harness.gate.timings import Timings, pace
from harness.host.capacity import capacity
from harness.spec import MIB

ALL: Final = "all"
"""The value of ``--arch`` that means each architecture of an image."""

TARGET: Final = 600.0
"""Seconds that a job should take at most."""

MACHINES: Final = 2
"""Machines that a test without a cluster has at a time: its own, and one that makes a state."""

_SERVER: Final = 1024
"""MiB of memory of Python, pytest and servers for guests, beside the machines."""

_CLUSTER: Final = re.compile(r"cluster-([0-9]+)")
"""The state of a cluster; the number is that of its members."""

_CAPABILITY: Final = "cluster"

_LONGEST: Final = 360
"""Minutes of a job, at most: the limit of GitHub's own runners
(https://docs.github.com/en/actions/reference/limits)."""

_SHOWN: Final = 3
"""Reasons of a job or a row that are shown."""


@dataclass(frozen=True)
class Options:
    """What a plan is asked for.

    Attributes:
        images: References to images; empty for those of the suites.
        arch: An architecture, several with commas, or ``all``; empty for the first of each image.
        tier: The largest tier of the tests.
        since: A ref of git: only what has changed since; ``None`` for everything.
        max_jobs: How many jobs there may be.
        target: The seconds that a job should take at most.
        folders: Folders of images besides ``images/`` of the project and Harness' own.
    """

    images: tuple[str, ...] = ()
    arch: str = ""
    tier: str = "gate"
    since: str | None = None
    max_jobs: int = MOST_JOBS
    target: float = TARGET
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """An image that a plan may have.

    Attributes:
        reference: The image as ``--image`` takes it.
        image: Its definition.
        named: Whether the user asked for it by name.
    """

    reference: str
    image: Image
    named: bool = False


@dataclass(frozen=True)
class Project:
    """What a plan is made of.

    Attributes:
        root: The project's folder.
        gate: Its rules.
        candidates: The images, by name.
        collections: What was collected, by the folder of the suite and the reference of the image.
        changed: The paths that changed; ``None`` if no change selects.
        timings: History.
        commit: The commit of the project.
        dirty: Whether it has changes in no commit.
    """

    root: Path
    gate: Gate
    candidates: Sequence[Candidate]
    collections: Mapping[tuple[str, str], Collection]
    changed: tuple[str, ...] | None = None
    timings: Timings = field(default_factory=Timings)
    commit: str = ""
    dirty: bool = False


def gather(
    root: Path,
    options: Options,
    timings: Timings,
    say: Callable[[str], None] = lambda line: None,
) -> Project:
    """Ask a project for all that a plan is made of.

    Args:
        root: Its folder.
        options: What the plan is asked for.
        timings: History.
        say: Takes a line for people about what goes on.

    Raises:
        CatalogError: An ``image.yaml`` or ``gate.yaml`` is wrong; the message begins with ``file:line``.
        UsageError: An image or an architecture does not exist, git does not know the ref, or tests
            cannot be collected.
        HostError: git is missing, or pytest was killed.
    """
    asked_arches(options)
    own, catalog = _catalog(root, options.folders)
    home = paths.bundled("suites").parent
    gate = rules.load(root, catalog.names, home)
    chosen = candidates(options.images, own, catalog, gate)
    changed = None if options.since is None else changes.changed_since(root, options.since)
    direct = _directly_changed(root, gate, chosen, changed)
    wanted = [
        (suite, each)
        for suite in gate.in_use()
        for each in chosen
        if rules.names(each.image.name, suite.images)
        and not _is_of_larger_tier(gate, each, options.tier, each.image.name in direct)
    ]

    def collected(job: tuple[Suite, Candidate]) -> Collection:
        suite, each = job
        say(f"collecting {suite.folder} for {each.reference}")
        return collect(
            root,
            home,
            suite.folder,
            image=each.reference,
            tier=options.tier,
            folders=options.folders,
        )

    with ThreadPoolExecutor(max(1, int(capacity().cpus))) as pool:
        collections = list(pool.map(collected, wanted))
    return Project(
        root=root,
        gate=gate,
        candidates=chosen,
        collections={
            (suite.folder, each.reference): collection
            for (suite, each), collection in zip(wanted, collections, strict=True)
        },
        changed=changed,
        timings=timings,
        commit=plans.commit_of(root),
        dirty=changes.is_dirty(root),
    )


def _catalog(root: Path, folders: Sequence[Path]) -> tuple[Catalog, Catalog]:
    """Return the project's own images, and these with Harness' own, which give way to equal names."""
    known = {"known_profiles": profiles.names(), "known_providers": providers.names()}
    mine = [each for each in (root / "images",) if each.is_dir()]
    own = load_catalog(*mine, *(root / folder for folder in folders), **known)
    bundled = paths.bundled("images")
    if not bundled.is_dir() or bundled in mine:
        return own, own
    others = load_catalog(bundled, **known)
    further = [others.get(name) for name in others.names if name not in own.names]
    return own, Catalog([*(own.get(name) for name in own.names), *further])


def candidates(
    references: Iterable[str], own: Catalog, catalog: Catalog, gate: Gate
) -> list[Candidate]:
    """Return the images that a plan may have.

    Args:
        references: Those that the user names; without any, all of the project and those of its suites.
        own: The project's images.
        catalog: These, and Harness' own.
        gate: The project's rules.

    Raises:
        UsageError, UnknownNameError: There is no such image.
    """
    named = list(dict.fromkeys(references))
    if named:
        return [Candidate(each, catalog.resolve(each).definition, named=True) for each in named]
    exact = {name for suite in gate.in_use() for name in suite.images if name in catalog.names}
    return [Candidate(name, catalog.get(name)) for name in sorted({*own.names, *exact})]


def asked_arches(options: Options) -> list[str]:
    """Return the architectures that a plan is asked for; empty for the first of each image.

    Raises:
        UnknownNameError: There is no such architecture.
    """
    asked = [each for each in options.arch.split(",") if each]
    for arch in asked:
        if arch not in (*ARCHES, ALL):
            raise UnknownNameError("arch", arch, (*ARCHES, ALL))
    return asked


def _directly_changed(
    root: Path, gate: Gate, chosen: Sequence[Candidate], changed: tuple[str, ...] | None
) -> set[str]:
    """Return the names of images that have changed themselves; no test is needed to know them."""
    images = [each.image for each in chosen]
    selection = select.Selector(root, gate, images, {}, {}).select(changed or ())
    return {image.name for image in images if selection.is_direct(image.name)}


def _is_of_larger_tier(gate: Gate, candidate: Candidate, tier: str, direct: bool) -> bool:
    """Return whether a plan of a tier leaves an image out that nobody asked for."""
    own = gate.settings(candidate.image.name).tier
    return not (candidate.named or direct) and TIERS.index(own) > TIERS.index(tier)


# --- pure -------------------------------------------------------------------------------------


@dataclass
class _Row:
    """An image on an architecture, while a plan is made."""

    candidate: Candidate
    arch: str
    out: str = ""
    first: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    units: dict[str, list[Unit]] = field(default_factory=dict)
    effects: dict[str, tuple[Effect, ...]] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    known: dict[tuple[str, ...], tuple[Effect, ...]] = field(default_factory=dict)

    @property
    def tests(self) -> int:
        return len(self.effects)

    def effects_on(
        self, selection: Selection, suite: str, file: str, tier: str
    ) -> tuple[Effect, ...]:
        """Return the effects that take a test; the tests of a file share them."""
        key = (suite, file, tier)
        if key not in self.known:
            name = self.candidate.image.name
            self.known[key] = tuple(selection.of(name, suite, file, tier))
        return self.known[key]


def make(project: Project, options: Options) -> Plan:
    """Return the plan of a project.

    Raises:
        UsageError: There are more images on architectures than there may be jobs; or the architecture
            does not exist.
    """
    selection = selection_of(project)
    rows = _rows(project, options)
    for row in rows:
        if not row.out:
            _fill(row, project, options, selection)
    parts = {
        (place, suite): units
        for place, row in enumerate(rows)
        for suite, units in row.units.items()
    }
    most = min(options.max_jobs, MOST_JOBS)
    try:
        packed = packing.fit(parts, options.target, most)
    except ValueError as error:
        raise UsageError(
            f"there are {len([units for units in parts.values() if units])} suites on images and"
            f" architectures, and {most} jobs at most",
            hint="name fewer images by --image or fewer architectures by --arch",
        ) from error
    jobs = []
    also = {suite.folder: suite.also for suite in project.gate.in_use()}
    for place, row in enumerate(rows):
        shards = [
            (shard, also[suite])
            for (owner, suite), part in packed.items()
            if owner == place
            for shard in part
        ]
        jobs += [
            _job(project.gate, row, options.tier, shard, arches, number, len(shards))
            for number, (shard, arches) in enumerate(shards, 1)
        ]
    plan = Plan(
        id="",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        harness=version("harness-os"),
        commit=project.commit,
        dirty=project.dirty,
        since=options.since,
        changed=project.changed or (),
        tier=options.tier,
        empty="" if jobs else _why_empty(project, options, selection, rows),
        images=tuple(_summary(row, options.tier) for row in rows),
        jobs=tuple(jobs),
    )
    return dataclasses.replace(plan, id=plans.digest(plan))


def selection_of(project: Project) -> Selection:
    """Return what the changes of a project select."""
    if project.changed is None:
        return select.everything()
    tests: dict[str, set[str]] = {suite.folder: set() for suite in project.gate.in_use()}
    uses: dict[str, set[str]] = {}
    for (suite, _), collection in project.collections.items():
        for file, used in collection.files.items():
            tests[suite].add(file)
            uses.setdefault(file, set()).update(used)
    images = [each.image for each in project.candidates]
    return select.Selector(project.root, project.gate, images, tests, uses).select(project.changed)


def _rows(project: Project, options: Options) -> list[_Row]:
    asked = asked_arches(options)
    suites = project.gate.in_use()
    direct = _directly_changed(project.root, project.gate, project.candidates, project.changed)
    rows: list[_Row] = []
    for each in project.candidates:
        image = each.image
        has = tuple(image.arches)
        for arch in has if ALL in asked else dict.fromkeys(asked or has[:1]):
            row = _Row(each, arch)
            if arch not in has:
                row.out = f"it has no arch {arch}: describe it in images/{image.name}/image.yaml"
            elif unpinned := image.select(arch).unpinned:
                row.out = (
                    f"the digest of its artifact {unpinned[0]} is unknown: put that of the file you"
                    f" trust into images/{image.name}/image.yaml"
                )
            elif not any(rules.names(image.name, suite.images) for suite in suites):
                row.out = f"no suite of {rules.FILE} names it"
            elif _is_of_larger_tier(project.gate, each, options.tier, image.name in direct):
                tier = project.gate.settings(image.name).tier
                row.out = f"it is of tier {tier} in {rules.FILE}, and the plan of {options.tier}"
            row.first = not row.out and not any(
                other.first for other in rows if other.candidate is each
            )
            rows.append(row)
    return rows


def _fill(row: _Row, project: Project, options: Options, selection: Selection) -> None:
    """Give a row the units of each suite."""
    for suite in project.gate.in_use():
        collection = project.collections.get((suite.folder, row.candidate.reference))
        if collection is None or (suite.arches is not None and row.arch not in suite.arches):
            continue
        row.left_out["tier"] += sum(collection.left_out.values())
        chosen = [
            test
            for test in collection.tests
            if (test.image or row.first) and _takes(row, suite, test, options.tier, selection)
        ]
        row.units[suite.folder] = _units(row, suite, chosen, collection, project.timings)


def _takes(row: _Row, suite: Suite, test: Test, tier: str, selection: Selection) -> bool:
    """Return whether a plan has a test on a row, and note why."""
    image = row.candidate.image
    own = test.tier if row.first else test.other_arch
    if TIERS.index(own) > TIERS.index(tier):
        row.left_out["tier"] += 1
    elif not set(test.needs) <= set(image.capabilities):
        row.left_out["capability"] += 1
    elif not (effects := row.effects_on(selection, suite.folder, test.file, own)):
        row.left_out["change"] += 1
    else:
        row.effects[test.id] = effects
        members = [int(match[1]) for name in test.uses if (match := _CLUSTER.fullmatch(name))]
        if members or _CAPABILITY in test.needs:
            row.clusters[test.id] = max(members, default=3)
        return True
    return False


def _units(
    row: _Row, suite: Suite, tests: Sequence[Test], collection: Collection, timings: Timings
) -> list[Unit]:
    name = row.candidate.image.name
    marks = {test.id: test.cost for test in collection.tests if test.cost is not None}
    scale = pace(timings, name, row.arch, marks)
    groups: dict[str, list[Test]] = {}
    for test in tests:
        groups.setdefault(test.together or test.id, []).append(test)

    def seconds(test: Test) -> float:
        measured = timings.measured(name, row.arch, test.id)
        return measured if measured is not None else (test.cost or suite.cost) * scale

    return [
        Unit(
            tuple(test.id for test in group),
            math.fsum(map(seconds, group)),
            {use: cost * scale for test in group for use, cost in test.uses.items()},
        )
        for group in groups.values()
    ]


def _job(
    gate: Gate,
    row: _Row,
    tier: str,
    shard: Shard,
    also: tuple[str, ...],
    number: int,
    count: int,
) -> Job:
    image = row.candidate.image
    settings = gate.settings(image.name)
    hardware = image.machine
    machines = max([MACHINES, *(row.clusters.get(test, 0) + 1 for test in shard.tests)])
    memory = hardware.memory // MIB
    needs = Needs(
        memory=settings.memory or machines * memory + _SERVER,
        cpus=hardware.cpus,
        disk=settings.disk or max(4096, machines * (memory + (hardware.disk or 0) // MIB)),
        kvm=settings.kvm,
    )
    stem = re.sub(r"[^a-z0-9]+", "-", f"{row.candidate.reference}-{row.arch}".lower()).strip("-")
    return Job(
        id=f"{stem}-{number}",
        image=row.candidate.reference,
        arch=row.arch,
        tier=tier,
        shard=f"{number}/{count}",
        tests=tuple(sorted(shard.tests)),
        states=tuple(sorted(shard.states)),
        why=_reasons(row.effects[test] for test in shard.tests),
        needs=needs,
        seconds=round(shard.seconds, 1),
        timeout_minutes=min(_LONGEST, max(20, math.ceil(shard.seconds * 3 / 60 + 8))),
        labels=settings.labels,
        also=also,
    )


def _summary(row: _Row, tier: str) -> ImageRow:
    left_out = {name: count for name, count in sorted(row.left_out.items()) if count}
    why = row.out or _reasons(row.effects.values()) or _why_without_tests(left_out, tier)
    return ImageRow(row.candidate.reference, row.arch, bool(row.tests), why, row.tests, left_out)


def _why_without_tests(left_out: Mapping[str, int], tier: str) -> str:
    if left_out.get("change"):
        return "no changed file touches it"
    if count := left_out.get("capability"):
        return f"it does not declare the capabilities that its {count} tests of tier {tier} need"
    if count := left_out.get("tier"):
        return f"its {count} tests are all of a larger tier than {tier}"
    return "its suites have no test for it"


def _reasons(effects: Iterable[Iterable[Effect]]) -> str:
    """Return why tests are in, the commonest reasons first."""
    count = Counter(each.why for own in effects for each in own)
    return _listed([why for why, _ in count.most_common()], "; ")


def _listed(words: Sequence[str], between: str) -> str:
    shown = between.join(words[:_SHOWN])
    more = len(words) - _SHOWN
    return f"{shown}{between}and {more} more" if more > 0 else shown


def _why_empty(
    project: Project, options: Options, selection: Selection, rows: Sequence[_Row]
) -> str:
    if not rows:
        return "the project has no image: describe one in images/NAME/image.yaml"
    if options.since is not None and not project.changed:
        return f"nothing has changed since {options.since}"
    if project.changed and not selection.effects:
        reasons: dict[str, list[str]] = {}
        for path, why in (selection.nothing or {}).items():
            reasons.setdefault(why, []).append(path)
        reasons_by_file = [f"{why} ({_listed(files, ', ')})" for why, files in reasons.items()]
        return f"what changed since {options.since} selects nothing: {'; '.join(reasons_by_file)}"
    # First of the images that have changed themselves.
    ordered = sorted(rows, key=lambda row: not selection.is_direct(row.candidate.image.name))
    listed = [
        f"{row.candidate.reference} on {row.arch}: {_summary(row, options.tier).why}"
        for row in ordered
    ]
    return f"no test of tier {options.tier} is left: {_listed(listed, '; ')}"
