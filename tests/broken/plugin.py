"""Breaks the machines of a scenario on purpose: ``-p tests.broken.plugin --broken NAME``."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness import Cluster, Machine
from tests.broken.cases import CASES, PRELUDE, UNIT, Case


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--broken", choices=[case.name for case in CASES], required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Break the machines that the case is about."""
    # Not earlier: pytest explains assertions only in modules that it loads itself.
    from harness import Lab
    from harness.cluster.etcd import Etcd, _encode
    from harness.profiles.skiff import Skiff

    (case,) = [case for case in CASES if case.name == config.option.broken]
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)

    if case.plant == "acknowledges":
        write = Etcd.write
        # One thread: it falls behind the clients, so that what was acknowledged is stored later.
        later = ThreadPoolExecutor(1)
        config.add_cleanup(functools.partial(later.shutdown, wait=False, cancel_futures=True))

        def acknowledges(self: Etcd, *arguments: Any) -> None:
            later.submit(write, self, *arguments)

        patch.setattr(Etcd, "write", acknowledges)
    elif case.plant == "stale":
        ask: Any = Etcd._ask

        def serializable(self: Etcd, machine: Any, path: str, message: Any, limit: Any) -> Any:
            # Health is asked by the same call and stays what it is: members that do not know that they
            # are alone would end the scenario before its clients do.
            stale = path == "/v3/kv/range" and message["key"] != _encode("health")
            return ask(self, machine, path, {**message, "serializable": stale}, limit)

        patch.setattr(Etcd, "_ask", serializable)
    elif case.moment == "cluster":

        def break_each(_: Lab, cluster: Cluster) -> None:
            for machine in cluster:
                break_(machine, case)

        _after(patch, Lab, "fork_cluster", break_each)
    elif case.moment == "fork":
        _after(patch, Lab, "fork", lambda _, machine: break_(machine, case))
    elif case.moment == "code":

        def break_at_console(self: Skiff, _: str) -> None:
            # Nobody has logged in, and SSH lets nobody in.
            self.login()
            break_(self.machine, case)

        _after(patch, Skiff, "pairing_code", break_at_console)
    elif case.moment == "upgrade":
        _after(patch, Skiff, "upgrade", lambda self, _: break_(self.machine, case))
    else:
        _after(patch, Skiff, "wait_recovery", lambda self, _: break_(self.machine, case))


def _after(
    patch: pytest.MonkeyPatch, owner: type, name: str, then: Callable[[Any, Any], None]
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        then(self, result)
        return result

    patch.setattr(owner, name, wrapped)


def break_(machine: Machine[Any], case: Case) -> None:
    """Break a machine now, and at each boot where the defect is in one of its programs."""
    lasting = "edit " in case.command or "mount " in case.command
    encoded = base64.b64encode((PRELUDE + case.command + "\n").encode()).decode()
    machine.succeed(
        machine.os.as_root(f"echo {encoded} | base64 -d > /etc/broken && bash /etc/broken")
    )
    if lasting and case.moment in ("fork", "cluster"):
        unit = base64.b64encode(UNIT.encode()).decode()
        machine.succeed(
            machine.os.as_root(
                f"echo {unit} | base64 -d > /etc/systemd/system/broken.service"
                " && systemctl enable -q broken.service"
            )
        )
