"""The tree and `runners/bootstrap` against a real API server: kube-apiserver and etcd, no kubelet.

Both have to be on the PATH. kube-apiserver is in no Debian package; it builds from the Go modules
k8s.io/kubernetes in about 20 minutes of CPU time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness.gate import kubernetes
from harness.gate.plan import Needs
from tests.gate_plans import a_job, a_plan
from tests.unit import fleet
from tests.unit.fleet_policy import pods

pytestmark = [
    pytest.mark.skipif(
        shutil.which(name) is None,
        reason=f"needs {name} on the PATH: the layer of a real API server; {how}",
    )
    for name, how in (
        ("kube-apiserver", "build it from k8s.io/kubernetes v1.37.2"),
        ("etcd", "install the package etcd-server"),
        ("kubectl", "install kubectl"),
    )
]

TOKEN = "admin-token"

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}, singular: {singular}}}
  versions:
    - name: {version}
      served: true
      storage: true
      schema:
        openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
"""


def crd(group: str, version: str, kind: str, plural: str) -> str:
    return CRD.format(group=group, version=version, kind=kind, plural=plural, singular=kind.lower())


FLUX = "---".join(
    [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: flux-system}\n",
        crd("source.toolkit.fluxcd.io", "v1", "GitRepository", "gitrepositories"),
        crd("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "kustomizations"),
    ]
)
"""In the place of Flux' install.yaml: its kinds, without its controllers."""


def free_port() -> int:
    # kube-apiserver binds no port that the kernel chooses.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An API server on loopback, and kubectl for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "kubeconfig"

    def kubectl(self, *words: str, text: str | None = None, check: bool = True) -> str:
        process = subprocess.run(
            ["kubectl", f"--kubeconfig={self.config}", *words],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or process.returncode == 0, process.stderr
        return process.stdout if process.returncode == 0 else process.stderr

    def apply(self, *objects: fleet.Object, dry: bool = False, check: bool = True) -> str:
        words = ["apply", "--server-side", "--validate=strict", "--filename=-"]
        return self.kubectl(
            *words,
            *(["--dry-run=server"] if dry else []),
            text=yaml.safe_dump_all(objects),
            check=check,
        )


@contextlib.contextmanager
def running(*words: str, log: Path) -> Iterator[None]:
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("api")
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    (folder / "tokens").write_text(f"{TOKEN},admin,admin,system:masters\n")
    client, peer, port = free_port(), free_port(), free_port()
    etcd = (
        *("etcd", f"--data-dir={folder / 'etcd'}"),
        *(f"--listen-client-urls=http://127.0.0.1:{client}",),
        *(f"--advertise-client-urls=http://127.0.0.1:{client}",),
        *(f"--listen-peer-urls=http://127.0.0.1:{peer}",),
    )
    api = (
        *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}"),
        *("--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={folder / 'certs'}"),
        *("--service-account-issuer=https://kubernetes.test", f"--service-account-key-file={key}"),
        *(f"--service-account-signing-key-file={key}", f"--token-auth-file={folder / 'tokens'}"),
        *("--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"),
        # Kubelets' administrators say yes to this, and Pod Security says no where it is asked to.
        "--allow-privileged=true",
        # It refuses to advertise a loopback address.
        "--endpoint-reconciler-type=none",
    )
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "insecure-skip-tls-verify": True,
                },
            }
        ],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    server = Server(folder)
    server.config.write_text(json.dumps(config))
    with (
        running(*etcd, log=folder / "etcd.log"),
        running(*api, log=folder / "api.log"),
    ):
        wait_ready(port, folder / "api.log")
        yield server


def wait_ready(port: int, log: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    again = threading.Event()
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, context=context, timeout=10).close()
            return
        again.wait(0.5)
    raise AssertionError(log.read_text()[-3000:])


def core(objects: list[fleet.Object]) -> list[fleet.Object]:
    """Return the objects of Kubernetes' own kinds, without sops' part of secrets."""
    return [
        {key: value for key, value in each.items() if key != "sops"}
        for each in objects
        if "fluxcd.io" not in each["apiVersion"] and "monitoring.coreos" not in each["apiVersion"]
    ]


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[fleet.Object]]:
    return fleet.render()


@pytest.fixture(scope="module")
def applied(server: Server, rendered: dict[str, list[fleet.Object]]) -> Server:
    """The API server with the tree's own objects, in their order."""
    namespaces = [
        each for each in core(rendered["harness-controllers"]) if each["kind"] == "Namespace"
    ]
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "flux-system"}})
    server.apply(*namespaces)
    # The controllers that make it do not run, and no pod is taken without it.
    for each in namespaces:
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        server.apply(
            {**account, "metadata": {"name": "default", "namespace": each["metadata"]["name"]}}
        )
    server.apply(*core(rendered["harness-controllers"]))
    server.apply(*core(rendered["harness-sets"]))
    return server


