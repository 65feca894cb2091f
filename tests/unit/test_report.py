"""The report: what it is made of, merged, as text, and as a page that carries its own data."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import random
import re
import zlib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import Project
from harness.cli import main
from harness.errors import UsageError
from harness.evidence.report import blocks, logs, page
from harness.evidence.report.merge import merge
from harness.evidence.report.record import gather
from harness.evidence.report.text import text

EPOCH = 1795250813.0
HOSTILE = "\x1b[31m</script><img src=x onerror=alert(1)>\x1b]0;title\x07\u202e<!-- \r\n"


def a_test(name: str, **facts: Any) -> dict[str, Any]:
    test: dict[str, Any] = {"id": f"suites/boot/test_live.py::{name}", "arch": "x86_64"}
    test["outcome"] = "passed"
    test |= {
        "verdict": "passed",
        "reason": "",
        "seconds": {"call": 1.0},
        "evidence": "",
        "tries": [],
    }
    return test | facts


def a_step(name: str, machine: str, start: float, seconds: float, **facts: Any) -> dict[str, Any]:
    step: dict[str, Any] = {"name": name, "machine": machine, "depth": 0}
    step |= {"start": start, "seconds": seconds}
    return step | {"outcome": "passed", "error": "", "data": {}} | facts


def a_run(root: Path, *tests: dict[str, Any], name: str = "run-2", **facts: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 2,
        "began": "2026-11-29T02:00:00Z",
        "seconds": 61.2,
        "status": 1,
        "command": ["-p", "harness.pytest_plugin", "--acceptance", "suites/boot", "--accel", "tcg"],
        "image": {"reference": "skiff", "name": "skiff", "variant": "core", "version": "1"},
        "arches": {"x86_64": {"inputs": "5e88", "qemu": "10.0.2", "accel": "tcg"}},
        "versions": {"harness": "0.1.0"},
        "host": {"cpus": 2.0, "platform": "Linux"},
        "tests": list(tests),
    }
    (folder / "results.json").write_text(json.dumps(content | facts))
    return folder


def evidence(
    run: Path,
    steps: list[dict[str, Any]],
    *,
    test: str = "it",
    machine: str = "skiff",
    said: str = "hi\r\n",
) -> Path:
    folder = run / test / machine
    folder.mkdir(parents=True)
    timeline = {"title": test, "began": EPOCH, "steps": steps, "findings": []}
    (run / test / "timeline.json").write_text(json.dumps(timeline))
    (folder / "machine.json").write_text(json.dumps({"spec": {"credentials": [["a", "secret"]]}}))
    header = {"version": 2, "width": 80, "height": 24, "timestamp": int(EPOCH)}
    lines: list[object] = [header, [0.5, "o", said], [1.25, "o", "\U0001f600 end\r\n"]]
    (folder / "serial.cast").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def failed(name: str = "test_it", reason: str = "the words", **facts: Any) -> dict[str, Any]:
    facts = {"outcome": "failed", "verdict": "product", "reason": reason, "evidence": "it"} | facts
    return a_test(name, **facts)


def only(record: dict[str, Any]) -> dict[str, Any]:
    ((test,),) = ([run["tests"] for run in record["runs"]],)
    assert len(test) == 1
    result: dict[str, Any] = test[0]
    return result


# --- what a report is made of -----------------------------------------------------------------


def test_the_failed_step_is_the_innermost_with_the_words_of_the_failure(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed(reason="CommandError: the words, and more"))
    evidence(
        run,
        [
            a_step("expected", "skiff", 0, 1, outcome="product", error="as the test wants"),
            a_step("outer", "skiff", 2, 3, outcome="product", error="the words"),
            a_step("inner", "skiff", 3, 1.5, depth=1, outcome="product", error="the words"),
            a_step("host", "skiff", 6, 0),
        ],
    )
    test = only(gather(run))
    assert (test["step"], test["moment"]) == ("inner", 4.5)
    assert [(each["machine"], each["step"]) for each in test["first"]] == [("skiff", "inner")]


def test_a_command_whose_status_fails_the_test_is_its_step(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed(reason="CommandError: 'false' ended with status 1 on skiff"))
    evidence(run, [a_step("run: false", "skiff", 1, 0.25, data={"status": 1})])
    assert (only(gather(run))["step"], only(gather(run))["moment"]) == ("run: false", 1.25)


def test_without_a_failed_step_the_moment_is_where_the_machines_were_stopped(
    tmp_path: Path,
) -> None:
    run = a_run(tmp_path, failed(reason="AssertionError"))
    evidence(run, [a_step("run: id", "skiff", 1, 1), a_step("host", "skiff", 7, 0)])
    test = only(gather(run))
    assert (test["step"], test["moment"], test["first"]) == ("", 7.0, [])


def test_the_first_failures_of_machines_are_on_one_clock(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed(reason="b stopped"))
    evidence(
        run,
        [
            a_step("join", "b", 1, 8, outcome="product", error="b stopped"),
            a_step("vote", "a", 2, 3, outcome="timeout", error="no leader"),
        ],
    )
    test = only(gather(run))
    assert test["clock"] == EPOCH
    assert [(each["machine"], each["end"]) for each in test["first"]] == [("a", 5.0), ("b", 9.0)]


def test_what_harness_does_after_the_failure_hides_none(tmp_path: Path) -> None:
    """A machine that is saved, and whose journal is read, has not gone on with the test."""
    after = [
        a_step("save for the bundle", "a", 9, 2),
        a_step("save for the bundle", "b", 11, 2),
        a_step("read the journal", "a", 13, 1),
        a_step("save for the bundle", "c", 14, 1, outcome="infra", error="it hangs"),
        a_step("host", "b", 15, 0),
    ]
    run = a_run(tmp_path, failed(reason="b stopped"))
    evidence(
        run,
        [
            a_step("vote", "a", 2, 3, outcome="timeout", error="no leader"),
            a_step("join", "b", 1, 8, outcome="product", error="b stopped"),
            *after,
        ],
    )
    assert [each["machine"] for each in only(gather(run))["first"]] == ["a", "b"]
    other = a_run(tmp_path, failed(reason="AssertionError"), name="20261129-020000-2")
    evidence(other, [a_step("run: id", "a", 1, 1), *after])
    assert only(gather(other))["moment"] == 9.0


def test_credentials_stay_out(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [])
    record = gather(run)
    assert only(record)["detail"]["machines"][0]["name"] == "skiff"
    assert "secret" not in json.dumps(record)


def test_evidence_outside_of_the_run_is_not_read(tmp_path: Path) -> None:
    evidence(tmp_path, [])
    run = a_run(tmp_path, failed(evidence="../it"))
    assert only(gather(run))["detail"] is None


def test_the_line_that_repeats_has_the_options_of_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed("test_it[a b]"))
    (line,) = only(gather(run))["repeat"]
    want = "harness acceptance 'suites/boot/test_live.py::test_it[a b]' --image skiff --arch x86_64"
    assert line == f"{want} --accel tcg --keep"


def test_a_bundle_comes_before_the_test(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [])
    (run / "it" / "bundle.tar.zst").touch()
    lines = only(gather(run))["repeat"]
    assert [line.split()[1] for line in lines] == ["repro", "resurrect", "acceptance"]


def test_the_last_good_run_is_compared_with_the_first_bad_one(tmp_path: Path) -> None:
    def arches(qemu: str, kernel: str) -> dict[str, Any]:
        return {"x86_64": {"inputs": "5e88", "qemu": qemu, "packages": {"linux": kernel}}}

    good, bad = arches("9.2.0", "6.11"), arches("10.0.2", "6.12")
    at = "2026-11-{}T02:00:00Z".format
    a_run(tmp_path, a_test("test_it"), name="good", began=at(26), arches=good)
    a_run(tmp_path, failed(), name="bad", began=at(27), arches=bad)
    a_run(tmp_path, a_test("test_other"), name="without", began=at(28), arches=good)
    a_run(tmp_path, a_test("test_it"), name="later", began=at(30), arches=good)
    run = a_run(tmp_path, failed(), began=at(29), arches=bad)
    change = only(gather(run))["change"]
    assert (change["good"]["name"], change["bad"]["name"]) == ("good", "bad")
    assert change["facts"] == [["package linux", "6.11", "6.12"], ["qemu", "9.2.0", "10.0.2"]]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"tests": 3}'])
def test_damaged_results_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    assert main(["report", str(tmp_path)]) in (2, 3)


@pytest.mark.parametrize("name", ["timeline.json", "skiff/machine.json", "skiff/serial.cast"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b"null\n[[]]\n"])
def test_damaged_evidence_is_left_out(tmp_path: Path, name: str, content: bytes) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [a_step("start", "skiff", 0, 1)])
    (run / "it" / name).write_bytes(content)
    assert only(gather(run))["verdict"] == "product"


# --- logs -------------------------------------------------------------------------------------


def test_chunks_count_what_a_browser_counts(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [])
    (log,) = only(gather(run))["detail"]["logs"]
    assert log["text"] == "hi\r\n\U0001f600 end\r\n"
    assert (log["start"], log["chunks"]) == (500, [0, 4, 750, 8])


def test_a_long_log_keeps_its_head_and_its_tail_and_says_so(tmp_path: Path) -> None:
    folder = evidence(a_run(tmp_path, failed()), [])
    with (folder / "serial.cast").open("a") as cast:
        for second in range(1600):
            cast.write(json.dumps([second + 2, "o", f"{second} " + "x" * 2**16 + "\r\n"]) + "\n")
        cast.write(json.dumps([2000, "o", "the last words\r\n"]) + "\n")
    log = logs.console(folder, "skiff", "skiff", EPOCH)
    assert log is not None
    assert log["text"].startswith("hi\r\n")
    assert log["text"].endswith("the last words\r\n")
    assert re.search(
        r"\[\.\.\. \d+\.\d MiB are left out here; skiff/serial.cast has them", log["text"]
    )
    assert len(log["text"]) < logs.HEAD + logs.TAIL
    assert log["omitted"] > 90 * 2**20


def test_a_file_without_a_line_end_is_cut_as_well(tmp_path: Path) -> None:
    (tmp_path / "qemu.stderr").write_bytes(b"\xff" * 3 * 2**20)
    log = logs.plain(tmp_path / "qemu.stderr", "skiff", "file", "skiff", EPOCH)
    assert log is not None
    assert len(log["text"]) < logs.HEAD + logs.TAIL + 200
    assert log["omitted"] == 2 * 2**20


def test_each_kind_of_an_entry_has_its_words(tmp_path: Path) -> None:
    ssh = [
        {"t": EPOCH, "connect": "root", "tries": 2, "seconds": 0.5},
        {
            "t": EPOCH + 1,
            "run": "id",
            "status": 3,
            "seconds": 0.5,
            "stdout": "out\n",
            "stderr": "err",
        },
        {"t": EPOCH + 2, "run": "x", "error": "the connection was lost"},
        {"t": EPOCH + 3, "sftp": "/a to b", "seconds": 1},
    ]
    (tmp_path / "ssh.jsonl").write_text("\n".join(map(json.dumps, ssh)) + '\n{"t": 1\n')
    log = logs.ssh(tmp_path / "ssh.jsonl", "skiff", "skiff", EPOCH)
    assert log is not None
    assert log["text"].splitlines() == [
        "connected as root at try 2, 0.50 s",
        "$ id  [status 3, 0.50 s]",
        *("out", "", "err"),
        "$ x  [the connection was lost]",
        "sftp: /a to b  [1.00 s]",
        '{"t": 1',
    ]
    qmp = [
        {"t": EPOCH, "send": {"execute": "cont"}},
        {"t": EPOCH, "receive": {"event": "RESET", "data": {"guest": True}}},
        {"t": EPOCH, "receive": {"return": {}}},
    ]
    (tmp_path / "qmp.jsonl").write_text("\n".join(map(json.dumps, qmp)))
    log = logs.qmp(tmp_path / "qmp.jsonl", "skiff", "skiff", EPOCH)
    assert log is not None
    assert log["text"].splitlines() == ["> cont", 'RESET {"guest": true}', "<"]


def test_the_faults_of_a_network_are_on_the_clock(tmp_path: Path) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [])
    entries: list[dict[str, Any]] = [
        {"do": "cut", "links": [["a", "b"], ["b", "a"]], "flapping": None, "fault": 3},
        {"do": "impair", "links": [["a", "b"]], "impairment": {"loss": 0.5}},
        {"do": "heal", "fault": 3},
        {"do": "heal", "fault": None},
    ]
    (run / "it/segment-lan").mkdir()
    lines = [json.dumps({"t": EPOCH + number, **entry}) for number, entry in enumerate(entries)]
    (run / "it/segment-lan/faults.jsonl").write_text("\n".join(lines))
    *_, log = only(gather(run))["detail"]["logs"]
    assert (log["machine"], log["source"], log["start"]) == ("segment-lan", "network", 0)
    assert log["text"].splitlines() == [
        "cut fault 3 a -> b, b -> a",
        'impair a -> b {"loss": 0.5}',
        "heal fault 3",
        "heal all faults",
    ]


# --- merging ----------------------------------------------------------------------------------


def shards(root: Path) -> list[dict[str, Any]]:
    records = []
    for number in range(4):
        run = a_run(root, failed(f"test_{number}"), name=f"run-{number}", seconds=number)
        evidence(run, [a_step("start", "skiff", 0, 1)])
        records.append(gather(run))
    return records


def test_merging_is_associative_commutative_and_idempotent(tmp_path: Path) -> None:
    records = shards(tmp_path)
    whole = page.page(merge(records))
    for order in itertools.permutations(records):
        assert page.page(functools.reduce(lambda a, b: merge([a, b]), order)) == whole
    a, b, c, d = records
    assert page.page(merge([merge([a, b]), merge([c, merge([d, a])]), b])) == whole
    assert page.page(merge([merge(records), merge(records)])) == whole


def test_a_run_counts_once_with_its_evidence(tmp_path: Path) -> None:
    (first, *_) = shards(tmp_path)
    bare = json.loads(json.dumps(first))
    bare["runs"][0]["tests"][0]["detail"] = None
    assert merge([first, bare]) == merge([bare, first]) == merge([first])


def test_pages_merge_as_folders_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    folders = [str(tmp_path / f"run-{number}") for number in range(4)]
    assert main(["report", *folders]) == 0
    pages = capsys.readouterr().out.splitlines()
    assert pages == [f"{folder}/report.html" for folder in folders]
    assert main(["report", "--merge", str(tmp_path / "some.html"), *pages[:2]]) == 0
    rest = [str(tmp_path / "some.html"), *reversed(pages), folders[3]]
    assert main(["report", "--merge", str(tmp_path / "a.html"), *rest]) == 0
    assert main(["report", "--merge", str(tmp_path / "b.html"), *folders]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


# --- text -------------------------------------------------------------------------------------


def test_the_text_has_the_worst_first_and_no_escape(tmp_path: Path) -> None:
    run = a_run(
        tmp_path,
        a_test("test_good"),
        failed("test_slow", verdict="timeout", reason="waited"),
        failed("test_bad", reason=f"said {HOSTILE}" + "x" * 5000),
    )
    evidence(run, [a_step("wait", "skiff", 0, 2, outcome="timeout", error="waited")])
    shown = text(gather(run))
    assert shown.splitlines()[0] == "run-2  skiff 1 (core)  61 s  1 product, 1 timeout, 1 passed"
    assert shown.index("test_bad") < shown.index("test_slow")
    assert "test_good" not in shown
    assert "  step      wait, 2.00 s after the start of the test" in shown
    assert not [char for char in shown if not char.isprintable() and char != "\n"]
    assert max(map(len, shown.splitlines())) < 500


def test_a_known_failure_names_its_entry(tmp_path: Path) -> None:
    entry = {"key": "K", "entry": "known.yaml:3", "tracker": "BUG-7", "owner": "ann"}
    entry |= {"expires": "2026-12-24"}
    run = a_run(tmp_path, failed(verdict="known", known={**entry, "expired": False}))
    assert "  known     BUG-7, ann, expires 2026-12-24\n" in text(gather(run))


def test_the_json_has_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, failed())
    evidence(run, [])
    assert main(["report", "--json", str(run)]) == 0
    (test,) = json.loads(capsys.readouterr().out)["runs"][0]["tests"]
    assert test["verdict"] == "product"
    assert "detail" not in test


def test_a_run_without_results_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2


# --- the page ---------------------------------------------------------------------------------


class Elements(HTMLParser):
    """What a browser makes of a page: its elements, and the texts of scripts and styles."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], data))


