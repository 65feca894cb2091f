from __future__ import annotations

import pytest

from harness import profiles
from harness.errors import UnknownNameError, UsageError
from harness.profiles import Profile


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
