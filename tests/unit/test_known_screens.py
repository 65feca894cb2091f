"""A screen of a firmware or a boot loader is named by a wait that ends at its deadline."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.console.known import known_screen
from harness.deadline import UNSCALED
from harness.errors import WaitTimeoutError
from tests.unit.test_console_support import SOON, open_console

SCREENS = {
    # As they were shown: EDK2 2022.11, GRUB 2.06, systemd-boot 252, iPXE 1.0, U-Boot 2023.01.
    "the firmware's setup": """
   Select Language            <Standard English>         This is the option
                                                         one adjusts to change
 > Device Manager                                        the language for the
 > Boot Manager                                          current system
 > Boot Maintenance Manager

   Continue
   Reset
  ^v=Move Highlight       <Enter>=Select Entry
""",
    "GRUB's menu": """
                                 GNU GRUB  version 2.06-13+deb12u2
 *One
  Two
      Use the ^ and v keys to select which entry is highlighted.
      Press enter to boot the selected OS, `e' to edit the commands before booting or `c' for
      a command-line.
""",
    "GRUB's command line": """
   Minimal BASH-like line editing is supported. For the first word, TAB lists possible
   command completions. Anywhere else TAB lists possible device or file completions.

grub>
""",
    "GRUB's rescue prompt": "Welcome to GRUB!\n\nerror: disk `hd9' not found.\ngrub rescue> ",
    "systemd-boot's menu": "\n\n\n                    Reboot Into Firmware Interface",
    "iPXE, which found nothing": """
net0: fe80::5054:ff:fe12:3456/64
Nothing to boot: No such file or directory (http://ipxe.org/2d03e18e)
""",
    "the firmware, which boots over the network": "BdsDxe: failed to load\n\n>>Start PXE over IPv4.",
    "the prompt of U-Boot": "Hit any key to stop autoboot:  0\n=>\n=> ",
    "the UEFI shell": "Press ESC in 1 seconds to skip startup.nsh\nShell> ",
    # From their sources.
    "Memtest86+": "      Memtest86+ v6.10      | Intel(R) Xeon(R)\nCLK/Temp: 2000 MHz\n(ESC) Exit",
    "the prompt of iPXE": "iPXE 1.21.1 -- Open Source Network Boot Firmware\niPXE> ",
    "the prompt of SYSLINUX": "ISOLINUX 6.04  Copyright (C) 1994-2015 H. Peter Anvin et al\nboot: ",
    "SeaBIOS, which has handed over": "SeaBIOS (version 1.16.3)\n\nBooting from Hard Disk...",
    "the firmware's boot manager": "SeaBIOS (version 1.16.3)\nSelect boot device:\n\n1. virtio-blk",
    "a question for the passphrase": "Please unlock disk vda3_crypt: ",
    "a question for the password of maint": "Give root password for maintenance\n(or press Control-D"
    " to continue): ",
}


@pytest.mark.parametrize(("name", "text"), SCREENS.items(), ids=list(SCREENS))
def test_a_known_screen_has_a_name(name: str, text: str) -> None:
    assert known_screen(text).startswith(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "micro login: ",
        "root@host:~# echo grub rescue>\ngrub rescue>\nroot@host:~# ",
        # A loader's screen that the kernel has left where it was.
        "     Reboot Into Firmware Interface\n[    0.000000] Linux version 6.12.117\n[    1.2] x",
        "Booting from ROM..\n[    0.000000] Linux version 6.12.117",
    ],
)
def test_other_screens_have_none(text: str) -> None:
    assert known_screen(text) == ""


def test_a_wait_for_a_login_says_what_the_screen_is(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        # GRUB draws for the 100 by 31 characters that EDK2 takes for the console.
        guest.sendall(
            b"\x1b[2J\x1b[02;33HGNU GRUB  version 2.06\x1b[05;03H*One\x1b[26;02H     Use the ^ and v"
            b" keys to select which entry is highlighted.    \n\r      Press enter to boot the selected"
            b" OS, `e' to edit\n\r      a command-line.\x1b[29;01H \x1b[30;01H \x1b[05;04H"
        )
        console.expect("a command-line", UNSCALED.after(SOON))
        with pytest.raises(WaitTimeoutError) as caught:
            console.login(deadline=UNSCALED.after(0.05))
    assert "; its console shows GRUB's menu" in str(caught.value).splitlines()[0]
    assert caught.value.hint.startswith("no login prompt comes from there")


def test_a_log_that_is_lost_does_not_hide_the_timeout(tmp_path: Path) -> None:
    with open_console(tmp_path) as (console, guest):
        guest.sendall(b"grub> ")
        console.expect("grub> ", UNSCALED.after(SOON))
        (tmp_path / "serial.log").write_bytes(b"")
        with pytest.raises(WaitTimeoutError, match="waited"):
            console.expect("x", UNSCALED.after(0))
