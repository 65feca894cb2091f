"""runners/bootstrap against a kubectl that records: three commands, twice; what is missing is named."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.unit import fleet
from tests.unit.fleet_policy import house_faults, restricted_faults

FLUX = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: flux-system\n"

AGE_KEYGEN = """#!/bin/sh
case $1 in
    --output) echo AGE-SECRET-KEY-1TEST >"$2" ;;
    -y) echo age1test ;;
esac
"""

# Reversible, and nothing else: tests/gate has the real one.
SOPS = """#!{python}
import base64, json, sys, yaml
words = sys.argv[1:]
if words[0] == "encrypt":
    item = json.load(sys.stdin)
    item["stringData"] = {{name: "ENC[AES256_GCM,data:" + base64.b64encode(value.encode()).decode() + "]"
                          for name, value in item["stringData"].items()}}
    recipient = words[words.index("--age") + 1]
    item["sops"] = {{"age": [{{"recipient": recipient}}], "mac": "ENC[AES256_GCM,x]"}}
    print(yaml.safe_dump(item, width=4096))
else:
    item = yaml.safe_load(open(words[-1]))
    del item["sops"]
    item["stringData"] = {{name: base64.b64decode(value[20:-1]).decode()
                          for name, value in item["stringData"].items()}}
    print(json.dumps(item))
"""


@dataclass
class Stand:
    """A copy of the tree, with programs beside it."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "runners"

    @property
    def key(self) -> Path:
        return self.root / "key"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "STAND": str(self.root), "HOME": str(self.root)}
        environment["PATH"] = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, str(self.folder / "bootstrap"), *words],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    def cluster(self) -> subprocess.CompletedProcess[str]:
        return self.run("cluster", "--context", "cluster-a")

    def secrets(self, *further: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            *("secrets", "--app-id", "1", "--installation-id", "2"),
            *("--private-key", str(self.root / "app.pem"), "--age-key", str(self.key), *further),
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        flux = str(self.root / "flux.yaml")
        return self.run("up", "--age-key", str(self.key), "--flux", flux, "--timeout", "5")

    def set(self, **settings: str) -> None:
        values = fleet.read_env(self.folder / "cluster/settings.env") | settings
        lines = [f"{name}={value}" for name, value in values.items()]
        (self.folder / "cluster/settings.env").write_text("\n".join(lines) + "\n")

    def objects(self) -> dict[str, fleet.Object]:
        return dict(json.loads((self.root / "objects.json").read_text()))


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    stand = Stand(tmp_path)
    shutil.copytree(fleet.TREE, stand.folder)
    (stand.folder / "secrets/github-app.sops.yaml").unlink(missing_ok=True)
    (stand.folder / ".context").unlink(missing_ok=True)
    (tmp_path / "bin").mkdir()
    kubectl = (Path(__file__).parent / "recording_kubectl.py").read_text()
    programs = {
        "kubectl": f"#!{sys.executable}\n{kubectl}",
        "age-keygen": AGE_KEYGEN,
        "sops": SOPS.format(python=sys.executable),
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "app.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\nx\n")
    (tmp_path / "flux.yaml").write_text(FLUX)
    stand.set(**fleet.SETTINGS | {"FLUX_SHA256": hashlib.sha256(FLUX.encode()).hexdigest()})
    return stand


def all_three(stand: Stand) -> list[subprocess.CompletedProcess[str]]:
    processes = [stand.cluster(), stand.secrets(), stand.up()]
    assert [each.returncode for each in processes] == [0, 0, 0], [each.stderr for each in processes]
    return processes


def test_three_commands(stand: Stand) -> None:
    output = "".join(each.stdout for each in all_three(stand))
    for said in (
        "cluster cluster-a: named in",
        "created; keep a copy",
        "github-app.sops.yaml: written",
        "Flux 2.9.5: 1 created",
        "secret sops-age: created",
        "source and Kustomization harness: 2 created",
        "Kustomization harness-sets: ready",
    ):
        assert said in output
    assert stand.key.stat().st_mode & 0o777 == 0o600
    objects = stand.objects()
    faults = [fault for each in objects.values() for fault in fleet.schema_faults(each)]
    assert faults == []
    assert objects["kustomization/flux-system/harness"]["spec"]["path"] == "./runners/cluster"


def test_the_age_key_comes_before_the_source(stand: Stand) -> None:
    all_three(stand)
    order = list(stand.objects())
    assert order.index("secret/flux-system/sops-age") < order.index(
        "gitrepository/flux-system/harness"
    )


def test_a_second_time_changes_nothing(stand: Stand) -> None:
    all_three(stand)
    files = {path: path.read_bytes() for path in stand.root.rglob("*") if path.is_file()}
    again = "".join(each.stdout for each in all_three(stand))
    for path, content in files.items():
        if path.name != "commands":
            assert path.read_bytes() == content, path
    assert "created" not in again and "written" not in again and "configured" not in again
    assert again.count("unchanged") == 7


def test_a_changed_secret_is_written_again(stand: Stand) -> None:
    all_three(stand)
    assert "sops.yaml: changed" in stand.secrets("--app-id", "7").stdout


@pytest.mark.parametrize("name", sorted(fleet.SETTINGS))
def test_each_missing_setting_is_named(name: str, stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    stand.set(**{name: ""})
    process = stand.up()
    assert process.returncode == 2
    assert f"{name} is empty" in process.stderr.replace("is empty, and", "is empty and")
    assert not (stand.root / "objects.json").exists()


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--app-id", "github_app_id"),
        ("--installation-id", "github_app_installation_id"),
        ("--private-key", "github_app_private_key"),
    ],
)
def test_each_missing_or_empty_secret_is_named(option: str, name: str, stand: Stand) -> None:
    options = {
        "--app-id": "1",
        "--installation-id": "2",
        "--private-key": str(stand.root / "app.pem"),
    }
    rest = [word for each, value in options.items() if each != option for word in (each, value)]
    missing = stand.run("secrets", "--age-key", str(stand.key), *rest)
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[0] == f"bootstrap: error: {name}: missing: give {option}"
    empty = stand.run("secrets", "--age-key", str(stand.key), *rest, f"{option}=")
    assert empty.stderr.splitlines()[0] == f"bootstrap: error: {name}: empty: {option} has no value"
    assert not stand.key.exists()


