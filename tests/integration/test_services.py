"""Servers that guests talk to, reached from a micro guest through QEMU."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import platform
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker.errors import NotFound

from fixtures import points
from fixtures.machines import Boot
from fixtures.states import ForkOf
from harness import paths
from harness.errors import ServiceError, UsageError
from harness.qemu import relay
from harness.services import (
    Ca,
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    Host,
    Registry,
    Server,
    ServerError,
    UnknownCa,
    UpdateServer,
)
from harness.services.container import HOST, OWNER, Engine, host_label, owner_label
from harness.services.software import Root
from harness.spec import MIB, Nic, Reach
from harness.store import Store

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


def relays(port: int) -> list[int]:
    """Return a pidfd of each relay to a port of the host that runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if relay.__file__.encode() in words and str(port).encode() in words:
                found.append(os.pidfd_open(int(path.name)))
    return found


@pytest.fixture
def plain() -> Iterator[Plain]:
    with serving(Reach("plain", "10.0.2.100", 80)) as service:
        yield service


def test_a_guest_reaches_its_service_and_nothing_else(boot: Boot, plain: Plain) -> None:
    knocked = []
    with socket.create_server(("127.0.0.1", 0)) as other, serving(Reach("unused")) as unused:
        other.settimeout(0.1)
        machine = boot("micro", services=[plain]).wait_ready()
        assert machine.succeed("wget -qO- http://10.0.2.100/") == "hello\n"
        assert machine.succeed("wget -qO- http://10.0.2.100/1 | wc -c").strip() == str(MIB)
        # The same host, other ports: as the guest's gateway, as the service's address, as itself.
        for port in (other.getsockname()[1], unused.address[1], plain.address[1]):
            for address in ("10.0.2.2", "10.0.2.100", "10.0.2.101"):
                machine.fail(f"echo hello | timeout 3 nc {address} {port}")
        with contextlib.suppress(TimeoutError):
            knocked.append(other.accept())
        assert knocked == []
        machine.fail("timeout 3 nslookup example.org 10.0.2.3")
        machine.fail("timeout 3 nc 192.0.2.1 80 </dev/null")


def test_many_connections_at_once_and_a_closed_half(boot: Boot, plain: Plain) -> None:
    machine = boot("micro", services=[plain]).wait_ready()
    fetch = "wget -qO- http://10.0.2.100/1 | md5sum"
    told = machine.succeed(f"for i in 1 2 3 4 5 6 7 8; do {fetch} & done; wait").split()
    assert len(set(told)) == 2  # one digest, and "-"
    # The guest closes its side first and still gets the answer.
    ask = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 10.0.2.100 80 | tail -n 1"
    assert machine.succeed(ask) == "hello\n"
    # Each connection had a relay of its own; the last ones end by themselves.
    for each in relays(plain.address[1]):
        assert select.select([each], [], [], 30)[0]
        os.close(each)


def test_a_fork_reaches_what_its_origin_did_not(boot: Boot, plain: Plain) -> None:
    first = boot("micro", saveable=True)
    first.os.login()
    saved = first.save(first.evidence / "disks" / "saved", final=True)
    assert [nic.reach for nic in saved.spec.nics] == [()]
    fork = boot.fork(saved, boot.image, "reaching", services=[plain])
    assert fork.console.run("wget -qO- http://10.0.2.100/").stdout == "hello\n"
    again = boot.fork(saved, boot.image, "alone")
    assert again.console.run("wget -T 5 -qO- http://10.0.2.100/").status != 0


def test_a_state_is_forked_with_services(fork_of: ForkOf, plain: Plain) -> None:
    # With --fresh its steps are done anew, on a machine that reaches them as well.
    machine = fork_of(points.live, services=[plain])
    assert machine.console.run("wget -qO- http://10.0.2.100/").stdout == "hello\n"
    assert fork_of(points.live).console.run("wget -T 5 -qO- http://10.0.2.100/").status != 0


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
            [running] = relays(server.getsockname()[1])
            machine.power_cut()
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(MIB):
                    pass
        assert select.select([running], [], [], 30)[0]
        os.close(running)


