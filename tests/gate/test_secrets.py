"""runners/bootstrap secrets with the real age and sops: what it writes decrypts with the key alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit import fleet

pytestmark = [
    pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name} on the PATH: {how}")
    for name, how in (
        ("age-keygen", "install the package age"),
        ("sops", "go install github.com/getsops/sops/v3/cmd/sops@v3.13.3"),
    )
]

KEY = "-----BEGIN PRIVATE KEY-----\nsecret words\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(fleet.TREE, tmp_path / "runners")
    (tmp_path / "runners/secrets/github-app.sops.yaml").unlink(missing_ok=True)
    (tmp_path / "app.pem").write_text(KEY)
    return tmp_path


def secrets(folder: Path, *, app: str = "1") -> str:
    process = subprocess.run(
        [
            *(sys.executable, str(folder / "runners/bootstrap"), "secrets", "--app-id", app),
            *("--installation-id", "2", "--private-key", str(folder / "app.pem")),
            *("--age-key", str(folder / "key")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def decrypt(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("sops", "decrypt", "--output-type=json"),
            str(folder / "runners/secrets/github-app.sops.yaml"),
        ],
        env={**os.environ, "SOPS_AGE_KEY_FILE": str(key), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_round_trip(folder: Path) -> None:
    secrets(folder)
    text = (folder / "runners/secrets/github-app.sops.yaml").read_text()
    assert "secret words" not in text
    assert yaml.safe_load(text)["metadata"]["namespace"] == "harness-runners"
    plain = json.loads(decrypt(folder, folder / "key").stdout)
    assert plain["stringData"]["github_app_private_key"] == KEY
    assert plain["stringData"]["github_app_id"] == "1"


def test_another_key_does_not_decrypt(folder: Path) -> None:
    secrets(folder)
    subprocess.run(
        ["age-keygen", "--output", str(folder / "other")], check=True, capture_output=True
    )
    process = decrypt(folder, folder / "other")
    assert process.returncode != 0
    assert "secret words" not in process.stdout


def test_it_is_idempotent(folder: Path) -> None:
    secrets(folder)
    path = folder / "runners/secrets/github-app.sops.yaml"
    before = path.read_bytes()
    assert secrets(folder).count("unchanged") == 3
    assert path.read_bytes() == before
    assert "github-app.sops.yaml: changed" in secrets(folder, app="7")
    assert path.read_bytes() != before


def test_up_and_the_policy_take_what_it_writes(folder: Path) -> None:
    secrets(folder)
    rendered = fleet.render(folder / "runners")
    (secret,) = [each for each in rendered["harness-sets"] if each["kind"] == "Secret"]
    assert fleet.schema_faults(secret) == []
    assert all(value.startswith("ENC[AES256_GCM,") for value in secret["stringData"].values())
    process = subprocess.run(
        [
            *(sys.executable, str(folder / "runners/bootstrap"), "up"),
            *("--age-key", str(folder / "key")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "secret" not in process.stderr.partition("try:")[0]
