"""Whether a runner is fit: each finding says what it found and what to do."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from harness.host import accel, reach, runner
from harness.host.capacity import Capacity, capacity

MIB = 1024 * 1024
NOW = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)


def hint(text: str) -> str:
    """Return what a finding says to do."""
    return text.partition("\n")[2]


# --- KVM --------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kvm"
    monkeypatch.setattr(accel, "DEVICE", path)
    monkeypatch.setattr("harness.arch.platform.machine", lambda: "x86_64")
    return path


def state(arch: str = "x86_64") -> str:
    return accel.kvm(arch, qemu=Path("/nowhere"), cache_dir=Path("/nowhere")).state


def test_a_device_that_is_not_there_is_absent(device: Path) -> None:
    assert state() == "absent"


def test_a_device_that_may_not_be_opened_is_forbidden(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.touch()

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("harness.host.accel.os.open", refuse)
    assert state() == "forbidden"


def test_a_device_without_a_driver_is_broken(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr("harness.host.accel.os.open", fail)
    assert state() == "broken"


@pytest.mark.parametrize(("proven", "word"), [(True, "usable"), (False, "useless")])
def test_a_device_that_opens_has_to_prove_itself(
    device: Path, monkeypatch: pytest.MonkeyPatch, proven: bool, word: str
) -> None:
    device.touch()
    measured = accel._Kvm(proven, "measured", "host")
    monkeypatch.setattr(accel, "_stored_or_measured", lambda *_: measured)
    assert state() == word


def test_a_guest_of_another_architecture_is_foreign(device: Path) -> None:
    device.touch()
    assert state("aarch64") == "foreign"


@pytest.mark.parametrize("word", ["absent", "forbidden", "broken", "useless", "foreign"])
def test_kvm_that_the_job_needs_has_a_remedy(word: str) -> None:
    finding = runner.kvm(accel.Kvm(word, "why"), needed=True)  # type: ignore[arg-type]
    assert (finding.ok, finding.needed) == (False, True)
    assert finding.text.startswith(f"{word}: why\n")
    assert hint(finding.text)
    free = runner.kvm(accel.Kvm(word, "why"), needed=False)  # type: ignore[arg-type]
    assert (free.ok, free.needed, hint(free.text)) == (False, False, "")


def test_the_remedies_differ() -> None:
    words = ("absent", "forbidden", "broken", "useless", "foreign")
    texts = [runner.kvm(accel.Kvm(word, ""), needed=True).text for word in words]  # type: ignore[arg-type]
    assert len({hint(text) for text in texts}) == len(words)


# --- memory and disk --------------------------------------------------------------------------


def limited(tmp_path: Path, mib: int) -> Capacity:
    """Return the capacity of a process in a group of cgroup v2 with a limit."""
    proc, group = tmp_path / "proc", tmp_path / "cgroup" / "pod"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    (proc / "self" / "cgroup").write_text("0::/pod\n")
    (group / "memory.max").write_text(f"{mib * MIB}\n")
    (group / "memory.current").write_text("0\n")
    return capacity(proc, tmp_path / "cgroup")


def test_a_limit_below_the_need_is_unfit(tmp_path: Path) -> None:
    [finding] = runner.memory(limited(tmp_path, 1024), 1025, in_pod=True)
    assert not finding.ok
    assert finding.needed
    assert "1025 MiB" in finding.text
    assert "resources.limits" in hint(finding.text)


def test_a_limit_of_the_need_is_fit(tmp_path: Path) -> None:
    [finding] = runner.memory(limited(tmp_path, 1024), 1024, in_pod=True)
    assert finding.ok


def test_a_pod_without_a_limit_is_a_warning() -> None:
    room = Capacity(2, 8192 * MIB, 4096 * MIB, "host", "host")
    fine, warning = runner.memory(room, 1024, in_pod=True)
    assert fine.ok
    assert (warning.ok, warning.needed) == (False, False)
    assert "resources.limits.memory" in hint(warning.text)
    assert len(runner.memory(room, 1024, in_pod=False)) == 1


def test_a_full_disk_is_unfit(tmp_path: Path) -> None:
    assert runner.disk(tmp_path, 1).ok
    finding = runner.disk(tmp_path, 1 << 40)
    assert not finding.ok
    assert "ephemeral-storage" in hint(finding.text)


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.shared_memory(tmp_path).ok
    missing = runner.shared_memory(tmp_path / "none")
    assert (missing.ok, missing.needed) == (False, False)

    def refuse(*_: object) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("harness.host.runner.os.memfd_create", refuse)
    finding = runner.shared_memory(tmp_path)
    assert not finding.ok
    assert finding.needed
    assert "seccomp" in hint(finding.text)


# --- the age of the image ---------------------------------------------------------------------


def record(tmp_path: Path, built: str) -> Path:
    path = tmp_path / "image.json"
    path.write_text(json.dumps({"format": 1, "built": built, "commit": "abc"}))
    return path


@pytest.mark.parametrize(
    ("built", "ok", "needed"),
    [
        ("2026-11-29T11:00:00Z", True, True),
        ("2026-11-08T13:00:00Z", True, True),  # an hour short of 21 days
        ("2026-11-08T11:00:00Z", False, False),
        ("2026-10-30T13:00:00Z", False, False),  # an hour short of 30 days
        ("2026-10-30T11:00:00Z", False, True),
        ("2026-12-01T12:00:00Z", False, True),  # from the future
    ],
)
def test_age(tmp_path: Path, built: str, ok: bool, needed: bool) -> None:
    finding = runner.age(record(tmp_path, built), NOW)
    assert (finding.ok, finding.needed) == (ok, needed)
    assert bool(hint(finding.text)) is not ok


def test_a_host_that_is_no_image_has_no_age(tmp_path: Path) -> None:
    assert runner.age(tmp_path / "none", NOW).ok


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 2, "built": "x"}'])
def test_a_damaged_record_is_unfit(tmp_path: Path, text: str) -> None:
    path = tmp_path / "image.json"
    path.write_text(text)
    assert not runner.age(path, NOW).ok


@pytest.mark.parametrize("built", ["yesterday", "2026-11-29T11:00:00"])
def test_a_time_that_is_none_is_unfit(tmp_path: Path, built: str) -> None:
    assert not runner.age(record(tmp_path, built), NOW).ok


# --- what must not answer ---------------------------------------------------------------------


def test_an_address_that_answers_is_unfit() -> None:
    endpoint = reach.Endpoint("metadata", "169.254.169.254", 80, "block it")
    finding = runner.isolation(reach.Answer(endpoint, True, "it accepts connections"))
    assert (finding.name, finding.ok, finding.needed) == ("metadata", False, True)
    assert finding.text == "169.254.169.254:80: it accepts connections, and must not\nblock it"
    assert runner.isolation(reach.Answer(endpoint, False, "no answer within 1.5 s")).ok
