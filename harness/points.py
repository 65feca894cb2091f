"""The points that every image's tests can start from: the states ``live``, ``installed``, ``settled``.

A state is a saved machine at a named point (:mod:`harness.states`). The steps of these three hold for
any image: one that does not install itself is ``installed`` when it has booted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.cluster import providers
from harness.errors import UsageError
from harness.profiles import Install
from harness.spec import LAN, Account, Disk, Nic
from harness.states import state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.catalog import Selection
    from harness.cluster import Cluster
    from harness.lab import Lab
    from harness.machine import Machine
    from harness.network import Segment

TARGET: Final = "target-1"
"""The serial of the disk that is installed onto."""

USER: Final = Account("mate", "ahoy-there")
"""The account that an installation creates."""


def installs(image: Selection) -> bool:
    """Whether an image installs itself onto another disk; otherwise its live disk is the system."""
    return "install" in image.capabilities


def system_disk(image: Selection) -> str:
    """Return the name of the disk that an installed system of an image runs from."""
    return "target" if installs(image) else "live"


def target_disk(image: Selection, name: str = "target", serial: str = TARGET) -> Disk:
    """Return a blank disk of the size that an image asks for.

    Raises:
        UsageError: The image does not say how large its disk has to be.
    """
    if image.machine.disk is None:
        raise UsageError(
            f"image {image.name} declares install, and no disk to install on",
            hint=f"machine: {{disk: SIZE}} in {image.path}",
        )
    return Disk(name, size=image.machine.disk, serial=serial)


def installed_disk(machine: Machine[Any], name: str = "target") -> Disk:
    """Return the disk that a machine was installed on, for another machine to boot from.

    Each machine that boots it has an overlay of its own.
    """
    file = machine.disk(name)
    return Disk(name, base=file.path, format=file.format, serial=TARGET)


def install_answers(lab: Lab) -> Install:
    """Return a user's answers to the installer: disk :data:`TARGET`, :data:`USER`, the run's key."""
    return Install(TARGET, user=USER.user, password=USER.password, key=lab.key.public)


def boot_installed(
    lab: Lab,
    disk: Disk,
    name: str = "installed",
    *,
    nics: Sequence[Nic] = (Nic(),),
    segments: Sequence[Segment] = (),
) -> Machine[Any]:
    """Start a machine with the disk of an installed system alone: no medium, no seed.

    It has no credential, unless the system can know the run's key from nowhere else.

    Args:
        lab: The lab.
        disk: The disk.
        name: The machine's name.
        nics: Its network interfaces.
        segments: The segments that they are on.
    """
    image = lab.image
    return lab.boot(
        name=name,
        medium=False,
        disks=[disk],
        authorize=bool(nics) and not installs(image),
        account=USER if installs(image) else image.login.account,
        nics=nics,
        segments=segments,
    )


@state
def live(lab: Lab) -> Machine[Any]:
    """The image booted and logged in on its console, beside a blank disk if it installs on one."""
    disks = [] if lab.image.machine.disk is None else [target_disk(lab.image)]
    machine = lab.boot(disks=disks)
    machine.os.login()
    _reach(lab, machine)
    return machine


@state(parent=live)
def installed(lab: Lab, machine: Machine[Any]) -> Machine[Any]:
    """The image installed as a person would, its disk booted alone, logged in.

    An image that does not install itself is there already.
    """
    if not installs(lab.image):
        return machine
    return _install(lab, machine)


def _install(lab: Lab, machine: Machine[Any], **further: Any) -> Machine[Any]:
    """Install the image as a person would, and return its disk booted alone, logged in."""
    target_disk(lab.image)
    machine.os.install(install_answers(lab))
    machine.shutdown()
    system = boot_installed(lab, installed_disk(machine), **further)
    system.os.login()
    _reach(lab, system)
    return system


def _reach(lab: Lab, machine: Machine[Any]) -> None:
    """Connect by SSH if the image has it: whoever comes to a fork finds the server there.

    A prompt on the console may come long before.
    """
    if "ssh" in lab.image.capabilities:
        machine.ssh.connect()


@state(parent=installed)
def settled(lab: Lab, machine: Machine[Any]) -> Machine[Any]:
    """An installed system whose first boot was found good."""
    del lab
    machine.os.wait_good()
    return machine


# --- clusters -----------------------------------------------------------------------------------


def member_nics(image: Selection) -> tuple[Nic, Nic]:
    """Return the interfaces of a member of a cluster: to the host, and on the segment."""
    return Nic(forward=(22, *providers.of_image(image).ports)), Nic.on(LAN)


@state(parent=live)
def member(lab: Lab, machine: Machine[Any]) -> Machine[Any]:
    """A system that can become a member of a cluster, on a segment, and is none yet.

    Only images for clusters have it. The members of a cluster are forks of it.
    """
    nics = member_nics(lab.image)
    segments = [lab.segment(capture=False)]
    if installs(lab.image):
        system = _install(lab, machine, name="member", nics=nics, segments=segments)
    else:
        machine.stop()
        system = lab.boot(name="member", nics=nics, segments=segments)
        system.os.login()
        _reach(lab, system)
    system.os.wait_good()
    return system


@state(parent=member, machines=3, name="cluster-3")
def cluster_3(lab: Lab, cluster: Cluster) -> Cluster:
    """A healthy cluster of three."""
    del lab
    cluster.form()
    return cluster
