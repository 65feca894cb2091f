"""Runs of several architectures: ``--arch all`` and ``--arch x86_64,aarch64``."""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Finished, Project
from harness import arch as arches
from harness.evidence.matrix import matrix, table
from harness.evidence.results import TestResult

BOTH = "x86_64,aarch64"

SUITE = """
import pytest

@pytest.fixture
def named(request):
    return request.node.name.rstrip("]").replace("-", "[").split("[")[-1]

@pytest.fixture(scope="module")
def counted(shared_lab):
    return [shared_lab]

def test_plain(): ...

def test_lab(lab, named):
    assert lab.image.arch == lab.select("micro").arch == named

@pytest.mark.parametrize("n", [1, 2])
def test_image(image, n, named):
    assert image.arch == named

def test_shared(counted, lab, named):
    assert [each.image.arch for each in counted] == [lab.image.arch] == [named]
"""

ALONE = ["test_plain", "test_lab", "test_image[1]", "test_image[2]", "test_shared"]
IN_BOTH = [
    "test_plain",
    *("test_lab[x86_64]", "test_image[1-x86_64]", "test_image[2-x86_64]", "test_shared[x86_64]"),
    *(
        "test_lab[aarch64]",
        "test_image[1-aarch64]",
        "test_image[2-aarch64]",
        "test_shared[aarch64]",
    ),
]

SOLO = """\
name: solo
summary: An image for one architecture
profile: micro
arches:
  ARCH:
    firmware: kernel
    artifacts: {kernel: {url: "file:///kernel", sha256: "DIGEST"}}
capabilities: [ssh]
""".replace("DIGEST", "0" * 64)


def run(project: Project, text: str, *options: str) -> Finished:
    project.write("test_it.py", text)
    return project.pytest("-q", "--image", "micro", *options)


def collected(project: Project, text: str, *options: str) -> list[str]:
    """Return the names of the tests that a run has, in its order."""
    result = run(project, text, "--collect-only", *options)
    assert result.status == 0, result.text
    return [line.split("::")[1] for line in result.text.splitlines() if "::" in line]


def latest(project: Project) -> Path:
    return project.folder / ".harness/runs/latest"


def results(project: Project) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((latest(project) / "results.json").read_text())
    return content


# --- which tests there are ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ALONE),
        (("--arch", "aarch64"), ALONE),
        (("--arch", BOTH), IN_BOTH),
        (("--arch", f"{BOTH},x86_64"), IN_BOTH),
        (("--arch", BOTH, "-k", "lab and aarch64"), ["test_lab[aarch64]"]),
    ],
)
def test_each_test_of_an_image_is_there_once_for_each_architecture(
    project: Project, options: tuple[str, ...], names: list[str]
) -> None:
    assert collected(project, SUITE, *options) == names


def test_all_begins_with_the_architecture_of_the_host(project: Project) -> None:
    names = collected(project, SUITE, "--arch", "all", "-k", "test_lab")
    others = [name for name in arches.ARCHES if name != arches.host()]
    assert names == [f"test_lab[{arch}]" for arch in (arches.host(), *others)]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_test_has_the_lab_and_the_image_of_its_architecture(
    project: Project, workers: str
) -> None:
    result = run(project, SUITE, "--arch", "all", "-n", workers)
    assert result.status == 0, result.text
    assert "9 passed" in result.text


def test_each_architecture_has_a_lab_of_its_own(project: Project) -> None:
    """The key and the servers of one architecture are not those of the other."""
    text = """
SEEN = []

def test_it(lab):
    SEEN.append((lab.key.public, lab._parts.services_folder, lab.run.path))

def test_they_differ():
    (key, services, run), (other_key, other_services, other_run) = SEEN
    assert key != other_key
    assert services != other_services
    assert run == other_run
"""
    result = run(project, text, "--arch", "all", "-p", "no:randomly")
    assert result.status == 0, result.text
    assert "3 passed" in result.text


