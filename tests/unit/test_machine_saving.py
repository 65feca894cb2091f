"""Saving a machine beside other threads that stop it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.evidence.timeline import Timeline
from harness.machine.saving import Saving
from harness.qemu.qmp import Qmp
from harness.spec import MIB, Firmware, FirmwareKind, MachineSpec
from harness.states.save import Memory

SPEC = MachineSpec("one", "x86_64", Firmware(FirmwareKind.BIOS), memory=32 * MIB)
PATIENCE = 60.0


class Monitor(Qmp):
    """A monitor whose guest is a word: ``running`` or ``stopped``."""

    def __init__(self) -> None:
        self._still = threading.RLock()
        self.commands: list[str] = []

    def execute(self, command: str, *arguments: Any, **options: Any) -> Any:
        del arguments, options
        self.commands.append(command)
        return {"running": [c for c in self.commands if c in ("stop", "cont")][-1:] != ["stop"]}


def test_a_machine_is_saved_after_another_thread_has_looked_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the screen lets the guest run on after it: that must not fall into a save."""
    qmp = Monitor()
    parts: Any = SimpleNamespace(
        name="one",
        spec=SPEC,
        ssh=None,
        memory=Memory(-1, 0),
        qmp=qmp,
        running=True,
        timeline=Timeline(tmp_path / "timeline.json", "test"),
    )
    unused: Any = None
    saving = Saving(parts, unused, unused, unused, saveable=True)
    monkeypatch.setattr(saving, "_draft", lambda folder: None)
    begun, go = threading.Event(), threading.Event()

    def save() -> None:
        begun.set()
        with saving.steps(tmp_path / "saved", final=False, inside=None):
            qmp.execute("save")
            assert go.wait(PATIENCE)

    thread = threading.Thread(target=save)
    with qmp.standing_still():
        thread.start()
        assert begun.wait(PATIENCE)
        thread.join(0.2)
        assert "save" not in qmp.commands
    go.set()
    thread.join(PATIENCE)
    assert qmp.commands == ["query-status", "stop", "cont", "query-status", "save", "cont"]
