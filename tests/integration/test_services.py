"""Servers that guests talk to, reached from a micro guest through QEMU."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures.machines import Boot
from harness.deadline import after
from harness.errors import UsageError
from harness.machine import Machine
from harness.services import CutOff, FlippedBit, Registry, ServerError, UpdateServer
from harness.spec import MIB, Nic, Reach

BODY = os.urandom(1024) * 1024


@dataclass
class Plain:
    """A service without TLS, which busybox can talk to."""

    reach: Reach
    address: tuple[str, int]


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        size = int(self.path.strip("/") or 0) * MIB
        self.send_response(200)
        self.send_header("Content-Length", str(size or 6))
        self.end_headers()
        if not size:
            self.wfile.write(b"hello\n")
        for _ in range(size // MIB):
            self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextlib.contextmanager
def serving(reach: Reach) -> Iterator[Plain]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Plain(reach, ("127.0.0.1", server.server_address[1]))
        finally:
            server.shutdown()


@pytest.fixture
def plain() -> Iterator[Plain]:
    with serving(Reach("plain", "10.0.2.100", 80)) as service:
        yield service


def test_a_guest_reaches_its_service_and_nothing_else(boot: Boot, plain: Plain) -> None:
    knocked = []
    with socket.create_server(("127.0.0.1", 0)) as other, serving(Reach("unused")) as unused:
        other.settimeout(1)
        machine = boot("micro", services=[plain]).wait_ready()
        assert machine.succeed("wget -qO- http://10.0.2.100/") == "hello\n"
        assert machine.succeed("wget -qO- http://10.0.2.100/1 | wc -c").strip() == str(MIB)
        # The same host, other ports: as the guest's gateway, as the service's address, as itself.
        for port in (other.getsockname()[1], unused.address[1], plain.address[1]):
            for address in ("10.0.2.2", "10.0.2.100", "10.0.2.101"):
                machine.fail(f"echo hello | nc -w 3 {address} {port}")
        with contextlib.suppress(TimeoutError):
            knocked.append(other.accept())
        assert knocked == []
        machine.fail("nslookup example.org 10.0.2.3")
        machine.fail("nc -w 3 192.0.2.1 80 </dev/null")


def test_many_connections_at_once_and_a_closed_half(boot: Boot, plain: Plain) -> None:
    machine = boot("micro", services=[plain]).wait_ready()
    fetch = "wget -qO- http://10.0.2.100/1 | md5sum"
    told = machine.succeed(f"for i in 1 2 3 4 5 6 7 8; do {fetch} & done; wait").split()
    assert len(set(told)) == 2  # one digest, and "-"
    # The guest closes its side first and still gets the answer.
    ask = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 10.0.2.100 80 | tail -n 1"
    assert machine.succeed(ask) == "hello\n"
    # Nothing is left of the connections.
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
    assert children == []


def test_a_fork_reaches_what_its_origin_did_not(boot: Boot, plain: Plain) -> None:
    first = boot("micro", saveable=True)
    first.os.login()
    saved = first.save(first.evidence / "disks" / "saved", final=True)
    assert [nic.reach for nic in saved.spec.nics] == [()]
    fork = boot.fork(saved, boot.image, "reaching", services=[plain])
    assert fork.console.run("wget -qO- http://10.0.2.100/").stdout == "hello\n"
    again = boot.fork(saved, boot.image, "alone")
    assert again.console.run("wget -T 5 -qO- http://10.0.2.100/").status != 0


def test_a_service_that_nobody_started_is_named(boot: Boot) -> None:
    with pytest.raises(UsageError, match="reaches service missing, and nobody has started it"):
        boot("micro", nics=[Nic(reach=(Reach("missing"),))])


def test_nothing_is_left_when_the_machine_is_killed(boot: Boot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        machine = boot("micro", services=[Plain(Reach("slow"), server.getsockname())]).wait_ready()
        machine.succeed("(nc 10.0.2.100 443 </dev/zero >/dev/null 2>&1 &)")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100)
            machine.power_cut()
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(MIB):
                    pass


def test_throughput(boot: Boot, plain: Plain, capsys: pytest.CaptureFixture[str]) -> None:
    machine = boot("micro", services=[plain]).wait_ready()
    start = time.monotonic()
    machine.succeed("wget -qO /dev/null http://10.0.2.100/100", deadline=120)
    with capsys.disabled():
        print(f"\n{100/(time.monotonic()-start):.1f} MiB/s")
