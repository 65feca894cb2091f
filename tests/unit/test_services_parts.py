"""Reaching services: spec, argv, script; and what servers are made of, without starting one."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.services import report
from harness.deadline import after
from harness.errors import ServiceError, UsageError, WaitTimeoutError
from harness.qemu import argv, relay
from harness.qemu.argv import Allocations
from harness.qemu.script import reproduce
from harness.services.faults import CutOff
from harness.services.lines import Lines
from harness.services.log import Log, Request
from harness.services.software import NGINX, REGISTRY, Places
from harness.spec import Firmware, FirmwareKind, MachineSpec, Nic, Reach, reaching
from harness.state.codec import spec_from_json, to_json

KERNEL = Firmware(FirmwareKind.KERNEL, Path("/k"), Path("/i"))
UPDATES = Reach("updates")
SPEC = MachineSpec("m", "x86_64", KERNEL, nics=(Nic(reach=(UPDATES,)),))
GIVEN = Allocations(Path("/usr/bin/qemu"), "tcg", "max", services={"updates": ("127.0.0.1", 40123)})


def netdev(words: tuple[str, ...]) -> str:
    return words[words.index("-netdev") + 1]


def test_what_was_asked_before_the_log_was_forgotten_is_in_the_file_alone(tmp_path: Path) -> None:
    log = Log(tmp_path / "requests.jsonl")
    late = Request("", "")
    log.forget()
    log.begin(late)
    log.end(late)
    log.begin(Request("GET", "/next"))
    assert [each.path for each in log.requests] == ["/next"]
    assert len(log.path.read_text().splitlines()) == 1


def test_a_guest_that_reaches_a_service_is_still_restricted() -> None:
    told = netdev(argv.build(SPEC, GIVEN))
    assert ",restrict=on," in told
    head, _, command = told.partition(",guestfwd=tcp:10.0.2.100:443-cmd:")
    assert "guestfwd" not in head
    # Split by QEMU at commas, and by libslirp as a shell's words (g_shell_parse_argv).
    words = shlex.split(command.replace(",,", ","))
    assert words == [sys.executable, "-I", "-S", relay.__file__, "127.0.0.1", "40123"]


def test_a_path_with_blanks_and_commas_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "__file__", "/a b, c/relay.py")
    told = netdev(argv.build(SPEC, GIVEN))
    assert "'/a b,, c/relay.py'" in told


def test_the_script_says_where_a_service_was(tmp_path: Path) -> None:
    path = reproduce(SPEC, GIVEN, tmp_path / "disks", tmp_path / "qemu.sh")
    text = path.read_text()
    assert "# The guest reaches updates at 10.0.2.100:443, which is 127.0.0.1:40123" in text
    subprocess.run(["sh", "-n", path], check=True)
    said = subprocess.run(
        ["sh", path],
        env={"HARNESS_DISKS": str(tmp_path / "d"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/usr/bin/qemu" in said.stderr  # all before the program itself was understood


def test_specs_with_services_travel_as_json() -> None:
    assert spec_from_json(to_json(SPEC)) == SPEC


def test_reaching_is_by_the_first_interface_and_of_these_only() -> None:
    spec = replace(SPEC, nics=(Nic("a", reach=(UPDATES,)), Nic("b", reach=(Reach("x"),))))
    other = Reach("registry", port=5000)
    assert [nic.reach for nic in reaching(spec, [other]).nics] == [(other,), ()]
    assert [nic.reach for nic in reaching(spec, []).nics] == [(), ()]
    with pytest.raises(UsageError, match="no interface"):
        reaching(replace(spec, nics=()), [other])


def test_services_that_cannot_be_are_refused() -> None:
    for address in ("10.0.2.2", "127.0.0.1", "10.0.2.300", "10.0.2.15"):
        with pytest.raises(UsageError, match="an address is"):
            Reach("x", address)
    with pytest.raises(UsageError, match="a port is"):
        Reach("x", port=0)
    with pytest.raises(UsageError, match=r"two services at 10\.0\.2\.100:443"):
        Nic(reach=(Reach("x"), Reach("y")))
    with pytest.raises(UsageError, match="two services named x"):
        replace(SPEC, nics=(Nic("a", reach=(Reach("x"),)), Nic("b", reach=(Reach("x"),))))


@contextlib.contextmanager
def running_relay(port: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Start a relay as libslirp does: one TCP socket as input, output and error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        guest = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", relay.__file__, "127.0.0.1", str(port)],
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


def test_the_relay_joins_both_ways_and_keeps_a_closed_half() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running_relay(server.getsockname()[1]) as (guest, process),
        server.accept()[0] as service,
    ):
        service.settimeout(20)
        # What it might say of itself is not for the guest.
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


def test_the_relay_says_nothing_when_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with running_relay(port) as (guest, process):
        assert guest.recv(100) == b""
        assert process.wait(20) == 1


def test_the_relay_ends_with_the_guest() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running_relay(server.getsockname()[1]) as (guest, process),
        server.accept()[0] as service,
    ):
        service.settimeout(20)
        guest.close()
        assert service.recv(10) == b""
        service.close()
        assert process.wait(20) == 0


def test_configurations_name_their_places() -> None:
    places = Places("/d a/data", "/w", "/etc")
    nginx = NGINX.configure(places, "127.0.0.1:1234")
    assert "listen 127.0.0.1:1234;" in nginx
    assert 'root "/d a/data";' in nginx
    assert "master_process off;" in nginx
    registry = REGISTRY.configure(places, "127.0.0.1:0")
    assert 'addr: "127.0.0.1:0"' in registry


def test_readiness_is_a_line_and_an_early_end_is_told(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        lines = Lines(source, tmp_path / "log", re.compile(r"listening on \S+:(?P<port>\d+)"))
        with pytest.raises(WaitTimeoutError, match="the server to be ready"):
            lines.wait_ready("the server", after(0.05, scaled=False))
        os.write(writing, b"\xff\nlistening on [::]:4711\n")
        assert lines.wait_ready("the server", after(20))["port"] == "4711"
        os.close(writing)
        lines.join()
    assert (tmp_path / "log").read_bytes().startswith(b"\xff\n")
    dead = Lines([b"no such file\n"], tmp_path / "other", re.compile("never"))
    with pytest.raises(ServiceError, match="ended before it was ready") as caught:
        dead.wait_ready("the server", after(20))
    assert "no such file" in caught.value.evidence


def test_a_cut_never_keeps_all() -> None:
    assert [CutOff(100).kept(size) for size in (0, 1, 1000)] == [0, 0, 999]


def test_the_report_says_how_servers_ran(tmp_path: Path) -> None:
    assert report(tmp_path) == []
    line = '{"name": "updates", "program": "nginx", "by": "a local process", "why": "no engine"}\n'
    (tmp_path / "services.jsonl").write_text(line * 2)
    assert report(tmp_path) == ["service updates: nginx as a local process (no engine)"]
