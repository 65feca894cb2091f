"""Errors in one line, for notes and tables."""

from __future__ import annotations

import pytest

from harness.errors import GuestError, first_line_of


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (GuestError("no shell\non ttyS0", evidence="serial.log", hint="log in"), "no shell"),
        (ValueError("too short\nby one"), "too short"),
        (ValueError(), "ValueError()"),
    ],
    ids=["of Harness", "another", "without a text"],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert first_line_of(error) == line
