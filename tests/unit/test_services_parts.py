"""Guest forwards in spec, argv and script; the parts of servers, without starting one."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from harness import jsonfile
from harness.artifacts import Store
from harness.deadline import UNSCALED
from harness.errors import HarnessError, ServiceError, UsageError, WaitTimeoutError
from harness.pytest_plugin.verdicts import servers
from harness.qemu import argv, guest_forward
from harness.qemu.argv import Allocations
from harness.qemu.script import record_machine
from harness.scope import Scope
from harness.services import Ca, ServiceRunner, UpdateServer, container
from harness.services.faults import CutOff
from harness.services.output import ServerOutput
from harness.services.programs import NGINX, REGISTRY, Places
from harness.services.request_log import Request, RequestLog
from harness.spec import Firmware, FirmwareKind, GuestForward, MachineSpec, Nic, with_guest_forwards

KERNEL = Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"))
UPDATES = GuestForward("updates")
SPEC = MachineSpec("m", "x86_64", KERNEL, nics=(Nic(guest_forwards=(UPDATES,)),))
ALLOCATIONS = Allocations(
    Path("/usr/bin/qemu"),
    "pc-q35-10.0",
    "tcg",
    "max",
    services={"updates": ("127.0.0.1", 40123)},
)


def record(
    spec: MachineSpec,
    allocations: Allocations,
    disks: Path,
    evidence: Path,
    provenance: Mapping[str, object] = {},
) -> Path:
    """Write a machine's record and script; return the path of the script."""
    record_machine(spec, allocations, folder=disks, evidence=evidence, provenance=provenance)
    return evidence / "qemu.sh"


def netdev(words: tuple[str, ...]) -> str:
    return words[words.index("-netdev") + 1]


