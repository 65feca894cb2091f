"""The linters of workflows find nothing, and each exception has a reason."""

from __future__ import annotations

import re
import subprocess

from tests.gate.tools import ACTIONLINT, ZIZMOR, go_tool, python_tool
from tests.programs import needs
from tests.workflows import FOLDER, ROOT

FILES = sorted(map(str, FOLDER.glob("*.yml")))


def lint(*command: str) -> str:
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"{process.stdout}{process.stderr}" if process.returncode else ""


@needs("shellcheck")
def test_actionlint_finds_nothing() -> None:
    assert lint(str(go_tool(ACTIONLINT)), *FILES) == ""


def test_zizmor_finds_nothing() -> None:
    assert lint(str(python_tool(ZIZMOR)), "--offline", "--no-progress", ".github") == ""


def test_what_is_overlooked_has_a_reason() -> None:
    """A line of comment stands before each exception of zizmor.yml, or within it."""
    text = (ROOT / ".github" / "zizmor.yml").read_text()
    rules = re.split(r"^  (?=\S)", text.partition("rules:\n")[2], flags=re.MULTILINE)
    assert all("# " in rule for rule in rules if rule.strip())
    for path in FOLDER.iterdir():
        assert not re.search(r"zizmor: *ignore|actionlint|shellcheck disable", path.read_text())


def test_zizmor_still_looks(tmp_path: object) -> None:
    """The configuration does not turn off what it is for."""
    from pathlib import Path

    folder = Path(str(tmp_path)) / ".github" / "workflows"
    folder.mkdir(parents=True)
    text = (FOLDER / "pr.yml").read_text()
    assert "@3d3c42e5aac5ba805825da76410c181273ba90b1" in text
    text = text.replace("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7")
    (folder / "pr.yml").write_text(
        text.replace("run: ./run type", "run: ./run ${{ github.head_ref }}")
    )
    (folder.parent / "zizmor.yml").write_text((ROOT / ".github" / "zizmor.yml").read_text())
    process = subprocess.run(
        [str(python_tool(ZIZMOR)), "--offline", "--no-progress", "--format", "plain", "."],
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "unpinned-uses" in process.stdout and "template-injection" in process.stdout
