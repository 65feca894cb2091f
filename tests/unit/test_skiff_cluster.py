"""skiff's variant cluster: the functions of its scripts that need no guest run on this host."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.profiles import Install
from harness.profiles._skiff import settings
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


LATE = r"""
sleep() { SECONDS=$((SECONDS + $1)); }
late() {
    echo "$*" >> "$1"
    if [ "$(wc -l < "$1")" -lt "$2" ]; then echo "does not answer"; return 1; fi
    echo "an answer"
}
patient late "$1" "$2"
"""


def test_an_answer_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    answer = call(LATE, str(calls), "3")
    assert (answer.returncode, answer.stdout) == (0, "an answer\n")
    assert len(calls.read_text().splitlines()) == 3


def test_an_answer_that_never_comes_is_an_error_after_a_minute(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    answer = call(LATE, str(calls), "1000")
    assert (answer.returncode, answer.stdout) == (1, "does not answer\n")
    assert 50 <= len(calls.read_text().splitlines()) <= 70


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


# --- the settings of an installation ------------------------------------------------------------------


def read_and_write(text: str, *, cluster: bool) -> subprocess.CompletedProcess[str]:
    """Let the image's functions read settings, and write what they read."""
    command = (
        f'. "$0"; has_cluster() {{ {str(cluster).lower()}; }};'
        ' settings_read /dev/stdin user-data && settings_write || echo "$settings_error"'
    )
    return subprocess.run(
        ["bash", "-c", command, IMAGE / "mkosi/mkosi.extra/usr/lib/skiff/common.sh"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


SETTINGS = Install(
    "target-1",
    user="mate",
    password="ahoy",
    cluster="name node-8\nvirtual-address 10.77.255.100/16\njoin skiff.0123abcd.00ff\n",
)


def test_a_seed_s_cluster_survives_the_installation() -> None:
    text = settings(SETTINGS).replace('password: "ahoy"', 'password_hash: "$6$salt$hash"')
    written = read_and_write(text, cluster=True).stdout
    line = '    cluster: "name node-8;virtual-address 10.77.255.100/16;join skiff.0123abcd.00ff"\n'
    assert line in written
    assert read_and_write(written, cluster=True).stdout == written


@pytest.mark.parametrize(
    ("words", "cluster", "error"),
    [
        ("init", False, ":8: cluster: only the variant cluster has that"),
        ("init $(reboot)", True, ":8: cluster: lines of skiff.cluster, with ; between them"),
    ],
)
def test_a_seed_s_cluster_that_cannot_be_is_refused(words: str, cluster: bool, error: str) -> None:
    text = settings(replace(SETTINGS, cluster=words))
    result = read_and_write(text, cluster=cluster)
    assert result.stdout == f"user-data{error}\n"
