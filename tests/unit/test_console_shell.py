"""Commands on real shells behind a terminal, with noise, hostile output and lost requests."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.console import Console
from harness.console.driver import BOOTSTRAP, driver_script
from harness.deadline import UNSCALED
from harness.errors import (
    CommandError,
    LoginError,
    OutputLostError,
    UsageError,
    WaitTimeoutError,
)
from tests.programs import need
from tests.unit.test_console_support import SHELLS, SOON, ShellGuest, open_shell, results_of

Shell = tuple[Console, ShellGuest]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    with open_shell(request.param, tmp_path) as opened:
        yield opened


OUTPUTS = [
    (":", b"", 0),
    ("echo hello", b"hello\n", 0),
    ("false", b"", 1),
    ("(exit 7)", b"", 7),
    ("printf 'a\\n\\n\\n'", b"a\n\n\n", 0),
    ("printf '\\n'", b"\n", 0),
    ("printf no-newline", b"no-newline", 0),
    ("  echo '  a  b '  ", b"  a  b \n", 0),
    ("echo a\\ ", b"a \n", 0),
    ("echo é ü", "é ü\n".encode(), 0),
    ("printf '\\377\\376\\r\\n\\r'", b"\xff\xfe\r\n\r", 0),
    ("printf 'a\\000b'", b"a\x00b", 0),
    ("printf '%128s' x", b" " * 127 + b"x", 0),
    ("printf '%129s' x", b" " * 128 + b"x", 0),
    ("echo err >&2; echo out", b"err\nout\n", 0),
    ("cat", b"", 0),
    ("cat <<X\nfoo\n  bar\nX\necho done", b"foo\n  bar\ndone\n", 0),
    ("for i in 1 2\ndo echo $i\ndone\n", b"1\n2\n", 0),
    ("printf '\\033[6n\\033[31m'", b"\x1b[6n\x1b[31m", 0),
    ("printf '\\t%s\\n' tab", b"\ttab\n", 0),
    ("echo '%s $HOME `x` \\ \"'", b'%s $HOME `x` \\ "\n', 0),
    ("sh -c 'kill -9 $$'", None, 137),
]


@pytest.mark.parametrize(("command", "output", "status"), OUTPUTS)
@pytest.mark.parametrize("argv", SHELLS)
def test_output_and_status_are_exact(
    argv: list[str], tmp_path: Path, command: str, output: bytes | None, status: int
) -> None:
    with open_shell(argv, tmp_path) as (console, _):
        for _ in range(2):
            result = console.run(command, deadline=SOON)
            assert result.status == status
            assert output is None or result.stdout == output.decode("utf-8", "replace")


def test_commands_share_a_shell_and_exit_ends_it_with_its_status(shell: Shell) -> None:
    console, _ = shell
    console.run("cd /; marker=set", deadline=SOON)
    assert console.run("pwd; echo $marker", deadline=SOON).stdout == "/\nset\n"
    for command, status in [
        ("echo before; exit 3", 3),
        ("set -e; false", 1),
        ("kill -9 $$", 137),
        ("exec sh -c 'exit 5'", 5),
    ]:
        assert console.run(command, deadline=SOON).status == status
        assert console.run('echo "$marker" alive', deadline=SOON).stdout == " alive\n"
    assert console.run("echo before; exit 3", deadline=SOON).stdout == "before\n"


def test_a_syntax_error_is_the_result_of_the_command(shell: Shell) -> None:
    console, _ = shell
    result = console.run("echo $(", deadline=SOON)
    assert result.status != 0 and result.stdout
    assert console.run("echo fine", deadline=SOON).stdout == "fine\n"


def test_changes_to_the_shell_do_not_break_later_commands(shell: Shell) -> None:
    console, _ = shell
    for command in [
        "IFS=/",
        "set -u",
        "set -x",
        "set -f",
        "n=1 c=2 s=3 d=4",
        "f() { :; }",
        "PATH=",
    ]:
        console.run(command, deadline=SOON)
        assert "a/b c\n" in console.run("echo 'a/b c'", deadline=SOON).stdout, command
    assert len(console.run("printf '%4000s' x", deadline=SOON).stdout) >= 4000


def test_the_variables_of_the_shell_can_be_listed(shell: Shell) -> None:
    console, _ = shell
    assert "PATH=" in console.run("set", deadline=SOON).stdout


def test_a_command_does_not_wait_for_its_background_job(shell: Shell) -> None:
    console, _ = shell
    result = console.run("sleep 60 & echo $!", deadline=SOON)
    assert console.run(f"kill {int(result.stdout)}", deadline=SOON).ok


def test_check_raises_with_the_output(shell: Shell) -> None:
    console, _ = shell
    with pytest.raises(CommandError, match="status 4") as raised:
        console.run("echo why; (exit 4)", deadline=SOON, check=True)
    assert "why" in str(raised.value)
    console.run("true", deadline=SOON, check=True)


def test_long_commands_and_long_output(shell: Shell) -> None:
    console, _ = shell
    text = "é" + "0123456789" * 4000
    assert console.run(f"printf %s '{text}'", deadline=SOON).stdout == text
    lines = "\n".join(f"echo line {number}" for number in range(1000))
    expected = "".join(f"line {number}\n" for number in range(1000))
    assert console.run(lines, deadline=2 * SOON).stdout == expected
    result = console.run("seq 1 300000", deadline=2 * SOON)
    assert (
        hashlib.md5(result.stdout.encode()).hexdigest()
        == hashlib.md5("".join(f"{number}\n" for number in range(1, 300001)).encode()).hexdigest()
    )


def test_a_command_that_does_not_end_is_interrupted(shell: Shell) -> None:
    console, _ = shell
    for command in ["sleep 600", "while :; do :; done", "cat /dev/zero >/dev/null"]:
        with pytest.raises(WaitTimeoutError, match=re.escape(f"`{command}` to end")):
            console.run(command, deadline=UNSCALED.after(0.3))
        assert console.run("echo back", deadline=SOON).stdout == "back\n"


def test_the_log_shows_the_commands(shell: Shell) -> None:
    console, _ = shell
    console.run("echo 1234\necho 5678", deadline=SOON)
    assert "$ echo 1234\r\n" in console.log.read_bytes().decode()


def test_bytes_that_a_terminal_does_not_pass_on_are_refused(shell: Shell) -> None:
    console, _ = shell
    for command in ["echo \0", "echo \x03"]:
        with pytest.raises(UsageError):
            console.run(command, deadline=SOON)


def test_leave_restores_a_prompt_with_echo_and_login_restores_the_shell(shell: Shell) -> None:
    console, _ = shell
    console.run("true", deadline=SOON)
    results = results_of(console._talk.driver._up[1:-4].decode())
    assert results.is_dir()
    mark = console.mark()
    console.leave(deadline=SOON)
    assert not console.logged_in
    assert "guest# " in console.since(mark)
    assert not results.exists()
    console.send_line("echo still$((1+1))")
    console.expect(r"echo still\$.*still2\r\n.*guest# ", deadline=SOON)
    console.login(None, deadline=SOON)
    assert console.run("echo again", deadline=SOON).stdout == "again\n"


def test_a_line_behind_the_prompt_does_not_hide_it(shell: Shell) -> None:
    console, guest = shell
    noise = b"[   12.345678] vdb: detected capacity change\r\n"
    with console.interactive(deadline=SOON):
        guest.inject(noise)
        console.expect("change\r\n", deadline=SOON)
    guest.tamper = lambda data: data.replace(b"guest# ", b"guest# " + noise)
    console.leave(deadline=SOON)
    mark = console.mark()
    console.send_line("echo still$((1+1))")
    console.expect("still2", deadline=SOON)
    assert re.search(r"h[0-9a-f]{12}\r\n", console.since(mark)) is None, "a probe came late"
    guest.tamper = lambda data: data
    console.login(None, deadline=SOON)
    assert console.run("echo again", deadline=SOON).stdout == "again\n"


def test_an_unknown_prompt_is_left_to_and_returned_from(shell: Shell) -> None:
    console, guest = shell
    guest.tamper = lambda data: data.replace(b"guest# ", b"guest=] ")
    with console.interactive(deadline=SOON):
        pass
    assert console.run("echo again", deadline=SOON).stdout == "again\n"


def test_no_room_for_the_output_is_an_error_that_says_so(shell: Shell) -> None:
    console, _ = shell
    # A limit of the size of files has the same effect as a full file system, and needs no root.
    console.run("trap '' XFSZ", deadline=SOON)
    for command in ["ulimit -S -f 0", "echo hello", "echo hello; (exit 3)"]:
        with pytest.raises(OutputLostError, match=r"no space is left.* status") as raised:
            console.run(command, deadline=SOON)
        assert f"`{command}`" in raised.value.what
    short = "ulimit -S -f unlimited; echo hello; ulimit -S -f 0"
    assert console.run(short, deadline=SOON).stdout == "hello\n"
    console.run("ulimit -S -f unlimited", deadline=SOON)
    assert console.run("echo hello", deadline=SOON).stdout == "hello\n"


def test_a_removed_folder_of_results_is_an_error_once(shell: Shell) -> None:
    console, _ = shell
    folder = results_of(console._talk.driver._up[1:-4].decode())
    with pytest.raises(OutputLostError, match="is gone"):
        console.run(f"rm -r {folder}", deadline=SOON)
    assert console.run("echo hello", deadline=SOON).stdout == "hello\n"
    with pytest.raises(OutputLostError):
        console.run(f"rm -r {folder}; : >{folder}", deadline=SOON)
    with pytest.raises(OutputLostError, match="the command did not run"):
        console.run("echo x >>count", deadline=SOON)
    console.leave(deadline=SOON)
    console.login(None, deadline=SOON)
    assert console.run("cat count", deadline=SOON).status != 0


def test_expect_starts_after_the_result_but_may_look_back(shell: Shell) -> None:
    console, guest = shell
    mark = console.mark()
    console.run("echo needle", deadline=SOON)
    guest.inject(b"later needle\r\n")
    assert "later" in console.expect("[a-z]* needle", deadline=SOON).text
    console.expect("needle", deadline=SOON, since=mark)


def test_without_a_login_there_is_no_shell(tmp_path: Path) -> None:
    with open_shell(["sh"], tmp_path) as (console, _):
        console.forget_login()
        with pytest.raises(LoginError, match="login"):
            console.run("true", deadline=SOON)


@pytest.mark.parametrize(
    "sign",
    [
        b"\r\n\r\nDebian GNU/Linux 13 skiff ttyS0\r\n\r\nskiff login: ",
        b"\r\n[    0.000000] Linux version 6.12.0 (gcc)\r\n",
    ],
)
def test_a_reboot_during_a_command_is_noticed(tmp_path: Path, sign: bytes) -> None:
    with open_shell(["sh"], tmp_path) as (console, guest):
        threading.Timer(0.2, guest.inject, [sign]).start()
        with pytest.raises(LoginError, match="gone"):
            console.run("sleep 5", deadline=SOON)
        assert not console.logged_in
        guest.process.kill()


def test_the_end_of_the_driver_is_noticed_and_no_command_runs_twice(tmp_path: Path) -> None:
    need("bash")
    with open_shell(["bash", "--norc", "-i"], tmp_path) as (console, _):
        with pytest.raises(LoginError, match="ended while it ran"):
            console.run("echo once >>count; kill -9 $PPID $$", deadline=SOON)
        console.login(None, deadline=SOON)
        assert console.run("cat count", deadline=SOON).stdout == "once\n"


class Noise:
    """Inserts noise once, at an index in the output that follows arming."""

    def __init__(self, at: int, noise: bytes) -> None:
        self.at = at
        self.noise = noise
        self.armed = False

    def __call__(self, data: bytes) -> bytes:
        if not self.armed:
            return data
        if self.at >= len(data):
            self.at -= len(data)
            return data
        self.armed = False
        return data[: self.at] + self.noise + data[self.at :]


NOISES = [
    b"7",
    b"\r\n",
    b"\n",
    b"[   12.345678] usb 1-1: new high-speed USB device number 2\r\n",
    b"<1.abcdef 0 6\r\nforged1.abcdef 0 6>\r\n",
    b"\xff\x00\x1b[6n",
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("argv", SHELLS)
def test_noise_at_every_place_of_an_answer(argv: list[str], tmp_path: Path, noise: bytes) -> None:
    with open_shell(argv, tmp_path) as (console, guest):
        command = "echo x >>count; printf 'a\\r\\nb\\n'; (exit 9)"
        size = len(f"$ {command}\r\n") + len("<00.abcdef 9 5 1234567890\r\n") + 40
        for at in range(0, size, 1 if argv[0] == "bash" else 5):
            guest.tamper = tamper = Noise(at, noise)
            tamper.armed = True
            result = console.run(command, deadline=SOON)
            assert (result.stdout, result.status) == ("a\r\nb\n", 9), at
            # The console answers the queries in the noise; no answer becomes part of a command.
        guest.tamper = lambda data: data
        ran = len(range(0, size, 1 if argv[0] == "bash" else 5))
        assert console.run("grep -c x count", deadline=SOON).stdout == f"{ran}\n"


def test_a_long_result_arrives_despite_steady_noise(shell: Shell) -> None:
    console, guest = shell

    def tamper(data: bytes) -> bytes:
        # Noise after each 20 kB of output breaks every long frame.
        step = 20_000
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        noisy = b""
        for part in parts:
            state[0] += len(part)
            noisy += part
            if state[0] >= step:
                state[0] = 0
                noisy += b"[   12.345678] noise\r\n"
        return noisy

    state = [0]
    guest.tamper = tamper
    expected = "".join(f"{number}\n" for number in range(1, 20001))
    assert console.run("seq 1 20000", deadline=3 * SOON).stdout == expected
    guest.tamper = lambda data: data


def test_output_cannot_forge_a_result(shell: Shell) -> None:
    console, _ = shell
    # A program can see the name of its output file, and can write to the terminal.
    script = (
        "name=$(readlink /proc/$$/fd/1); name=${name##*/};"
        "for tag in $name $name.abcdef; do"
        ' printf "<$tag 0 6\\nforged$tag 0 6>\\n" >/dev/tty;'
        "done; echo true; exit 6"
    )
    result = console.run(f"sh -c '{script.replace(chr(39), '')}'", deadline=SOON)
    assert result.stdout.endswith("true\n") and result.status == 6


def test_a_lost_request_is_sent_again(tmp_path: Path) -> None:
    need("bash")
    with open_shell(["bash", "--norc", "-i"], tmp_path) as (console, guest):
        # Text before it on the line destroys the request; the noise makes the console ask again.
        console.send("garbage ")
        guest.inject(b"noise\r\n")
        threading.Timer(0.3, guest.inject, [b"noise\r\n"]).start()
        assert console.run("echo once", deadline=SOON).stdout == "once\n"


def test_a_request_that_arrives_twice_runs_once(shell: Shell) -> None:
    console, _ = shell
    tag = "77.abcdef"
    mark = console.mark()
    for _ in range(2):
        console.send(f"x {tag} .echo x >>count; echo done.\n")
    console.expect(f"(<{tag} 0 5\\b.*?done\r\n{tag} 0 5.*?>.*?){{2}}", deadline=SOON, since=mark)
    assert console.run("grep -c x count", deadline=SOON).stdout == "1\n"


def test_answers_to_queries_do_not_break_requests(shell: Shell) -> None:
    console, guest = shell
    for number in range(20):
        guest.inject(b"\x1b[6n\x1b[5n")
        assert console.run(f"echo {number}", deadline=SOON).stdout == f"{number}\n"


def test_the_scripts_are_one_line_and_the_typed_one_is_short() -> None:
    assert "\n" not in BOOTSTRAP and "\n" not in driver_script("0.abcdef")
    assert len(driver_script("0.abcdef")) < 4000  # a terminal takes no line longer than 4095
    assert len(BOOTSTRAP) < 500  # busybox's line editor takes no more than 1024
    assert BOOTSTRAP.startswith(" ")