def test_a_request_from_before_the_log_was_cleared_is_in_the_file_alone(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    late = Request("", "")
    log.clear()
    log.begin(late)
    log.end(late)
    log.begin(Request("GET", "/next"))
    assert [request.path for request in log.requests] == ["/next"]
    assert len(log.path.read_text().splitlines()) == 1


def test_requests_are_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    slow, quick = Request("GET", "/slow"), Request("GET", "/quick")
    log.begin(quick)
    log.begin(slow)
    assert [request.path for request in log.requests] == ["/slow", "/quick"]


def test_a_guest_with_a_guest_forward_is_still_restricted() -> None:
    option = netdev(argv.build(SPEC, ALLOCATIONS))
    assert ",restrict=on," in option
    head, _, command = option.partition(",guestfwd=tcp:10.0.2.100:443-cmd:")
    assert "guestfwd" not in head
    # QEMU splits the option at commas; libslirp splits the command as a shell does (g_shell_parse_argv).
    words = shlex.split(command.replace(",,", ","))
    assert words == [sys.executable, "-I", "-S", guest_forward.__file__, "127.0.0.1", "40123"]


def test_the_command_of_a_guest_forward_may_have_blanks_and_commas() -> None:
    forwarder = ("python3", "/a b, c/forward.py")
    option = netdev(argv.build(SPEC, replace(ALLOCATIONS, forwarder=forwarder)))
    assert "'/a b,, c/forward.py'" in option


def test_the_script_names_the_address_of_a_service(tmp_path: Path) -> None:
    path = record(SPEC, ALLOCATIONS, tmp_path / "disks", tmp_path)
    text = path.read_text()
    assert "# The guest reaches updates at 10.0.2.100:443, which is 127.0.0.1:40123" in text
    subprocess.run(["sh", "-n", path], check=True)
    result = subprocess.run(
        ["sh", path],
        env={"HARNESS_DISKS": str(tmp_path / "d"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/usr/bin/qemu" in result.stderr  # sh parsed the script up to the missing program


def test_a_spec_with_guest_forwards_survives_json() -> None:
    assert jsonfile.parse(MachineSpec, jsonfile.dump(SPEC)) == SPEC


def test_guest_forwards_are_replaced_and_belong_to_the_first_interface() -> None:
    spec = replace(
        SPEC,
        nics=(Nic("a", guest_forwards=(UPDATES,)), Nic("b", guest_forwards=(GuestForward("x"),))),
    )
    other = GuestForward("registry", port=5000)
    assert [nic.guest_forwards for nic in with_guest_forwards(spec, [other]).nics] == [(other,), ()]
    assert [nic.guest_forwards for nic in with_guest_forwards(spec, []).nics] == [(), ()]
    with pytest.raises(UsageError, match="no interface"):
        with_guest_forwards(replace(spec, nics=()), [other])


def test_impossible_guest_forwards_are_refused() -> None:
    for address in ("10.0.2.2", "127.0.0.1", "10.0.2.300", "10.0.2.15"):
        with pytest.raises(UsageError, match="address must be"):
            GuestForward("x", address)
    with pytest.raises(UsageError, match="port must be"):
        GuestForward("x", port=0)
    with pytest.raises(UsageError, match=r"two services at 10\.0\.2\.100:443"):
        Nic(guest_forwards=(GuestForward("x"), GuestForward("y")))
    with pytest.raises(UsageError, match="two services named x"):
        replace(
            SPEC,
            nics=(
                Nic("a", guest_forwards=(GuestForward("x"),)),
                Nic("b", guest_forwards=(GuestForward("x"),)),
            ),
        )


@contextlib.contextmanager
def running_forward(port: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Start a guest forward as libslirp does: one TCP socket as input, output and error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        guest = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guest_forward.__file__, "127.0.0.1", str(port)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=theirs.fileno(),
        )
    guest.settimeout(20)
    with guest, process:
        try:
            yield guest, process
        finally:
            process.kill()


def test_a_guest_forward_copies_both_ways_and_keeps_a_closed_half() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running_forward(server.getsockname()[1]) as (guest, process),
        server.accept()[0] as service,
    ):
        service.settimeout(20)
        # Its own messages must not reach the guest.
        ends = {str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
        assert ends == {os.devnull}
        guest.sendall(b"question")
        guest.shutdown(socket.SHUT_WR)
        assert service.makefile("rb").read() == b"question"
        big = os.urandom(3_000_000)

        def answer() -> None:
            service.sendall(big)
            service.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=answer)
        sender.start()
        assert guest.makefile("rb").read() == big
        sender.join()
        assert process.wait(20) == 0


def test_a_guest_forward_closes_without_a_byte_if_the_service_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with running_forward(port) as (guest, process):
        assert guest.recv(100) == b""
        assert process.wait(20) == 1


def test_a_guest_forward_ends_with_its_guest() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running_forward(server.getsockname()[1]) as (guest, process),
        server.accept()[0] as service,
    ):
        service.settimeout(20)
        guest.close()
        assert service.recv(10) == b""
        service.close()
        assert process.wait(20) == 0


def test_a_configuration_names_its_folders_and_its_address() -> None:
    places = Places("/d a/data", "/w", "/etc")
    nginx = NGINX.configure(places, "127.0.0.1:1234")
    assert "listen 127.0.0.1:1234;" in nginx
    assert 'root "/d a/data";' in nginx
    assert "master_process off;" in nginx
    registry = REGISTRY.configure(places, "127.0.0.1:0")
    assert 'addr: "127.0.0.1:0"' in registry


def test_the_folders_of_a_server_may_have_any_name() -> None:
    places = Places('/a "b" \\c', "/w", "/e")
    assert 'rootdirectory: "/a \\"b\\" \\\\c"\n' in REGISTRY.configure(places, "127.0.0.1:0")
    assert 'root "/a \\"b\\" \\\\c";\n' in NGINX.configure(places, "127.0.0.1:0")


def test_a_server_is_ready_at_its_line_and_an_early_end_is_an_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        output = ServerOutput(
            source, tmp_path / "log", re.compile(r"listening on \S+:(?P<port>\d+)")
        )
        with pytest.raises(WaitTimeoutError, match="the server to be ready"):
            output.wait_ready("the server", UNSCALED.after(0.05))
        os.write(writing, b"\xff\nlistening on [::]:4711\n")
        assert output.wait_ready("the server", UNSCALED.after(20))["port"] == "4711"
        os.close(writing)
        output.join()
    assert (tmp_path / "log").read_bytes().startswith(b"\xff\n")
    dead = ServerOutput([b"no such file\n"], tmp_path / "other", re.compile("never"))
    with pytest.raises(ServiceError, match="ended before it was ready") as caught:
        dead.wait_ready("the server", UNSCALED.after(20))
    assert "no such file" in caught.value.evidence


def test_a_body_that_is_cut_off_never_arrives_whole() -> None:
    assert [CutOff(100).kept(size) for size in (0, 1, 1000)] == [0, 0, 999]


def test_the_report_says_how_servers_ran(tmp_path: Path) -> None:
    assert servers(tmp_path) == []
    line = '{"name": "updates", "program": "nginx", "by": "a local process", "why": "no engine"}\n'
    (tmp_path / "services.jsonl").write_text(line * 2)
    assert servers(tmp_path) == ["service updates: nginx as a local process (no engine)"]


class StubBackend:
    """A real server that never runs; a test ends it by calling ``on_exit``."""

    by = "a stub"
    address = ("127.0.0.1", 1)
    running = True
    last_words = ""
    scale = UNSCALED

    def __init__(self) -> None:
        self.on_exit: Callable[[str], None] = lambda last_words: None

    def start(self, *arguments: Any) -> StubBackend:
        self.on_exit = arguments[-1]
        return self

    def close(self) -> None:
        self.on_exit("closed")


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend()


@pytest.fixture
def server(backend: StubBackend, tmp_path: Path) -> Iterator[UpdateServer]:
    ca = Ca(tmp_path / "ca")
    with UpdateServer(cast(ServiceRunner, backend), ca, ca, tmp_path / "evidence") as server:
        yield server


def test_a_server_that_ends_fails_the_scopes_that_it_is_joined_to(
    server: UpdateServer, backend: StubBackend
) -> None:
    with Scope("before") as before, Scope("a") as a, Scope("b") as b, Scope("after") as after:
        with server.joined(before):
            pass
        with server.joined(a), server.joined(b):
            backend.on_exit("the last line")
            assert a.failure is b.failure
            with pytest.raises(ServiceError, match="nginx of service updates has ended") as caught:
                a.check()
            assert "the last line" in caught.value.evidence
        with server.joined(after):
            assert after.failure is a.failure, "it had ended before it was joined"
        assert before.failure is None
    with pytest.raises(ServiceError, match="has ended under its guests"):
        server.check()


def test_a_server_that_is_closed_fails_no_scope(server: UpdateServer) -> None:
    with Scope("test") as scope, server.joined(scope):
        server.close()
        assert scope.failure is None


def test_a_leaf_may_use_the_server_that_fails_its_scope(
    server: UpdateServer, backend: StubBackend
) -> None:
    errors: list[str] = []

    class Leaf:
        def fail(self, error: HarnessError) -> None:
            with pytest.raises(ServiceError) as caught:
                server.check()
            errors.append(caught.value.what)

    with Scope("test") as scope, server.joined(scope):
        scope.add(Leaf())
        backend.on_exit("")
    assert errors == ["nginx of service updates has ended under its guests"]


def test_the_end_of_the_output_is_reported_once_with_its_last_lines(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"the last line\n"
        raise OSError("the engine is gone")

    ends: list[str] = []
    output = ServerOutput(broken(), tmp_path / "log", re.compile("never"), ends.append)
    output.join()
    assert ends == ["the last line\nthe output cannot be read or written: the engine is gone"]


def test_an_unknown_service_mode_is_refused(tmp_path: Path) -> None:
    message = r"unknown service mode 'podman' \(choose auto, docker, process\)"
    with pytest.raises(UsageError, match=message):
        ServiceRunner(Store(tmp_path), tmp_path, "podman")


def test_the_labels_of_containers_do_not_follow_the_names_of_modules() -> None:
    # A run sweeps containers that an earlier version of Harness left, and finds them by these.
    assert (container.HOST, container.OWNER) == ("org.harness.host", "org.harness.owner")
