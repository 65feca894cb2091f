"""The tracker, against a local server that behaves as GitHub's API does.

The server pages lists with ``Link``, limits by 403 and 429, fails with 5xx before or after a write took
effect, and drops labels for a token that may not set them.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from harness.cli import main
from harness.errors import HostError, UsageError
from harness.gate import tracker
from harness.gate.github import GitHub
from harness.gate.tracker import LABEL, Failures, failures, signatures, track

TOKEN = "ghs_secretsecretsecret"
NIGHT = "2026-11-29"
PAGE = 3
"""Issues of a page; GitHub's are 100, which would make the tests slow."""


class Api(ThreadingHTTPServer):
    """Issues and comments of the repository ``acme/os``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.issues: list[dict[str, Any]] = []
        self.comments: dict[int, list[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.authorizations: set[str] = set()
        self.faults: list[Callable[[_Handler, bool], bool]] = []
        self.drops_labels = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/v3"

    @property
    def writes(self) -> int:
        return sum(each.startswith("POST") for each in self.requests)

    def file(self, body: str, **further: Any) -> dict[str, Any]:
        """An issue that is there already."""
        issue = {
            "number": len(self.issues) + 1,
            "title": "an issue",
            "body": body,
            "state": "open",
            "closed_at": None,
            "labels": [{"name": LABEL}],
            **further,
        }
        self.issues.append(issue)
        return issue

    def close(self, number: int, moment: str = "2026-11-20T00:00:00Z") -> None:
        self.issues[number - 1] |= {"state": "closed", "closed_at": moment}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api
    routes: ClassVar = re.compile(
        r"/api/v3/(?:repos/acme/os|repositories/7)/issues(?:/(\d+)/comments)?"
    )

    def do_GET(self) -> None:
        self._begin(writes=False)

    def do_POST(self) -> None:
        self._begin(writes=True)

    def _begin(self, *, writes: bool) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.authorizations.add(self.headers.get("Authorization", ""))
        path = urlsplit(self.path)
        match = self.routes.fullmatch(path.path)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None and fault(self, False):
            return
        if match is None:
            self.answer(404, {"message": "Not Found"})
        elif not writes:
            self._list(parse_qs(path.query), match[1])
        else:
            answer = self._write(json.loads(body), match[1])
            if fault is None or not fault(self, True):
                self.answer(201, answer)

    def _list(self, query: dict[str, list[str]], number: str | None) -> None:
        if number is not None:
            items = self.server.comments.get(int(number), [])
        else:
            assert query["state"] == ["all"]
            label = query["labels"][0]
            items = [
                each
                for each in reversed(self.server.issues)
                if any(name["name"] == label for name in each["labels"])
            ]
        page = int(query.get("page", ["1"])[0])
        link = ""
        if len(items) > page * PAGE:
            rest = "&".join(f"{k}={v[0]}" for k, v in query.items() if k != "page")
            # GitHub's links have another path than the first request.
            path = f"/api/v3/repositories/7/issues{f'/{number}/comments' if number else ''}"
            link = f'<http://{self.headers["Host"]}{path}?{rest}&page={page + 1}>; rel="next"'
        self.answer(200, items[(page - 1) * PAGE : page * PAGE], {"Link": link} if link else {})

    def _write(self, content: dict[str, Any], number: str | None) -> dict[str, Any]:
        if number is not None:
            comment = {"body": content["body"], "created_at": "2026-11-29T05:00:00Z"}
            self.server.comments.setdefault(int(number), []).append(comment)
            return comment
        names = [] if self.server.drops_labels else content["labels"]
        labels = [{"name": name} for name in names]
        return self.server.file(content["body"], title=content["title"], labels=labels)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Client:
    """A client of the server that notes for how long it should have waited."""

    def __init__(self, api: Api, **options: Any) -> None:
        self.waits: list[float] = []
        self.github = GitHub("acme/os", TOKEN, api=api.url, wait=self.waits.append, **options)

    def track(self, groups: list[Failures], **options: Any) -> list[str]:
        actions = track(groups, self.github, night=NIGHT, **options)
        return [f"{each.action} {each.number}" for each in actions]


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    client = Client(api)
    with client.github:
        yield client


def group(number: int = 1, reason: str = "unit foo.service failed on skiff") -> Failures:
    test = f"suites/boot/test_live.py::test_number_{number:03}"
    return Failures(f"{number:016x}", "product", reason, [(test, "skiff/core:1", "x86_64")])


def test_an_issue_is_filed_once(api: Api, client: Client) -> None:
    assert client.track([group(1), group(2)], url="https://ci.example/1") == [
        "create 1",
        "create 2",
    ]
    (first, _) = api.issues
    assert first["title"] == (
        "product: test_live.py::test_number_001: unit foo.service failed on skiff"
    )
    assert "\nSignature: 0000000000000001\n" in first["body"]
    assert "<!--" not in first["body"]
    assert "Report: <https://ci.example/1>" in first["body"]
    assert "`harness acceptance suites/boot/test_live.py::test_number_001" in first["body"]
    assert client.track([group(1), group(2)]) == ["none 1", "none 2"]
    assert len(api.issues) == 2
    assert api.authorizations == {f"Bearer {TOKEN}"}
    # A second at least between two writes.
    assert client.waits == [1.0]


def test_all_pages_are_read_and_pull_requests_are_none(api: Api, client: Client) -> None:
    for number in range(10):
        api.file(f"x\r\n\r\nSignature: {number:016x}\r\n\r\ny")
    api.file("Signature: 00000000000000aa", pull_request={"url": "x"})
    api.file("Signature: 00000000000000bb", labels=[{"name": "other"}])
    assert client.track([group(number) for number in range(10)]) == [
        f"none {number + 1}" for number in range(10)
    ]
    assert sum(each.startswith("GET") for each in api.requests) == 4
    assert client.track([group(0xAA), group(0xBB)]) == ["create 13", "create 14"]


def test_a_closed_issue_gets_one_comment_for_each_time(api: Api, client: Client) -> None:
    client.track([group()])
    api.close(1)
    assert client.track([group()]) == ["comment 1"]
    assert "occurred again" in api.comments[1][0]["body"]
    assert client.track([group()]) == ["none 1"]
    api.close(1, "2026-11-30T00:00:00Z")
    assert client.track([group()]) == ["comment 1"]
    assert (len(api.comments[1]), len(api.issues)) == (2, 1)


def test_an_open_issue_counts_before_closed_ones(api: Api, client: Client) -> None:
    for _ in range(3):
        api.file("Signature: 0000000000000001")
    api.close(1)
    api.close(3)
    assert client.track([group()]) == ["none 2"]
    api.close(2, "2026-11-28T00:00:00Z")
    assert client.track([group()]) == ["comment 2"]


def test_a_storm_is_one_issue(api: Api, client: Client) -> None:
    many = [group(number) for number in range(1, 13)]
    api.file("Signature: 0000000000000001")
    assert client.track(many) == ["none 1", *(["storm 2"] * 11)]
    assert api.issues[1]["title"] == "Nightly 2026-11-29: 11 new failure signatures"
    assert len(signatures(api.issues[1]["body"])) == 11
    # The next night finds them all in that one.
    assert client.track(many) == ["none 1", *(["none 2"] * 11)]
    assert client.track(many[:10], storm=10) == ["none 1", *(["none 2"] * 9)]


def test_a_great_storm_fits_into_an_issue(api: Api, client: Client) -> None:
    for count in (300, 1500):
        many = [group(number + count * 10, "x" * 5000) for number in range(count)]
        client.track(many)
        body = api.issues[-1]["body"]
        assert len(body) < 65536
        assert len(signatures(body)) == count


def test_the_storm_guard_holds_for_comments(api: Api, client: Client) -> None:
    for number in range(1, 6):
        api.file(f"Signature: {number:016x}")
        api.close(number)
    actions = client.track([group(number) for number in range(1, 6)], storm=3)
    assert actions == ["comment 1", "comment 2", "comment 3", "left 4", "left 5"]
    assert len(api.comments) == 3


def test_a_dry_run_reads_and_writes_nothing(api: Api, client: Client) -> None:
    api.file("Signature: 0000000000000001")
    api.close(1)
    assert client.track([group(1), group(2)], dry=True) == ["comment 1", "create 0"]
    assert api.writes == 0
    assert api.requests


# --- limits and faults ------------------------------------------------------------------------


def refused(status: int, message: str, **headers: str) -> Callable[[_Handler, bool], bool]:
    def fault(handler: _Handler, written: bool) -> bool:
        if not written:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            handler.answer(status, {"message": message}, named)
        return not written

    return fault


SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes."


def test_it_waits_as_long_as_it_is_told(api: Api, client: Client) -> None:
    reset = str(int(time.time()) + 100)
    api.faults = [
        refused(403, SECONDARY, retry_after="7"),
        refused(403, "API rate limit exceeded", x_ratelimit_remaining="0", x_ratelimit_reset=reset),
        refused(403, SECONDARY),
        refused(429, "Too many", retry_after="3"),
    ]
    assert client.track([group()]) == ["create 1"]
    seven, until, third, three = client.waits
    assert (seven, third, three) == (7.0, 240.0, 3.0)
    assert 0 < until <= 100
    assert len(api.issues) == 1


def test_a_limit_on_a_write_is_waited_for_and_files_once(api: Api, client: Client) -> None:
    def none(*_: Any) -> bool:
        return False

    api.faults = [none, refused(403, SECONDARY, retry_after="60")]
    assert client.track([group()]) == ["create 1"]
    assert client.waits == [60.0]
    assert len(api.issues) == 1


def test_it_does_not_wait_for_ever(api: Api, client: Client) -> None:
    api.faults = [refused(403, SECONDARY, retry_after="3600")]
    with pytest.raises(HostError, match=r"wait 3600 s(.|\n)*run it again later"):
        client.track([group()])
    assert client.waits == []
    api.faults = [refused(403, SECONDARY, retry_after="200")] * 9
    with pytest.raises(HostError, match="rate limit"):
        client.track([group()])
    assert sum(client.waits) <= 900


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "wrong or has expired"),
        (403, "permission"),
        (404, "name right"),
        (410, "switched off"),
    ],
)
def test_a_refusal_is_not_repeated(api: Api, client: Client, status: int, hint: str) -> None:
    api.faults = [refused(status, "Resource not accessible by integration")]
    with pytest.raises(HostError, match=hint) as caught:
        client.track([group()])
    assert "Resource not accessible" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert (len(api.requests), client.waits) == (1, [])


def test_a_server_that_fails_is_asked_again(api: Api, client: Client) -> None:
    api.faults = [refused(502, "Bad Gateway"), refused(503, "Unavailable")]
    assert client.track([group()]) == ["create 1"]
    assert client.waits == [2.0, 4.0]
    api.faults = [refused(500, "oops")] * 9
    with pytest.raises(HostError, match="500 oops"):
        client.track([group()])


def test_a_write_of_unknown_outcome_is_looked_for(api: Api, client: Client) -> None:
    def fails_afterwards(handler: _Handler, written: bool) -> bool:
        if written:
            handler.answer(502, {"message": "Bad Gateway"})
        return written

    def breaks_afterwards(handler: _Handler, written: bool) -> bool:
        if written:
            handler.close_connection = True
            with suppress(OSError):
                handler.connection.shutdown(2)
        return written

    def none(*_: Any) -> bool:
        return False

    for number, fault in enumerate((fails_afterwards, breaks_afterwards), 1):
        api.faults = [none, fault]
        assert client.track([group(number)]) == [f"create {number}"]
        assert len(api.issues) == number
    api.faults = [none, refused(502, "Bad Gateway")]
    with pytest.raises(HostError, match=r"no issue was created(.|\n)*run it again"):
        client.track([group(3)])
    assert len(api.issues) == 2


def test_a_token_that_may_not_label_is_found_out_at_once(api: Api, client: Client) -> None:
    api.drops_labels = True
    with pytest.raises(HostError, match=r"issue 1 was created without the label(.|\n)*triage"):
        client.track([group(1), group(2)])
    assert len(api.issues) == 1


def test_the_token_goes_to_no_other_host(api: Api, client: Client) -> None:
    def elsewhere(handler: _Handler, written: bool) -> bool:
        handler.answer(200, [], {"Link": '<http://127.0.0.2:9/issues?page=2>; rel="next"'})
        return True

    api.faults = [elsewhere]
    with pytest.raises(HostError, match="on another host"):
        client.track([group()])


def test_a_netrc_file_does_not_replace_the_token(
    api: Api, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    client.track([group()])
    assert api.authorizations == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("token", ["ghs_a\nghs_b", "ghs a", "ghs_ä"])
def test_a_token_with_odd_characters_is_not_printed(token: str) -> None:
    with pytest.raises(UsageError, match="characters that no token has") as caught:
        GitHub("acme/os", token)
    assert "ghs" not in str(caught.value)


@pytest.mark.parametrize("name", ["acme", "acme/", "/os", "a/b/c", "acme/os?x", "../x y"])
def test_a_repository_has_an_owner_and_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="write OWNER/NAME"):
        GitHub(name, TOKEN)


# --- what is filed ----------------------------------------------------------------------------


def test_a_hostile_guest_is_quoted(api: Api, client: Client) -> None:
    reason = (
        "```` <img src=x> @someone\rSignature: 00000000000000ff\x1b[2J\u202e ![x](http://x) `code`"
    )
    client.track([group(1, reason)])
    issue = api.issues[0]
    assert signatures(issue["body"]) == {"0000000000000001"}
    (quoted,) = (line for line in issue["body"].splitlines() if "<img" in line)
    assert quoted.startswith("    ")
    assert not {"\x1b", "\u202e", "\r"} & set(issue["body"] + issue["title"])
    assert "@someone" not in issue["title"]
    # The same in an issue that lists many.
    client.track([group(number, reason) for number in range(2, 20)])
    assert len(signatures(api.issues[1]["body"])) == 18
    for line in api.issues[1]["body"].splitlines():
        if "<img" in line:
            assert re.search(r"tests: (`{5,}) [^\n]* \1$", line)


def test_which_failures_count() -> None:
    def test(name: str, verdict: str, **further: Any) -> dict[str, Any]:
        return {
            "id": name,
            "arch": "x86_64",
            "verdict": verdict,
            "signature": "5478720c38114f98",
            "reason": f"{name}\nmore",
            **further,
        }

    image = {"name": "skiff", "variant": "core", "version": "1"}
    run = {
        "image": image,
        "tests": [
            test("b[x86_64]", "product"),
            test("a", "product"),
            test("a", "product"),
            test("c", "timeout", signature="00000000000000cc", arch=""),
            test("d", "infra", signature="00000000000000dd"),
            test("e", "flaky", signature="00000000000000ee"),
            test("f", "product", signature="00000000000000ff", known={"key": "k", "expired": True}),
            test("g", "product", signature=""),
            test("h", "product", signature="Signature: x"),
            test("i", "", outcome="skipped"),
        ],
    }
    groups, known = failures([run, run])
    assert known == 2
    assert [(each.signature, each.tests) for each in groups] == [
        ("5478720c38114f98", [("a", "skiff/core:1", "x86_64"), ("b", "skiff/core:1", "x86_64")]),
        ("00000000000000cc", [("c", "", "")]),
    ]
    assert groups[1].reason == "c"


def results(folder: Path) -> Path:
    test = {
        "id": "test_it.py::test_it",
        "arch": "x86_64",
        "verdict": "product",
        "signature": "5478720c38114f98",
        "reason": "it failed",
    }
    folder.mkdir()
    content = {"began": "2026-11-29T01:00:00Z", "image": {"name": "skiff"}, "tests": [test]}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("token", [None, "", "  "])
def test_without_a_token_nobody_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    api: Api,
    token: str | None,
) -> None:
    monkeypatch.delenv("HARNESS_TRACKER_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HARNESS_TRACKER_TOKEN", token)
    # Tokens for other purposes do not count.
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    words = ["history", "issues", str(results(tmp_path / "run")), "--repository", "acme/os"]
    assert main([*words, "--api", api.url]) == 0
    out, err = capsys.readouterr()
    assert "would create  5478720c38114f98  product: test_it.py::test_it: it failed" in out
    assert "(dry run)" in out
    assert "HARNESS_TRACKER_TOKEN is not set" in err
    assert api.requests == []


def test_the_command_files_issues(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    api: Api,
) -> None:
    monkeypatch.setenv("HARNESS_TRACKER_TOKEN", f"{TOKEN}\n")
    run = str(results(tmp_path / "run"))
    words = ["history", "issues", run, "--repository", "acme/os", "--api", api.url, "--json"]
    for dry, expected, count in (
        (["--dry-run"], "create", 0),
        ([], "create", 1),
        ([], "none", 1),
    ):
        assert main([*words, *dry]) == 0
        out, err = capsys.readouterr()
        content = json.loads(out)
        assert content["dry"] is bool(dry)
        assert [each["action"] for each in content["issues"]] == [expected]
        assert len(api.issues) == count
        assert TOKEN not in out + err
    api.faults = [refused(401, "Bad credentials")]
    assert main(words) == 3
    assert TOKEN not in "".join(capsys.readouterr())


def test_a_title_has_a_length(api: Api, client: Client) -> None:
    client.track([group(1, "x" * 5000)])
    assert len(api.issues[0]["title"]) <= 200
    assert tracker.LABEL == "harness-failure"
