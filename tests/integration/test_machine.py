"""The words of a machine, on a booted micro guest."""

from __future__ import annotations

from fixtures.machines import Boot


def test_boot_login_and_commands(boot: Boot) -> None:
    machine = boot("micro")
    machine.os.login()
    result = machine.console.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.status) == ("out\nerr\n", 3)
    assert machine.succeed("uname -m").strip() == machine.spec.arch
    machine.fail("false")
