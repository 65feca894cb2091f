"""Every error Harness raises, and the verdict each one carries.

The verdict says whose fault it is, so that a red run can be read without opening a log:
``product`` the image, ``test`` the scenario or its options, ``infra`` the host or Harness itself,
``timeout`` nobody can tell yet. The tree::

    HarnessError                        infra
    ├── UsageError                      test     bad option, bad file; exit status 2
    │   ├── UnknownNameError                     image, arch, profile...: lists near names
    │   └── CatalogError                         image.yaml, with file:line
    ├── HostError                       infra    the host lacks or broke something
    │   ├── QemuMissingError
    │   ├── QemuTooOldError
    │   ├── QemuStartError                       refused its arguments, or died at start
    │   ├── QemuExitedError                      died under a running guest
    │   ├── QmpError                             a command was refused
    │   ├── FirmwareMissingError
    │   ├── TpmError                             a machine's TPM did not start, or ended
    │   ├── ServiceError                         a service for guests did not start, or ended
    │   ├── StateError                           a saved state is missing or damaged
    │   │   └── SnapshotError                    a machine cannot be saved while it runs
    │   ├── StoreError
    │   │   ├── BuildError                       an image's build script failed
    │   │   ├── ChecksumError                    both digests
    │   │   └── DiskFullError
    │   └── CancelledError                       Ctrl-C
    ├── GuestError                      product  the image did something it must not
    │   ├── PanicError
    │   ├── OopsError
    │   ├── EmergencyModeError
    │   ├── FirmwareShellError
    │   ├── NoBootDeviceError
    │   ├── OomKillError
    │   ├── FirstBootWizardError
    │   ├── GuestStoppedError                    powered off or reset when nobody asked
    │   ├── LoginError
    │   ├── CommandError                         a command's exit status was not the wanted one
    │   ├── InstallRefusedError                  the image's installer refused; its own words
    │   ├── UpgradeRefusedError                  the image's upgrade refused or failed; its own words
    │   └── RecoveryRefusedError                 a rollback, repair or reset was refused; its own words
    ├── SshError                        product
    │   ├── SshKeyRefusedError
    │   ├── HostKeyChangedError
    │   └── ConnectionLostError                  in the middle of a command
    └── WaitTimeoutError                timeout  says what for, the last output, how long silent
        └── GuestIdleError                       came up no further, and did nothing: before the deadline
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar


class Verdict(StrEnum):
    """Whose fault an outcome is."""

    PASSED = "passed"
    PRODUCT = "product"
    TEST = "test"
    INFRA = "infra"
    TIMEOUT = "timeout"
    KNOWN = "known"


class HarnessError(Exception):
    """Base of all errors; its text says what happened, where the evidence is, what to try next.

    Args:
        what: One sentence: what happened.
        evidence: Where the evidence is: a path, or the text itself (a stderr, the last output).
        hint: What to try next.
    """

    verdict: ClassVar[Verdict] = Verdict.INFRA

    def __init__(self, what: str, *, evidence: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.evidence:
            parts.append(_indent("evidence", self.evidence))
        if self.hint:
            parts.append(_indent("try", self.hint))
        return "\n".join(parts)


def _indent(label: str, text: str) -> str:
    lines = text.rstrip().splitlines() or [""]
    if len(lines) == 1:
        return f"  {label}: {lines[0]}"
    return "\n".join([f"  {label}:", *(f"    {line}" for line in lines)])


class UsageError(HarnessError):
    """An option, a name or a file given by the user is wrong."""

    verdict = Verdict.TEST


class UnknownNameError(UsageError):
    """A name is not among the known ones; the message lists the near ones, or all if few.

    Args:
        kind: What is named: ``image``, ``arch``, ``profile``.
        name: The name that was given.
        known: The names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"unknown {kind} {name!r}", hint=f"{hint}known: {listed}")


class CatalogError(UsageError):
    """An ``image.yaml`` is wrong; the message begins with ``file:line:``."""


class HostError(HarnessError):
    """The host lacks something, or something of it broke."""


class QemuMissingError(HostError):
    """The QEMU binary for an arch is not installed."""


class QemuTooOldError(HostError):
    """QEMU is older than the version Harness needs."""


class QemuStartError(HostError):
    """QEMU refused its arguments or died at start; carries its stderr."""


class QemuExitedError(HostError):
    """QEMU ended under a running guest that nobody had asked to stop."""


