"""What an ``image.yaml`` may say: frozen pydantic models, one for each mapping of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.errors import UnknownNameError, UsageError
from harness.spec import ARCHES, MIB, ConsoleDevice, FirmwareKind, parse_size

CAPABILITIES: Final = {
    "ssh": "an SSH server that takes the run's key",
    "seed": "reads a NoCloud seed",
    "credentials": "reads systemd credentials from SMBIOS or fw_cfg",
    "acpi-shutdown": "ends in order when its power button is pressed",
    "systemd": "has systemd's units and journal",
    "persistence": "/var outlives a reboot",
    "verity": "the root is read-only and verified by dm-verity",
    "install": "installs itself from its live medium, over the console",
    "install-unattended": "installs itself as a seed or credentials say",
    "upgrade": "upgrades into another slot",
    "rollback": "goes back to the slot before by itself when a new one does not boot",
    "recovery": "has a recovery entry in the boot menu",
    "reset": "goes back to how it was installed",
    "secure-boot": "boots with Secure Boot enforced",
    "tpm": "uses a TPM where there is one",
    "cluster": "forms a cluster",
}
"""What a scenario may ask of an image, each with what it means."""


def problem(message: str, *at: str | int) -> PydanticCustomError:
    """Return an error of a validator, at a key below the model that it checks."""
    # Braces are pydantic's template; a value of the user's may hold some.
    return PydanticCustomError("catalog", "{message}", {"message": message, "at": at})


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise problem(error.what) from error


def _one_of(kind: str, names: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            error = UnknownNameError(kind, name, names)
            raise problem(f"{error.what}; {error.hint}")
        return name

    return AfterValidator(check)


def is_capability(name: str) -> bool:
    """Whether a capability is one of Harness', or of a project's own: ``x-`` and a name."""
    return name in CAPABILITIES or re.fullmatch(r"x-[a-z0-9-]+", name) is not None


def _capability(name: str) -> str:
    if not is_capability(name):
        error = UnknownNameError("capability", name, tuple(CAPABILITIES))
        raise problem(f"{error.what}; {error.hint}; one of your own begins with x-")
    return name


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise problem(f"a path below the folder that it is in, not {path!r}")
    return path


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise problem(f"there twice: {', '.join(twice)}")
    return names


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, strict=True)]
"""Bytes; in the file ``4GiB``, ``512MiB``."""


def _profile(name: str) -> str:
    if not name.endswith(".py") and not re.fullmatch(NAME, name):
        raise problem(f"the name of a profile, or the path of a Python file, not {name!r}")
    if PurePosixPath(name).is_absolute():
        raise problem(f"a path from the folder that it is in, not {name!r}")
    return name


NAME: Final = r"^[a-z][a-z0-9-]{0,30}$"

Name = Annotated[str, Field(pattern=NAME)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=64)]
"""A version or a variant: it is part of file names and of references."""

Labels = Annotated[tuple[Label, ...], Field(min_length=1), AfterValidator(_distinct)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Capability = Annotated[str, AfterValidator(_capability)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Build(_Model):
    """How Harness makes the artifacts itself.

    Attributes:
        script: The program, in the image's folder; called as
            ``SCRIPT --arch A --version V --variant W --out DIR --work DIR``.
        inputs: Files and folders that decide what it makes, from the image's folder; their digest
            keys the cache. ``image.yaml`` itself is none unless named: what it says of the
            artifacts counts, a changed deadline does not.
    """

    script: Annotated[str, AfterValidator(_inside)]
    inputs: Annotated[tuple[str, ...], Field(min_length=1)] = (".",)


class Artifact(_Model):
    """A file of an image.

    Attributes:
        file: Its name in the cache; the last part of ``url`` by default.
        format: ``raw`` or ``qcow2``, for a disk.
        url: Where it is fetched from; ``None`` if the build script makes it.
        sha256: Its digest in hexadecimal; with ``url`` only, and required there.
    """

    file: Annotated[str, AfterValidator(_inside)] = ""
    format: Literal["raw", "qcow2"] = "raw"
    url: Annotated[str, Field(pattern=r"^(https?|file)://")] | None = None
    sha256: Digest | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_from_url(cls, data: Any) -> Any:
        if isinstance(data, dict) and "file" not in data and isinstance(data.get("url"), str):
            name = unquote(PurePosixPath(urlsplit(data["url"]).path).name)
            if name:
                return {**data, "file": name}
        return data

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.file:
            raise problem("needs 'file', or 'url' and 'sha256'")
        if (self.url is None) != (self.sha256 is None):
            raise problem("'url' and 'sha256' go together", "sha256" if self.sha256 else "url")
        return self


class Arch(_Model):
    """An image on one arch.

    Attributes:
        firmware: What boots it.
        artifacts: Its files by name: ``live`` for a disk to boot from, ``kernel`` and ``initrd``
            for direct kernel boot.
        cmdline: The kernel's command line; with firmware ``kernel`` only.
    """

    firmware: FirmwareKind
    artifacts: Annotated[dict[Name, Artifact], Field(min_length=1)]
    cmdline: str = ""

    @model_validator(mode="after")
    def _fits_firmware(self) -> Self:
        direct = self.firmware is FirmwareKind.KERNEL
        if direct and "kernel" not in self.artifacts:
            raise problem("firmware 'kernel' needs the artifact 'kernel'", "artifacts")
        if self.cmdline and not direct:
            raise problem("a 'cmdline' goes with firmware 'kernel' only", "cmdline")
        files = [artifact.file for artifact in self.artifacts.values()]
        if twice := {file for file in files if files.count(file) > 1}:
            raise problem(f"two artifacts in one file: {', '.join(sorted(twice))}", "artifacts")
        return self


class Default(_Model):
    """What a reference leaves out; the first of each by default."""

    variant: str = ""
    version: str = ""


class Machine(_Model):
    """The machine an image is made for.

    Attributes:
        cpus: Virtual CPUs.
        memory: Bytes of RAM.
        disk: Bytes of the disk it is installed on; ``None`` if it is not.
    """

    cpus: Annotated[int, Field(strict=True, ge=1, le=255)] = 2
    memory: Annotated[Size, Field(multiple_of=MIB)] = 2048 * MIB
    disk: Annotated[Size, Field(multiple_of=512)] | None = None


class Console(_Model):
    """The console that an image talks on."""

    device: ConsoleDevice = ConsoleDevice.SERIAL


class Login(_Model):
    """How to log in on the console.

    Attributes:
        user: The name.
        password: Empty if none is asked for.
        shell_prompt: A regular expression for the end of the shell's prompt; ``None`` for one of
            ``# $ % >``.
    """

    user: str = "root"
    password: str = ""
    shell_prompt: Annotated[str, Field(min_length=1)] | None = None


class Image(_Model):
    """An entry of the catalogue.

    Attributes:
        name: What options call it.
        summary: One line for people.
        profile: The OS family: its name in :mod:`harness.profiles`, or the path of a Python file from
            the folder of ``image.yaml``.
        build: How it is made; ``None`` if all is fetched.
        variants: In the order in which they are listed.
        versions: In the order in which they were released.
        default: The variant and the version that a reference without them means.
        arches: What it is on each arch.
        machine: What machine it is made for.
        console: Its console.
        login: How to log in.
        capabilities: What scenarios may ask of it, from :data:`CAPABILITIES`.
        deadlines: Seconds on a good host under KVM, by what is waited for: ``login`` from power on
            to the console's prompt, ``ready`` to commands, ``install``.
    """

    name: Name
    summary: Annotated[str, Field(min_length=1)]
    profile: Annotated[str, AfterValidator(_profile)]
    build: Build | None = None
    variants: Labels = ("default",)
    versions: Labels = ("1",)
    default: Default = Default()
    arches: Annotated[
        dict[Annotated[str, _one_of("arch", ARCHES)], Arch],
        Field(min_length=1),
    ]
    machine: Machine = Machine()
    console: Console = Console()
    login: Login = Login()
    capabilities: Annotated[tuple[Capability, ...], AfterValidator(_distinct)] = ()
    deadlines: dict[
        Literal["login", "ready", "install"],
        Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)],
    ] = {}

    _path: Path = PrivateAttr(default=Path("image.yaml"))

    @property
    def path(self) -> Path:
        """The ``image.yaml`` that it was read from."""
        return self._path

    @property
    def profile_file(self) -> Path | None:
        """The file of a profile that is not Harness' own."""
        return self.folder / self.profile if self.profile.endswith(".py") else None

    @property
    def folder(self) -> Path:
        """The folder of its ``image.yaml``: where its build script and inputs are."""
        return self._path.parent

    def select(
        self, arch: str | None = None, version: str | None = None, variant: str | None = None
    ) -> Selection:
        """Return one selection; what is ``None`` is the image's default.

        The default arch is the first that the image lists.

        Raises:
            UnknownNameError: if the image has no such arch, version or variant.
        """

        def choose(kind: str, given: str | None, default: str, known: Sequence[str]) -> str:
            name = given if given is not None else default or known[0]
            if name not in known:
                raise UnknownNameError(f"{kind} of {self.name}", name, known)
            return name

        return Selection(
            name=self.name,
            arch=choose("arch", arch, "", tuple(self.arches)),
            version=choose("version", version, self.default.version, self.versions),
            variant=choose("variant", variant, self.default.variant, self.variants),
            image=self,
        )

    @model_validator(mode="after")
    def _defaults_exist(self) -> Self:
        for kind, given, known in (
            ("variant", self.default.variant, self.variants),
            ("version", self.default.version, self.versions),
        ):
            if given and given not in known:
                error = UnknownNameError(kind, given, known)
                raise problem(f"{error.what}; {error.hint}", "default", kind)
        for arch, entry in self.arches.items():
            for name, artifact in entry.artifacts.items():
                if artifact.url is None and self.build is None:
                    at = ("arches", arch, "artifacts", name)
                    raise problem("needs 'url' and 'sha256': the image has no 'build'", *at)
            if "upgrade" in self.capabilities and "update" not in entry.artifacts:
                raise problem(
                    "needs 'update', a tar of what an update server holds: the image declares upgrade",
                    *("arches", arch, "artifacts"),
                )
        if self.build is None and len(self.versions) > 1:
            raise problem(
                "without 'build' all versions would be the same files: give it a script that fetches"
                " them, or make it an image for each",
                "versions",
            )
        return self


@dataclass(frozen=True, slots=True)
class Selection:
    """One thing to boot: an image, on one arch, in one version and variant.

    Attributes:
        name: The image's name.
        arch: The arch.
        version: The version.
        variant: The variant.
        image: The image; two selections of equal names are equal whatever it says.
    """

    name: str
    arch: str
    version: str
    variant: str
    image: Image = field(compare=False, repr=False)

    @property
    def entry(self) -> Arch:
        """What the image is on this arch."""
        return self.image.arches[self.arch]

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The image's files on this arch, by name."""
        return self.entry.artifacts

    @property
    def folder(self) -> Path:
        """The image's folder."""
        return self.image.folder

    @property
    def script(self) -> Path | None:
        """The build script, or ``None`` if all artifacts are fetched."""
        build = self.image.build
        return None if build is None else self.folder / build.script

    @property
    def inputs(self) -> tuple[str, ...]:
        """The build's inputs, as paths from the image's folder."""
        build = self.image.build
        return () if build is None else build.inputs

    def __str__(self) -> str:
        return f"{self.name}/{self.variant}:{self.version} on {self.arch}"
