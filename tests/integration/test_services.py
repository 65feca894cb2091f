"""Servers, and the guest forwards by which a micro guest reaches them."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from fixtures.project import Project
from harness import Lab, paths, points
from harness.artifacts import Store
from harness.errors import ServiceError, UnknownNameError, UsageError
from harness.qemu import guest_forward
from harness.scope import Scope
from harness.services import (
    Ca,
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    Registry,
    Server,
    ServerError,
    ServiceRunner,
    UnknownCa,
    UpdateServer,
)
from harness.services.container import HOST, OWNER, Engine, host_label, owner_label
from harness.services.programs import ProgramTree
from harness.spec import MIB, GuestForward, Nic

BODY = os.urandom(1024) * 1024


@dataclass
class Plain:
    """A service without TLS, which busybox can fetch from."""

    forward: GuestForward
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
def serving(forward: GuestForward) -> Iterator[Plain]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Plain(forward, ("127.0.0.1", server.server_address[1]))
        finally:
            server.shutdown()


def running_forwards(port: int) -> list[int]:
    """Return a pidfd of each running guest forward to a port of the host."""
    descriptors = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if guest_forward.__file__.encode() in words and str(port).encode() in words:
                descriptors.append(os.pidfd_open(int(path.name)))
    return descriptors


@pytest.fixture
def plain() -> Iterator[Plain]:
    with serving(GuestForward("plain", "10.0.2.100", 80)) as service:
        yield service


def test_a_guest_reaches_its_service_and_nothing_else(lab: Lab, plain: Plain) -> None:
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as other, serving(GuestForward("unused")) as unused:
        other.settimeout(0.1)
        machine = lab.boot("micro", services=[plain]).wait_ready()
        assert machine.succeed("wget -qO- http://10.0.2.100/") == "hello\n"
        assert machine.succeed("wget -qO- http://10.0.2.100/1 | wc -c").strip() == str(MIB)
        # Other ports of the same host: at the gateway, at the service's address, and beside it.
        for port in (other.getsockname()[1], unused.address[1], plain.address[1]):
            for address in ("10.0.2.2", "10.0.2.100", "10.0.2.101"):
                machine.fail(f"echo hello | timeout 3 nc {address} {port}")
        with contextlib.suppress(TimeoutError):
            connections.append(other.accept())
        assert connections == []
        machine.fail("timeout 3 nslookup example.org 10.0.2.3")
        machine.fail("timeout 3 nc 192.0.2.1 80 </dev/null")


def test_a_guest_forward_carries_many_connections_and_a_closed_half(lab: Lab, plain: Plain) -> None:
    machine = lab.boot("micro", services=[plain]).wait_ready()
    fetch = "wget -qO- http://10.0.2.100/1 | md5sum"
    words = machine.succeed(f"for i in 1 2 3 4 5 6 7 8; do {fetch} & done; wait").split()
    assert len(set(words)) == 2  # one checksum, and "-"
    # The guest closes its side first and still receives the answer.
    ask = r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 10.0.2.100 80 | tail -n 1"
    assert machine.succeed(ask) == "hello\n"
    # Each connection had a guest forward of its own; each ends by itself.
    for descriptor in running_forwards(plain.address[1]):
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)


def test_a_fork_reaches_a_service_that_its_origin_did_not(lab: Lab, plain: Plain) -> None:
    first = lab.boot("micro", saveable=True)
    first.os.login()
    saved = first.save(first.evidence / "disks" / "saved", final=True)
    assert [nic.guest_forwards for nic in saved.spec.nics] == [()]
    fork = lab.fork(saved, name="reaching", services=[plain])
    assert fork.console.run("wget -qO- http://10.0.2.100/").stdout == "hello\n"
    again = lab.fork(saved, name="alone")
    assert again.console.run("wget -T 5 -qO- http://10.0.2.100/").status != 0


def test_a_state_is_forked_with_services(lab: Lab, plain: Plain) -> None:
    # With --fresh the steps run again, on a machine that reaches the service as well.
    machine = lab.fork(points.live, services=[plain])
    assert machine.console.run("wget -qO- http://10.0.2.100/").stdout == "hello\n"
    assert lab.fork(points.live).console.run("wget -T 5 -qO- http://10.0.2.100/").status != 0


def test_a_service_that_is_not_running_is_named(lab: Lab) -> None:
    with pytest.raises(UsageError, match="reaches service missing, which is not running"):
        lab.boot("micro", nics=[Nic(guest_forwards=(GuestForward("missing"),))])


def test_a_guest_forward_ends_when_the_machine_is_killed(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        machine = lab.boot(
            "micro", services=[Plain(GuestForward("slow"), server.getsockname())]
        ).wait_ready()
        machine.succeed("(nc 10.0.2.100 443 </dev/zero >/dev/null 2>&1 &)")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100)
            [running] = running_forwards(server.getsockname()[1])
            machine.power_cut()
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(MIB):
                    pass
        assert select.select([running], [], [], 30)[0]
        os.close(running)


@pytest.fixture(params=["process", "docker"])
def mode(request: pytest.FixtureRequest) -> str:
    """How servers run; containers only where an engine answers."""
    mode = str(request.param)
    if mode == "docker":
        try:
            Engine()
        except ServiceError as error:
            pytest.skip(f"{error.what}: start one (dockerd) to run servers in containers")
    return mode


@pytest.fixture
def runner(mode: str, tmp_path: Path) -> ServiceRunner:
    return ServiceRunner(Store(paths.cache_dir()), tmp_path / "disks", mode)


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Ca, Ca]:
    return Ca(tmp_path / "ca"), Ca(tmp_path / "unknown")


def curl(server: Server, ca: Ca, path: str, *more: str) -> subprocess.CompletedProcess[bytes]:
    """Fetch as a guest does: by the guest's address, trusting the run's CA alone."""
    host, port = server.address
    to = f"{server.forward.address}:{server.forward.port}:{host}:{port}"
    url = f"https://{server.guest}{path}"
    return subprocess.run(
        ["curl", "-sS", "--cacert", str(ca.path), "--connect-to", to, *more, url],
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_update_server_serves_published_files(
    runner: ServiceRunner, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    ca, unknown = authorities
    with UpdateServer(runner, ca, unknown, tmp_path) as server:
        (tmp_path / "image.raw").write_bytes(BODY)
        assert server.publish(tmp_path / "image.raw") == "https://10.0.2.100/image.raw"
        server.publish("digests", "sub/SHA256SUMS")
        assert curl(server, ca, "/image.raw").stdout == BODY
        assert curl(server, ca, "/image.raw", "-r", "1000-1999").stdout == BODY[1000:2000]
        assert curl(server, ca, "/sub/SHA256SUMS").stdout == b"digests"
        assert b"nginx" in curl(server, ca, "/nothing").stdout
        assert [(request.path, request.status) for request in server.requests] == [
            ("/image.raw", 200),
            ("/image.raw", 206),
            ("/sub/SHA256SUMS", 200),
            ("/nothing", 404),
        ]
        # curl(1), EXIT CODES: 18 partial file, 22 an HTTP error with --fail, 56 failure in receiving,
        # 60 the peer's certificate.
        with server.fault("/*.raw", CutOff(percent=50)):
            assert curl(server, ca, "/image.raw").returncode in (18, 56)
        with server.fault("/*.raw", FlippedBit()):
            assert curl(server, ca, "/image.raw").stdout != BODY
        with server.fault("/*", ServerError(503)):
            assert curl(server, ca, "/image.raw", "--fail").returncode == 22
        with server.fault(ExpiredCertificate()):
            result = curl(server, ca, "/image.raw")
            assert (result.returncode, b"expired" in result.stderr) == (60, True)
        with server.fault(UnknownCa()):
            assert curl(server, ca, "/image.raw").returncode == 60
        server.fault("/*", ServerError(500))
        server.reset()
        assert curl(server, ca, "/image.raw").returncode == 0
        assert [request.status for request in server.requests] == [404]
        server.check()
        with pytest.raises(UsageError, match="needs a path"):
            server.fault(CutOff(1))
        with pytest.raises(UsageError, match="takes no path"):
            server.fault("/*", UnknownCa())
        with pytest.raises(UsageError, match="not a path below"):
            server.publish("x", "../../x")
    assert len((tmp_path / "updates-requests.jsonl").read_text().splitlines()) > 9
    assert '"GET /image.raw HTTP/1.1" 206' in (tmp_path / "updates-access.log").read_text()
    assert not server.data.exists()


def test_the_registry_stores_and_serves_artifacts(
    runner: ServiceRunner, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    ca, unknown = authorities
    with Registry(runner, ca, unknown, tmp_path) as server:
        (tmp_path / "usr.raw").write_bytes(BODY)
        (tmp_path / "empty").touch()
        files = [tmp_path / "usr.raw", tmp_path / "empty"]
        assert server.push(files, "os/skiff", "2") == "10.0.2.100:5000/os/skiff:2"
        server.push(files, "os/skiff", "3")  # the registry has the blobs already
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
            layer["annotations"]["org.opencontainers.image.title"]: layer["digest"]
            for layer in manifest["layers"]
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
        assert [request.status for request in server.requests] == [200, 200, 200, 404]


MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def test_an_index_leads_to_the_artifact_of_each_architecture(
    runner: ServiceRunner, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    ca, unknown = authorities
    with Registry(runner, ca, unknown, tmp_path) as server:

        def manifest(reference: str, accept: str) -> tuple[bytes, dict[str, Any]]:
            path = f"/v2/os/skiff/manifests/{reference}"
            body = curl(server, ca, path, "--fail", "-H", f"Accept: {accept}").stdout
            return body, json.loads(body)

        for name in ("arm", "intel", "again"):
            (tmp_path / name).write_text(f"for {name}")
        arm, intel, again = ([tmp_path / name] for name in ("arm", "intel", "again"))
        sets = [("aarch64", arm), ("x86_64", intel), ("x86_64", again)]
        assert server.push_index(sets, "os/skiff", "2") == "10.0.2.100:5000/os/skiff:2"
        _, index = manifest("2", INDEX)
        assert index["mediaType"] == INDEX
        platforms = [entry["platform"] for entry in index["manifests"]]
        assert {platform["os"] for platform in platforms} == {"linux"}
        assert [platform["architecture"] for platform in platforms] == ["arm64", "amd64", "amd64"]
        # Each entry is the digest and the size of a manifest, whose layer is the file.
        for entry, [path] in zip(index["manifests"], (arm, intel, again), strict=True):
            body, artifact = manifest(entry["digest"], MANIFEST)
            assert entry["mediaType"] == artifact["mediaType"] == MANIFEST
            assert entry["digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
            assert entry["size"] == len(body)
            (layer,) = artifact["layers"]
            assert layer["annotations"] == {"org.opencontainers.image.title": path.name}
            blob = curl(server, ca, f"/v2/os/skiff/blobs/{layer['digest']}").stdout
            assert blob == path.read_bytes()
        # A tag may move from an index to an artifact, and back.
        server.push(arm, "os/skiff", "2")
        assert manifest("2", f"{INDEX}, {MANIFEST}")[1]["mediaType"] == MANIFEST
        with pytest.raises(UnknownNameError, match="arch"):
            server.push_index([("arm64", arm)], "os/skiff", "3")
        assert curl(server, ca, "/v2/os/skiff/manifests/3", "--fail").returncode == 22
        server.push_index([], "os/skiff", "empty")
        assert manifest("empty", INDEX)[1]["manifests"] == []


KELP = """\
name: kelp
summary: An OS of another project
profile: ../kelp.py
arches:
  x86_64: {{firmware: uefi, artifacts: {{update: {x86_64}}}}}
  aarch64: {{firmware: uefi, artifacts: {{update: {aarch64}}}}}