def hostile(root: Path) -> Path:
    run = a_run(root, failed(f"test_it[{HOSTILE}]", reason=HOSTILE))
    folder = evidence(run, [a_step(HOSTILE, "skiff", 0, 1, error=HOSTILE)], said=HOSTILE)
    (folder / "qemu.stderr").write_bytes(b"\xff\x00" + HOSTILE.encode())
    return run


def test_nothing_of_a_guest_is_markup(tmp_path: Path) -> None:
    whole = Elements(page.page(gather(hostile(tmp_path))))
    plain = Elements(page.page(gather(a_run(tmp_path / "plain", a_test("test_it")))))
    blocks_of = [attrs for tag, attrs in whole.elements if attrs.get("id", "") == "block-0"]
    assert len(blocks_of) == 1
    tags = [tag for tag, attrs in whole.elements if attrs.get("id", "") != "block-0"]
    assert tags == [tag for tag, _ in plain.elements]


def test_the_policy_names_the_scripts_and_styles_and_allows_no_request(tmp_path: Path) -> None:
    content = page.page(gather(hostile(tmp_path)))
    elements = Elements(content)
    (policy,) = [
        attrs["content"] or ""
        for tag, attrs in elements.elements
        if tag == "meta" and "http-equiv" in attrs
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    assert rules["default-src"] == ["'none'"]

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    code = re.search(r'<script type="module">(.*?)</script>', content, re.S)
    style = re.search(r"<style>(.*?)</style>", content, re.S)
    assert code is not None
    assert style is not None
    stored = {
        name: zlib.decompress(base64.b64decode(block)).decode()
        for name, block in re.findall(r'id="block-(player|style)">([^<]*)<', content)
    }
    assert rules["script-src"] == [digest(code[1]), digest(stored["player"]), "'wasm-unsafe-eval'"]
    assert rules["style-src"] == [digest(style[1]), digest(stored["style"])]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", content)
    assert not [
        attrs for _, attrs in elements.elements if {"src", "href", "style"} & set(attrs)
    ] or [attrs["href"] for _, attrs in elements.elements if "href" in attrs] == ["#main"]


def test_the_pages_script_parses_no_html() -> None:
    source = resources.files("harness.evidence.report")
    code = "".join(source.joinpath(name).read_text() for name in page.SCRIPTS)
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser|srcdoc"
    )
    assert re.findall(banned, code) == []
    assert "</script" not in code
    assert all(len(source.joinpath(name).read_text().splitlines()) <= 600 for name in page.SCRIPTS)


