"""The format of ``image.yaml``: one frozen pydantic model for each mapping of the file."""

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

from harness import arch as arches
from harness.arch import ARCHES
from harness.errors import UnknownNameError, UsageError
from harness.spec import MIB, Account, ConsoleDevice, FirmwareKind, parse_size

CAPABILITIES: Final = {
    "ssh": "runs an SSH server that accepts the run's key",
    "seed": "reads a NoCloud seed",
    "credentials": "reads systemd credentials from SMBIOS or fw_cfg",
    "acpi-shutdown": "shuts down when its power button is pressed",
    "systemd": "runs systemd: units and a journal",
    "persistence": "keeps /var across reboots",
    "verity": "mounts its root read-only and verified by dm-verity",
    "install": "installs from its live medium over the console",
    "install-unattended": "installs without questions, from a seed or from credentials",
    "pairing": "installs with settings that arrive with the pairing code from its screen",
    "upgrade": "upgrades into the slot that is not running",
    "multi-arch": "upgrades from a source for several architectures to the update for its own",
    "rollback": "returns to the previous slot, by itself if a new version does not boot",
    "recovery": "has a recovery system in its boot menu",
    "reset": "resets to its state after installation",
    "secure-boot": "boots with Secure Boot enforced",
    "tpm": "uses a TPM if the machine has one",
    "cluster": "forms a cluster",
}
"""The capabilities that an image may declare, with their meaning."""

Phase = Literal["login", "ready", "install"]
"""A phase for which an image may set its own deadline: from power on to the console's prompt, from
power on until commands run, the installation."""


def problem(message: str, *at: str | int) -> PydanticCustomError:
    """Return a validation error; ``at`` is the path from the model to the key at fault."""
    # pydantic treats braces as a template, and the user's value may contain some.
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
    """Return whether a name is in :data:`CAPABILITIES`, or is a project's own: ``x-NAME``."""
    return name in CAPABILITIES or re.fullmatch(r"x-[a-z0-9-]+", name) is not None


def _capability(name: str) -> str:
    if not is_capability(name):
        error = UnknownNameError("capability", name, tuple(CAPABILITIES))
        raise problem(f"{error.what}; {error.hint}; your own capabilities begin with x-")
    return name


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise problem(f"must be a relative path without '..', not {path!r}")
    return path


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise problem(f"repeats {', '.join(repeated)}")
    return names


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, strict=True)]
"""Bytes; the file may say ``4GiB`` or ``512MiB``."""


def _profile(name: str) -> str:
    if not name.endswith(".py") and not re.fullmatch(NAME, name):
        raise problem(f"must be a name or the path of a Python file, not {name!r}")
    if PurePosixPath(name).is_absolute():
        raise problem(f"must be relative to the image's folder, not {name!r}")
    return name


NAME: Final = r"^[a-z][a-z0-9-]{0,30}$"

Name = Annotated[str, Field(pattern=NAME)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=64)]
"""A version or a variant; it becomes part of file names and references."""

Labels = Annotated[tuple[Label, ...], Field(min_length=1), AfterValidator(_distinct)]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|unknown)$")]
Digest512 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

UNKNOWN: Final = "unknown"
"""The word for the checksum of a file whose publisher's checksum nobody has verified yet."""

