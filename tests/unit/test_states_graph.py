"""The key of a state: every input changes it, and nothing else does."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness import paths, seed
from harness.errors import UsageError
from harness.host.accel import Accel
from harness.qemu.binary import Qemu
from harness.states import state
from harness.states.graph import State, code_of, explain, inputs, key_of

IMAGE = {"name": "micro/default:1", "artifacts": "abc"}
LIMIT = 3


class Profile:
    def log_in(self) -> str:
        return "log in"


def boot(**options: Any) -> Any:
    return options


def helper() -> int:
    return LIMIT


def steps(lab: Any) -> Any:
    return lab.boot(cpus=helper())


def inputs_of(point: State, tmp_path: Path, **changes: Any) -> dict[str, str]:
    program = tmp_path / "qemu"
    if not program.exists():
        program.write_bytes(b"qemu")
    options: dict[str, Any] = {
        "image": IMAGE,
        "arch": "x86_64",
        "baseline": "",
        "accel": Accel("tcg", "requested"),
        "qemu": Qemu(program, "10.0.2", "pc-q35-10.0"),
        "profile": Profile,
        "boot": boot,
    }
    return inputs(point, **{**options, **changes})


def test_steps_declare_a_state() -> None:
    @state
    def first(lab: Any) -> None: ...

    @state(parent=first, name="second point")
    def second(lab: Any, machine: Any) -> None: ...

    assert (first.name, first.parent) == ("first", None)
    assert (second.name, second.parent) == ("second point", first)
    assert second.chain == (first, second)
    with pytest.raises(UsageError, match="parent of a state must be a state"):
        state(parent="first")  # type: ignore[call-overload]


def test_equal_inputs_have_equal_keys(tmp_path: Path) -> None:
    point = State("point", steps)
    assert key_of(inputs_of(point, tmp_path)) == key_of(inputs_of(point, tmp_path))


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
    before, now = inputs_of(point, tmp_path), inputs_of(point, tmp_path, **changes)
    assert key_of(before) != key_of(now)
    assert line in explain(now, before)


def test_another_build_of_the_same_qemu_version_changes_the_key(tmp_path: Path) -> None:
    point = State("point", steps)
    before = inputs_of(point, tmp_path)
    (tmp_path / "qemu").write_bytes(b"patched qemu")
    now = inputs_of(point, tmp_path)
    assert [line.split(":")[0] for line in explain(now, before)] == ["QEMU"]


def test_another_machine_type_changes_the_key(tmp_path: Path) -> None:
    point = State("point", steps)
    before = inputs_of(point, tmp_path)
    now = inputs_of(point, tmp_path, qemu=Qemu(tmp_path / "qemu", "10.0.2", "pc-q35-9.2"))
    assert key_of(before) != key_of(now)
    assert explain(now, before) == ["machine type: was pc-q35-10.0, is pc-q35-9.2"]


def test_the_number_of_machines_changes_the_key(tmp_path: Path) -> None:
    pair, three = (state(machines=number)(steps) for number in (2, 3))
    before = inputs_of(pair, tmp_path)
    assert explain(inputs_of(three, tmp_path), before) == ["machines: was 2, is 3"]
    assert "machines" not in inputs_of(State("point", steps), tmp_path)


def below(lab: Any) -> Any:
    return lab.boot(cpus=LIMIT)


LOWER = state(below)
UPPER = state(parent=LOWER, machines=2)(lambda lab, cluster: cluster)


def forks(lab: Any) -> Any:
    return lab.fork(UPPER)


def test_code_is_followed_to_the_parents_of_a_state() -> None:
    sources = code_of(forks)
    assert {"below", "LIMIT"} <= {name.rpartition(".")[2] for name in sources}
    assert "2" in sources.values()


def test_code_is_followed_to_helpers_and_constants() -> None:
    names = {name.rpartition(".")[2] for name in code_of(steps)}
    assert {"steps", "helper", "LIMIT"} <= names


def test_a_constant_in_a_helper_changes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = State("point", steps)
    before = inputs_of(point, tmp_path)
    monkeypatch.setitem(helper.__globals__, "LIMIT", 4)
    lines = explain(inputs_of(point, tmp_path), before)
    assert len(lines) == 1
    assert "LIMIT" in lines[0]


def test_the_code_of_the_profile_changes_the_key(tmp_path: Path) -> None:
    class Other(Profile):
        def log_in(self) -> str:
            return "log in otherwise"

    point = State("point", steps)
    lines = explain(inputs_of(point, tmp_path, profile=Other), inputs_of(point, tmp_path))
    assert any("Other" in line for line in lines)


def test_the_code_that_chooses_a_spec_changes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout, where the version of Harness stays the same while its code changes."""

    def other_boot() -> None: ...

    point = State("point", steps)
    before = inputs_of(point, tmp_path)
    lines = explain(inputs_of(point, tmp_path, boot=other_boot), before)
    assert any("other_boot" in line for line in lines)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda of: "other" if of is seed else source(of))
    assert [line.split(": was")[0] for line in explain(inputs_of(point, tmp_path), before)] == [
        "code: seeds"
    ]


# --- code that belongs to the author of states ----------------------------------------------------


