"""Every error that Harness raises, with its verdict.

The verdict names the cause, so that a red run can be read without opening a log: ``product`` is the
image, ``test`` the scenario or its options, ``infra`` the host or Harness itself; with ``timeout`` the
cause is still unclear. An error that a host under pressure explains is ``infra``, whatever its class:
:func:`verdict_of` decides.

A test that fails by ``infra`` is tried once more, if the class of its error is ``transient``. ``flaky``
is a test that failed and passed at a later try. The tree, with ``!`` where a second try is of no use::

    HarnessError                        infra
    ├── UsageError                      test     bad option, bad file; exit status 2
    │   ├── UnknownNameError                     image, arch, profile...: lists near names
    │   ├── BundleError                          a bundle is damaged, or of no use on this host
    │   └── CatalogError                         image.yaml, with file:line
    ├── HostError                       infra    the host lacks or broke something
    │   ├── QemuMissingError !
    │   ├── QemuTooOldError !
    │   ├── QemuStartError                       refused its arguments, or died at start
    │   ├── QemuExitedError                      died under a running guest
    │   ├── QmpError                             a command was refused
    │   ├── FirmwareMissingError !
    │   ├── TpmError                             a machine's TPM did not start, or ended
    │   ├── ServiceError                         a service for guests did not start, or ended
    │   ├── StateError                           a saved state is missing or damaged
    │   │   └── SnapshotError !                  a machine cannot be saved while it runs
    │   ├── StoreError
    │   │   ├── BuildError !                     an image's build script failed
    │   │   ├── ChecksumError !                  both checksums
    │   │   └── DiskFullError !
    │   └── CancelledError !                     Ctrl-C
    ├── GuestError                      product  the image did something it must not
    │   ├── PanicError
    │   ├── OopsError
    │   ├── EmergencyModeError
    │   ├── FirmwareShellError
    │   ├── NoBootDeviceError
    │   ├── OomKillError
    │   ├── FirstBootWizardError
    │   ├── GuestStoppedError                    powered off or reset without being asked to
    │   ├── LoginError
    │   ├── CommandError                         a command's exit status was not as required
    │   ├── OutputLostError                      no room in the guest for a command's output
    │   ├── InstallRefusedError                  the image's installer refused; its own words
    │   ├── UpgradeRefusedError                  the image's upgrade refused or failed; its own words
    │   ├── RecoveryRefusedError                 a rollback, repair or reset was refused; its own words
    │   ├── JoinRefusedError                     a cluster refused a new member; the reason
    │   ├── OperationRefusedError                a cluster refused a write or read of a client
    │   ├── OutcomeUnknownError                  a cluster did not answer a client
    │   └── HistoryError                         a cluster's answers contradict each other
    ├── SshError                        product
    │   ├── SshKeyRefusedError
    │   ├── HostKeyChangedError
    │   └── ConnectionLostError                  in the middle of a command
    ├── ProviderError                   test     a provider of a cluster raised what it may not
    ├── HistoryUndecidedError           infra    a history is too tangled to be checked
    └── WaitTimeoutError                timeout  names the event, the last output, the silence; infra
        │                                        if the host was under pressure
        └── GuestIdleError                       hangs while it comes up: before the deadline
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar, Final, Protocol


class Verdict(StrEnum):
    """The cause of an outcome: see the module."""

    PASSED = "passed"
    PRODUCT = "product"
    TEST = "test"
    INFRA = "infra"
    TIMEOUT = "timeout"
    KNOWN = "known"
    FLAKY = "flaky"


class HarnessError(Exception):
    """Base of all errors; its text has three parts: the event, the evidence, a hint.

    Args:
        what: The event, in one sentence.
        evidence: The path of the evidence, or its text (a stderr, the last output).
        hint: The next thing to try.
        pressure: Why the host, not the guest, may be the cause, with figures; empty if it is not. Only
            the end of a wait, a stall or a hang has one, and a :attr:`GuestError.by_time` of a guest
            that complained of its time in that boot: pressure explains no panic.

    Attributes:
        verdict: The verdict of the class; :func:`verdict_of` returns that of an error.
        transient: Whether the same steps may go well on a machine of their own; if so, a test that it
            fails by ``infra`` is tried once more.
    """

    verdict: ClassVar[Verdict] = Verdict.INFRA
    transient: bool = True

    def __init__(
        self, what: str, *, evidence: str = "", hint: str = "", pressure: str = ""
    ) -> None:
        if pressure:
            first, newline, rest = what.partition("\n")
            what = f"{first}; the host is the likely cause: {pressure}{newline}{rest}"
        super().__init__(what)
        self.what = what
        self.pressure = pressure
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
    """An option, a name or a file that the user chose is wrong."""

    verdict = Verdict.TEST


class UnknownNameError(UsageError):
    """A name does not exist; the message lists all that do, and the near ones first.

    Args:
        kind: The kind of thing: ``image``, ``arch``, ``profile``.
        name: The unknown name.
        names: The names that exist.
    """

    def __init__(self, kind: str, name: str, names: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.names = sorted(names)
        near = difflib.get_close_matches(name, self.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        listed = ", ".join(self.names) if self.names else "none"
        super().__init__(f"unknown {kind} {name!r}", hint=f"{hint}known: {listed}")


class BundleError(UsageError):
    """A bundle is damaged, of another version of Harness, or of no use on this host."""


class CatalogError(UsageError):
    """An ``image.yaml`` is wrong; the message begins with ``file:line:``."""


class HostError(HarnessError):
    """The host lacks something, or a part of it broke."""


class QemuMissingError(HostError):
    """The QEMU binary for an arch is not installed."""

    transient = False


class QemuTooOldError(HostError):
    """QEMU is older than the version Harness needs."""

    transient = False


class QemuStartError(HostError):
    """QEMU refused its arguments or died at start; carries its stderr."""


class QemuExitedError(HostError):
    """QEMU ended under a running guest, without being asked to."""


class QmpError(HostError):
    """QEMU refused a QMP command, or the monitor went away."""


class TpmError(HostError):
    """A machine's TPM did not start, or ended under the running guest."""


