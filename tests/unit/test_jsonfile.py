"""JSON files: a reader sees a complete file, and a record is checked when it is read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from harness import jsonfile
from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class Part:
    path: Path
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UsageError("size must be >= 0")


@dataclass(frozen=True, slots=True)
class Whole:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    folder: Path
    parts: tuple[Part, ...]
    seconds: float


WHOLE = Whole(Path("/here"), (Part(Path("/a")), Part(Path("/b"), 2)), 3.0)


def test_content_survives_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ({"name": "é", "list": [1, 2]}, {"name": "other"}):
        jsonfile.write(path, content, durable=True)
        assert json.loads(path.read_text(encoding="utf-8")) == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    jsonfile.write(path, {"good": 1})
    with pytest.raises(TypeError):
        jsonfile.write(path, {"good": 2, "bad": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_requested_permissions_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        jsonfile.write(tmp_path / "shared", {})
        jsonfile.write(tmp_path / "own", {}, mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own")]
    assert modes == [0o640, 0o600]


def test_a_record_survives_saving_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    jsonfile.save(path, WHOLE, format="2.a", omit=("folder",))
    assert "folder" not in json.loads(path.read_bytes())
    assert jsonfile.load(path, Whole, format="2.a", folder="/here") == WHOLE


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    jsonfile.save(path, WHOLE, format=1)
    with pytest.raises(jsonfile.OtherFormatError):
        jsonfile.load(path, Whole, format=2)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "3"},
        {"seconds": None},
        {"unknown": 1},
        {"parts": [{"path": "/a", "unknown": 1}]},
        {"parts": [{"size": 1}]},
        {"parts": [{"path": "/a", "size": 1.5}]},
        {"parts": [{"path": "/a", "size": -1}]},
        {"parts": {}},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "record.json"
    jsonfile.write(path, {"format": 1, **jsonfile.dump(WHOLE), **change})
    with pytest.raises(ValueError, match=r".") as caught:
        jsonfile.load(path, Whole, format=1)
    assert not isinstance(caught.value, jsonfile.OtherFormatError)


def test_the_fault_of_a_record_is_one_line_without_its_values() -> None:
    content = jsonfile.dump(WHOLE) | {"seconds": "secret", "folder": 1}
    with pytest.raises(ValueError, match=r"^folder: .*; seconds: ") as caught:
        jsonfile.parse(Whole, content)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"format"', "\xff"])
def test_a_file_without_a_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"."):
        jsonfile.load(path, Whole, format=1)


def test_importing_it_does_not_import_pydantic() -> None:
    program = "import sys, harness, harness.jsonfile; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
