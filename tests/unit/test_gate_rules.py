"""gate.yaml: its patterns, and its errors with file:line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import CatalogError
from harness.gate import rules
from harness.gate.rules import Gate

IMAGES = ("kite", "tiny")


def loaded(tmp_path: Path, text: str) -> Gate:
    (tmp_path / "suites").mkdir()
    (tmp_path / "gate.yaml").write_text(text)
    return rules.load(tmp_path, IMAGES, tmp_path / "bundled")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("docs/**", ["docs/a", "docs/a/b.md"], ["docs", "mydocs/a", "a/docs/b"]),
        ("**/*.md", ["README.md", "a/b/c.md"], ["a.mdx", "a.md/b"]),
        ("images/*/**", ["images/kite/build", "images/kite/a/b"], ["images/kite.py"]),
        ("run", ["run"], ["a/run", "run/a", "runs"]),
        ("*.lock", ["dev.lock"], ["requirements/dev.lock"]),
        ("a?c.[x]", ["abc.[x]"], ["a/c.[x]", "abc.x"]),
    ],
)
def test_patterns_match_whole_paths(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [path for path in (*yes, *no) if rules.matches(path, [pattern])] == yes


def test_without_a_file_the_suites_of_the_project_judge_its_images(tmp_path: Path) -> None:
    gate = rules.load(tmp_path, IMAGES, tmp_path)
    assert [suite.folder for suite in gate.in_use()] == ["suites"]
    assert gate.settings("kite").labels == ("harness",)
    picked = {
        path: rule.selects
        for path in ("README.md", "images/kite/build", "suites/a/b.py")
        if (rule := gate.rule(path))
    }
    assert picked == {
        "README.md": "nothing",
        "images/kite/build": "image",
        "suites/a/b.py": "tests",
    }
    assert gate.rule("Makefile") is None


def test_the_first_rule_decides_and_a_project_s_comes_before_ours(tmp_path: Path) -> None:
    gate = loaded(
        tmp_path,
        "changes:\n"
        "  - {paths: [docs/api.md], selects: everything}\n"
        '  - {paths: ["docs/**"], targets: [{images: [kite], tier: smoke}]}\n',
    )
    assert (rule := gate.rule("docs/api.md")) and rule.selects == "everything"
    assert (rule := gate.rule("docs/other.md")) and rule.targets
    assert (rule := gate.rule("other.md")) and rule.selects == "nothing"


def test_sizes_of_an_image_become_mib(tmp_path: Path) -> None:
    gate = loaded(
        tmp_path, "images:\n  kite: {memory: 6GiB, disk: 20GiB, kvm: true, labels: [kvm]}\n"
    )
    settings = gate.settings("kite")
    assert (settings.memory, settings.disk, settings.kvm) == (6144, 20480, True)
    assert settings.labels == ("kvm",)


def test_settings_go_by_name_and_then_by_pattern(tmp_path: Path) -> None:
    gate = loaded(tmp_path, "images:\n  'k*': {tier: gate}\n  '*': {tier: nightly}\n  tiny: {}\n")
    tiers = {name: gate.settings(name).tier for name in ("kite", "tiny", "other")}
    assert tiers == {"kite": "gate", "tiny": "smoke", "other": "nightly"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", r"gate\.yaml:1: not a mapping"),
        ("suites: [", r"gate\.yaml:\d+: not YAML"),
        ("suits: []", r"gate\.yaml:1: unknown key 'suits'; did you mean suites"),
        ("\nsuites:\n- {folder: suites, image: [kite]}", r"gate\.yaml:3: .*unknown key 'image'"),
        ("suites:\n- {folder: ../other}", r"gate\.yaml:2: suites\.0\.folder: .*without '\.\.'"),
        ("suites:\n- {folder: gone}", r"gate\.yaml:2: suites\.0\.folder: there is no folder gone"),
        (
            "suites:\n- {folder: suites, images: [kit]}",
            r"gate\.yaml:2: .*unknown image 'kit'.*kite",
        ),
        ("suites:\n- {folder: suites, arches: [arm]}", r"gate\.yaml:2: .*unknown arch 'arm'"),
        (
            "suites:\n- {folder: suites, cost: 0}",
            r"gate\.yaml:2: suites\.0\.cost: .*greater than 0",
        ),
        ("images:\n  kit: {}", r"gate\.yaml:2: images\.kit: unknown image 'kit'.*kite"),
        ("images:\n  kite: {tier: daily}", r"gate\.yaml:2: images\.kite\.tier: .*'smoke', 'gate'"),
        ("images:\n  kite: {memory: 6144}", r"gate\.yaml:2: images\.kite\.memory: .*size such as"),
        ("images:\n  kite: {disk: big}", r"gate\.yaml:2: images\.kite\.disk: .*size such as"),
        ("changes:\n- {paths: [a]}", r"gate\.yaml:2: .*either 'selects' or 'targets'"),
        ("changes:\n- {paths: [a], selects: nothing}", r"gate\.yaml:2: .*needs 'because'"),
        ("changes:\n- {paths: [], selects: image}", r"gate\.yaml:2: changes\.0\.paths: "),
        (
            "changes:\n- {paths: [a], targets: [{images: [kit]}]}",
            r"gate\.yaml:2: .*unknown image 'kit'",
        ),
        (
            "changes:\n- {paths: [a], targets: [{suites: [boot]}]}",
            r"gate\.yaml:2: unknown suite 'boot'",
        ),
        ("changes:\n- {paths: [a], selects: all}", r"gate\.yaml:2: changes\.0\.selects: "),
    ],
)
def test_a_fault_has_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        loaded(tmp_path, text)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        loaded(tmp_path, "suits: []\nimages:\n  kite: {tier: daily}\n")
    assert len(str(caught.value).splitlines()) == 2
