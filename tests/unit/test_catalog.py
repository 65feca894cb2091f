"""The catalogue: the models of ``image.yaml``, and the messages about faults in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from harness.catalog import Catalog, load
from harness.catalog.model import WakeKey
from harness.console import KEY_NAMES
from harness.errors import CatalogError, UnknownNameError, UsageError
from harness.paths import bundled
from harness.spec import GIB, MIB, Account, ConsoleDevice, FirmwareKind

GOOD = """\
name: skiff
summary: a small immutable Debian
profile: skiff
build: {script: build, inputs: ["."]}
variants: [core, cluster]
versions: ["1", "2"]
default: {variant: core, version: "2"}
arches:
  x86_64:
    firmware: uefi
    artifacts: {live: {file: skiff.raw, format: raw}}
  aarch64:
    firmware: kernel
    artifacts:
      kernel: {file: vmlinuz}
      initrd: {file: initrd}
    cmdline: console=ttyAMA0
machine: {cpus: 4, memory: 1GiB, disk: 8GiB}
console: {device: virtio}
login: {user: admin, password: secret, shell_prompt: "=> $"}
capabilities: [install, ssh]
deadlines: {login: 60}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an ``image.yaml`` beside a build script; return the root of the catalogue."""

    def write(text: str, folder: str = "skiff") -> Path:
        home = tmp_path / "images" / folder
        home.mkdir(parents=True, exist_ok=True)
        (home / "image.yaml").write_text(text)
        (home / "build").write_text("#!/bin/sh\n")
        (home / "build").chmod(0o755)
        return tmp_path / "images"

    return write


def refused(root: Path, **options: tuple[str, ...]) -> list[str]:
    """Return the lines of the error about a catalogue; paths are relative to its root."""
    with pytest.raises(CatalogError) as caught:
        load(root, **options)
    return [line.replace(f"{root}/", "") for line in caught.value.what.splitlines()]


def test_an_image_has_all_values_of_its_file(write: Write) -> None:
    root = write(GOOD)
    image = load(root, known_profiles=("skiff",)).get("skiff")
    assert image.folder == root / "skiff"
    assert image.arches["x86_64"].firmware is FirmwareKind.UEFI
    assert image.arches["aarch64"].cmdline == "console=ttyAMA0"
    assert (image.machine.cpus, image.machine.memory, image.machine.disk) == (4, GIB, 8 * GIB)
    assert image.console.device is ConsoleDevice.VIRTIO
    assert (image.login.user, image.login.password) == ("admin", "secret")
    assert image.login.shell_prompt == "=> $"
    assert image.capabilities == ("install", "ssh")
    assert image.deadlines == {"login": 60.0}


def test_omitted_keys_have_defaults(write: Write) -> None:
    image = load(
        write(
            "{name: tiny, summary: s, profile: p, build: {script: build},"
            " arches: {x86_64: {firmware: bios, artifacts: {live: {file: a.raw}}}}}"
        )
    ).get("tiny")
    assert (image.machine.cpus, image.machine.memory) == (2, 2048 * MIB)
    assert image.login.user == "root"
    assert image.console.device is ConsoleDevice.SERIAL
    assert image.select().version == "1"


LOGIN = 'login: {user: admin, password: secret, shell_prompt: "=> $"}'


def test_a_console_without_a_login(write: Write) -> None:
    login = load(write(GOOD.replace(LOGIN, "login: {user: none, wake: Enter}"))).get("skiff").login
    assert (login.user, login.wake, login.account) == (None, "Enter", Account("root"))


def test_a_console_in_another_language(write: Write) -> None:
    login = "{login_prompt: 'Anmeldung: ', password_prompt: 'Kennwort: ', refusal: abgewiesen}"
    settings = load(write(GOOD.replace(LOGIN, f"login: {login}"))).get("skiff").login
    prompts = (settings.login_prompt, settings.password_prompt, settings.refusal)
    assert prompts == ("Anmeldung: ", "Kennwort: ", "abgewiesen")


@pytest.mark.parametrize(
    ("login", "message"),
    [
        (
            "user: none\n  password: x",
            "22: login.password: 'password' has no meaning where 'user' is",
        ),
        ("user: none\n  refusal: x", "22: login.refusal: 'refusal' has no meaning where 'user' is"),
        ("user:", "21: login.user: must be a user's name, or 'none' if the console asks"),
        ('user: ""', "21: login.user: string should have at least 1 character"),
        (
            "wake: Enter\n  login_prompt: '('",
            "22: login.login_prompt: must be a regular expression",
        ),
        ("refusal: 'x*'", "21: login.refusal: must not match an empty text, as 'x*' does"),
        ("wake: Return", "21: login.wake: input should be 'Enter', 'Space' or 'Escape'"),
        ("logn_prompt: x", "21: login: unknown key 'logn_prompt'; did you mean login_prompt"),
    ],
)
def test_a_wrong_login_is_refused_with_its_line(write: Write, login: str, message: str) -> None:
    (line, *_) = refused(write(GOOD.replace(LOGIN, f"login:\n  {login}")))
    assert line.startswith(f"skiff/image.yaml:{message}")


def test_each_key_that_wakes_a_console_is_a_key_of_the_console() -> None:
    for key in get_args(WakeKey):
        assert key in KEY_NAMES


def test_models_are_frozen(write: Write) -> None:
    image = load(write(GOOD)).get("skiff")
    with pytest.raises(ValueError, match="frozen"):
        image.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "firmware: uefi",
            "firmwre: uefi",
            "skiff/image.yaml:10: arches.x86_64: unknown key 'firmwre'; did you mean firmware?"
            " known keys: artifacts, baseline, cmdline, firmware",
        ),
        (
            "console: {device: virtio}",
            "consol: {device: virtio}",
            "skiff/image.yaml:19: unknown key 'consol'; did you mean console?",
        ),
        (
            "format: raw",
            "fromat: raw",
            "skiff/image.yaml:11: arches.x86_64.artifacts.live: unknown key 'fromat';"
            " did you mean format? known keys: file, format, sha256, sha512, url",
        ),
        (
            "cpus: 4",
            "cpus: many",
            "skiff/image.yaml:18: machine.cpus: input should be a valid integer, not 'many'",
        ),
        (
            'versions: ["1", "2"]',
            'versions: ["1", 2]',
            'skiff/image.yaml:6: versions.1: input should be a valid string, not 2; quote it: "2"',
        ),
        (
            'versions: ["1", "2"]',
            'versions: ["1", 1.10]',
            'skiff/image.yaml:6: versions.1: input should be a valid string, not 1.1; quote it: "1.10"',
        ),
        (
            "memory: 1GiB",
            "memory: 1GB",
            "skiff/image.yaml:18: machine.memory: '1GB' is not a size (a whole number and KiB, MiB"
            " or GiB, such as 4GiB)",
        ),
        ("memory: 1GiB", "memory: -1", "skiff/image.yaml:18: machine.memory: input should be"),
        (
            "firmware: uefi",
            "firmware: efi",
            "skiff/image.yaml:10: arches.x86_64.firmware: input should be 'uefi', 'uefi-secure',"
            " 'bios' or 'kernel', not 'efi'",
        ),
        (
            "  x86_64:",
            "  x86-64:",
            "skiff/image.yaml:9: arches.x86-64: unknown arch 'x86-64'; did you mean x86_64?"
            " known: aarch64, x86_64",
        ),
        (
            "[install, ssh]",
            "[instal, ssh]",
            "skiff/image.yaml:21: capabilities.0: unknown capability 'instal';"
            " did you mean install",
        ),
        (
            "[install, ssh]",
            "[x-Omaha, ssh]",
            "skiff/image.yaml:21: capabilities.0: unknown capability 'x-Omaha'; known: ",
        ),
        (
            "[install, ssh]",
            "[upgrade, ssh]",
            "skiff/image.yaml:11: arches.x86_64.artifacts: needs 'update', a tar of the files for"
            " an update server",
        ),
        (
            "profile: skiff",
            "profile: Skiff!",
            "skiff/image.yaml:3: profile: must be a name or the path of a Python file, not"
            " 'Skiff!'",
        ),
        (
            "profile: skiff",
            "profile: /srv/skiff.py",
            "skiff/image.yaml:3: profile: must be relative to the image's folder, not",
        ),
        (
            "profile: skiff",
            "profile: ../kite.py",
            "skiff/image.yaml:3: the profile skiff/../kite.py does not exist",
        ),
        (
            "{login: 60}",
            "{login: 0}",
            "skiff/image.yaml:22: deadlines.login: input should be greater than 0, not 0",
        ),
        (
            'version: "2"}',
            'version: "3"}',
            "skiff/image.yaml:7: default.version: unknown version '3'; known: 1, 2",
        ),
        (
            "kernel: {file: vmlinuz}",
            "kernle: {file: vmlinuz}",
            "skiff/image.yaml:14: arches.aarch64.artifacts: firmware 'kernel' needs the artifact"
            " 'kernel'",
        ),
        (
            "    firmware: uefi",
            "    firmware: uefi\n    cmdline: quiet",
            "skiff/image.yaml:11: arches.x86_64.cmdline: 'cmdline' requires firmware 'kernel'",
        ),
        (
            "    cmdline: console=ttyAMA0",
            '    cmdline: "quiet console=ttyS0,115200 panic=1"',
            "skiff/image.yaml:17: arches.aarch64.cmdline: console=ttyS0: no machine of aarch64 has that"
            " serial port, and nothing would be on the console; say console=ttyAMA0",
        ),
        (
            "    firmware: uefi",
            "    firmware: uefi\n    baseline: x86-64-v4",
            "skiff/image.yaml:11: arches.x86_64.baseline: unknown baseline of x86_64 'x86-64-v4';"
            " did you mean",
        ),
        (
            "file: skiff.raw",
            "file: ../skiff.raw",
            "skiff/image.yaml:11: arches.x86_64.artifacts.live.file: must be a relative path without",
        ),
        (
            "build: {script: build,",
            "build: {script: bild,",
            "skiff/image.yaml:4: the build script skiff/bild does not exist",
        ),
        (
            'inputs: ["."]',
            'inputs: [".", gone]',
            "skiff/image.yaml:4: the input skiff/gone does not exist",
        ),
        (
            'build: {script: build, inputs: ["."]}\n',
            "",
            "skiff/image.yaml:10: arches.x86_64.artifacts.live: needs 'url' and 'sha256':"
            " the image has no 'build'",
        ),
        ("profile: skiff\n", "", "skiff/image.yaml:1: the key 'profile' is missing"),
        (
            "variants: [core, cluster]",
            "variants: [core, core]",
            "skiff/image.yaml:5: variants: repeats core",
        ),
        (
            "console: {device: virtio}",
            "console: {device: virtio}\nname: again",
            "skiff/image.yaml:20: duplicate key 'name'; it is also on line 1",
        ),
        (
            "console: {device: virtio}",
            "console: {device: virtio",
            "skiff/image.yaml:20: not YAML: expected ',' or '}', but got",
        ),
        (
            "file: initrd}",
            "file: vmlinuz}",
            "skiff/image.yaml:14: arches.aarch64.artifacts: two artifacts share a file: vmlinuz",
        ),
        ("name: skiff", "name: Skiff!", "skiff/image.yaml:1: name: string should match pattern"),
    ],
)
def test_a_fault_is_reported_with_file_and_line(
    write: Write, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    lines = refused(write(GOOD.replace(old, new, 1)))
    assert any(line.startswith(message) for line in lines), lines
    # Each line of the message names the file.
    assert all(line.startswith("skiff/image.yaml:") for line in lines), lines


@pytest.mark.parametrize(
    "cmdline",
    [
        "console=ttyS0 console=ttyAMA0,115200",
        "console=ttyS0 console=hvc0",
        "console=hvc0",
        "quiet",
        "serial.console=ttyS0 consoleblank=0",
    ],
)
def test_a_kernel_may_have_the_consoles_of_several_arches(write: Write, cmdline: str) -> None:
    text = GOOD.replace("cmdline: console=ttyAMA0", f'cmdline: "{cmdline}"')
    assert load(write(text)).get("skiff").arches["aarch64"].cmdline == cmdline


def test_a_project_may_add_profiles_and_capabilities(write: Write) -> None:
    text = GOOD.replace("profile: skiff", "profile: ../kite.py").replace("[install", "[x-omaha")
    root = write(text)
    (root / "kite.py").touch()
    image = load(root, known_profiles=["skiff"]).get("skiff")
    assert image.profile_file == root / "skiff" / ".." / "kite.py"
    assert image.capabilities == ("x-omaha", "ssh")


def test_an_image_without_a_build_has_one_version(write: Write) -> None:
    digest = "f" * 64
    text = f"""\
