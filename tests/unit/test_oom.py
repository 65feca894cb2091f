"""What the kernel killed for want of memory, by the counts of the cgroup, in both versions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import QemuExitedError
from harness.host.oom import OomKills
from harness.machine.ending import Ending
from harness.scope import Scope

V2 = ("0::/pod/own\n", "pod/own/memory.events", "low 0\nhigh 7\nmax 9\noom 2\noom_kill {}\n")
V1 = (
    "8:memory:/pod/own\n",
    "memory/pod/own/memory.oom_control",
    "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
)


@pytest.fixture(params=[V2, V1], ids=["v2", "v1"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A host whose group has had three processes killed."""
    group, name, text = request.param
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(group)
    path = cgroup / name
    path.parent.mkdir(parents=True)

    def killed(count: int) -> None:
        path.write_text(text.format(count))

    killed(3)
    return SimpleNamespace(kills=OomKills(proc, cgroup), killed=killed, path=path)


def test_only_what_was_killed_since_counts(host: Any) -> None:
    assert host.kills.words() == ""
    host.killed(4)
    assert host.kills.words() == f"the kernel killed a process for want of memory ({host.path})"
    host.killed(6)
    assert "3 processes" in host.kills.words()


def test_a_group_that_has_gone_or_says_nonsense_is_no_reason(host: Any) -> None:
    host.path.write_text("oom_kill many\n\noom_kill\n")
    assert host.kills.words() == ""
    host.path.unlink()
    assert host.kills.words() == ""


@pytest.mark.parametrize(("status", "said"), [(-9, True), (-6, False), (1, False)])
def test_an_error_of_qemu_says_so_if_it_was_killed(host: Any, status: int, said: bool) -> None:
    with Scope("test") as scope:
        ending = Ending("node", scope, host.kills)
        host.killed(4)
        process: Any = SimpleNamespace(
            status=status, how_ended=lambda: "over", last_words=lambda: "", stderr=Path("err")
        )
        ending.on_exit(process)
        error = scope.failure
    assert isinstance(error, QemuExitedError)
    assert ("for want of memory" in str(error)) is said


def test_this_host_has_counts_or_none() -> None:
    assert OomKills().words() == ""
