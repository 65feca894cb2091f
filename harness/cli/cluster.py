"""Start a cluster and open a Python prompt with it: look at its members, break it, heal it.

  harness cluster skiff             three members, healthy, forked from the state cluster-3
  harness cluster skiff --size 5    five, formed now
  harness cluster skiff --apart     three machines that are no cluster yet: cluster.form() forms it

The commands that reach each member over SSH are printed first. The prompt is that of 'harness lab', and
has besides:
  cluster                           the cluster: cluster.leader(), cluster["node-1"].power_cut() ...
  attach(cluster["node-1"])         attaches this terminal to a member's console; Ctrl-] comes back
  cluster.partition("node-1", ["node-2", "node-3"]), cluster.segment.heal()
                                    part members from each other, and end all faults

Without a terminal, the command reads a script from standard input. All machines end with the command.
The evidence is kept below .harness/cluster.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from harness import points
from harness.cli import lab as prompt
from harness.cli import shell
from harness.cli.options import add_machine, lab_of, say
from harness.cluster import Cluster
from harness.errors import UsageError
from harness.lab import Lab

EVIDENCE: Final = Path(".harness/cluster")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("image", metavar="IMAGE", help="NAME[:VERSION]")
    parser.add_argument(
        "--size",
        type=int,
        default=points.cluster_3.machines,
        metavar="N",
        help="the number of members (default: %(default)s)",
    )
    parser.add_argument("--apart", action="store_true", help="do not form the cluster")
    add_machine(parser)


def main(options: argparse.Namespace) -> int:
    """Start the cluster, and open the prompt or run the script on standard input."""
    if options.size < 1:
        raise UsageError(f"--size {options.size}: a cluster has one member at least")
    with lab_of(options, options.image, evidence=EVIDENCE, keep=True) as lab:
        cluster = start(lab, options.size, apart=options.apart)
        for machine in cluster:
            say(
                f"{machine.name} {cluster.segment.address(machine)}: {shell.ssh_command(lab, machine)}"
            )
        if (address := cluster.provider.virtual_address) is not None:
            say(f"the virtual address is {address}")
        names = prompt.namespace(lab) | {"cluster": cluster}
        banner = "\n".join(
            [
                f"{cluster.provider.name}: {', '.join(cluster.machines)}. Ctrl-D leaves and ends all.",
                "  cluster.leader(); cluster.members(); cluster.wait_healthy()",
                '  attach(cluster["node-1"])  # its console in this terminal; Ctrl-] comes back',
                '  cluster.partition("node-1", ["node-2", "node-3"]); cluster.segment.heal()',
            ]
        )
        return prompt.interact(names, banner)


def start(lab: Lab, size: int, *, apart: bool) -> Cluster:
    """Return a cluster of a size, formed unless ``apart``."""
    if not apart and size == points.cluster_3.machines:
        return lab.fork_cluster(points.cluster_3)
    cluster = lab.cluster(size)
    if not apart:
        cluster.form(together=True)
    return cluster
