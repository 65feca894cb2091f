"""`harness job`: the Indexed Job of a plan, what its pods do, and what is collected from them."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli
from harness.errors import HostError, UsageError
from harness.gate import collected, kubernetes, pod
from harness.gate.plan import Needs, Plan, write
from tests.gate_plans import a_job, a_plan
from tests.unit import fleet
from tests.unit.fleet_policy import (
    cache_faults,
    containers,
    house_faults,
    pods,
    restricted_faults,
    runner_faults,
)

IMAGE = f"registry.example/harness@{fleet.DIGEST}"


def plan(*needs: Needs, attempt: int = 1) -> Plan:
    """Return a plan with a job for each of some needs."""
    chosen = needs or (
        Needs(memory=5120, cpus=2, disk=12000),
        Needs(memory=3000, cpus=3, disk=14000),
    )
    jobs = [
        a_job(
            f"skiff-x86-64-{n}",
            f"a.py::t{n}",
            image="skiff",
            shard=f"{n}/{len(chosen)}",
            needs=each,
        )
        for n, each in enumerate(chosen, 1)
    ]
    return a_plan(*jobs, id="0123456789012e45", attempt=attempt)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    write(plan(), path)
    return path


def settings(**further: Any) -> kubernetes.Settings:
    return kubernetes.Settings(image=IMAGE, results="results", **further)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[fleet.Object]:
    assert cli.main(["job", *words]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


# --- the manifests ----------------------------------------------------------------------------


def manifests(plan: Plan, **further: Any) -> list[fleet.Object]:
    return kubernetes.manifests(plan, settings(**further))


def template(objects: list[fleet.Object]) -> fleet.Object:
    return next(spec for each in objects for _, spec in pods(each))


@pytest.mark.parametrize("cache", ["", "harness-cache"])
@pytest.mark.parametrize("kvm", [False, True])
def test_it_fits_the_schema_and_the_policy(cache: str, kvm: bool) -> None:
    objects = manifests(
        plan(Needs(kvm=kvm)),
        cache=cache,
        namespace="harness-runners",
        priority="harness-gate",
        pull_secret="pull",
        kvm_group=106,
    )
    assert [fault for each in objects for fault in fleet.schema_faults(each)] == []
    spec = template(objects)
    faults = [*restricted_faults(spec), *house_faults(spec), *cache_faults(spec, "harness-cache")]
    faults += [
        fault for each in objects for fault in runner_faults(each) if kvm or "kvm" not in fault
    ]
    assert faults == []


MUTATIONS: dict[str, tuple[Callable[[fleet.Object], object], str]] = {
    "privileged": (
        lambda p: p["containers"][0]["securityContext"].update(privileged=True),
        "harness: privileged",
    ),
    "hostPath": (
        lambda p: p["volumes"].append({"name": "kvm", "hostPath": {"path": "/dev/kvm"}}),
        "volume kvm: hostPath",
    ),
    "no limits": (
        lambda p: p["containers"][0]["resources"].pop("limits"),
        "harness: no limit of memory",
    ),
    "a token": (
        lambda p: p.pop("automountServiceAccountToken"),
        "automountServiceAccountToken is not false",
    ),
    "a writable cache": (
        lambda p: p["initContainers"][0]["volumeMounts"][0].pop("readOnly"),
        "cache: mounts the warm cache writable",
    ),
    "root in the sidecar": (
        lambda p: p["initContainers"][1]["securityContext"].update(runAsUser=0),
        "keeper: runAsUser 0",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str) -> None:
    spec = copy.deepcopy(template(manifests(plan(), cache="warm")))
    mutate, expected = MUTATIONS[name]
    mutate(spec)
    assert expected in [*restricted_faults(spec), *house_faults(spec), *cache_faults(spec, "warm")]


def test_an_index_for_each_job_with_the_largest_needs() -> None:
    _, job = manifests(plan(), parallelism=9)
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    assert job["spec"]["parallelism"] == 2
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "3", "memory": "5120Mi", "ephemeral-storage": "14000Mi"}


def retried(policy: fleet.Object, status: int, *, disrupted: bool = False) -> bool:
    """Return whether an index runs again: what the Job's controller makes of its policy.

    Source: https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy: the first
    rule that matches decides; a failure that none matches counts towards the limit of the index.
    """
    for rule in policy["rules"]:
        codes = rule.get("onExitCodes")
        if codes:
            inside = status in codes["values"]
            matches = status != 0 and (inside if codes["operator"] == "In" else not inside)
        else:
            matches = disrupted
        if matches:
            return bool(rule["action"] == "Count")
    return True


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 10, 12])
def test_a_verdict_is_final(status: int) -> None:
    spec = manifests(plan())[1]["spec"]
    assert spec["backoffLimitPerIndex"] == 1
    assert not retried(spec["podFailurePolicy"], status)


@pytest.mark.parametrize(
    ("status", "disrupted"), [(11, False), (137, False), (143, False), (2, True), (1, True)]
)
def test_infra_runs_once_more(status: int, disrupted: bool) -> None:
    assert retried(manifests(plan())[1]["spec"]["podFailurePolicy"], status, disrupted=disrupted)


def test_a_second_attempt_is_not_repeated_and_has_a_name_of_its_own() -> None:
    first, second = manifests(plan())[1], manifests(plan(attempt=2))[1]
    assert second["spec"]["backoffLimitPerIndex"] == 0
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_the_container_of_the_tests_cannot_reach_the_results() -> None:
    spec = template(manifests(plan(), cache="warm"))
    mounting = [
        each["name"]
        for each in containers(spec)
        if any(mount["name"] == "results" for mount in each["volumeMounts"])
    ]
    assert mounting == ["keeper"]


def test_it_prints_yaml_without_aliases(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(file), "--image", IMAGE, "--results", "results", "--cache", "warm"]
    assert cli.main(["job", *words]) == 0
    text = capsys.readouterr().out
    assert "&id" not in text
    config, job = yaml.safe_load_all(text)
    assert json.loads(config["data"]["plan.json"])["id"] == plan().id
    assert (
        job["spec"]["template"]["spec"]["volumes"][3]["configMap"]["name"]
        == config["metadata"]["name"]
    )
    # Another reader of YAML takes 0123456789012e45 for a number.
    assert job["metadata"]["labels"]["app.kubernetes.io/instance"] == f"plan-{plan().id}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--results", "r"], "--image is missing"),
        (["--image", IMAGE], "--results is missing"),
        (["--image", "harness:latest", "--results", "r"], "not by digest"),
        (["--image", IMAGE, "--results", "A/B"], "--results 'A/B': not a name"),
        (["--image", IMAGE, "--results", "r", "--parallel", "0"], "at least 1"),
    ],
)
def test_wrong_use(
    words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["job", str(file), *words]) == 2
    assert said in capsys.readouterr().err


def test_an_empty_plan_says_why() -> None:
    empty = replace(plan(), jobs=(), empty="only docs changed")
    with pytest.raises(UsageError, match="only docs changed"):
        kubernetes.manifests(empty, settings())


def test_a_plan_that_no_configmap_holds() -> None:
    tests = tuple(f"suites/test_x.py::test_{n:0200}" for n in range(6000))
    large = replace(plan(), jobs=(replace(plan().jobs[0], tests=tests),))
    with pytest.raises(UsageError, match="a ConfigMap holds"):
        kubernetes.manifests(large, settings())


# --- in the pod -------------------------------------------------------------------------------


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.mark.parametrize(
    ("check", "tests", "status"),
    [
        ("", "", 0),
        ("", "raise SystemExit(1)", 1),
        ("", "raise SystemExit(12)", 12),
        ("raise SystemExit(3)", "raise SystemExit(1)", 11),
        ("", "import os; os.kill(os.getpid(), 9)", 11),
    ],
)
def test_the_status_of_a_pod(check: str, tests: str, status: int) -> None:
    assert pod.run(python(check), python(tests), 60) == status


def test_a_job_that_does_not_end_is_infra(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    waits = (
        "import signal, pathlib, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        f"signal.sigwait([signal.SIGTERM]); pathlib.Path({str(ended)!r}).touch(); sys.exit(2)"
    )
    assert pod.run(python(""), python(waits), 3) == pod.INFRA
    assert ended.exists()


def test_a_signal_goes_on_to_the_tests(tmp_path: Path) -> None:
    program = (
        "from harness.gate import pod; import sys\n"
        "waits = 'import signal; signal.signal(15, lambda *_: exit(2)); print(1, flush=True);'\\\n"
        " 'signal.pause()'\n"
        "sys.exit(pod.run([sys.executable, '-c', ''], [sys.executable, '-c', waits], 60))"
    )
    with subprocess.Popen(python(program), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 2


def test_the_doctor_goes_first_and_the_tests_know_their_attempt(tmp_path: Path) -> None:
    job, attempt = pod.job_of(plan(), 1, 1)
    assert (job.id, attempt) == ("skiff-x86-64-2", 2)
    named = (Path("/plan/plan.json"), job, attempt, tmp_path)
    for words in (pod.doctor(*named), pod.tests(*named)):
        assert words[words.index("--job") + 1] == "skiff-x86-64-2"
        assert words[words.index("--attempt") + 1] == "2"
    assert pod.doctor(*named)[3:5] == ["doctor", "--gate"]
    assert pod.tests(*named)[3] == "acceptance"
    with pytest.raises(UsageError, match="jobs 0 to 1"):
        pod.job_of(plan(), 2, 0)


def test_the_first_pod_of_an_index_has_no_number_of_failures(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pod, "run", lambda check, tests, seconds: 12)
    assert cli.main(["job", str(file), "--index=0", "--failures="]) == 12
    assert "attempt 1" in capsys.readouterr().err


def evidence(folder: Path) -> Path:
    run = folder / "20261129-1"
    (run / "test_a").mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "test_a/console.log").write_text("login:")
    (folder / "latest").symlink_to(run.name)
    (run / "loop").symlink_to(folder)
    (run / "passwd").symlink_to("/etc/passwd")
    os.mkfifo(run / "pipe")
    return folder


def test_what_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "claim"
    said: list[str] = []
    assert pod.keep(evidence(tmp_path / "evidence"), kept, said.append) == 2
    assert said == []
    files = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if not path.is_dir())
    assert files == ["20261129-1/results.json", "20261129-1/test_a/console.log"]


def test_the_results_are_kept_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        order.append(source.name)
        if len(order) > 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    said: list[str] = []
    assert pod.keep(evidence(tmp_path / "evidence"), tmp_path / "claim", said.append) == 1
    assert order[0] == "results.json"
    assert said == ["20261129-1/test_a/console.log was not kept: No space left on device"]


def test_results_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(HostError, match=r"results\.json was not kept"):
        pod.keep(evidence(tmp_path / "evidence"), tmp_path / "claim", print)


def test_the_keeper_waits_for_its_end() -> None:
    program = (
        "import signal, threading; from harness.gate import pod\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "print(1, flush=True); pod.wait_for_end(); print(2)"
    )
    with subprocess.Popen(python(program), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[0] == "2\n"


# --- collecting -------------------------------------------------------------------------------


class Stand:
    """A claim of results, and a kubectl that reads it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        (root / "bin").mkdir()
        text = (Path(__file__).parent / "recording_kubectl.py").read_text()
        (root / "bin/kubectl").write_text(f"#!{sys.executable}\n{text}")
        (root / "bin/kubectl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("STAND", str(root))
        objects = kubernetes.manifests(plan(), settings())
        stored = {f"{each['kind'].lower()}//{each['metadata']['name']}": each for each in objects}
        (root / "objects.json").write_text(json.dumps(stored))
        self.pods()

    def leave(self, job: str, attempt: int) -> None:
        path = self.root / "claim" / kubernetes.attempt_folder(plan(), job, attempt)
        (path / "run").mkdir(parents=True)
        tests = [
            {"id": test, "outcome": "passed", "verdict": "passed"} for test in plan().job(job).tests
        ]
        content = {
            "format": 2,
            "status": 0,
            "plan": {"id": plan().id, "job": job, "attempt": attempt, "commit": plan().commit},
            "tests": tests,
        }
        (path / "run/results.json").write_text(json.dumps(content))

    def pods(self, *pods: dict[str, Any]) -> None:
        (self.root / "pods.json").write_text(json.dumps({"items": pods}))

    def commands(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "commands").read_text().splitlines()]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(tmp_path, monkeypatch)


