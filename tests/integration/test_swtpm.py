"""The process behind a machine's TPM; suites/boot/test_tpm.py tests its use by a guest."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from harness import Lab
from harness.errors import FirmwareShellError, QemuStartError, TpmError, UsageError
from harness.machine import Machine
from harness.spec import Firmware, FirmwareKind, MachineSpec, Tpm


def start(lab: Lab, tpm: Tpm | None = None) -> Machine:
    """Start a machine with firmware and a TPM, and without a boot device."""
    spec = MachineSpec("bare", "x86_64", Firmware(FirmwareKind.UEFI), nics=(), tpm=tpm)
    return lab.launch(spec)


def swtpm_of(machine: Machine) -> list[int]:
    """Return the ids of the swtpm processes that have the folder of a machine's TPM open."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("comm").read_text() == "swtpm\n" and any(
                fd.readlink() == machine.tpm_state for fd in process.glob("fd/*")
            ):
                pids.append(int(process.name))
    return pids


def test_a_tpm_that_dies_is_a_fault_of_the_host(lab: Lab) -> None:
    machine = start(lab, Tpm())
    (swtpm,) = swtpm_of(machine)
    os.kill(swtpm, signal.SIGKILL)
    with pytest.raises(TpmError, match=r"ended \(killed by SIGKILL\) under the running guest"):
        machine.console.expect("no such output", 60)


def test_a_tpm_ends_with_its_machine(lab: Lab) -> None:
    machine = start(lab, Tpm())
    # Without a disk the firmware comes to its shell, before the machine is stopped or not.
    with machine.expecting(FirmwareShellError):
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


def test_a_comma_in_the_folder_of_evidence(tmp_path: Path) -> None:
    with Lab("micro", evidence=tmp_path / "a,b=c", keep=True) as lab:
        machine = start(lab, Tpm())
        machine.console.expect(r"BdsDxe|UEFI|Boot", 60)
        assert (machine.tpm_state / "tpm2-00.permall").exists(), "the firmware has used the TPM"


def test_the_words_of_a_tpm_that_does_not_start_are_in_the_error(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swtpm").write_text("#!/bin/sh\necho swtpm: no such luck >&2\nexit 1\n")
    (tmp_path / "swtpm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(QemuStartError) as caught:
        start(lab, Tpm())
    assert "swtpm: no such luck" in caught.value.evidence
    assert "swtpm: exit status 1" in caught.value.evidence
