"""Known failures: the file, what an entry matches, and in which runs it occurred."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import CatalogError
from harness.known import Failure, KnownFailures, Subject, load

TODAY = datetime.date(2026, 6, 15)
SKIFF = Subject("skiff", "core", "2", "x86_64")
TEST = "suites/boot/test_live.py::test_boots"
MESSAGE = "harness.errors.PanicError: skiff: Kernel panic - not syncing: VFS: no root"
GOOD = {
    "test": "suites/boot/*",
    "pattern": "not syncing: VFS",
    "tracker": "https://tracker.example/issues/7",
    "owner": "kernel team",
    "added": "2026-06-01",
    "expires": "2026-07-01",
}


def written(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "known.yaml"
    lines = ["known:"]
    for entry in entries:
        keys = {key: value for key, value in (GOOD | entry).items() if value is not None}
        first, *rest = [
            f"{key}: {value if key in ('added', 'expires') else json.dumps(value)}"
            for key, value in keys.items()
        ]
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    path.write_text("\n".join(lines) + "\n")
    return path


def loaded(folder: Path, *entries: dict[str, Any]) -> KnownFailures:
    return load(written(folder, *entries), TODAY)


def failure(test: str = TEST, message: str = MESSAGE, subject: Subject = SKIFF) -> Failure:
    return Failure(test, subject, message)


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"expires": "2026-08-31"}, ":7: known.0.expires: is 91 days after 'added'"),
        ({"expires": "2026-05-31"}, ":7: known.0.expires: is before 'added'"),
        ({"added": "2026-06-20"}, ":6: known.0.added: 2026-06-20 is in the future"),
        ({"pattern": "("}, ":3: known.0.pattern: is no regular expression of RE2: missing )"),
        ({"pattern": "(?=x)y"}, ":3: known.0.pattern: is no regular expression of RE2"),
        ({"pattern": "x*"}, ":3: known.0.pattern: matches every failure"),
        ({"pattern": ".+"}, ":3: known.0.pattern: matches every failure"),
        ({"tracker": "bug 7"}, ":4: known.0.tracker: must be a URL"),
        ({"owner": ""}, ":5: known.0.owner: "),
        ({"owner": None}, ":2: known.0: the key 'owner' is missing"),
        ({"arch": "x86"}, ":8: known.0.arch: unknown arch 'x86'; did you mean x86_64?"),
        ({"image": "skiff:2"}, ":8: known.0.image: must be NAME or NAME/VARIANT"),
        ({"image": "skiff", "versions": "2 or 3"}, ":9: known.0.versions: must be a range"),
        ({"versions": "<3"}, ":8: known.0.versions: needs 'image'"),
        ({"evidence": {"../x": "y"}}, ":8: known.0.evidence.../x: must be a relative path"),
        ({"evidence": {"*/serial.log": "("}}, "known.0.evidence.*/serial.log: is no regular"),
        ({"patern": "x"}, ":8: known.0: unknown key 'patern'; did you mean pattern?"),
    ],
)
def test_a_fault_of_an_entry_has_its_line(
    tmp_path: Path, entry: dict[str, Any], fault: str
) -> None:
    with pytest.raises(CatalogError) as caught:
        loaded(tmp_path, entry)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'known.yaml'}:")


def test_all_faults_are_reported_at_once_and_twins_are_one(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        loaded(tmp_path, {"owner": ""}, {"tracker": "x"})
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(CatalogError, match=r"the same signature as .*:2"):
        loaded(tmp_path, {}, {"owner": "another"})


@pytest.mark.parametrize("text", ["- 1", "known: 1", "known: {a: b}", "[", "more: []"])
def test_another_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "known.yaml").write_text(text)
    with pytest.raises(CatalogError, match=r"known\.yaml:1"):
        load(tmp_path / "known.yaml")


def test_an_empty_file_knows_nothing(tmp_path: Path) -> None:
    for text in ("", "known: []", "{}"):
        (tmp_path / "known.yaml").write_text(text)
        assert not load(tmp_path / "known.yaml").entries


# --- what matches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "matches"),
    [
        ({}, True),
        ({"test": "suites/boot/test_live.py::test_boots"}, True),
        ({"test": "suites/boot/test_live.py::test_boot"}, False),
        ({"test": "suites/install/*"}, False),
        ({"pattern": "not syncing: sysrq"}, False),
        ({"pattern": "(?i)KERNEL PANIC"}, True),
        ({"image": "skiff"}, True),
        ({"image": "skiff/core"}, True),
        ({"image": "skiff/cluster"}, False),
        ({"image": "micro"}, False),
        ({"image": "skiff", "versions": ">=1, <3"}, True),
        ({"image": "skiff", "versions": ">2"}, False),
        ({"arch": "x86_64"}, True),
        ({"arch": "aarch64"}, False),
        # There is no evidence in which it could be found.
        ({"evidence": {"*/serial.log": "VFS"}}, False),
    ],
)
def test_all_of_a_signature_has_to_match(
    tmp_path: Path, entry: dict[str, Any], matches: bool
) -> None:
    known = loaded(tmp_path, entry)
    assert (known.match(failure()) is not None) is matches


def test_a_version_without_an_order_is_in_no_range(tmp_path: Path) -> None:
    known = loaded(tmp_path, {"image": "skiff", "versions": ">=0"})
    assert known.match(failure(subject=Subject("skiff", "core", "2", "x86_64")))
    assert not known.match(failure(subject=Subject("skiff", "core", "broken-root", "x86_64")))


def test_brackets_begin_parameters_and_the_arch_need_not_be_named(tmp_path: Path) -> None:
    known = loaded(tmp_path, {"test": "t.py::test[a-*]"})
    assert known.match(failure("t.py::test[a-b]"))
    assert not known.match(failure("t.py::testa"))
    known = loaded(tmp_path, {"test": "t.py::test"})
    assert known.match(failure("t.py::test[x86_64]"))
    assert not known.match(failure("t.py::test[aarch64]"))


def test_the_evidence_is_searched_at_its_end(tmp_path: Path) -> None:
    known = loaded(tmp_path, {"evidence": {"*/serial.log": "root=PARTUUID"}})
    log = tmp_path / "try/skiff/serial.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * 2_000_000 + b"\xff root=PARTUUID=1")
    assert known.match(Failure(TEST, SKIFF, MESSAGE, tmp_path / "try"))
    log.write_bytes(b"root=PARTUUID=1" + b"x" * 2_000_000)
    assert not known.match(Failure(TEST, SKIFF, MESSAGE, tmp_path / "try"))


def test_no_pattern_hangs_the_run(tmp_path: Path) -> None:
    """Python's re needs more than the age of the universe for this one."""
    known = loaded(tmp_path, {"pattern": "(a+)+(a|aa)+b"})
    assert not known.match(failure(message="a" * 60_000 + "\udcff"))