@pytest.fixture(params=["process", "docker"])
def way(request: pytest.FixtureRequest) -> str:
    """How servers run; a container where an engine answers."""
    told = str(request.param)
    if told == "docker":
        try:
            Engine()
        except ServiceError as error:
            pytest.skip(f"{error.what}: start one (dockerd) to run servers in containers")
    return told


@pytest.fixture
def host(way: str, tmp_path: Path) -> Host:
    return Host(Store(paths.cache_dir()), tmp_path / "disks", way)


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Ca, Ca]:
    return Ca(tmp_path / "ca"), Ca(tmp_path / "unknown")


def curl(server: Server, ca: Ca, path: str, *more: str) -> subprocess.CompletedProcess[bytes]:
    """Fetch as the guest does: by its address, of which only the run's CA says whose it is."""
    host, port = server.address
    to = f"{server.reach.address}:{server.reach.port}:{host}:{port}"
    url = f"https://{server.guest}{path}"
    return subprocess.run(
        ["curl", "-sS", "--cacert", str(ca.path), "--connect-to", to, *more, url],
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_nginx_serves_what_is_published(
    host: Host, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    ca, unknown = authorities
    with UpdateServer(host, ca, unknown, tmp_path) as server:
        (tmp_path / "image.raw").write_bytes(BODY)
        assert server.publish(tmp_path / "image.raw") == "https://10.0.2.100/image.raw"
        server.publish("digests", "sub/SHA256SUMS")
        assert curl(server, ca, "/image.raw").stdout == BODY
        assert curl(server, ca, "/image.raw", "-r", "1000-1999").stdout == BODY[1000:2000]
        assert curl(server, ca, "/sub/SHA256SUMS").stdout == b"digests"
        assert b"nginx" in curl(server, ca, "/nothing").stdout
        assert [(each.path, each.status) for each in server.requests] == [
            ("/image.raw", 200),
            ("/image.raw", 206),
            ("/sub/SHA256SUMS", 200),
            ("/nothing", 404),
        ]
        # curl(1), EXIT CODES: 18 partial file, 22 with --fail, 56 failure in receiving, 60 the peer's
        # certificate.
        with server.fault("/*.raw", CutOff(percent=50)):
            assert curl(server, ca, "/image.raw").returncode in (18, 56)
        with server.fault("/*.raw", FlippedBit()):
            assert curl(server, ca, "/image.raw").stdout != BODY
        with server.fault("/*", ServerError(503)):
            assert curl(server, ca, "/image.raw", "--fail").returncode == 22
        with server.fault(ExpiredCertificate()):
            told = curl(server, ca, "/image.raw")
            assert (told.returncode, b"expired" in told.stderr) == (60, True)
        with server.fault(UnknownCa()):
            assert curl(server, ca, "/image.raw").returncode == 60
        server.fault("/*", ServerError(500))
        server.reset()
        assert curl(server, ca, "/image.raw").returncode == 0
        assert [each.status for each in server.requests] == [404]
        server.check()
        with pytest.raises(UsageError, match="needs a path"):
            server.fault(CutOff(1))
        with pytest.raises(UsageError, match="takes no path"):
            server.fault("/*", UnknownCa())
        with pytest.raises(UsageError, match="no path below"):
            server.publish("x", "../../x")
    assert len((tmp_path / "updates-requests.jsonl").read_text().splitlines()) > 9
    assert '"GET /image.raw HTTP/1.1" 206' in (tmp_path / "updates-access.log").read_text()
    assert not server.data.exists()


def test_a_registry_takes_and_gives_artifacts(
    host: Host, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    ca, unknown = authorities
    with Registry(host, ca, unknown, tmp_path) as server:
        (tmp_path / "usr.raw").write_bytes(BODY)
        (tmp_path / "empty").touch()
        files = [tmp_path / "usr.raw", tmp_path / "empty"]
        assert server.push(files, "os/skiff", "2") == "10.0.2.100:5000/os/skiff:2"
        server.push(files, "os/skiff", "3")  # blobs that are there are not sent again
        assert server.requests == []
        manifest = json.loads(
            curl(
                server,
                ca,
                "/v2/os/skiff/manifests/2",
                "-H",
                "Accept: application/vnd.oci.image.manifest.v1+json",
            ).stdout
        )
        layers = {
            each["annotations"]["org.opencontainers.image.title"]: each["digest"]
            for each in manifest["layers"]
        }
        digest = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
        assert layers["usr.raw"] == digest
        assert list(layers) == ["usr.raw", "empty"]
        blob = f"/v2/os/skiff/blobs/{digest}"
        assert curl(server, ca, blob).stdout == BODY
        with server.fault("/v2/*/blobs/*", FlippedBit(offset=0)) as flip:
            assert curl(server, ca, blob).stdout[1:] == BODY[1:]
            assert flip.hits == 1
        assert curl(server, ca, "/v2/os/skiff/manifests/9", "--fail").returncode == 22
        assert [each.status for each in server.requests] == [200, 200, 200, 404]


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def test_what_serves_dies_with_the_process_that_started_it(way: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from harness import paths\n"
        "from harness.services import Ca, Host, Registry, UpdateServer\n"
        "from harness.store import Store\n"
        "folder, way = Path(sys.argv[1]), sys.argv[2]\n"
        "host = Host(Store(paths.cache_dir()), folder / 'disks', way)\n"
        "ca = Ca(folder / 'ca')\n"
        "for kind in (UpdateServer, Registry):\n"
        "    server = kind(host, ca, ca, folder)\n"
        "    print(getattr(server._backend, 'pid', None) or server._backend.id, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as victim:
        assert victim.stdout is not None
        names = [victim.stdout.readline().strip() for _ in range(2)]
        assert all(names)
        if way == "docker":
            containers = [Engine().client.containers.get(name) for name in names]
            victim.kill()
            for each in containers:
                with contextlib.suppress(NotFound):
                    each.wait(condition="removed", timeout=60)
                with pytest.raises(NotFound):
                    each.reload()
        else:
            watched = [os.pidfd_open(pid) for name in names for pid in family(int(name))]
            victim.kill()
            for each in watched:
                with contextlib.closing(os.fdopen(each)):
                    assert select.select([each], [], [], 30)[0], "it outlived its owner"


def test_containers_of_a_killed_guard_are_swept(authorities: tuple[Ca, Ca], tmp_path: Path) -> None:
    try:
        engine = Engine()
    except ServiceError as error:
        pytest.skip(f"{error.what}: start one (dockerd) to run servers in containers")
    made = Store(paths.cache_dir()).artifacts(Root(platform.machine()))
    image = engine.image(made["root"], made.manifest.artifacts["root"].sha256[:20])
    # A process id that is in use, by a process that started at another time.
    dead = engine.client.containers.create(
        image, ["/usr/sbin/nginx"], labels={HOST: host_label(), OWNER: f"{os.getpid()}:1"}
    )
    mine = engine.client.containers.create(
        image, ["/usr/sbin/nginx"], labels={HOST: host_label(), OWNER: owner_label()}
    )
    try:
        assert engine.sweep() == 1
        with pytest.raises(NotFound):
            dead.reload()
        mine.reload()
    finally:
        mine.remove(force=True)


def test_the_fixtures_give_each_test_a_server_as_new(update_server: UpdateServer, ca: Ca) -> None:
    assert update_server.requests == []
    assert list(update_server.data.iterdir()) == []
    update_server.publish("left behind", "one")
    update_server.fault("/*", ServerError())
    assert curl(update_server, ca, "/one", "--fail").returncode == 22


def test_the_fixtures_give_each_test_a_server_as_new_again(
    update_server: UpdateServer, registry: Registry, ca: Ca
) -> None:
    assert update_server.requests == []
    assert curl(update_server, ca, "/one", "--fail").returncode == 22
    assert update_server.requests[0].status == 404
    assert curl(registry, ca, "/v2/").stdout == b"{}"


def test_a_guest_talks_tls_to_the_update_server(boot: Boot, update_server: UpdateServer) -> None:
    machine = boot("micro", services=[update_server]).wait_ready()
    address = update_server.publish(BODY, "image.raw")
    told = machine.succeed(f"wget --no-check-certificate -qO- {address} | sha256sum")
    assert told.split()[0] == hashlib.sha256(BODY).hexdigest()
    assert [(each.path, each.bytes) for each in update_server.requests] == [
        ("/image.raw", len(BODY))
    ]
