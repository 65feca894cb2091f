"""The TLS proxy of a service: it ends the guests' connections and asks the real server.

Every connection passes through it, with or without faults, so a fault applies from the next request on
and one log has all requests. The real server (nginx, the registry) answers each request over plain HTTP
on the host's loopback. The proxy passes the answer on unchanged, headers included, unless a fault alters
it. It speaks HTTP as RFC 9110 and 9112 have it: one request at a time, connections kept.

It binds a port that the kernel chooses. Each connection has a thread.
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
    ActiveFault,
    CutOff,
    ExpiredCertificate,
    Faults,
    FlippedBit,
    ServerError,
    Slow,
    WrongLength,
)
from harness.services.request_log import Request, RequestLog

CHUNK: Final = 256 * 1024
"""Bytes that are passed on at a time."""

IDLE: Final = 600.0
"""Seconds after which a silent connection is closed."""

CLOSE: Final = 10.0
"""Seconds within which a connection ends when the proxy closes; it wakes at once."""

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
"""Headers of one connection only, RFC 9110 section 7.6.1; the proxy itself answers ``Expect``."""

_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates that a server can show.

    Attributes:
        good: A certificate for its names, by the run's CA.
        expired: The same, expired yesterday.
        unknown: The same, by a CA that no guest trusts.
    """

    good: Certificate
    expired: Certificate
    unknown: Certificate


