"""The page of a nightly in a browser: by keyboard, by screen reader, on a small screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from harness.evidence import history as lines
from harness.evidence.history import Line
from harness.gate.dashboard import page
from tests.integration.test_report_browser import BROWSER, HOSTILE, Browser

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium")

TEST = "suites/boot/test_live.py::test_it"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser; its test fails if the page breaks its policy, asks for anything or complains."""
    chromium.events.clear()
    yield chromium
    assert chromium.complaints == []


def a_run(day: int, verdict: str, reason: str = "it failed", image: str = "skiff") -> Line:
    test = {
        "id": TEST,
        "arch": "x86_64",
        "verdict": verdict,
        "seconds": {"call": 2.0},
        "reason": "" if verdict == "passed" else reason,
        "signature": "" if verdict == "passed" else "5478720c38114f98",
    }
    content = {
        "began": f"2026-11-{day:02}T01:00:00Z",
        "image": {"name": image, "variant": "core", "version": "1"},
        "arches": {"x86_64": {"inputs": f"digest-{day}"}},
        "tests": [test],
    }
    return lines.compact(content, url="report.html")


def show(browser: Browser, folder: Path, runs: list[Line]) -> None:
    path = folder / "nightly.html"
    path.write_text(page(runs, None, [("fedora", "x86_64")]))
    browser("Page.navigate", url=f"file://{quote(str(path))}")
    # The page has no script that would say so.
    browser.evaluate(
        "new Promise(done => document.readyState === 'complete' ? done()"
        " : addEventListener('load', () => done()))"
    )


def nodes(browser: Browser) -> list[tuple[str, str]]:
    """Role and name of what a screen reader gets."""
    tree = browser("Accessibility.getFullAXTree")["nodes"]
    return [
        (str(node.get("role", {}).get("value")), str(node.get("name", {}).get("value", "")))
        for node in tree
        if not node.get("ignored")
    ]


def press(browser: Browser, key: str, code: int) -> None:
    words: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    if key == "Enter":
        words["text"] = "\r"
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, **words)


NIGHTS = [a_run(day, "passed") for day in range(1, 14)] + [a_run(14, "product")]


def test_a_screen_reader_gets_the_matrix_in_words(tmp_path: Path, browser: Browser) -> None:
    show(browser, tmp_path, NIGHTS)
    tree = nodes(browser)
    headings = [name for role, name in tree if role == "heading"]
    assert headings == [
        *("Nightly", "Failing now", "Matrix", "Trend", "Flaky", "Slowest", "Known failures")
    ]
    assert ("link", "2026-11-14: 1 product") in tree
    assert ("link", "2026-11-13: 1 passed") in tree
    tables = [name for role, name in tree if role == "table"]
    assert "Image by architecture by suite, one column a night" in tables
    charts = [name for role, name in tree if role in ("img", "image")]
    assert any(name.startswith("Failed by the host, percent of tests by night") for name in charts)
    assert {role for role, _ in tree} >= {"main", "navigation", "columnheader", "rowheader"}


def test_the_keyboard_reaches_everything(tmp_path: Path, browser: Browser) -> None:
    show(browser, tmp_path, NIGHTS)
    press(browser, "Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the content"
    box = "JSON.stringify(document.activeElement.getBoundingClientRect())"
    assert '"x":-' not in browser.evaluate(box)
    press(browser, "Enter", 13)
    assert browser.evaluate("location.hash") == "#main"
    seen = set()
    for _ in range(60):
        press(browser, "Tab", 9)
        seen.add(
            browser.evaluate(
                "document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.textContent"
            )
        )
    assert "Image by architecture by suite, one column a night" in seen
    assert "What changed since it passed" in seen
    assert "The numbers" in seen


def test_it_fits_a_small_screen(tmp_path: Path, browser: Browser) -> None:
    browser(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=800,
        deviceScaleFactor=1,
        mobile=True,
    )
    try:
        show(browser, tmp_path, NIGHTS)
        # The matrix scrolls in its own box, and the page does not.
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate(
            "[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
        )
    finally:
        browser("Emulation.clearDeviceMetricsOverride")


def test_the_style_is_applied(tmp_path: Path, browser: Browser) -> None:
    """The policy's digest is that of the style."""
    show(browser, tmp_path, NIGHTS)
    code = "getComputedStyle(document.querySelector('.v.product')).color"
    other = "getComputedStyle(document.querySelector('.v.passed')).color"
    assert browser.evaluate(code) != browser.evaluate(other)
    sign = "getComputedStyle(document.querySelector('.v.product'), '::before').content"
    assert browser.evaluate(sign) == '"✕"'


def test_a_hostile_guest_does_nothing(tmp_path: Path, browser: Browser) -> None:
    runs = [a_run(1, "passed", image=HOSTILE), a_run(2, "product", HOSTILE, image=HOSTILE)]
    show(browser, tmp_path, runs)
    assert "<img src=x" in browser.text
    assert browser.evaluate("document.querySelectorAll('img, script, iframe').length") == 0
    assert browser.evaluate("document.documentElement.dataset.owned ?? null") is None
