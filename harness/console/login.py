"""The login on a console: from any state of the line to a shell that answers.

The shell's prompt is unknown in advance. Output that looks like a prompt only starts a probe: a
command whose output differs from its echo. The shell is ready when that output arrives.
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
"""The prompt of ``login``.

It ends the output or is cut by a kernel message. After a host name, as agetty prints it, it may
also be followed by the output of another program.
"""

_AUTOMATIC: Final = rb"\(automatic login\)"
PASSWORD_PROMPT: Final = rb"[Pp]assword(?: for [^\r\n:]*)?: ?"

_REFUSED: Final = (
    rb"Login incorrect|Authentication failure|Permission denied|Maximum number of tries exceeded"
    rb"|Login timed out|This account is currently not available"
    rb"|You are required to change your password|(?:New|Current|\(current\) UNIX) password: "
)

_SHELL_PROMPT: Final = rb"(?<=[#$%>]) ?(?:\x1b\[[0-9;?]*[A-Za-z])*\Z"
"""The end of a shell's prompt: a sign and a blank; busybox then queries the cursor position."""

_PROBES: Final = 8

_REFUSED_HINT: Final = (
    "check the user and the password; if every login ends at once, the image may lack the `login`"
    " program or the user's shell"
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
        stream: The stream of the console.
        driver: The driver to start.
        start: The offset in the output from which a login prompt counts.
        user: The user; ``None`` if the console logs in automatically.
        password: The password; ``None`` if the guest asks for none.
        prompt: A regular expression for the end of the shell's prompt, if the prompt does not end
            in ``#``, ``$``, ``%`` or ``>``.
        deadline: When to give up.

    Raises:
        LoginError: The guest refused the login, or the session ended at once.
        WaitTimeoutError: The deadline passed.
        HarnessError: The console has failed.
    """
    shell_prompt = prompt.encode() if prompt else _SHELL_PROMPT
    if user is not None:
        awaited = f"a login prompt for {user}"
        match = _find(stream, [LOGIN_PROMPT, _AUTOMATIC], start, deadline, awaited)
        start = match.end
    if user is not None and match.index == 0:
        _send(driver, user, deadline)
        awaited = f"the login of {user}"
        patterns = [_REFUSED, PASSWORD_PROMPT, LOGIN_PROMPT, shell_prompt]
        match = _find(stream, patterns, start, deadline, awaited)
        if match.index == 0:
            raise _refused(stream, user, match)
        if match.index == 1:
            if password is None:
                raise LoginError(
                    f"{stream.name} asks for the password of {user}, and the login has none",
                    evidence=stream.evidence(),
                    hint="pass the password, or make the image log in automatically on its console",
                )
            start = match.end
            _send(driver, password, deadline)
        elif match.index == 2:
            raise _refused(stream, user, match)
    _probe(stream, driver, start, user, shell_prompt, deadline)
    driver.enter(deadline)


def wait_for_prompt(stream: Stream, start: int, prompt: str | None, deadline: Deadline) -> Match:
    """Wait until the output ends in a shell's prompt.

    A shell sets up the terminal before it prints the prompt, and input typed earlier may be lost.

    Raises:
        WaitTimeoutError: The deadline passed.
        HarnessError: The console has failed.
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
    """Type a probe at each prompt until a shell answers."""
    token = secrets.token_hex(6)
    answer = f"h{token}".encode()
    awaited = "a shell prompt" + (f" after the login of {user}" if user else "")
    patterns = [answer, _REFUSED, shell_prompt]
    if user is not None:
        patterns.append(LOGIN_PROMPT)
    for _ in range(_PROBES):
        match = _find(stream, patterns, start, deadline, awaited)
        start = match.end
        if match.index == 0:
            return
        if match.index != 2:
            raise _refused(stream, user or "the console's user", match)
        # The shell joins the two words; in the echo of the line they are separate.
        _send(driver, f" echo 'h''{token}'", deadline)
    _find(stream, [answer], start, deadline, awaited)


def _find(
    stream: Stream, patterns: list[bytes], start: int, deadline: Deadline, awaited: str
) -> Match:
    return search(
        stream,
        regex_searcher([re.compile(pattern) for pattern in patterns]),
        start,
        deadline,
        lambda: timeout_error(
            stream, awaited, deadline, hint="the log shows what the guest printed instead"
        ),
    )


def _send(driver: Driver, line: str, deadline: Deadline) -> None:
    # Enter is CR: agetty sets the newline mapping of the terminal by the byte that ends the name.
    # A newline before the name would be an empty name.
    driver.send(line.encode() + b"\r", deadline, "a login", own_line=False)


def _refused(stream: Stream, user: str, match: Match) -> LoginError:
    text = match.text.strip()
    reason = "the login prompt is back" if "ogin:" in text else text
    return LoginError(
        f"the login of {user} on {stream.name} was refused: {reason}",
        evidence=stream.evidence(),
        hint=_REFUSED_HINT,
    )
