from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import QmpError, UsageError
from harness.qemu.filter import WRITES, Fault, Filters, faulty, recorder


class Monitor:
    """Takes commands as QEMU's monitor does, and refuses the ones it is told to."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.refuse = ""

    def execute(self, command: str, arguments: dict[str, Any]) -> None:
        if command == self.refuse:
            raise QmpError("no")
        what = arguments.get("value") or arguments["node-name"]
        self.said.append((command, what))


def test_filters_stack_and_come_off_from_the_top() -> None:
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
    assert monitor.said == [
        ("blockdev-add", "record-a"),
        ("qom-set", "record-a"),
        ("blockdev-add", "fault-a"),
        ("qom-set", "fault-a"),
        ("qom-set", "record-a"),
        ("blockdev-del", "fault-a"),
        ("qom-set", "disk-a"),
        ("blockdev-del", "record-a"),
    ]


def test_a_filter_that_does_not_go_in_leaves_nothing() -> None:
    monitor = Monitor()
    filters = Filters(monitor)  # type: ignore[arg-type]
    monitor.refuse = "qom-set"
    with pytest.raises(QmpError):
        filters.insert("a", "fault", {})
    assert monitor.said[-1] == ("blockdev-del", "fault-a")
    assert filters.top("a") == "disk-a"


def test_a_fault_begins_at_once_or_after_some_writes() -> None:
    rules = Fault(on=("write",)).rules()
    assert rules == {
        "inject-error": [{"event": "none", "iotype": "write", "errno": 5, "once": False}]
    }
    rules = Fault(on=WRITES, after=2).rules()
    steps = {(each["state"], each["new_state"]) for each in rules["set-state"]}
    assert steps == {(1, 2), (2, 3)}
    assert {each["state"] for each in rules["inject-error"]} == {3}


def test_a_fault_names_each_sector() -> None:
    options = faulty("disk-a", Fault(on=("read",), sectors=range(8, 16)))
    assert options["image"] == "disk-a"
    assert [each["sector"] for each in options["inject-error"]] == list(range(8, 16))


@pytest.mark.parametrize(
    "wrong",
    [{"on": ("reed",)}, {"on": ()}, {"after": -1}, {"sectors": range(0)}, {"sectors": range(5000)}],
)
def test_a_fault_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Fault(**wrong)


def test_the_log_is_brought_up_to_date_with_each_entry() -> None:
    options = recorder("disk-a", Path("/log"))
    assert options["log-super-update-interval"] == 1
    assert "cache" not in options, "with no-flush it would not be told of flushes"
