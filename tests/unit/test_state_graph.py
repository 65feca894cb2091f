from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.qemu.accel import Accel
from harness.qemu.binary import Qemu
from harness.spec import (
    MIB,
    ConsoleDevice,
    Disk,
    Firmware,
    FirmwareKind,
    MachineSpec,
    Nic,
)
from harness.state import state
from harness.state.codec import spec_from_json, to_json
from harness.state.graph import State, code_of, explain, inputs, key_of

IMAGE = {"name": "micro/default:1", "artifacts": "abc"}
LIMIT = 3


class Words:
    def log_in(self) -> str:
        return "log in"


def helper() -> int:
    return LIMIT


def steps(boot: Any) -> Any:
    return boot(helper())


def told(wanted: State, tmp_path: Path, **changes: Any) -> dict[str, str]:
    program = tmp_path / "qemu"
    if not program.exists():
        program.write_bytes(b"qemu")
    given: dict[str, Any] = {
        "image": IMAGE,
        "arch": "x86_64",
        "accel": Accel("tcg", "asked for"),
        "qemu": Qemu(program, "10.0.2"),
        "words": Words,
    }
    return inputs(wanted, **{**given, **changes})


def test_a_state_is_declared_by_its_steps() -> None:
    @state
    def first(boot: Any) -> None: ...

    @state(parent=first, name="second point")
    def second(boot: Any, machine: Any) -> None: ...

    assert (first.name, first.parent) == ("first", None)
    assert (second.name, second.parent) == ("second point", first)
    assert second.chain == (first, second)
    with pytest.raises(UsageError, match="parent of a state is a state"):
        state(parent="first")  # type: ignore[call-overload]


def test_the_same_inputs_make_the_same_key(tmp_path: Path) -> None:
    point = State("point", steps)
    assert key_of(told(point, tmp_path)) == key_of(told(point, tmp_path))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image": {**IMAGE, "artifacts": "def"}}, "image: artifacts: was abc, is def"),
        ({"accel": Accel("kvm", "", cpu="host")}, "accelerator: was tcg, is kvm"),
        ({"parent": "p" * 64}, "parent: new"),
        ({"arch": "aarch64"}, "arch: was x86_64, is aarch64"),
    ],
)
def test_each_input_changes_the_key_and_is_named(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    point = State("point", steps)
    before, now = told(point, tmp_path), told(point, tmp_path, **changes)
    assert key_of(before) != key_of(now)
    assert line in explain(now, before)


def test_another_qemu_of_the_same_version_is_another(tmp_path: Path) -> None:
    point = State("point", steps)
    before = told(point, tmp_path)
    (tmp_path / "qemu").write_bytes(b"patched qemu")
    now = told(point, tmp_path)
    assert [line.split(":")[0] for line in explain(now, before)] == ["QEMU"]


def test_code_is_followed_to_helpers_and_constants() -> None:
    found = code_of(steps)
    names = {name.rpartition(".")[2] for name in found}
    assert {"steps", "helper", "LIMIT"} <= names


def test_a_constant_that_steps_use_changes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = State("point", steps)
    before = told(point, tmp_path)
    monkeypatch.setitem(helper.__globals__, "LIMIT", 4)
    lines = explain(told(point, tmp_path), before)
    assert len(lines) == 1
    assert "LIMIT" in lines[0]


def test_the_words_of_the_image_count(tmp_path: Path) -> None:
    class Other(Words):
        def log_in(self) -> str:
            return "log in otherwise"

    point = State("point", steps)
    lines = explain(told(point, tmp_path, words=Other), told(point, tmp_path))
    assert any("Other" in line for line in lines)


def test_values_are_the_same_in_each_process() -> None:
    def uses(thing: object) -> Callable[[], object]:
        return lambda: thing

    class Odd: ...

    one = code_of(steps, {"b": 1, "a": 2}, Odd(), frozenset({"x", "y"}))
    two = code_of(steps, {"a": 2, "b": 1}, Odd(), frozenset({"y", "x"}))
    assert one == two
    assert not any("0x" in text for text in one.values())
    assert uses(1)() == 1


def test_a_spec_survives_json() -> None:
    spec = MachineSpec(
        "one",
        "x86_64",
        Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"), "quiet"),
        memory=256 * MIB,
        disks=(Disk("data", size=MIB), Disk("base", base=Path("/b"), serial="B-1")),
        nics=(Nic(forward=(22, 80), mac="52:54:00:00:00:01"),),
        console=ConsoleDevice.VIRTIO,
        credentials=(("a", "b"),),
    )
    assert spec_from_json(to_json(spec)) == spec
    plain = replace(spec, firmware=Firmware(FirmwareKind.UEFI), disks=(), credentials=())
    assert spec_from_json(to_json(plain)) == plain
