"""The policy that every pod and every object of the runners follows, as faults in words.

The part of a pod is the Pod Security Standard ``restricted`` (v1.37,
https://kubernetes.io/docs/concepts/security/pod-security-standards/) and this house's own rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

PINNED = re.compile(r"\S+@sha256:[0-9a-f]{64}")
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
}
"""The kinds of volumes that ``restricted`` allows."""

NODE_LEVEL = ("kvm-device-plugin", "kvm")
"""The one workload that mounts paths of the node: namespace and name."""

DENIED = (
    *("169.254.169.254", "169.254.170.2", "10.0.0.1", "10.96.0.1", "172.16.0.1", "192.168.1.1"),
    *("100.64.0.1", "127.0.0.1", "fd00:ec2::254", "fe80::1", "fd00::1", "::1", "2002:a00:1::"),
)
"""Addresses that no runner may reach: metadata services, nodes, pods, services."""


def pods(item: Object) -> Iterator[tuple[str, Object]]:
    """Yield the name and the spec of each pod that an object makes."""
    name = item["metadata"]["name"]
    kind, spec = item["kind"], item.get("spec", {})
    if kind == "Pod":
        yield name, spec
    elif kind == "CronJob":
        yield name, spec["jobTemplate"]["spec"]["template"]["spec"]
    elif "template" in spec:
        yield name, spec["template"]["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def restricted_faults(spec: Object) -> Iterator[str]:
    """Yield what the standard ``restricted`` has against a pod."""
    pod = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {kind}"
    for each in containers(spec):
        own = each.get("securityContext", {})
        name = each["name"]
        if own.get("privileged"):
            yield f"{name}: privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation is not false"
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {
            "NET_BIND_SERVICE"
        }:
            yield f"{name}: capabilities"
        if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
            yield f"{name}: runAsNonRoot"
        if 0 in (own.get("runAsUser"), pod.get("runAsUser")):
            yield f"{name}: runAsUser 0"
        profile = own.get("seccompProfile", pod.get("seccompProfile", {}))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile"
        if any(port.get("hostPort") for port in each.get("ports", [])):
            yield f"{name}: hostPort"


def house_faults(spec: Object) -> Iterator[str]:
    """Yield what this house has against a pod."""
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    if spec.get("serviceAccountName"):
        yield "serviceAccountName"
    for volume in spec.get("volumes", []):
        for source in volume.get("projected", {}).get("sources", []):
            if "serviceAccountToken" in source:
                yield f"volume {volume['name']}: serviceAccountToken"
    for each in containers(spec):
        name, resources = each["name"], each.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for kind in ("memory", "ephemeral-storage"):
            if not limits.get(kind):
                yield f"{name}: no limit of {kind}"
            elif limits[kind] != requests.get(kind):
                yield f"{name}: the limit of {kind} is not the request"
        if not requests.get("cpu"):
            yield f"{name}: no request of cpu"
        if not PINNED.fullmatch(each["image"]):
            yield f"{name}: image {each['image']} is not by digest"
        if each.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{name}: readOnlyRootFilesystem is not true"


def cache_faults(spec: Object, claim: str) -> Iterator[str]:
    """Yield where a pod that runs a change may write to the warm cache."""
    for volume in spec.get("volumes", []):
        source = volume.get("persistentVolumeClaim", {})
        if source.get("claimName") != claim:
            continue
        if source.get("readOnly") is not True:
            yield f"volume {volume['name']}: the warm cache is writable"
        for each in containers(spec):
            for mount in each.get("volumeMounts", []):
                if mount["name"] == volume["name"] and mount.get("readOnly") is not True:
                    yield f"{each['name']}: mounts the warm cache writable"


def runner_faults(item: Object) -> Iterator[str]:
    """Yield what is against the pod of a runner set, besides what is against any pod."""
    for name, spec in pods(item):
        if not spec.get("priorityClassName"):
            yield f"{name}: no priority"
        if not spec.get("topologySpreadConstraints"):
            yield f"{name}: no spread"
        for each in spec["containers"]:
            resources = each.get("resources", {})
            for part in ("requests", "limits"):
                if str(resources.get(part, {}).get("squat.ai/kvm")) != "1":
                    yield f"{name}: {each['name']}: no squat.ai/kvm in its {part}"


def network_faults(objects: list[Object], namespace: str) -> Iterator[str]:
    """Yield what pods of a namespace can reach, or be reached by, that they must not."""
    policies = [
        each["spec"]
        for each in objects
        if each["kind"] == "NetworkPolicy" and each["metadata"]["namespace"] == namespace
    ]
    denies = [
        each
        for each in policies
        if each["podSelector"] == {}
        and set(each["policyTypes"]) == {"Ingress", "Egress"}
        and not each.get("ingress")
        and not each.get("egress")
    ]
    if not denies:
        yield f"{namespace}: nothing is denied by default"
    for policy in policies:
        if policy.get("ingress"):
            yield f"{namespace}: something may reach its pods"
        for rule in policy.get("egress", []):
            if not rule.get("ports"):
                yield f"{namespace}: a rule of egress allows every port"
            if not rule.get("to"):
                yield f"{namespace}: a rule of egress allows every address"
            for peer in rule.get("to", []):
                yield from _peer_faults(namespace, peer)


def _peer_faults(namespace: str, peer: Object) -> Iterator[str]:
    if "ipBlock" not in peer:
        space = peer.get("namespaceSelector", {}).get("matchLabels", {})
        names = space.get("kubernetes.io/metadata.name") == "kube-system"
        if not (names and peer.get("podSelector", {}).get("matchLabels")):
            yield f"{namespace}: its pods reach other pods than the name server's"
        return
    block = peer["ipBlock"]
    network = ipaddress.ip_network(block["cidr"])
    exceptions = [ipaddress.ip_network(each) for each in block.get("except", [])]
    for text in DENIED:
        address = ipaddress.ip_address(text)
        if address in network and not any(address in each for each in exceptions):
            yield f"{namespace}: its pods reach {text}"


def tree_faults(rendered: dict[str, list[Object]], sets: list[Object]) -> list[str]:
    """Return all faults of the tree: of the Kustomizations, of each pod, of the namespaces.

    Args:
        rendered: The objects of each Kustomization, by its name.
        sets: The runner sets that ARC's chart makes.
    """
    every = [item for objects in rendered.values() for item in objects]
    return [
        *_order_faults(rendered["harness"]),
        *_version_faults(every),
        *_namespace_faults(every),
        *_pod_faults(every, sets),
        *_secret_faults(every),
        *network_faults(every, "harness-runners"),
    ]


def _order_faults(objects: list[Object]) -> Iterator[str]:
    flux = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Kustomization"}
    for name, after in (
        ("harness-crds", []),
        ("harness-controllers", ["harness-crds"]),
        ("harness-sets", ["harness-controllers"]),
    ):
        if name not in flux:
            yield f"no Kustomization {name}"
            continue
        spec = flux[name]["spec"]
        if [each["name"] for each in spec.get("dependsOn", [])] != after:
            yield f"{name}: dependsOn is not {after}"
        if spec.get("wait") is not True:
            yield f"{name}: the next one does not wait for it"
        if spec["prune"] is not (name != "harness-crds"):
            yield f"{name}: prune is {spec['prune']}"
    decryption = flux["harness-sets"]["spec"].get("decryption", {})
    if decryption.get("provider") != "sops" or not decryption.get("secretRef"):
        yield "harness-sets: does not decrypt"


def _version_faults(objects: list[Object]) -> Iterator[str]:
    charts = [each for each in objects if each["kind"] == "OCIRepository"]
    arc = {each["spec"]["ref"]["tag"] for each in charts}
    if len(arc) != 1:
        yield f"ARC has several versions: {', '.join(sorted(arc))}"
    for each in objects:
        if each["kind"] == "HelmRelease" and each["spec"]["chartRef"]["name"] == "arc-controller":
            for when in ("install", "upgrade"):
                if each["spec"][when].get("crds") != "Skip":
                    yield f"arc-controller: {when}s CRDs of its own"
        if each["kind"] == "Kustomization" and each["spec"]["sourceRef"]["kind"] == "OCIRepository":
            spec = each["spec"]
            if spec["prune"] or spec.get("deletionPolicy") != "Orphan":
                yield f"{each['metadata']['name']}: deletes CRDs, and with them all runner sets"


def _namespace_faults(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        if each["kind"] != "Namespace":
            continue
        name = each["metadata"]["name"]
        level = each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != ("privileged" if name == NODE_LEVEL[0] else "restricted"):
            yield f"namespace {name}: enforces {level}"
    quotas = [each["spec"] for each in objects if each["kind"] == "ResourceQuota"]
    for kind in ("limits.memory", "limits.ephemeral-storage", "requests.cpu"):
        for scoped in (False, True):
            counted = any(
                kind in each["hard"] and ("scopeSelector" in each) is scoped for each in quotas
            )
            # The API server refuses it ("unsupported scope applied to resource", 1.37.2).
            possible = not (scoped and "ephemeral-storage" in kind)
            if counted is not possible:
                whose = "of forks" if scoped else "of all runners"
                yield f"{'no quota' if possible else 'a quota, which cannot be,'} of {kind} {whose}"
    if not any(each["kind"] == "LimitRange" for each in objects):
        yield "no LimitRange"


def _pod_faults(objects: list[Object], sets: list[Object]) -> Iterator[str]:
    for item in [*objects, *sets]:
        for name, spec in pods(item):
            if item["kind"] == "DaemonSet":
                yield from _node_faults(item, spec)
            else:
                yield from (f"{name}: {each}" for each in restricted_faults(spec))
            yield from (f"{name}: {each}" for each in house_faults(spec))
    for item in sets:
        yield from runner_faults(item)
        spec = item["spec"]["template"]["spec"]
        yield from (
            f"{item['metadata']['name']}: {each}" for each in cache_faults(spec, "harness-cache")
        )
        if item["spec"].get("minRunners") != 0:
            yield f"{item['metadata']['name']}: runners wait, so a pod is older than its job"
    groups = {each["metadata"]["name"]: each["spec"].get("runnerGroup") for each in sets}
    for name in ("harness", "harness-fork"):
        others = [group for other, group in groups.items() if other != name]
        if groups.get(name) in (None, "", "default", *others):
            yield f"{name}: no runner group of its own"


def _node_faults(item: Object, spec: Object) -> Iterator[str]:
    """Yield what is against the one workload that mounts paths of the node, beside those paths."""
    name = item["metadata"]["name"]
    if (item["metadata"]["namespace"], name) != NODE_LEVEL:
        yield f"{name}: another workload at the level of nodes"
    for fault in restricted_faults(spec):
        if not re.search(r": hostPath$|runAsNonRoot$|runAsUser 0$", fault):
            yield f"{name}: {fault}"
    paths = {each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}
    if paths != {"/dev", "/var/lib/kubelet/device-plugins"}:
        yield f"{name}: mounts {', '.join(sorted(paths))}"
    if not any('"count":' in word for each in spec["containers"] for word in each["args"]):
        yield f"{name}: squat.ai/kvm is not counted"


def _secret_faults(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        if each["kind"] != "Secret":
            continue
        values = {**each.get("data", {}), **each.get("stringData", {})}.values()
        encrypted = values and all(str(value).startswith("ENC[AES256_GCM,") for value in values)
        if not (each.get("sops", {}).get("age") and each["sops"].get("mac") and encrypted):
            yield f"secret {each['metadata']['name']}: not encrypted"
