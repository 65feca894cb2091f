"""The example of docs/how-to/providers.md is a provider, and does what the page says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import Member, Provider
from harness.errors import (
    CommandError,
    JoinRefusedError,
    OperationRefusedError,
    OutcomeUnknownError,
    UsageError,
)
from harness.network import Segment
from harness.network.addresses import Addresses
from harness.result import Result
from tests.unit.scripted_members import Node, Script, Server, answering

PAGE = Path(__file__).parents[2] / "docs/how-to/providers.md"


@pytest.fixture
def kite(tmp_path: Path) -> Iterator[Any]:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    with Segment("lan", folder=tmp_path, addresses=Addresses()) as segment:
        segment.add_port("node-1")
        yield names["Kite"](segment)


def words(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(word).parameters)
        for name, word in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_it_has_all_words_and_the_page_lists_them(kite: Any) -> None:
    expected = words(Provider)
    assert words(type(kite)) == expected
    listed = set(re.findall(r"`(\w+)\(", PAGE.read_text()))
    for word in expected:
        assert word in listed, word
    for name in ("name", "ports", "virtual_address"):
        assert hasattr(kite, name)


def test_it_asks_a_member(kite: Any) -> None:
    def outcome(script: Script, word: Callable[..., Any], *arguments: str) -> Any:
        server = Server(script)
        try:
            return word(Node(server.address, ports=(8080,)), *arguments)
        finally:
            server.close()

    assert outcome(answering(["b", "a"]), kite.members) == [Member("a"), Member("b")]
    assert outcome(answering("node-1"), kite.leader) == "node-1"
    assert outcome(answering(None), kite.healthy) is False
    assert outcome(answering("1"), kite.read, "a") == "1"
    assert outcome(answering({}), kite.write, "a", "1") is None
    with pytest.raises(OperationRefusedError, match="busy"):
        outcome(answering(b"busy", "409 Conflict"), kite.write, "a", "1")
    for script in (answering(b"{"), answering({}, "500 Oh")):
        with pytest.raises(OutcomeUnknownError, match="/set: status"):
            outcome(script, kite.write, "a", "1")
    assert outcome(answering({}, "500 Oh"), kite.leader) is None
    node = Node(ports=(8080,))
    node.running = False
    with pytest.raises(OperationRefusedError, match="has ended"):
        kite.read(node, "a")


def test_it_changes_the_cluster(kite: Any) -> None:
    node, via = Node(name="node-2"), Node(name="node-1")
    node.results = [Result("", "", status, 0.1, "kitectl") for status in (0, 4, 1)]
    via.results = [Result("t1\n", "", 0, 0.1), Result("", "", 0, 0.1)]
    kite.join(node, via)
    with pytest.raises(JoinRefusedError):
        kite.join(node, via, token="t2")
    with pytest.raises(CommandError):
        kite.join(node, via, token="t3")
    with pytest.raises(UsageError, match="discovers no members"):
        kite.join(node, token="t4")
    kite.leave("node-2", via)
    assert [command.split()[-1] for command in node.commands] == ["t1", "t2", "t3"]
    assert via.commands == ["kitectl token", "kitectl remove --wait node-2"]
