"""``qemu.sh``: the machine's command, for a person to run by hand."""

from __future__ import annotations

import shlex
from pathlib import Path

from harness.qemu import argv, tpm
from harness.qemu.argv import Allocations
from harness.spec import MachineSpec

_HEAD = """\
#!/bin/sh
# Machine {name}, as Harness started it. Run by hand, its console is this terminal (end it with
# 'poweroff' in the guest, or kill QEMU) and its monitor listens on $disks/qmp.sock.
# Disks that were kept are used as the run left them; '--fresh' makes them again from their bases.
set -eu
disks=${{HARNESS_DISKS:-$(dirname "$(readlink -f "$0")")/disks}}
mkdir -p "$disks"
if [ "${{1:-}}" = --fresh ]; then disks=$(mktemp -d); fi
"""


_FORK = """\

# It is a fork: this tells it, on its monitor, to go on from the saved machine. Where that had a
# shell that takes Harness' commands, type 'q 0 ..' and Ctrl-J for a prompt.
rm -f "$disks/qmp.sock"
python3 - "$disks/qmp.sock" {state} <<'END' &
import json, socket, sys, time
monitor = socket.socket(socket.AF_UNIX)
while True:
    try:
        monitor.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.1)
lines = monitor.makefile("rw")
lines.readline()

def tell(command, **arguments):
    lines.write(json.dumps({{"execute": command, "arguments": arguments}}) + "\\n")
    lines.flush()
    while True:
        told = json.loads(lines.readline())
        if "error" in told:
            sys.exit(told["error"]["desc"])
        if "return" in told:
            return told["return"]

tell("qmp_capabilities")
ignore = {{"capability": "x-ignore-shared", "state": True}}
tell("migrate-set-capabilities", capabilities=[ignore])
tell("migrate-incoming", uri="file:" + sys.argv[2])
while tell("query-status")["status"] == "inmigrate":
    time.sleep(0.05)
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
    command = argv.render(argv.build(spec, argv.by_hand(given, folder)))
    lines.append("\nexec " + _with_variable(command, folder) + "\n")
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


def _tpm(spec: MachineSpec, state: Path, folder: Path) -> str:
    began = spec.tpm.state if spec.tpm is not None else None
    make = f"cp -r {shlex.quote(str(began))} " if began is not None else "mkdir "
    place = f'"$disks/{state.relative_to(folder)}"'
    start = tpm.command("swtpm", place, 'path="$disks/swtpm.sock"')
    # It goes into the background when it listens, and ends with QEMU.
    return _unless_there(state, folder, make) + "\n" + " ".join((*start, "--daemon"))


def _unless_there(path: Path, folder: Path, command: str, tail: str = "") -> str:
    target = f'"$disks/{path.relative_to(folder)}"'
    return f"[ -e {target} ] || {command}{target}{tail}"


def _with_variable(command: str, folder: Path) -> str:
    """Return the command with the folder's path as ``$disks``, which the shell expands."""
    prefix = str(folder) + "/"
    words = []
    for line in command.split("\n"):
        if prefix not in line:
            words.append(line)
            continue
        option, _, value = line.strip().partition(" ")
        plain = shlex.split(value.removesuffix(" \\"))[0]
        tail = " \\" if line.endswith("\\") else ""
        safe = (
            plain.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
        )
        safe = safe.replace(prefix, "$disks/")
        words.append(f'  {option} "{safe}"{tail}')
    return "\n".join(words)
