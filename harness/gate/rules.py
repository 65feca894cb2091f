"""``gate.yaml``: what a project's gate runs, and what a changed file selects.

::

    suites:
      - {folder: suites}
      - {folder: tests/integration, images: [micro], arches: [x86_64], cost: 5}
    images:
      skiff: {memory: 6GiB}
      "*": {tier: nightly}
    changes:
      - {paths: ["docs/**", "**/*.md"], selects: nothing, because: documentation}
      - {paths: ["harness/**"], targets: [{images: [micro]}, {tier: smoke}]}

The first rule whose paths match a changed file decides; behind the project's rules come :data:`OWN`. A
file that no rule matches selects everything. In a pattern ``*`` and ``?`` stop at a slash, and ``**``
does not. All keys are optional, and so is the file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from harness.arch import ARCHES
from harness.catalog import document
from harness.catalog.explain import explain
from harness.catalog.model import problem
from harness.errors import CatalogError, UnknownNameError, UsageError
from harness.spec import MIB, parse_size

FILE: Final = "gate.yaml"

TIERS: Final = ("smoke", "gate", "nightly")
"""The tiers, from the smallest; those of :mod:`harness.pytest_plugin.tiers`."""

LABEL: Final = "harness"
"""The label of a runner that takes the jobs of an image whose ``labels`` the file does not name."""

Tier = Literal["smoke", "gate", "nightly"]


def _arch(name: str) -> str:
    if name not in ARCHES:
        error = UnknownNameError("arch", name, ARCHES)
        raise problem(f"{error.what}; {error.hint}")
    return name


def _folder(name: str) -> str:
    plain = name.rstrip("/")
    if not plain or plain.startswith("/") or ".." in plain.split("/"):
        raise problem(f"must be a relative folder without '..', not {name!r}")
    return plain


def _mib(value: object) -> int:
    try:
        if not isinstance(value, str):
            raise UsageError("no unit")
        return -(-parse_size(value) // MIB)
    except UsageError as error:
        raise problem(f"must be a size such as 6GiB, not {value!r}") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


Arch = Annotated[str, AfterValidator(_arch)]
Mib = Annotated[int | None, BeforeValidator(_mib)]
Text = Annotated[str, AfterValidator(_one_line), Field(min_length=1)]
Globs = Annotated[tuple[Text, ...], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Suite(_Model):
    """Tests of the gate.

    Attributes:
        folder: Their folder, from that of the file; where the project has no such folder, that of
            Harness' own suites, as ``harness acceptance suites/install`` finds it.
        images: The images that they judge: names, or patterns with ``*`` for all the project's own.
        arches: The architectures that they run on; ``None`` for those that a plan asks for.
        also: Further architectures of their image that they start, as their jobs say.
        cost: The seconds of a test that neither history nor its mark knows.
    """

    folder: Annotated[str, AfterValidator(_folder)]
    images: Globs = ("*",)
    arches: Annotated[tuple[Arch, ...], Field(min_length=1)] | None = None
    also: tuple[Arch, ...] = ()
    cost: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0


class ImageSettings(_Model):
    """What the gate has to know of an image that its ``image.yaml`` does not say.

    Attributes:
        tier: The smallest tier of a plan that has it, unless it is asked for by name or has changed.
        memory: MiB of memory of its jobs; ``None`` to work it out.
        disk: MiB of disk of its jobs; ``None`` to work it out.
        kvm: Whether its jobs need ``/dev/kvm``.
        labels: The labels of the runners that may take its jobs.
    """

    tier: Tier = "smoke"
    memory: Mib = None
    disk: Mib = None
    kvm: bool = False
    labels: Globs = (LABEL,)


class Target(_Model):
    """Some of the tests of a gate.

    Attributes:
        images: Names of images, or patterns.
        suites: Folders of suites, or patterns.
        tier: The largest tier of the tests; ``None`` for that of the plan.
    """

    images: Globs = ("*",)
    suites: Globs = ("*",)
    tier: Tier | None = None


class Rule(_Model):
    """What a change of some files selects: either :attr:`selects` or :attr:`targets`.

    Attributes:
        paths: Patterns of paths, relative to the folder of the file.
        selects: ``nothing``; ``everything``; ``image``, the image in whose folder the file lies;
            ``tests``, the tests in the file, or in its folder if it has none.
        targets: The tests.
        because: Why, for people; required with ``nothing``.
    """

    paths: Globs
    selects: Literal["nothing", "everything", "image", "tests"] | None = None
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] | None = None
    because: Text = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.selects is None) == (self.targets is None):
            raise problem("needs either 'selects' or 'targets'", "paths")
        if self.selects == "nothing" and not self.because:
            raise problem("'nothing' needs 'because': a plan says why it is empty", "selects")
        return self

    def matches(self, path: str) -> bool:
        """Return whether the rule decides about a path."""
        return matches(path, self.paths)


class Gate(_Model):
    """The whole file.

    Attributes:
        suites: The suites; ``None`` for the project's folder ``suites``, or else Harness' own.
        images: What the gate has to know of images, by name or pattern.
        changes: The project's rules.
    """

    suites: Annotated[tuple[Suite, ...], Field(min_length=1)] | None = None
    images: dict[str, ImageSettings] = {}
    changes: tuple[Rule, ...] = ()

    def settings(self, image: str) -> ImageSettings:
        """Return what the file says of an image: by its name, or by the first pattern that matches."""
        if image in self.images:
            return self.images[image]
        matches = (each for name, each in self.images.items() if fnmatchcase(image, name))
        return next(matches, ImageSettings())

    def rule(self, path: str) -> Rule | None:
        """Return the rule that decides about a path, or ``None`` if there is none."""
        return next((rule for rule in (*self.changes, *OWN) if rule.matches(path)), None)

    def in_use(self) -> tuple[Suite, ...]:
        """Return the suites."""
        return self.suites if self.suites is not None else (Suite(folder="suites"),)


OWN: Final = (
    Rule(
        paths=("docs/**", "**/*.md", "LICENSE", ".gitignore"),
        selects="nothing",
        because="documentation",
    ),
    Rule(paths=("images/*/**",), selects="image"),
    Rule(paths=("suites/**",), selects="tests"),
)
"""The rules behind those of the project."""


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether one of several patterns matches a path."""
    return any(_compiled(pattern)(path) for pattern in patterns)


