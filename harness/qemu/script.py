"""``qemu.sh``: a machine's command for a person to run by hand, rendered from ``machine.json``."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.credentials import passage
from harness.qemu import argv, tpm
from harness.qemu.argv import Allocations, Ram
from harness.qemu.record import MachineRecord
from harness.spec import MachineSpec

RECORD: Final = "machine.json"
SCRIPT: Final = "qemu.sh"

_HEAD = """\
#!/bin/sh
# Machine {name}, as Harness started it. Its console is this terminal (end it with 'poweroff' in the
# guest, or kill QEMU); its monitor listens on the socket that is printed first.
# It uses the disks that the run left, where they were kept; '--fresh' creates new ones from their bases.
set -eu
disks=${{HARNESS_DISKS:-$(dirname "$(readlink -f "$0")")/disks}}
mkdir -p "$disks"
if [ "${{1:-}}" = --fresh ]; then disks=$(mktemp -d); fi
# Not below the disks: a socket's path has at most 107 bytes (unix(7)), and theirs may be longer.
sockets=$(mktemp -d)
# As values of QEMU's options, which double commas (qemu-options.hx).
escaped() {{ printf '%s' "$1" | sed 's/,/,,/g'; }}
disks_value=$(escaped "$disks")
sockets_value=$(escaped "$sockets")
echo "monitor: $sockets/qmp.sock" >&2
"""

_SOCKETS: Final = Path("/sockets-of-this-machine")
"""Placeholder for the folder of the sockets, which the script creates."""


_FORK = """\

# A fork: this program connects to a monitor of its own and resumes the saved machine. If that had a
# shell under Harness' control, type 'q 0 ..' and Ctrl-J for a prompt.
python3 - "$sockets/restore.sock" {state} $$ <<'END'
import json, os, select, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
if os.fork():
    sys.exit()  # the script goes on and starts QEMU, which connects
qemu = os.pidfd_open(int(sys.argv[3]))
if server not in select.select([server, qemu], [], [])[0]:
    sys.exit("QEMU did not start")
lines = server.accept()[0].makefile("rw")
statuses = []

def receive():
    message = json.loads(lines.readline() or sys.exit("QEMU ended"))
    statuses.append(message.get("data", {{}}).get("status"))
    return message

def execute(command, **arguments):
    lines.write(json.dumps({{"execute": command, "arguments": arguments}}) + "\\n")
    lines.flush()
    while "return" not in (message := receive()):
        if "error" in message:
            sys.exit(message["error"]["desc"])

receive()
execute("qmp_capabilities")
names = {{"events": True, "x-ignore-shared": {ignore_shared}}}
execute("migrate-set-capabilities", capabilities=[{{"capability": n, "state": names[n]}} for n in names])
execute("migrate-incoming", uri="file:" + sys.argv[2])
while "completed" not in statuses:
    if "failed" in statuses:
        sys.exit("QEMU refuses the saved machine")
    receive()
