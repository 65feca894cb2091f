"""Machines that are connected: saved at one moment, and forked together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from harness import Lab
from harness import arch as arches
from harness.errors import QemuStartError, SnapshotError, StateError
from harness.lab.clusters import fork_group
from harness.machine import Machine
from harness.network import Segment
from harness.parallel import in_parallel
from harness.spec import KIB, Nic
from harness.states import Group, save_group
from harness.states.group import Fork

SIZE = 512 * KIB
"""Bytes that one machine sends to another while both are saved."""

DRAWS = "dd if=/dev/urandom bs=16 count=16 2>/dev/null | od -An -v -tx1"
"""Prints 16 draws, a line each."""

Pair = Fork[Machine, Segment]


@pytest.fixture(params=arches.ARCHES)
def each(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Lab]:
    """Yield a lab for the guests of each architecture."""
    if request.param == lab.image.arch:
        yield lab
        return
    with Lab("micro", arch=request.param, evidence=lab.folder / request.param) as other:
        yield other


@pytest.fixture(scope="module")
def shared(shared_lab: Lab) -> Pair:
    return boot_pair(shared_lab)


@pytest.fixture(scope="module")
def group(shared: Pair, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """The pair, saved while it is parted."""
    lan = shared.segments["lan"]
    assert reaches(shared)
    with lan.partition(*shared.machines.values()):
        assert not reaches(shared)
        folder = tmp_path_factory.mktemp("group") / "saved"
        return save_group(shared.machines.values(), [lan], folder)


def boot_pair(lab: Lab) -> Pair:
    """Start two machines on a segment that leases their addresses, and log in."""
    segment = lab.segment(seed=3)
    nics = (Nic(), Nic.on("lan"))

    def boot(name: str) -> Machine:
        return lab.boot("micro", name=name, nics=nics, segments=[segment], saveable=True)

    machines = in_parallel(boot, ["left", "right"])
    for machine in machines:
        machine.os.login()
        address = segment.address(machine)
        machine.console.run(f"until ip address | grep -qF 'inet {address} '; do sleep 0.2; done")
    return Fork({machine.name: machine for machine in machines}, {"lan": segment})


def in_order(*pairs: Pair) -> Iterator[Machine]:
    for pair in pairs:
        yield from pair.machines.values()


def reaches(pair: Pair) -> bool:
    """Return whether one machine of a pair reaches the other."""
    left, right = pair.machines.values()
    address = pair.segments["lan"].address(right).ip
    return left.execute(f"ping -c 1 -W 2 {address}").ok


def wait_received(pair: Pair, size: int) -> None:
    pair.machines["right"].wait_until_succeeds(f"[ $(wc -c < /tmp/got) -ge {size} ]")


def test_a_connection_goes_on_in_each_fork(each: Lab, tmp_path: Path) -> None:
    origin = boot_pair(each)
    lan = origin.segments["lan"]
    left, right = origin.machines.values()
    left.succeed(f"dd if=/dev/urandom of=/tmp/sent bs=1k count={SIZE // KIB} 2>/dev/null")
    digest = left.succeed("cat /tmp/sent /tmp/sent | sha256sum")
    # With an open standard input: at its end busybox' nc would end the sender, too.
    right.succeed("(sleep 600 | nc -l -p 9000 > /tmp/got) >/dev/null 2>&1 &")
    right.wait_for_port(9000)
    # All of it would take 40 s. The second half waits for a word that no machine has before the forks.
    lan.link(left, right).impair(delay=0.05, rate=100_000)
    left.succeed(
        "(cat /tmp/sent; until [ -e /tmp/more ]; do sleep 0.2; done; cat /tmp/sent)"
        f" | nc {lan.address(right).ip} 9000 >/dev/null 2>&1 &"
    )
    wait_received(origin, SIZE // 64)
    group = save_group(origin.machines.values(), [lan], tmp_path / "saved")
    assert group.segments["lan"].frames, "no frame was on its way"
    assert Group.read(group.folder) == group

    began = time.time()
    with ThreadPoolExecutor(2) as pool:
        forks = list(pool.map(lambda number: fork_group(each, group), range(2)))
    for machine in in_order(*forks):
        saved = group.snapshots[machine.name].spec
        assert [machine.spec.mac(nic) for nic in machine.spec.nics] == [
            saved.mac(nic) for nic in saved.nics
        ]
        clock = int(machine.console.run("date +%s").stdout)
        assert began - 1 <= clock <= time.time() + 1  # it was set to the second
    draws = [
        line
        for machine in in_order(*forks)
        for line in machine.console.run(DRAWS).stdout.splitlines()
    ]
    assert len(set(draws)) == 4 * 16
    for pair in (*forks, origin):
        pair.segments["lan"].heal()
        pair.machines["left"].succeed("touch /tmp/more")
        wait_received(pair, 2 * SIZE)
        assert pair.machines["right"].succeed("sha256sum < /tmp/got") == digest
        # Nobody asked for the address again, and the way to it is free.
        address = lan.address("right")
        assert f"inet {address} " in pair.machines["right"].succeed("ip -4 address")


def test_faults_and_counters_hold(shared: Pair, group: Group, lab: Lab, tmp_path: Path) -> None:
    assert reaches(shared)  # it was healed in the origin alone
    pair = fork_group(lab, group)
    lan = pair.segments["lan"]
    cut = group.segments["lan"].content
    before = lan.counters().links["left", "right"].cut
    assert before > 0
    assert not reaches(pair)
    assert lan.counters().links["left", "right"].cut > before
    lan.heal()
    assert reaches(pair)
    assert cut["ports"] == {
        name: shared.machines[name].spec.mac(Nic.on("lan")) for name in lan.ports
    }


def refuse(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine be one that QEMU cannot save."""
    execute = machine.qmp.execute

    def refusing(command: str, *arguments: object, **options: object) -> object:
        if command == "query-migrate":
            return {"blocked-reasons": ["device 'gizmo' is not migratable"]}
        return execute(command, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(machine.qmp, "execute", refusing)


@pytest.mark.parametrize("final", [False, True])
def test_a_member_that_cannot_be_saved_leaves_all_running_and_nothing_behind(
    shared: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: bool
) -> None:
    refuse(shared.machines["right"], monkeypatch)
    with pytest.raises(SnapshotError, match="right cannot be saved: device 'gizmo'"):
        save_group(
            shared.machines.values(), shared.segments.values(), tmp_path / "saved", final=final
        )
    assert not (tmp_path / "saved").exists()
    assert reaches(shared)


def qemus(group: Group) -> int:
    """Return the number of QEMUs that have mapped the RAM of a group."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            count += str(group.folder).encode() in path.read_bytes()
    return count


def test_a_member_whose_saved_files_are_damaged_ends_the_others(
    shared: Pair, group: Group, lab: Lab, tmp_path: Path
) -> None:
    devices = group.snapshots["right"].devices
    whole = devices.with_suffix(".whole")
    devices.rename(whole)
    try:
        devices.write_bytes(b"damaged")
        with pytest.raises(StateError, match="the saved machine is damaged"):
            fork_group(lab, group)
    finally:
        devices.unlink()
        whole.rename(devices)
    assert qemus(group) == 0


@pytest.mark.parametrize("failing", ["left", "right"])
def test_a_member_that_qemu_refuses_ends_the_others(
    shared: Pair, group: Group, lab: Lab, tmp_path: Path, failing: str
) -> None:
    saved = group.snapshots[failing]
    smaller = replace(saved, spec=replace(saved.spec, memory=saved.spec.memory // 2))
    broken = replace(group, snapshots={**group.snapshots, failing: smaller})
    with pytest.raises(QemuStartError, match="QEMU did not start"):
        fork_group(lab, broken)
    assert qemus(group) == 0
    pair = fork_group(lab, group)
    assert all(machine.running for machine in in_order(pair))
    assert qemus(group) == 2
