"""``harness doctor --gate``, as a job calls it, in a network namespace of its own.

The namespace has a loopback and no other network: the metadata address is this test's, or nobody's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.gate import collect, judge
from harness.gate import plan as plans
from tests.gate_plans import a_job, a_plan
from tests.programs import need

# Takes the address and port of each argument, listens there, and then becomes the command.
LISTEN = """
import os, socket, subprocess, sys
count = int(sys.argv[1])
for each in sys.argv[2:2 + count]:
    host, _, port = each.rpartition(":")
    server = socket.create_server((host, int(port)))
    os.set_inheritable(server.fileno(), True)
    server.detach()
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""
METADATA = "169.254.169.254"


@pytest.fixture(autouse=True)
def namespace() -> None:
    need("unshare")
    if shutil.which("ip") is None:
        pytest.skip("needs ip: install the package iproute2")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64: install the package qemu-system-x86")
    process = subprocess.run(
        ["unshare", "--map-root-user", "--net", "true"], capture_output=True, check=False
    )
    if process.returncode:
        pytest.skip("this user may make no network namespace: allow unprivileged user namespaces")


def doctor(
    *options: str, listen: tuple[str, ...] = (), pod: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    setup = ["ip link set lo up"]
    if any(each.startswith(METADATA) for each in listen):
        setup.append(f"ip address add {METADATA}/32 dev lo")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")}
    if pod:
        host, _, port = pod.rpartition(":")
        environment |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    command = [sys.executable, "-m", "harness.cli", "doctor", "--gate", "--accel", "tcg", *options]
    inside = [sys.executable, "-c", LISTEN, str(len(listen)), *listen, *command]
    script = "; ".join([*setup, 'exec "$@"'])
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-ec", script, "sh", *inside],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        check=False,
    )


def findings(process: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(process.stdout)["findings"]}


def test_a_host_that_is_no_pod_is_fit() -> None:
    process = doctor("--json")
    assert process.returncode == 0, process.stdout + process.stderr
    names = findings(process)
    assert {"harness", "runner age", "kvm", "memory", "cpus", "disk", "shm"} <= set(names)
    # A hosted runner is a virtual machine of a cloud, whose metadata address answers.
    assert "metadata" not in names
    assert "api server" not in names


def test_a_pod_that_is_cut_off_is_fit() -> None:
    process = doctor("--json", "--neighbour", "10.77.0.1:80", pod="10.77.0.2:443")
    assert process.returncode == 0, process.stdout + process.stderr
    names = findings(process)
    assert all(names[name]["ok"] for name in ("metadata", "api server", "neighbour 1"))


@pytest.mark.parametrize(
    ("listen", "name"),
    [
        (f"{METADATA}:80", "metadata"),
        ("127.0.0.2:6443", "api server"),
        ("127.0.0.3:8080", "neighbour 1"),
    ],
)
def test_each_address_that_answers_is_infra(listen: str, name: str) -> None:
    process = doctor(
        *("--json", "--neighbour", "127.0.0.3:8080"), listen=(listen,), pod="127.0.0.2:6443"
    )
    assert process.returncode == 11, process.stdout + process.stderr
    bad = {
        each
        for each, finding in findings(process).items()
        if finding["needed"] and not finding["ok"]
    }
    assert bad == {name}
    assert "network policy" in findings(process)[name]["text"]


def test_people_read_what_to_do() -> None:
    process = doctor("--neighbour", "127.0.0.3:8080", listen=("127.0.0.3:8080",))
    assert process.returncode == 11
    line = next(line for line in process.stdout.splitlines() if "127.0.0.3:8080" in line)
    assert line.startswith("MISSING neighbour 1")
    assert "runners/ has a network policy" in process.stdout


# --- a job of a plan --------------------------------------------------------------------------


def write_plan(folder: Path, **needs: Any) -> Path:
    job = a_job(
        *("micro-x86-64-1", "suites/boot/test_live.py::test_a", "suites/boot/test_live.py::test_b"),
        image="micro",
        needs=plans.Needs(**{"memory": 1, "disk": 1, **needs}),
    )
    plans.write(a_plan(job, commit=""), folder / "plan.json")
    return folder / "plan.json"


def test_an_unfit_runner_leaves_results_of_the_job(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, memory=1 << 40)
    process = doctor(
        *("--plan", str(plan), "--job", "micro-x86-64-1", "--attempt", "2"),
        *("--results", str(tmp_path / "left")),
        cwd=tmp_path,
    )
    assert process.returncode == 11, process.stdout + process.stderr
    results = json.loads((tmp_path / "left" / "results.json").read_text())
    assert results["status"] == 11
    assert results["plan"] == {
        "id": plans.read(plan).id, "job": "micro-x86-64-1", "attempt": 2, "commit": "",
    }  # fmt: skip
    assert [test["id"] for test in results["tests"]] == [
        "suites/boot/test_live.py::test_a",
        "suites/boot/test_live.py::test_b",
    ]
    assert {test["verdict"] for test in results["tests"]} == {"infra"}
    assert {test["outcome"] for test in results["tests"]} == {"interrupted"}
    assert "the runner is not fit: memory: " in results["tests"][0]["reason"]


def test_a_fit_runner_leaves_none(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    process = doctor(
        *("--plan", str(plan), "--job", "micro-x86-64-1", "--results", str(tmp_path / "left"))
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(("needs", "name"), [({"disk": 1 << 40}, "disk"), ({"kvm": True}, "kvm")])
def test_the_needs_of_the_job_count(tmp_path: Path, needs: dict[str, Any], name: str) -> None:
    plan = write_plan(tmp_path, **needs)
    process = doctor(
        *("--json", "--plan", str(plan), "--job", "micro-x86-64-1"),
        *("--results", str(tmp_path / "left")),
    )
    names = findings(process)
    if name == "kvm" and names["kvm"]["data"]["state"] == "usable":
        assert process.returncode == 0
        return
    assert process.returncode == 11, process.stdout + process.stderr
    assert not names[name]["ok"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--neighbour", "web:80"), "is no IP address with a port"),
        (("--job", "x"), "--plan, --job and --results go together"),
        (("--attempt", "2"), "--plan, --job and --results go together"),
        (("--plan", "none", "--job", "x", "--results", "y"), "cannot be read"),
    ],
)
def test_wrong_options_are_usage_errors(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    process = doctor(*options, cwd=tmp_path)
    assert process.returncode == 2, process.stdout + process.stderr
    assert message in process.stderr


def test_options_of_the_gate_need_the_gate() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "harness.cli", "doctor", "--kvm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "--kvm goes with --gate" in process.stderr


def test_the_judge_reads_what_an_unfit_runner_leaves(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, memory=1 << 40)
    process = doctor(
        *("--plan", str(plan), "--job", "micro-x86-64-1", "--results", str(tmp_path / "left")),
        cwd=tmp_path,
    )
    assert process.returncode == 11, process.stdout + process.stderr
    judged = judge.judge(plans.read(plan), collect.collect(tmp_path / "left", plans.read(plan)))
    assert (judged.verdict, judged.status) == ("infra", 11)
    assert judged.jobs[0].counts == {"infra": 2}
    assert "the runner is not fit: memory: " in judged.jobs[0].tests[0].reason
