"""One rule for the deadlines of all public words, and what a long wait shows."""

from __future__ import annotations

import importlib
import inspect
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import UNSCALED
from harness.errors import UsageError, WaitTimeoutError
from harness.evidence.timeline import Step, Timeline
from harness.progress import Progress
from tests.unit.test_console_support import SOON, open_console

MODULES = [
    "console.console",
    "console.failures",
    "lab",
    "machine.machine",
    "machine.system",
    "points",
    "profiles.abilities",
    "profiles.base",
    "profiles.skiff",
    "qemu.qmp",
    "ssh.session",
]


def words() -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the public functions and methods of the modules that users call."""
    for name in MODULES:
        module = importlib.import_module(f"harness.{name}")
        for owner, thing in vars(module).items():
            if getattr(thing, "__module__", "") != module.__name__:
                continue
            members = vars(thing).items() if inspect.isclass(thing) else [(owner, thing)]
            for member, function in members:
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield f"{name}.{owner}.{member}", function


def test_a_deadline_is_the_last_argument_by_position_in_every_word() -> None:
    wrong = []
    count = 0
    for name, function in words():
        parameters = list(inspect.signature(function).parameters.values())
        kinds = [p.kind for p in parameters]
        for at, parameter in enumerate(parameters):
            if parameter.name != "deadline" or name.endswith(".limit"):
                continue
            count += 1
            if inspect.Parameter.VAR_POSITIONAL in kinds:
                right = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            else:
                right = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and all(
                    kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[at + 1 :]
                )
            if not right:
                wrong.append(name)
    assert count > 40
    assert wrong == []


def test_a_deadline_by_position_where_it_needs_its_name_is_a_usage_error(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, _), pytest.raises(UsageError, match="deadline=30"):
        console.press("Down", 30)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("lo.*: *", "literal"),
        (re.compile("^login:"), "re.MULTILINE"),
        ("password", ""),
        ("a (", ""),
    ],
)
def test_a_wait_for_the_screen_hints_at_a_pattern_that_is_taken_otherwise(
    tmp_path: Path, pattern: str | re.Pattern[str], hint: str
) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"Welcome\r\nlogin: ")
        console.expect("login: ", SOON)
        with pytest.raises(WaitTimeoutError) as caught:
            console.wait_for_screen(pattern, UNSCALED.after(0.05))
        assert hint in str(caught.value)
        assert ("try:" in str(caught.value)) is bool(hint)


@pytest.mark.parametrize(
    ("pattern", "exact", "hint"),
    [
        ("(yes/no)? [y]", False, "expect_exact('(yes/no)? [y]')"),
        (b"(yes/no)? [y]", False, "expect_exact("),
        (re.compile(r"\(yes/no\)\? \[n\]"), False, ""),
        ("login:", False, ""),
        ("Sure.*no", True, "expect('Sure.*no')"),
        ("never.*", True, ""),
        ("[n", True, ""),
        ("yes, no", True, ""),
    ],
)
def test_a_wait_for_output_hints_at_a_pattern_that_is_taken_otherwise(
    tmp_path: Path, pattern: Any, exact: bool, hint: str
) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"login:\r\nSure\r\n(yes/no)? [y] ")
        console.expect("login:", SOON)
        wait = console.expect_exact if exact else console.expect
        with pytest.raises(WaitTimeoutError) as caught:
            wait(pattern, UNSCALED.after(0.3))
        assert hint in caught.value.hint
        assert bool(caught.value.hint) is bool(hint)


def test_a_wait_shows_what_it_waits_for_and_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.progress.FIRST_LINE", 0.01)
    out = io.StringIO()
    progress = Progress(out, live=False)
    progress.begin("micro", "wait for 'login: '", 960)
    while "login" not in out.getvalue():
        progress._thread.join(0.01)  # type: ignore[union-attr]
    progress.close()
    assert re.search(r"micro: wait for 'login: ' \(\d s, 9\d\d s to its deadline\)", out.getvalue())


def test_a_wait_is_shown_while_it_lasts_and_not_recorded() -> None:
    shown: list[tuple[str, object, bool]] = []

    def show(step: Step) -> None:
        shown.append((step.name, step.data["limit"], step.seconds is None))

    timeline = Timeline(listener=show)
    with timeline.waiting("wait for x", machine="micro", limit=960):
        assert shown == [("wait for x", 960, True)]
    assert shown[1:] == [("wait for x", 960, False)]
    assert timeline.steps == []