class ServiceError(HostError):
    """A service that guests talk to did not start, or ended while it was needed."""


class SegmentError(HostError):
    """A segment did not start, ended under its machines, or cannot be read."""


class FirmwareMissingError(HostError):
    """No firmware descriptor of QEMU fits; the hint names the package."""

    transient = False


class AcceleratorError(HostError):
    """KVM cannot run the guest: the host has none, or its processor is another one."""

    transient = False


class StateError(HostError):
    """A saved state is missing or damaged."""


class SnapshotError(StateError):
    """A machine cannot be saved while it runs; names the device that forbids it."""

    transient = False


class StoreError(HostError):
    """The cache could not be read or written."""


class BuildError(StoreError):
    """An image's build script failed; carries the end of its log and the log's path."""

    transient = False


class ChecksumError(StoreError):
    """A fetched file is not the expected one; carries both checksums."""

    transient = False


class DiskFullError(StoreError):
    """No space is left where Harness writes."""

    transient = False


class CancelledError(HostError):
    """The user interrupted the run."""

    transient = False


class GuestError(HarnessError):
    """The guest did something that an accepted image must not."""

    verdict = Verdict.PRODUCT

    by_time: ClassVar[bool] = False
    """Whether a guest may fail like this because it got too little time: a limit of its own passed."""


class PanicError(GuestError):
    """The guest's kernel panicked."""


class OopsError(GuestError):
    """The guest's kernel reported an oops or a bug."""


class EmergencyModeError(GuestError):
    """The guest ended in systemd's emergency or rescue mode, or in an initramfs shell."""

    by_time = True


class FirmwareShellError(GuestError):
    """The firmware found nothing to boot and fell into its shell."""


class NoBootDeviceError(GuestError):
    """The firmware says that there is no bootable device."""


class OomKillError(GuestError):
    """The guest's kernel killed a process because memory ran out."""


class FirstBootWizardError(GuestError):
    """systemd-firstboot waits for a key on the console, without end."""


class GuestStoppedError(GuestError):
    """The guest powered off or rebooted without being asked to, or was stopped under a wait."""

    by_time = True


class LoginError(GuestError):
    """The login on the console was refused, or ended at once."""

    by_time = True


class CommandError(GuestError):
    """A command in the guest ended with a status that the scenario does not allow."""


class OutputLostError(GuestError):
    """The guest had no room to keep a command's output in, so that output is incomplete."""


class InstallRefusedError(GuestError):
    """The image's installer refused to install; carries its own words."""


class UpgradeRefusedError(GuestError):
    """The image refused an upgrade, or abandoned it; carries its own words."""


class RecoveryRefusedError(GuestError):
    """The image refused a rollback, a repair or a reset, or abandoned it; carries its own words."""


class JoinRefusedError(GuestError):
    """A cluster refused a new member; it and the machine are as they were.

    Args:
        reason: Why, in one word: ``wrong-token``, ``expired-token``, ``duplicate-name``, ``clock``,
            ``version``; a provider may have others.
        what: The event, in one sentence.
        evidence: The cluster's own words.
        hint: The next thing to try.
    """

    def __init__(self, reason: str, what: str = "", *, evidence: str = "", hint: str = "") -> None:
        self.reason = reason
        what = what or f"the cluster refused a new member: {reason}"
        super().__init__(what, evidence=evidence, hint=hint)


class OperationRefusedError(GuestError):
    """A cluster refused a client's write or read: it was not applied, and never will be."""


