"""Faults, each seen by a client over TLS, in front of a server whose answers are known."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.services.ca import Ca
from harness.services.faults import (
    CutOff,
    ExpiredCertificate,
    Faults,
    FlippedBit,
    ServerError,
    Slow,
    UnknownCa,
    WrongLength,
)
from harness.services.front import Certificates, Front
from harness.services.log import Log

BODY = bytes(range(256)) * 4000


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"0123456789")
            self.close_connection = True
            return
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return
        first = 0
        if told := self.headers.get("Range"):
            first = int(told.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.send_response(200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(BODY) - first))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BODY[first:])

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class Known(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients of a spoilt answer hang up


class Site:
    """A front, and clients of it."""

    def __init__(self, front: Front, ca: Ca, faults: Faults, log: Log) -> None:
        self.front = front
        self.faults = faults
        self.log = log
        self.trust = ssl.create_default_context(cadata=ca.pem)
        self.clients = contextlib.ExitStack()

    def connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            *self.front.address, context=self.trust, timeout=20
        )
        self.clients.callback(connection.close)
        return connection

    def get(self, path: str = "/file", **headers: str) -> http.client.HTTPResponse:
        connection = self.connect()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        self.clients.callback(answer.close)
        return answer


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ca, Certificates]:
    folder = tmp_path_factory.mktemp("ca")
    ca, unknown = Ca(folder / "known"), Ca(folder / "unknown", "nobody's")
    return ca, Certificates(
        ca.issue(), ca.issue(label="old", expired=True), unknown.issue(label="other")
    )


@pytest.fixture
def site(authorities: tuple[Ca, Certificates], tmp_path: Path) -> Iterator[Site]:
    ca, certificates = authorities
    with Known(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
        faults, log = Faults(), Log(tmp_path / "requests.jsonl")
        address = ("127.0.0.1", upstream.server_address[1])
        front = Front(address, certificates, faults, log)
        told = Site(front, ca, faults, log)
        try:
            yield told
        finally:
            told.clients.close()
            front.close()
            upstream.shutdown()


def test_without_faults_all_comes_as_it_was_said(site: Site) -> None:
    connection = site.connect()
    for _ in range(3):
        connection.request("GET", "/file?x=1")
        answer = connection.getresponse()
        assert answer.read() == BODY
        assert answer.headers["ETag"] == '"one"'
    connection.request("HEAD", "/file")
    answer = connection.getresponse()
    assert (answer.read(), answer.headers["Content-Length"]) == (b"", str(len(BODY)))
    connection.request("GET", "/chunked")
    assert connection.getresponse().read() == b"abcde"
    connection.request("PUT", "/up", body=b"some")
    assert connection.getresponse().read() == b"some"
    connection.request("PUT", "/up", body=iter([b"in ", b"parts"]))
    assert connection.getresponse().read() == b"in parts"
    told = [(each.method, each.path, each.status, each.bytes) for each in site.log.requests]
    assert told == [
        *[("GET", "/file?x=1", 200, len(BODY))] * 3,
        ("HEAD", "/file", 200, 0),
        ("GET", "/chunked", 200, 5),
        ("PUT", "/up", 201, 4),
        ("PUT", "/up", 201, 8),
    ]


def test_a_request_is_told_of_before_its_answer_and_kept_when_it_has_ended(site: Site) -> None:
    site.faults.add("/file", Slow(1000))
    answer = site.get()
    answer.read(10)
    [told] = site.log.requests
    assert (told.path, told.seconds) == ("/file", None)
    assert not site.log.path.exists()
    answer.close()
    site.front.close()
    kept = json.loads(site.log.path.read_text())
    assert (kept["path"], kept["status"], kept["fault"]) == ("/file", 200, "Slow(rate=1000)")
    assert kept["bytes"] < len(BODY)


def test_slow_keeps_its_rate(site: Site) -> None:
    with site.faults.add("/*", Slow(4 * len(BODY))) as slow:
        start = time.monotonic()
        assert site.get().read() == BODY
        assert 0.2 <= time.monotonic() - start < 5
    assert slow.hits == 1


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_cut_off_announces_all_and_sends_a_part(site: Site, percent: float) -> None:
    site.faults.add("/file", CutOff(percent))
    answer = site.get()
    assert answer.headers["Content-Length"] == str(len(BODY))
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)) as caught:
        answer.read()
    if isinstance(caught.value, http.client.IncompleteRead):
        got = len(caught.value.partial)
        assert got == min(len(BODY) * percent // 100, len(BODY) - 1)
    assert site.log.requests[0].bytes == min(len(BODY) * percent // 100, len(BODY) - 1)


def test_a_server_error_is_of_the_paths_it_is_for(site: Site) -> None:
    with site.faults.add("/*.raw", ServerError(503)) as broken:
        answer = site.get("/slot/usr.raw?x")
        assert (answer.status, answer.read()[:3]) == (503, b"503")
        assert site.get("/file").read() == BODY
    assert broken.hits == 1
    assert site.get("/slot/usr.raw").status == 200


@pytest.mark.parametrize("by", [1000, -1000])
def test_a_length_lies_and_the_body_does_not(site: Site, by: int) -> None:
    site.faults.add("/*", WrongLength(by))
    answer = site.get()
    assert answer.headers["Content-Length"] == str(len(BODY) + by)
    if by > 0:
        with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
            answer.read()
    else:
        assert answer.read() == BODY[:by]


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (FlippedBit(), len(BODY) // 2),
        (FlippedBit(percent=10), len(BODY) // 10),
        (FlippedBit(percent=100), len(BODY) - 1),
        (FlippedBit(offset=300_000, bit=7), 300_000),
        (FlippedBit(offset=-1), len(BODY) - 1),
    ],
)
def test_one_bit_is_another(site: Site, fault: FlippedBit, where: int) -> None:
    site.faults.add("/file", fault)
    got = site.get().read()
    assert len(got) == len(BODY)
    assert [i for i, byte in enumerate(got) if byte != BODY[i]] == [where]
    assert got[where] ^ BODY[where] == 1 << fault.bit


def test_a_flipped_bit_keeps_its_place_in_a_range(site: Site) -> None:
    active = site.faults.add("/file", FlippedBit(offset=5000))
    got = site.get(Range="bytes=4000-").read()
    assert got[1000] ^ BODY[5000] == 1
    assert site.get(Range="bytes=6000-").read() == BODY[6000:]
    assert active.hits == 1


def test_faults_add_up(site: Site) -> None:
    site.faults.add("/file", FlippedBit(offset=0))
    site.faults.add("/*", CutOff(50))
    answer = site.get()
    assert answer.read(100)[0] == BODY[0] ^ 1
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
        answer.read()
    assert len(site.log.requests[0].fault.split(", percent")) > 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ExpiredCertificate(), "certificate has expired"),
        (UnknownCa(), "unable to get local issuer"),
    ],
)
def test_a_certificate_is_refused_by_a_client_that_verifies(
    site: Site, fault: ExpiredCertificate | UnknownCa, said: str
) -> None:
    with (
        site.faults.add("*", fault) as active,
        pytest.raises(ssl.SSLCertVerificationError, match=said),
    ):
        site.get()
    assert active.hits == 1
    assert site.get().read() == BODY
    first = site.log.requests[0]
    assert (first.method, first.status) == ("", 0)
    assert first.fault.startswith("TLS: ")


def test_the_certificate_is_for_the_guests_address(site: Site) -> None:
    with socket.create_connection(site.front.address) as plain:
        site.trust.wrap_socket(plain, server_hostname="10.0.2.100").close()
    with (
        socket.create_connection(site.front.address) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"),
    ):
        site.trust.wrap_socket(plain, server_hostname="10.0.2.101")


def test_a_dead_server_is_a_bad_gateway(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        site.front.upstream = ("127.0.0.1", nobody.getsockname()[1])
    assert site.get().status == 502
    assert "ConnectionRefused" in site.log.requests[0].fault


def test_a_body_that_the_server_cuts_short_is_cut_short_and_told_of(site: Site) -> None:
    with pytest.raises(http.client.IncompleteRead):
        site.get("/short").read()
    [told] = site.log.requests
    assert (told.status, told.bytes) == (200, 10)
    assert told.fault == "the server behind it: 10 of 1000 bytes came"


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: abc\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: -5\r\n\r\n",
    ],
    ids=["length", "chunk", "negative"],
)
def test_a_client_that_sends_nonsense_is_told_so(site: Site, rest: bytes) -> None:
    connection = site.connect()
    connection.connect()
    connection.sock.sendall(b"PUT /up HTTP/1.1\r\nHost: x\r\n" + rest)
    answer = http.client.HTTPResponse(connection.sock, method="PUT")
    answer.begin()
    assert (answer.status, "is no size" in answer.read().decode()) == (400, True)
    [told] = site.log.requests
    assert (told.method, told.status) == ("PUT", 400)
    assert "is no size" in told.fault


def test_closing_ends_connections_and_the_port(site: Site) -> None:
    site.faults.add("/*", Slow(100))
    answer = site.get()
    answer.read(5)
    address = site.front.address
    site.front.close()
    with pytest.raises((http.client.IncompleteRead, OSError)):
        answer.read()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Slow(0),
        lambda: CutOff(101),
        lambda: ServerError(404),
        lambda: WrongLength(0),
        lambda: FlippedBit(offset=1, percent=1),
        lambda: FlippedBit(bit=8),
    ],
)
def test_faults_that_make_no_sense_are_refused(wrong: type) -> None:
    with pytest.raises(UsageError):
        wrong()