@pytest.mark.parametrize("name", sorted(fleet.SECRET["stringData"]))
def test_up_names_a_secret_that_is_missing_empty_or_plain(name: str, stand: Stand) -> None:
    stand.cluster()
    path = stand.folder / "secrets/github-app.sops.yaml"
    stand.secrets()
    whole = yaml.safe_load(path.read_text())
    for value, said in ((None, "missing in"), ("", "empty in"), ("plain", "not encrypted in")):
        content = json.loads(json.dumps(whole))
        content["stringData"].pop(name)
        if value is not None:
            content["stringData"][name] = value
        path.write_text(yaml.safe_dump(content))
        process = stand.up()
        assert process.returncode == 2
        assert f"secret {name}: {said}" in process.stderr
    path.unlink()
    assert f"secret {name}: {path} is missing" in stand.up().stderr


def test_a_missing_age_key_is_named(stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    stand.key.unlink()
    process = stand.up()
    assert process.returncode == 2
    assert f"secret sops-age: {stand.key} is missing" in process.stderr


def test_a_missing_secret_of_the_repository_is_named(stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    stand.set(GIT_SECRET="deploy-key")
    process = stand.up()
    assert process.returncode == 2
    assert "secret deploy-key in flux-system: missing (GIT_SECRET)" in process.stderr


@pytest.mark.parametrize("program", ["age-keygen", "sops", "kubectl"])
def test_a_missing_program_is_named(program: str, stand: Stand) -> None:
    (stand.root / "bin" / program).unlink()
    bare = stand.root / "bin"
    (bare / "env").symlink_to("/usr/bin/env")
    process = subprocess.run(
        [
            *(sys.executable, str(stand.folder / "bootstrap")),
            *(["cluster", "--context", "x"] if program == "kubectl" else ["secrets"]),
        ],
        env={"PATH": str(bare), "STAND": str(stand.root), "HOME": str(stand.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert f"there is no {program}" in process.stderr


def test_another_flux_is_refused(stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    (stand.root / "flux.yaml").write_text(FLUX + "# changed\n")
    process = stand.up()
    assert process.returncode == 2
    assert hashlib.sha256((FLUX + "# changed\n").encode()).hexdigest() in process.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"RUNNER_IMAGE": "ghcr.io/x/runner:latest"},
            "RUNNER_IMAGE=ghcr.io/x/runner:latest: not by",
        ),
        ({"QUOTA_MEMORY": "64Gi"}, "QUOTA_MEMORY=64Gi: less than MAX_RUNNERS x RUNNER_MEMORY"),
        (
            {"FORK_QUOTA_CPU": "7", "MAX_FORK_RUNNERS": "2"},
            "FORK_QUOTA_CPU=7: less than MAX_FORK_RUNNERS x RUNNER_CPU",
        ),
        ({"RUNNER_DISK": "much"}, "MAX_RUNNERS, RUNNER_DISK, QUOTA_DISK: a number"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], said: str, stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    stand.set(**settings)
    process = stand.up()
    assert process.returncode == 2
    assert said in process.stderr


def test_what_flux_says_of_a_failure_is_shown(stand: Stand) -> None:
    stand.cluster()
    stand.secrets()
    (stand.root / "not-ready").write_text("kustomization/harness-sets")
    process = stand.up()
    assert process.returncode == 1
    assert "Kustomization harness-controllers: ready" in process.stdout
    assert "Kustomization harness-sets is not ready after 5 s" in process.stderr


def test_no_cluster(stand: Stand) -> None:
    stand.secrets()
    process = stand.run("cluster")
    assert process.returncode == 2
    assert "kubectl knows laptop, cluster-a" in process.stderr
    assert "no cluster is named" in stand.up().stderr


def test_images_of_a_trusted_builder_go_into_the_warm_cache(stand: Stand) -> None:
    stand.cluster()
    for name in ("skiff-1", "micro-1"):
        (stand.root / "entries" / name).mkdir(parents=True)
        (stand.root / "entries" / name / "manifest.json").write_text(name)
    first = stand.run("warm", str(stand.root / "entries"))
    assert first.returncode == 0, first.stderr
    assert first.stdout == "bootstrap: micro-1: copied\nbootstrap: skiff-1: copied\n"
    assert (stand.root / "warm/entries/skiff-1/manifest.json").read_text() == "skiff-1"
    again = stand.run("warm", str(stand.root / "entries"))
    assert again.stdout == "bootstrap: micro-1: unchanged\nbootstrap: skiff-1: unchanged\n"
    assert not any(name.startswith("pod/") for name in stand.objects())


def test_the_pod_that_writes_the_warm_cache(stand: Stand) -> None:
    loader = importlib.machinery.SourceFileLoader("bootstrap", str(stand.folder / "bootstrap"))
    spec = importlib.util.spec_from_loader("bootstrap", loader)
    assert spec is not None
    bootstrap = importlib.util.module_from_spec(spec)
    loader.exec_module(bootstrap)
    pod = bootstrap.writer(fleet.SETTINGS["HARNESS_IMAGE"])
    assert fleet.schema_faults(pod) == []
    assert [*restricted_faults(pod["spec"]), *house_faults(pod["spec"])] == []


def test_no_entries_to_warm(stand: Stand) -> None:
    process = stand.run("warm", str(stand.root))
    assert process.returncode == 2
    assert "has no entries of a cache" in process.stderr


def test_the_plain_secret_is_never_on_the_disk(stand: Stand) -> None:
    (stand.root / "app.pem").write_text("-----BEGIN PRIVATE KEY-----\nsecret words\n")
    all_three(stand)
    holders = [
        path
        for path in stand.root.rglob("*")
        if path.is_file() and path.name != "app.pem" and b"secret words" in path.read_bytes()
    ]
    assert holders == []
