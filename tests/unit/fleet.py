"""Renders the tree below runners/ as Flux would, and holds it against schemas and the house's policy.

The renderer knows what the tree uses of kustomize: resources, and generators of ConfigMaps without a
suffix. An unknown field is an error. test_runners.py compares it with kubectl's kustomize, where there
is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.37.0"
TREE = Path(__file__).resolve().parents[2] / "runners"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
DIGEST = "sha256:" + "ab" * 32

Object = dict[str, Any]

SETTINGS = {
    "GIT_URL": "https://git.example/os.git",
    "GITHUB_URL": "https://github.com/example/os",
    "FLUX_SHA256": "cd" * 32,
    "RUNNER_IMAGE": f"registry.example/runner@{DIGEST}",
    "HARNESS_IMAGE": f"registry.example/harness@{DIGEST}",
    "RUNNER_BUILT": "1795910400",
    "DEVICE_PLUGIN_IMAGE": f"registry.example/generic-device-plugin@{DIGEST}",
    "CACHE_CLASS": "nfs",
}
"""What a user fills in."""

UNCHECKED = {"PodMonitor", "PrometheusRule"}
"""Kinds without a schema here: those of the Prometheus operator, which no source of these tests has."""


def settings(tree: Path = TREE) -> dict[str, str]:
    """Return the settings of a tree, filled in."""
    return read_env(tree / "cluster/settings.env") | SETTINGS


def read_env(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def build(folder: Path) -> list[Object]:
    """Return the objects of a kustomization."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions"}
    assert set(content) <= known, set(content) - known
    objects: list[Object] = []
    for name in content.get("resources", []):
        path = folder / name
        objects += build(path) if path.is_dir() else documents(path)
    assert content.get("generatorOptions", {}) in ({}, {"disableNameSuffixHash": True})
    for each in content.get("configMapGenerator", []):
        data: dict[str, str] = {}
        for name in each.get("envs", []):
            data |= read_env(folder / name)
        for entry in each.get("files", []):
            key, _, name = entry.rpartition("=")
            data[key or Path(name).name] = (folder / name).read_text()
        metadata = {"name": each["name"], "namespace": each["namespace"]}
        metadata |= {"labels": labels} if (labels := each.get("options", {}).get("labels")) else {}
        objects.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "data": data, "metadata": metadata}
        )
    return objects


def documents(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def substitute(objects: list[Object], values: Mapping[str, str]) -> list[Object]:
    """Replace ``${NAME}``, as Flux' postBuild does in the text of each object."""

    def value(match: re.Match[str]) -> str:
        assert match[1] in values, f"{match[0]} is not among the settings"
        return values[match[1]]

    texts = [yaml.safe_dump(each, width=4096) for each in objects]
    return [yaml.safe_load(re.sub(r"\$\{(\w+)\}", value, text)) for text in texts]


SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "github-app", "namespace": "harness-runners"},
    "stringData": {
        name: "ENC[AES256_GCM,data:eA==,iv:eA==,tag:eA==,type:str]"
        for name in ("github_app_id", "github_app_installation_id", "github_app_private_key")
    },
    "sops": {"age": [{"recipient": "age1x", "enc": "x"}], "mac": "ENC[AES256_GCM,x]"},
}
"""As `runners/bootstrap secrets` leaves it."""


def render(tree: Path = TREE) -> dict[str, list[Object]]:
    """Return the objects of each Kustomization by its name; ``harness`` is the first."""
    values = settings(tree)
    rendered = {"harness": build(tree / "cluster")}
    flux = [each for each in rendered["harness"] if each["kind"] == "Kustomization"]
    for each in [*flux, *documents(tree / "cluster/monitoring.yaml")]:
        folder = tree.parent / each["spec"]["path"]
        secret = tree / "secrets/github-app.sops.yaml"
        missing = not secret.exists()
        if missing:
            secret.write_text(yaml.safe_dump(SECRET))
        try:
            objects = build(folder)
        finally:
            if missing:
                secret.unlink()
        rendered[each["metadata"]["name"]] = substitute(objects, values)
    return rendered


# --- schemas ----------------------------------------------------------------------------------


@cache
def _schema(name: str) -> jsonschema.protocols.Validator:
    content = json.loads((SCHEMAS / f"{name}.json").read_text())
    return jsonschema.Draft202012Validator(content)


def schema_faults(item: Object) -> list[str]:
    """Return what the schema of an object's kind says against it; unknown fields are faults."""
    return _schema_faults(json.dumps(item, sort_keys=True))


@cache
def _schema_faults(text: str) -> list[str]:
    item = json.loads(text)
    group, _, version = item["apiVersion"].rpartition("/")
    kind = item["kind"]
    path = SCHEMAS / f"{kind.lower()}-{group}-{version}.json"
    name = f"{kind} {item['metadata']['name']}"
    if path.exists():
        errors = _schema(path.stem).iter_errors(item)
        return [f"{name}: {each.json_path}: {each.message[:200]}" for each in errors]
    if kind in UNCHECKED:
        return []
    plain = {key: value for key, value in item.items() if not (kind == "Secret" and key == "sops")}
    try:
        kubernetes_validate.validate(plain, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{name}: {error.message[:200]}"]
    return []


def runner_sets(objects: list[Object]) -> Iterator[Object]:
    """Yield what ARC's chart makes of each release of a runner set, as far as the values decide it.

    Source: templates/autoscalingrunnerset.yaml of the chart gha-runner-scale-set.
    """
    maps = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ConfigMap"}
    for each in objects:
        if each["kind"] != "HelmRelease" or each["spec"]["chartRef"]["name"] != "arc-runner-set":
            continue
        values: Object = {}
        for source in each["spec"].get("valuesFrom", []):
            values = _merged(
                values, yaml.safe_load(maps[source["name"]]["data"][source["valuesKey"]])
            )
        values = _merged(values, each["spec"]["values"])
        spec = {
            key: values[key]
            for key in (
                *("githubConfigUrl", "githubConfigSecret", "runnerGroup", "runnerScaleSetName"),
                *("maxRunners", "minRunners", "listenerTemplate", "listenerMetrics", "template"),
            )
            if key in values
        }
        yield {
            "apiVersion": "actions.github.com/v1alpha1",
            "kind": "AutoscalingRunnerSet",
            "metadata": {
                "name": values["runnerScaleSetName"],
                "namespace": each["spec"]["targetNamespace"],
            },
            "spec": spec,
        }


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merged(base.get(key), value) for key, value in over.items()}
    return over