class TlsProxy:
    """Serves TLS on a port of the loopback until it is closed.

    Args:
        upstream: Host and port of the real server.
        certificates: The certificates that it can show.
        faults: The faults, which it reads anew for each connection and request.
        log: The log of requests.
    """

    def __init__(
        self, upstream: tuple[str, int], certificates: Certificates, faults: Faults, log: RequestLog
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
        self._thread = threading.Thread(target=self._accept, name="TLS proxy", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port at which it listens on the host."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Close the port and every connection; then the log's file has all requests."""
        if self.closing.is_set():
            return
        self.closing.set()
        # Shutting down wakes accept() with EINVAL; closing alone would not (Linux).
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
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
                continue  # This client has left again.
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
            secure = self._handshake(connection)
            if secure is not None:
                with self._lock:
                    self._open.add(secure)
                _Handler(secure, self)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # The client left or sent nonsense, or the proxy was closed; the log has the rest.
        finally:
            for end in (secure, connection):
                if end is not None:
                    with self._lock:
                        self._open.discard(end)
                    with contextlib.suppress(OSError):
                        end.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _handshake(self, connection: socket.socket) -> ssl.SSLSocket | None:
        """Return the connection with TLS on it; ``None`` if the handshake failed."""
        active = self.faults.of_connection()
        context = self._good
        if active is not None:
            active.hit()
            expired = isinstance(active.fault, ExpiredCertificate)
            context = self._expired if expired else self._unknown
        handshake = Request("", "", fault="TLS: the handshake has not ended")
        self.log.begin(handshake)
        try:
            secure = context.wrap_socket(connection, server_side=True)
        except (ssl.SSLError, OSError) as error:
            handshake.fault = f"TLS: {getattr(error, 'reason', None) or error}"
            self.log.end(handshake)
            return None
        self.log.withdraw(handshake)
        return secure


class _MalformedError(Exception):
    """A client sent something that is not HTTP."""


def _number(text: str, base: int) -> int:
    """Return a size that a client sent.

    Raises:
        _MalformedError: The text is not digits alone, RFC 9110 section 8.6, RFC 9112 section 7.1.
    """
    digits = text.strip()
    if not digits.isalnum() or not digits.isascii():
        raise _MalformedError(f"{text!r} is not a size")
    try:
        return int(digits, base)
    except ValueError:
        raise _MalformedError(f"{text!r} is not a size") from None


class _Handler(BaseHTTPRequestHandler):
    """Serves the requests of one connection, one at a time."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: ssl.SSLSocket, proxy: TlsProxy) -> None:
        self._proxy = proxy
        self._upstream = http.client.HTTPConnection(*proxy.upstream, timeout=IDLE)
        try:
            # The base class stores the server and does not use it.
            super().__init__(connection, connection.getpeername(), None)  # type: ignore[arg-type]
        finally:
            self._upstream.close()

    def _serve(self) -> None:
        request = Request(self.command, self.path)
        faults = self._proxy.faults.of_answer(self.path.partition("?")[0])
        request.fault = ", ".join(repr(active.fault) for active in faults)
        try:
            for active in faults:
                if isinstance(active.fault, ServerError):
                    active.hit()
                    self._refuse(request, active.fault.status)
                    return
            self._forward(request, faults)
        finally:
            self._proxy.log.end(request)

    # http.server looks for these names.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _refuse(
        self, request: Request, status: int, why: str = "a fault that the test asked for"
    ) -> None:
        body = f"{status}: {why}\n".encode()
        request.status, request.bytes = status, len(body)
        self._proxy.log.begin(request)
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, request: Request, faults: tuple[ActiveFault, ...]) -> None:
        try:
            answer = self._ask()
        except _MalformedError as error:
            self._upstream.close()
            request.fault = f"the client: {error}"
            self._refuse(request, 400, str(error))
            return
        except (OSError, http.client.HTTPException) as error:
            request.fault = f"the server does not answer: {error!r}"
            self._refuse(request, 502, "the server does not answer")
            return
        with contextlib.closing(answer):
            request.status = answer.status
            self._proxy.log.begin(request)
            length = answer.length if self.command != "HEAD" else 0
            announced = answer.getheader("Content-Length")
            for active in faults:
                if isinstance(active.fault, WrongLength) and announced is not None:
                    announced = str(max(0, int(announced) + active.fault.by))
                    active.hit()
                    self.close_connection = True
                    break
            self._send_head(answer, announced)
            if self.command == "HEAD" or answer.status in (204, 304):
                return
            body = self._body(answer, length, faults)
            if announced is not None:
                for part in body:
                    request.bytes += len(part)
                    self.wfile.write(part)
                if not faults and request.bytes < int(announced):
                    # The rest will not come, so the client must not wait for it.
                    request.fault = f"the server sent {request.bytes} of {announced} bytes"
                    self.close_connection = True
            else:
                for part in body:
                    request.bytes += len(part)
                    self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")

    def _ask(self) -> http.client.HTTPResponse:
        """Send the request, with its body, to the real server and return its answer."""
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
            # The server closed the kept connection, which was idle: RFC 9112 section 9.3.1.
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
        self, answer: http.client.HTTPResponse, length: int | None, faults: tuple[ActiveFault, ...]
    ) -> Iterator[bytes]:
        """Yield the parts of the body, altered by the faults."""
        first, whole = 0, length or 0
        if answer.status == 206 and (
            match := _RANGE.fullmatch(answer.getheader("Content-Range", ""))
        ):
            first, whole = int(match[1]), int(match[2])
        flips: list[tuple[int, int]] = []
        rate = 0
        keep: int | None = None
        for active in faults:
            if isinstance(active.fault, FlippedBit):
                where = active.fault.where(whole) - first
                if 0 <= where < (length or 0):
                    flips.append((where, 1 << active.fault.bit))
                    active.hit()
            elif isinstance(active.fault, Slow):
                rate = active.fault.rate
                active.hit()
            elif isinstance(active.fault, CutOff) and length is not None:
                keep = active.fault.kept(length)
                self.close_connection = True
                active.hit()
        size = CHUNK if not rate else max(1, min(CHUNK, int(rate * _PACE)))
        began, sent = time.monotonic(), 0
        while keep is None or sent < keep:
            part = answer.read(size if keep is None else min(size, keep - sent))
            if not part:
                break
            for where, mask in flips:
                if sent <= where < sent + len(part):
                    altered = bytearray(part)
                    altered[where - sent] ^= mask
                    part = bytes(altered)
            yield part
            sent += len(part)
            if rate:
                # The pace is the fault, so this waits for time alone; closing the proxy ends it.
                self._proxy.closing.wait(max(0.0, began + sent / rate - time.monotonic()))
                if self._proxy.closing.is_set():
                    self.close_connection = True
                    return
        if keep is not None:
            # No TLS close_notify: a connection that is cut sends none either.
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing on standard error: the log has the request."""
        del format, args
