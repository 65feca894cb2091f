"""What changed files select: by the rules of ``gate.yaml``, and by what tests and images depend on.

A rule decides about a file (:mod:`harness.gate.rules`). Whatever it says, the file also selects the
tests whose file depends on it (:mod:`harness.gate.trace`) and the images that it is an input of: their
``image.yaml``, build script, inputs, profile and provider.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from harness.catalog import Image
from harness.gate.rules import FILE, TIERS, Gate, Rule, names

EVERYTHING: Final = "everything"


@dataclass(frozen=True, slots=True)
class Effect:
    """Tests that a changed file selects.

    Attributes:
        path: The file.
        why: Why, for people.
        images: Names of images, or patterns.
        suites: Folders of suites, or patterns.
        files: The files of the tests; ``None`` for all.
        tier: The largest tier of the tests; empty for that of the plan.
        direct: Whether the images themselves have changed: then their own tier does not matter. A file
            in the folder of another image is that one's.
    """

    path: str
    why: str
    images: tuple[str, ...] = ("*",)
    suites: tuple[str, ...] = ("*",)
    files: frozenset[str] | None = None
    tier: str = ""
    direct: bool = False

    def takes(self, image: str, suite: str, file: str, tier: str) -> bool:
        """Return whether a test on an image is among them."""
        return (
            names(image, self.images)
            and names(suite, self.suites)
            and (self.files is None or file in self.files)
            and (not self.tier or TIERS.index(tier) <= TIERS.index(self.tier))
        )


@dataclass(frozen=True)
class Selection:
    """What the changed files of a checkout select.

    Attributes:
        effects: What they select, in the order of the files.
        nothing: Why each of the others selects nothing, by its path.
    """

    effects: tuple[Effect, ...] = ()
    nothing: Mapping[str, str] | None = None

    def of(self, image: str, suite: str, file: str, tier: str) -> list[Effect]:
        """Return the effects that take a test on an image."""
        return [each for each in self.effects if each.takes(image, suite, file, tier)]

    def is_direct(self, image: str) -> bool:
        """Return whether an image itself has changed."""
        return any(each.direct and names(image, each.images) for each in self.effects)


def everything(why: str = "no change was named") -> Selection:
    """Return the selection of a plan for no change: all tests."""
    return Selection((Effect("", why),))


def inputs(image: Image, root: Path) -> list[str]:
    """Return the files and folders that an image is made of, relative to a folder.

    They are its ``image.yaml``, the script and the inputs of its build, and the files of its profile
    and its provider.
    """
    paths = [image.path]
    if image.build is not None:
        paths += [image.folder / name for name in (image.build.script, *image.build.inputs)]
    if image.profile_file is not None:
        paths.append(image.profile_file)
    if image.cluster is not None and image.cluster.provider.endswith(".py"):
        paths.append(image.folder / image.cluster.provider)
    start = root.resolve()
    return sorted({os.path.relpath(path.absolute(), start) for path in paths})


@dataclass(frozen=True)
class Selector:
    """Knows what each file of a project selects.

    Attributes:
        root: The folder of the project.
        gate: The project's rules.
        images: The images of the plan.
        tests: The files of tests in each suite, by its folder.
        uses: What each file of a test depends on.
    """

    root: Path
    gate: Gate
    images: Sequence[Image]
    tests: Mapping[str, Collection[str]]
    uses: Mapping[str, Collection[str]]

    @functools.cached_property
    def _inputs(self) -> list[tuple[Image, list[str]]]:
        return [(image, inputs(image, self.root)) for image in self.images]

    def select(self, changed: Iterable[str]) -> Selection:
        """Return what changed files select; their paths are relative to the root."""
        effects: list[Effect] = []
        nothing: dict[str, str] = {}
        for path in changed:
            if path == FILE:
                effects.append(Effect(path, f"{path} changed: everything"))
                continue
            rule = self.gate.rule(path)
            of_path = [*self._ruled(path, rule), *self._dependent(path)]
            if of_path:
                effects += of_path
            elif rule is not None:
                nothing[path] = rule.because or f"nothing of the gate is of {', '.join(rule.paths)}"
        return Selection(tuple(effects), nothing)

    def _ruled(self, path: str, rule: Rule | None) -> Iterator[Effect]:
        if rule is None:
            yield Effect(path, f"{path} changed, and no rule is for it: everything")
        elif rule.selects == EVERYTHING:
            yield Effect(path, f"{path} changed: everything{_because(rule)}")
        elif rule.selects == "image":
            yield from self._image(path)
        elif rule.selects == "tests":
            yield from self._tests(path)
        for target in rule.targets or () if rule is not None else ():
            limit = f", tier {target.tier}" if target.tier else ""
            yield Effect(
                path,
                f"{path} changed{limit}{_because(rule) if rule else ''}",
                images=target.images,
                suites=target.suites,
                tier=target.tier or "",
            )

    def _owner(self, path: str) -> str | None:
        """Return the name of the image in whose folder a file lies."""
        start = self.root.resolve()
        for image in self.images:
            if path.startswith(f"{os.path.relpath(image.folder.absolute(), start)}/"):
                return image.name
        return None

    def _image(self, path: str) -> Iterator[Effect]:
        owner = self._owner(path)
        if owner is not None:
            yield Effect(path, f"{path} changed", images=(owner,), direct=True)
        elif not any(True for _ in self._dependent(path)):
            yield Effect(path, f"{path} changed, which is of no image there is: everything")

    def _tests(self, path: str) -> Iterator[Effect]:
        for suite, files in self.tests.items():
            if path in files:
                yield Effect(path, f"{path} changed", suites=(suite,), files=frozenset((path,)))
                return
        # A file beside tests, or one whose tests are gone: those of the nearest folder that has some.
        for folder in PurePosixPath(path).parents[:-1]:
            has_tests = False
            for suite, files in self.tests.items():
                below = frozenset(each for each in files if each.startswith(f"{folder}/"))
                if below:
                    has_tests = True
                    yield Effect(path, f"{path} changed", suites=(suite,), files=below)
            if has_tests:
                return
        yield Effect(path, f"{path} changed, which is of no suite: everything")

    def _dependent(self, path: str) -> Iterator[Effect]:
        folder = f"{PurePosixPath(path).parent}/"
        using = frozenset(
            file for file, used in self.uses.items() if path in used or folder in used
        )
        if using:
            yield Effect(path, f"{path} changed, which the test uses", files=using)
        owner = self._owner(path)
        for image, paths in self._inputs:
            if any(path == each or path.startswith(f"{each}/") for each in paths):
                yield Effect(
                    path,
                    f"{path} changed, an input of {image.name}",
                    images=(image.name,),
                    direct=owner in (None, image.name),
                )


def _because(rule: Rule) -> str:
    return f" ({rule.because})" if rule.because else ""
