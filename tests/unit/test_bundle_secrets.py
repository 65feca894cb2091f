"""Declared secrets are found and taken out of text, in each of their forms."""

from __future__ import annotations

import base64
import io
import json
import random
import urllib.parse

import pytest

from harness.evidence.bundle_secrets import Secrets

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
    assert secrets(VALUE).found(io.BytesIO(text)) == {"token-0"}


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
    assert secrets(VALUE).found_in_memory(io.BytesIO(text)) == {"token-0"}


def test_a_secret_that_begins_another_one() -> None:
    clean, names = redacted(secrets("abcdef", "abcdefgh"), b"abcdefgh abcdef")
    assert names >= {"token-0"}
    assert b"abcdef" not in clean


def test_a_secret_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 characters"):
        Secrets().declare("pin", "1234")
    with pytest.raises(ValueError, match="no name"):
        Secrets().declare("a b", "123456")
