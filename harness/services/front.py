"""The TLS end of a service: what a guest talks to, in front of the real server.

Every connection ends here, faults or not, so that a fault applies from the very next request and
one log tells what guests fetched. The real server (nginx, the registry) answers each request over
plain HTTP on the host's loopback; what it says is passed on as it came, headers included, unless a
fault alters it. HTTP is that of RFC 9110 and 9112: one request after the other, connections kept.

The port is bound here, once, by the kernel's choice. A thread serves a connection.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Final

from harness.services.ca import Certificate
from harness.services.faults import (
    Active,
    CutOff,
    ExpiredCertificate,
    Faults,
    FlippedBit,
    ServerError,
    Slow,
    WrongLength,
)
from harness.services.log import Log, Request

CHUNK: Final = 256 * 1024
"""Bytes passed on at a time."""

IDLE: Final = 600.0
"""Seconds after which a connection that says nothing is closed."""

CLOSE: Final = 10.0
"""Seconds that a connection may take to end when the front closes; it wakes at once."""

_PACE: Final = 0.05
"""Seconds between two parts of a slow body."""

_HOP: Final = frozenset(
    (
        "connection",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers of one connection only, RFC 9110 section 7.6.1; ``Expect`` is answered here."""

_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a server can show.

    Attributes:
        good: For its names, by the run's CA.
        expired: The same, valid until yesterday.
        unknown: The same, by a CA that nobody knows.
    """

    good: Certificate
    expired: Certificate
    unknown: Certificate


class Front:
    """Serves TLS on a port of the loopback until it is closed.

    Args:
        upstream: Host and port of the real server.
        certificates: What it can show.
        faults: What is wrong with it; asked for each connection and request.
        log: Where requests go.
    """

    def __init__(
        self, upstream: tuple[str, int], certificates: Certificates, faults: Faults, log: Log
    ) -> None:
        self.upstream = upstream
        self.faults = faults
        self.log = log
        self.closing = threading.Event()
        self._good = certificates.good.context()
        self._expired = certificates.expired.context()
        self._unknown = certificates.unknown.context()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._accept, name="services", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens on the host."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Close the port and every connection; the log's file has all requests then."""
        if self.closing.is_set():
            return
        self.closing.set()
        # Wakes accept(); closing alone would not (Linux, accept(2) on a shut-down socket: EINVAL).
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join(CLOSE)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self.closing.is_set():
                    return
                continue  # That one client has gone again.
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._open.add(connection)
                self._threads.add(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        secure: ssl.SSLSocket | None = None
        try:
            connection.settimeout(IDLE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = self._greet(connection)
            if secure is not None:
                with self._lock:
                    self._open.add(secure)
                _Handler(secure, self)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # The client has gone or sent nonsense, or this was closed; the log has what it got.
        finally:
            for each in (secure, connection):
                if each is not None:
                    with self._lock:
                        self._open.discard(each)
                    with contextlib.suppress(OSError):
                        each.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _greet(self, connection: socket.socket) -> ssl.SSLSocket | None:
        """Return the connection with TLS on it; ``None`` if the client did not want it."""
        active = self.faults.of_connection()
        context = self._good
        if active is not None:
            active.hit()
            expired = isinstance(active.fault, ExpiredCertificate)
            context = self._expired if expired else self._unknown
        began = Request("", "")
        try:
            return context.wrap_socket(connection, server_side=True)
        except (ssl.SSLError, OSError) as error:
            began.fault = f"TLS: {getattr(error, 'reason', None) or error}"
            self.log.begin(began)
            self.log.end(began)
            return None


class _MalformedError(Exception):
    """What a client sent is no HTTP."""


def _number(text: str, base: int) -> int:
    """Return a size that a client has sent.

    Raises:
        _MalformedError: if it is none: digits alone, RFC 9110 section 8.6, RFC 9112 section 7.1.
    """
    digits = text.strip()
    if not digits.isalnum() or not digits.isascii():
        raise _MalformedError(f"{text!r} is no size")
    try:
        return int(digits, base)
    except ValueError:
        raise _MalformedError(f"{text!r} is no size") from None


class _Handler(BaseHTTPRequestHandler):
    """Serves the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: ssl.SSLSocket, front: Front) -> None:
        self._front = front
        self._upstream = http.client.HTTPConnection(*front.upstream, timeout=IDLE)
        try:
            # http.server's own signature; it never looks at the server.
            super().__init__(connection, connection.getpeername(), None)  # type: ignore[arg-type]
        finally:
            self._upstream.close()

    def _serve(self) -> None:
        told = Request(self.command, self.path)
        found = self._front.faults.of_answer(self.path.partition("?")[0])
        told.fault = ", ".join(repr(each.fault) for each in found)
        try:
            for each in found:
                if isinstance(each.fault, ServerError):
                    each.hit()
                    self._refuse(told, each.fault.status)
                    return
            self._forward(told, found)
        finally:
            self._front.log.end(told)

    # The names that http.server looks for.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _refuse(
        self, told: Request, status: int, why: str = "a fault that the test asked for"
    ) -> None:
        body = f"{status}: {why}\n".encode()
        told.status, told.bytes = status, len(body)
        self._front.log.begin(told)
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, told: Request, found: tuple[Active, ...]) -> None:
        try:
            answer = self._ask()
        except _MalformedError as error:
            self._upstream.close()
            told.fault = f"the client: {error}"
            self._refuse(told, 400, str(error))
            return
        except (OSError, http.client.HTTPException) as error:
            told.fault = f"the server behind it: {error!r}"
            self._refuse(told, 502, "the server does not answer")
            return
        with contextlib.closing(answer):
            told.status = answer.status
            self._front.log.begin(told)
            length = answer.length if self.command != "HEAD" else 0
            announced = answer.getheader("Content-Length")
            lie = next((each for each in found if isinstance(each.fault, WrongLength)), None)
            if lie is not None and announced is not None:
                assert isinstance(lie.fault, WrongLength)
                announced = str(max(0, int(announced) + lie.fault.by))
                lie.hit()
                self.close_connection = True
            self._send_head(answer, announced)
            if self.command == "HEAD" or answer.status in (204, 304):
                return
            body = self._body(answer, length, found)
            if announced is not None:
                for part in body:
                    told.bytes += len(part)
                    self.wfile.write(part)
                if not found and told.bytes < int(announced):
                    # The client waits for the rest, which will not come.
                    told.fault = f"the server behind it: {told.bytes} of {announced} bytes came"
                    self.close_connection = True
            else:
                for part in body:
                    told.bytes += len(part)
                    self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")

    def _ask(self) -> http.client.HTTPResponse:
        """Ask the real server the same, the body included, and return its answer."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers["X-Forwarded-Proto"] = "https"
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        size = _number(self.headers.get("Content-Length") or "0", 10)
        body = self._chunks() if chunked else self._parts(size) if size else None
        try:
            self._upstream.request(self.command, self.path, body, headers, encode_chunked=chunked)
            return self._upstream.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._upstream.close()
            if body is not None:
                raise
            # The kept connection was idle for too long for the server: RFC 9112 section 9.3.1.
            self._upstream.request(self.command, self.path, None, headers)
            return self._upstream.getresponse()

    def _parts(self, size: int) -> Iterator[bytes]:
        while size > 0 and (part := self.rfile.read(min(size, CHUNK))):
            size -= len(part)
            yield part

    def _chunks(self) -> Iterator[bytes]:
        """Yield the parts of a chunked body, RFC 9112 section 7.1."""
        while size := _number(self.rfile.readline(1024).partition(b";")[0].decode("latin-1"), 16):
            yield from self._parts(size)
            self.rfile.readline(8)
        while self.rfile.readline(65536).strip():
            pass

    def _send_head(self, answer: http.client.HTTPResponse, announced: str | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP and name.lower() != "content-length":
                self.send_header(name, value)
        if announced is not None:
            self.send_header("Content-Length", announced)
        elif answer.status not in (204, 304):
            self.send_header("Transfer-Encoding", "chunked")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()

    def _body(
        self, answer: http.client.HTTPResponse, length: int | None, found: tuple[Active, ...]
    ) -> Iterator[bytes]:
        """Yield the parts of the body, spoilt as the faults say."""
        first, whole = 0, length or 0
        if answer.status == 206 and (
            told := _RANGE.fullmatch(answer.getheader("Content-Range", ""))
        ):
            first, whole = int(told[1]), int(told[2])
        flips: list[tuple[int, int]] = []
        rate = 0
        keep: int | None = None
        for each in found:
            if isinstance(each.fault, FlippedBit):
                where = each.fault.where(whole) - first
                if 0 <= where < (length or 0):
                    flips.append((where, 1 << each.fault.bit))
                    each.hit()
            elif isinstance(each.fault, Slow):
                rate = each.fault.rate
                each.hit()
            elif isinstance(each.fault, CutOff) and length is not None:
                keep = each.fault.kept(length)
                self.close_connection = True
                each.hit()
        size = CHUNK if not rate else max(1, min(CHUNK, int(rate * _PACE)))
        began, sent = time.monotonic(), 0
        while keep is None or sent < keep:
            part = answer.read(size if keep is None else min(size, keep - sent))
            if not part:
                break
            for where, mask in flips:
                if sent <= where < sent + len(part):
                    spoilt = bytearray(part)
                    spoilt[where - sent] ^= mask
                    part = bytes(spoilt)
            yield part
            sent += len(part)
            if rate:
                # Not a wait for anything: the pace is the fault. A close of the server ends it.
                self._front.closing.wait(max(0.0, began + sent / rate - time.monotonic()))
                if self._front.closing.is_set():
                    self.close_connection = True
                    return
        if keep is not None:
            # Gone without a goodbye, as a cut line is; the client waits for the rest or complains.
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on standard error: the log has it."""
        del format, args
