"""The process behind a machine's TPM; suites/boot/test_tpm.py tests its use by a guest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness import Lab
from harness.errors import TpmError, UsageError
from harness.machine import Machine
from harness.spec import Firmware, FirmwareKind, MachineSpec, Tpm


def start(lab: Lab, tpm: Tpm | None = None) -> Machine:
    """Start a machine with firmware and a TPM, and without a boot device."""
    spec = MachineSpec("bare", "x86_64", Firmware(FirmwareKind.UEFI), nics=(), tpm=tpm)
    return lab.launch(spec)


def swtpm_of(machine: Machine) -> list[int]:
    """Return the ids of the processes with the folder of a machine's TPM on their command line."""
    option = f"dir={machine.tpm_state}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if option in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def test_a_tpm_that_dies_is_a_fault_of_the_host(lab: Lab) -> None:
    machine = start(lab, Tpm())
    (swtpm,) = swtpm_of(machine)
    os.kill(swtpm, signal.SIGKILL)
    with pytest.raises(TpmError, match=r"ended \(killed by SIGKILL\) under the running guest"):
        machine.console.expect("no such output", 60)


def test_a_tpm_ends_with_its_machine(lab: Lab) -> None:
    machine = start(lab, Tpm())
    machine.console.expect(r"BdsDxe|UEFI|Boot", 60)
    assert (machine.tpm_state / "tpm2-00.permall").exists(), "the firmware has used the TPM"
    (swtpm,) = swtpm_of(machine)
    machine.stop()
    assert not Path(f"/proc/{swtpm}").exists()
    assert "stopped" in str(machine.failure)


def test_an_impossible_tpm_is_refused(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(TpmError, match=r"nothing-here holds no TPM state"):
        start(lab, Tpm(tmp_path / "nothing-here"))
    with pytest.raises(UsageError, match="has no TPM"):
        _ = start(lab).tpm_state
    with pytest.raises(UsageError, match="initrd over the ACPI tables"):
        lab.boot("micro", tpm=True)
