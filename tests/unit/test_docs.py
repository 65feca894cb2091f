"""The manual: it builds without a warning, its links lead somewhere, and it covers every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag

import pytest

import harness
from harness import errors

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
IN_THE_REPOSITORY = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "images").rglob("README.md")),
    *PAGES,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual as a site, built as ``./run docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky"),
            *("--quiet", "--doctree-dir", str(folder / "doctrees"), "--builder", "html"),
            *(str(DOCS), str(folder / "html")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return folder / "html"


class References(HTMLParser):
    """Collects the ids of a page, its links, and the files that a browser loads for it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loads.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(values["href"])


def test_every_page_of_the_manual_is_in_the_site(site: Path) -> None:
    for page in PAGES:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def test_no_link_of_the_site_is_broken(site: Path) -> None:
    pages = {page: References(page) for page in site.rglob("*.html")}
    broken = []
    for page, references in pages.items():
        for link in references.links:
            address, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", address):
                continue
            target = (page.parent / address).resolve() if address else page
            if target not in pages:
                if not target.exists():
                    broken.append(f"{page.name}: {link}")
            elif anchor and anchor not in pages[target].ids:
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert [each for each in References(page).loads if "//" in each] == [], page


def heading_anchor(heading: str) -> str:
    """Return the anchor that GitHub, and MyST, give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a Markdown page's links, code left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "code", text)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", IN_THE_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_in_the_repository_is_broken(page: Path) -> None:
    """The pages are read in the repository as well, where links name files."""
    broken = []
    for link in links(page):
        address, anchor = urldefrag(link)
        if re.match(r"[a-z]+:", address):
            continue
        target = (page.parent / address).resolve() if address else page
        if not target.exists():
            broken.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            if anchor not in map(heading_anchor, headings):
                broken.append(link)
    assert broken == []


def test_the_reference_documents_exactly_the_public_names() -> None:
    text = (DOCS / "reference" / "api.md").read_text()
    documented = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(harness.__all__)


def test_every_public_name_has_a_description() -> None:
    text = (DOCS / "reference" / "api.md").read_text()
    sections = re.split(r"^### `(\w+)`$", text, flags=re.MULTILINE)[1:]
    empty = [
        name
        for name, body in zip(sections[::2], sections[1::2], strict=True)
        if not re.search(r"\w", body.split("\n#")[0])
    ]
    assert empty == []


def output(*command: str) -> str:
    """Return the output of a Python module that runs in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text()


def test_the_reference_has_every_option_of_the_plugin() -> None:
    groups = re.split(r"^(?=\S.*:$)", output("pytest", "--help"), flags=re.MULTILINE)
    ours = "".join(group for group in groups if group.startswith("harness"))
    options = re.findall(r"^  (--[a-z-]+)", ours, re.MULTILINE)
    assert "--image" in options
    assert [option for option in options if f"| `{option}" not in reference("options")] == []


def test_the_reference_has_every_fixture_of_the_plugin() -> None:
    listed = output("pytest", "--fixtures", "--quiet", "tests/unit/test_docs.py")
    sections = re.split(r"^-+ fixtures defined from (\S+) -+$", listed, flags=re.MULTILINE)
    names = [
        name
        for module, text in zip(sections[1::2], sections[2::2], strict=True)
        if module.startswith("harness.pytest_plugin")
        for name in re.findall(r"^(\w+)(?: \[\w+ scope\])? --", text, re.MULTILINE)
    ]
    private = {"rebuilder"}
    assert [n for n in names if n not in private and f"`{n}`" not in reference("fixtures")] == []


def test_the_reference_has_every_command() -> None:
    commands = re.findall(r"^    ([a-z]+) ", output("harness.cli", "--help"), re.MULTILINE)
    assert "doctor" in commands
    assert [name for name in commands if f"`harness {name}" not in reference("cli")] == []


def test_the_reference_has_every_error() -> None:
    names = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HarnessError)
    ]
    assert len(names) > 30
    assert [name for name in names if f"`{name}`" not in reference("errors")] == []
