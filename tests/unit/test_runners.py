"""The GitOps tree of the runners: it renders, fits the schemas, and follows the policy."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.gate.kubernetes import COPY_CACHE
from tests.programs import need
from tests.unit import fleet
from tests.unit.fleet import Object
from tests.unit.fleet_policy import tree_faults

Rendered = dict[str, list[Object]]


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return fleet.render()


def sets_of(rendered: Rendered) -> list[Object]:
    return list(fleet.runner_sets(rendered["harness-sets"]))


def every(rendered: Rendered) -> list[Object]:
    return [item for objects in rendered.values() for item in objects]


def test_everything_fits_its_schema(rendered: Rendered) -> None:
    objects = [*every(rendered), *sets_of(rendered)]
    assert {each["kind"] for each in objects} >= {"AutoscalingRunnerSet", "HelmRelease", "CronJob"}
    assert [fault for each in objects for fault in fleet.schema_faults(each)] == []


def test_the_policy_holds(rendered: Rendered) -> None:
    assert tree_faults(rendered, sets_of(rendered)) == []


def test_every_setting_is_used_and_named() -> None:
    tree = fleet.TREE
    text = "".join(
        path.read_text()
        for path in [*tree.rglob("*.yaml"), tree / "bootstrap"]
        if path.name != "settings.env"
    )
    unused = [name for name in fleet.settings() if not re.search(rf"\b{name}\b", text)]
    assert unused == []


def test_a_tag_in_place_of_a_digest_says_why() -> None:
    for path in fleet.TREE.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.search(r"^\s+tag:", line):
                assert re.search(r"# lint: tag \(.{20,}\)", before), f"{path}: {line}"
            assert not re.search(r"^\s+image: (?!\$\{)", line), f"{path}: {line}"


def test_runners_and_jobs_fill_their_caches_alike(rendered: Rendered) -> None:
    for each in sets_of(rendered):
        assert each["spec"]["template"]["spec"]["initContainers"][0]["command"][2] == COPY_CACHE


def test_the_copy_of_the_cache(tmp_path: Path) -> None:
    warm, own = tmp_path / "warm", tmp_path / "own"
    own.mkdir()
    script = COPY_CACHE.replace("/warm", str(warm)).replace("/var/cache/harness", str(own))
    (warm / "entries/skiff-1").mkdir(parents=True)
    (warm / "entries/skiff-1/disk").write_text("disk")
    (warm / "states/entries/live-1").mkdir(parents=True)
    (warm / "states/entries/live-1/ram").write_text("ram")
    (warm / "locks").mkdir()
    subprocess.run(["sh", "-c", script], check=True)
    assert (own / "entries/skiff-1/disk").read_text() == "disk"
    assert (own / "states/entries/live-1/ram").read_text() == "ram"
    assert not (own / "locks").exists()


def test_the_copy_of_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "warm").mkdir()
    (tmp_path / "own").mkdir()
    script = COPY_CACHE.replace("/warm", str(tmp_path / "warm"))
    script = script.replace("/var/cache/harness", str(tmp_path / "own"))
    process = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert process.stderr == ""


@pytest.mark.parametrize("name", ["cluster", "crds", "controllers", "monitoring"])
def test_the_renderer_agrees_with_kustomize(name: str) -> None:
    need("kubectl")
    folder = fleet.TREE / name
    process = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )

    def key(item: Object) -> str:
        return json.dumps(item, sort_keys=True)

    theirs = sorted((each for each in yaml.safe_load_all(process.stdout)), key=key)
    assert theirs == sorted(fleet.build(folder), key=key)


# --- mutations: each breaks the tree in one way, and the policy or a schema sees it -----------------


def find(rendered: Rendered, kind: str, name: str) -> Object:
    return next(
        each
        for each in every(rendered)
        if each["kind"] == kind and each["metadata"]["name"] == name
    )


def values(rendered: Rendered, change: Callable[[Object], object]) -> None:
    """Change the values that all runner sets share."""
    data = find(rendered, "ConfigMap", "runner-values")["data"]
    content = yaml.safe_load(data["values.yaml"])
    change(content)
    data["values.yaml"] = yaml.safe_dump(content)


def runner(rendered: Rendered, change: Callable[[Object], object]) -> None:
    """Change the container of a runner."""
    values(rendered, lambda content: change(content["template"]["spec"]["containers"][0]))


def runner_pod(rendered: Rendered, change: Callable[[Object], object]) -> None:
    values(rendered, lambda content: change(content["template"]["spec"]))


def remove(rendered: Rendered, kind: str, name: str) -> None:
    item = find(rendered, kind, name)
    for objects in rendered.values():
        objects[:] = [each for each in objects if each is not item]


MUTATIONS: dict[str, tuple[Callable[[Rendered], object], str]] = {
    "privileged": (
        lambda r: runner(r, lambda c: c["securityContext"].update(privileged=True)),
        "runner: privileged",
    ),
    "privilege escalation": (
        lambda r: runner(r, lambda c: c["securityContext"].pop("allowPrivilegeEscalation")),
        "allowPrivilegeEscalation is not false",
    ),
    "a capability": (
        lambda r: runner(
            r, lambda c: c["securityContext"]["capabilities"].update(add=["NET_ADMIN"])
        ),
        "capabilities",
    ),
    "root": (
        lambda r: runner_pod(r, lambda p: p["securityContext"].update(runAsUser=0)),
        "runAsUser 0",
    ),
    "a writable root": (
        lambda r: runner(r, lambda c: c["securityContext"].pop("readOnlyRootFilesystem")),
        "readOnlyRootFilesystem",
    ),
    "no seccomp": (
        lambda r: runner_pod(r, lambda p: p["securityContext"].pop("seccompProfile")),
        "seccompProfile",
    ),
    "/dev/kvm by hostPath": (
        lambda r: runner_pod(
            r, lambda p: p["volumes"].append({"name": "kvm", "hostPath": {"path": "/dev/kvm"}})
        ),
        "volume kvm: hostPath",
    ),
    "the network of the node": (
        lambda r: runner_pod(r, lambda p: p.update(hostNetwork=True)),
        "hostNetwork",
    ),
    "no limits": (
        lambda r: runner(r, lambda c: c["resources"].pop("limits")),
        "no limit of memory",
    ),
    "memory above its request": (
        lambda r: runner(r, lambda c: c["resources"]["limits"].update(memory="64Gi")),
        "the limit of memory is not the request",
    ),
    "no request of disk": (
        lambda r: runner(r, lambda c: c["resources"]["requests"].pop("ephemeral-storage")),
        "the limit of ephemeral-storage is not the request",
    ),
    "no KVM": (
        lambda r: runner(r, lambda c: c["resources"]["limits"].pop("squat.ai/kvm")),
        "no squat.ai/kvm in its limits",
    ),
    "KVM without a count": (
        lambda r: find(r, "DaemonSet", "kvm")["spec"]["template"]["spec"]["containers"][0].update(
            args=["--device", '{"name": "kvm", "groups": [{"paths": [{"path": "/dev/kvm"}]}]}']
        ),
        "squat.ai/kvm is not counted",
    ),
    "a privileged device plugin": (
        lambda r: find(r, "DaemonSet", "kvm")["spec"]["template"]["spec"]["containers"][0][
            "securityContext"
        ].update(privileged=True),
        "kvm: plugin: privileged",
    ),
    "the node's root in the device plugin": (
        lambda r: find(r, "DaemonSet", "kvm")["spec"]["template"]["spec"]["volumes"].append(
            {"name": "root", "hostPath": {"path": "/"}}
        ),
        "kvm: mounts /, /dev",
    ),
    "a tag for a digest": (
        lambda r: runner(r, lambda c: c.update(image="ghcr.io/actions/actions-runner:latest")),
        "is not by digest",
    ),
    "two versions of ARC": (
        lambda r: find(r, "OCIRepository", "arc-runner-set")["spec"]["ref"].update(tag="0.13.1"),
        "ARC has several versions: 0.13.1, 0.14.2",
    ),
    "CRDs by Helm": (
        lambda r: find(r, "HelmRelease", "arc-controller")["spec"]["upgrade"].update(
            crds="CreateReplace"
        ),
        "upgrades CRDs of its own",
    ),
    "CRDs that are pruned": (
        lambda r: find(r, "Kustomization", "arc-crds")["spec"].update(prune=True),
        "deletes CRDs",
    ),
    "no order": (
        lambda r: find(r, "Kustomization", "harness-sets")["spec"].pop("dependsOn"),
        "harness-sets: dependsOn is not ['harness-controllers']",
    ),
    "an order that nobody waits for": (
        lambda r: find(r, "Kustomization", "harness-crds")["spec"].pop("wait"),
        "harness-crds: the next one does not wait",
    ),
    "a plain secret": (
        lambda r: r["harness-sets"].append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "token", "namespace": "harness-runners"},
                "stringData": {"github_token": "plain"},
            }
        ),
        "secret token: not encrypted",
    ),
    "no decryption": (
        lambda r: find(r, "Kustomization", "harness-sets")["spec"].pop("decryption"),
        "does not decrypt",
    ),
    "a token of the service account": (
        lambda r: runner_pod(r, lambda p: p.pop("automountServiceAccountToken")),
        "automountServiceAccountToken is not false",
    ),
    "a token by a volume": (
        lambda r: runner_pod(
            r,
            lambda p: p["volumes"].append(
                {
                    "name": "token",
                    "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
                }
            ),
        ),
        "volume token: serviceAccountToken",
    ),
    "a service account": (
        lambda r: runner_pod(r, lambda p: p.update(serviceAccountName="deployer")),
        "serviceAccountName",
    ),
    "a writable cache": (
        lambda r: runner_pod(
            r, lambda p: p["volumes"][-1]["persistentVolumeClaim"].pop("readOnly")
        ),
        "harness-fork: volume warm: the warm cache is writable",
    ),
    "a writable mount of the cache": (
        lambda r: runner(
            r, lambda c: c["volumeMounts"].append({"name": "warm", "mountPath": "/warm"})
        ),
        "harness-fork: runner: mounts the warm cache writable",
    ),
    "no policy of the network": (
        lambda r: remove(r, "NetworkPolicy", "default-deny"),
        "",
    ),
    "a way to the metadata address": (
        lambda r: find(r, "NetworkPolicy", "https")["spec"]["egress"][0]["to"][0]["ipBlock"][
            "except"
        ].remove("169.254.0.0/16"),
        "its pods reach 169.254.169.254",
    ),
    "a way to all pods": (
        lambda r: find(r, "NetworkPolicy", "names")["spec"]["egress"][0]["to"][0].pop(
            "podSelector"
        ),
        "its pods reach other pods than the name server's",
    ),
    "every port": (
        lambda r: find(r, "NetworkPolicy", "https")["spec"]["egress"][0].pop("ports"),
        "a rule of egress allows every port",
    ),
    "no priority": (
        lambda r: find(r, "HelmRelease", "harness")["spec"]["values"].pop("template"),
        "harness: no priority",
    ),
    "no spread": (
        lambda r: runner_pod(r, lambda p: p.pop("topologySpreadConstraints")),
        "harness: no spread",
    ),
    "no quota": (
        lambda r: remove(r, "ResourceQuota", "forks"),
        "no quota of limits.memory of forks",
    ),
    "a quota that the API server refuses": (
        lambda r: find(r, "ResourceQuota", "forks")["spec"]["hard"].update(
            {"limits.ephemeral-storage": "80Gi"}
        ),
        "a quota, which cannot be, of limits.ephemeral-storage of forks",
    ),
    "runners that wait for jobs": (
        lambda r: values(r, lambda content: content.update(minRunners=2)),
        "runners wait",
    ),
    "forks in the default group": (
        lambda r: find(r, "HelmRelease", "harness-fork")["spec"]["values"].update(
            runnerGroup="default"
        ),
        "harness-fork: no runner group of its own",
    ),
    "all changes in the default group": (
        lambda r: find(r, "HelmRelease", "harness")["spec"]["values"].update(runnerGroup="default"),
        "harness: no runner group of its own",
    ),
    "forks in the group of branches": (
        lambda r: find(r, "HelmRelease", "harness-fork")["spec"]["values"].update(
            runnerGroup=find(r, "HelmRelease", "harness")["spec"]["values"]["runnerGroup"]
        ),
        "harness-fork: no runner group of its own",
    ),
    "a namespace that takes any pod": (
        lambda r: find(r, "Namespace", "harness-runners")["metadata"].pop("labels"),
        "namespace harness-runners: enforces None",
    ),
    "a typing mistake in ARC's kind": (
        lambda r: runner_pod(r, lambda p: p.update(priorityClasName="x")),
        "priorityClasName",
    ),
    "a typing mistake in Flux' kind": (
        lambda r: find(r, "Kustomization", "harness-sets")["spec"].update(dependOn=[]),
        "dependOn",
    ),
    "a typing mistake in a core kind": (
        lambda r: find(r, "CronJob", "warm")["spec"].update(concurencyPolicy="Forbid"),
        "concurencyPolicy",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str, rendered: Rendered) -> None:
    mutate, expected = MUTATIONS[name]
    mutant = copy.deepcopy(rendered)
    if name == "no policy of the network":
        mutant["harness-sets"] = [
            each
            for each in mutant["harness-sets"]
            if (each["kind"], each["metadata"]["name"]) != ("NetworkPolicy", "default-deny")
        ]
        expected = "harness-runners: nothing is denied by default"
    else:
        mutate(mutant)
    sets = sets_of(mutant)
    faults = tree_faults(mutant, sets)
    faults += [fault for each in [*every(mutant), *sets] for fault in fleet.schema_faults(each)]
    assert any(expected in fault for fault in faults), faults