def test_a_page_gives_its_record_back(tmp_path: Path) -> None:
    record = merge([*shards(tmp_path), gather(hostile(tmp_path / "hostile"))])
    page.write(record, tmp_path / "report.html")
    assert page.read(tmp_path / "report.html") == record


def test_any_text_is_stored_and_read_back(tmp_path: Path) -> None:
    rng = random.Random(4)
    alphabet = [
        "[    1.000001] ",
        "[12345.678901] ",
        "[99999999999.000000] ",
        "\0",
        "\1",
        "\n",
        "\r",
    ]
    alphabet += [
        "a longer line\n",
        "[    0.000000] a longer line\n",
        "[  0.000000] ",
        "[    2.5] x",
    ]
    alphabet += ["é", "ab"]
    record = merge(shards(tmp_path))
    for _ in range(300):
        for run in record["runs"]:
            run["tests"][0]["detail"]["logs"][0]["text"] = "".join(
                rng.choices(alphabet, k=rng.randrange(40))
            )
        assert blocks.decode(blocks.encode(record)) == record


def test_a_line_of_several_tests_is_stored_once() -> None:
    rng = random.Random(4)
    said = ["".join(rng.choices("abcdefghij ", k=60)) for _ in range(2000)]

    def record(count: int) -> dict[str, Any]:
        tests = []
        for number in range(count):
            stamps = (
                f"[{at // 10:5}.{at * 7919 * (number + 1) % 1000000:06}] " for at in range(2000)
            )
            lines = "\r\n".join(map("".join, zip(stamps, said, strict=True)))
            tests.append({"id": str(number), "detail": {"logs": [{"text": lines}]}})
        return {"format": 1, "runs": [{"tests": tests}]}

    def size(count: int) -> int:
        return sum(map(len, blocks.encode(record(count)).values()))

    assert size(12) - size(2) < 10 * size(1) / 5


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_page_is_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = page.page(gather(hostile(tmp_path)))
    begin = content.index('id="block-index"')
    at = rng.randrange(begin, content.index('id="block-player"'))
    damaged = tmp_path / "damaged.html"
    damaged.write_text(
        content[:at] if seed % 2 else content[:at] + rng.choice("A</\0") + content[at + 1 :]
    )
    try:
        page.read(damaged)
    except UsageError as error:
        assert "is no report" in str(error)


