"""The login on a console: from any state of the line to a shell that answers.

The shell's prompt is unknown in advance. Output that looks like a prompt only starts a probe: a
command whose output differs from its echo. The shell is ready when that output arrives.

The kernel and other programs print whenever they want: behind a prompt, or in its middle. So when
an answer is awaited and the console is quiet, the guest is asked again: by Enter, or by the probe
where a shell must be there. The pauses between the questions double.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from harness.console.dialogue import ACTIVATE, AUTOMATIC, Dialogue
from harness.console.expect import Match, regex_searcher, search, timeout_error
from harness.console.keys import key_bytes
from harness.console.known import screen_of
from harness.console.shell import Driver
from harness.console.stream import Stream
from harness.console.text import strip_escapes
from harness.deadline import Deadline
from harness.errors import LoginError

_PROBES: Final = 8
"""Probes at prompts; after them, only silence has another one typed."""

_ATTEMPTS: Final = 3
"""Logins, if the guest was asked again: Enter at a hidden password prompt is a wrong password."""

_MOMENT: Final = 1.0
"""Seconds of silence after which a prompt that something printed behind is asked for again."""

_PATIENCE: Final = 6.0
"""Seconds of silence, on a good host, after which the guest is asked again without such a sign.

It is longer than the pause after a wrong password: 2 to 4.5 s (``pam_unix(8)``, ``login.defs(5)``).
"""

_WAKE: Final = 1.0
"""Seconds of silence, on a good host, after which the key of :attr:`Dialogue.wake` is pressed."""

_RECENT: Final = 4096
"""Bytes of output in which a hidden prompt is looked for."""

_REFUSED_HINT: Final = (
    "check the user and the password; if every login ends at once, the image may lack the `login`"
    " program or the user's shell"
)


class _AgainError(Exception):
    """A login failed, perhaps because the guest was asked again in its course.

    Attributes:
        start: The offset in the output from which the next login prompt counts.
    """

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start


class _SettledError(Exception):
    """A shell has answered and is silent: it is at its prompt, whatever that looks like."""


def log_in(
    stream: Stream,
    driver: Driver,
    start: int,
    user: str | None,
    password: str | None,
    deadline: Deadline,
    *,
    at_shell: bool = False,
) -> None:
    """Log in as ``driver.dialogue`` says, and start the driver.

    Args:
        stream: The stream of the console.
        driver: The driver to start.
        start: The offset in the output from which a login prompt counts.
        user: The user; ``None`` if the console asks for none.
        password: The password; ``None`` if the guest asks for none.
        deadline: When to give up.
        at_shell: Whether a shell is known to read the console.

    Raises:
        LoginError: The guest refused the login, the session ended at once, or the guest asks for a
            user or a password that the login lacks.
        WaitTimeoutError: The deadline passed.
        HarnessError: The console has failed.
    """
    login = _Login(stream, driver, user, password, deadline)
    if user is None:
        login.probe(start, at_shell=at_shell)
    else:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                login.attempt(start, last=attempt == _ATTEMPTS)
                break
            except _AgainError as again:
                start = again.start
    driver.enter(deadline)


def wait_for_prompt(stream: Stream, driver: Driver, start: int, deadline: Deadline) -> int:
    """Wait until a shell, which must be there, is at its prompt; return the offset after that.

    A shell sets up the terminal before it prints the prompt, and input typed earlier may be lost.
    A prompt that something else printed behind is asked for again by a probe. Its answer is
    awaited, too, so that it is in no later output.

    Raises:
        WaitTimeoutError: The deadline passed.
        HarnessError: The console has failed.
    """
    return _Login(stream, driver, None, None, deadline).prompt(start)


class _Login:
    """One way to a shell.

    Args:
        stream: The stream of the console.
        driver: The driver of the console.
        user: The user; ``None`` if the console asks for none.
        password: The password.
        deadline: When to give up.
    """

    def __init__(
        self,
        stream: Stream,
        driver: Driver,
        user: str | None,
        password: str | None,
        deadline: Deadline,
    ) -> None:
        self._stream = stream
        self._driver = driver
        self._dialogue: Dialogue = driver.dialogue
        self._user = user
        self._password = password
        self._deadline = deadline
        self._token = secrets.token_hex(6)
        self._answer = f"h{self._token}".encode()
        self._asked = 0
        self._answers = 0
        self._last = True

    def attempt(self, start: int, *, last: bool) -> None:
        """Log in at a login prompt, up to the shell's answer.

        Raises:
            _AgainError: The login was refused after the guest was asked again, and this attempt is
                not the last.
        """
        assert self._user is not None
        self._asked = 0
        self._last = last
        patterns = {"login": self._dialogue.login, "automatic": AUTOMATIC, "activate": ACTIVATE}
        awaited = f"a login prompt for {self._user}"
        asking = self._asking(start, self._wake, self._wake_patience(), shell=False)
        while True:
            name, match = self._find(patterns, start, awaited, asking, "login_prompt")
            start = match.end
            if name != "activate":
                break
            self._wake()
        if name == "login":
            start = self._authenticate(start)
        self.probe(start, at_shell=True)

    def _authenticate(self, start: int) -> int:
        """Type the user, and the password if the guest asks for it."""
        assert self._user is not None
        # Each Enter that asked for the prompt may have brought one more than the one that was answered.
        more = self._asked
        self._send(self._user)
        dialogue = self._dialogue
        patterns = {
            "refused": dialogue.refused,
            "password": dialogue.password,
            "login": dialogue.login,
            "shell": dialogue.shell,
        }
        asking = self._asking(start, self._enter, _PATIENCE)
        awaited = f"the login of {self._user}"
        while True:
            name, match = self._find(patterns, start, awaited, asking, "password_prompt")
            if name != "login" or not more:
                break
            more -= 1
            start = match.end
        if name in {"refused", "login"}:
            raise self._refused(name, match)
        if name == "shell":
            return start
        if self._password is None:
            raise LoginError(
                f"{self._stream.name} asks for the password of {self._user}, and the login has"
                " none",
                evidence=self._stream.evidence(),
                hint="pass the password; machine.os.login() takes it from"
                f" {dialogue.setting}, where `password` sets it",
            )
        self._send(self._password)
        return match.end

    def probe(self, start: int, *, at_shell: bool) -> None:
        """Type a probe at each prompt until a shell answers.

        Args:
            start: The offset in the output from which a prompt counts.
            at_shell: Whether silence has the probe typed, too. Enter is typed otherwise: a boot
                loader would take the letters of the probe as commands.
        """
        patterns = {"answer": self._answer, "shell": self._dialogue.shell}
        awaited = "a shell prompt"
        if self._user is not None:
            awaited += f" after the login of {self._user}"
            patterns |= {"refused": self._dialogue.refused, "login": self._dialogue.login}
        else:
            patterns["activate"] = ACTIVATE
        ask = self._probe if at_shell else self._wake
        patience = _PATIENCE if at_shell else self._wake_patience()
        asking = self._asking(start, ask, patience)
        probes = 0
        while True:
            name, match = self._find(patterns, start, awaited, asking, "shell_prompt")
            start = match.end
            if name == "answer":
                return
            if name in {"refused", "login"}:
                raise self._refused(name, match)
            if name == "activate":
                self._wake()
                continue
            self._probe()
            probes += 1
            if probes == _PROBES:
                # Hostile output would have probes typed without end.
                del patterns["shell"]

    def prompt(self, start: int) -> int:
        """Wait for the prompt of a shell that must be there; return the offset after it."""
        patterns = {"answer": self._answer, "shell": self._dialogue.shell}
        asking = self._asking_for_prompt()
        while True:
            try:
                name, match = self._find(patterns, start, "a shell prompt", asking, "shell_prompt")
            except _SettledError:
                return self._stream.total
            start = match.end
            if name == "answer":
                self._answers += 1
            elif self._answers >= self._asked:
                return start

    # Asking again.

    def _asking(
        self, start: int, ask: Callable[[], None], patience: float, *, shell: bool = True
    ) -> Iterator[float]:
        """Yield the pauses, in seconds of silence, after which to ask again.

        Args:
            start: The offset in the output from which a prompt counts.
            ask: Asks.
            patience: The first pause, in seconds on a good host.
            shell: Whether output that looks like a hidden shell's prompt shortens it.
        """
        pause = patience = max(self._stream.scale.factor * patience, _MOMENT)
        if shell:
            yield _MOMENT
            pause -= _MOMENT
            if self._dialogue.hides_shell(self._recent(start)):
                pause = 0.0
        if pause:
            yield pause
        pause = patience
        while True:
            self._check_asks_for_user(start)
            self._asked += 1
            ask()
            yield pause
            pause *= 2

    def _asking_for_prompt(self) -> Iterator[float]:
        pause = _MOMENT
        while True:
            yield pause
            recent = self._recent(0)
            if self._answers or (self._asked and self._dialogue.shows_shell(recent)):
                # The prompt is unknown, or the shell has lost the probe.
                raise _SettledError
            self._check_asks_for_user(0)
            self._asked += 1
            self._probe()
            pause *= 2

    def _recent(self, start: int) -> bytes:
        end = self._stream.total
        return self._stream.read(max(start, end - _RECENT), end)

    def _check_asks_for_user(self, start: int) -> None:
        """Raise if no user is to log in, and the guest is silent at a login prompt."""
        line = self._recent(start)
        if self._user is None and self._dialogue.shows_login(strip_escapes(line)):
            raise LoginError(
                f"the console of {self._stream.name} asks for a user, and the login has none",
                evidence=self._stream.evidence(),
                hint=f"pass the user, or set `user` in {self._dialogue.setting}; if the session"
                " ended, log in again",
            )

    def _wake_patience(self) -> float:
        return _PATIENCE if self._dialogue.wake is None else _WAKE

    def _enter(self) -> None:
        self._type(b"\r")

    def _wake(self) -> None:
        self._type(key_bytes(self._dialogue.wake or "Enter"))

    def _probe(self) -> None:
        # The shell joins the two words; in the echo of the line they are separate.
        self._type(f" echo 'h''{self._token}'\r".encode())

    def _type(self, data: bytes) -> None:
        # A guest that reads nothing must not hold up the wait.
        self._stream.outbox.send(data, Deadline(0.0, time.monotonic()))

    # Parts of all steps.

    def _send(self, line: str) -> None:
        # Enter is CR: agetty sets the newline mapping of the terminal by the byte that ends the
        # name. A newline before the name would be an empty name.
        self._driver.answered_at = self._stream.total
        self._driver.send(line.encode() + b"\r", self._deadline, "a login", own_line=False)

    def _find(
        self,
        patterns: Mapping[str, bytes],
        start: int,
        awaited: str,
        asking: Iterator[float],
        setting: str,
    ) -> tuple[str, Match]:
        """Wait for one of the patterns; return its name and the match."""
        match = search(
            self._stream,
            regex_searcher([re.compile(pattern) for pattern in patterns.values()]),
            start,
            self._deadline,
            lambda: timeout_error(self._stream, awaited, self._deadline, hint=self._hint(setting)),
            asking=asking,
        )
        return list(patterns)[match.index], match

    def _hint(self, setting: str) -> str:
        """Return what the console shows, and how to tell the login about it."""
        where = self._dialogue.setting
        line = self._stream.tail(1)
        if not line:
            return (
                "the guest has printed nothing: check `console` in image.yaml, and `console=` on"
                " the kernel's command line; what draws on a screen alone, such as a memory test, is"
                " seen with lab.boot(display=True)"
            )
        if setting == "login_prompt" and screen_of(self._stream):
            return (
                "no login prompt comes from there: answer what it asks, or check the disks, their order"
                " and the boot loader's files; what draws on a screen alone is seen with"
                " lab.boot(display=True)"
            )
        shown = repr(line[-120:])
        recent = self._recent(0)
        if setting == "shell_prompt":
            return (
                f"the console shows {shown}: if that is a shell's prompt, set `shell_prompt` in"
                f" {where}; if it waits for a key, set `wake`"
            )
        if setting == "password_prompt":
            return (
                f"the console shows {shown}: if that asks for the password, set `password_prompt`"
                f" in {where}; if it refuses the login, set `refusal`"
            )
        if self._dialogue.shows_shell(recent) or self._dialogue.hides_shell(recent):
            return (
                f"the console shows {shown}: if that is a shell's prompt, and nobody has to log"
                f" in, set `user: none` in {where}; if it asks for the user, set `login_prompt`"
            )
        return (
            f"the console shows {shown}: if that asks for the user, set `login_prompt` in {where};"
            " if it waits for a key, set `wake`; if nobody has to log in, set `user: none`"
        )

    def _refused(self, name: str, match: Match) -> Exception:
        if self._asked and not self._last:
            return _AgainError(match.start if name == "login" else match.end)
        reason = "the login prompt is back" if name == "login" else match.text.strip()
        return LoginError(
            f"the login of {self._user} on {self._stream.name} was refused: {reason}",
            evidence=self._stream.evidence(),
            hint=_REFUSED_HINT,
            pressure=self._stream.excuse(),
        )