Capability = Annotated[str, AfterValidator(_capability)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Build(_Model):
    """How Harness builds the artifacts.

    Attributes:
        script: The program, relative to the image's folder; called as
            ``SCRIPT --arch A --version V --variant W --out DIR --work DIR``.
        inputs: Files and folders that determine the output, relative to the image's folder; their
            digest is part of the cache key. ``image.yaml`` is not an input unless it is listed, so a
            changed deadline rebuilds nothing; its description of the artifacts always counts.
    """

    script: Annotated[str, AfterValidator(_inside)]
    inputs: Annotated[tuple[str, ...], Field(min_length=1)] = (".",)


class Artifact(_Model):
    """A file of an image.

    Attributes:
        file: Its name in the cache; the last part of ``url`` by default.
        format: The format of a disk: ``raw`` or ``qcow2``.
        url: The address to fetch it from; ``None`` if the build script makes it.
        sha256: Its checksum in hexadecimal, or :data:`UNKNOWN`, with which it is refused when it is to
            be fetched. This or ``sha512`` is required with ``url``, and not allowed without.
        sha512: Its checksum, where the publisher names this one.
    """

    file: Annotated[str, AfterValidator(_inside)] = ""
    format: Literal["raw", "qcow2"] = "raw"
    url: Annotated[str, Field(pattern=r"^(https?|file)://")] | None = None
    sha256: Digest | None = None
    sha512: Digest512 | None = None

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
        if self.sha256 and self.sha512:
            raise problem("'sha256' and 'sha512' exclude each other", "sha512")
        checksum = "sha256" if self.sha256 else "sha512" if self.sha512 else ""
        if (self.url is None) != (not checksum):
            raise problem("'url' and 'sha256' go together, or 'sha512'", checksum or "url")
        return self

    @property
    def is_pinned(self) -> bool:
        """Whether its content is decided: it is built, or its checksum is known."""
        return self.sha256 != UNKNOWN


class ArchImage(_Model):
    """An image on one arch.

    Attributes:
        firmware: The firmware that boots it.
        artifacts: Its files by name: ``live`` is a disk to boot from; ``kernel`` and ``initrd`` are
            for direct kernel boot.
        cmdline: The kernel's command line; with firmware ``kernel`` only.
        baseline: The instructions that it is built for, a name from
            :attr:`harness.arch.Arch.baselines`; empty for the arch's default.
    """

    firmware: FirmwareKind
    artifacts: Annotated[dict[Name, Artifact], Field(min_length=1)]
    cmdline: str = ""
    baseline: str = ""

    @model_validator(mode="after")
    def _fits_firmware(self) -> Self:
        direct = self.firmware is FirmwareKind.KERNEL
        if direct and "kernel" not in self.artifacts:
            raise problem("firmware 'kernel' needs the artifact 'kernel'", "artifacts")
        if self.cmdline and not direct:
            raise problem("'cmdline' requires firmware 'kernel'", "cmdline")
        files = [artifact.file for artifact in self.artifacts.values()]
        if shared := {file for file in files if files.count(file) > 1}:
            raise problem(f"two artifacts share a file: {', '.join(sorted(shared))}", "artifacts")
        return self


class Defaults(_Model):
    """The variant and the version of a reference that omits them.

    Attributes:
        variant: The variant; empty for the first that the image lists.
        version: The version; empty for the first that the image lists.
    """

    variant: str = ""
    version: str = ""


class Hardware(_Model):
    """The machine that an image is made for.

    Attributes:
        cpus: Virtual CPUs.
        memory: RAM in bytes.
        disk: Size in bytes of the disk that it installs onto; ``None`` if it does not install.
    """

    cpus: Annotated[int, Field(strict=True, ge=1, le=255)] = 2
    memory: Annotated[Size, Field(multiple_of=MIB)] = 2048 * MIB
    disk: Annotated[Size, Field(multiple_of=512)] | None = None


class Clustering(_Model):
    """How an image forms clusters.

    Attributes:
        provider: The kind of cluster: the name of its provider in :mod:`harness.cluster`, or the path of
            a Python file relative to the folder of ``image.yaml``.
        variant: The variant whose machines form them.
    """

    provider: Annotated[str, AfterValidator(_profile)]
    variant: Label


class ConsoleSettings(_Model):
    """The console of an image.

    Attributes:
        device: The device on which the guest's console is.
    """

    device: ConsoleDevice = ConsoleDevice.SERIAL


def _pattern(text: str) -> str:
    try:
        empty = re.search(text, "")
    except re.error as error:
        raise problem(f"must be a regular expression, not {text!r}: {error}") from error
    if empty:
        raise problem(f"must not match an empty text, as {text!r} does")
    return text


def _user(name: object) -> object:
    if name is None:
        raise problem("must be a user's name, or 'none' if the console asks for no user")
    return None if name == NOBODY else name


NOBODY: Final = "none"
"""The user of a console that gives a shell without a login."""

Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression, which is searched in the output of the console."""

WakeKey = Literal["Enter", "Space", "Escape"]


class LoginSettings(_Model):
    """How to log in on the console.

    The patterns are regular expressions, and replace Harness' own.

    Attributes:
        user: The account's name; ``None`` if the console gives a shell without a login, for which
            the file says ``none``.
        password: The password; empty if the login asks for none.
        wake: The key that the console waits for before it shows a prompt.
        login_prompt: The prompt for the user; ``None`` for that of getty in English.
        password_prompt: The prompt for the password; ``None`` for that of ``login`` in English.
        refusal: What a refused login prints; ``None`` for the messages of ``login`` in English.
        shell_prompt: The end of the shell's prompt; ``None`` matches ``#``, ``$``, ``%`` and ``>``
            with blanks, colours and other control sequences behind.
    """

    user: Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_user)] = "root"
    password: str = ""
    wake: WakeKey | None = None
    login_prompt: Pattern | None = None
    password_prompt: Pattern | None = None
    refusal: Pattern | None = None
    shell_prompt: Pattern | None = None

    @property
    def account(self) -> Account:
        """The account that logs in; root where the console asks for no user."""
        return Account(self.user or "root", self.password)

    @model_validator(mode="after")
    def _needs_a_user(self) -> Self:
        if self.user is None:
            for key in ("password", "login_prompt", "password_prompt", "refusal"):
                if getattr(self, key):
                    raise problem(f"{key!r} has no meaning where 'user' is {NOBODY!r}", key)
        return self


def _console_of_another(arch: str, cmdline: str) -> str:
    """Return the serial port of another arch that is a kernel's only console; empty if it has others.

    The kernel takes ``console=`` several times, each with options behind a comma
    (Documentation/admin-guide/kernel-parameters.txt of Linux).
    """
    consoles = re.findall(r"(?:^|\s)console=([^\s,]+)", cmdline)
    own = arches.of(arch).console
    others = {arches.of(name).console for name in ARCHES} - {own}
    return consoles[0] if consoles and others.issuperset(consoles) else ""


class Image(_Model):
    """An image of the catalogue.

    Attributes:
        name: The name that options use.
        summary: One line for people.
        profile: The OS family: its name in :mod:`harness.profiles`, or the path of a Python file
            relative to the folder of ``image.yaml``.
        build: How Harness builds it; ``None`` if all artifacts are fetched.
        variants: The variants; the first is the default unless ``default`` names another.
        versions: The versions in the order of their release.
        default: The variant and the version of a reference that omits them.
        arches: The image on each arch; the first is the default.
        machine: The machine that it is made for.
        console: Its console.
        login: How to log in on the console.
        capabilities: What it can do: names from :data:`CAPABILITIES`, or ``x-NAME``.
        cluster: How it forms clusters; exactly if it declares ``cluster``.
        deadlines: Seconds on a good host under KVM, by :data:`Phase`.
    """

    name: Name
    summary: Annotated[str, Field(min_length=1)]
    profile: Annotated[str, AfterValidator(_profile)]
    build: Build | None = None
    variants: Labels = ("default",)
    versions: Labels = ("1",)
    default: Defaults = Defaults()
    arches: Annotated[
        dict[Annotated[str, _one_of("arch", ARCHES)], ArchImage],
        Field(min_length=1),
    ]
    machine: Hardware = Hardware()
    console: ConsoleSettings = ConsoleSettings()
    login: LoginSettings = LoginSettings()
    capabilities: Annotated[tuple[Capability, ...], AfterValidator(_distinct)] = ()
    cluster: Clustering | None = None
    deadlines: dict[
        Phase,
        Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)],
    ] = {}

    _path: Path = PrivateAttr(default=Path("image.yaml"))

    @property
    def path(self) -> Path:
        """The ``image.yaml`` that defines it."""
        return self._path

    @property
    def profile_file(self) -> Path | None:
        """The file of a project's own profile; ``None`` for a built-in one."""
        return self.folder / self.profile if self.profile.endswith(".py") else None

    @property
    def folder(self) -> Path:
        """The folder of its ``image.yaml``, with its build script and inputs."""
        return self._path.parent

    def select(
        self, arch: str | None = None, version: str | None = None, variant: str | None = None
    ) -> Selection:
        """Return a selection; the image's defaults replace arguments that are ``None``.

        The default arch is the first that the image lists.

        Raises:
            UnknownNameError: The image has no such arch, version or variant.
        """

        def choose(kind: str, choice: str | None, default: str, names: Sequence[str]) -> str:
            name = choice if choice is not None else default or names[0]
            if name not in names:
                raise UnknownNameError(f"{kind} of {self.name}", name, names)
            return name

        return Selection(
            name=self.name,
            arch=choose("arch", arch, "", tuple(self.arches)),
            version=choose("version", version, self.default.version, self.versions),
            variant=choose("variant", variant, self.default.variant, self.variants),
            definition=self,
        )

    @model_validator(mode="after")
    def _defaults_exist(self) -> Self:
        for kind, default, names in (
            ("variant", self.default.variant, self.variants),
            ("version", self.default.version, self.versions),
        ):
            if default and default not in names:
                error = UnknownNameError(kind, default, names)
                raise problem(f"{error.what}; {error.hint}", "default", kind)
        for arch, arch_image in self.arches.items():
            try:
                arches.baseline(arch, arch_image.baseline)
            except UnknownNameError as error:
                raise problem(f"{error.what}; {error.hint}", "arches", arch, "baseline") from None
            if other := _console_of_another(arch, arch_image.cmdline):
                raise problem(
                    f"console={other}: no machine of {arch} has that serial port, and nothing would"
                    f" be on the console; say console={arches.of(arch).console}",
                    *("arches", arch, "cmdline"),
                )
            for name, artifact in arch_image.artifacts.items():
                if artifact.url is None and self.build is None:
                    at = ("arches", arch, "artifacts", name)
                    raise problem("needs 'url' and 'sha256': the image has no 'build'", *at)
            if "upgrade" in self.capabilities and "update" not in arch_image.artifacts:
                raise problem(
                    "needs 'update', a tar of the files for an update server:"
                    " the image declares upgrade",
                    *("arches", arch, "artifacts"),
                )
        if self.cluster is None and "cluster" in self.capabilities:
            raise problem(
                "declares cluster: say how, by 'cluster: {provider: NAME, variant: NAME}'",
                "capabilities",
            )
        if self.cluster is not None:
            if "cluster" not in self.capabilities:
                raise problem("the image does not declare the capability cluster", "cluster")
            if self.cluster.variant not in self.variants:
                unknown = UnknownNameError("variant", self.cluster.variant, self.variants)
                raise problem(f"{unknown.what}; {unknown.hint}", "cluster", "variant")
        if self.build is None and len(self.versions) > 1:
            raise problem(
                "without 'build' all versions have the same files: add a build script that fetches"
                " them, or make one image per version",
                "versions",
            )
        return self


@dataclass(frozen=True, slots=True)
class Selection:
    """One system to boot: an image on one arch, in one version and variant.

    Two selections with the same names are equal, whatever their definitions say.

    Attributes:
        name: The image's name.
        arch: The arch.
        version: The version.
        variant: The variant.
        definition: The image as the catalogue defines it.
    """

    name: str
    arch: str
    version: str
    variant: str
    definition: Image = field(compare=False, repr=False)

    @property
    def reference(self) -> str:
        """Its name for options: ``NAME/VARIANT:VERSION``."""
        return f"{self.name}/{self.variant}:{self.version}"

    @property
    def arch_image(self) -> ArchImage:
        """The firmware, artifacts and kernel command line on this arch."""
        return self.definition.arches[self.arch]

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The image's files on this arch, by name."""
        return self.arch_image.artifacts

    @property
    def unpinned(self) -> tuple[str, ...]:
        """The artifacts whose checksum is not known yet: the image cannot be had."""
        return tuple(name for name, each in self.artifacts.items() if not each.is_pinned)

    @property
    def summary(self) -> str:
        """One line for people."""
        return self.definition.summary

    @property
    def profile(self) -> str:
        """The OS family: the name of a built-in profile, or the path of a Python file."""
        return self.definition.profile

    @property
    def profile_file(self) -> Path | None:
        """The file of a project's own profile; ``None`` for a built-in one."""
        return self.definition.profile_file

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The capabilities that the image declares, such as ``upgrade``; see :data:`CAPABILITIES`."""
        return self.definition.capabilities

    @property
    def cluster(self) -> Clustering | None:
        """How the image forms clusters; ``None`` if it does not."""
        return self.definition.cluster

    @property
    def machine(self) -> Hardware:
        """The machine that the image is made for: ``cpus``, ``memory``, ``disk``."""
        return self.definition.machine

    @property
    def console(self) -> ConsoleSettings:
        """The image's console."""
        return self.definition.console

    @property
    def login(self) -> LoginSettings:
        """How to log in on the console: ``user``, ``password``, the prompts, the key to wake it."""
        return self.definition.login

    @property
    def other_arches(self) -> tuple[str, ...]:
        """The architectures besides this one, whether the image has them or not."""
        return tuple(arch for arch in ARCHES if arch != self.arch)

    @property
    def versions(self) -> tuple[str, ...]:
        """All versions of the image, in the order of their release."""
        return self.definition.versions

    @property
    def variants(self) -> tuple[str, ...]:
        """All variants of the image."""
        return self.definition.variants

    @property
    def deadlines(self) -> Mapping[Phase, float]:
        """The image's own deadlines, in seconds on a good host under KVM."""
        return self.definition.deadlines

    @property
    def path(self) -> Path:
        """The ``image.yaml`` that defines the image."""
        return self.definition.path

    @property
    def folder(self) -> Path:
        """The folder of the ``image.yaml``."""
        return self.definition.folder

    @property
    def script(self) -> Path | None:
        """The build script; ``None`` if all artifacts are fetched."""
        build = self.definition.build
        return None if build is None else self.folder / build.script

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the build, as paths relative to the image's folder."""
        build = self.definition.build
        return () if build is None else build.inputs

    def __str__(self) -> str:
        return f"{self.name}/{self.variant}:{self.version} on {self.arch}"
