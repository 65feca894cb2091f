r"""Commands over a serial console: exact output and status, at the speed of the line.

At a prompt, a small driver is started in the guest (see :mod:`harness.console.driver`): a loop of
shell builtins that reads one request a line, runs commands with their output captured in a file in
memory, and answers with frames (see :mod:`harness.console.frame`). No prompt is parsed, nothing is
forked but what the command forks itself. A frame that noise broke is sent again from the file; the
command never runs twice.

What follows from this:

* Commands run in one shell, as a person's would: ``cd`` and variables last. ``exit 3`` ends that
  shell with the status 3, and the next command has a new one.
* Their standard input is ``/dev/null``; their standard error goes where their output goes.
* A background job does not hold the command up; what it prints later is lost unless redirected.
* A person reading the log sees ``$ command`` before each frame.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from harness.console.driver import BOOTSTRAP, driver_script
from harness.console.expect import timeout_error
from harness.console.frame import Frame, FrameParser, Header, new_tag
from harness.console.stream import Stream
from harness.console.text import strip_escapes
from harness.deadline import Deadline
from harness.errors import HarnessError, LoginError, UsageError

_LINE: Final = 1000
"""Bytes of a command in one request. The driver takes a byte at a time."""

_PACE: Final = 16 * 1024
"""Bytes after which the driver is asked whether it has kept up: a tty drops what it cannot hold."""

_PIECE: Final = 4096
"""A broken result longer than this is asked for in pieces, each of which has better chances."""

_ASK_FIRST: Final = 1.0
_ASK_QUIET: Final = 30.0
"""Seconds before the result is asked for again: if there was noise; if there was none."""

_GONE: Final = re.compile(
    rb"(?:^|[\r\n])(?!\$ )[^\r\n]*(?<!Last )\blogin: ?\Z|\[ *0\.000000\][^\r\n]* Linux version \d"
)

_PROMPT: Final = re.compile(rb"[#$%>] ?\Z")

_INTERRUPT: Final = b"\x03"

_ASK: Final = b"r TAG ..\n"

_SETTLED: Final = 3.0
"""Seconds of silence after which a start whose frame was lost in noise is taken for done."""

_STEP: Final = 1024 * 1024

_AHEAD: Final = 0.1
"""Seconds for which fewer bytes than any answer has are not looked at."""


class _DriverGoneError(Exception):
    """The driver ended, and a prompt is there again.

    Attributes:
        untouched: Whether the prompt, not the driver, got the request: it took it for a command
            named ``x`` or ``r``, and refused it. So nothing was run.
    """

    def __init__(self, untouched: bool) -> None:
        super().__init__()
        self.untouched = untouched


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did.

    Attributes:
        command: The command.
        raw: Its output, standard error included, as bytes.
        status: Its exit status; 128 and the number of the signal that killed it.
        seconds: How long it took, transport included.
    """

    command: str
    raw: bytes
    status: int
    seconds: float

    @property
    def stdout(self) -> str:
        """The output as text; what is no UTF-8 is replaced."""
        return self.raw.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether the status is zero."""
        return self.status == 0


def requests(command: str, tag: str) -> list[bytes]:
    """Return the request lines that run a command.

    Raises:
        UsageError: if the command has a byte that no line to a tty can carry: NUL, or Ctrl-C.
    """
    if "\0" in command or "\x03" in command:
        raise UsageError(
            "a command on the console cannot contain NUL or Ctrl-C bytes",
            hint="let printf make them in the guest, as \\000 or \\003",
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
    """The driver in the guest and what is known of it; one thread at a time.

    Args:
        stream: The console's stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._up = b""  # what the driver prints when it had to start again
        self._count = 0
        self._hung = ""  # the command that did not end in time
        self.active = False
        self.position = 0
        """Offset behind the last result."""

    def enter(self, deadline: Deadline) -> None:
        """Start the driver, at a prompt.

        Raises:
            LoginError: if the guest has no directory to write results to.
            WaitTimeoutError: if it did not start until the deadline.
        """
        what = "a shell to take commands"
        first, second = new_tag(), new_tag()
        self._up = b"<%s up>" % second.encode()
        for tag, script, again in (
            (first, BOOTSTRAP.replace("TAG", first) + "\r", b""),
            (second, driver_script(second) + "\n", _ASK),
        ):
            position = self._stream.total
            self.send(script.encode(), deadline, what)
            # That noise broke the frame shows no less that the guest got this far.
            frame, _ = self._collect(tag, position, deadline, what, again=again, broken_ok=True)
            if frame is not None and frame.status:
                raise LoginError(
                    f"no directory that the user may write to on {self._stream.name}",
                    evidence=self._stream.evidence(),
                    hint="one of /run, /dev/shm, /tmp or the home directory has to be writable",
                )
        self.active = True
        self._hung = ""

    def export(self) -> tuple[int, str] | None:
        """Return what another driver object needs to go on with this shell; ``None`` without one."""
        if not self.active or self._hung:
            return None
        return self._count, self._up.decode()

    def adopt(self, count: int, up: str) -> None:
        """Go on with the shell of a guest that was saved: its :meth:`export`.

        The numbers go on too: the guest keeps results by them, and an old one is not run again.
        """
        self._count, self._up, self._hung = count, up.encode(), ""
        self.active = True

    def leave(self, deadline: Deadline) -> None:
        """End the driver: the prompt and the terminal are as before."""
        if self.active:
            self.active = False
            self.send(b"q %s ..\n" % new_tag().encode(), deadline, "the shell's end")

    def run(self, command: str, deadline: Deadline) -> Result:
        """Run a command; see the module's text for what holds.

        Raises:
            UsageError: if the command cannot be sent.
            LoginError: if there is no shell, or not any more.
            WaitTimeoutError: at the deadline; the command is interrupted then.
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
        what = f"`{shown}` to end"
        echo = b"$ " + command.partition("\n")[0].encode("utf-8", "surrogateescape")
        try:
            try:
                if self._hung:
                    self._recover(deadline)
                frame = self._exchange(lines, tag, deadline, what, echo)
            except _DriverGoneError as gone:
                if not gone.untouched:
                    self.active = False
                    raise LoginError(
                        f"the shell on the console of {self._stream.name} ended while it ran"
                        f" `{shown}`",
                        evidence=self._stream.evidence(),
                        hint="console.login(None) starts another one at the prompt",
                    ) from None
                self.enter(deadline)
                frame = self._exchange(lines, tag, deadline, what, echo)
        except HarnessError:
            if deadline.expired:
                self._hung = shown
                # Nobody may be listening any more: what the socket does not take now is not sent.
                self._stream.outbox.send(_INTERRUPT, Deadline(0, time.monotonic()))
            raise
        return Result(command, frame.payload, frame.status, time.monotonic() - started)

    def send(
        self, data: bytes, deadline: Deadline, waited_for: str, *, own_line: bool = True
    ) -> None:
        """Write to the guest.

        Args:
            data: What to write.
            deadline: When to give up.
            waited_for: What the caller waits for, for the message.
            own_line: Whether an answer to a terminal query must not be before it on its line.

        Raises:
            WaitTimeoutError: if the guest did not take it until the deadline.
            HarnessError: the console's failure.
        """
        after_replies = b"\n" if own_line else b""
        left = self._stream.outbox.send(data, deadline, after_replies=after_replies)
        if left:
            self._stream.check()
            raise timeout_error(
                self._stream,
                f"the guest to read its input ({left} of {len(data)} bytes left), for {waited_for}",
                deadline,
            )

    def _exchange(
        self, lines: list[bytes], tag: str, deadline: Deadline, what: str, echo: bytes
    ) -> Frame:
        position = self._stream.total
        self._send_paced(lines, deadline, what)
        while True:
            frame, parser = self._collect(
                tag, position, deadline, what, again=_ASK, pieces_from=_PIECE, echo=echo
            )
            if frame is None and not parser.unknown and parser.lost is not None:
                frame = self._pieces(tag, parser.lost, deadline, what)
            if frame is not None:
                return frame
            # The guest never got the command. If it did after all, it does not run it again.
            position = self._stream.total
            self._send_paced(lines, deadline, what)

    def _send_paced(self, lines: list[bytes], deadline: Deadline, what: str) -> None:
        batch: list[bytes] = []
        size = 0
        for line in lines[:-1]:
            batch.append(line)
            size += len(line)
            if size >= _PACE:
                # Wait until the driver has read them.
                tag = new_tag()
                position = self._stream.total
                batch.append(_ASK.replace(b"TAG", tag.encode()))
                self.send(b"".join(batch), deadline, what)
                self._collect(tag, position, deadline, what, again=_ASK, broken_ok=True)
                batch, size = [], 0
        self.send(b"".join([*batch, lines[-1]]), deadline, what)

    def _collect(
        self,
        tag: str,
        position: int,
        deadline: Deadline,
        what: str,
        *,
        again: bytes,
        broken_ok: bool = False,
        pieces_from: int | None = None,
        echo: bytes = b"",
    ) -> tuple[Frame | None, FrameParser]:
        """Wait for the frame of a tag; ask for it again when it was broken.

        Args:
            tag: The tag.
            position: Offset from which the frame may come.
            deadline: When to give up.
            what: What is waited for.
            again: The request that asks for it again, if there is one.
            broken_ok: A broken frame will do: it shows that the guest is there.
            pieces_from: A broken frame with a payload longer than this will do: the caller gets it
                in pieces.
            echo: What the driver prints when it starts the command; more than that is noise.

        Returns:
            The frame; or none, if the guest knows of none, if a long one is broken, or if a broken
            one will do.
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
                # A serial port gives a byte at a time: do not wake for each of them.
                self._stream.wait_past(position + ahead, min(timeout, _AHEAD), check=False)
                ahead = 0
            end = min(self._stream.wait_past(position, timeout), position + _STEP)
            if end > position:
                frame = parser.feed(self._stream.read(position, end))
                self.position = position = end
                if frame is not None or parser.unknown:
                    return frame, parser
                self._check_gone(parser, tag, echo)
                if self._up and not restarted and self._up in parser.tail:
                    # The command ended its shell; what there is of a result is in the file.
                    restarted = True
                    if again:
                        self.send(again, deadline, what)
                elif parser.length is not None:
                    asked_at = time.monotonic()  # a long result is on its way
            elif deadline.expired:
                raise timeout_error(self._stream, what, deadline)
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
                self.send(again, deadline, what)
            asked_at = time.monotonic()

    def _pieces(self, tag: str, lost: Header, deadline: Deadline, what: str) -> Frame:
        """Fetch a long result in pieces: each has better chances to come whole."""
        payload = bytearray()
        while not lost.fits(bytes(payload)):
            if len(payload) >= lost.length:
                payload.clear()
            size = min(_PIECE, lost.length - len(payload))
            part = new_tag()
            request = f"s {tag} .{part},{len(payload)},{size}.\n".encode()
            position = self._stream.total
            self.send(request, deadline, what)
            frame, _ = self._collect(part, position, deadline, what, again=request, broken_ok=True)
            if frame is not None and len(frame.payload) == size:
                payload += frame.payload
        return Frame(lost.status, bytes(payload))

    def _check_gone(self, parser: FrameParser, tag: str, echo: bytes) -> None:
        tail = parser.tail
        if _GONE.search(tail):
            self.active = False
            raise LoginError(
                f"the shell on the console of {self._stream.name} is gone: the guest rebooted or"
                " logged out",
                evidence=self._stream.evidence(),
                hint="console.login() again after a reboot",
            )
        # The driver echoes nothing and has no prompt.
        if self.active and b" %s ." % tag.encode() in tail and _PROMPT.search(strip_escapes(tail)):
            started = echo and echo[:40] in tail
            raise _DriverGoneError(not started and b"x %s ." % tag.encode() in tail)

    def _recover(self, deadline: Deadline) -> None:
        """Wait for the driver to be done with a command that was interrupted."""
        what = f"the shell, after `{self._hung}` was interrupted"
        tag = new_tag()
        position = self._stream.total
        self.send(b"\n" + _ASK.replace(b"TAG", tag.encode()), deadline, what)
        self._collect(tag, position, deadline, what, again=_ASK, broken_ok=True)
        self._hung = ""
