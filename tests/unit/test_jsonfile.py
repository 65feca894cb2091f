"""JSON files: whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from harness import jsonfile


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ({"name": "é", "list": [1, 2]}, {"name": "other"}):
        jsonfile.write(path, content, durable=True)
        assert json.loads(path.read_text(encoding="utf-8")) == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    jsonfile.write(path, {"good": 1})
    with pytest.raises(TypeError):
        jsonfile.write(path, {"good": 2, "bad": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_asked_for_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        jsonfile.write(tmp_path / "shared", {})
        jsonfile.write(tmp_path / "own", {}, mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own")]
    assert modes == [0o640, 0o600]
