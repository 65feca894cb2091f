r"""Commands over a serial console: exact output and status, at the speed of the line.

At a prompt, the console starts a small driver in the guest (:mod:`harness.console.driver`): a loop
of shell builtins that reads one request per line, captures the output of each command in a file in
memory, and answers with frames (:mod:`harness.console.frame`). No prompt is parsed, and the driver
forks nothing for a short result. If noise breaks a frame, the guest sends the result again from
the file; a command never runs twice.

The consequences:

* All commands run in one shell: ``cd`` and variables persist. ``exit 3`` ends that shell with
  status 3, and the next command gets a new one.
* Standard input is ``/dev/null``; standard error goes into the output.
* A command does not wait for its background jobs. Their later output is lost unless redirected.
* The log shows ``$ command`` before each frame.
"""

from __future__ import annotations

import re
import time
from typing import Final

from harness.console.dialogue import Dialogue
from harness.console.driver import BOOTSTRAP, FULL, NO_FILE, driver_script
from harness.console.expect import timeout_error
from harness.console.frame import Frame, FrameParser, Header, new_tag
from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import (
    HarnessError,
    LoginError,
    OutputLostError,
    UsageError,
    WaitTimeoutError,
)
from harness.result import Result

_LINE: Final = 1000
"""Bytes of a command in one request."""

_PACE: Final = 16 * 1024
"""Bytes of requests before a wait for the driver to read them: a tty drops excess input."""

_PIECE: Final = 4096
"""Bytes. A broken result that is longer is requested in pieces, which are likelier to arrive."""

_ASK_FIRST: Final = 1.0
_ASK_QUIET: Final = 30.0
"""Seconds before the result is requested again: after noise, and without any noise."""

_REBOOTED: Final = re.compile(rb"\[ *0\.000000\][^\r\n]* Linux version \d")

_INTERRUPT: Final = b"\x03"

_ASK: Final = b"r TAG ..\n"

_SETTLED: Final = 3.0
"""Seconds of silence after which a start counts as done although noise destroyed its frame."""

_STEP: Final = 1024 * 1024

_AHEAD: Final = 0.1
"""Seconds to wait for as many bytes as the shortest answer has, before looking at fewer."""


class _DriverGoneError(Exception):
    """The driver ended, and the shell's prompt is back.

    Attributes:
        untouched: Whether the shell read the request instead of the driver. The shell rejects it
            as an unknown command named ``x`` or ``r``, so the command did not run.
    """

    def __init__(self, untouched: bool) -> None:
        super().__init__()
        self.untouched = untouched


def requests(command: str, tag: str) -> list[bytes]:
    """Return the request lines that run a command.

    Args:
        command: The command; it may span several lines.
        tag: The tag of the result's frame.

    Raises:
        UsageError: The command contains a NUL or a Ctrl-C byte, which a tty does not pass on.
    """
    if "\0" in command or "\x03" in command:
        raise UsageError(
            "a command on the console cannot contain NUL or Ctrl-C bytes",
            hint="let printf print them in the guest, as \\000 or \\003",
        )
    lines = []
    *texts, last = command.split("\n")
    for final, text in [*((False, text) for text in texts), (True, last)]:
        data = text.encode("utf-8", "surrogateescape")
        while len(data) > _LINE:
            lines.append(b"p %s .%s.\n" % (tag.encode(), data[:_LINE]))
            data = data[_LINE:]
        lines.append(b"%s %s .%s.\n" % (b"x" if final else b"a", tag.encode(), data))
    return lines


