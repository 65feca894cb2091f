"""Loads the catalogue and resolves references such as ``skiff/cluster:2``."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from harness.catalog import document
from harness.catalog.document import Document
from harness.catalog.explain import explain
from harness.catalog.model import Image, Selection
from harness.errors import CatalogError, UnknownNameError, UsageError

FILE: Final = "image.yaml"

REFERENCE: Final = re.compile(
    r"(?P<name>[^/:]+)(?:/(?P<variant>[^/:]+))?(?::(?P<version>[^/:]+))?", re.ASCII
)
"""``NAME[/VARIANT][:VERSION]``"""


class Catalog:
    """The images that options can name.

    Args:
        images: The images; their names are distinct.
    """

    def __init__(self, images: Iterable[Image]) -> None:
        self._images = {image.name: image for image in images}

    @property
    def names(self) -> list[str]:
        """The names of all images, sorted."""
        return sorted(self._images)

    def get(self, name: str) -> Image:
        """Return an image.

        Raises:
            UnknownNameError: No image has this name; the message lists similar names.
        """
        try:
            return self._images[name]
        except KeyError:
            raise UnknownNameError("image", name, self._images) from None

    def resolve(self, reference: str, arch: str | None = None) -> Selection:
        """Return the selection that a reference names: ``skiff``, ``skiff:2``, ``skiff/cluster:2``.

        Args:
            reference: ``NAME[/VARIANT][:VERSION]``.
            arch: The arch; the first that the image lists by default.

        Raises:
            UsageError: The reference does not have that form.
            UnknownNameError: The catalogue lacks a part of the reference.
        """
        parts = REFERENCE.fullmatch(reference)
        if parts is None:
            raise UsageError(
                f"{reference!r} is not a reference to an image",
                hint="write NAME, NAME:VERSION or NAME/VARIANT:VERSION",
            )
        return self.get(parts["name"]).select(arch, parts["version"], parts["variant"])

    def selections(self) -> list[Selection]:
        """Return all selections: each image on each arch in each version and variant."""
        return [
            image.select(arch, version, variant)
            for _, image in sorted(self._images.items())
            for arch in image.arches
            for version in image.versions
            for variant in image.variants
        ]


def load(
    *roots: Path,
    known_profiles: Collection[str] | None = None,
    known_providers: Collection[str] | None = None,
) -> Catalog:
    """Read every ``ROOT/*/image.yaml`` and report the faults of all files at once.

    Args:
        roots: Folders of images; subfolders without an ``image.yaml`` are ignored.
        known_profiles: The built-in profiles that an image may name; ``None`` skips this check.
        known_providers: The providers of clusters that an image may name; ``None`` skips this check.

    Raises:
        CatalogError: A root is not a folder, or a file is wrong. Each fault is one line that begins
            with ``file:line``, in the order of the lines.
    """
    images: dict[str, Image] = {}
    problems: list[str] = []
    for root in roots:
        if not root.is_dir():
            raise CatalogError(f"{root}: no such folder of images")
        for path in sorted(root.glob(f"*/{FILE}")):
            try:
                doc = document.read(path)
                image = _image(doc, known_profiles, known_providers)
            except CatalogError as error:
                problems.append(error.what)
                continue
            if (other := images.get(image.name)) and other.path != image.path:
                problems.append(
                    f"{doc.where(('name',))}: {other.path} already has the name {image.name!r}"
                )
            images[image.name] = image
    if problems:
        raise CatalogError("\n".join(problems))
    return Catalog(images.values())


def _image(
    doc: Document,
    known_profiles: Collection[str] | None,
    known_providers: Collection[str] | None,
) -> Image:
    if not isinstance(doc.data, dict):
        raise CatalogError(f"{doc.where(())}: not a mapping of keys to values")
    try:
        image = Image.model_validate(doc.data)
    except ValidationError as error:
        details = sorted(
            error.errors(include_url=False), key=lambda detail: doc.line(detail["loc"])
        )
        lines = [explain(doc, dict(detail)) for detail in details]
        raise CatalogError("\n".join(lines)) from error
    image._path = doc.path
    problems = []
    if image.profile_file is not None:
        if not image.profile_file.is_file():
            at = doc.where(("profile",))
            problems.append(f"{at}: the profile {image.profile_file} does not exist")
    elif known_profiles is not None and image.profile not in known_profiles:
        unknown = UnknownNameError("profile", image.profile, known_profiles)
        problems.append(f"{doc.where(('profile',))}: {unknown.what}; {unknown.hint}")
    if image.cluster is not None:
        provider = image.cluster.provider
        at = doc.where(("cluster", "provider"))
        if provider.endswith(".py"):
            if not (image.folder / provider).is_file():
                problems.append(f"{at}: the provider {image.folder / provider} does not exist")
        elif known_providers is not None and provider not in known_providers:
            unknown = UnknownNameError("provider", provider, known_providers)
            problems.append(f"{at}: cluster.provider: {unknown.what}; {unknown.hint}")
    if image.build is not None:
        script = image.folder / image.build.script
        at = doc.where(("build", "script"))
        if not script.is_file():
            problems.append(f"{at}: the build script {script} does not exist")
        elif not os.access(script, os.X_OK):
            problems.append(f"{at}: the build script {script} is not executable: chmod +x {script}")
        for index, name in enumerate(image.build.inputs):
            if not (image.folder / name).exists():
                at = doc.where(("build", "inputs", index))
                problems.append(f"{at}: the input {image.folder / name} does not exist")
    if problems:
        raise CatalogError("\n".join(problems))
    return image
