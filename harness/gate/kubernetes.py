"""The jobs of a plan as a Kubernetes Indexed Job: pod N runs job N, and its results outlive it.

A pod has three containers, all from one image, which contains Harness and the suites:

- ``cache`` (init) copies the warm cache, which is mounted read-only, into the pod's own.
- ``keeper`` (a sidecar, so that it outlives the container ``harness`` and its out-of-memory kill)
  copies the evidence to the claim of results when the pod ends. It alone has the claim: a job, which
  runs the code of a change, cannot touch the results of another.
- ``harness`` runs the job. Its exit status is that of ``harness acceptance``.

The pod failure policy reads that status. 11 is infra, and 137 and 143 are a kill from outside: such a
job runs once more. So does one whose pod was evicted, preempted or lost with its node (the condition
``DisruptionTarget``). All others are verdicts, and final. The number of the attempt comes from the pod's
annotation ``batch.kubernetes.io/job-index-failure-count``.

Sources: Kubernetes' documentation of Jobs (https://kubernetes.io/docs/concepts/workloads/controllers/job/,
where the backoff limit per index is stable since 1.33 and the pod failure policy since 1.31), of sidecar
containers (stable since 1.33) and of the Pod Security Standards, whose profile ``restricted`` these
pods satisfy.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import UsageError
from harness.gate.plan import Plan, dump

MOST_PLAN_BYTES: Final = 1_000_000
"""Bytes of a plan in a ConfigMap, at most: the API server takes no more than 1 MiB of data
(https://kubernetes.io/docs/concepts/configuration/configmap/)."""

RETRIED: Final = (11, 137, 143)
"""Exit statuses of a container after which its job runs once more: infra, SIGKILL and SIGTERM."""

USER: Final = 1001
"""The user and the group of the runner image."""

GRACE_SECONDS: Final = 300
"""How long a pod may take to end: a moment for the machines, the rest for copying the evidence."""

CACHE: Final = "/var/cache/harness"
WARM: Final = "/warm"
WORK: Final = "/work"
EVIDENCE: Final = f"{WORK}/evidence"
RESULTS: Final = "/results"
PLAN: Final = "/plan/plan.json"

COPY_CACHE: Final = (
    f"mkdir -p {CACHE}/states; for folder in . states; do"
    f" [ -d {WARM}/$folder/entries ] || continue;"
    f" cp -a --no-preserve=ownership --sparse=always {WARM}/$folder/entries {CACHE}/$folder/ ||"
    " echo $folder: not copied whole, Harness makes the rest >&2; done"
)
"""What fills a pod's cache. Entries that are finished appear in the warm cache by one rename; Harness
checks each, so half a copy is made again."""

_DIGEST: Final = re.compile(r"\S+@sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how the pods of a plan run.

    Attributes:
        image: The image that contains Harness and the suites, by digest.
        results: The persistent volume claim for the results. Pods on several nodes write to it, so its
            access mode is ``ReadWriteMany``, or the cluster has one node.
        cache: The claim of the warm cache, which is mounted read-only; empty: each pod starts cold.
        namespace: The namespace; empty: the one of kubectl's context.
        parallelism: Pods at a time, at most.
        priority: The priority class; empty: the cluster's default.
        kvm: The resource that stands for ``/dev/kvm``.
        kvm_group: The group that may open ``/dev/kvm`` on the nodes; ``None`` where all may.
        pull_secret: The secret with which the nodes pull the image; empty: none.
    """

    image: str
    results: str
    cache: str = ""
    namespace: str = ""
    parallelism: int = 4
    priority: str = ""
    kvm: str = "squat.ai/kvm"
    kvm_group: int | None = None
    pull_secret: str = ""

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.image):
            raise UsageError(
                f"--image {self.image}: not by digest",
                hint="NAME@sha256:...: a tag may be another image on each node",
            )
        if self.parallelism < 1:
            raise UsageError(f"--parallel {self.parallelism}: at least 1")
        names = {
            "--results": self.results,
            "--cache": self.cache,
            "--namespace": self.namespace,
            "--priority": self.priority,
            "--pull-secret": self.pull_secret,
        }
        for option, name in names.items():
            if (name or option == "--results") and not _NAME.fullmatch(name):
                raise UsageError(
                    f"{option} {name!r}: not a name in Kubernetes",
                    hint="lower-case letters, digits and hyphens, at most 63",
                )


def name_of(plan: Plan) -> str:
    """Return the name of a plan's objects; a second attempt has objects of its own."""
    return f"harness-{plan.id}" + (f"-{plan.attempt}" if plan.attempt > 1 else "")


def attempt_folder(plan: Plan, job: str, attempt: int) -> str:
    """Return the folder of an attempt at a job, relative to the root of the claim of results."""
    return f"{plan.id}/{job}/attempt-{attempt}"


def manifests(plan: Plan, settings: Settings) -> list[dict[str, Any]]:
    """Return the objects that run a plan: the ConfigMap with the plan, and the Job.

    Raises:
        UsageError: The plan has no jobs, or is too large for a ConfigMap.
    """
    if not plan.jobs:
        raise UsageError(f"the plan has no jobs: {plan.empty or 'and does not say why'}")
    text = json.dumps(dump(plan), separators=(",", ":"))
    if len(text.encode()) > MOST_PLAN_BYTES:
        raise UsageError(
            f"the plan has {len(text.encode())} bytes, a ConfigMap holds {MOST_PLAN_BYTES}",
            hint="make several plans: harness plan --image ... or --arch ...",
        )
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, settings),
        "immutable": True,
        "data": {"plan.json": text},
    }
    return [config, _job(plan, settings)]