capabilities: [x-omaha]
"""

KELP_PROFILE = """
from harness import Profile


class Kelp(Profile):
    name = "kelp"

    @classmethod
    def arch_folder(cls, arch=None):
        return f"for-{arch or 'me'}"
"""

KELP_TEST = """


def test_it(image, update_server, registry, update_files, publish_arches, push_arches):
    version = image.version
    sets = [(arch, update_files(version, arch)) for arch in image.definition.arches]
    assert update_files(version) == dict(sets)[image.arch]
    assert publish_arches(version, sets) == f"https://10.0.2.100/{version}/for-me/"
    published = [path for path in sorted(update_server.data.rglob("*")) if path.is_file()]
    assert {str(path.relative_to(update_server.data)): path.read_text() for path in published} == {
        f"{version}/for-aarch64/payload": "aarch64",
        f"{version}/for-x86_64/payload": "x86_64",
    }
    assert push_arches(version, sets) == f"oci://10.0.2.100:5000/os/arches:{version}"
    assert image.other_arches == ("aarch64",)
"""


def test_the_files_of_all_architectures_get_one_address(project: Project) -> None:
    artifacts = {}
    for arch in ("x86_64", "aarch64"):
        file = project.folder / f"{arch}.tar"
        payload = tarfile.TarInfo("payload")
        payload.size = len(arch)
        with tarfile.open(file, "w") as archive:
            archive.addfile(payload, io.BytesIO(arch.encode()))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        artifacts[arch] = f'{{url: "file://{file}", sha256: {digest}}}'
    project.write("images/kelp/image.yaml", KELP.format(**artifacts))
    project.write("images/kelp.py", KELP_PROFILE)
    project.write("test_arches.py", KELP_TEST)
    result = project.pytest("--image", "kelp", "--arch", "x86_64", "--services", "process", "-q")
    assert result.status == 0, result.text


def kill(server: Server, mode: str) -> None:
    """Kill the real server from outside Harness."""
    if mode == "docker":
        Engine().client.containers.get(server._backend.id).kill()  # type: ignore[attr-defined]
    else:
        os.kill(server._backend.pid, signal.SIGKILL)  # type: ignore[attr-defined]


def test_a_killed_server_ends_the_waits_of_every_scope_that_it_joined(
    mode: str, runner: ServiceRunner, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    with Registry(runner, *authorities, tmp_path) as server, Scope("test") as scope:
        with server.joined(scope), scope.alarm() as alarm:
            ends = select.poll()
            ends.register(alarm, 0)
            assert not ends.poll(0)
            kill(server, mode)
            assert ends.poll(30_000), "the wait goes on although the server was killed"
            with pytest.raises(ServiceError, match="docker-registry of service registry has ended"):
                scope.check()
        with Scope("next test") as late, server.joined(late):
            assert late.failure is scope.failure
        with pytest.raises(ServiceError, match="has ended under its guests"):
            server.check()


def test_a_server_that_is_closed_fails_no_scope(
    runner: ServiceRunner, authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    with Scope("test") as scope:
        server = UpdateServer(runner, *authorities, tmp_path)
        with server.joined(scope):
            server.close()
        assert scope.failure is None


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def test_a_server_dies_with_the_process_that_started_it(mode: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from harness import paths\n"
        "from harness.services import Ca, ServiceRunner, Registry, UpdateServer\n"
        "from harness.artifacts import Store\n"
        "folder, mode = Path(sys.argv[1]), sys.argv[2]\n"
        "runner = ServiceRunner(Store(paths.cache_dir()), folder / 'disks', mode)\n"
        "ca = Ca(folder / 'ca')\n"
        "for kind in (UpdateServer, Registry):\n"
        "    server = kind(runner, ca, ca, folder)\n"
        "    print(getattr(server._backend, 'pid', None) or server._backend.id, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as victim:
        assert victim.stdout is not None
        names = [victim.stdout.readline().strip() for _ in range(2)]
        assert all(names)
        if mode == "docker":
            containers = [Engine().client.containers.get(name) for name in names]
            victim.kill()
            for container in containers:
                with contextlib.suppress(NotFound):
                    container.wait(condition="removed", timeout=60)
                with pytest.raises(NotFound):
                    container.reload()
        else:
            watched = [os.pidfd_open(pid) for name in names for pid in family(int(name))]
            victim.kill()
            for descriptor in watched:
                with contextlib.closing(os.fdopen(descriptor)):
                    assert select.select([descriptor], [], [], 30)[0], "it outlived its owner"


def test_the_next_run_sweeps_a_container_whose_guard_was_killed(
    authorities: tuple[Ca, Ca], tmp_path: Path
) -> None:
    try:
        engine = Engine()
    except ServiceError as error:
        pytest.skip(f"{error.what}: start one (dockerd) to run servers in containers")
    built = Store(paths.cache_dir()).artifacts(ProgramTree(platform.machine()))
    image = engine.image(built["root"], built.manifest.artifacts["root"].sha256[:20])
    # The process id is in use, but by a process that started at another time.
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


def test_the_fixtures_reset_servers_before_a_test(lab: Lab, update_server: UpdateServer) -> None:
    assert update_server.requests == []
    assert list(update_server.data.iterdir()) == []
    update_server.publish("left behind", "one")
    update_server.fault("/*", ServerError())
    assert curl(update_server, lab.ca, "/one", "--fail").returncode == 22


def test_the_fixtures_reset_servers_after_the_test_before(
    lab: Lab, update_server: UpdateServer, registry: Registry
) -> None:
    assert update_server.requests == []
    assert curl(update_server, lab.ca, "/one", "--fail").returncode == 22
    assert update_server.requests[0].status == 404
    assert curl(registry, lab.ca, "/v2/").stdout == b"{}"


def test_a_guest_fetches_from_the_update_server_over_tls(
    lab: Lab, update_server: UpdateServer
) -> None:
    machine = lab.boot("micro", services=[update_server]).wait_ready()
    address = update_server.publish(BODY, "image.raw")
    checksum = machine.succeed(f"wget --no-check-certificate -qO- {address} | sha256sum")
    assert checksum.split()[0] == hashlib.sha256(BODY).hexdigest()
    assert [(request.path, request.bytes) for request in update_server.requests] == [
        ("/image.raw", len(BODY))
    ]
