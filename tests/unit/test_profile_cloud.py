"""The profile of cloud images: its seed, and the script in it, run by this host's shell."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pycdlib
import pytest
import yaml

from harness import paths, profiles
from harness.catalog import Image, Selection, load
from harness.cli import main
from harness.errors import UsageError
from harness.profiles.cloud import Cloud
from harness.spec import Disk, MachineSpec

CATALOGUE = paths.bundled("images")
KEY = "ssh-ed25519 AAAAC3Nza harness"
OTHER = "ssh-ed25519 AAAAB0ther admin"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def selection(**login: str) -> Selection:
    """A cloud image with this login."""
    arches = {"x86_64": {"firmware": "uefi", "artifacts": {"live": {"file": "live.raw"}}}}
    return Image.model_validate(
        {
            "name": "kite",
            "summary": "An image",
            "profile": "cloud",
            "arches": arches,
            "build": {"script": "build"},
            "login": login or {"user": "root", "password": "it's $HOME"},
        }
    ).select()


def spec(chosen: Selection, *disks: Disk) -> MachineSpec:
    return Cloud.spec(chosen, {"live": Path("/live.raw")}, name="kite", disks=disks)


def seed_of(machine: MachineSpec) -> Path:
    (disk,) = (disk for disk in machine.disks if disk.name == "seed")
    assert disk.readonly
    assert disk.base is not None
    return disk.base


def test_a_machine_gets_a_seed(cache: Path) -> None:
    machine = spec(selection())
    assert [disk.name for disk in machine.disks] == ["live", "seed"]
    path = seed_of(machine)
    assert path.parent == cache / "seeds"
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        assert iso.pvd.volume_identifier.strip() == b"cidata"
        names = {
            child.rock_ridge.name() for child in iso.list_children(iso_path="/") if child.rock_ridge
        }
    finally:
        iso.close()
    assert {b"user-data", b"meta-data"} <= names
    assert path.stat().st_mode & 0o777 == 0o444


def test_equal_images_share_one_file(cache: Path) -> None:
    before = seed_of(spec(selection()))
    stat = before.stat()
    assert seed_of(spec(selection())) == before
    assert before.stat().st_mtime_ns == stat.st_mtime_ns
    assert seed_of(spec(selection(user="root", password="other"))) != before
    assert len(list((cache / "seeds").iterdir())) == 2


def test_the_seed_of_a_test_stands_instead(cache: Path) -> None:
    own = Disk("seed", base=Path("/own.iso"), readonly=True)
    assert seed_of(spec(selection(), own)) == Path("/own.iso")
    assert not (cache / "seeds").exists()


@pytest.mark.parametrize("login", [{"user": "root"}, {"user": "ubuntu", "password": "x"}])
def test_a_login_that_the_seed_cannot_make_is_refused(login: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="sets a password for root"):
        spec(selection(**login))


# --- the script -------------------------------------------------------------------------------


class Guest:
    """A folder that stands for a guest's root, in which this host's shell runs the seed's script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / "tools"
        tools.mkdir(parents=True)
        (tools / "chpasswd").write_text(f"#!/bin/sh\ncat >{folder}/passwords\n")
        (tools / "modprobe").write_text(f"#!/bin/sh\necho $* >>{folder}/modules\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)

    def write(self, path: str, content: str | bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def table(self, *strings: str) -> None:
        """An SMBIOS table of type 11: a header of 5 bytes, and strings that end in NUL."""
        raw = bytes((11, 5, 0, 2, len(strings))) + b"".join(s.encode() + b"\0" for s in strings)
        self.write("sys/firmware/dmi/entries/11-0/raw", raw + b"\0")

    def run(self) -> list[str]:
        user_data = Cloud.seed_files(selection())["user-data"]
        assert user_data.startswith("#cloud-config\n")
        settings: dict[str, Any] = yaml.safe_load(user_data)
        (command,) = settings["bootcmd"]
        assert command[:2] == ["sh", "-c"]
        script = command[2]
        for place in ("/root/", "/sys/", "/run/"):
            script = script.replace(place, f"{self.folder}{place}")
        path = f"{self.folder}/tools:{os.environ['PATH']}"
        subprocess.run(["sh", "-uc", script], check=True, env={"PATH": path})
        keys = self.folder / "root/.ssh/authorized_keys"
        assert keys.stat().st_mode & 0o777 == 0o600
        assert keys.parent.stat().st_mode & 0o777 == 0o700
        return keys.read_text().splitlines()


NAME = "ssh.authorized_keys.root"


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "guest")


def test_the_password_is_set_and_survives_the_shell(guest: Guest) -> None:
    guest.run()
    assert (guest.folder / "passwords").read_text() == "root:it's $HOME\n"
    assert "dmi-sysfs" in (guest.folder / "modules").read_text()


def test_the_key_comes_from_an_smbios_string(guest: Guest) -> None:
    guest.table(
        "something else", f"io.systemd.credential:{NAME}={KEY}", "io.systemd.credential:a=b"
    )
    assert guest.run() == [KEY]


def test_the_key_comes_from_an_encoded_string(guest: Guest) -> None:
    keys = base64.b64encode(f"{KEY}\n{OTHER}".encode()).decode()
    guest.table(f"io.systemd.credential.binary:{NAME}={keys}")
    assert guest.run() == sorted([KEY, OTHER])


def test_the_key_comes_from_a_fw_cfg_file(guest: Guest) -> None:
    place = f"sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/{NAME}/raw"
    guest.write(place, KEY)
    assert guest.run() == [KEY]


def test_all_places_together_make_one_key_and_keep_others(guest: Guest) -> None:
    """systemd has taken the key before; none of the files ends in a line's end."""
    guest.write("root/.ssh/authorized_keys", OTHER)
    guest.write(f"run/credentials/@system/{NAME}", KEY)
    guest.table(f"io.systemd.credential:{NAME}={KEY}")
    guest.write(f"sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/{NAME}/raw", KEY)
    assert guest.run() == sorted([KEY, OTHER])
    assert guest.run() == sorted([KEY, OTHER])


def test_without_a_key_nothing_is_let_in(guest: Guest) -> None:
    assert guest.run() == []


# --- words ------------------------------------------------------------------------------------


def bound(profile: type[Cloud], answers: dict[str, str]) -> tuple[Cloud, list[str]]:
    """A profile whose machine answers commands, and the commands that it ran."""
    ran: list[str] = []

    def succeed(command: str, deadline: object = None) -> str:
        ran.append(command)
        return next((text for word, text in answers.items() if word in command), "")

    machine = SimpleNamespace(
        name="kite",
        succeed=succeed,
        console=SimpleNamespace(dialogue=None),
        scale=SimpleNamespace(limit=lambda deadline, default: deadline or default),
    )
    return profile(cast(Any, machine), selection()), ran


@pytest.mark.parametrize("text", ['"13"\n', "13\n", "'13'\n"])
def test_the_version(text: str) -> None:
    profile, _ = bound(Cloud, {"os-release": text})
    assert profile.version() == "13"


def test_running_means_that_cloud_init_is_done() -> None:
    profile, ran = bound(Cloud, {})
    profile.wait_running()
    assert "cloud-init status --wait" in ran[0]
    assert "is-system-running" in ran[1]


# --- the catalogue ----------------------------------------------------------------------------

CLOUD_IMAGES = ("alpine", "debian", "fedora", "opensuse", "ubuntu")


def test_the_entries_of_other_systems_fit_their_profiles() -> None:
    catalog = load(CATALOGUE, known_profiles=profiles.names())
    for name in (*CLOUD_IMAGES, "kairos"):
        image = catalog.get(name)
        profile: type[profiles.Profile] = profiles.of(image)
        assert profiles.lacking(profile, image.capabilities) == []
        assert issubclass(profile, Cloud) == (name in CLOUD_IMAGES)
        if name in CLOUD_IMAGES:
            assert (
                json.loads(Cloud.seed_files(image.select())["meta-data"])["local-hostname"] == name
            )


def test_an_entry_that_was_not_run_says_so() -> None:
    """What nobody has seen boot must not look as if it had been."""
    catalog = load(CATALOGUE, known_profiles=profiles.names())
    for name in ("alpine", "fedora", "kairos", "opensuse", "ubuntu"):
        image = catalog.get(name)
        assert "not run" in image.summary
        assert image.path.read_text().startswith("# NOT RUN")
    assert catalog.get("opensuse").select().unpinned == ("live",)
    assert catalog.get("ubuntu").select().unpinned == ()


def test_an_image_without_a_digest_is_listed_and_not_fetched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["images", "list"]) == 0
    lines = {line.split("/")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "no digest" in lines["opensuse"]
    assert "no digest" not in lines["fedora"]
    assert main(["images", "build", "opensuse"]) == 2
    err = capsys.readouterr().err
    assert "put the digest of the file you trust there" in err
    assert str(CATALOGUE / "opensuse" / "image.yaml") in err