def reader(plan: Plan, results: str, image: str) -> dict[str, Any]:
    """Return the pod that reads the claim of results, for ``kubectl exec``.

    Args:
        plan: The plan.
        results: The claim of results.
        image: The image; it has ``tar``.
    """
    resources = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name_of(plan)}-reader",
            "labels": _labels(plan) | {"app.kubernetes.io/component": "reader"},
        },
        "spec": {
            **_pod_security(None),
            "restartPolicy": "Never",
            # A reader that nobody deletes ends by itself.
            "activeDeadlineSeconds": 3600,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "reader",
                    "image": image,
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": resources, "limits": dict(resources)},
                    "securityContext": _container_security(),
                    "volumeMounts": [{"name": "results", "mountPath": RESULTS, "readOnly": True}],
                }
            ],
            "volumes": [
                {
                    "name": "results",
                    "persistentVolumeClaim": {"claimName": results, "readOnly": True},
                }
            ],
        },
    }


def _instance(plan: Plan) -> str:
    """Return the label of all objects of a plan. The digest alone could read as a number in YAML."""
    return f"plan-{plan.id}"


def _labels(plan: Plan) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "harness",
        "app.kubernetes.io/managed-by": "harness-job",
        "app.kubernetes.io/instance": _instance(plan),
    }


def _metadata(plan: Plan, settings: Settings) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name_of(plan), "labels": _labels(plan)}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata


def _pod_security(kvm_group: int | None) -> dict[str, Any]:
    """Return what a pod's spec says of rights, as the profile ``restricted`` wants it."""
    context: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if kvm_group is not None:
        context["supplementalGroups"] = [kvm_group]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": context,
    }


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _resources(plan: Plan, settings: Settings) -> dict[str, Any]:
    """Return the largest needs of the jobs, since all indexes have one template.

    Requests are the limits: memory that is not there kills the node's pods, not the one at fault.
    """
    amounts = {
        "cpu": f"{max(job.needs.cpus for job in plan.jobs)}",
        "memory": f"{max(job.needs.memory for job in plan.jobs)}Mi",
        "ephemeral-storage": f"{max(job.needs.disk for job in plan.jobs)}Mi",
    }
    if any(job.needs.kvm for job in plan.jobs):
        amounts[settings.kvm] = "1"
    return {"requests": amounts, "limits": dict(amounts)}