def ended(index: int, failures: int = 0, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"harness-{index}-{failures}",
            "annotations": {
                "batch.kubernetes.io/job-completion-index": str(index),
                "batch.kubernetes.io/job-index-failure-count": str(failures),
            },
        },
        "spec": {"nodeName": f"node-{failures}"},
        "status": {"phase": "Failed", **status},
    }


def test_all_results_are_collected(stand: Stand, file: Path) -> None:
    stand.leave("skiff-x86-64-1", 1)
    stand.leave("skiff-x86-64-2", 1)
    stand.leave("skiff-x86-64-2", 2)
    results = stand.root / "results"
    assert cli.main(["job", str(file), "--collect", str(results)]) == 0
    files = sorted(str(path.relative_to(results)) for path in results.rglob("results.json"))
    assert files == [
        "skiff-x86-64-1/attempt-1/run/results.json",
        "skiff-x86-64-2/attempt-1/run/results.json",
        "skiff-x86-64-2/attempt-2/run/results.json",
    ]
    verbs = [words[0] for words in stand.commands()]
    assert verbs == ["get", "get", "apply", "wait", "exec", "delete"]


def test_what_left_nothing_is_explained(
    stand: Stand, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.leave("skiff-x86-64-1", 1)
    killed = {"name": "harness", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    stand.pods(
        ended(1, 0, reason="Evicted", message="The node was low on resource: memory."),
        ended(1, 1, containerStatuses=[killed]),
    )
    results = stand.root / "results"
    assert cli.main(["job", str(file), "--collect", str(results)]) == 11
    said = capsys.readouterr().err
    assert "results of 1 of 2 jobs" in said
    assert (
        "skiff-x86-64-2: no results: harness-1-0 on node-0: Failed: Evicted: The node was low"
        in said
    )
    assert "harness-1-1 on node-1: Failed: container harness: OOMKilled, exit status 137" in said
    assert (results / "skiff-x86-64-2/attempt-2/pod.log").read_text() == "log of harness-1-1\n"
    kept = json.loads((results / "pods.json").read_text())
    assert [(each["job"], each["attempt"]) for each in kept["pods"]] == [
        ("skiff-x86-64-2", 1),
        ("skiff-x86-64-2", 2),
    ]


def test_the_judge_reads_what_was_collected(
    stand: Stand, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that left results is proven by them; one whose pod was evicted is not."""
    first, second = plan().jobs
    stand.leave(first.id, 1)
    stand.pods(ended(0, phase="Succeeded"), ended(1, 0, reason="Evicted"))
    results = stand.root / "results"
    assert cli.main(["job", str(file), "--collect", str(results)]) == 11
    capsys.readouterr()
    assert cli.main(["gate", str(file), str(results), "--json"]) == 11
    judged = json.loads(capsys.readouterr().out)
    verdicts = {each["id"]: each["verdict"] for each in judged["jobs"]}
    assert verdicts == {first.id: "passed", second.id: "infra"}
    assert not judged.get("notes")


def test_nothing_has_ended_yet(
    stand: Stand, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["job", str(file), "--collect", str(stand.root / "results")]) == 11
    assert (
        "skiff-x86-64-1: no results, and the cluster knows no pod of it" in capsys.readouterr().err
    )


def test_the_reader_goes_when_collecting_fails(stand: Stand, file: Path) -> None:
    stand.leave("skiff-x86-64-1", 1)
    target = stand.root / "results"
    target.mkdir()
    (target / "skiff-x86-64-1").write_text("in the way")
    with pytest.raises(OSError):
        cli.main(["job", str(file), "--collect", str(target)])
    assert stand.commands()[-1][:2] == ["delete", "pod"]


def test_a_job_that_the_cluster_does_not_have(
    stand: Stand, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand.root / "objects.json").write_text("{}")
    assert cli.main(["job", str(file), "--collect", str(stand.root / "r")]) == 3
    assert "not found" in capsys.readouterr().err


def test_no_kubectl(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="there is no kubectl"):
        collected.collect(plan(), tmp_path / "r", collected.Kubectl())


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def test_a_hostile_tar(tmp_path: Path) -> None:
    data = archive(
        ("./a/results.json", tarfile.REGTYPE, b"{}"),
        ("../outside", tarfile.REGTYPE, b"x"),
        ("/absolute", tarfile.REGTYPE, b"x"),
        ("a/../../outside", tarfile.REGTYPE, b"x"),
        ("a/link", tarfile.SYMTYPE, b""),
        ("a/link/through", tarfile.REGTYPE, b"x"),
        ("a/device", tarfile.CHRTYPE, b""),
    )
    folder = tmp_path / "results"
    assert collected.extract(io.BytesIO(data), folder) == 2
    assert not (tmp_path / "outside").exists()
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_a_tar_that_breaks_off(tmp_path: Path) -> None:
    data = archive(("a", tarfile.REGTYPE, b"x" * 100_000))
    with pytest.raises(tarfile.TarError):
        collected.extract(io.BytesIO(data[:50_000]), tmp_path)
