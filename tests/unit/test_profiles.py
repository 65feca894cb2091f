from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import paths, profiles
from harness.catalog import CAPABILITIES, Image, load
from harness.errors import UnknownNameError, UsageError
from harness.keys import KeyPair
from harness.machine import Machine
from harness.profiles import Account, BootRecord, Profile, Slot, _skiff, capabilities, skiff
from harness.profiles.micro import Micro
from harness.spec import Firmware, FirmwareKind, MachineSpec, Nic

ROOT = Path(__file__).resolve().parents[2]


def image(profile: str, path: Path | None = None) -> Image:
    """An image with this profile, as if read from a file."""
    arches = {"x86_64": {"firmware": "uefi", "artifacts": {"live": {"file": "live.raw"}}}}
    made = Image.model_validate(
        {
            "name": "tiny",
            "summary": "An image",
            "profile": profile,
            "arches": arches,
            "build": {"script": "build"},
        }
    )
    made._path = path or Path("image.yaml")
    return made


def test_the_package_s_own_are_found_by_name() -> None:
    assert profiles.names() == ["micro", "skiff"]
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


def test_another_project_s_profile_lies_beside_its_image(tmp_path: Path) -> None:
    (tmp_path / "kite.py").write_text(KITE)
    made = profiles.of(image("kite.py", tmp_path / "image.yaml"))
    assert made.name == "kite"
    folder = tmp_path / "other"
    folder.mkdir()
    assert profiles.of(image("../kite.py", folder / "image.yaml")) is made, "loaded once"
    (folder / "kite.py").write_text(KITE.replace('"kite"', '"another"'))
    assert profiles.of(image("kite.py", folder / "image.yaml")).name == "another"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("", "has to define one profile, and has: none"),
        (f"{KITE}\nclass Second(Profile):\n    pass\n", "has: Kite, Second"),
    ],
)
def test_a_file_that_is_no_profile_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "kite.py").write_text(text)
    for _ in range(2):
        with pytest.raises(UsageError, match=says):
            profiles.of(image("kite.py", tmp_path / "image.yaml"))


def test_an_account_that_changes_is_who_ssh_logs_in_as() -> None:
    seen: list[str] = []
    machine = SimpleNamespace(log_in_as=seen.append)
    selection = image("micro").select()
    words = Micro(cast(Any, machine), selection, Account("mate"))
    words.account = Account("root", "secret")
    assert (words.account.password, seen) == ("secret", ["root"])


@pytest.mark.parametrize("over", ["console", "ssh"])
def test_who_waits_for_a_machine_that_nobody_has_started_is_told_so(
    tmp_path: Path, over: str
) -> None:
    firmware = Firmware(FirmwareKind.KERNEL, kernel=Path("/kernel"))
    nics = (Nic(),) if over == "ssh" else ()
    machine = Machine(
        MachineSpec("m", "x86_64", firmware, nics=nics),
        accel=lambda arch: pytest.fail(f"nothing of {arch} is started"),
        key=KeyPair.generate(),
        evidence=tmp_path,
    )
    machine.os = Micro(machine, image("micro").select())
    with pytest.raises(UsageError, match="has not been started"):
        machine.wait_ready()


class _Half(Profile):
    def version(self) -> str:
        return "1"

    @classmethod
    def malformed_seed(cls, *_: object) -> tuple[str, str]:
        return "", ""


def test_the_words_that_a_capability_asks_for_and_a_profile_lacks_are_told() -> None:
    assert capabilities.lacking(_Half, ["ssh", "reset"]) == ["reset", "slot"]
    assert capabilities.lacking(_Half, ["install"]) == ["install", "slot"]
    assert capabilities.lacking(_Half, ["seed"]) == []
    assert "malformed_seed" not in capabilities.lacking(_Half, ["install-unattended", "seed"])
    assert "seed" in capabilities.lacking(_Half, ["install-unattended", "seed"])


def test_the_images_here_have_the_words_that_they_declare() -> None:
    catalog = load(paths.images_dir())
    for name in catalog.names:
        found = catalog.get(name)
        assert capabilities.lacking(profiles.of(found), found.capabilities) == []


def test_words_and_capabilities_exist() -> None:
    for key, words in capabilities.WORDS.items():
        assert set(key) <= set(CAPABILITIES)
        assert all(inspect.getattr_static(Profile, word, None) is not None for word in words)


# --- the suites and the table -------------------------------------------------------------------

# Every profile has these: those of the base do for most systems.
FOR_ALL = {
    *("account", "as_root", "check_state", "identity", "limit", "login", "other_slot", "refusals"),
    *("request_reboot", "says", "selection", "slot_names", "state_folder", "tries", "unit_state"),
    *("wait_good", "wait_running"),
}


