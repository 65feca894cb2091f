"""The page of a nightly: what it shows, and that nothing in it is more than text."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.evidence import history as lines
from harness.evidence.history import Line
from harness.gate.dashboard import page
from harness.gate.dashboard.content import gather
from harness.known import KnownFailures, load

BOOT, UPGRADE = "suites/boot/test_live.py::test_login", "suites/upgrade/test_ab.py::test_ab"
HOSTILE = "</style><script>own()</script><img src=x onerror=own()> \x1b[2J\u202e&amp;"


class Parsed(HTMLParser):
    """The elements of a page, and whether each is closed."""

    void = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def judged(name: str = BOOT, verdict: str = "passed", **further: Any) -> dict[str, Any]:
    return {
        "id": name,
        "arch": "x86_64",
        "verdict": verdict,
        "outcome": "",
        "seconds": {"call": 2.0},
        "reason": "" if verdict == "passed" else "it failed",
        "signature": "" if verdict == "passed" else "5478720c38114f98",
        **further,
    }


def run(day: int, *tests: dict[str, Any], url: str = "", **further: Any) -> Line:
    content = {
        "began": f"2026-11-{day:02}T01:00:00Z",
        "command": [str(day), json.dumps(further, sort_keys=True)],
        "image": {"name": "skiff", "variant": "core", "version": "1"},
        "arches": {"x86_64": {"inputs": f"digest-{day}"}},
        "versions": {"harness": "0.1.0"},
        "tests": tests or [judged()],
        **further,
    }
    return lines.compact(content, url=url)


RUNS = [
    run(1, judged(), judged(UPGRADE)),
    run(
        2, judged(), judged(UPGRADE, "flaky", tries=[{"verdict": "product"}]), url="reports/2.html"
    ),
    run(3, judged(), judged(UPGRADE, "product"), url="https://ci.example/3"),
]


def known(folder: Path) -> KnownFailures:
    def entry(name: str, expires: str) -> str:
        return (
            f"  - {{test: '{name}', pattern: {name}, tracker: 'https://tracker.example/{name}',"
            f" owner: kernel, added: 2026-11-01, expires: {expires}}}\n"
        )

    path = folder / "known.yaml"
    path.write_text(
        "known:\n"
        + entry("later", "2027-01-15")
        + entry("soon", "2026-12-05")
        + entry("over", "2026-11-20")
    )
    return load(path, datetime.date(2026, 11, 29))


def test_what_it_shows(tmp_path: Path) -> None:
    content = gather(RUNS, known(tmp_path), [("skiff", "x86_64"), ("fedora", "aarch64")])
    assert content.nights == ["2026-11-01", "2026-11-02", "2026-11-03"]
    boot, upgrade, fedora = content.rows
    assert (boot.suite, upgrade.suite) == ("suites/boot", "suites/upgrade")
    assert [upgrade.cells[night].worst for night in content.nights] == [
        "passed",
        "flaky",
        "product",
    ]
    assert upgrade.cells["2026-11-03"].url == "https://ci.example/3"
    assert (fedora.image, fedora.arch, fedora.suite, fedora.cells) == ("fedora", "aarch64", "", {})
    assert content.last == {"product": 1, "passed": 1}
    assert content.trend["2026-11-02"] == {"passed": 50.0, "flaky": 50.0, "infra": 0.0}
    assert [story.test for story in content.failing] == [UPGRADE]
    assert [story.test for story in content.flaky] == [UPGRADE]
    assert {story.test for story in content.slowest} == {BOOT, UPGRADE}
    assert [each.entry.test for each in content.expiring] == ["over", "soon"]
    assert content.known == 3


def test_a_second_attempt_counts_for_its_night() -> None:
    plan = {"id": "p", "job": "j", "attempt": 1, "commit": "c"}
    first = run(1, judged(verdict="infra"), plan=plan)
    second = run(1, judged(), plan=plan | {"attempt": 2}, began="2026-11-01T02:00:00Z")
    content = gather([first, second])
    (row,) = content.rows
    assert row.cells["2026-11-01"].counts == {"flaky-infra": 1}
    assert content.trend["2026-11-01"] == {"passed": 0.0, "flaky": 0.0, "infra": 100.0}


def test_the_page_is_whole_and_accessible(tmp_path: Path) -> None:
    parsed = Parsed(page(RUNS, known(tmp_path), [("fedora", "aarch64")]))
    assert "script" not in {name for name, _ in parsed.elements}
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in parsed.all("a"):
        if (href := link["href"] or "").startswith("#"):
            assert href[1:] in ids
    for section in parsed.all("section"):
        assert section["aria-labelledby"] in ids
    # Each cell of a head names its direction; what scrolls can be reached and has a name.
    assert all(cell.get("scope") in ("col", "row") for cell in parsed.all("th"))
    assert len(list(parsed.all("caption"))) == len(list(parsed.all("table")))
    for box in parsed.all("div"):
        if "scroll" in (box.get("class") or ""):
            assert (box["tabindex"], box["role"]) == ("0", "region")
            assert box["aria-label"]
    assert all(each["role"] == "img" and each["aria-label"] for each in parsed.all("svg"))
    text = parsed.text
    assert "2026-11-03: 1 product" in text
    assert "fedora aarch64" in text
    assert "not run" in text
    assert "expired 2026-11-20" in text
    assert "digest-1 → digest-3" in text
    assert "5478720c38114f98" in text
    hrefs = [link["href"] for link in parsed.all("a")]
    assert {"reports/2.html", "https://ci.example/3", "https://tracker.example/soon"} <= {*hrefs}


def test_the_policy_names_the_style_and_nothing_else() -> None:
    text = page(RUNS)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parsed = Parsed(text)
    names = {name for _, attributes in parsed.elements for name in attributes}
    # An attribute with a style would be against the policy.
    assert not {name for name in names if name.startswith("on")} | {"style", "src"} & names


def test_hostile_words_are_words() -> None:
    hostile = {"name": HOSTILE, "variant": "", "version": HOSTILE}
    failing = judged(f"a/{HOSTILE}.py::x", "product", reason=HOSTILE, signature="5478720c38114f98")
    flaky = judged(f"b/{HOSTILE}.py::x", "flaky", reason=HOSTILE)
    urls = ("javascript:own()", "data:text/html,x", "//other.example/", "/etc/passwd", "ht\ntp://x")
    runs = [run(day, failing, flaky, image=hostile, url=url) for day, url in enumerate(urls, 1)]
    text = page(runs, None, [(HOSTILE, HOSTILE)])
    assert not {"\x1b", "\u202e"} & set(text)
    parsed = Parsed(text)
    assert not {"script", "img"} & {name for name, _ in parsed.elements}
    assert "<script>own()</script>" in parsed.text
    # Amended by nobody: what was written as an entity stays one.
    assert "&amp;" in parsed.text
    assert [
        link["href"] for link in parsed.all("a") if not (link["href"] or "").startswith("#")
    ] == []


def test_an_empty_history_makes_a_page() -> None:
    text = Parsed(page([], None, [("fedora", "x86_64")])).text
    for words in ("no night yet", "No test fails", "No test was flaky", "no known.yaml", "not run"):
        assert words in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in RUNS))
    known(tmp_path)
    words = ["history", "page", "--file", str(path), "-o", str(tmp_path / "out.html")]
    assert main([*words, "--known", str(tmp_path / "known.yaml"), "--nights", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.html'}\n"
    text = Parsed((tmp_path / "out.html").read_text()).text
    assert "2026-11-02 to 2026-11-03" in text
    # An image of the catalogue that no run has had.
    assert "opensuse" in text
    assert main([*words, "--known", str(tmp_path / "none.yaml")]) == 2
    assert main([*words, "--nights", "0"]) == 2