execute("cont")
print("the fork runs", file=sys.stderr)
END"""


def record_machine(
    spec: MachineSpec,
    allocations: Allocations,
    *,
    folder: Path,
    evidence: Path,
    provenance: Mapping[str, object],
) -> MachineRecord:
    """Write ``machine.json`` and ``qemu.sh`` and return the record.

    Args:
        spec: The machine.
        allocations: The resources that it uses in the run.
        folder: The folder of its disks; the script calls it ``$disks``.
        evidence: The folder for both files.
        provenance: The image, its version and its digests.

    Raises:
        OSError: A file cannot be written.
    """
    record = MachineRecord.of(spec, allocations, folder=folder, provenance=provenance)
    record.write(evidence / RECORD)
    path = evidence / SCRIPT
    path.write_text(script(record))
    # Both files hold the machine's credentials.
    path.chmod(0o700)
    return record


def script(record: MachineRecord) -> str:
    """Return the shell script that starts the recorded machine: a pure function of the record."""
    spec, allocations, folder = record.spec, record.allocations, record.disks
    parts = [_HEAD.format(name=spec.name)]
    ram = allocations.ram
    # Its RAM is in the saved stream: it neither maps saved RAM nor has a copy of it.
    streamed = allocations.incoming is not None and (
        ram is None or not (ram.private or ram.saved is not None)
    )
    for forward in (forward for nic in spec.nics for forward in nic.guest_forwards):
        host, port = allocations.services[forward.name]
        parts.append(
            f"# The guest reaches {forward.name} at {forward.address}:{forward.port}, which is"
            f" {host}:{port} of this host.\n# That server ended with its run: change the port below"
            " to use a server of your own.\n"
        )
    if allocations.firmware is not None and allocations.variables is not None:
        template = shlex.quote(str(allocations.firmware.variables))
        parts.append(_unless_present(allocations.variables, folder, f"cp {template} "))
    for disk in spec.disks:
        file = allocations.disks[disk.name]
        if not file.path.is_relative_to(folder):
            continue
        base = ""
        if disk.base is not None:
            base = f"-b {shlex.quote(str(disk.base))} -F {disk.format} "
        size = f" {disk.size}" if disk.size is not None else ""
        parts.append(
            _unless_present(file.path, folder, f"qemu-img create -q -f qcow2 {base}", size)
        )
    if allocations.credentials is not None:
        parts.append(_credentials(spec, allocations.credentials, folder))
    if allocations.tpm_state is not None:
        parts.append(_tpm(spec, allocations.tpm_state, folder))
    if allocations.incoming is not None:
        state = shlex.quote(str(allocations.incoming))
        parts.append(_FORK.format(state=state, ignore_shared=not streamed))
    by_hand = argv.by_hand(allocations, _SOCKETS)
    if streamed:
        # RAM that the stream fills, under the name that it had.
        by_hand = replace(by_hand, ram=Ram(_SOCKETS / "ram", private=False))
    command = argv.render(argv.build(spec, by_hand))
    restore = ""
    if allocations.incoming is not None:
        restore = ' \\\n  -qmp "unix:$sockets_value/restore.sock"'
    parts.append("\nexec " + _with_variables(command, folder) + restore + "\n")
    return "\n".join(parts)


def _tpm(spec: MachineSpec, state: Path, folder: Path) -> str:
    initial = spec.tpm.state if spec.tpm is not None else None
    create = f"cp -r {shlex.quote(str(initial))} " if initial is not None else "mkdir "
    target = f'"$disks/{state.relative_to(folder)}"'
    # --daemon: swtpm goes into the background when it listens, and ends with QEMU.
    start = (*tpm.command("swtpm", 8, f"path={tpm.descriptor(9)}/swtpm.sock"), "--daemon")
    opened = f'8<{target} 9<"$sockets"'
    return _unless_present(state, folder, create) + f"\n{' '.join(start)} {opened}"


def _credentials(spec: MachineSpec, files: Path, folder: Path) -> str:
    lines = [f'mkdir -p "$disks/{files.relative_to(folder)}"']
    for name, value in passage(spec.credentials, smbios=spec.has_smbios).files:
        # A here-document, since an argument has at most 128 KiB (MAX_ARG_STRLEN, execve(2)).
        encoded = base64.encodebytes(value.encode()).decode()
        document = f" <<'END'\n{encoded}END"
        lines.append(_unless_present(files / name, folder, "base64 -d >", document))
    return "\n".join(lines)


def _unless_present(path: Path, folder: Path, command: str, tail: str = "") -> str:
    target = f'"$disks/{_inside_quotes(str(path.relative_to(folder)))}"'
    return f"[ -e {target} ] || {command}{target}{tail}"


def _inside_quotes(text: str) -> str:
    """Return a text as it stands between double quotes of a shell."""
    return "".join(f"\\{sign}" if sign in '\\"$`' else sign for sign in text)


def _with_variables(command: str, folder: Path) -> str:
    """Return the command with the script's own folders, which the shell expands."""
    # All paths below them are values of QEMU's options, with doubled commas.
    variables = {
        f"{argv.escape(str(folder))}/": "$disks_value/",
        f"{_SOCKETS}/": "$sockets_value/",
    }
    lines = []
    for line in command.split("\n"):
        if not any(prefix in line for prefix in variables):
            lines.append(line)
            continue
        option, _, value = line.strip().partition(" ")
        plain = shlex.split(value.removesuffix(" \\"))[0]
        tail = " \\" if line.endswith("\\") else ""
        quoted = _inside_quotes(plain)
        for prefix, variable in variables.items():
            quoted = quoted.replace(_inside_quotes(prefix), variable)
        lines.append(f'  {option} "{quoted}"{tail}')
    return "\n".join(lines)