name: tiny
summary: fetched
profile: micro
versions: ["1", "2"]
arches:
  x86_64:
    firmware: uefi
    artifacts: {{live: {{url: "file:///live.raw", sha256: {digest}}}}}
"""
    assert refused(write(text, "tiny"))[0].startswith(
        "tiny/image.yaml:4: versions: without 'build' all versions have the same files"
    )
    assert load(write(text.replace('"1", "2"', '"1"'), "tiny")).get("tiny").versions == ("1",)


def test_all_faults_of_all_files_are_reported_at_once(write: Write) -> None:
    write(
        GOOD.replace("cpus: 4", "cpus: x")
        .replace("uefi", "efi")
        .replace("skiff\n", "skiff\nodd: 1\n", 1)
    )
    root = write(GOOD.replace("name: skiff", "name: other").replace("[install", "[fly"), "other")
    assert [line.split(": ")[0] for line in refused(root)] == [
        "other/image.yaml:21",
        "skiff/image.yaml:2",
        "skiff/image.yaml:11",
        "skiff/image.yaml:19",
    ]


def test_two_images_cannot_have_the_same_name(write: Write) -> None:
    write(GOOD)
    root = write(GOOD, "twin")
    assert refused(root) == ["twin/image.yaml:1: skiff/image.yaml already has the name 'skiff'"]


def test_a_build_script_must_be_executable(write: Write) -> None:
    root = write(GOOD)
    (root / "skiff" / "build").chmod(0o644)
    assert "not executable: chmod +x" in refused(root)[0]


def test_an_unknown_profile_lists_similar_names(write: Write) -> None:
    assert refused(write(GOOD), known_profiles=("skif", "micro")) == [
        "skiff/image.yaml:3: unknown profile 'skiff'; did you mean skif? known: micro, skif"
    ]


CLUSTER = GOOD.replace("ssh]", "ssh, cluster]") + "cluster: {provider: etcd, variant: cluster}\n"


def test_an_image_says_how_it_forms_clusters(write: Write) -> None:
    image = load(write(CLUSTER), known_providers=("etcd",)).get("skiff")
    cluster = image.select(variant="core").cluster
    assert cluster is not None
    assert (cluster.provider, cluster.variant) == ("etcd", "cluster")
    assert load(write(GOOD)).get("skiff").select().cluster is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "ssh, cluster]",
            "ssh]",
            "skiff/image.yaml:23: cluster: the image does not declare the capability cluster",
        ),
        (
            "cluster: {provider: etcd, variant: cluster}\n",
            "",
            "skiff/image.yaml:21: capabilities: declares cluster: say how, by"
            " 'cluster: {provider: NAME, variant: NAME}'",
        ),
        (
            "variant: cluster}",
            "variant: clutser}",
            "skiff/image.yaml:23: cluster.variant: unknown variant 'clutser';"
            " did you mean cluster? known: cluster, core",
        ),
        (
            "provider: etcd",
            "provider: etdc",
            "skiff/image.yaml:23: cluster.provider: unknown provider 'etdc';"
            " did you mean etcd? known: etcd, k3s",
        ),
        (
            "provider: etcd",
            "provider: ../kite.py",
            "skiff/image.yaml:23: the provider ",
        ),
        (
            "provider: etcd",
            "provider: /kite.py",
            "skiff/image.yaml:23: cluster.provider: must be relative to the image's folder, not",
        ),
        (
            "{provider: etcd, variant: cluster}",
            "{provider: etcd}",
            "skiff/image.yaml:23: cluster: the key 'variant' is missing",
        ),
        (
            "{provider: etcd, variant: cluster}",
            "etcd",
            "skiff/image.yaml:23: cluster: ",
        ),
    ],
)
def test_a_wrong_cluster_is_refused(write: Write, old: str, new: str, expected: str) -> None:
    assert old in CLUSTER
    faults = refused(write(CLUSTER.replace(old, new)), known_providers=("etcd", "k3s"))
    assert [fault[: len(expected)] for fault in faults] == [expected]


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just words", "\x00", "a: &a [*a]", "? {}\n: 1"]
)
def test_a_file_that_is_not_a_mapping_is_refused(write: Write, text: str) -> None:
    assert refused(write(text))[0].startswith("skiff/image.yaml:1: ")


def test_a_list_is_not_an_image(write: Write) -> None:
    assert refused(write("- a\n")) == ["skiff/image.yaml:1: not a mapping of keys to values"]


def test_a_binary_file_is_refused(write: Write) -> None:
    root = write("")
    (root / "skiff" / "image.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused(root)[0].startswith("skiff/image.yaml:1: cannot be read: ")


def test_a_missing_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such folder of images"):
        load(tmp_path / "nothing")


def test_a_folder_without_an_image_is_ignored(write: Write) -> None:
    root = write(GOOD)
    (root / "common").mkdir()
    assert load(root).names == ["skiff"]


def test_several_roots_make_one_catalogue(write: Write, tmp_path: Path) -> None:
    root = write(GOOD)
    (tmp_path / "more").mkdir()
    write(GOOD.replace("name: skiff", "name: other"), "other").joinpath("other").rename(
        tmp_path / "more" / "other"
    )
    assert load(root, tmp_path / "more").names == ["other", "skiff"]


FETCHED = """\
name: fetched
summary: s
profile: p
arches:
  x86_64:
    firmware: bios
    artifacts:
      live: {url: "https://example.org/a/disk%20one.raw?x=1", sha256: DIGEST}
