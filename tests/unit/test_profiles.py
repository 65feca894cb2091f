"""Profiles: how they load, their abilities, the words that they lack, and mypy's view of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from harness import paths, profiles
from harness.catalog import CAPABILITIES, Image, load
from harness.errors import UnknownNameError, UsageError
from harness.profiles import Account, BootRecord, Profile, Slot, _skiff, abilities, skiff
from harness.profiles.micro import Micro

ROOT = Path(__file__).resolve().parents[2]


def image(profile: str, path: Path | None = None) -> Image:
    """An image with this profile, as if read from a file."""
    arches = {"x86_64": {"firmware": "uefi", "artifacts": {"live": {"file": "live.raw"}}}}
    definition = Image.model_validate(
        {
            "name": "tiny",
            "summary": "An image",
            "profile": profile,
            "arches": arches,
            "build": {"script": "build"},
        }
    )
    definition._path = path or Path("image.yaml")
    return definition


def test_built_in_profiles_have_names() -> None:
    assert profiles.names() == ["cloud", "micro", "skiff"]
    assert profiles.of(image("skiff")) is skiff.Skiff
    with pytest.raises(UnknownNameError, match="did you mean skiff"):
        profiles.of(image("skif"))


KITE = """
from harness.profiles import Profile


class _Base(Profile):
    pass


class Kite(_Base):
    name = "kite"