def names(name: str, patterns: Iterable[str]) -> bool:
    """Return whether one of several patterns matches a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def _compiled(pattern: str) -> Callable[[str], object]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts), re.S).fullmatch


def load(root: Path, images: Iterable[str], bundled: Path) -> Gate:
    """Read the file of a project.

    Args:
        root: The project's folder.
        images: The names of the images of its catalogue.
        bundled: The folder that has Harness' own ``suites``.

    Raises:
        CatalogError: The file is wrong, or names an image or a folder that does not exist. Each fault
            is one line that begins with ``file:line``.
    """
    path = root / FILE
    if not path.exists():
        return Gate()
    doc = document.read(path)
    if doc.data is not None and not isinstance(doc.data, dict):
        raise CatalogError(f"{doc.where(())}: not a mapping of keys to values")
    try:
        gate = Gate.model_validate(doc.data or {})
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda each: doc.line(each["loc"]))
        lines = [explain(doc, dict(detail), Gate) for detail in details]
        raise CatalogError("\n".join(lines)) from error
    if problems := list(_unknown(gate, doc, root, tuple(images), bundled)):
        raise CatalogError("\n".join(problems))
    return gate


def _unknown(
    gate: Gate, doc: document.Document, root: Path, images: tuple[str, ...], bundled: Path
) -> Iterable[str]:
    """Yield the faults that concern the rest of the project."""

    def image(name: str, *at: str | int) -> Iterable[str]:
        if not any(mark in name for mark in "*?[") and name not in images:
            unknown = UnknownNameError("image", name, images)
            where = ".".join(map(str, at))
            yield f"{doc.where(at)}: {where}: {unknown.what}; {unknown.hint}"

    folders = [suite.folder for suite in gate.in_use()]
    for index, suite in enumerate(gate.suites or ()):
        at = ("suites", index, "folder")
        if not any((base / suite.folder).is_dir() for base in (root, bundled)):
            yield f"{doc.where(at)}: suites.{index}.folder: there is no folder {suite.folder}"
        for number, name in enumerate(suite.images):
            yield from image(name, "suites", index, "images", number)
    for name in gate.images:
        yield from image(name, "images", name)
    for index, rule in enumerate(gate.changes):
        for number, target in enumerate(rule.targets or ()):
            here: tuple[str | int, ...] = ("changes", index, "targets", number)
            for place, name in enumerate(target.images):
                yield from image(name, *here, "images", place)
            for place, name in enumerate(target.suites):
                if not any(fnmatchcase(folder, name) for folder in folders):
                    at_suite = (*here, "suites", place)
                    unknown = UnknownNameError("suite", name, folders)
                    yield f"{doc.where(at_suite)}: {unknown.what}; {unknown.hint}"