def test_a_module_shares_a_lab_for_each_architecture(project: Project) -> None:
    text = """
import pytest

def test_a(shared_lab, lab):
    (shared_lab.folder / "a").touch()

def test_b(shared_lab, image):
    (shared_lab.folder / "b").touch()
    assert image.arch == "x86_64"
"""
    result = run(project, text, "--arch", BOTH)
    assert result.status == 1, result.text
    assert "1 failed, 3 passed" in result.text
    failed = [each for each in results(project)["tests"] if each["verdict"] == "product"]
    assert [each["id"] for each in failed] == ["test_it.py::test_b[aarch64]"]
    shared = latest(project) / failed[0]["evidence"]
    assert "aarch64" in shared.name
    assert {path.name for path in shared.iterdir()} >= {"a", "b"}
    # That of x86_64, on which all passed, is gone.
    assert len([path for path in latest(project).iterdir() if path.is_dir()]) == 1


def test_the_files_of_an_update_are_unpacked_once_for_each_architecture(
    project: Project, tmp_path: Path
) -> None:
    import hashlib

    text = SOLO.split("arches:")[0] + "arches:\n"
    for arch in arches.ARCHES:
        (tmp_path / arch).write_text(arch)
        with tarfile.open(tmp_path / f"{arch}.tar", "w") as archive:
            archive.add(tmp_path / arch, arch)
        files = {"kernel": tmp_path / arch, "update": tmp_path / f"{arch}.tar"}
        entries = ", ".join(
            f'{name}: {{url: "file://{path}", sha256:'
            f' "{hashlib.sha256(path.read_bytes()).hexdigest()}"}}'
            for name, path in files.items()
        )
        text += f"  {arch}: {{firmware: kernel, artifacts: {{{entries}}}}}\n"
    project.write("images/two/image.yaml", text.replace("solo", "two"))
    suite = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_it(update_files, image, n):
    assert [path.read_text() for path in update_files("1")] == [image.arch]
"""
    project.write("conftest.py", ALTERNATELY)
    result = run(
        project, suite, "--image", "two", "--arch", BOTH, f"--basetemp={tmp_path / 'base'}"
    )
    assert result.status == 0, result.text
    assert len(list((tmp_path / "base").glob("update-*-1?"))) == 2


ALTERNATELY = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name)  # as a worker may get them: 1-aarch64, 1-x86_64, ...
"""


def test_a_second_try_discards_the_states_of_its_architecture(project: Project) -> None:
    project.write(
        "conftest.py",
        "from harness import Lab\n\n"
        "def discard(self, points, why):\n"
        "    open('discarded', 'a').write(f'{self.image.arch} {list(points)}')\n\n"
        "Lab.discard = discard\n",
    )
    text = """
from harness import errors

def test_it(lab):
    if lab.image.arch == "aarch64" and lab.folder.name != "try-2":
        lab._parts.built.append("a state")
        raise errors.QemuExitedError("QEMU died")
"""
    result = run(project, text, "--arch", BOTH)
    assert result.status == 0, result.text
    assert "1 passed, 1 retried, 1 flaky" in result.text
    assert (project.folder / "discarded").read_text() == "aarch64 ['a state']"


def test_a_test_that_asks_for_its_lab_while_it_runs_has_the_first(project: Project) -> None:
    (other,) = set(arches.ARCHES) - {arches.host()}
    first, rest = SOLO.replace("ARCH", other).replace("solo", "two").split("capabilities")
    both = first + first.split("arches:\n")[1].replace(other, arches.host())
    project.write("images/two/image.yaml", f"{both}capabilities{rest}")
    text = "def test_it(request):\n    assert request.getfixturevalue('lab').image.arch == 'ARCH'\n"
    for choice, arch in (("all", arches.host()), (f"{other},{arches.host()}", other)):
        result = run(project, text.replace("ARCH", arch), "--image", "two", "--arch", choice)
        assert result.status == 0, result.text
        assert "1 passed" in result.text