def pod(name: str, spec: fleet.Object) -> fleet.Object:
    metadata = {"name": name, "namespace": "harness-runners"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_a_second_time_changes_nothing(
    applied: Server, rendered: dict[str, list[fleet.Object]]
) -> None:
    def objects() -> list[fleet.Object]:
        kinds = "namespaces,quota,limits,networkpolicies,cronjobs,pvc,daemonsets,priorityclasses,secrets"
        listed = applied.kubectl("get", kinds, "--all-namespaces", "--output=json")
        items: list[fleet.Object] = json.loads(listed)["items"]
        for item in items:
            # A claim gets a new one for an equal object (Kubernetes 1.37.2).
            del item["metadata"]["resourceVersion"]
        return items

    before = objects()
    applied.apply(*core(rendered["harness-controllers"]))
    applied.apply(*core(rendered["harness-sets"]))
    assert objects() == before


def test_pod_security_takes_the_runners_and_the_jobs(
    applied: Server, rendered: dict[str, list[fleet.Object]]
) -> None:
    sets = list(fleet.runner_sets(rendered["harness-sets"]))
    plan = a_plan(a_job("skiff-1", "a.py::b", image="skiff", needs=Needs(kvm=True)))
    image = fleet.SETTINGS["HARNESS_IMAGE"]
    settings = kubernetes.Settings(
        image, "results", cache="harness-cache", namespace="harness-runners"
    )
    manifests = kubernetes.manifests(plan, settings)
    applied.apply(*manifests, dry=True)
    specs = [spec for each in [*sets, *manifests] for _, spec in pods(each)]
    specs.append(kubernetes.reader(plan, "results", image)["spec"])
    for number, spec in enumerate(specs):
        applied.apply(pod(f"pod-{number}", spec), dry=True)


def test_pod_security_refuses_a_privileged_runner(
    applied: Server, rendered: dict[str, list[fleet.Object]]
) -> None:
    item = next(fleet.runner_sets(rendered["harness-sets"]))
    spec = item["spec"]["template"]["spec"]
    spec["containers"][0]["securityContext"] |= {
        "privileged": True,
        "allowPrivilegeEscalation": True,
    }
    said = applied.apply(pod("privileged", spec), dry=True, check=False)
    assert 'violates PodSecurity "restricted' in said


def test_the_quota_refuses_a_runner_that_is_too_large(
    applied: Server, rendered: dict[str, list[fleet.Object]]
) -> None:
    # Nobody counts here: the test says what the quota's controller would, of an empty namespace.
    (quota,) = [
        each
        for each in rendered["harness-sets"]
        if (each["kind"], each["metadata"]["name"]) == ("ResourceQuota", "runners")
    ]
    hard = quota["spec"]["hard"]
    status = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
    applied.kubectl(
        *("-n", "harness-runners", "patch", "resourcequota", "runners", "--subresource=status"),
        *("--type=merge", f"--patch={json.dumps(status)}"),
    )
    item = next(fleet.runner_sets(rendered["harness-sets"]))
    spec = item["spec"]["template"]["spec"]
    applied.apply(pod("small", spec), dry=True)
    for part in ("requests", "limits"):
        spec["containers"][0]["resources"][part]["memory"] = "512Gi"
    assert "exceeded quota: runners" in applied.apply(pod("large", spec), dry=True, check=False)


def test_bootstrap(server: Server, tmp_path: Path) -> None:
    shutil.copytree(fleet.TREE, tmp_path / "runners")
    (tmp_path / "flux.yaml").write_text(FLUX)
    (tmp_path / "key").write_text("AGE-SECRET-KEY-1TEST\n")
    (tmp_path / "runners/secrets/github-app.sops.yaml").write_text(yaml.safe_dump(fleet.SECRET))
    values = fleet.settings() | {"FLUX_SHA256": hashlib.sha256(FLUX.encode()).hexdigest()}
    lines = [f"{name}={value}" for name, value in values.items()]
    (tmp_path / "runners/cluster/settings.env").write_text("\n".join(lines))

    def bootstrap(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(tmp_path / "runners/bootstrap"), *words],
            env={**os.environ, "KUBECONFIG": str(server.config)},
            capture_output=True,
            text=True,
            check=False,
        )

    def up() -> subprocess.CompletedProcess[str]:
        files = ("--age-key", str(tmp_path / "key"), "--flux", str(tmp_path / "flux.yaml"))
        return bootstrap("up", *files, "--timeout", "2")

    assert bootstrap("cluster", "--context", "test").returncode == 0
    first = up()
    assert "Kustomization harness is not ready" in first.stderr, first.stdout + first.stderr
    # Nobody reconciles here: the test says what Flux would.
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    for name in ("crds", "controllers", "sets"):
        server.apply(
            {
                "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
                "kind": "Kustomization",
                "metadata": {"name": f"harness-{name}", "namespace": "flux-system"},
                **ready,
            }
        )
    server.kubectl(
        *("-n", "flux-system", "patch", "kustomization", "harness", "--type=merge"),
        f"--patch={json.dumps(ready)}",
    )
    again = up()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("unchanged") == 3
    assert "created" not in again.stdout and "configured" not in again.stdout
