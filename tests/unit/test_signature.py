"""Signatures: one for a cause, whatever the run; another one for another cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.evidence.signature import failed_step, normalize, signature


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("waited 12.3 s for login", "waited <n> s for login"),
        ("RIP: 0xffffffff81234abc on CPU 3", "RIP: <hex> on CPU <n>"),
        ("sha256 5e884898da28 differs", "sha<n> <hex> differs"),
        ("no file /tmp/pytest-of-me/x-1/disk.qcow2: gone", "no file <path> gone"),
        ("12:30:59 unit failed", "<n> unit failed"),
        ("52:54:00:12:34:56 is silent", "<mac> is silent"),
        ("disk 6f1d8e8a-0b1c-4d2e-8f3a-0123456789ab", "disk <uuid>"),
        ("GET http://127.0.0.1:4567/x failed", "GET <url> failed"),
        ("\n\n  first   line \n second 7", "first line"),
        ("read and/or write", "read and/or write"),
        ("facade defaced", "facade defaced"),
        ("", ""),
    ],
)
def test_what_differs_between_runs_is_left_out(text: str, same: str) -> None:
    assert normalize(text) == same


def test_the_same_failure_has_one_signature() -> None:
    first = signature(
        "s/t.py::test_a[x86_64]", "product", "PanicError: at 0xab12 after 3.2 s\nmore"
    )
    assert first == signature("s/t.py::test_a[aarch64]", "product", "PanicError: at 0x1 after 9 s")
    assert len(first) == 16
    # Stable between versions of Harness: issues and bundles name it.
    assert signature("t.py::test", "product", "assert 1 == 2") == "5478720c38114f98"


@pytest.mark.parametrize(
    "other",
    [
        {"test": "t.py::test_b"},
        {"verdict": "infra"},
        {"message": "OopsError: gone"},
        {"step": "login"},
    ],
)
def test_another_failure_has_another_one(other: dict[str, str]) -> None:
    one = {
        "test": "t.py::test_a",
        "verdict": "product",
        "message": "PanicError: gone",
        "step": "boot",
    }
    assert signature(**one) != signature(**(one | other))  # type: ignore[arg-type]


def _steps(folder: Path, *steps: tuple[str, int, str, str]) -> Path:
    keys = ("name", "depth", "outcome", "error")
    record: dict[str, Any] = {"steps": [dict(zip(keys, each, strict=True)) for each in steps]}
    (folder / "timeline.json").write_text(json.dumps(record))
    return folder


def test_the_step_is_the_innermost_that_the_failure_ended(tmp_path: Path) -> None:
    folder = _steps(
        tmp_path,
        ("upgrade", 0, "product", "the kernel panicked"),
        ("z: wait for port 22", 1, "product", "the kernel panicked"),
        ("wait for leader", 1, "product", "the kernel panicked"),
        ("reboot", 2, "product", "exit status 1"),
    )
    assert failed_step(folder, "harness.errors.PanicError: the kernel panicked\n more") == (
        "wait for leader"
    )


def test_a_step_whose_error_was_caught_is_not_the_failed_one(tmp_path: Path) -> None:
    folder = _steps(tmp_path, ("run false", 0, "product", "exit status 1"))
    assert failed_step(folder, "AssertionError: version is 2") == ""
    assert failed_step(folder, "") == ""
    assert failed_step(None, "x") == ""
    (tmp_path / "timeline.json").write_text("[1]")
    assert failed_step(folder, "exit status 1") == ""


def test_a_line_without_end_takes_linear_time() -> None:
    # Quadratic patterns would take hours.
    assert len(normalize("a" * 10_000_000)) < 3000
    assert normalize("/" * 1_000_000)
