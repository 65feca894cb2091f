"""skiff's variant cluster: the functions of its scripts that need no guest run on this host."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
from pathlib import Path

import pytest

from tests.programs import needs

IMAGE = Path(__file__).resolve().parents[2] / "images/skiff"
TREE = IMAGE / "mkosi/mkosi.profiles/cluster/mkosi.extra"
FUNCTIONS = TREE / "usr/lib/skiff/cluster.sh"

pytestmark = needs("bash")


def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bash after the image's functions have been defined."""
    return subprocess.run(
        ["bash", "-c", f'. "$0"; {command}', FUNCTIONS, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("key", ["0b" * 20, "aa" * 32, "00ff" * 16, "", "81" * 64])
@pytest.mark.parametrize("text", ["", "Hi There", "join 1 a%sb \\n c", "é" * 300])
def test_messages_are_signed_as_rfc_2104_says(key: str, text: str) -> None:
    expected = hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()
    assert call('hmac "$1" "$2"', key, text).stdout.strip() == expected


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("1", "1", True),
        ("1", "2", True),
        ("3", "2", True),
        ("1", "3", False),
        ("3", "1", False),
        ("2-unhealthy", "3", True),
        ("2-unhealthy", "1-panic", True),
        ("08", "9", True),
        ("9", "11", False),
        ("x", "1", False),
        ("", "1", False),
        ("1", "99999999999999999999", False),
    ],
)
def test_members_are_at_most_one_version_apart(one: str, other: str, near: bool) -> None:
    result = call('near "$1" "$2"', one, other)
    assert (result.returncode == 0, result.stderr) == (near, "")


@pytest.mark.parametrize(
    ("token", "valid"),
    [
        ("skiff.0123abcd." + "0" * 64, True),
        ("skiff.0123abcd." + "0" * 63, False),
        ("skiff.0123ABCD." + "0" * 64, False),
        ("skiff.0123abcd." + "0" * 64 + "\n", False),
        ("skiff.0123abcd", False),
        ("", False),
    ],
)
def test_a_token_has_a_name_and_a_secret(token: str, valid: bool) -> None:
    assert (call('valid_token "$1"', token).returncode == 0) is valid


@pytest.mark.parametrize("name", ["node-1", "a", "9", "a" * 63])
def test_good_names_are_names_of_members(name: str) -> None:
    assert call('valid_name "$1"', name).returncode == 0


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a" * 64, "a b", "a,b", "a=b", "a\n", "a."])
def test_bad_names_are_refused(name: str) -> None:
    assert call('valid_name "$1"', name).returncode == 1


@pytest.mark.parametrize("variant", ["clutser", "", "../cluster", "."])
def test_an_unknown_variant_is_not_built(variant: str, tmp_path: Path) -> None:
    command = ["--arch", "x86_64", "--version", "1", "--variant", variant]
    # A folder that is not there: nothing is built, whatever the script makes of the variant.
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    result = subprocess.run(
        [IMAGE / "build", *command, *folders], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    error = f"variant {variant}: neither core nor cluster" if variant else "--variant is missing"
    assert error in result.stderr
