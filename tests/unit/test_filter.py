from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.errors import QmpError, UsageError
from harness.qemu.filter import WRITES, Fault, Filters, faulty, recorder


class Monitor:
    """A QEMU monitor that records commands, and refuses one of them."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, Any]] = []
        self.refuse = ""

    def execute(self, command: str, arguments: dict[str, Any]) -> None:
        if command == self.refuse:
            raise QmpError("no")
        node = arguments.get("value") or arguments["node-name"]
        self.commands.append((command, node))


def test_filters_are_stacked_and_removed_from_the_top() -> None:
    monitor = Monitor()
    filters = Filters(monitor)  # type: ignore[arg-type]
    assert filters.top("a") == "disk-a"
    filters.insert("a", "record", {})
    filters.insert("a", "fault", {})
    assert filters.top("a") == "fault-a"
    assert filters.top("b") == "disk-b"
    with pytest.raises(UsageError, match="no filter record-a on top"):
        filters.remove("a", "record")
    with pytest.raises(UsageError, match="has a filter fault-a already"):
        filters.insert("a", "fault", {})
    filters.remove("a", "fault")
    filters.remove("a", "record")
    assert monitor.commands == [
        ("blockdev-add", "record-a"),
        ("qom-set", "record-a"),
        ("blockdev-add", "fault-a"),
        ("qom-set", "fault-a"),
        ("qom-set", "record-a"),
        ("blockdev-del", "fault-a"),
        ("qom-set", "disk-a"),
        ("blockdev-del", "record-a"),
    ]


def test_a_filter_that_qemu_refuses_leaves_nothing() -> None:
    monitor = Monitor()
    filters = Filters(monitor)  # type: ignore[arg-type]
    monitor.refuse = "qom-set"
    with pytest.raises(QmpError):
        filters.insert("a", "fault", {})
    assert monitor.commands[-1] == ("blockdev-del", "fault-a")
    assert filters.top("a") == "disk-a"


def test_a_fault_begins_at_once_or_after_some_writes() -> None:
    rules = Fault(on=("write",)).rules()
    assert rules == {
        "inject-error": [{"event": "none", "iotype": "write", "errno": 5, "once": False}]
    }
    rules = Fault(on=WRITES, after=2).rules()
    steps = {(rule["state"], rule["new_state"]) for rule in rules["set-state"]}
    assert steps == {(1, 2), (2, 3)}
    assert {rule["state"] for rule in rules["inject-error"]} == {3}


def test_a_fault_has_a_rule_for_each_sector() -> None:
    options = faulty("disk-a", Fault(on=("read",), sectors=range(8, 16)))
    assert options["image"] == "disk-a"
    assert [rule["sector"] for rule in options["inject-error"]] == list(range(8, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on": ("reed",)}, "unknown request 'reed' (choose read, write, write-zeroes"),
        ({"on": ()}, "Fault.on must name a request; Fault.after must be >= 0"),
        ({"after": -1}, "Fault.on must name a request; Fault.after must be >= 0"),
        ({"sectors": range(0)}, "Fault.sectors must have 1 to 4096 sectors, not 0"),
        ({"sectors": range(5000)}, "Fault.sectors must have 1 to 4096 sectors, not 5000"),
    ],
)
def test_an_impossible_disk_fault_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Fault(**arguments)


def test_the_super_block_of_the_log_is_updated_with_each_entry() -> None:
    options = recorder("disk-a", Path("/log"))
    assert options["log-super-update-interval"] == 1
    assert "cache" not in options, "with no-flush the filter would not see flushes"
