"""The screen and the keyboard of a machine with a display, in front of a guest of 80 bytes."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import zxingcpp

from harness import Lab
from harness.catalog import Selection
from harness.deadline import UNSCALED
from harness.errors import (
    GuestStoppedError,
    HarnessError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
)
from harness.machine import Machine
from harness.spec import MIB, Disk, Firmware, FirmwareKind, MachineSpec
from tests.programs import needs

# A boot sector that prints "ready>" and echoes keys by the BIOS (Ralf Brown's Interrupt List, INT 10h
# and 16h): "#" and the scan code where a key is no character. Ctrl-G sets a graphics mode, Ctrl-T the
# text mode again, Ctrl-P shows the second page of the text memory.
ECHO = (
    bytes.fromhex(
        "31c0 bb0f00 8ed8 fc be537c"  # ax = ds = 0; bx = page 0, white; si = the text
        "ac 84c0 7406 b40e cd10 ebf5"  # print: al = [si++]; until it is 0: INT 10h/0Eh
        "31c0 cd16"  # key: INT 16h/00h waits for a key
        "3c07 7424 3c14 742a 3c10 7421"  # Ctrl-G, Ctrl-T, Ctrl-P
        "84c0 750a 88e0 50 b023 b40e cd10 58"  # no character: print "#", then the scan code
        "b40e cd10 3c0d 75da b00a cd10 ebd4"  # echo: print it, and a line feed after Enter; to key
        "b81300 eb08 b80105 eb03 b80300 cd10 ebc3"  # INT 10h: mode 13h; page 1; mode 03h; to key
    )
    + b"ready>\0"
)


@pytest.fixture
def sector(tmp_path: Path) -> Path:
    path = tmp_path / "echo.img"
    path.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes(MIB - 512))
    return path


def spec(sector: Path | None) -> MachineSpec:
    disk = Disk("disk", size=MIB) if sector is None else Disk("disk", base=sector, boot_index=0)
    return MachineSpec(
        "echo",
        "x86_64",
        Firmware(FirmwareKind.BIOS),
        cpus=1,
        memory=64 * MIB,
        disks=(disk,),
        nics=(),
        display=True,
    )


@pytest.fixture
def machine(lab: Lab, image: Selection, sector: Path) -> Machine[Any]:
    machine = lab.launch(spec(sector), image, saveable=True)
    machine.display.wait_for_screen("ready>")
    return machine


def test_what_a_bios_prints_is_on_the_screen(
    machine: Machine[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = machine.display.screen
    assert len(screen.lines) == 25
    assert screen.lines[0].startswith("SeaBIOS (version ")
    assert screen.find("Booting from Hard Disk...")
    row = next(row for row, line in enumerate(screen.lines, 1) if line.startswith("ready>"))
    assert screen.cursor == (row, len("ready>") + 1)
    # A black picture of 720 x 400 takes 917 bytes.
    assert machine.screenshot().stat().st_size > 1500
    # A path is relative to the folder of the test, which need not be that of QEMU.
    monkeypatch.chdir(tmp_path)
    assert machine.screenshot("screen.png").stat().st_size > 1500
    assert (tmp_path / "screen.png").is_file()


def test_keys_reach_the_guest(machine: Machine[Any]) -> None:
    display = machine.display
    display.send_line("Hello, World! [a-z]{2} ~`|\\ \"'")
    display.press("x", "Down", "F2", "Enter")
    screen = display.wait_for_screen(re.compile(r"^x#P#<$", re.MULTILINE))
    # The scan codes of these keys are 50h and 3Ch.
    assert "ready>Hello, World! [a-z]{2} ~`|\\ \"'" in screen.lines
    with pytest.raises(UnknownNameError, match="Dwon"):
        display.press("y", "Dwon")
    with pytest.raises(UsageError, match="US keyboard"):
        display.send("yä")
    assert "y" not in display.screen.lines[screen.cursor[0] - 1]


def test_more_lines_than_the_screen_has(machine: Machine[Any]) -> None:
    display = machine.display
    for number in range(30):
        display.send_line(str(number))
    screen = display.wait_for_screen("\n28\n29")
    assert screen.lines[-4:] == ("27", "28", "29", "")


def test_the_page_that_the_adapter_shows_is_read(machine: Machine[Any]) -> None:
    display = machine.display
    display.press("Ctrl-P")
    display.send("second")
    assert display.wait_for_screen("second").text == "second"


def test_a_graphics_mode_has_no_text(machine: Machine[Any]) -> None:
    display = machine.display
    display.press("Ctrl-G")
    with pytest.raises(WaitTimeoutError, match="graphics mode") as caught:
        display.wait_for_screen("ready>", UNSCALED.after(3))
    assert Path(caught.value.evidence).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="graphics mode"):
        _ = display.screen
    display.press("Ctrl-T")
    display.send("back")
    assert display.wait_for_screen("back").text == "back"


@needs("tesseract")
def test_text_in_pixels_is_read(machine: Machine[Any]) -> None:
    assert "ready>" in machine.wait_for_text("ready>").lines  # the text mode, exactly
    machine.display.press("Ctrl-G")
    machine.display.send("hello world")
    assert machine.wait_for_text(re.compile("hello *world")).find("world")
    with pytest.raises(WaitTimeoutError, match="'never' on the display") as caught:
        machine.wait_for_text("never", UNSCALED.after(5))
    assert Path(caught.value.evidence).read_bytes().startswith(b"\x89PNG")
    assert any("world" in note for note in caught.value.__notes__)


def test_a_wait_that_ends_shows_the_screen(machine: Machine[Any]) -> None:
    with pytest.raises(WaitTimeoutError, match="'never' on the display") as caught:
        machine.display.wait_for_screen("never", UNSCALED.after(0.5))
    assert any("ready>" in note for note in caught.value.__notes__)


def test_a_fork_has_the_screen_and_the_keyboard(machine: Machine[Any]) -> None:
    machine.display.send("before ")
    machine.display.wait_for_screen("before")
    fork = machine.fork()
    assert fork.display.screen == machine.display.screen
    fork.display.send("fork")
    fork.display.wait_for_screen("before fork")
    assert "fork" not in machine.display.screen.text


def test_a_failure_of_the_machine_ends_the_wait(machine: Machine[Any]) -> None:
    raised: list[HarnessError] = []

    def wait() -> None:
        try:
            machine.display.wait_for_screen("never", UNSCALED.after(100_000))
        except HarnessError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    machine.scope.fail(GuestStoppedError("stopped"))
    thread.join(60)
    assert [str(error) for error in raised] == ["stopped"]


def test_a_paused_machine_shows_its_screen_and_takes_no_key(machine: Machine[Any]) -> None:
    machine.pause()
    assert "ready>" in machine.display.screen.text
    assert not machine.qmp.execute("query-status")["running"]
    with pytest.raises(UsageError, match="paused"):
        machine.display.press("x")
    machine.resume()
    machine.display.send("y")
    machine.display.wait_for_screen("ready>y")


def test_linux_takes_the_keys(lab: Lab) -> None:
    machine = lab.boot("micro", display=True)
    machine.os.login()
    machine.succeed("(head -n 1 < /dev/tty1 > /tmp/line) > /dev/null 2>&1 &")
    machine.display.send_line("Typed on tty1")
    assert machine.wait_until_succeeds("grep . /tmp/line") == "Typed on tty1\n"


def test_a_code_that_linux_draws_is_read(lab: Lab) -> None:
    machine = lab.boot("micro", display=True)
    machine.os.login()
    # Its kernel has no driver for the screen: the blocks go to the adapter's memory, 80 cells a row.
    for number, row in enumerate(blocks("PAIR 4711-0815"), 5):
        cells = "".join(f"\\{character:03o}\\017" for character in row)
        where = 0xB8000 + 2 * (80 * number + 20)
        machine.succeed(f"printf '{cells}' | dd of=/dev/mem bs=1 seek={where} conv=notrunc 2>&1")
    assert machine.wait_for_qr(re.compile(r"^PAIR \d{4}-\d{4}$")) == "PAIR 4711-0815"
    with pytest.raises(WaitTimeoutError, match="a QR code of 'other'") as caught:
        machine.wait_for_qr("other", UNSCALED.after(1))
    assert Path(caught.value.evidence).read_bytes().startswith(b"\x89PNG")
    assert any("'PAIR 4711-0815'" in note for note in caught.value.__notes__)


def blocks(text: str) -> list[bytes]:
    """Return the lines of a QR code, two rows of it in each, in the characters of a text mode.

    A cell of the screen is twice as high as it is wide. The screen is black and the blocks are light,
    so a block is a light part of the code.
    """
    code = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode)
    image: Any = zxingcpp.write_barcode_to_image(code, scale=1)
    rows: Any = memoryview(image).tolist()
    rows += [[255] * len(rows[0])] * (len(rows) % 2)
    return [
        "".join(
            " \u2584\u2580\u2588"[2 * (above > 127) + (below > 127)] for above, below in pairs
        ).encode("cp437")
        for pairs in (zip(*rows[row : row + 2], strict=True) for row in range(0, len(rows), 2))
    ]


def test_a_wait_for_the_console_shows_the_display(machine: Machine[Any]) -> None:
    with pytest.raises(WaitTimeoutError) as caught, machine.coming_up():
        machine.console.login("root", deadline=UNSCALED.after(1))
    (note,) = caught.value.__notes__
    assert note.startswith("on its display:\n")
    assert "ready>" in note
    machine.display.send("\ngrub rescue>")
    machine.display.wait_for_screen("\ngrub rescue>")
    with pytest.raises(WaitTimeoutError) as named, machine.coming_up(), machine.coming_up():
        machine.console.login("root", deadline=UNSCALED.after(1))
    (note,) = named.value.__notes__
    assert note.startswith("its display shows GRUB's rescue prompt")
    machine.display.press("Ctrl-G")
    with pytest.raises(WaitTimeoutError) as drawn, machine.coming_up():
        machine.console.login("root", deadline=UNSCALED.after(1))
    (note,) = drawn.value.__notes__
    assert Path(note.removeprefix("the picture on its display: ")).is_file()