"""


def test_a_project_keeps_its_profile_beside_its_image(tmp_path: Path) -> None:
    (tmp_path / "kite.py").write_text(KITE)
    profile = profiles.of(image("kite.py", tmp_path / "image.yaml"))
    assert profile.name == "kite"
    assert profiles.of(image("kite.py", tmp_path / "image.yaml").select()) is profile
    folder = tmp_path / "other"
    folder.mkdir()
    assert profiles.of(image("../kite.py", folder / "image.yaml")) is profile, "loaded once"
    (folder / "kite.py").write_text(KITE.replace('"kite"', '"another"'))
    assert profiles.of(image("kite.py", folder / "image.yaml")).name == "another"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("", "must define exactly one profile; it defines: none"),
        (f"{KITE}\nclass Second(Profile):\n    pass\n", "it defines: Kite, Second"),
    ],
)
def test_a_file_without_exactly_one_profile_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "kite.py").write_text(text)
    for _ in range(2):
        with pytest.raises(UsageError, match=says):
            profiles.of(image("kite.py", tmp_path / "image.yaml"))


def test_a_new_account_also_logs_in_over_ssh() -> None:
    users: list[str] = []
    machine = SimpleNamespace(console=SimpleNamespace(), log_in_as=users.append)
    selection = image("micro").select()
    words = Micro(cast(Any, machine), selection, Account("mate"))
    words.account = Account("root", "secret")
    assert (words.account.password, users) == ("secret", ["root"])


class _Half(Profile):
    """A profile with two words of different abilities."""

    name = "half"

    def version(self) -> str:
        return "1"

    @classmethod
    def malformed_seed(cls, *_: object) -> tuple[str, str]:
        return "", ""


def test_lacking_lists_the_words_that_capabilities_require_and_a_profile_does_not_define() -> None:
    assert profiles.lacking(_Half, ["ssh", "reset"]) == ["reset", "slot"]
    assert profiles.lacking(_Half, ["install"]) == ["install", "slot"]
    assert profiles.lacking(_Half, ["seed"]) == []
    both = profiles.lacking(_Half, ["install-unattended", "seed"])
    assert both == ["install_from", "seed", "wait_installed"]


def test_an_empty_table_of_update_files_is_lacking() -> None:
    class Upgrades(Profile):
        update_files: ClassVar[dict[str, str]] = {}

    assert "update_files" in profiles.lacking(Upgrades, ["upgrade"])
    Upgrades.update_files = {"root": "*.raw"}
    assert "update_files" not in profiles.lacking(Upgrades, ["upgrade"])


def test_a_stub_inherited_from_a_protocol_is_lacking() -> None:
    class Resets(Profile, profiles.Resettable):
        def slot(self) -> str:
            return "a"

    assert profiles.lacking(Resets, ["reset"]) == ["reset"]


def test_the_images_of_this_checkout_have_the_words_of_their_capabilities() -> None:
    catalog = load(paths.bundled("images"))
    for name in catalog.names:
        image = catalog.get(name)
        assert profiles.lacking(profiles.of(image), image.capabilities) == []


def test_each_ability_belongs_to_capabilities_that_exist_and_adds_words() -> None:
    for capabilities, ability in profiles.ABILITIES.items():
        assert set(capabilities) <= set(CAPABILITIES)
        assert abilities.words_of(ability)
    assert profiles.abilities_of(["install-unattended"]) == [profiles.UnattendedInstallable]
    assert profiles.SeedInstallable in profiles.abilities_of(["install-unattended", "seed"])
    assert profiles.abilities_of(["ssh", "x-omaha"]) == []


# --- words that a profile lacks ------------------------------------------------------------------


def micro(**attributes: object) -> Any:
    """The words of micro on a machine that is not there."""
    attributes.setdefault("console", SimpleNamespace())
    machine = SimpleNamespace(name="m", log_in_as=lambda user: None, **attributes)
    return Micro(cast(Any, machine), image("micro").select())


def test_a_missing_word_names_the_profile_the_word_and_its_capability() -> None:
    with pytest.raises(UsageError) as caught:
        micro().upgrade("https://host/2/")
    assert "profile 'micro' lacks the word 'upgrade'" in caught.value.what
    assert "capability upgrade" in caught.value.what
    assert "define upgrade in the profile" in caught.value.hint
    assert "needs" in caught.value.hint


def test_a_missing_word_of_a_class_is_the_same_error() -> None:
    profile: Any = profiles.of(image("micro"))
    with pytest.raises(
        UsageError, match="'seed', which belongs to the capability install-unattended"
    ):
        profile.seed(None)


def test_a_misspelt_word_suggests_the_right_one() -> None:
    with pytest.raises(UsageError) as caught:
        micro().as_rot("id")
    assert "did you mean as_root?" in caught.value.hint


def test_hasattr_and_dir_list_the_words_that_a_profile_has() -> None:
    words = micro()
    assert {"login", "version", "as_root", "identity"} <= set(dir(words))
    assert not {"upgrade", "install", "slot"} & set(dir(words))
    assert {"upgrade", "install", "slot"} <= set(dir(skiff.Skiff))
    assert hasattr(words, "version")
    assert not hasattr(words, "upgrade")
    assert not hasattr(words, "_repr_html_")
    assert repr(words) == "<profile micro of machine m>"


def test_an_error_inside_a_property_is_not_a_missing_word() -> None:
    class Broken(Profile):
        name = "broken"

        @property
        def flavour(self) -> object:
            return self.machine.nothing_like_it  # type: ignore[attr-defined]

    words = Broken(cast(Any, SimpleNamespace(console=SimpleNamespace())), image("micro").select())
    with pytest.raises(AttributeError, match="nothing_like_it") as caught:
        _ = words.flavour
    assert not isinstance(caught.value, UsageError)


# --- mypy -----------------------------------------------------------------------------------------

SNIPPET = """
from typing import Protocol

from harness import profiles
from harness.catalog import Selection
from harness.machine import Machine
from harness.profiles import Install, Resettable, SeedInstallable, Upgradable
from harness.profiles.micro import Micro


class Subject(Upgradable, Resettable, Protocol):
    ...


def check(machine: Machine) -> None:
    machine.os.login()


def upgrade(machine: Machine[Upgradable]) -> None:
    machine.os.upgrade("https://host/2/")
    check(machine)


def both(machine: Machine[Subject]) -> None:
    machine.os.reset()
    upgrade(machine)


def seed(image: Selection, answers: Install) -> dict[str, str]:
    profile: type[SeedInstallable] = profiles.of(image)
    return profile.seed(answers)
"""

WRONG = """

def plain(machine: Machine) -> None:
    machine.os.upgrade("https://host/2/")


def other(machine: Machine[Upgradable]) -> None:
    machine.os.reset()


def passed_on(machine: Machine) -> None:
    upgrade(machine)


def unnamed(image: Selection, answers: Install) -> None:
    profiles.of(image).seed(answers)


def missing(words: Micro) -> None:
    words.upgrade("https://host/2/")