def damaged(value: Any, rng: random.Random) -> Any:
    """Return JSON with one value somewhere taken away, or replaced by another one."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        rest = {key: each for key, each in value.items() if key != name}
        return rest if rng.random() < 0.15 else rest | {name: damaged(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], damaged(value[place], rng), *value[place + 1 :]]
    return rng.choice([None, -1, 1e308, "x", [], {}, "\ud800", True, [[]], 10**400, float("nan")])


def test_a_forged_index_is_refused_or_shown(tmp_path: Path) -> None:
    rng = random.Random(4)
    stored = blocks.encode(gather(hostile(tmp_path)))
    index = json.loads(zlib.decompress(base64.b64decode(stored["index"])))
    shown = 0
    for _ in range(1000):
        forged = zlib.compress(json.dumps(damaged(index, rng)).encode())
        try:
            record = blocks.decode(stored | {"index": base64.b64encode(forged).decode()})
        except ValueError:
            continue
        assert page.page(merge([record]))
        assert isinstance(text(record), str)
        shown += 1
    assert 0 < shown < 1000


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    bomb = base64.b64encode(zlib.compress(b"[" + b" " * (blocks.LARGEST + 1) + b"]", 9)).decode()
    content = page.page(gather(hostile(tmp_path)))
    (tmp_path / "bomb.html").write_text(
        re.sub(r'id="block-lines">[^<]*<', f'id="block-lines">{bomb}<', content)
    )
    with pytest.raises(UsageError, match="too large"):
        page.read(tmp_path / "bomb.html")


def test_the_player_is_the_one_that_its_record_names() -> None:
    folder = resources.files("harness.evidence.report").joinpath(page.PLAYER)
    record = json.loads(folder.joinpath("player.json").read_text())
    assert record["license"] == "Apache-2.0"
    for name, file in record["files"].items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == file["sha256"], (
            name
        )
    assert folder.joinpath("LICENSE.solid-js").is_file()


def test_a_run_that_kept_evidence_ends_with_its_report(project: Project) -> None:
    project.write("test_it.py", "def test_it(lab):\n    lab.folder\n    assert not lab\n")
    result = project.pytest("-q", "--image", "micro", "--acceptance", "test_it.py")
    written = project.folder.resolve() / ".harness/runs/latest" / page.FILE
    assert f"report: {written.resolve()}\n" in result.text
    assert only(page.read(written))["verdict"] == "product"


def test_a_report_that_fails_changes_no_result(project: Project) -> None:
    broken = "from harness.evidence.report import page\npage.SCRIPTS = ('none.js',)\n"
    project.write("test_it.py", f"{broken}def test_it(lab):\n    lab.folder\n    assert not lab\n")
    result = project.pytest("-q", "--image", "micro", "--acceptance", "test_it.py")
    assert result.status == 1, result.text
    assert "report: none, because of StoreError" in result.text


def test_a_folder_of_runs_is_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the artifacts of a gate lie; a job that was killed may have left results that are cut off."""
    shards(tmp_path / "results")
    folders = [str(tmp_path / "results" / f"run-{number}") for number in range(4)]
    assert main(["report", "--merge", str(tmp_path / "a.html"), *folders]) == 0
    (tmp_path / "results" / "killed").mkdir()
    (tmp_path / "results" / "killed" / "results.json").write_text('{"format": 2, "tes')
    (tmp_path / "results" / "latest").symlink_to("run-3")
    assert main(["report", "--merge", str(tmp_path / "b.html"), str(tmp_path / "results")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert "left out" in capsys.readouterr().err
