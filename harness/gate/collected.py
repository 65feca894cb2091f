"""Collects what a plan's pods left: their results, and what Kubernetes says of each pod.

A pod that has gone has no files, and its log may be gone with its node. So the pods write to a claim,
and a reader pod, which mounts it read-only, hands it out as a tar. Where a job left nothing, the state
of its pods says why; it is kept beside the results for a person, and the judge counts the job as infra.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

from harness import jsonfile
from harness.errors import HostError
from harness.gate import kubernetes
from harness.gate.plan import Plan

INDEX: Final = "batch.kubernetes.io/job-completion-index"
JOB: Final = "batch.kubernetes.io/job-name"
FAILURES: Final = "batch.kubernetes.io/job-index-failure-count"
PODS: Final = "pods.json"
"""The file beside the results that says what became of each pod."""


@dataclass(frozen=True, slots=True)
class PodEnd:
    """What became of a pod.

    Attributes:
        job: The id of its job.
        attempt: The number of the attempt.
        pod: Its name.
        node: The node that it ran on; empty if none took it.
        phase: ``Pending``, ``Running``, ``Succeeded`` or ``Failed``.
        why: Why it ended so, or why it has not begun: the reason and the exit status.
    """

    job: str
    attempt: int
    pod: str
    node: str
    phase: str
    why: str


class Kubectl:
    """Runs kubectl.

    Args:
        context: The context; empty: the current one.
        namespace: The namespace; empty: that of the context.
        program: The program.
    """

    def __init__(self, context: str = "", namespace: str = "", program: str = "kubectl") -> None:
        self._words = [program]
        if context:
            self._words.append(f"--context={context}")
        if namespace:
            self._words.append(f"--namespace={namespace}")

    def __call__(self, *words: str, text: str | None = None) -> str:
        """Run a command and return its output.

        Raises:
            HostError: kubectl is missing, or failed.
        """
        command = [*self._words, *words]
        with _missing(command):
            process = subprocess.run(
                command,
                input=text,
                stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if process.returncode != 0:
            raise _failed(command, process.returncode, process.stderr)
        return process.stdout

    def stream(self, take: Callable[[IO[bytes]], object], *words: str) -> None:
        """Run a command and hand its output to ``take`` as it comes.

        Raises:
            HostError: kubectl is missing, or failed.
        """
        command = [*self._words, *words]
        with (
            _missing(command),
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process,
        ):
            assert process.stdout is not None and process.stderr is not None
            try:
                take(process.stdout)
            except tarfile.TarError as error:
                process.kill()
                said = process.stderr.read().decode(errors="replace")
                raise HostError(
                    f"the results broke off: {error}: {said.strip()[-300:]}",
                    hint="run the same command again",
                ) from error
            except BaseException:
                process.kill()
                raise
            said = process.stderr.read().decode(errors="replace")
        if process.returncode != 0:
            raise _failed(command, process.returncode, said)


@contextmanager
def _missing(command: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise HostError(f"there is no {command[0]}", hint="install kubectl") from error


def _failed(command: Sequence[str], status: int, said: str) -> HostError:
    shown = " ".join(command)
    lines = said.strip().splitlines() or ["it said nothing"]
    return HostError(
        f"{shown}: exit status {status}: {lines[-1][:300]}",
        hint="is the cluster reachable: kubectl get nodes",
    )


def collect(plan: Plan, folder: Path, kubectl: Kubectl, *, results: str = "") -> list[PodEnd]:
    """Copy the results of a plan's pods to a folder, with the log of each pod that is still there.

    Args:
        plan: The plan.
        folder: Where the results go: ``JOB/attempt-N/...``, and ``pods.json``.
        kubectl: Reaches the cluster.
        results: The claim of results; that of the Job by default.

    Returns:
        What became of each pod that the cluster still knows.

    Raises:
        HostError: The cluster cannot be reached, or does not have the Job.
    """
    name = kubernetes.name_of(plan)
    job = json.loads(kubectl("get", "job", name, "--output=json"))
    spec = job["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    claim = results or volumes["results"]["persistentVolumeClaim"]["claimName"]
    image = spec["containers"][0]["image"]
    listed = json.loads(kubectl("get", "pods", f"--selector={JOB}={name}", "--output=json"))
    ends = sorted(
        (end(plan, pod) for pod in listed["items"]), key=lambda each: (each.job, each.pod)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _copy(plan, folder, kubectl, claim, image)
    for each in ends:
        _keep_log(folder / each.job / f"attempt-{each.attempt}", each, kubectl)
    jsonfile.write(
        folder / PODS,
        {
            "plan": plan.id,
            "pods": [{name: getattr(each, name) for name in PodEnd.__slots__} for each in ends],
        },
    )
    return ends


def _copy(plan: Plan, folder: Path, kubectl: Kubectl, claim: str, image: str) -> None:
    pod = kubernetes.reader(plan, claim, image)
    name = pod["metadata"]["name"]
    kubectl("apply", "--filename=-", text=json.dumps(pod))
    try:
        kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
        # The folder is missing as long as no pod has ended.
        script = (
            f"cd {kubernetes.RESULTS}/{plan.id} || exec tar -cf - -T /dev/null; exec tar -cf - ."
        )
        kubectl.stream(
            lambda data: extract(data, folder),
            *("exec", name, "--container=reader", "--", "sh", "-c", script),
        )
    finally:
        kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")


def extract(data: IO[bytes], folder: Path) -> int:
    """Write the files of a tar below a folder and return their number.

    The tar comes from pods that ran the code of a change: only regular files are taken, and none outside
    the folder.

    Raises:
        tarfile.TarError: The data is no tar, or broke off.
    """
    count = 0
    with tarfile.open(fileobj=data, mode="r|") as archive:
        for member in archive:
            parts = [part for part in PurePosixPath(member.name).parts if part != "."]
            if not member.isfile() or not parts or ".." in parts or parts[0].startswith("/"):
                continue
            content = archive.extractfile(member)
            assert content is not None
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as output:
                while piece := content.read(1 << 20):
                    output.write(piece)
            if path.stat().st_size != member.size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            count += 1
    return count


def end(plan: Plan, pod: Mapping[str, Any]) -> PodEnd:
    """Return what became of a pod, by its object."""
    annotations = pod["metadata"].get("annotations") or {}
    labels = pod["metadata"].get("labels") or {}
    index = int(annotations.get(INDEX, labels.get(INDEX, "-1")))
    status = pod.get("status") or {}
    return PodEnd(
        plan.jobs[index].id if 0 <= index < len(plan.jobs) else f"index {index}",
        plan.attempt + int(annotations.get(FAILURES) or 0),
        pod["metadata"]["name"],
        cast(str, pod["spec"].get("nodeName", "")),
        status.get("phase", "Unknown"),
        "; ".join(_reasons(status)),
    )


def _reasons(status: Mapping[str, Any]) -> Iterator[str]:
    if status.get("reason"):
        yield f"{status['reason']}: {status.get('message', '')}".removesuffix(": ")
    for condition in status.get("conditions", []):
        kind, holds = condition["type"], condition["status"]
        if (kind == "DisruptionTarget" and holds == "True") or (
            kind == "PodScheduled" and holds == "False"
        ):
            yield f"{condition.get('reason', kind)}: {condition.get('message', '')}"
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        state = container.get("state") or {}
        if (ended := state.get("terminated")) and ended.get("exitCode"):
            reason = ended.get("reason", "Error")
            yield f"container {container['name']}: {reason}, exit status {ended['exitCode']}"
        if waiting := state.get("waiting"):
            yield f"container {container['name']}: {waiting.get('reason', 'waiting')}"


def _keep_log(folder: Path, pod: PodEnd, kubectl: Kubectl) -> None:
    """Keep the log of a pod; a pod that never began, or whose node is gone, has none."""
    try:
        log = kubectl("logs", pod.pod, "--container=harness")
    except HostError as error:
        log = f"harness: no log: {error.what}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pod.log").write_text(log, encoding="utf-8", errors="replace")
