"""Known screens of firmware, boot loaders and programs that are no operating system.

A guest that shows one of them waits for a key or does its own work: no login prompt will come. A
wait that ends at its deadline names the screen.

Sources of the texts: GRUB 2 ``grub-core/kern/rescue_reader.c``, ``normal/main.c``,
``normal/menu_text.c``; EDK2 ``MdeModulePkg/Application/UiApp``, ``BootManagerMenuApp``,
``Library/UefiBootManagerLib`` and ``NetworkPkg``; SeaBIOS ``src/boot.c``; systemd-boot
``src/boot/boot.c``; iPXE ``src/usr/autoboot.c``, ``src/hci/shell.c``; U-Boot
``common/autoboot.c``, ``common/cli_hush.c``; Memtest86+ ``app/display.c``; SYSLINUX ``core/ui.inc``;
shim ``MokManager.c``; systemd ``ask-password-api.c``, cryptsetup's ``initramfs`` scripts.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from harness.console.stream import Stream
from harness.console.terminal import Terminal
from harness.errors import StoreError

_TAIL: Final = 64 * 1024
"""Bytes of output from which the screen is drawn: pyte takes some 60 ms for them."""

_COLUMNS, _ROWS = 132, 50
"""The size of that screen: EDK2 draws up to 100 by 31 characters, whatever the terminal has."""

_ANYWHERE: Final = (
    ("Memtest86+, which tests the memory", r"Mem[Tt]est86\+"),
    ("GRUB's menu", r"GNU GRUB +version[\s\S]*(?:select which entry|boot the selected OS)"),
    ("the firmware's setup", r"Select Language[\s\S]*Boot Maintenance Manager"),
    (
        "the firmware's boot manager",
        r"(?:Boot Manager Menu|Please select boot device:|Select boot device:)",
    ),
    (
        "the key manager of shim (MokManager)",
        r"(?:Perform|Press any key to perform) MOK management",
    ),
    ("systemd-boot's menu", r"Reboot Into Firmware Interface|Boot in \d+ s\."),
    ("the boot manager of Windows", r"Windows Boot Manager"),
)
"""Screens that their program draws as a whole; the name, and a pattern for the whole screen."""

_AT_THE_END: Final = (
    ("GRUB's rescue prompt: it did not find its own files", r"^grub rescue> ?"),
    ("GRUB's command line: it has no menu", r"^grub> ?"),
    ("the prompt of iPXE", r"^iPXE> ?"),
    ("iPXE, which found nothing to boot", r"(?:Nothing to boot: .*|No more network devices)"),
    ("the prompt of U-Boot", r"^=> ?"),
    ("U-Boot's countdown", r"Hit any key to stop autoboot.*"),
    ("the prompt of SYSLINUX", r"^boot: ?"),
    ("the UEFI shell", r"^(?:Shell|FS\d+:\\[^>]*)> ?"),
    ("the firmware, which boots over the network", r">>(?:Start PXE|Start HTTP|Checking Media).*"),
    ("SeaBIOS, which has handed over to a boot sector", r"^Booting from .*"),
    ("GRUB, which loads its modules", r"^Welcome to GRUB!"),
    (
        "a question for the passphrase of a disk",
        r"(?:[Pp]lease (?:unlock disk|enter passphrase for)|[Ee]nter passphrase for) \S+.*",
    ),
    (
        "a question for the password of maintenance",
        r"^\(or (?:press|type) Control-D to continue\):",
    ),
)
"""Prompts and messages; the name, and a pattern for the screen's last line."""

_KERNEL: Final = re.compile(r"\[ *\d+\.\d{6}\]")


def known_screen(text: str) -> str:
    """Return the name of a known screen; empty if the text is none.

    Args:
        text: The text on a screen, serial or VGA, in lines.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    for name, pattern in _AT_THE_END:
        if re.search(f"(?:{pattern})$", lines[-1]):
            return name
    if any(_KERNEL.match(line) for line in lines):
        return ""  # What stands above it was left behind.
    return next((name for name, pattern in _ANYWHERE if re.search(pattern, "\n".join(lines))), "")


def screen_of(stream: Stream) -> str:
    """Return the name of the known screen that a console shows; empty if it shows none.

    Args:
        stream: The stream of the console.
    """
    terminal = Terminal(columns=_COLUMNS, rows=_ROWS)
    # The message of another failure must not be lost to a log that is lost as well.
    with contextlib.suppress(StoreError):
        terminal.feed(stream.read(max(0, stream.total - _TAIL), stream.total))
    return known_screen(terminal.snapshot().text)


def remarks(stream: Stream) -> str:
    """Return what a wait that ends without its event can say of the guest; empty if nothing.

    Args:
        stream: The stream of the console.
    """
    screen, complaints = screen_of(stream), str(stream.findings)
    remarks = []
    if screen:
        remarks.append(f"its console shows {screen}")
    if complaints:
        remarks.append(f"the guest complained: {complaints}")
    return "; ".join(remarks)