# --- what an image lacks ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", arches.ARCHES)
def test_an_architecture_that_the_image_lacks_is_skipped_where_all_are_asked(
    project: Project, arch: str
) -> None:
    path = project.write("images/solo/image.yaml", SOLO.replace("ARCH", arch))
    text = (
        "import pytest\n\n@pytest.mark.needs('ssh')\ndef test_it(image):\n    assert image.arch\n"
    )
    options = ("--acceptance", "test_it.py", "-rs")
    result = run(project, text, "--image", "solo", "--arch", "all", *options)
    assert result.status == 0, result.text
    assert "1 passed, 1 skipped" in result.text
    (other,) = set(arches.ARCHES) - {arch}
    assert f"image solo has no arch {other}: describe it in {path}" in result.text
    assert list(results(project)["arches"]) == [arch]


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("aarch64", "unknown arch of solo 'aarch64'"),
        (BOTH, "unknown arch of solo 'aarch64'"),
        ("x86_64,arm", "unknown arch 'arm'"),
        ("x86_64,", "unknown arch ''"),
        ("", "unknown arch ''"),
        ("al", "unknown arch 'al'\n  try: did you mean all? known: aarch64, all, x86_64"),
    ],
)
def test_an_architecture_that_is_named_has_to_be_there(
    project: Project, arch: str, words: str
) -> None:
    project.write("images/solo/image.yaml", SOLO.replace("ARCH", "x86_64"))
    result = run(project, "def test_it(image): ...\n", "--image", "solo", "--arch", arch)
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert words in result.text


def test_a_recording_is_of_one_architecture(project: Project) -> None:
    result = run(project, "def test_it(image): ...\n", "--arch", "all", "--recording", "install")
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert "--recording is of one architecture, and --arch names several" in result.text


# --- what a run leaves --------------------------------------------------------------------------

OUTCOMES = """
from pathlib import Path

import pytest

from harness import errors

def test_plain(): ...

def test_differs(image):
    assert image.arch == "x86_64"

def test_flaky(lab, request):
    path = Path(request.node.name)
    if not path.exists():
        path.touch()
        raise errors.QemuExitedError("QEMU died")

def test_skipped(lab):
    pytest.skip("no such disk")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_results_and_summary_have_a_matrix(project: Project, workers: str) -> None:
    result = run(project, OUTCOMES, "--acceptance", "test_it.py", "--arch", BOTH, "-n", workers)
    assert result.status == 1, result.text
    content = results(project)
    by_arch = {each["id"].split("::")[1]: each["arch"] for each in content["tests"]}
    assert by_arch == {
        "test_plain": "",
        **{
            f"test_{name}[{arch}]": arch
            for name in ("differs", "flaky", "skipped")
            for arch in arches.ARCHES
        },
    }
    assert content["matrix"] == {
        "test_it.py": {
            "x86_64": {"passed": 1, "flaky": 1, "skipped": 1},
            "aarch64": {"flaky": 1, "product": 1, "skipped": 1},
        }
    }
    assert list(content["arches"]) == ["x86_64", "aarch64"]
    inputs = {each["inputs"] for each in content["arches"].values()}
    assert len(inputs) == 2
    lines = result.text.split("suites by architecture")[1].splitlines()[1:4]
    assert lines == [
        "suite       x86_64                        aarch64",
        "test_it.py  1 passed, 1 flaky, 1 skipped  1 flaky, 1 product, 1 skipped",
        "all         1 passed, 1 flaky, 1 skipped  1 flaky, 1 product, 1 skipped",
    ]
    cases = ET.parse(latest(project) / "junit.xml").getroot().iter("testcase")
    properties = {
        case.get("name"): [
            each.get("value") for each in case.iter("property") if each.get("name") == "arch"
        ]
        for case in cases
    }
    assert properties == {name: [arch] if arch else [] for name, arch in by_arch.items()}


def test_a_run_of_one_architecture_has_its_name_and_no_table(project: Project) -> None:
    result = run(project, OUTCOMES, "--acceptance", "test_it.py", "--arch", "aarch64")
    assert result.status == 1, result.text
    assert "suites by architecture" not in result.text
    content = results(project)
    assert {each["arch"] for each in content["tests"]} == {"", "aarch64"}
    assert list(content["matrix"]["test_it.py"]) == ["aarch64"]
    assert list(content["arches"]) == ["aarch64"]


CRASH = """
import os

import pytest

@pytest.fixture
def crashing(lab):
    if lab.image.arch == "aarch64":
        os._exit(3)

def test_it(crashing): ...
"""

INTERRUPTED = """
import pytest

@pytest.fixture
def interrupted(lab):
    raise KeyboardInterrupt