class QmpError(HostError):
    """QEMU refused a QMP command, or the monitor went away."""


class TpmError(HostError):
    """A machine's TPM did not start, or ended under the running guest."""


class ServiceError(HostError):
    """A service that guests talk to did not start, or ended while it was needed."""


class FirmwareMissingError(HostError):
    """No firmware descriptor of QEMU fits; the hint names the package."""


class StateError(HostError):
    """A saved state is missing or damaged."""


class SnapshotError(StateError):
    """A machine cannot be saved while it runs; names the device that forbids it."""


class StoreError(HostError):
    """The cache could not be read or written."""


class BuildError(StoreError):
    """An image's build script failed; carries the end of its log and the log's path."""


class ChecksumError(StoreError):
    """A fetched file is not the one that was asked for; carries both digests."""


class DiskFullError(StoreError):
    """No space is left where Harness writes."""


class CancelledError(HostError):
    """The run was interrupted by its user."""


class GuestError(HarnessError):
    """The guest did something that an accepted image must not."""

    verdict = Verdict.PRODUCT


class PanicError(GuestError):
    """The guest's kernel panicked."""


class OopsError(GuestError):
    """The guest's kernel reported an oops or a bug."""


class EmergencyModeError(GuestError):
    """The guest ended in systemd's emergency or rescue mode, or in an initramfs shell."""


class FirmwareShellError(GuestError):
    """The firmware found nothing to boot and fell into its shell."""


class NoBootDeviceError(GuestError):
    """The firmware says that there is no bootable device."""


class OomKillError(GuestError):
    """The guest's kernel killed a process for want of memory."""


class FirstBootWizardError(GuestError):
    """systemd-firstboot waits for a key on the console; it would for ever."""


class GuestStoppedError(GuestError):
    """The guest powered off or rebooted when nobody had asked it to."""


class LoginError(GuestError):
    """The login on the console was refused, or ended at once."""


class CommandError(GuestError):
    """A command in the guest ended with another status than the wanted one."""


class InstallRefusedError(GuestError):
    """The image's installer refused to install; carries its own words."""


class UpgradeRefusedError(GuestError):
    """The image refused an upgrade, or gave it up; carries its own words."""


class RecoveryRefusedError(GuestError):
    """The image refused a rollback, a repair or a reset, or gave it up; carries its own words."""


class SshError(HarnessError):
    """The guest's SSH server did not do what it must."""

    verdict = Verdict.PRODUCT


class SshKeyRefusedError(SshError):
    """The guest refused the run's key."""


class HostKeyChangedError(SshError):
    """The guest shows another host key than the one pinned at the first connection."""


class ConnectionLostError(SshError):
    """The connection ended in the middle of a command."""


class WaitTimeoutError(HarnessError):
    """A wait reached its deadline.

    Args:
        waited_for: What was waited for.
        seconds: How long.
        last_output: The last that the guest printed.
        silent: For how many seconds the guest had printed nothing, if known.
        evidence: Where the whole log is.
        hint: What to try next.
    """

    verdict = Verdict.TIMEOUT

    def __init__(
        self,
        waited_for: str,
        seconds: float,
        *,
        last_output: str = "",
        silent: float | None = None,
        evidence: str = "",
        hint: str = "",
    ) -> None:
        self.waited_for = waited_for
        self.seconds = seconds
        self.last_output = last_output
        self.silent = silent
        what = f"waited {seconds:.1f} s for {waited_for}"
        if silent is not None:
            what += f"; the guest has been silent for {silent:.1f} s"
        if last_output:
            what += "\n" + _indent("last output", last_output)
        super().__init__(what, evidence=evidence, hint=hint)


class GuestIdleError(WaitTimeoutError):
    """A guest that was to come up neither printed nor computed for minutes: it will not.

    Nobody can tell yet whose fault that is: an image may wait for a key, an emulator may have lost an
    interrupt.
    """


def verdict_of(error: BaseException | None) -> Verdict:
    """Return the verdict of an outcome: of no error, one of ours, or anybody else's.

    An ``AssertionError`` in a scenario is the product's: the scenario said what must hold and it
    did not. Any other foreign exception is a fault of the test.
    """
    if error is None:
        return Verdict.PASSED
    if isinstance(error, HarnessError):
        return error.verdict
    if isinstance(error, AssertionError):
        return Verdict.PRODUCT
    if isinstance(error, (OSError, MemoryError)):
        return Verdict.INFRA
    return Verdict.TEST
