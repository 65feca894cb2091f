"""Consoles on which the kernel prints, colours, and consoles without an English getty; on micro."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import ROOT
from harness import Lab
from harness.catalog.model import LoginSettings
from harness.console import login
from harness.errors import LoginError, OutputLostError, WaitTimeoutError
from harness.machine import Machine
from harness.profiles import of

LATE = "echo '<1>vdb: detected capacity change' >/dev/kmsg"
"""Has the kernel print a line, although the command line says "quiet"."""

GETTY = "/sbin/getty -L 0 $main vt100"

GERMAN = """\
#!/bin/sh
stty icrnl
while :; do
    printf '\\nmicro Anmeldung: '
    read -r user || exit
    stty -echo
    printf 'Kennwort: '
    read -r word
    stty echo
    [ "$user $word" = "root geheim" ] && exec sh -l
    printf '\\nAnmeldung fehlgeschlagen\\n'
done
"""


def test_a_kernel_line_behind_the_prompt_delays_no_turn(micro: Machine[Any]) -> None:
    console = micro.console
    with console.interactive():
        console.send_line(f"(sleep 1; {LATE}) & :")
        console.expect("capacity change\r\n")
    assert console.run("echo on").stdout == "on\n"
    console.leave()
    console.send_line(f"(sleep 1; {LATE}) & :")
    console.expect("capacity change\r\n")
    console.login(None)
    assert console.run("echo on").stdout == "on\n"


@pytest.mark.parametrize(
    "prompt",
    [
        r"\033]0;title\007\033[01;32mmicro\033[01;34m \w #\033[00m ",
        r"micro:\w# \033[0m",
        r"\033[1m%%\033(B\033[m  \033[K",
    ],
)
def test_a_coloured_prompt_is_found(
    micro: Machine[Any], prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = micro.console
    # The shell must not be found by its answer to a probe that silence causes.
    monkeypatch.setattr(login, "_MOMENT", 100_000.0)
    try:
        with console.interactive():
            console.send_line(f"old=$PS1; PS1=$(printf '{prompt}')")
        console.leave()
        console.login(None)
        assert console.run("echo on").stdout == "on\n"
    finally:
        monkeypatch.undo()
        with console.interactive():
            console.send_line("PS1=$old")


def test_a_full_file_system_under_the_results_is_named(micro: Machine[Any]) -> None:
    console, ssh = micro.console, micro.ssh
    folder = console.run("echo /run/.harness-*").stdout.strip()
    ssh.run(f"mount -t tmpfs -o size=64k none {folder}").check()
    try:
        assert console.run("echo hello").stdout == "hello\n"
        with pytest.raises(OutputLostError, match="no space is left"):
            console.run("seq 1 30000")
        assert console.run("echo hello").stdout == "hello\n"
        ssh.run(f"dd if=/dev/zero of={folder}/fill bs=4k")
        with pytest.raises(OutputLostError, match=r"`echo hello`.*no space is left"):
            console.run("echo hello")
        # A new login chooses a folder that has room.
        ssh.run("mount -t tmpfs -o size=4k none /run; echo full >/run/fill")
        console.leave()
        console.login(None)
        assert console.run("echo hello; echo /dev/shm/.harness-*").stdout.startswith(
            "hello\n/dev/shm/."
        )
    finally:
        ssh.run("umount /run")
        ssh.run(f"umount {folder}; rm -r {folder}")
        console.leave()
        console.login(None)


def boot(
    lab: Lab, folder: Path, program: str, *, files: dict[str, str] | None = None, **settings: Any
) -> Machine[Any]:
    """Boot micro with another program than a getty on its console, and other settings of a login.

    The kernel unpacks the archives of an initramfs one after the other, the later over the earlier
    (``Documentation/driver-api/early-userspace/buffer-format.rst``).
    """
    init = (ROOT / "images/micro/root/init").read_text()
    assert GETTY in init
    changed = {"init": init.replace(f"respawn:{GETTY}", program), **(files or {})}
    selection = lab.select("micro")
    definition = selection.definition.model_copy(update={"login": LoginSettings(**settings)})
    variant = replace(selection, definition=definition)
    artifacts = dict(lab.artifacts(selection).files)
    data = artifacts["initrd"].read_bytes()
    artifacts["initrd"] = folder / "initrd"
    artifacts["initrd"].write_bytes(data + bytes(-len(data) % 4) + archive(changed))
    spec = of(variant).spec(variant, artifacts, name="micro", nics=())
    return lab.launch(spec, variant)


def archive(files: dict[str, str]) -> bytes:
    """Return programs as an archive of cpio's format "newc"."""
    parts = []
    for inode, (path, text) in enumerate([*files.items(), ("TRAILER!!!", "")], 1):
        name, data = path.encode() + b"\0", text.encode()
        mode = stat.S_IFREG | 0o755
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def test_a_root_shell_without_a_login(lab: Lab, tmp_path: Path) -> None:
    machine = boot(lab, tmp_path, "respawn:-/bin/sh", user="none")
    # The prompt is hidden when the login begins.
    machine.console.expect("# ")
    machine.console.send_line(f"(sleep 1; {LATE}) & :")
    machine.console.expect("capacity change\r\n")
    machine.os.login()
    assert machine.succeed("id -un") == "root\n"
    machine.reboot()
    assert machine.succeed("id -un") == "root\n"


def test_a_shell_that_waits_for_enter(lab: Lab, tmp_path: Path) -> None:
    machine = boot(lab, tmp_path, "askfirst:-/bin/sh", user="none")
    machine.os.login()
    assert machine.succeed("id -un") == "root\n"


def test_a_getty_in_german(lab: Lab, tmp_path: Path) -> None:
    machine = boot(
        lab,
        tmp_path,
        "respawn:/sbin/getty -n -l /sbin/anmeldung -L 0 $main vt100",
        files={"usr/sbin/anmeldung": GERMAN},
        user="root",
        password="falsch",
        login_prompt="Anmeldung: ",
        password_prompt="Kennwort: ",
        refusal="Anmeldung fehlgeschlagen",
    )
    with pytest.raises(LoginError, match="was refused: Anmeldung fehlgeschlagen"):
        machine.os.login()
    machine.os.account = replace(machine.os.account, password="geheim")
    machine.os.login()
    assert machine.succeed("id -un") == "root\n"


def test_a_login_that_times_out_names_the_setting(lab: Lab, tmp_path: Path) -> None:
    machine = boot(lab, tmp_path, "respawn:-/bin/sh", user="root")
    machine.console.expect("# ")
    with pytest.raises(WaitTimeoutError) as raised:
        machine.os.login(deadline=0.1)
    assert "'micro:~#'" in raised.value.hint
    assert f"`user: none` in `login` of {ROOT / 'images/micro/image.yaml'}" in raised.value.hint
