"""A machine's TPM as a process; what a guest does with it is in suites/boot/test_tpm.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fixtures.machines import Boot
from harness.errors import TpmError, UsageError
from harness.machine import Machine
from harness.spec import Firmware, FirmwareKind, MachineSpec, Tpm


def start(boot: Boot, tpm: Tpm | None = None) -> Machine:
    """Start a machine with firmware, a TPM and nothing to boot from."""
    spec = MachineSpec("bare", "x86_64", Firmware(FirmwareKind.UEFI), nics=(), tpm=tpm)
    return boot.start(spec, boot.image)


def swtpm_of(machine: Machine) -> list[int]:
    """Return the processes that have the folder of a machine's TPM on their command line."""
    wanted = f"dir={machine.tpm_state}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_tpm_that_dies_is_the_host_s_fault(boot: Boot) -> None:
    machine = start(boot, Tpm())
    (swtpm,) = swtpm_of(machine)
    os.kill(swtpm, signal.SIGKILL)
    with pytest.raises(TpmError, match=r"ended \(killed by SIGKILL\) under the running guest"):
        machine.console.expect("what never comes", 60)


def test_it_ends_with_its_machine_whose_end_is_told(boot: Boot) -> None:
    machine = start(boot, Tpm())
    machine.console.expect(r"BdsDxe|UEFI|Boot", 60)
    assert (machine.tpm_state / "tpm2-00.permall").exists(), "the firmware has used it"
    (swtpm,) = swtpm_of(machine)
    machine.stop()
    assert not Path(f"/proc/{swtpm}").exists()
    assert "stopped" in str(machine.failure)


def test_what_cannot_be_is_refused(boot: Boot, tmp_path: Path) -> None:
    with pytest.raises(TpmError, match=r"no TPM's state in .*nothing-here"):
        start(boot, Tpm(tmp_path / "nothing-here"))
    with pytest.raises(UsageError, match="has no TPM"):
        _ = start(boot).tpm_state
    with pytest.raises(UsageError, match="initrd over the ACPI tables"):
        boot("micro", tpm=True)
