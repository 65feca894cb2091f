r"""What a console says and wants on the way to a shell.

The defaults are the words of util-linux' ``agetty`` and ``login``, of busybox and of the common
shells, in English. An image whose console speaks otherwise says so in its ``image.yaml``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

LOGIN_PROMPT: Final = (
    rb"(?<!Last )\b[Ll]ogin: ?(?=\Z|[\[\r\n\x1b])"
    rb"|(?:\A|[\r\n])(?!Last )[A-Za-z0-9.-]+ login: (?=\S)(?![^\r\n]*\(automatic login\))"
)
"""The prompt of ``login``.

It ends the output or is cut by a kernel message. After a host name, as agetty prints it, it may
also be followed by the output of another program.
"""

AUTOMATIC: Final = rb"\(automatic login\)"
"""What agetty prints after the prompt that it answers itself."""

ACTIVATE: Final = rb"[Pp]ress (?:Enter|ENTER|Return|RETURN) to activate this console"
"""What busybox init prints for ``askfirst``; it starts the program after Enter (``init/init.c``)."""

PASSWORD_PROMPT: Final = rb"[Pp]assword(?: for [^\r\n:]*)?: ?"

REFUSAL: Final = (
    rb"Login incorrect|Authentication failure|Permission denied|Maximum number of tries exceeded"
    rb"|Login timed out|This account is currently not available"
    rb"|You are required to change your password|(?:New|Current|\(current\) UNIX) password: "
)

_SEQUENCE: Final = (
    rb"\x1b(?:\[[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor queries, bracketed paste
    rb"|[\]PX^_][^\x07\x1b]{0,4096}+(?:\x07|\x1b\\)"  # OSC and other strings: titles, marks
    rb"|[ -/]{0,4}+[0-OQ-WYZ`-~\\])"  # two and three characters: charsets, as of `tput sgr0`
)

# Possessive: what follows a sign is read once, whether or not it ends the output.
_PADDING: Final = rb"(?:[ \t\x0e\x0f]|" + _SEQUENCE + rb")"

SHELL_PROMPT: Final = rb"[#$%>]" + _PADDING + rb"*+\Z"
"""The end of a shell's prompt: a sign, blanks and control sequences, at the end of the output."""

_HIDDEN_PROMPT: Final = re.compile(rb"[#$%>]" + _PADDING + rb"++[^\s\x1b]")
"""A sign and a blank before other text, which may be a prompt that something printed behind."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How a console gives a shell; ``login`` in ``image.yaml``.

    The patterns are regular expressions, and replace Harness' own.

    Attributes:
        login_prompt: The prompt for the user.
        password_prompt: The prompt for the password.
        refusal: What a refused login prints.
        shell_prompt: The end of the shell's prompt. Without it, a prompt ends in ``#``, ``$``,
            ``%`` or ``>``, with any blanks and control sequences after it.
        wake: The name of the key that a silent console waits for, of
            :data:`~harness.console.KEY_NAMES`; ``None`` if it waits for none.
        setting: Where to change all this, for messages.
    """

    login_prompt: str | None = None
    password_prompt: str | None = None
    refusal: str | None = None
    shell_prompt: str | None = None
    wake: str | None = None
    setting: str = "console.dialogue"

    @property
    def login(self) -> bytes:
        """The pattern of the login prompt."""
        return self.login_prompt.encode() if self.login_prompt else LOGIN_PROMPT

    @property
    def password(self) -> bytes:
        """The pattern of the password prompt."""
        return self.password_prompt.encode() if self.password_prompt else PASSWORD_PROMPT

    @property
    def refused(self) -> bytes:
        """The pattern of a refusal."""
        return self.refusal.encode() if self.refusal else REFUSAL

    @property
    def shell(self) -> bytes:
        """The pattern of the end of the shell's prompt."""
        return self.shell_prompt.encode() if self.shell_prompt else SHELL_PROMPT

    def shows_shell(self, output: bytes) -> bool:
        """Return whether output ends in a shell's prompt."""
        return re.search(self.shell, output) is not None

    def hides_shell(self, output: bytes) -> bool:
        """Return whether output contains what may be a shell's prompt, with text behind it."""
        if self.shell_prompt:
            return re.search(self.shell_prompt.removesuffix("$").encode(), output) is not None
        return _HIDDEN_PROMPT.search(output) is not None

    def shows_login(self, output: bytes) -> bool:
        """Return whether output ends in a login prompt."""
        last = max(output.rfind(b"\n"), output.rfind(b"\r")) + 1
        return re.search(rb"(?:%s)\s*\Z" % self.login, output[last:]) is not None