class OutcomeUnknownError(GuestError):
    """A cluster did not answer a client: it may have applied a write, or may at any later time."""


class HistoryError(GuestError):
    """The answers of a cluster contradict each other: a lost write, a stale read; shows the proof."""


class RollingUpgradeError(GuestError):
    """A member of a cluster did not come to the version of a rolling upgrade, which stopped there."""


class ProviderError(HarnessError):
    """A cluster's provider raised an error that its protocol does not allow."""

    verdict = Verdict.TEST


class HistoryUndecidedError(HarnessError):
    """The search for an order of a history's operations ended without an answer."""


class SshError(HarnessError):
    """The guest's SSH server misbehaved."""

    verdict = Verdict.PRODUCT


class SshKeyRefusedError(SshError):
    """The guest refused the run's key."""


class HostKeyChangedError(SshError):
    """The guest's host key is not the one that was pinned at the first connection."""


class ConnectionLostError(SshError):
    """The connection ended in the middle of a command."""


class Waited(Protocol):
    """What :class:`WaitTimeoutError` needs of a deadline."""

    @property
    def elapsed(self) -> float:
        """The seconds since the wait began."""

    def account(self) -> str:
        """Return how the length of the wait came about; empty if there is nothing to say."""

    def pressure(self) -> str:
        """Return why the host may be the cause; empty if it is not."""

    @property
    def doubt(self) -> str:
        """Why this host cannot run the guest as it was asked to; empty if it can."""


class WaitTimeoutError(HarnessError):
    """A wait reached its deadline.

    Args:
        waited_for: The event that did not come.
        wait: The deadline, or the seconds.
        last_output: The end of the guest's output.
        silent: For how many seconds the guest had printed nothing; ``None`` if unknown.
        remarks: What else is known of the guest: a boot loader's screen, its kernel's complaints.
        evidence: The path of the whole log.
        hint: The next thing to try.
        pressure: As :class:`HarnessError` has it; the deadline's by default.
        doubt: Why this host cannot run the guest as it was asked to; the deadline's by default. No
            second try helps then.
    """

    verdict = Verdict.TIMEOUT

    def __init__(
        self,
        waited_for: str,
        wait: float | Waited,
        *,
        last_output: str = "",
        silent: float | None = None,
        remarks: str = "",
        evidence: str = "",
        hint: str = "",
        pressure: str = "",
        doubt: str = "",
    ) -> None:
        account = ""
        if isinstance(wait, (float, int)):
            self.seconds = float(wait)
        else:
            self.seconds = wait.elapsed
            account = wait.account()
            pressure = pressure or wait.pressure()
            doubt = doubt or wait.doubt
        if doubt:
            self.transient = False
            hint = f"--accel auto; otherwise: {hint}" if hint else "--accel auto"
        self.waited_for = waited_for
        self.last_output = last_output
        self.silent = silent
        what = f"waited {self.seconds:.1f} s for {waited_for}"
        if account:
            what += f" ({account})"
        if silent is not None:
            what += f"; the guest has been silent for {silent:.1f} s"
        if remarks:
            what += f"; {remarks}"
        if last_output:
            what += "\n" + _indent("last output", last_output)
        super().__init__(what, evidence=evidence, hint=hint, pressure=pressure)


class GuestIdleError(WaitTimeoutError):
    """A guest hangs while it comes up: it made no progress for minutes.

    Its kernel may have complained all the time. The cause is unclear: an image may wait for a key, an
    emulator may have lost an interrupt.
    """


def verdict_of(error: BaseException | None) -> Verdict:
    """Return the verdict of an outcome: of no error, an error of Harness, or any other exception.

    An ``AssertionError`` in a scenario is the product's fault: a condition of the scenario did not hold.
    An error of the operating system is the host's; any other exception is a fault of the test.
    """
    if error is None:
        return Verdict.PASSED
    if isinstance(error, HarnessError):
        return Verdict.INFRA if error.pressure else error.verdict
    if isinstance(error, AssertionError):
        return Verdict.PRODUCT
    if isinstance(error, (OSError, MemoryError)):
        return Verdict.INFRA
    return Verdict.TEST


def first_line_of(error: Exception) -> str:
    """Return the first line of what happened, without the evidence and the hint of an error."""
    text = error.what if isinstance(error, HarnessError) else str(error)
    return text.splitlines()[0] if text else repr(error)


_LASTING: Final = (
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError),
    PermissionError,
)
"""Errors of the operating system that the same steps meet again."""


def is_transient(error: BaseException) -> bool:
    """Return whether a failure by ``infra`` may not happen at a second try.

    No missing file appears by itself, and no full disk gets empty: the first try's evidence stays on it.
    """
    if isinstance(error, HarnessError):
        return error.transient
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, MemoryError)
