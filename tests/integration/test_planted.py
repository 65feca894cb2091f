"""Six failures that are planted in a micro: each has its verdict everywhere, and its bundle its kind."""

from __future__ import annotations

import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.project import Finished, Project
from harness.evidence.bundle import FILE, Bundle, Manifest
from harness.evidence.report import page
from harness.host.capacity import groups
from harness.spec import GIB

TESTS = """
import os, signal, subprocess, sys
from pathlib import Path

def test_panic(live):
    live.console.leave()
    live.console.send_line("echo c > /proc/sysrq-trigger")
    live.console.expect("this never comes")

def test_health_check(live):
    live.succeed("grep -q healthy /proc/version")

def test_wrong_assertion(live):
    facts = dict(line.split("=") for line in live.succeed("cat /etc/os-release").splitlines())
    assert facts["NO_SUCH_KEY"] == "1"

def test_qemu_killed(live):
    os.kill(live.pid, signal.SIGKILL)
    live.console.expect("this never comes")

def test_slow_but_alive(live):
    live.console.run("sleep 600; echo done", 3)

def test_host_out_of_memory(live):
    group = Path(os.environ["GROUP"])
    of = lambda *names: next(group / name for name in names if (group / name).exists())
    used = int(of("memory.current", "memory.usage_in_bytes").read_text())
    of("memory.max", "memory.limit_in_bytes").write_text(str(used + (32 << 20)))
    # The kernel chooses QEMU first. Where that frees too little at once, it goes on to choose:
    # the process that takes the memory, never this one.
    Path(f"/proc/{live.pid}/oom_score_adj").write_text("1000")
    chosen_next = "open('/proc/self/oom_score_adj', 'w').write('500')"
    take = f"{chosen_next}; bytearray(b'x') * (1 << 30)"
    with subprocess.Popen([sys.executable, "-c", take]):
        live.console.expect("this never comes")
"""

PRESSED = "the host was under pressure"
CASES = {
    "panic": ("product", 1, "kernel panicked", "running"),
    "health_check": ("product", 1, "ended with status 1", "running"),
    "wrong_assertion": ("test", 10, "KeyError: 'NO_SUCH_KEY'", "running"),
    "qemu_killed": ("infra", 11, "ended (killed by SIGKILL)", "ended"),
    "slow_but_alive": ("timeout", 12, "waited", "running"),
}


def run(project: Project, name: str, *prefix: str, **env: str) -> Finished:
    project.write("test_it.py", TESTS)
    words = ("-m", "pytest", "-q", "--image=micro", "--acceptance", "--no-retry")
    return project.run(*prefix, sys.executable, *words, f"test_it.py::test_{name}", **env)


def verdict_everywhere(project: Project, name: str, result: Finished) -> tuple[str, str, Manifest]:
    """Return the verdict, the reason and the manifest, after comparing all places."""
    folder = project.folder / ".harness/runs/latest"
    assert (folder / "results.json").exists(), f"status {result.status}:\n{result.text}"
    (test,) = json.loads((folder / "results.json").read_text())["tests"]
    verdict, reason = str(test["verdict"]), str(test["reason"])
    assert f"\n{verdict:8} test_it.py::test_{name}\n" in result.text
    (case,) = ET.parse(folder / "junit.xml").getroot().iter("testcase")
    facts = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert (facts["verdict"], facts["signature"]) == (verdict, test["signature"])
    (shown,) = page.read(folder / "report.html")["runs"][0]["tests"]
    assert (shown["verdict"], shown["reason"]) == (verdict, reason)
    with Bundle(folder / test["evidence"] / FILE) as bundle:
        manifest = bundle.manifest
    assert (manifest.test.verdict, manifest.test.signature) == (verdict, test["signature"])
    assert json.loads((folder / "results.json").read_text())["status"] == result.status
    return verdict, reason, manifest


@pytest.mark.parametrize("name", CASES)
def test_a_planted_failure_has_its_verdict(project: Project, name: str) -> None:
    expected, status, words, power = CASES[name]
    result = run(project, name)
    verdict, reason, manifest = verdict_everywhere(project, name, result)
    if name == "slow_but_alive" and verdict == "infra":
        # A host under pressure may be what makes it slow, and then is said to be.
        assert PRESSED in result.text
        expected, status = "infra", 11
    assert (verdict, result.status) == (expected, status), result.text
    assert words in reason
    (machine,) = manifest.machines
    assert machine.power == power
    assert bool(machine.cold) == (power == "ended")


@pytest.fixture
def group() -> Iterator[Path]:
    """Return a memory cgroup that has a limit."""
    limits = ("memory.max", "memory.limit_in_bytes")
    for own in groups(Path("/proc"), Path("/sys/fs/cgroup"), "memory"):
        place = own / f"harness-{os.getpid()}"
        try:
            place.mkdir()
        except OSError:
            continue
        limit = next((place / name for name in limits if (place / name).exists()), None)
        try:
            if limit is not None:
                limit.write_text(str(3 * GIB))
                yield place
                return
        except OSError:
            continue
        finally:
            place.rmdir()
    pytest.skip("needs a memory cgroup in which this user can make groups: run it as root")


def test_a_host_out_of_memory_is_infra_and_says_so(project: Project, group: Path) -> None:
    enter = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
    result = run(project, "host_out_of_memory", "sh", "-c", enter, "sh", GROUP=str(group))
    verdict, reason, manifest = verdict_everywhere(project, "host_out_of_memory", result)
    assert (verdict, result.status) == ("infra", 11), result.text
    assert re.search(r"ended \(killed by SIGKILL\).*for want of memory", reason)
    (machine,) = manifest.machines
    assert machine.cold.startswith("QEMU had ended")
