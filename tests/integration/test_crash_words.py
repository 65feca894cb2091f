"""Words of a crash on the console of a real guest: printed by a command, and meant."""

from __future__ import annotations

import re

import pytest

from harness import Lab
from harness.errors import OopsError, PanicError
from harness.machine import Machine

PANIC = "echo c > /proc/sysrq-trigger"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("printf 'BUG: 42 fixed the thing\\n'", "BUG: 42 fixed the thing\n"),
        ("grep -c '[    1.234567] Kernel panic - not syncing' /etc/hosts || true", "0\n"),
        ("echo 'Welcome to emergency mode!' > /tmp/f; cat /tmp/f", "Welcome to emergency mode!\n"),
        # A program writes as the kernel does. The guest answers, so it has not panicked.
        ("echo '<0>Kernel panic - not syncing: a joke' > /dev/kmsg; echo on", "on\n"),
    ],
)
def test_what_a_command_prints_is_no_crash(micro: Machine, command: str, output: str) -> None:
    assert micro.console.run(command).stdout == output
    assert micro.console.run("echo fine").stdout == "fine\n"
    assert micro.failure is None
    assert micro.console.sightings == []


def test_a_printed_kernel_log_with_a_crash_is_no_crash(micro: Machine) -> None:
    line = "[   12.345678] Kernel panic - not syncing: sysrq triggered crash"
    micro.console.run(f"(dmesg; echo '{line}'; dmesg) > /tmp/log")
    log = micro.console.run("cat /tmp/log", check=True).stdout
    assert line in log and log.count("Linux version") == 2
    assert micro.console.run("echo fine").stdout == "fine\n"
    assert micro.failure is None


def test_words_that_the_kernel_prints_fail_and_the_message_says_how_to_allow_them(
    lab: Lab,
) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    with machine.expecting(OopsError) as seen:
        machine.console.run("echo '<0>BUG: a joke' > /dev/kmsg")
        assert seen.wait() is not None
    with pytest.raises(OopsError, match=re.escape("`with machine.expecting(OopsError)`")):
        machine.console.run("echo '<0>BUG: another joke' > /dev/kmsg; sleep 5")


def test_a_panic_within_a_command_ends_it_soon(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    # The guest prints the words before it panics, and the command contains them as well.
    with pytest.raises(PanicError, match="sysrq triggered crash"):
        machine.console.run(f": 'Kernel panic - not syncing'; {PANIC}", machine.scale.after(10_000))


def test_a_panic_while_a_long_answer_is_printed_ends_it_soon(lab: Lab) -> None:
    machine = lab.boot("micro")
    machine.os.login()
    # 2 MB take a serial line several seconds.
    with pytest.raises(PanicError, match="sysrq triggered crash"):
        machine.console.run(
            f"seq 1 300000 > /tmp/long; (sleep 1; {PANIC}) & cat /tmp/long",
            machine.scale.after(10_000),
        )


def test_a_panic_with_a_restart_within_an_answer_is_the_reason(lab: Lab) -> None:
    machine = lab.boot("micro", cmdline="panic=-1")
    machine.os.login()
    with pytest.raises(PanicError, match="sysrq triggered crash"):
        machine.console.run(
            f"seq 1 300000 > /tmp/long; (sleep 1; {PANIC}) & cat /tmp/long",
            machine.scale.after(10_000),
        )