def _job(plan: Plan, settings: Settings) -> dict[str, Any]:
    longest = max(job.timeout_minutes for job in plan.jobs)
    retries = 1 if plan.attempt == 1 else 0
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(plan, settings),
        "spec": {
            "completionMode": "Indexed",
            "completions": len(plan.jobs),
            "parallelism": min(settings.parallelism, len(plan.jobs)),
            "backoffLimitPerIndex": retries,
            "podReplacementPolicy": "Failed",
            # The results are in the claim; the pods and their logs stay a week for whoever asks.
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Count",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailIndex",
                        "onExitCodes": {
                            "containerName": "harness",
                            "operator": "NotIn",
                            "values": list(RETRIED),
                        },
                    },
                ]
            },
            "template": {
                "metadata": {
                    "labels": _labels(plan) | {"app.kubernetes.io/component": "runner"},
                    # An autoscaler that moves a running pod costs the whole job.
                    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                },
                "spec": _pod(plan, settings, longest),
            },
        },
    }


def _pod(plan: Plan, settings: Settings, longest: int) -> dict[str, Any]:
    keeping = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"}
    # The Job's controller sets the first variable in each container.
    which = ["--index=$(JOB_COMPLETION_INDEX)", "--failures=$(FAILURES)"]
    failures = {
        "name": "FAILURES",
        "valueFrom": {
            "fieldRef": {
                "fieldPath": "metadata.annotations['batch.kubernetes.io/job-index-failure-count']"
            }
        },
    }
    work = {"name": "work", "mountPath": WORK}
    mounted_plan = {"name": "plan", "mountPath": "/plan", "readOnly": True}
    keeper = {
        "name": "keeper",
        "image": settings.image,
        "restartPolicy": "Always",
        "command": ["harness", "job", PLAN, "--keep", *which],
        "env": [failures],
        "resources": {"requests": keeping, "limits": dict(keeping)},
        "securityContext": _container_security(),
        "volumeMounts": [
            {**work, "readOnly": True},
            mounted_plan,
            {"name": "results", "mountPath": RESULTS},
        ],
    }
    runner = {
        "name": "harness",
        "image": settings.image,
        "command": ["harness", "job", PLAN, *which],
        "workingDir": WORK,
        "env": [
            failures,
            {"name": "HARNESS_CACHE", "value": CACHE},
            {"name": "HOME", "value": WORK},
        ],
        "resources": _resources(plan, settings),
        "securityContext": _container_security(),
        "volumeMounts": [
            work,
            mounted_plan,
            {"name": "cache", "mountPath": CACHE},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    inits: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = [
        {"name": "work", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "plan", "configMap": {"name": name_of(plan)}},
        {"name": "results", "persistentVolumeClaim": {"claimName": settings.results}},
    ]
    if settings.cache:
        inits.append(
            {
                "name": "cache",
                "image": settings.image,
                "command": ["sh", "-c", COPY_CACHE],
                "resources": _resources_of_copy(plan),
                "securityContext": _container_security(),
                "volumeMounts": [
                    {"name": "warm", "mountPath": WARM, "readOnly": True},
                    {"name": "cache", "mountPath": CACHE},
                ],
            }
        )
        volumes.append(
            {
                "name": "warm",
                "persistentVolumeClaim": {"claimName": settings.cache, "readOnly": True},
            }
        )
    return {
        **_pod_security(settings.kvm_group),
        **({"priorityClassName": settings.priority} if settings.priority else {}),
        **({"imagePullSecrets": [{"name": settings.pull_secret}]} if settings.pull_secret else {}),
        "restartPolicy": "Never",
        # A pod that does not end by its own time limit: a node that hangs.
        "activeDeadlineSeconds": (longest + 15) * 60,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": _instance(plan)}},
            }
        ],
        "initContainers": [*inits, keeper],
        "containers": [runner],
        "volumes": volumes,
    }


def _resources_of_copy(plan: Plan) -> dict[str, Any]:
    amounts = {
        "cpu": "500m",
        "memory": "256Mi",
        "ephemeral-storage": f"{max(job.needs.disk for job in plan.jobs)}Mi",
    }
    return {"requests": amounts, "limits": dict(amounts)}
