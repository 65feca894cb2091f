"""The words of a display: matches that are not half drawn, and keys that are not lost."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.deadline import UNSCALED, Scale
from harness.errors import GuestStoppedError, QmpError, UsageError, WaitTimeoutError
from harness.evidence.timeline import Timeline
from harness.machine import display as display_module
from harness.machine.display import Display
from harness.machine.parts import Parts
from harness.qemu.vga import VgaText
from harness.scope import Scope

DRAWN = ["", "Disk 1", "Disk 12", "Disk 128", "Disk 128 ok", "Disk 128 ok /", "Disk 128 ok -"]


class Monitor:
    """QEMU's monitor: records keys; stands still for other threads only."""

    def __init__(self) -> None:
        self.running = True
        self.keys: list[tuple[list[str], int]] = []
        self.full = False
        self.on_key: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        yield

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if command == "query-status":
            return {"running": self.running}
        assert arguments is not None
        if command == "screendump":
            if self.full:
                raise QmpError("no space")
            Path(arguments["filename"]).write_bytes(b"PNG")
        if command == "send-key":
            codes = [key["data"] for key in arguments["keys"]]
            self.keys.append((codes, arguments["hold-time"]))
            self.on_key()
        return {}


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


@pytest.fixture
def scope() -> Scope:
    return Scope("machine m")


def new_display(
    tmp_path: Path,
    monitor: Monitor,
    scope: Scope,
    *,
    arch: str = "x86_64",
    display: bool = True,
    factor: float = 0.01,
    timeline: Timeline | None = None,
) -> Display:
    spec = SimpleNamespace(arch=arch, display=display)
    parts = SimpleNamespace(
        name="m",
        spec=spec,
        scope=scope,
        scale=Scale(factor),
        qmp=monitor,
        evidence=tmp_path,
        timeline=timeline or Timeline(),
    )
    return Display(cast("Parts", parts))


def show(monkeypatch: pytest.MonkeyPatch, screens: list[str | None]) -> list[str | None]:
    """Let each look see the next screen, and then the last one for ever."""
    rest = list(screens)

    def read(qmp: object, scratch: Path) -> VgaText | None:
        text = rest.pop(0) if len(rest) > 1 else rest[0]
        return None if text is None else VgaText(tuple(text.split("\n")), (1, 1))

    monkeypatch.setattr(display_module, "read_text", read)
    return rest


# --- the screen ---------------------------------------------------------------------------------


def test_a_match_that_is_still_being_drawn_does_not_count(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, list(DRAWN))
    screen = new_display(tmp_path, monitor, scope).wait_for_screen(re.compile(r"Disk \d+"))
    assert screen.find(re.compile(r"Disk \d+")) == "Disk 128"
    assert screen.text == "Disk 128 ok"