"""


def test_a_fetched_artifact_takes_its_name_from_its_address(write: Write) -> None:
    image = load(write(FETCHED.replace("DIGEST", "a" * 64))).get("fetched")
    assert image.select().artifacts["live"].file == "disk one.raw"
    assert image.select().script is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", sha256: DIGEST", "", "live.url: 'url' and 'sha256' go together, or 'sha512'"),
        ("DIGEST", "abc", "live.sha256: string should match pattern"),
        ("https://example.org", "ftp://example.org", "live.url: string should match pattern"),
        ("/a/disk%20one.raw?x=1", "/", "live: needs 'file', or 'url' and 'sha256'"),
    ],
)
def test_a_fetched_artifact_needs_a_checksum(
    write: Write, old: str, new: str, message: str
) -> None:
    line = refused(write(FETCHED.replace(old, new).replace("DIGEST", "a" * 64)))[0]
    assert line.startswith("fetched/image.yaml:8: ".replace("fetched", "skiff"))
    assert message in line


def test_a_publisher_may_name_a_longer_checksum(write: Write) -> None:
    text = FETCHED.replace("sha256: DIGEST", f"sha512: {'a' * 128}")
    live = load(write(text)).get("fetched").select().artifacts["live"]
    assert (live.sha256, live.sha512) == (None, "a" * 128)
    for wrong, message in (
        ("sha512: abc", "live.sha512: string should match pattern"),
        (f"sha512: {'a' * 128}, sha256: {'a' * 64}", "'sha256' and 'sha512' exclude each other"),
    ):
        assert message in refused(write(FETCHED.replace("sha256: DIGEST", wrong)))[0]


def test_an_image_may_say_that_nobody_knows_a_checksum(write: Write) -> None:
    selection = load(write(FETCHED.replace("DIGEST", "unknown"))).get("fetched").select()
    assert selection.unpinned == ("live",)
    selection = load(write(FETCHED.replace("DIGEST", "a" * 64))).get("fetched").select()
    assert selection.unpinned == ()


@pytest.fixture
def catalog(write: Write) -> Catalog:
    return load(write(GOOD))


@pytest.mark.parametrize(
    ("reference", "arch", "selection"),
    [
        ("skiff", None, "skiff/core:2 on x86_64"),
        ("skiff", "aarch64", "skiff/core:2 on aarch64"),
        ("skiff:1", None, "skiff/core:1 on x86_64"),
        ("skiff/cluster", None, "skiff/cluster:2 on x86_64"),
        ("skiff/cluster:1", None, "skiff/cluster:1 on x86_64"),
    ],
)
def test_defaults_complete_a_reference(
    catalog: Catalog, reference: str, arch: str | None, selection: str
) -> None:
    assert str(catalog.resolve(reference, arch)) == selection


@pytest.mark.parametrize(
    ("reference", "arch", "message"),
    [
        ("skif", None, "unknown image 'skif'\n  try: did you mean skiff? known: skiff"),
        ("skiff:3", None, "unknown version of skiff '3'"),
        ("skiff/clustr", None, "did you mean cluster?"),
        ("skiff", "arm64", "did you mean aarch64?"),
    ],
)
def test_an_unknown_name_lists_similar_names(
    catalog: Catalog, reference: str, arch: str | None, message: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.resolve(reference, arch)
    assert message in str(caught.value)


@pytest.mark.parametrize("reference", ["", "skiff:", "/core", "skiff:1:2", "skiff/a/b", "a:b/c"])
def test_a_malformed_reference_is_refused(catalog: Catalog, reference: str) -> None:
    with pytest.raises(UsageError, match="is not a reference to an image"):
        catalog.resolve(reference)


def test_selections_are_all_combinations(catalog: Catalog) -> None:
    assert len(set(catalog.selections())) == 2 * 2 * 2


def test_a_selection_answers_for_its_image(catalog: Catalog) -> None:
    selection = catalog.resolve("skiff", "aarch64")
    assert selection.capabilities == ("install", "ssh")
    assert (selection.machine.cpus, selection.machine.disk) == (4, 8 * GIB)
    assert (selection.login.user, selection.console.device) == ("admin", ConsoleDevice.VIRTIO)
    assert (selection.versions, selection.variants) == (("1", "2"), ("core", "cluster"))
    assert (selection.deadlines, selection.profile) == ({"login": 60.0}, "skiff")
    assert selection.arch_image.cmdline == "console=ttyAMA0"
    assert selection.definition is catalog.get("skiff")
    assert selection.path == selection.folder / "image.yaml"


def test_selections_of_equal_names_are_equal(catalog: Catalog) -> None:
    assert catalog.resolve("skiff") == catalog.get("skiff").select("x86_64", "2", "core")
    assert catalog.resolve("skiff") != catalog.resolve("skiff:1")


def test_the_catalogue_of_this_checkout_loads() -> None:
    assert "micro" in load(bundled("images")).names