def unable(words: Micro) -> Upgradable:
    return words
"""


def mypy(path: Path, text: str) -> list[str]:
    """Run mypy on a file with this text and return its errors."""
    path.write_text(text)
    process = subprocess.run(
        # The configuration, and with it the cache, of `./run type`.
        [sys.executable, "-m", "mypy", "--config-file=pyproject.toml", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in process.stdout.splitlines() if ": error: " in line]
    assert bool(errors) == (process.returncode == 1), process.stdout + process.stderr
    return errors


def test_mypy_accepts_the_words_of_the_ability_that_a_test_names(tmp_path: Path) -> None:
    assert mypy(tmp_path / "snippet_right.py", SNIPPET) == []


def test_mypy_rejects_words_of_other_abilities(tmp_path: Path) -> None:
    errors = mypy(tmp_path / "snippet_wrong.py", SNIPPET + WRONG)
    reasons = [error.split(": error: ")[1] for error in errors]
    for reason, part in zip(
        reasons,
        (
            '"System" has no attribute "upgrade"',
            '"Upgradable" has no attribute "reset"',
            'incompatible type "Machine[System]"; expected "Machine[Upgradable]"',
            '"type[Profile]" has no attribute "seed"',
            '"Micro" has no attribute "upgrade"',
            'Incompatible return value type (got "Micro", expected "Upgradable")',
        ),
        strict=True,
    ):
        assert part in reason


# --- the suites -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "suites").rglob("*.py")), ids=lambda path: path.name
)
def test_the_suites_name_no_operating_system(path: Path) -> None:
    text = path.read_text().lower()
    # A test that needs systemd may name systemd's program.
    program = () if 'needs("' in text and '"systemd"' in text else ("systemctl",)
    names = ("skiff", "vda", "debian", "grub", "rpm-ostree", "kairos", *program)
    assert not [name for name in names if name in text]


@pytest.mark.parametrize(
    ("status", "slot"),
    [
        ("1 good - -", Slot("a", "1", "good")),
        ("2 trying 2 1", Slot("a", "2", "trying", 2, 1)),
        ("2-panic bad 0 3", Slot("a", "2-panic", "bad", 0, 3)),
        ("- empty - -", Slot("a", "", "empty")),
    ],
)
def test_skiff_parses_the_status_of_a_slot(status: str, slot: Slot) -> None:
    assert _skiff.slot("a", status) == slot


def test_skiff_parses_a_line_of_its_boot_record() -> None:
    boot = "0" * 31 + "1"
    assert _skiff.record(f"2026-01-01T00:00:00Z {boot} 2 b 2 good") == BootRecord(
        "2026-01-01T00:00:00Z", boot, "2", "b", 2, "good"
    )
    assert _skiff.record("2026-01-01T00:00:00Z - 2 b 0 failed").boot_id == ""


def test_skiff_parses_the_boot_menu_by_the_movements_of_the_cursor() -> None:
    output = (
        "BdsDxe: starting Boot0001\r\n \x1b[2J\x1b[01;01H\x1b[24;23H\x1b[0m\x1b[30m\x1b[47m"
        "     skiff 2    "
        "\x1b[25;23H\x1b[0m\x1b[37m\x1b[40m     skiff 1    \x1b[26;23H  skiff recovery  "
        "\x1b[29;01H         Boot in 60 s.     "
    )
    assert _skiff.menu(output) == ["skiff 2", "skiff 1", "skiff recovery"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("https://10.0.2.100/2/%a/ has no update for x86-64", True),
        ("oci://10.0.2.100:5000/os:2 has no update for linux/amd64, only for: linux/arm64", True),
        ("skiff_2_arm64.efi is for arm64, and this machine is x86-64", True),
        ("cannot fetch SHA256SUMS: curl: (22) The requested URL returned error: 404", False),
    ],
)
def test_skiff_says_that_there_is_no_update_for_its_architecture(words: str, meant: bool) -> None:
    assert skiff.Skiff.says("architecture", words) == meant


def test_a_folder_of_an_update_server_has_systemds_name_of_the_architecture() -> None:
    assert [skiff.Skiff.arch_folder(arch) for arch in (None, "x86_64", "aarch64")] == [
        "%a",
        "x86-64",
        "arm64",
    ]