def test_it(interrupted): ...
"""


@pytest.mark.parametrize("arch", ["all", "aarch64"])
def test_the_architecture_of_a_test_whose_worker_crashed_is_known(
    project: Project, arch: str
) -> None:
    result = run(project, CRASH, "--arch", arch, "-n", "1", "--no-retry")
    assert result.status == 1, result.text
    (crashed,) = [each for each in results(project)["tests"] if each["verdict"] == "infra"]
    assert crashed["arch"] == "aarch64"


def test_the_architecture_of_a_test_that_was_interrupted_is_known(project: Project) -> None:
    result = run(project, INTERRUPTED, "--arch", "aarch64,x86_64")
    assert result.status == pytest.ExitCode.INTERRUPTED, result.text
    (test,) = results(project)["tests"]
    assert (test["outcome"], test["arch"]) == ("interrupted", "aarch64")


# --- tiers --------------------------------------------------------------------------------------

TIERS = """
import pytest

@pytest.mark.tier("smoke")
def test_everywhere(image): ...

@pytest.mark.tier("smoke", other_arches="gate")
def test_first(image): ...

@pytest.mark.tier("gate", other_arches="nightly")
def test_gate(image): ...
"""


@pytest.mark.parametrize(
    ("tier", "first", "other"),
    [
        ("smoke", ["everywhere", "first"], ["everywhere"]),
        ("gate", ["everywhere", "first", "gate"], ["everywhere", "first"]),
        ("nightly", ["everywhere", "first", "gate"], ["everywhere", "first", "gate"]),
    ],
)
def test_a_scenario_may_be_of_a_larger_tier_on_other_architectures(
    project: Project, tier: str, first: list[str], other: list[str]
) -> None:
    names = collected(project, TIERS, "--arch", BOTH, "--tier", tier)
    assert names == [
        *(f"test_{name}[x86_64]" for name in first),
        *(f"test_{name}[aarch64]" for name in other),
    ]


def test_alone_an_architecture_has_all_tests_of_a_tier(project: Project) -> None:
    names = collected(project, TIERS, "--arch", "aarch64", "--tier", "smoke")
    assert names == ["test_everywhere", "test_first"]


def test_the_first_architecture_is_the_first_that_the_image_has(project: Project) -> None:
    (other,) = set(arches.ARCHES) - {arches.host()}
    project.write("images/solo/image.yaml", SOLO.replace("ARCH", other))
    result = run(project, TIERS, "--image", "solo", "--arch", "all", "--tier", "smoke")
    assert result.status == 0, result.text
    # The host's own is skipped, and has what another architecture has.
    assert "2 passed, 1 skipped" in result.text
    assert "tier smoke: left out 2 of tier gate and 1 of tier nightly" in result.text


# --- the matrix ---------------------------------------------------------------------------------


def result(test: str, arch: str, verdict: str, outcome: str = "") -> TestResult:
    return TestResult(test, arch, outcome or "passed", verdict)


def test_a_suite_is_a_folder_unless_all_tests_are_in_one() -> None:
    tests = [
        result("suites/boot/test_a.py::test_it[x86_64]", "x86_64", "passed"),
        result("suites/boot/test_b.py::TestB::test_it", "x86_64", "product"),
    ]
    assert list(matrix(tests)) == ["suites/boot/test_a.py", "suites/boot/test_b.py"]
    tests.append(result("suites/power/test_c.py::test_it", "aarch64", "", "skipped"))
    tests.append(result("suites/power/test_d.py::test_it", "", "passed"))
    assert matrix(tests) == {
        "suites/boot": {"x86_64": {"passed": 1, "product": 1}},
        "suites/power": {"aarch64": {"skipped": 1}},
    }


def test_the_table_is_plain_text_with_totals() -> None:
    rows = {
        "suites/boot": {"x86_64": {"infra": 1, "passed": 12}, "aarch64": {"passed": 3}},
        "suites/power": {"x86_64": {"interrupted": 2}},
    }
    assert table(rows, ["x86_64", "aarch64"]) == [
        "suite         x86_64                             aarch64",
        "suites/boot   12 passed, 1 infra                 3 passed",
        "suites/power  2 interrupted                      -",
        "all           12 passed, 1 infra, 2 interrupted  3 passed",
    ]
