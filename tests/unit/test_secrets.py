"""Declared secrets are found and taken out of text, in each of their forms."""

from __future__ import annotations

import base64
import html
import io
import json
import random
import shlex
import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.evidence.run import slug
from harness.evidence.secrets import Secrets

VALUE = 'hunter2/"+ß&c'


def secrets(*values: str) -> Secrets:
    all_secrets = Secrets()
    for number, value in enumerate(values):
        all_secrets.declare(f"token-{number}", value)
    return all_secrets


def redacted(all_secrets: Secrets, content: bytes) -> tuple[bytes, set[str]]:
    target = io.BytesIO()
    names = all_secrets.redact(io.BytesIO(content), target)
    return target.getvalue(), names


FORMS = {
    "plain": VALUE.encode(),
    "json": json.dumps({"password": VALUE}).encode(),
    "json in utf-8": json.dumps({"password": VALUE}, ensure_ascii=False).encode(),
    "url": urllib.parse.quote(f"https://user:{VALUE}@host", safe="").encode(),
    "query": urllib.parse.urlencode({"token": VALUE}).encode(),
    "hex": VALUE.encode().hex().encode(),
    "HEX": VALUE.encode().hex().upper().encode(),
    "hex:": VALUE.encode().hex(":").encode(),
    "json in json": json.dumps(json.dumps({"password": VALUE})).encode(),
    "xml": html.escape(VALUE).encode(),
    "junit": ET.tostring(ET.Element("property", value=VALUE)),
    "shell": shlex.quote(VALUE).encode(),
    "python": repr("'" + VALUE).encode(),
    "folder": slug(f"test_it.py::test_it[{VALUE}]").encode(),
    **{f"base64 at {n}": base64.b64encode(b"x" * n + VALUE.encode() + b"yz") for n in range(7)},
    **{f"url base64 at {n}": base64.urlsafe_b64encode(b"x" * n + VALUE.encode()) for n in range(3)},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found_and_taken_out(form: str) -> None:
    text = b"before " + FORMS[form] + b" after\n"
    clean, names = redacted(secrets(VALUE), text)
    assert names == {"token-0"}
    assert b"[secret token-0]" in clean
    assert clean.startswith(b"before ")
    assert clean.endswith(b" after\n")
    for other in FORMS.values():
        assert other not in clean
    assert secrets(VALUE).names_in(io.BytesIO(text)) == {"token-0"}


BREAKS = {
    "lines": b"\n",
    "a terminal's lines": b"\r\n",
    "bash at the end of a line": b" \r",
    "colour": b"\x1b[01;31m\x1b[K",
    "a key erased": b"\x08",
    "a recording": b'"]\n[12.345, "o", "',
    "json": b"\\r\\n",
    "colour in json": b"\\u001b[1m",
    "colour in a log of json": b"\\\\u001b[1m",
    "colour in junit": b"#x1B[31m",
    "lines in xml": b"&#10;",
}


@pytest.mark.parametrize("gap", BREAKS)
def test_a_secret_with_breaks_is_found_and_taken_out(gap: str) -> None:
    value = b"correct horse"
    for at in range(1, len(value)):
        text = b"say " + BREAKS[gap].join([value[:at], value[at:]]) + b"." + BREAKS[gap]
        clean, names = redacted(secrets("correct horse"), text)
        assert (names, clean) == ({"token-0"}, b"say [secret token-0]." + BREAKS[gap])
    text = BREAKS[gap].join(bytes([byte]) for byte in base64.b64encode(b"x" + value))
    assert redacted(secrets("correct horse"), text)[1] == {"token-0"}


@pytest.mark.parametrize("seed", range(4))
def test_breaks_across_pieces_change_nothing(seed: int) -> None:
    """Whatever is cut in two by a piece's end is read as if it were not."""
    chance = random.Random(seed)
    words = [b"correct horse", b"cor\x1b[1mrect\r\n horse", b"\r\n", b"\x1b[0;1m", b"other words "]
    text = b"".join(chance.choices(words, k=150_000))
    clean, _ = redacted(secrets("correct horse"), text)
    whole = secrets("correct horse").redacted(text.decode()).encode()
    assert clean == whole
    assert b"rect" not in clean


def test_a_long_break_across_pieces_is_one() -> None:
    secret = secrets("correct horse")
    broken = b"correct" + b"\x1b[K\r\n" * 400 + b" horse"
    for before in range(0, len(broken) + 1, 83):
        text = b"." * ((1 << 20) - before) + broken + b"." * (1 << 18)
        assert redacted(secret, text)[0] == text.replace(broken, b"[secret token-0]"), before


def test_a_recording_stays_one() -> None:
    events = [[0.1, "o", "the cor"], [0.2, "o", "rect ho"], [0.3, "o", "rse is \x1b[1m\u00e9"]]
    text = "".join(json.dumps(event) + "\n" for event in events).encode()
    lines = [json.loads(line) for line in redacted(secrets("correct horse"), text)[0].splitlines()]
    assert lines == [[0.1, "o", "the [secret token-0] is \x1b[1m\u00e9"]]


def test_binary_data_keeps_its_length() -> None:
    text = b"\xd4\xc3\xb2\xa1\0\0password=correct horse\0"
    clean, names = redacted(secrets("correct horse"), text)
    assert names == {"token-0"}
    assert clean == text.replace(b"correct horse", b"*" * 13)


def test_a_folder_loses_secrets_in_content_and_names(tmp_path: Path) -> None:
    inner = tmp_path / "of correct horse"
    (inner / "disks").mkdir(parents=True)
    for name in ("correct horse.png", "log", "disks/disk", "bundle.tar.zst"):
        (inner / name).write_text("a correct horse")
    (inner / "log").chmod(0o600)
    (tmp_path / "of [secret token-0]").mkdir()
    (tmp_path / "link").symlink_to(inner / "bundle.tar.zst")
    assert secrets("correct horse").redact_folder(tmp_path) == {"token-0"}
    inner = tmp_path / "of [secret token-0]-2"
    assert (inner / "log").read_text() == "a [secret token-0]"
    assert (inner / "log").stat().st_mode & 0o777 == 0o600
    assert (inner / "[secret token-0].png").is_file()
    # A saved disk is no text; the text of a bundle was redacted before.
    assert (inner / "disks/disk").read_text() == (inner / "bundle.tar.zst").read_text()
    assert len(list(tmp_path.rglob("*"))) == 8


def test_one_name_may_have_several_values() -> None:
    both = secrets("another one")
    both.declare("token-0", "correct horse")
    assert redacted(both, b"correct horse, another one")[0] == b"[secret token-0], [secret token-0]"


def test_other_text_stays() -> None:
    text = b"nothing here: hunter, 68756e746572\n" * 1000
    assert redacted(secrets(VALUE), text) == (text, set())


@pytest.mark.parametrize("seed", range(20))
def test_a_secret_across_two_pieces_is_found(seed: int) -> None:
    chance = random.Random(seed)
    place = (1 << 20) - chance.randrange(60)
    text = (
        b"." * place + VALUE.encode() + b"." * chance.randrange(3 << 20) + VALUE.encode() + b"end"
    )
    clean, names = redacted(secrets(VALUE, "another one"), text)
    assert names == {"token-0"}
    assert clean == text.replace(VALUE.encode(), b"[secret token-0]")
    assert secrets(VALUE).names_in_memory(io.BytesIO(text)) == {"token-0"}


def test_a_secret_that_begins_another_one() -> None:
    clean, names = redacted(secrets("abcdef", "abcdefgh"), b"abcdefgh abcdef")
    assert names >= {"token-0"}
    assert b"abcdef" not in clean


def test_a_secret_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 characters"):
        Secrets().declare("pin", "1234")
    with pytest.raises(ValueError, match="no name"):
        Secrets().declare("a b", "123456")