def test_an_entry_that_holds_is_preferred_to_one_that_has_expired(tmp_path: Path) -> None:
    old = {"added": "2026-04-01", "expires": "2026-06-14"}
    known = loaded(tmp_path, {**old, "pattern": "panic"}, {"expires": "2026-06-15"})
    match = known.match(failure())
    assert match is not None
    assert match.where.endswith("known.yaml:8")
    assert [entry.where for entry in known.expired] == [f"{known.path}:2"]


# --- history ----------------------------------------------------------------------------------


def run_of(folder: Path, began: str, *tests: dict[str, Any], version: str = "2") -> None:
    folder.mkdir(parents=True)
    content = {
        "began": began,
        "image": {"name": "skiff", "variant": "core", "version": version},
        "tests": [{"id": TEST, "arch": "x86_64", "known": None} | test for test in tests],
    }
    (folder / "results.json").write_text(json.dumps(content))


def entries_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    main(["known", "--json", *arguments])
    return list(json.loads(capsys.readouterr().out)["entries"])


def fresh(folder: Path, *entries: dict[str, Any]) -> Path:
    """Write entries that hold today."""
    day = datetime.datetime.now(datetime.UTC).date()
    dates = {"added": str(day), "expires": str(day + datetime.timedelta(days=9))}
    return written(folder, *(dates | entry for entry in entries))


def test_only_runs_in_which_an_entry_could_have_occurred_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh(tmp_path, {"image": "skiff", "versions": ">=2"})
    (entry,) = entries_of(capsys)
    assert (entry["occurred"], entry["without"], entry["last_seen"]) == (0, 0, "")
    runs = tmp_path / ".harness/runs"
    known = {"verdict": "known", "known": {"key": entry["key"]}}
    run_of(runs / "1", "2026-06-01T00:00:00Z", {"verdict": "passed"})
    run_of(runs / "2", "2026-06-02T00:00:00Z", known)
    run_of(runs / "3", "2026-06-03T00:00:00Z", {"verdict": "passed"})
    run_of(runs / "4", "2026-06-04T00:00:00Z", {"verdict": "passed"}, version="1")
    run_of(runs / "5", "2026-06-05T00:00:00Z", {"verdict": "product"})
    run_of(runs / "6", "2026-06-06T00:00:00Z", {"verdict": "passed", "arch": ""})
    run_of(runs / "7", "2026-06-07T00:00:00Z", {"verdict": "passed", "id": "other"})
    run_of(runs / "8", "2026-06-08T00:00:00Z", {"verdict": "passed"})
    (runs / "latest").symlink_to("8")
    (runs / "9").mkdir()
    (runs / "9/results.json").write_text("{")
    (entry,) = entries_of(capsys, "--last", "3")
    assert (entry["occurred"], entry["without"]) == (1, 2)
    assert entry["last_seen"] == "2026-06-02T00:00:00Z"
    assert not entry["unseen"]
    (entry,) = entries_of(capsys, "--last", "2")
    assert entry["unseen"]
    (entry,) = entries_of(capsys, "--runs", str(runs / "2"))
    assert (entry["occurred"], entry["without"]) == (1, 0)
    assert main(["known", "--last", "2"]) == 0
    text = capsys.readouterr().out
    assert "UNSEEN" in text
    assert "1 known failures, 0 expired, 1 unseen; 8 runs looked at" in text


def test_check_fails_for_what_is_wrong_or_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["known", "check"]) == 2
    fresh(tmp_path, {})
    assert main(["known", "check"]) == 0
    written(tmp_path, {"added": "2020-01-01", "expires": "2020-02-01"})
    assert main(["known", "check"]) == 1
    assert "EXPIRED on 2020-02-01" in capsys.readouterr().out
    assert main(["known"]) == 0
    fresh(tmp_path, {"owner": ""})
    assert main(["known", "check"]) == 1
    assert "known.yaml:5: known.0.owner" in capsys.readouterr().err
    assert main(["known"]) == 2
    assert main(["known", "check", "--runs", "nowhere", "--known", "known.yaml"]) == 1
