"""A client sees each fault over TLS; the real server behind the proxy is a stub with fixed answers."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
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
from harness.services.request_log import RequestLog
from harness.services.tls_proxy import Certificates, TlsProxy

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
        if value := self.headers.get("Range"):
            first = int(value.removeprefix("bytes=").removesuffix("-"))
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


class UpstreamServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client hangs up when an answer is altered


class Site:
    """A TLS proxy and its clients."""

    def __init__(self, proxy: TlsProxy, ca: Ca, faults: Faults, log: RequestLog) -> None:
        self.proxy = proxy
        self.faults = faults
        self.log = log
        self.trust = ssl.create_default_context(cadata=ca.pem)
        self.clients = contextlib.ExitStack()

    def connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            *self.proxy.address, context=self.trust, timeout=20
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
    ca, unknown = Ca(folder / "trusted"), Ca(folder / "unknown", "unknown CA")
    return ca, Certificates(
        ca.issue(), ca.issue(label="old", expired=True), unknown.issue(label="other")
    )


@pytest.fixture
def site(authorities: tuple[Ca, Certificates], tmp_path: Path) -> Iterator[Site]:
    ca, certificates = authorities
    with UpstreamServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
        faults, log = Faults(), RequestLog(tmp_path / "requests.jsonl")
        address = ("127.0.0.1", upstream.server_address[1])
        proxy = TlsProxy(address, certificates, faults, log)
        site = Site(proxy, ca, faults, log)
        try:
            yield site
        finally:
            site.clients.close()
            proxy.close()
            upstream.shutdown()


def test_without_faults_answers_pass_unchanged(site: Site) -> None:
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
    requests = [
        (request.method, request.path, request.status, request.bytes)
        for request in site.log.requests
    ]
    assert requests == [
        *[("GET", "/file?x=1", 200, len(BODY))] * 3,
        ("HEAD", "/file", 200, 0),
        ("GET", "/chunked", 200, 5),
        ("PUT", "/up", 201, 4),
        ("PUT", "/up", 201, 8),
    ]


def test_a_request_is_in_memory_before_its_answer_and_in_the_file_after_it(site: Site) -> None:
    site.faults.add("/file", Slow(1000))
    answer = site.get()
    answer.read(10)
    [request] = site.log.requests
    assert (request.path, request.seconds) == ("/file", None)
    assert not site.log.path.exists()
    answer.close()
    site.proxy.close()
    kept = json.loads(site.log.path.read_text())
    assert (kept["path"], kept["status"], kept["fault"]) == ("/file", 200, "Slow(rate=1000)")
    assert kept["bytes"] < len(BODY)


def test_a_slow_body_keeps_the_rate(site: Site) -> None:
    with site.faults.add("/*", Slow(4 * len(BODY))) as slow:
        start = time.monotonic()
        assert site.get().read() == BODY
        assert 0.2 <= time.monotonic() - start < 5
    assert slow.hits == 1


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_a_body_that_is_cut_off_announces_its_whole_length(site: Site, percent: float) -> None:
    site.faults.add("/file", CutOff(percent))
    answer = site.get()
    assert answer.headers["Content-Length"] == str(len(BODY))
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)) as caught:
        answer.read()
    if isinstance(caught.value, http.client.IncompleteRead):
        received = len(caught.value.partial)
        assert received == min(len(BODY) * percent // 100, len(BODY) - 1)
    assert site.log.requests[0].bytes == min(len(BODY) * percent // 100, len(BODY) - 1)


def test_a_server_error_applies_to_its_paths_alone(site: Site) -> None:
    with site.faults.add("/*.raw", ServerError(503)) as broken:
        answer = site.get("/slot/usr.raw?x")
        assert (answer.status, answer.read()[:3]) == (503, b"503")
        assert site.get("/file").read() == BODY
    assert broken.hits == 1
    assert site.get("/slot/usr.raw").status == 200


@pytest.mark.parametrize("by", [1000, -1000])
def test_a_wrong_length_leaves_the_body_right(site: Site, by: int) -> None:
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
def test_exactly_one_bit_is_flipped(site: Site, fault: FlippedBit, where: int) -> None:
    site.faults.add("/file", fault)
    body = site.get().read()
    assert len(body) == len(BODY)
    assert [i for i, byte in enumerate(body) if byte != BODY[i]] == [where]
    assert body[where] ^ BODY[where] == 1 << fault.bit


def test_a_flipped_bit_has_its_place_in_the_file_also_in_a_range(site: Site) -> None:
    active = site.faults.add("/file", FlippedBit(offset=5000))
    body = site.get(Range="bytes=4000-").read()
    assert body[1000] ^ BODY[5000] == 1
    assert site.get(Range="bytes=6000-").read() == BODY[6000:]
    assert active.hits == 1


def test_several_faults_of_a_path_add_up(site: Site) -> None:
    site.faults.add("/file", FlippedBit(offset=0))
    site.faults.add("/*", CutOff(50))
    answer = site.get()
    assert answer.read(100)[0] == BODY[0] ^ 1
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
        answer.read()
    assert len(site.log.requests[0].fault.split(", percent")) > 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ExpiredCertificate(), "certificate has expired"),
        (UnknownCa(), "unable to get local issuer"),
    ],
)
def test_a_verifying_client_refuses_the_certificate(
    site: Site, fault: ExpiredCertificate | UnknownCa, message: str
) -> None:
    with (
        site.faults.add("*", fault) as active,
        pytest.raises(ssl.SSLCertVerificationError, match=message),
    ):
        site.get()
    assert active.hits == 1
    assert site.get().read() == BODY
    first = site.log.requests[0]
    assert (first.method, first.status) == ("", 0)
    assert first.fault.startswith("TLS: ")


def test_the_certificate_is_for_the_guests_address(site: Site) -> None:
    with socket.create_connection(site.proxy.address) as plain:
        site.trust.wrap_socket(plain, server_hostname="10.0.2.100").close()
    with (
        socket.create_connection(site.proxy.address) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"),
    ):
        site.trust.wrap_socket(plain, server_hostname="10.0.2.101")


def test_a_dead_server_makes_the_proxy_answer_502(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        site.proxy.upstream = ("127.0.0.1", closed.getsockname()[1])
    assert site.get().status == 502
    assert "ConnectionRefused" in site.log.requests[0].fault


def test_a_body_that_the_server_cuts_short_is_logged(site: Site) -> None:
    with pytest.raises(http.client.IncompleteRead):
        site.get("/short").read()
    [request] = site.log.requests
    assert (request.status, request.bytes) == (200, 10)
    assert request.fault == "the server sent 10 of 1000 bytes"


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: abc\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: -5\r\n\r\n",
    ],
    ids=["length", "chunk", "negative"],
)
def test_a_malformed_request_is_answered_with_400(site: Site, rest: bytes) -> None:
    connection = site.connect()
    connection.connect()
    connection.sock.sendall(b"PUT /up HTTP/1.1\r\nHost: x\r\n" + rest)
    answer = http.client.HTTPResponse(connection.sock, method="PUT")
    answer.begin()
    assert (answer.status, "is not a size" in answer.read().decode()) == (400, True)
    [request] = site.log.requests
    assert (request.method, request.status) == ("PUT", 400)
    assert "is not a size" in request.fault


def test_closing_the_proxy_ends_its_connections_and_closes_the_port(site: Site) -> None:
    site.faults.add("/*", Slow(100))
    answer = site.get()
    answer.read(5)
    address = site.proxy.address
    site.proxy.close()
    with pytest.raises((http.client.IncompleteRead, OSError)):
        answer.read()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Slow(0), "Slow.rate must be >= 1 byte a second, not 0"),
        (lambda: CutOff(101), "CutOff.percent must be 0 to 100, not 101"),
        (lambda: ServerError(404), "ServerError.status must be 500 to 599, not 404"),
        (lambda: WrongLength(by=0), "WrongLength(by=0) would change nothing"),
        (
            lambda: FlippedBit(offset=1, percent=1),
            "FlippedBit takes an offset or a percent, not both",
        ),
        (lambda: FlippedBit(percent=-1), "FlippedBit.percent must be 0 to 100, not -1"),
        (lambda: FlippedBit(bit=8), "FlippedBit.bit must be 0 to 7, not 8"),
    ],
)
def test_an_impossible_fault_is_refused(create: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        create()
