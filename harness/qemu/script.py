"""``qemu.sh``: the machine's command, for a person to run by hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from harness.qemu import argv, tpm
from harness.qemu.argv import Allocations
from harness.spec import MachineSpec

_HEAD = """\
#!/bin/sh
# Machine {name}, as Harness started it. Run by hand, its console is this terminal (end it with
# 'poweroff' in the guest, or kill QEMU); its monitor listens on the socket that it names.
# Disks that were kept are used as the run left them; '--fresh' makes them again from their bases.
set -eu
disks=${{HARNESS_DISKS:-$(dirname "$(readlink -f "$0")")/disks}}
mkdir -p "$disks"
if [ "${{1:-}}" = --fresh ]; then disks=$(mktemp -d); fi
# Elsewhere: a socket's path has at most 107 bytes (unix(7)), and that of the disks may have more.
sockets=$(mktemp -d)
echo "monitor: $sockets/qmp.sock" >&2
"""

_SOCKETS: Final = Path("/sockets-of-this-machine")
"""Stands for the folder of the sockets until the script has made it."""


_FORK = """\

# It is a fork: this tells it, on a monitor of its own, to go on from the saved machine. Where that had
# a shell that takes Harness' commands, type 'q 0 ..' and Ctrl-J for a prompt.
python3 - "$sockets/restore.sock" {state} $$ <<'END'
import json, os, select, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
if os.fork():
    sys.exit()  # QEMU can be started: it connects
qemu = os.pidfd_open(int(sys.argv[3]))
if server not in select.select([server, qemu], [], [])[0]:
    sys.exit("QEMU did not start")
lines = server.accept()[0].makefile("rw")
statuses = []

def hear():
    told = json.loads(lines.readline() or sys.exit("QEMU ended"))
    statuses.append(told.get("data", {{}}).get("status"))
    return told

def tell(command, **arguments):
    lines.write(json.dumps({{"execute": command, "arguments": arguments}}) + "\\n")
    lines.flush()
    while "return" not in (told := hear()):
        if "error" in told:
            sys.exit(told["error"]["desc"])

hear()
tell("qmp_capabilities")
names = "events", "x-ignore-shared"
tell("migrate-set-capabilities", capabilities=[{{"capability": n, "state": True}} for n in names])
tell("migrate-incoming", uri="file:" + sys.argv[2])
while "completed" not in statuses:
    if "failed" in statuses:
        sys.exit("QEMU does not take the saved machine")
    hear()
tell("cont")
print("the fork runs", file=sys.stderr)
END"""


def reproduce(spec: MachineSpec, given: Allocations, folder: Path, path: Path) -> Path:
    """Write the script and return its path.

    Args:
        spec: The machine.
        given: Its allocations in the run.
        folder: Where its disks lie; the script has it as ``$disks``.
        path: The script.
    """
    lines = [_HEAD.format(name=spec.name)]
    for each in (each for nic in spec.nics for each in nic.reach):
        host, port = given.services[each.name]
        lines.append(
            f"# The guest reaches {each.name} at {each.address}:{each.port}, which is {host}:{port} of"
            f" this host.\n# That server ends with its run: put another port in, to use one of your"
            " own.\n"
        )
    if given.firmware is not None and given.variables is not None:
        lines.append(
            _unless_there(
                given.variables, folder, f"cp {shlex.quote(str(given.firmware.variables))} "
            )
        )
    for disk in spec.disks:
        file = given.disks[disk.name]
        if not file.path.is_relative_to(folder):
            continue
        base = ""
        if disk.base is not None:
            base = f"-b {shlex.quote(str(disk.base.resolve()))} -F {disk.format} "
        size = f" {disk.size}" if disk.size is not None else ""
        lines.append(_unless_there(file.path, folder, f"qemu-img create -q -f qcow2 {base}", size))
    if given.tpm_state is not None:
        lines.append(_tpm(spec, given.tpm_state, folder))
    if given.incoming is not None:
        lines.append(_FORK.format(state=shlex.quote(str(given.incoming))))
    command = argv.render(argv.build(spec, argv.by_hand(given, _SOCKETS)))
    restore = ' \\\n  -qmp "unix:$sockets/restore.sock"' if given.incoming is not None else ""
    lines.append("\nexec " + _with_variable(command, folder) + restore + "\n")
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


def _tpm(spec: MachineSpec, state: Path, folder: Path) -> str:
    began = spec.tpm.state if spec.tpm is not None else None
    make = f"cp -r {shlex.quote(str(began))} " if began is not None else "mkdir "
    place = f'"$disks/{state.relative_to(folder)}"'
    start = tpm.command("swtpm", place, 'path="$sockets/swtpm.sock"')
    # It goes into the background when it listens, and ends with QEMU.
    return _unless_there(state, folder, make) + "\n" + " ".join((*start, "--daemon"))


def _unless_there(path: Path, folder: Path, command: str, tail: str = "") -> str:
    target = f'"$disks/{path.relative_to(folder)}"'
    return f"[ -e {target} ] || {command}{target}{tail}"


def _with_variable(command: str, folder: Path) -> str:
    """Return the command with ``$disks`` and ``$sockets``, which the shell expands."""
    names = {f"{folder}/": "$disks/", f"{_SOCKETS}/": "$sockets/"}
    words = []
    for line in command.split("\n"):
        if not any(prefix in line for prefix in names):
            words.append(line)
            continue
        option, _, value = line.strip().partition(" ")
        plain = shlex.split(value.removesuffix(" \\"))[0]
        tail = " \\" if line.endswith("\\") else ""
        safe = (
            plain.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
        )
        for prefix, name in names.items():
            safe = safe.replace(prefix, name)
        words.append(f'  {option} "{safe}"{tail}')
    return "\n".join(words)
