"""The report in a browser: what a reader sees, and what a hostile guest does not do."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from harness.evidence.report import page
from harness.evidence.report.merge import merge
from harness.evidence.report.record import gather

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium")

EPOCH = 1795250813.0
OWN = "document.documentElement.dataset.owned=1"
HOSTILE = f'</script><script>{OWN}</script><img src=x onerror="{OWN}">\x1b]0;owned\x07\x1b[2J\u202e'
TEST = "suites/boot/test_live.py::test_it"
SHARED = [
    f"[{second:5}.000001] a line that both machines say, number {second}" for second in range(40)
]


_WITH_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
for number, pipe in enumerate(pipes, 3):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Gives the pipes the numbers that Chromium expects."""


class Browser:
    """A headless Chromium, driven by the DevTools protocol over a pair of pipes.

    With ``--remote-debugging-pipe`` it reads messages from descriptor 3 and writes them to 4, each ended
    by a NUL (Chromium, content/browser/devtools/devtools_pipe_handler.cc).
    """

    def __init__(self, folder: Path) -> None:
        assert BROWSER is not None
        theirs_in, self._send = os.pipe()
        self._receive, theirs_out = os.pipe()
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(
                f"--user-data-dir={folder}",
                "--remote-debugging-pipe",
                "--no-first-run",
                "about:blank",
            ),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PIPES, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def evaluate(self, code: str) -> Any:
        """Return the value of JavaScript; of a promise, when it is kept."""
        result = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, path: Path, address: str = "") -> None:
        """Open a page and wait until it has drawn what the address asks for."""
        self("Page.navigate", url=f"file://{quote(str(path))}{address}")
        self.until("document.documentElement?.dataset.ready !== undefined")

    def until(self, condition: str) -> None:
        """Wait until a condition in JavaScript holds; it is looked at after each change of the page."""
        self.evaluate(
            "new Promise(done => { const look = () => { if (" + condition + ") done(); };"
            " new MutationObserver(look).observe(document,"
            " {subtree: true, childList: true, attributes: true, characterData: true}); look(); })"
        )

    @property
    def text(self) -> str:
        return str(self.evaluate("document.documentElement.innerText"))

    @property
    def lines(self) -> list[str]:
        """The lines of the logs."""
        code = "[...document.querySelectorAll('.log .text')].map(each => each.textContent)"
        return list(self.evaluate(code))

    @property
    def complaints(self) -> list[Any]:
        """Errors of scripts, words on the console, breaches of the policy, requests."""
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [
            event["params"]
            for event in self.events
            if event["method"] in bad
            or (
                event["method"] == "Network.requestWillBeSent"
                and event["params"]["type"] != "Document"
            )
        ]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._send)
        os.close(self._receive)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], 120)
            assert ready, "the browser does not answer"
            part = os.read(self._receive, 2**16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    try:
        yield browser
        assert browser.complaints == []
    finally:
        browser.close()


def png(width: int, height: int) -> bytes:
    """Return a black picture (PNG, third edition, section 5)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    rows = zlib.compress(bytes(1 + width) * height)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def a_run(root: Path, name: str, reason: str = "upgrade refused", said: str = "") -> dict[str, Any]:
    """Return the record of a run in which one test of two machines failed at 20 s."""
    folder = root / name
    steps: list[dict[str, Any]] = []
    for machine in ("alpha", "beta"):
        place = folder / "it" / machine
        place.mkdir(parents=True)
        (place / "machine.json").write_text("{}")
        lines: list[object] = [{"version": 2, "width": 80, "height": 24, "timestamp": EPOCH}]
        lines += [[second, "o", f"{line}\r\n"] for second, line in enumerate(SHARED)]
        lines.append([15.5, "o", f"{said} \U0001f600\r\n"])
        (place / "serial.cast").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (place / "qemu.stderr").write_text(f"QEMU said {said}")
        steps.append(
            {"name": f"start {said}", "machine": machine, "depth": 0, "start": 0, "seconds": 2}
        )
        steps[-1] |= {"outcome": "passed", "error": "", "data": {"host": said}}
    # The step went well; its status is what failed the test.
    steps.append(steps[-1] | {"name": "run: upgrade", "start": 12, "seconds": 8})
    steps[-1] |= {"data": {"status": 1}}
    (folder / "it/timeline.json").write_text(
        json.dumps({"title": TEST, "began": EPOCH, "steps": steps, "findings": []})
    )
    test = {"id": TEST, "arch": "x86_64", "outcome": "failed", "verdict": "product"}
    test |= {"reason": reason, "evidence": "it"}
    passed = {"id": f"{TEST}_too", "arch": "x86_64", "outcome": "passed", "verdict": "passed"}
    run = {"began": "2026-11-29T02:00:00Z", "seconds": 61.2, "tests": [test, passed]}
    run |= {"image": {"name": f"skiff{said}", "version": "1", "variant": "core"}, "command": []}
    (folder / "results.json").write_text(json.dumps(run))
    return gather(folder)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    page.write(a_run(tmp_path, "run"), tmp_path / "report.html")
    return tmp_path / "report.html"


def test_the_first_page_has_the_failed_step_in_the_cell(report: Path, browser: Browser) -> None:
    browser.show(report)
    assert "1 of 2 tests failed" in browser.text
    cells = "[...document.querySelectorAll('td.cell')].map(each => each.innerText)"
    assert browser.evaluate(cells) == ["product run: upgrade"]
    first = "[...document.querySelectorAll('.first li')].map(each => each.innerText.split('\\n'))"
    ((_, machine, step, *_),) = browser.evaluate(first)
    assert (machine, step) == ("beta", "run: upgrade in test_it")
    browser.evaluate("document.querySelector('tr.suite button').click()")
    assert sorted(browser.evaluate(cells)) == ["passed", "product run: upgrade"]


def test_the_filter_looks_at_names_steps_and_reasons(report: Path, browser: Browser) -> None:
    browser.show(report)
    names = "[...document.querySelectorAll('tbody th[scope=row]')].map(each => each.innerText)"
    for words, tests in (("refused", ["test_it"]), ("_TOO", ["test_it_too"]), ("nothing", [])):
        browser.evaluate(
            f"{{ const field = document.getElementById('filter'); field.value = {words!r};"
            " field.dispatchEvent(new Event('input')); }"
        )
        assert browser.evaluate(names) == tests


def test_a_link_leads_to_a_test_and_a_span(report: Path, browser: Browser) -> None:
    browser.show(report, f"#test={quote(TEST)}&t=11.9&to=15.1")
    browser.until("document.querySelector('.log .text')")
    # Of each console seconds 12 to 15, and the step that began then.
    assert "9 lines, 11.90 to 15.10 s" in browser.text
    assert sorted(browser.lines) == sorted([*SHARED[12:16], *SHARED[12:16], "run: upgrade"])
    browser.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert all(browser.lines.count(line) == 2 for line in SHARED)


def test_a_step_selects_its_span_and_gives_it_an_address(report: Path, browser: Browser) -> None:
    browser.show(report, f"#test={quote(TEST)}")
    browser.until("document.querySelector('.log .text')")
    browser.evaluate(
        "[...document.querySelectorAll('.steps button')]"
        ".find(each => each.innerText.includes('upgrade')).click()"
    )
    assert browser.lines[0] == SHARED[12]
    assert browser.evaluate("location.hash").endswith("&t=12.000&to=20.000")


def test_the_console_is_played_at_the_failure(report: Path, browser: Browser) -> None:
    browser.show(report, f"#test={quote(TEST)}")
    browser.until("document.querySelector('.log .here')")
    assert "the test failed here, at 20.00 s" in browser.text
    failed = "[...document.querySelectorAll('.steps .bad')].map(each => each.innerText)"
    assert ["✕ run: upgrade" in each for each in browser.evaluate(failed)] == [True]
    browser.until("document.querySelector('.ap-term')?.innerText.includes('number 19')")
    assert "number 22" not in browser.evaluate("document.querySelector('.ap-term').innerText")
    chosen = "document.querySelector('[role=tab][aria-selected=true]').innerText"
    assert browser.evaluate(chosen) == "beta"


def test_the_player_is_as_high_as_its_lines(report: Path, browser: Browser) -> None:
    """A limit of the height of what holds the text would set the lines apart from the cursor."""
    browser(
        "Emulation.setDeviceMetricsOverride",
        width=1280,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.show(report, f"#test={quote(TEST)}")
    browser.until(
        "document.querySelector('.ap-term pre')?.textContent.includes('both machines say')"
    )
    screen, text = browser.evaluate(
        "['.ap-term', '.ap-term pre'].map(name => document.querySelector(name).clientHeight)"
    )
    assert screen > 480
    assert text > 0.9 * screen


def test_failed_units_are_open_and_come_before_the_journal(
    tmp_path: Path, browser: Browser
) -> None:
    a_run(tmp_path, "run")
    place = tmp_path / "run/it/alpha"
    (place / "journal.txt").write_text("# from the disk\n[    1.000000] leaf kernel: hello\n")
    (place / "failed-units.txt").write_text("# from the disk\nfoo.service failed\n")
    page.write(gather(tmp_path / "run"), tmp_path / "report.html")
    browser.show(tmp_path / "report.html", f"#test={quote(TEST)}")
    files = browser.evaluate(
        "[...document.querySelectorAll('section')].filter(each =>"
        " each.firstChild.textContent === 'Journal and failed units').flatMap(each =>"
        " [...each.querySelectorAll('details')].map(file => [file.innerText.trim(), file.open]))"
    )
    assert [is_open for _, is_open in files] == [True, False]
    assert files[0][0].startswith("alpha/failed-units.txt")
    assert "foo.service failed" in files[0][0]
    assert files[1][0].startswith("alpha/journal.txt")


def test_a_long_name_does_not_widen_a_narrow_page(tmp_path: Path, browser: Browser) -> None:
    record = a_run(tmp_path, "run")
    for test in record["runs"][0]["tests"]:
        test["id"] += "_and_a_name_that_goes_on" * 10
    page.write(record, tmp_path / "report.html")
    browser(
        "Emulation.setDeviceMetricsOverride",
        width=420,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.show(tmp_path / "report.html")
    assert "goes_on" in browser.text
    width, shown = browser.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width == shown


def test_what_is_not_known_is_left_out(report: Path, browser: Browser) -> None:
    browser.show(report, f"#test={quote(TEST)}")
    browser.until("document.querySelector('.log .text')")
    assert "Versions and digests" in browser.text
    for word in ("undefined", "null", "NaN", "0 MiB", "Host:"):
        assert word not in browser.text


def test_a_duration_has_at_most_59_seconds(tmp_path: Path, browser: Browser) -> None:
    record = a_run(tmp_path, "run")
    record["runs"][0]["seconds"] = 119.6
    page.write(record, tmp_path / "report.html")
    browser.show(tmp_path / "report.html")
    assert "2 min 0 s" in browser.text


def test_a_screenshot_is_drawn(tmp_path: Path, browser: Browser) -> None:
    a_run(tmp_path, "run")
    (tmp_path / "run/it/alpha/screen-1.png").write_bytes(png(320, 200))
    page.write(gather(tmp_path / "run"), tmp_path / "report.html")
    browser.show(tmp_path / "report.html", f"#test={quote(TEST)}")
    browser.until("document.querySelector('figure canvas')?.width === 320")
    assert "alpha/screen-1.png" in browser.text


def test_a_merged_report_tells_runs_apart(tmp_path: Path, browser: Browser) -> None:
    merged = merge([a_run(tmp_path, "one"), a_run(tmp_path, "two", reason="another reason")])
    page.write(merged, tmp_path / "all.html")
    browser.show(tmp_path / "all.html", f"#test={quote(TEST)}&run=two&arch=x86_64")
    assert "another reason" in browser.text


@pytest.mark.parametrize(
    "address", ["", f"#test={quote(TEST)}", f"#test={quote(HOSTILE)}", "#t=x&to="]
)
def test_a_hostile_guest_does_nothing(tmp_path: Path, browser: Browser, address: str) -> None:
    page.write(a_run(tmp_path, "run", reason=HOSTILE, said=HOSTILE), tmp_path / "report.html")
    browser.show(tmp_path / "report.html", address)
    if address == f"#test={quote(TEST)}":
        browser.until("document.querySelector('.ap-term')")
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert "<img src=x" in browser.text
    assert not {"\u202e", "\x1b", "\x07"} & set(browser.text)
    attributes = (
        "[...document.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
        ".filter(name => name.startsWith('on')).length"
    )
    assert browser.evaluate(attributes) == 0
    assert browser.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.evaluate("document.documentElement.dataset.owned ?? null") is None


def test_the_policy_stops_what_the_page_does_not_name(report: Path, browser: Browser) -> None:
    """The net below: even markup that got into the page would not run, nor ask for anything."""
    browser.show(report)
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', "
        f"`<img src='http://127.0.0.1:9/x' onerror='{OWN}'>`);"
        f"document.body.append(Object.assign(document.createElement('script'), {{text: '{OWN}'}}))"
    )
    browser.until("true")
    refused = [each for each in browser.complaints if "Content Security Policy" in json.dumps(each)]
    assert len(refused) >= 2
    assert browser.evaluate("document.documentElement.dataset.owned ?? null") is None
    browser.events.clear()