Install = Callable[[str, str], ModuleType]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a module below ``site-packages``, as a wheel does, and import it under a name."""
    package = tmp_path / "site-packages" / "harness"
    monkeypatch.setattr(paths, "_PACKAGE", package)
    (package / "_bundled").mkdir(parents=True)
    written: dict[str, int] = {}

    def install(name: str, source: str, file: str = "") -> ModuleType:
        written[name] = written.get(name, 0) + 1
        path = package.parent / (file or name.replace(".", "/") + ".py")
        # inspect caches the source by path.
        path = path.with_name(f"{path.stem}{'_' * written[name]}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return install


TWO_STEPS = """
SIZE = {size}

class Disk:
    size = {size}

def helper():
    return {size}

def steps(lab):
    return lab.boot(disk=Disk(), size=(helper(), SIZE))
"""


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("harness.points", ""),
        ("test_tpm", "harness/_bundled/suites/boot/test_tpm.py"),
        ("conftest", "harness/_bundled/suites/conftest.py"),
    ],
)
def test_a_helper_of_harness_own_states_changes_the_key(
    tmp_path: Path, install: Any, module: str, file: str
) -> None:
    keys = []
    for size in (1, 2):
        point = State("point", install(module, TWO_STEPS.format(size=size), file).steps)
        named = inputs_of(point, tmp_path)
        keys.append({name: text for name, text in named.items() if module in name})
    assert set(keys[0]) == {
        f"code: {module}.{name}" for name in ("steps", "helper", "Disk", "SIZE")
    }
    changed = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert changed == {f"code: {module}.{name}" for name in ("helper", "Disk", "SIZE")}


@pytest.mark.parametrize("module", ["harness.machine.start", "harness.points_of_view", "pkg.tool"])
def test_unrelated_library_code_does_not_change_the_key(
    tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    point = State("point", steps)
    keys = set()
    for size in (1, 2):
        library = install(module, TWO_STEPS.format(size=size))
        monkeypatch.setitem(steps.__globals__, "helper", library.helper)
        named = inputs_of(point, tmp_path)
        assert not any(module in name for name in named)
        keys.add(key_of(named))
    assert len(keys) == 1


def test_helpers_are_followed_through_their_module(
    tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``from harness import points`` and then ``points.helper()``, as the suites write it."""
    suite = "def steps(lab):\n    return lab.boot(size=points.helper())\n"
    keys = set()
    for size in (1, 2):
        module = install("test_tpm", suite, "harness/_bundled/suites/test_tpm.py")
        monkeypatch.setattr(
            module, "points", install("harness.points", TWO_STEPS.format(size=size)), raising=False
        )
        named = inputs_of(State("point", module.steps), tmp_path)
        assert "code: harness.points.helper" in named
        assert "code: harness.points.steps" not in named
        keys.add(key_of(named))
    assert len(keys) == 2


def test_helpers_are_followed_through_the_front_door() -> None:
    program = (
        "import harness\n"
        "from harness.states.graph import _reached\n"
        "names = ['boot_installed', 'points', 'os']\n"
        "print([name for name, _ in _reached('test.harness', harness, names, set())])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [
        "['test.harness',",
        "'harness.points',",
        "'harness.points.boot_installed']",
    ]


def test_the_steps_of_a_state_that_code_names_are_followed(install: Any) -> None:
    source = TWO_STEPS + (
        "from harness.states import state\n"
        "other = state(steps)\n"
        "def more(lab):\n"
        "    return lab.fork(other)\n"
    )
    names = set(
        code_of(install("test_more", source.format(size=1), "harness/_bundled/suites/x.py").more)
    )
    assert {"test_more.more", "test_more.steps", "test_more.helper"} <= names


def test_modules_of_one_name_in_two_folders_both_count(install: Any) -> None:
    first = install("conftest", TWO_STEPS.format(size=1), "harness/_bundled/suites/a/conftest.py")
    second = install("conftest", TWO_STEPS.format(size=2), "harness/_bundled/suites/b/conftest.py")
    both = code_of(first.helper, second.helper)["conftest.helper"]
    assert "return 1" in both
    assert "return 2" in both


# --- values -------------------------------------------------------------------------------------


@dataclass
class Size:
    path: Path
    number: int


def test_values_have_the_same_text_in_each_process() -> None:
    class Odd: ...

    first = code_of(steps, {"b": 1, "a": 2}, Odd(), frozenset({"x", "y"}))
    second = code_of(steps, {"a": 2, "b": 1}, Odd(), frozenset({"y", "x"}))
    assert first == second
    assert not any("0x" in text for text in first.values())


@pytest.mark.parametrize("wrap", [lambda size: size, lambda size: [size], lambda size: {"a": size}])
def test_the_fields_of_a_dataclass_count(wrap: Callable[[Size], object]) -> None:
    texts = {
        str(code_of(wrap(size)))
        for size in (Size(Path("/a"), 1), Size(Path("/b"), 1), Size(Path("/a"), 2))
    }
    assert len(texts) == 3


def test_the_provider_of_a_cluster_counts(tmp_path: Path) -> None:
    class Kite:
        ports = (8080,)

    @state
    def point(lab: Any) -> None: ...

    alone = inputs_of(point, tmp_path)
    formed = inputs_of(point, tmp_path, provider=Kite)
    assert key_of(alone) != key_of(formed)
    assert [line for line in explain(formed, alone) if "Kite" in line]
