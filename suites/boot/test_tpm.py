"""A TPM: it answers, keeps its contents, and goes with a state."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Lab, Machine, Tpm, state

pytestmark = pytest.mark.needs("tpm")

EXTENDED = "cat /sys/class/tpm/tpm0/pcr-sha256/23"
ZEROS = "0" * 64


def command(machine: Machine, *octets: str, tag: str = "8002") -> str:
    """Send a command to the TPM and return its response code; both in hexadecimal.

    The tag says whether there is an authorization area (part 2 of the specification, section 6.9).
    """
    body = "".join(octets)
    request = f"{tag}{len(body) // 2 + 6:08x}{body}"
    escaped = "".join(f"\\x{request[at : at + 2]}" for at in range(0, len(request), 2))
    # One descriptor: the TPM answers only the process that sent the command.
    answer = machine.succeed(
        f"exec 3<>/dev/tpm0; printf '{escaped}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1"
    )
    return "".join(answer.split())[12:20]


PASSWORD = "00000009400000090000000000"
"""An authorization area with an empty password: TPM 2.0 library specification, part 1, section 19."""


def extend(machine: Machine, digit: str) -> None:
    """TPM2_PCR_Extend of register 23 with a SHA-256 digest (part 3, section 22.2)."""
    body = ("00000182", "00000017", PASSWORD, "00000001", "000b", digit * 64)
    assert command(machine, *body) == "00000000"


def define(machine: Machine, index: str) -> None:
    """TPM2_NV_DefineSpace by the owner: four bytes that owner and password may use (section 31.3)."""
    public = f"{index}000b0006000600000004"
    body = ("0000012a", "40000001", PASSWORD, "0000", f"{len(public) // 2:04x}", public)
    assert command(machine, *body) == "00000000"


def defined(machine: Machine, index: str) -> bool:
    """TPM2_NV_ReadPublic (section 31.6)."""
    return command(machine, "00000169", index, tag="8001") == "00000000"


INDEX = "01500020"


@state
def measured(lab: Lab) -> Machine:
    """The image booted beside a TPM, with a register extended and an index defined."""
    machine = lab.boot(tpm=True)
    machine.os.login()
    extend(machine, "1")
    define(machine, INDEX)
    return machine


@pytest.mark.tier(
    "gate",
    cost=20,
    catches="a kernel without a TPM driver, or a state that loses registers",
    uses=("measured",),
)
def test_forks_go_on_with_the_tpms_contents_each_on_its_own(lab: Lab) -> None:
    """Registers and indices are in the state; each fork has its own copy."""
    one, two = lab.fork(measured), lab.fork(measured)
    assert not lab.state(measured).snapshot.cold
    before = one.succeed(EXTENDED)
    assert before.lower().strip() not in (ZEROS, "1" * 64)
    assert two.succeed(EXTENDED) == before
    assert defined(two, INDEX)
    extend(one, "2")
    assert one.succeed(EXTENDED) != before
    assert two.succeed(EXTENDED) == before
    extend(two, "2")
    assert one.succeed(EXTENDED) == two.succeed(EXTENDED)


@pytest.mark.tier(
    "nightly",
    cost=40,
    catches="a TPM whose memory stays behind when its disk moves",
    uses=("measured",),
)
def test_indices_go_to_another_machine_after_a_power_cut(lab: Lab) -> None:
    """Registers are reset by a power cycle, indices stay."""
    machine = lab.fork(measured)
    machine.power_cut()
    other = lab.boot(tpm=Tpm(machine.tpm_state))
    other.os.login()
    assert defined(other, INDEX)
    assert other.succeed(EXTENDED).strip() == ZEROS


@pytest.mark.tier(
    "nightly", cost=45, catches="a state without RAM that loses the TPM", uses=("measured",)
)
def test_a_cold_state_keeps_the_indices(lab: Lab, tmp_path: Path) -> None:
    """A state without RAM holds the TPM's memory, and a fork of it boots with that."""
    machine = lab.fork(measured)
    saved = machine.save_disks(tmp_path / "saved", "the test wants a cold state")
    again = lab.fork(saved)
    assert defined(again, INDEX)
    assert again.succeed(EXTENDED).strip() == ZEROS
