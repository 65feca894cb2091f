"""Logging in on a console: from whatever is on the line to a shell that answers.

No prompt of a shell is known in advance. What looks like one is only taken for a reason to ask: the
shell is there when it computes an answer, which its echo of the question is not.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from harness.console.expect import Match, regex_searcher, search, timeout_error
from harness.console.shell import Driver
from harness.console.stream import Stream
from harness.deadline import Deadline
from harness.errors import LoginError

LOGIN_PROMPT: Final = (
    rb"(?<!Last )\b[Ll]ogin: ?(?=\Z|[\[\r\n\x1b])"
    rb"|(?:\A|[\r\n])(?!Last )[A-Za-z0-9.-]+ login: (?=\S)(?![^\r\n]*\(automatic login\))"
)
"""At the end of the line or where a kernel message cut it; or as agetty shows it, behind the host's
name, where a program wrote on."""

_AUTOMATIC: Final = rb"\(automatic login\)"
PASSWORD_PROMPT: Final = rb"[Pp]assword(?: for [^\r\n:]*)?: ?"

_REFUSED: Final = (
    rb"Login incorrect|Authentication failure|Permission denied|Maximum number of tries exceeded"
    rb"|Login timed out|This account is currently not available"
    rb"|You are required to change your password|(?:New|Current|\(current\) UNIX) password: "
)

_SHELL_PROMPT: Final = rb"(?<=[#$%>]) ?(?:\x1b\[[0-9;?]*[A-Za-z])*\Z"
"""What the end of a prompt looks like: a sign, a blank; busybox then asks for the cursor."""

_PROBES: Final = 8

_NO_LOGIN: Final = (
    "check user and password; if every login ends at once, the image may lack the `login` program"
    " or the user's shell"
)


def log_in(
    stream: Stream,
    driver: Driver,
    start: int,
    user: str | None,
    password: str | None,
    prompt: str | None,
    deadline: Deadline,
) -> None:
    """Log in and start the driver.

    Args:
        stream: The console's stream.
        driver: The driver to start.
        start: Offset of the output from which a login prompt counts.
        user: Who logs in; ``None`` if the console logs in by itself.
        password: The password, or ``None`` if none is asked for.
        prompt: A regular expression for the shell's prompt, if it does not end in ``#``, ``$``,
            ``%`` or ``>``.
        deadline: When to give up.

    Raises:
        LoginError: if the login is refused or ends at once.
        WaitTimeoutError: at the deadline.
    """
    shell_prompt = prompt.encode() if prompt else _SHELL_PROMPT
    if user is not None:
        what = f"a login prompt for {user}"
        found = _find(stream, [LOGIN_PROMPT, _AUTOMATIC], start, deadline, what)
        start = found.end
    if user is not None and found.index == 0:
        _send(driver, user, deadline)
        what = f"the login of {user}"
        wanted = [_REFUSED, PASSWORD_PROMPT, LOGIN_PROMPT, shell_prompt]
        found = _find(stream, wanted, start, deadline, what)
        if found.index == 0:
            raise _refused(stream, user, found)
        if found.index == 1:
            if password is None:
                raise LoginError(
                    f"{stream.name} asks for a password of {user}, and none was given",
                    evidence=stream.evidence(),
                    hint="give the password, or make the image's console log in by itself",
                )
            start = found.end
            _send(driver, password, deadline)
        elif found.index == 2:
            raise _refused(stream, user, found)
    _probe(stream, driver, start, user, shell_prompt, deadline)
    driver.enter(deadline)


def wait_for_prompt(stream: Stream, start: int, prompt: str | None, deadline: Deadline) -> Match:
    """Wait until what looks like a shell's prompt ends the output.

    Before a shell shows it, it sets the terminal up, and what was typed until then may be lost.

    Raises:
        WaitTimeoutError: at the deadline.
    """
    return _find(
        stream, [prompt.encode() if prompt else _SHELL_PROMPT], start, deadline, "a shell prompt"
    )


def _probe(
    stream: Stream,
    driver: Driver,
    start: int,
    user: str | None,
    shell_prompt: bytes,
    deadline: Deadline,
) -> None:
    """Ask whatever looks like a shell until one answers."""
    token = secrets.token_hex(6)
    answer = f"h{token}".encode()
    what = "a shell prompt" + (f" after the login of {user}" if user else "")
    patterns = [answer, _REFUSED, shell_prompt]
    if user is not None:
        patterns.append(LOGIN_PROMPT)
    for _ in range(_PROBES):
        found = _find(stream, patterns, start, deadline, what)
        start = found.end
        if found.index == 0:
            return
        if found.index != 2:
            raise _refused(stream, user or "nobody", found)
        # The shell joins the words; the echo of the line has them apart.
        _send(driver, f" echo 'h''{token}'", deadline)
    _find(stream, [answer], start, deadline, what)


def _find(
    stream: Stream, patterns: list[bytes], start: int, deadline: Deadline, what: str
) -> Match:
    return search(
        stream,
        regex_searcher([re.compile(pattern) for pattern in patterns]),
        start,
        deadline,
        lambda: timeout_error(stream, what, deadline, hint="see the log for what it shows instead"),
    )


def _send(driver: Driver, line: str, deadline: Deadline) -> None:
    # Enter is CR: agetty sets the terminal's newline mapping by what ends the user's name.
    # A newline before it would be an empty name.
    driver.send(line.encode() + b"\r", deadline, "a login", own_line=False)


def _refused(stream: Stream, user: str, found: Match) -> LoginError:
    said = found.text.strip()
    reason = "the login prompt is back" if "ogin:" in said else said
    return LoginError(
        f"the login of {user} on {stream.name} was refused: {reason}",
        evidence=stream.evidence(),
        hint=_NO_LOGIN,
    )
