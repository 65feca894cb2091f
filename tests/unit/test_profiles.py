from __future__ import annotations

import pytest

from harness import profiles
from harness.errors import UnknownNameError, UsageError
from harness.profiles import Profile, skiff
from harness.profiles.base import BootRecord, Slot


def test_the_package_s_own_are_found_by_name() -> None:
    assert {"micro", "skiff"} <= set(profiles.names())
    assert profiles.find("skiff").name == "skiff"
    with pytest.raises(UnknownNameError, match="did you mean skiff"):
        profiles.find("skif")


def test_another_project_s_profile_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_registered", {})

    @profiles.register
    class Kite(Profile):
        name = "kite"

    assert profiles.find("kite") is Kite
    assert "kite" in profiles.names()
    assert profiles.register(Kite) is Kite, "a conftest may be imported twice"

    class Skiff(Profile):
        name = "skiff"

    with pytest.raises(UsageError, match="'skiff' cannot be registered"):
        profiles.register(Skiff)


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
    assert skiff._slot("a", told) == slot


def test_skiff_reads_a_line_of_its_boot_record() -> None:
    boot = "0" * 31 + "1"
    assert skiff._record(f"2026-01-01T00:00:00Z {boot} 2 b 2 good") == BootRecord(
        "2026-01-01T00:00:00Z", boot, "2", "b", 2, "good"
    )
    assert skiff._record("2026-01-01T00:00:00Z - 2 b 0 failed").boot_id == ""


def test_skiff_reads_the_boot_menu_from_the_moves_of_the_cursor() -> None:
    shown = (
        "BdsDxe: starting Boot0001\r\n \x1b[2J\x1b[01;01H\x1b[24;23H\x1b[0m\x1b[30m\x1b[47m"
        "     skiff 2    "
        "\x1b[25;23H\x1b[0m\x1b[37m\x1b[40m     skiff 1    \x1b[26;23H  skiff recovery  "
        "\x1b[29;01H         Boot in 60 s.     "
    )
    assert skiff._menu(shown) == ["skiff 2", "skiff 1", "skiff recovery"]
