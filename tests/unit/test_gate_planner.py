"""Plans: which tests of which images are in, why, and what their jobs need."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.catalog import Catalog, Image
from harness.errors import UnknownNameError, UsageError
from harness.gate import plan as plans
from harness.gate import planner
from harness.gate.collection import Collection, Test
from harness.gate.plan import Plan
from harness.gate.planner import Options, Project
from harness.gate.rules import Gate
from harness.gate.timings import Timings

ROOT = Path("/nowhere")
LIVE = "suites/boot/test_live.py"
INSTALL = "suites/install/test_install.py"
CLUSTER = "suites/cluster/test_cluster.py"


def an_image(name: str, *capabilities: str, **changes: Any) -> Image:
    arches = changes.pop("arches", ("x86_64", "aarch64"))
    artifacts = {"kernel": {"url": "file:///k", "sha256": changes.pop("sha256", "0" * 64)}}
    content = {
        "name": name,
        "summary": "An image",
        "profile": "micro",
        "arches": {arch: {"firmware": "kernel", "artifacts": artifacts} for arch in arches},
        "machine": {"cpus": 2, "memory": "1GiB"},
        "capabilities": list(capabilities),
        **changes,
    }
    image = Image.model_validate(content)
    image._path = ROOT / "images" / name / "image.yaml"
    return image


def a_test(number: int, file: str = LIVE, **changes: Any) -> Test:
    fields: dict[str, Any] = {
        "id": f"{file}::test_{number}",
        "file": file,
        "tier": "gate",
        "other_arch": "gate",
        "cost": 10.0,
        "uses": {"live": 25.0},
        "needs": (),
        "image": True,
        "together": "",
        **changes,
    }
    return Test(**fields)


def a_project(
    *images: Image,
    tests: Mapping[str, list[Test]] | list[Test] | None = None,
    gate: Gate | None = None,
    **changes: Any,
) -> Project:
    """Return a project; ``tests`` are those of each image, or the same of all."""
    own = Catalog(images or (an_image("kite", "ssh"),))
    rules = gate or Gate()
    chosen = planner.candidates(changes.pop("named", ()), own, own, rules)
    if tests is None:
        tests = [a_test(number) for number in range(3)]
    collections = {}
    for each in chosen:
        mine = tests[each.image.name] if isinstance(tests, Mapping) else tests
        files: dict[str, tuple[str, ...]] = {
            test.file: ("suites/conftest.py", "data/seed.yaml")
            for test in mine
            if test.file == INSTALL
        }
        files |= {test.file: () for test in mine if test.file not in files}
        for suite in rules.in_use():
            mine_here = tuple(test for test in mine if test.file.startswith(f"{suite.folder}/"))
            collections[suite.folder, each.reference] = Collection(
                str(ROOT), mine_here, changes.get("left_out", {}), files
            )
    changes.pop("left_out", None)
    return Project(ROOT, rules, chosen, collections, **changes)


def planned(project: Project, **options: Any) -> Plan:
    if project.changed is not None:
        options.setdefault("since", "main")
    return planner.make(project, Options(**options))


def test_the_same_inputs_make_the_same_plan() -> None:
    tests = [a_test(number, cost=float(number + 1)) for number in range(40)]
    plan = planned(a_project(tests=tests))
    shuffled = tests[:]
    random.Random(7).shuffle(shuffled)
    again = planned(a_project(tests=shuffled))
    assert again.id == plan.id
    assert again.jobs == plan.jobs
    others = [a_test(number, cost=float(number + 2)) for number in range(40)]
    assert planned(a_project(tests=others)).id != plan.id


def test_each_test_is_in_one_job_of_each_image_and_architecture() -> None:
    tests = [a_test(number, cost=30.0) for number in range(100)]
    images = (an_image("kite"), an_image("tiny"))
    plan = planned(a_project(*images, tests=tests), arch="all")
    for image in ("kite", "tiny"):
        for arch in ("x86_64", "aarch64"):
            jobs = [job for job in plan.jobs if (job.image, job.arch) == (image, arch)]
            listed = [test for job in jobs for test in job.tests]
            assert sorted(listed) == sorted(test.id for test in tests)
            assert [job.shard for job in jobs] == [
                f"{number}/{len(jobs)}" for number in range(1, len(jobs) + 1)
            ]
            seconds = [job.seconds for job in jobs]
            assert max(seconds) <= 1.15 * sum(seconds) / len(seconds)
    assert len({job.id for job in plan.jobs}) == len(plan.jobs)


def test_a_test_that_the_image_cannot_run_is_counted_and_not_planned() -> None:
    tests = [a_test(1), a_test(2, needs=("upgrade",)), a_test(3, needs=("ssh",))]
    plan = planned(a_project(tests=tests, left_out={"nightly": 4}))
    assert [test for job in plan.jobs for test in job.tests] == [tests[0].id, tests[2].id]
    assert plan.images[0].left_out == {"capability": 1, "tier": 4}
    assert plan.images[0].tests == 2


def test_a_test_is_of_its_own_tier_on_further_architectures() -> None:
    tests = [
        a_test(1, tier="smoke", other_arch="gate"),
        a_test(2, tier="smoke", other_arch="smoke"),
    ]
    plan = planned(a_project(tests=tests), tier="smoke", arch="all")
    assert {job.arch: len(job.tests) for job in plan.jobs} == {"x86_64": 2, "aarch64": 1}
    # A run of one architecture has all tests of its tier.
    alone = planned(a_project(tests=tests), tier="smoke", arch="aarch64")
    assert [len(job.tests) for job in alone.jobs] == [2]


def test_a_test_that_uses_no_image_runs_on_one_architecture() -> None:
    plan = planned(a_project(tests=[a_test(1), a_test(2, image=False)]), arch="all")
    assert {job.arch: len(job.tests) for job in plan.jobs} == {"x86_64": 2, "aarch64": 1}


def test_a_job_says_which_other_architectures_its_tests_start() -> None:
    project = a_project(tests=[a_test(1)])
    (suite,) = project.gate.in_use()
    gate = project.gate.model_copy(
        update={"suites": (suite.model_copy(update={"also": ("aarch64",)}),)}
    )
    assert [job.also for job in planned(project).jobs] == [()]
    assert [job.also for job in planned(dataclasses.replace(project, gate=gate)).jobs] == [
        ("aarch64",)
    ]


def test_an_architecture_that_an_image_lacks_is_out_with_the_reason() -> None:
    project = a_project(an_image("kite", arches=("x86_64",)))
    plan = planned(project, arch="aarch64")
    assert plan.jobs == ()
    assert not plan.images[0].planned
    assert "no arch aarch64: describe it in images/kite/image.yaml" in plan.images[0].why
    assert "no arch aarch64" in plan.empty
    with pytest.raises(UnknownNameError, match="arm"):
        planned(project, arch="arm")


def test_an_image_whose_digest_nobody_knows_is_out_with_the_reason() -> None:
    plan = planned(a_project(an_image("kite"), an_image("tiny", sha256="unknown")))
    assert {job.image for job in plan.jobs} == {"kite"}
    assert [row.planned for row in plan.images] == [True, False]
    assert "digest of its artifact kernel is unknown" in plan.images[1].why
    assert "images/tiny/image.yaml" in plan.images[1].why


def test_history_replaces_the_marks() -> None:
    tests = [a_test(number) for number in range(3)]
    samples = {("kite", "x86_64", test.id): [100.0, 100.0, 900.0] for test in tests[:2]}
    plan = planned(a_project(tests=tests, timings=Timings(samples)))
    # The third goes by its mark, at the pace of the others; so does the state.
    assert plan.jobs[0].seconds == pytest.approx(15 + 3 * 100 + 10 * 25)


def test_a_job_needs_what_its_machines_have() -> None:
    image = an_image("kite", "cluster", cluster={"provider": "etcd", "variant": "default"})
    tests = [a_test(1), a_test(2, CLUSTER, uses={"cluster-5": 100.0}, needs=("cluster",))]
    plan = planned(a_project(image, tests=tests), target=1.0)
    by_file = {job.tests[0].partition("::")[0]: job for job in plan.jobs}
    assert by_file[LIVE].needs.memory == 2 * 1024 + 1024
    assert by_file[CLUSTER].needs.memory == 6 * 1024 + 1024
    assert by_file[CLUSTER].states == ("cluster-5",)
    assert by_file[CLUSTER].needs.cpus == 2


def test_gate_yaml_has_the_last_word_on_needs_and_labels() -> None:
    gate = Gate.model_validate(
        {"images": {"kite": {"memory": "8GiB", "disk": "30GiB", "kvm": True, "labels": ["big"]}}}
    )
    job = planned(a_project(gate=gate)).jobs[0]
    assert (job.needs.memory, job.needs.disk, job.needs.kvm) == (8192, 30720, True)
    assert job.labels == ("big",)


def test_tests_of_two_suites_share_no_job() -> None:
    """Each job is one pytest run, and files of two suites may have the same name."""
    gate = Gate.model_validate({"suites": [{"folder": "suites"}, {"folder": "tests/own"}]})
    tests = [a_test(1), a_test(2, "tests/own/test_live.py")]
    plan = planned(a_project(tests=tests, gate=gate))
    assert [(job.id, job.shard, len(job.tests)) for job in plan.jobs] == [
        ("kite-x86-64-1", "1/2", 1),
        ("kite-x86-64-2", "2/2", 1),
    ]


def test_jobs_are_packed_into_the_limit() -> None:
    tests = [a_test(number, cost=500.0, uses={}) for number in range(300)]
    plan = planned(a_project(tests=tests))
    assert len(plan.jobs) <= plans.MOST_JOBS
    assert sum(len(job.tests) for job in plan.jobs) == 300
    assert len(planned(a_project(tests=tests), max_jobs=7).jobs) <= 7
    images = [an_image(f"kite{number}") for number in range(3)]
    with pytest.raises(UsageError, match="2 jobs at most"):
        planned(a_project(*images), max_jobs=2)


def test_an_image_of_a_larger_tier_is_out_unless_it_is_named_or_has_changed() -> None:
    gate = Gate.model_validate({"images": {"tiny": {"tier": "nightly"}}})
    images = (an_image("kite"), an_image("tiny"))
    plan = planned(a_project(*images, gate=gate))
    assert [row.planned for row in plan.images] == [True, False]
    assert plan.images[1].why == "it is of tier nightly in gate.yaml, and the plan of gate"
    for project, options in (
        (a_project(*images, gate=gate), {"tier": "nightly"}),
        (a_project(*images, gate=gate, named=["tiny"]), {}),
        (a_project(*images, gate=gate, changed=("images/tiny/build",)), {}),
    ):
        assert "tiny" in {job.image for job in planned(project, **options).jobs}
    # What changes everything changes what the gate has.
    everything = planned(a_project(*images, gate=gate, changed=("Makefile",)))
    assert {job.image for job in everything.jobs} == {"kite"}


def test_what_is_made_of_another_images_files_keeps_its_tier_until_its_own_change() -> None:
    gate = Gate.model_validate({"images": {"tiny": {"tier": "nightly"}}})
    inputs = ["build", "../kite/root", "../../tools"]
    tiny = an_image("tiny", build={"script": "build", "inputs": inputs})
    images = (an_image("kite"), tiny)

    def of(path: str, tier: str) -> set[str]:
        project = a_project(*images, gate=gate, changed=(path,))
        return {job.image for job in planned(project, tier=tier).jobs}

    assert of("images/kite/root/init", "gate") == {"kite"}
    assert of("images/kite/root/init", "nightly") == {"kite", "tiny"}
    assert of("images/tiny/build", "gate") == {"tiny"}
    # A folder that is of no image may be an input of this one alone.
    assert "tiny" in of("tools/mkfs", "gate")


def test_an_image_may_be_named_by_a_whole_reference() -> None:
    image = an_image("kite", build={"script": "build"}, versions=["1", "2"])
    plan = planned(a_project(image, named=["kite:2"]))
    assert (plan.jobs[0].image, plan.jobs[0].id) == ("kite:2", "kite-2-x86-64-1")


# --- changes ----------------------------------------------------------------------------------


def in_plan(*changed: str, gate: Gate | None = None) -> dict[str, set[str]]:
    """Return the files of the tests of each image that a change selects."""
    images = (an_image("kite"), an_image("tiny"))
    tests = [a_test(1), a_test(2, INSTALL), a_test(3, INSTALL, tier="smoke", other_arch="smoke")]
    plan = planned(a_project(*images, tests=tests, gate=gate, changed=changed))
    by_image: dict[str, set[str]] = {}
    for job in plan.jobs:
        by_image.setdefault(job.image, set()).update(job.tests)
    return by_image


BOTH = {f"{LIVE}::test_1", f"{INSTALL}::test_2", f"{INSTALL}::test_3"}
EVERYTHING = {"kite": BOTH, "tiny": BOTH}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["Makefile"], EVERYTHING),
        (["gate.yaml"], EVERYTHING),
        (["../other/file"], EVERYTHING),
        (["docs/a.md"], {}),
        (["images/kite/README.md"], {}),
        (["docs/a.md", "images/kite/build"], {"kite": BOTH}),
        (["images/kite/image.yaml"], {"kite": BOTH}),
        (["images/gone/image.yaml"], EVERYTHING),
        ([LIVE], {name: {f"{LIVE}::test_1"} for name in EVERYTHING}),
        (["suites/boot/helper.py"], {name: {f"{LIVE}::test_1"} for name in EVERYTHING}),
        (["suites/boot/test_gone.py"], {name: {f"{LIVE}::test_1"} for name in EVERYTHING}),
        (["suites/empty/helper.py"], EVERYTHING),
        (["suites/conftest.py"], EVERYTHING),
        (["data/seed.yaml"], EVERYTHING),
    ],
)
def test_a_change_selects_what_it_touches(
    changed: list[str], expected: dict[str, set[str]]
) -> None:
    assert in_plan(*changed) == expected


def test_what_a_test_uses_selects_it_whatever_a_rule_says() -> None:
    rule = {"paths": ["data/**"], "selects": "nothing", "because": "data"}
    gate = Gate.model_validate({"changes": [rule]})
    mine = {f"{INSTALL}::test_2", f"{INSTALL}::test_3"}
    assert in_plan("data/seed.yaml", gate=gate) == {"kite": mine, "tiny": mine}
    assert in_plan("data/other.yaml", gate=gate) == {}


def test_no_rule_is_for_the_rules_themselves() -> None:
    rule = {"paths": ["**"], "selects": "nothing", "because": "all is well"}
    gate = Gate.model_validate({"changes": [rule]})
    assert in_plan("Makefile", gate=gate) == {}
    assert in_plan("gate.yaml", gate=gate) == EVERYTHING


def test_an_input_of_an_image_selects_it_whatever_a_rule_says() -> None:
    image = an_image("kite", build={"script": "build", "inputs": ["build", "notes.md"]})
    project = a_project(image, an_image("tiny"), changed=("images/kite/notes.md",))
    plan = planned(project)
    assert {job.image for job in plan.jobs} == {"kite"}
    assert plan.jobs[0].why == "images/kite/notes.md changed, an input of kite"


def test_a_rule_may_select_some_images_and_a_smaller_tier() -> None:
    rule = {"paths": ["lib/**"], "targets": [{"images": ["kite"]}, {"tier": "smoke"}]}
    gate = Gate.model_validate({"changes": [rule]})
    assert in_plan("lib/a.py", gate=gate) == {"kite": BOTH, "tiny": {f"{INSTALL}::test_3"}}


def test_an_empty_plan_says_why() -> None:
    project = a_project(changed=("docs/a.md", "docs/b.md", "LICENSE"))
    plan = planned(project)
    assert plan.jobs == ()
    assert plan.empty == (
        "what changed since main selects nothing: documentation (docs/a.md, docs/b.md, LICENSE)"
    )
    assert planned(a_project(changed=())).empty == "nothing has changed since main"
    assert planned(a_project(tests=[])).empty == (
        "no test of tier gate is left: kite on x86_64: its suites have no test for it"
    )
    lacking = planned(a_project(tests=[a_test(1, needs=("upgrade",))]))
    assert "does not declare the capabilities that its 1 tests" in lacking.empty
    assert "no image" in planned(dataclasses.replace(project, candidates=(), changed=None)).empty


def test_reasons_are_few_lines_however_much_has_changed() -> None:
    paths = tuple(f"images/kite/file-{number}" for number in range(500))
    plan = planned(a_project(changed=paths))
    assert plan.jobs[0].why.endswith("and 497 more")
    assert plan.changed == paths


def test_every_row_and_every_job_has_a_reason() -> None:
    images = (an_image("kite"), an_image("tiny", arches=("aarch64",)))
    plan = planned(a_project(*images, changed=(LIVE, "images/kite/build")), arch="x86_64,aarch64")
    assert len(plan.images) == 4
    assert all(row.why for row in plan.images)
    assert all(job.why for job in plan.jobs)
    assert {(row.image, row.arch): row.planned for row in plan.images} == {
        ("kite", "x86_64"): True,
        ("kite", "aarch64"): True,
        ("tiny", "x86_64"): False,
        ("tiny", "aarch64"): True,
    }
    assert plan.images[3].left_out == {}
