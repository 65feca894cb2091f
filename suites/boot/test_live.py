"""The live medium after power on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import Installable, Lab, Machine, Verified


@pytest.mark.tier(
    "smoke",
    cost=30,
    catches="a medium that does not boot, or has no login on the console",
    other_arches="gate",
)
def test_power_on_to_login_on_the_console(lab: Lab) -> None:
    """The console shows a login prompt, takes the documented login and gives a shell."""
    machine = lab.boot()
    machine.os.login()
    assert machine.console.run("id -un").stdout == f"{machine.os.account.user}\n"
    assert "ogin:" in machine.console.log.read_text(errors="replace")
    check_logs_are_there(machine)


def check_logs_are_there(machine: Machine) -> None:
    """Check that a machine's evidence is on disk before its test ends."""
    folder = machine.evidence
    assert b"login:" in (folder / "serial.log").read_bytes()
    header = json.loads((folder / "serial.cast").read_text().splitlines()[0])
    assert header["version"] == 2
    assert "qemu-system-" in (folder / "qemu.sh").read_text()
    assert json.loads((folder / "machine.json").read_text())["spec"]["name"] == machine.name
    messages = [json.loads(line) for line in (folder / "qmp.jsonl").read_text().splitlines()]
    assert "cont" in [each.get("send", {}).get("execute") for each in messages]
    timeline = json.loads((folder.parent / "timeline.json").read_text())
    assert "start" in [step["name"] for step in timeline["steps"]]


@pytest.mark.tier("gate", cost=5, catches="a key that arrives in SMBIOS and is not used")
@pytest.mark.needs("ssh", "credentials")
def test_ssh_takes_the_key_from_a_credential(live: Machine) -> None:
    """The key handed over in SMBIOS logs the user in; the console and SSH show the same boot."""
    assert live.ssh.run("id -un").check().stdout == f"{live.os.account.user}\n"
    assert (
        live.ssh.boot_id() == live.console.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()
    )


@pytest.mark.tier("gate", cost=5, catches="SSH without file transfer, or one that changes bytes")
@pytest.mark.needs("ssh")
def test_files_travel_over_ssh(live: Machine, tmp_path: Path) -> None:
    """A file put into the guest comes back byte for byte."""
    content = bytes(range(256)) * 1000
    live.ssh.put(content, "/run/there", mode=0o640)
    assert live.succeed("stat -c %a /run/there").strip() == "640"
    assert live.ssh.get("/run/there", tmp_path / "back") == content
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.tier(
    "gate", cost=4, catches="a live root that can be written, or that nothing verifies"
)
@pytest.mark.needs("verity")
def test_root_is_read_only_and_verified(live: Machine[Verified]) -> None:
    """The root is read-only, and dm-verity checks every read."""
    live.fail("touch /usr/here")
    assert "ro" in live.succeed("findmnt -no OPTIONS /").strip().split(",")
    assert live.os.verified()


@pytest.mark.tier(
    "gate", cost=4, catches="an image that names another version than it was built as"
)
@pytest.mark.needs("install")
def test_it_reports_its_version_and_slot(live: Machine[Installable]) -> None:
    """The version under test is the one that runs, from the live slot."""
    assert live.os.version() == live.os.selection.version
    assert live.os.slot() == "live"


@pytest.mark.tier("gate", cost=5, catches="a unit that fails at boot while login still works")
@pytest.mark.needs("systemd")
def test_no_unit_has_failed(live: Machine) -> None:
    """systemd has started the system, and no unit has failed."""
    live.succeed("systemctl --wait is-system-running")
    assert live.succeed("systemctl --failed --no-legend --plain").strip() == ""