def _needed(decorated: ast.Module | ast.FunctionDef) -> set[str]:
    """The names that ``needs(...)`` has in the decorators of a function, or in its module's mark."""
    if isinstance(decorated, ast.FunctionDef):
        marks: list[ast.AST] = list(decorated.decorator_list)
    else:
        marks = [
            node.value
            for node in decorated.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
    return {
        argument.value
        for mark in marks
        for node in ast.walk(mark)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.needs"
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def _asked(node: ast.AST) -> set[str]:
    """The capabilities that code asks an image for: ``if "recovery" in image.image.capabilities``."""
    return {
        each.left.value
        for each in ast.walk(node)
        if isinstance(each, ast.Compare)
        and isinstance(each.left, ast.Constant)
        and isinstance(each.left.value, str)
        and ast.unparse(each.comparators[0]).endswith(".capabilities")
    }


def _used(node: ast.AST) -> set[str]:
    """The words of ``machine.os`` and of the profile's class that code says."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and (
            (isinstance(each.value, ast.Attribute) and each.value.attr == "os")
            or ast.unparse(each.value) in ("profile", "profiles.of(image.image)")
        )
    }


def scenarios() -> Iterator[tuple[str, set[str], set[str]]]:
    """Each test of the suites, what it needs, and the words that it says, in itself or by helpers."""
    for path in sorted((ROOT / "suites").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for name, function in functions.items():
            if not name.startswith("test_"):
                continue
            words: set[str] = set()
            seen: set[str] = set()
            pending = [name]
            while pending:
                each = pending.pop()
                if each in seen or each not in functions:
                    continue
                seen.add(each)
                words |= _used(functions[each])
                # Helpers by their names, fixtures by those of arguments.
                pending += [
                    node.id for node in ast.walk(functions[each]) if isinstance(node, ast.Name)
                ]
                pending += [argument.arg for argument in functions[each].args.args]
            needed = _needed(tree) | _needed(function) | _asked(function)
            yield f"{path.name}::{name}", needed, words


SCENARIOS = list(scenarios())


@pytest.mark.parametrize(
    ("name", "needed", "said"), SCENARIOS, ids=[name for name, *_ in SCENARIOS]
)
def test_a_scenario_s_words_go_with_what_it_needs(
    name: str, needed: set[str], said: set[str]
) -> None:
    unknown = said - capabilities.words(needed) - FOR_ALL
    assert not unknown, f"{name} needs {sorted(needed)}, which does not promise {sorted(unknown)}"


def test_each_word_of_the_table_is_said_by_a_scenario() -> None:
    said = {word for _, _, words in SCENARIOS for word in words} | {"verified"}
    promised = {word for words in capabilities.WORDS.values() for word in words}
    assert promised <= said


@pytest.mark.parametrize(
    "path", sorted((ROOT / "suites").rglob("*.py")), ids=lambda path: path.name
)
def test_the_suites_name_no_operating_system(path: Path) -> None:
    text = path.read_text().lower()
    # What says that it needs systemd may name its program.
    known = () if 'needs("' in text and '"systemd"' in text else ("systemctl",)
    names = ("skiff", "vda", "debian", "grub", "rpm-ostree", "kairos", *known)
    assert not [name for name in names if name in text]


@pytest.mark.parametrize(
    ("told", "slot"),
    [
        ("1 good - -", Slot("a", "1", "good")),
        ("2 trying 2 1", Slot("a", "2", "trying", 2, 1)),
        ("2-panic bad 0 3", Slot("a", "2-panic", "bad", 0, 3)),
        ("- empty - -", Slot("a", "", "empty")),
    ],
)
def test_skiff_reads_what_its_status_says_of_a_slot(told: str, slot: Slot) -> None:
    assert _skiff.slot("a", told) == slot


def test_skiff_reads_a_line_of_its_boot_record() -> None:
    boot = "0" * 31 + "1"
    assert _skiff.record(f"2026-01-01T00:00:00Z {boot} 2 b 2 good") == BootRecord(
        "2026-01-01T00:00:00Z", boot, "2", "b", 2, "good"
    )
    assert _skiff.record("2026-01-01T00:00:00Z - 2 b 0 failed").boot_id == ""


def test_skiff_reads_the_boot_menu_from_the_moves_of_the_cursor() -> None:
    shown = (
        "BdsDxe: starting Boot0001\r\n \x1b[2J\x1b[01;01H\x1b[24;23H\x1b[0m\x1b[30m\x1b[47m"
        "     skiff 2    "
        "\x1b[25;23H\x1b[0m\x1b[37m\x1b[40m     skiff 1    \x1b[26;23H  skiff recovery  "
        "\x1b[29;01H         Boot in 60 s.     "
    )
    assert _skiff.menu(shown) == ["skiff 2", "skiff 1", "skiff recovery"]