class Driver:
    """The host's side of the driver in the guest; for one thread at a time.

    Args:
        stream: The stream of the console.

    Attributes:
        dialogue: How the console gives a shell.
        active: Whether the driver runs, as far as the host can see.
        position: The offset in the output after the last result.
        answered_at: The offset in the output at which a login last answered a prompt.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._up = b""  # the line that the driver prints when it restarts
        self._count = 0
        self._hung = ""  # the command that was interrupted at its deadline
        self.dialogue = Dialogue()
        self.active = False
        self.position = 0
        self.answered_at = 0

    def enter(self, deadline: Deadline) -> None:
        """Start the driver at a shell's prompt.

        Raises:
            LoginError: The guest has no directory to write results to.
            WaitTimeoutError: The deadline passed before the driver started.
            HarnessError: The console has failed.
        """
        awaited = "a shell to take commands"
        self._stream.suspects.forget()
        first, second = new_tag(), new_tag()
        self._up = b"<%s up>" % second.encode()
        for tag, script, again in (
            (first, BOOTSTRAP.replace("TAG", first) + "\r", b""),
            (second, driver_script(second) + "\n", _ASK),
        ):
            position = self._stream.total
            self.send(script.encode(), deadline, awaited)
            # A broken frame proves just as well that the script runs.
            frame, _ = self._collect(tag, position, deadline, awaited, again=again, broken_ok=True)
            if frame is not None and frame.status:
                raise LoginError(
                    f"the user cannot write to any directory for results on {self._stream.name}",
                    evidence=self._stream.evidence(),
                    hint="make /run, /dev/shm, /tmp or the home directory writable",
                )
        self.active = True
        self._hung = ""

    def export(self) -> tuple[int, str] | None:
        """Return the state that the driver of a fork needs to continue with this shell.

        ``None`` means that there is no shell to continue with.
        """
        if not self.active or self._hung:
            return None
        return self._count, self._up.decode()

    def adopt(self, count: int, up: str) -> None:
        """Continue with the shell of a saved guest.

        Args:
            count: The number of the last command. The guest stores results by number and does not
                run a number twice, so the fork must continue to count.
            up: The line that the driver prints when it restarts.
        """
        self._count, self._up, self._hung = count, up.encode(), ""
        self.active = True

    def leave(self, deadline: Deadline) -> None:
        """End the driver; the shell's prompt and the settings of the terminal are as before it.

        Raises:
            WaitTimeoutError: The deadline passed before the guest accepted the request.
            HarnessError: The console has failed.
        """
        if self.active:
            self.active = False
            self.send(b"q %s ..\n" % new_tag().encode(), deadline, "the shell's end")

    def run(self, command: str, deadline: Deadline) -> Result:
        """Run a command and return its result; the docstring of this module has the rules.

        Raises:
            UsageError: The command contains a NUL or a Ctrl-C byte.
            LoginError: No user is logged in, or the session has ended.
            WaitTimeoutError: The deadline passed; the command was interrupted.
            OutputLostError: The guest had no room for the output.
            HarnessError: The console has failed.
        """
        if not self.active:
            raise LoginError(
                f"no shell on the console of {self._stream.name}",
                evidence=self._stream.evidence(),
                hint="console.login() first, and again after a reboot",
            )
        self._count += 1
        lines = requests(command, tag := new_tag(self._count))
        self._stream.check()
        started = time.monotonic()
        shown = command if len(command) <= 200 else command[:200] + " ..."
        awaited = f"`{shown}` to end"
        echo = b"$ " + command.partition("\n")[0].encode("utf-8", "surrogateescape")
        try:
            try:
                if self._hung:
                    self._recover(deadline)
                frame = self._exchange(command, lines, tag, deadline, awaited, echo)
            except _DriverGoneError as gone:
                if not gone.untouched:
                    self.active = False
                    raise LoginError(
                        f"the shell on the console of {self._stream.name} ended while it ran"
                        f" `{shown}`",
                        evidence=self._stream.evidence(),
                        hint="console.login(None) starts a new one at the prompt",
                    ) from None
                self.enter(deadline)
                frame = self._exchange(command, lines, tag, deadline, awaited, echo)
            self._judge(frame, deadline)
        except HarnessError as error:
            if deadline.expired:
                self._hung = shown
                # The guest may no longer read, so this send must not wait.
                self._stream.outbox.send(_INTERRUPT, Deadline(0, time.monotonic()))
            if isinstance(error, LoginError):
                self._stream.suspects.gone()
            elif isinstance(error, WaitTimeoutError):
                self._stream.suspects.timed_out(self._stream.silent_for())
            crash = self._stream.failures.current
            raise error if crash is None else crash.build() from None
        if frame.status >= FULL:
            raise self._output_lost(shown, frame)
        return Result(
            stdout=frame.payload.decode("utf-8", "replace"),
            stderr="",
            status=frame.status,
            seconds=time.monotonic() - started,
            command=command,
            machine=self._stream.name,
        )

    def _output_lost(self, command: str, frame: Frame) -> OutputLostError:
        # The tag of the driver is in the line that it prints when it restarts.
        folder = f".harness-{self._up[1:-4].decode()}"
        if frame.status == NO_FILE:
            cause = (
                f"the file for it in the folder {folder} of /run, /dev/shm, /tmp or the home could"
                " not be created, or is gone; if it could not, the command did not run"
            )
        else:
            cause = (
                f"no space is left on the file system of the folder {folder}, which is in /run,"
                f" /dev/shm, /tmp or the home; the command ended with status {frame.status - FULL}"
            )
        return OutputLostError(
            f"the output of `{command}` on the console of {self._stream.name} is incomplete: {cause}",
            evidence=frame.payload.decode("utf-8", "replace"),
            hint="free space there; or run the command over SSH; or leave() and log in again, which"
            " chooses a folder that has room",
        )

    def send(self, data: bytes, deadline: Deadline, awaited: str, *, own_line: bool = True) -> None:
        """Write to the guest.

        Args:
            data: The bytes to write.
            deadline: When to give up.
            awaited: The event that the caller waits for, for the message.
            own_line: Whether to start a new line if an answer to a terminal query was written
                before.

        Raises:
            WaitTimeoutError: The deadline passed before the guest accepted all bytes.
            HarnessError: The console has failed.
        """
        after_replies = b"\n" if own_line else b""
        left = self._stream.outbox.send(data, deadline, after_replies=after_replies)
        if left:
            self._stream.check()
            raise timeout_error(
                self._stream,
                f"the guest to read its input ({left} of {len(data)} bytes left), for {awaited}",
                deadline,
            )

    def _judge(self, frame: Frame, deadline: Deadline) -> None:
        """Raise the crash that came before the end of a frame, if there was one."""
        end = self.position
        if self._stream.suspects.answered(frame.payload, end):
            self._ping(deadline, "the guest to answer after words of a kernel panic")
            self._stream.suspects.alive()
        if self._stream.readable < end:
            self._stream.check()

    def _ping(self, deadline: Deadline, awaited: str) -> None:
        """Wait until the driver answers."""
        tag = new_tag()
        position = self._stream.total
        self.send(b"\n" + _ASK.replace(b"TAG", tag.encode()), deadline, awaited)
        self._collect(tag, position, deadline, awaited, again=_ASK, broken_ok=True)

    def _exchange(
        self,
        command: str,
        lines: list[bytes],
        tag: str,
        deadline: Deadline,
        awaited: str,
        echo: bytes,
    ) -> Frame:
        position = self._stream.total
        self._stream.suspects.begin(tag, command, position)
        self._send_paced(lines, deadline, awaited)
        while True:
            frame, parser = self._collect(
                tag, position, deadline, awaited, again=_ASK, pieces_from=_PIECE, echo=echo
            )
            if frame is None and not parser.unknown and parser.lost is not None:
                frame = self._pieces(tag, parser.lost, deadline, awaited)
            if frame is not None:
                return frame
            # The guest has not received the command. The driver never runs the same tag twice, so
            # sending it again is safe.
            position = self._stream.total
            self._send_paced(lines, deadline, awaited)

    def _send_paced(self, lines: list[bytes], deadline: Deadline, awaited: str) -> None:
        batch: list[bytes] = []
        size = 0
        for line in lines[:-1]:
            batch.append(line)
            size += len(line)
            if size >= _PACE:
                # Wait until the driver has read these lines.
                tag = new_tag()
                position = self._stream.total
                batch.append(_ASK.replace(b"TAG", tag.encode()))
                self.send(b"".join(batch), deadline, awaited)
                self._collect(tag, position, deadline, awaited, again=_ASK, broken_ok=True)
                batch, size = [], 0
        self.send(b"".join([*batch, lines[-1]]), deadline, awaited)

    def _collect(
        self,
        tag: str,
        position: int,
        deadline: Deadline,
        awaited: str,
        *,
        again: bytes,
        broken_ok: bool = False,
        pieces_from: int | None = None,
        echo: bytes = b"",
    ) -> tuple[Frame | None, FrameParser]:
        """Wait for the frame of a tag, and request it again if it is broken.

        Args:
            tag: The tag.
            position: The offset in the output from which the frame may arrive.
            deadline: When to give up.
            awaited: The event that the caller waits for, for the message.
            again: The request that makes the guest send the frame again; empty for none.
            broken_ok: Whether to return at a broken frame, which proves that the guest answers.
            pieces_from: The length in bytes of a payload above which to return at a broken frame,
                because the caller requests it in pieces; ``None`` for no limit.
            echo: The line that the driver prints when it starts the command; other output before
                the frame is noise.

        Returns:
            The frame, or ``None`` if the guest has no such result or the call returned at a broken
            frame; and the parser.
        """
        parser = FrameParser(tag)
        again = again.replace(b"TAG", tag.encode())
        patience = _ASK_FIRST
        asked_at = time.monotonic()
        broken = 0
        restarted = False
        ahead = len(echo) + 14
        while True:
            noisy = parser.length is not None or parser.tail.strip() not in echo
            ask_at = asked_at + (patience if noisy else max(patience, _ASK_QUIET))
            timeout = min(deadline.remaining(), max(0.0, ask_at - time.monotonic()))
            if ahead:
                # A serial port delivers single bytes: do not wake for each of them.
                self._stream.wait_past(position + ahead, min(timeout, _AHEAD), check=False)
                ahead = 0
            end = min(self._stream.wait_past(position, timeout), position + _STEP)
            if end > position:
                frame = parser.feed(self._stream.read(position, end))
                self.position = position = end
                if frame is not None:
                    self.position -= parser.rest
                if frame is not None or parser.unknown:
                    return frame, parser
                self._check_gone(parser, tag, echo)
                if self._up and not restarted and self._up in parser.tail:
                    # The command ended its shell; the file holds its output.
                    restarted = True
                    if again:
                        self._ask(again, deadline, awaited)
                elif parser.length is not None:
                    asked_at = time.monotonic()  # a long result is arriving
            elif deadline.expired:
                raise timeout_error(self._stream, awaited, deadline)
            due = time.monotonic() >= ask_at
            if parser.broken > broken:
                if broken_ok:
                    return None, parser
                if pieces_from is not None and parser.lost and parser.lost.length > pieces_from:
                    return None, parser
                broken = parser.broken
            elif not due:
                continue
            else:
                patience = min(60.0, 2 * patience)
                if broken_ok and not again and self._stream.silent_for() > _SETTLED:
                    return None, parser
            if again:
                self._ask(again, deadline, awaited)
            asked_at = time.monotonic()

    def _ask(self, again: bytes, deadline: Deadline, awaited: str) -> None:
        """Request a result once more."""
        self._stream.suspects.asked_again()
        self.send(again, deadline, awaited)

    def _pieces(self, tag: str, lost: Header, deadline: Deadline, awaited: str) -> Frame:
        """Request a long result in pieces, each of which is likelier to arrive intact."""
        payload = bytearray()
        while not lost.fits(bytes(payload)):
            if len(payload) >= lost.length:
                payload.clear()
            size = min(_PIECE, lost.length - len(payload))
            part = new_tag()
            request = f"s {tag} .{part},{len(payload)},{size}.\n".encode()
            position = self._stream.total
            self.send(request, deadline, awaited)
            frame, _ = self._collect(
                part, position, deadline, awaited, again=request, broken_ok=True
            )
            if frame is not None and len(frame.payload) == size:
                payload += frame.payload
        return Frame(lost.status, bytes(payload))

    def _check_gone(self, parser: FrameParser, tag: str, echo: bytes) -> None:
        tail = parser.tail
        last = tail[max(tail.rfind(b"\n"), tail.rfind(b"\r")) + 1 :]
        # The driver's echo of a command may end in the words of a prompt.
        logged_out = not last.startswith(b"$ ") and self.dialogue.shows_login(last)
        if logged_out or _REBOOTED.search(tail):
            self.active = False
            raise LoginError(
                f"the shell on the console of {self._stream.name} is gone: the guest rebooted or"
                " logged out",
                evidence=self._stream.evidence(),
                hint="console.login() again after a reboot",
            )
        # The driver has no echo and no prompt, so an echoed request before a prompt is the shell's.
        asked = b" %s ." % tag.encode() in tail
        if self.active and asked and self.dialogue.shows_shell(tail):
            started = echo and echo[:40] in tail
            raise _DriverGoneError(not started and b"x %s ." % tag.encode() in tail)

    def _recover(self, deadline: Deadline) -> None:
        """Wait until the driver has finished a command that was interrupted."""
        self._ping(deadline, f"the shell, after `{self._hung}` was interrupted")
        self._hung = ""