def test_a_screen_that_changes_elsewhere_matches(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = show(monkeypatch, [f"Menu\n{number}" for number in range(9)])
    new_display(tmp_path, monitor, scope).wait_for_screen("Menu")
    assert len(rest) == 7


def test_a_text_that_was_there_for_a_moment_does_not_count(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, ["", "gone", "", "gone", ""])
    with pytest.raises(WaitTimeoutError):
        new_display(tmp_path, monitor, scope).wait_for_screen("gone", UNSCALED.after(0.05))


def test_a_plain_text_is_no_regular_expression(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, ["a *"])
    assert new_display(tmp_path, monitor, scope).wait_for_screen("a *").text == "a *"


def test_graphics_before_the_text_are_waited_out(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, [None, None, "login:"])
    display = new_display(tmp_path, monitor, scope)
    assert display.wait_for_screen("login:").text == "login:"
    show(monkeypatch, [None])
    with pytest.raises(UsageError, match="graphics mode"):
        _ = display.screen
    with pytest.raises(WaitTimeoutError, match="graphics mode"):
        display.wait_for_screen("login:", UNSCALED.after(0))


def test_a_wait_that_ends_has_the_screen_and_a_picture(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, ["grub> "])
    display = new_display(tmp_path, monitor, scope)
    with pytest.raises(WaitTimeoutError, match="'login:' on the display of m") as caught:
        display.wait_for_screen("login:", UNSCALED.after(0))
    assert Path(caught.value.evidence).exists()
    assert caught.value.__notes__ == ["on the screen:\ngrub> "]
    with pytest.raises(WaitTimeoutError, match="literal here; as a regular expression"):
        display.wait_for_screen("g.*b>", UNSCALED.after(0))
    monitor.full = True
    with pytest.raises(WaitTimeoutError, match="no picture: no space"):
        display.wait_for_screen("login:", UNSCALED.after(0))


def test_each_wait_says_what_it_waits_for_and_how_long_it_may_take(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, ["ready"])
    monkeypatch.setattr(display_module, "grab", lambda qmp, path: None)
    monkeypatch.setattr(display_module, "ocr_program", lambda: None)
    shown: list[tuple[str, bool]] = []
    timeline = Timeline(
        listener=lambda step: shown.append((step.name, 7000 < step.data["limit"] <= 7200))
    )
    display = new_display(tmp_path, monitor, scope, timeline=timeline)
    display.wait_for_screen("ready", UNSCALED.after(7200))
    display.wait_for_text(re.compile("re"), UNSCALED.after(7200))
    assert shown[::2] == [
        ("wait for 'ready' on the display", True),
        ("wait for 're' on the display", True),
    ]
    for pattern in (None, "code"):
        with pytest.raises(WaitTimeoutError):
            display.wait_for_qr(pattern, UNSCALED.after(0))
    assert [step.name for step in timeline.steps] == [
        "wait for a QR code on the display",
        "wait for a QR code of 'code' on the display",
    ]


def test_a_description_names_known_screens_and_pictures_the_rest(
    tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, ["Memtest86+ v6\nTesting", "ready>", "", None])
    display = new_display(tmp_path, monitor, scope)
    assert display.describe().startswith("its display shows Memtest86+, which tests the memory:\n")
    assert display.describe() == "on its display:\nready>"
    assert display.describe() == "on its display:\nnothing"
    for drawn in (display, new_display(tmp_path, monitor, scope, arch="aarch64")):
        before, _, path = drawn.describe().rpartition(" ")
        assert before == "the picture on its display:"
        assert Path(path).exists()


@pytest.mark.parametrize("word", ["wait_for_screen", "press"])
def test_a_failure_of_the_scope_ends_the_words_at_once(
    word: str, tmp_path: Path, monitor: Monitor, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def read(qmp: object, scratch: Path) -> VgaText:
        looked.set()
        return VgaText((), (1, 1))

    monkeypatch.setattr(display_module, "read_text", read)
    monkeypatch.setattr(display_module, "_LONGEST_LOOK", math.inf)
    monkeypatch.setattr(display_module, "_LONGEST_HOLD", math.inf)
    monkeypatch.setattr(monitor, "on_key", looked.set)
    display = new_display(tmp_path, monitor, scope, factor=1_000_000)
    raised: list[GuestStoppedError] = []

    def wait() -> None:
        try:
            getattr(display, word)("x")
        except GuestStoppedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert looked.wait(20)
    scope.fail(GuestStoppedError("stopped"))
    thread.join(20)
    assert [str(error) for error in raised] == ["stopped"]
    wait()
    assert len(raised) == 2


# --- the keyboard -------------------------------------------------------------------------------


def test_keys_are_pressed_one_after_the_other(
    tmp_path: Path, monitor: Monitor, scope: Scope
) -> None:
    display = new_display(tmp_path, monitor, scope)
    display.press("Ctrl-Alt-Delete", "Down")
    display.send_line("Ok")
    assert monitor.keys == [
        (["ctrl", "alt", "delete"], 1),
        (["down"], 1),
        (["shift", "o"], 1),
        (["k"], 1),
        (["ret"], 1),
    ]


@pytest.mark.parametrize(("factor", "hold"), [(1.0, 10), (8.0, 80), (50.0, 100)])
def test_a_slow_guest_gets_slow_keys_that_do_not_repeat(
    factor: float, hold: int, tmp_path: Path, monitor: Monitor, scope: Scope
) -> None:
    new_display(tmp_path, monitor, scope, factor=factor).press("x")
    assert monitor.keys == [(["x"], hold)]


def test_keys_that_do_not_fit_into_the_deadline_say_how_many_did(
    tmp_path: Path, monitor: Monitor, scope: Scope
) -> None:
    display = new_display(tmp_path, monitor, scope)
    with pytest.raises(WaitTimeoutError, match="to take 500 keys, of which it took"):
        display.send("x" * 500, UNSCALED.after(0.01))
    assert len(monitor.keys) < 500


def test_a_paused_machine_takes_no_keys(tmp_path: Path, monitor: Monitor, scope: Scope) -> None:
    monitor.running = False
    with pytest.raises(UsageError, match="paused"):
        new_display(tmp_path, monitor, scope).press("x")
    assert monitor.keys == []


# --- machines without ---------------------------------------------------------------------------


def test_a_machine_without_a_display_says_so(
    tmp_path: Path, monitor: Monitor, scope: Scope
) -> None:
    with pytest.raises(UsageError, match="machine m has no display") as caught:
        new_display(tmp_path, monitor, scope, display=False)
    assert "display=True" in caught.value.hint


def test_an_adapter_without_text_mode_shows_pictures_only(
    tmp_path: Path, monitor: Monitor, scope: Scope
) -> None:
    display = new_display(tmp_path, monitor, scope, arch="aarch64")
    with pytest.raises(UsageError, match="no text mode: it is a ramfb"):
        _ = display.screen
    with pytest.raises(UsageError, match="no text mode"):
        display.wait_for_screen("x")
    with pytest.raises(UsageError, match="no keyboard"):
        display.press("x")
    assert display.screenshot().read_bytes() == b"PNG"
