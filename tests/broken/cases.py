"""Ways in which an image fails its users, each with the scenario that has to notice.

An image is broken in place: a fork of it gets a command that changes one of its programs, which a unit
of its own repeats at each boot. So one build of the image serves for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Moment = Literal["fork", "upgrade", "recovery"]
"""When a machine is broken: as it is handed to the test; when its upgrade is done; in recovery."""


@dataclass(frozen=True, slots=True)
class Case:
    """A broken image.

    Attributes:
        name: What is wrong with it.
        scenario: The test that has to fail, below ``suites/``.
        command: What breaks it: for root's shell, after :data:`PRELUDE`.
        says: A regular expression for the line that says why the test failed.
        moment: When it is broken.
        options: Of pytest, for the scenario.
    """

    name: str
    scenario: str
    command: str
    says: str
    moment: Moment = "fork"
    options: tuple[str, ...] = ("--all",)


PRELUDE: Final = r"""
set -e
# edit FILE EXPRESSION: put an edited copy over a file of the read-only root. One that stays as it was is
# an error: the image has changed, and this breaks nothing any more.
edit() {
    copy=/run/broken-$(echo "$1" | tr / -)
    sed -E "$2" "$1" > "$copy"
    ! cmp -s "$1" "$copy" || { echo "nothing to break in $1: $2"; exit 1; }
    chmod 755 "$copy"
    mount --bind "$copy" "$1"
}
"""

UNIT: Final = """[Unit]
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/bash /etc/broken
[Install]
WantedBy=sysinit.target
"""
"""What breaks it again at each boot."""

UPGRADE = "/usr/bin/skiff-upgrade"
TAKES = "upgrade/test_upgrade.py::test_an_upgrade_changes_version_and_slot_and_keeps_state"
DOWN = "upgrade/test_upgrade.py::test_an_upgrade_from_a_registry_and_a_downgrade"
REFUSES = "upgrade/test_upgrade_refusals.py::"

FORGETS = """edit /usr/lib/skiff/boot-record 's/(last" = failed \\]) \\|\\| note/\\1 || true/'"""

CASES: Final = (
    Case(
        "upgrade writes nothing",
        TAKES,
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "upgrade from a registry writes nothing",
        DOWN,
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "upgrade under load writes nothing",
        "upgrade/test_upgrade.py::test_an_upgrade_under_load",
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "upgrade writes to the slot that runs",
        TAKES,
        "dd if=/dev/vda2 of=/dev/vda2 bs=64K count=1 conv=fsync,notrunc",
        r"\['boot', 'a', 'b'\] == \['boot', 'b'\]",
        "upgrade",
    ),
    Case(
        "upgrade loses what is in /var",
        TAKES,
        "touch /var/.skiff-reset",
        r"HostKeyChangedError|cat /var/kept.* ended with status",
        "upgrade",
    ),
    Case(
        "upgrade makes another machine id",
        TAKES,
        "cat /proc/sys/kernel/random/uuid | tr -d - > /etc/machine-id",
        r"assert Identity\(.* == Identity\(",
        "upgrade",
    ),
    Case(
        "the same version is written again",
        "upgrade/test_upgrade.py::test_the_same_version_again_is_a_no_op",
        f"""edit {UPGRADE} 's/^if \\[ "\\$version" = "\\$current" \\]/if false/'""",
        r"UpgradeRefusedError|assert \[Slot|assert not \[",
    ),
    Case(
        "rollback changes nothing",
        "upgrade/test_upgrade.py::test_rollback_by_command",
        """edit /usr/bin/skiff-rollback 's/^(! newer .*)count "\\$current" \\+0/\\1true/'""",
        r"assert \('2', 'b'\) == \('1', 'a'\)",
    ),
    Case(
        "the old version is not in the menu",
        "upgrade/test_upgrade.py::test_rollback_by_the_boot_menu",
        "mv /boot/EFI/Linux/skiff_1* /boot/ && sync",
        r"the boot menu has no 'skiff 1'",
        "upgrade",
    ),
    Case(
        "a downgrade happens unasked",
        DOWN,
        f"""edit {UPGRADE} 's/\\[ "\\$downgrade" -eq 1 \\]/true/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "every upgrade goes to the same slot",
        "upgrade/test_upgrade.py::test_two_upgrades_in_a_row_then_a_downgrade",
        "edit /usr/lib/skiff/slots.sh 's/^other_slot.*/other_slot() { echo b; }/'",
        r"PanicError|assert \('1', '\w+', .* == \('3', 'trying', 3\)|UpgradeRefusedError",
    ),
    Case(
        "digests are not compared before the slot is written",
        f"{REFUSES}test_a_faulty_server[flipped bit]",
        f"""edit {UPGRADE} 's/refuse "\\$name is not what was signed/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "what was cut off is taken for whole",
        f"{REFUSES}test_a_faulty_server[truncated]",
        f"""edit {UPGRADE} 's/refuse "(cannot fetch|\\$name is not what was signed)/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "what is of the wrong length is taken for whole",
        f"{REFUSES}test_a_faulty_server[wrong length]",
        f"""edit {UPGRADE} 's/refuse "(cannot fetch|\\$name is not what was signed)/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "an error page is taken for a file",
        f"{REFUSES}test_a_faulty_server[server error]",
        f"""edit {UPGRADE} 's/ --fail / /; s/refuse "\\$name is not what was signed/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "an expired certificate is good enough",
        f"{REFUSES}test_a_faulty_server[expired certificate]",
        f"""edit {UPGRADE} 's/--cacert "[^"]*"/--insecure/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "any CA is good enough",
        f"{REFUSES}test_a_faulty_server[unknown CA]",
        f"""edit {UPGRADE} 's/--cacert "[^"]*"/--insecure/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "signatures are not checked before the slot is written",
        f"{REFUSES}test_a_wrong_signature",
        f"""edit {UPGRADE} 's/refuse "the signature/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')|where False = .*\('signature'",
    ),
    Case(
        "a stranger's signature is looked at after the slot is written",
        f"{REFUSES}test_a_signature_by_a_stranger",
        f"""edit {UPGRADE} 's/refuse "the signature/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')|where False = .*\('signature'",
    ),
    Case(
        "a full disk is not noticed",
        f"{REFUSES}test_no_space",
        f"""edit {UPGRADE} 's/refuse "(no space left in|cannot fetch)/true "/'""",
        r"where False = .*\('space'",
    ),
    Case(
        "a policy is not obeyed",
        f"{REFUSES}test_older_than_allowed",
        f"""edit {UPGRADE} 's/^( *)! newer "\\$minimum" "\\$version"/\\1true/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "a version that panicked is not told of",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[panic]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a version that was unhealthy is not told of",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[unhealthy]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a version that could not be verified is not told of",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[verity]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a version that is stuck is not told of",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[stuck]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a slot that cannot be verified is tried for ever",
        "fallback/test_fallback.py::test_a_slot_that_cannot_be_verified_is_given_up",
        "cd /boot/EFI/Linux && mv skiff_2*.efi skiff_2.efi && sync",
        r"was restarted before it came up",
        "upgrade",
    ),
    Case(
        "a version that panics is tried for ever",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[panic]",
        "cd /boot/EFI/Linux && mv skiff_2*.efi skiff_2-panic.efi && sync",
        r"PanicError",
        "upgrade",
    ),
    Case(
        "repair writes nothing",
        "recovery/test_recovery.py::test_recovery_by_command_repairs_a_slot",
        """edit /usr/bin/skiff-recovery 's/^( *)say "writing .*/\\1say "done: lies"; exit 0/'""",
        r"PanicError",
        "recovery",
    ),
    Case(
        "there is no recovery entry to boot",
        "recovery/test_recovery.py::test_recovery_by_command_repairs_a_slot",
        "rm /boot/loader/entries/recovery.conf && sync",
        r"not in recovery|PanicError",
    ),
    Case(
        "recovery is not in the menu",
        "recovery/test_recovery.py::test_recovery_from_the_boot_menu",
        "rm /boot/loader/entries/recovery.conf && sync",
        r"the boot menu has no 'skiff recovery'",
    ),
    Case(
        "there is no recovery entry when both slots are bad",
        "recovery/test_recovery.py::test_recovery_by_itself_when_both_slots_are_bad",
        "rm /boot/loader/entries/recovery.conf && sync",
        r"was restarted more often than 7 times",
    ),
    Case(
        "there is no recovery entry when the state is gone",
        "recovery/test_recovery.py::test_recovery_by_itself_when_the_state_is_gone",
        "rm /boot/loader/entries/recovery.conf && sync",
        r"was restarted more often than 7 times",
    ),
    Case(
        "a reset wipes nothing",
        "recovery/test_recovery.py::test_a_reset[the system]",
        "edit /usr/bin/skiff-recovery 's/touch .var.\\.skiff-reset/true/'",
        r"test -e /var/gone' succeeded",
    ),
    Case(
        "a reset from recovery wipes nothing",
        "recovery/test_recovery.py::test_a_reset[recovery]",
        "edit /usr/bin/skiff-recovery 's/touch .run.skiff.var.\\.skiff-reset/true/'",
        r"test -e /var/gone' succeeded",
        "recovery",
    ),
    Case(
        "a reset does not make another machine",
        "recovery/test_recovery.py::test_a_reset[recovery]",
        "edit /usr/bin/skiff-recovery 's/touch (.run.skiff.var).\\.skiff-reset/rm -f \\1\\/gone/'",
        # Shortened, or not, as wide as the terminal is.
        r"assert '[0-9a-f]+.* != '[0-9a-f]",
        "recovery",
    ),
    Case(
        "the installer writes the settings last",
        "power/test_power_install.py",
        r"""cat > /etc/late << 'EOF'
for n in $(seq 200); do
    dd if=/dev/zero of=/dev/${disk}4 bs=4096 count=1 seek=$n conv=fsync,notrunc status=none
done
mkdir -p /run/late
mount /dev/disk/by-partlabel/oem /run/late
cp "$run/install.yaml" /run/late/
umount /run/late
EOF
edit /usr/bin/skiff-install '/CopyFiles=.*install[.]yaml/d
s/^ *rm -f .*install[.]yaml.$/. \/etc\/late/'""",
        r"LoginError",
        # Between the two. Where power goes is a sample otherwise, and two points can miss it.
        options=("--cut=w00450-clean",),
    ),
    Case(
        "an upgrade writes the boot entry before the slot",
        "power/test_power_upgrade.py",
        # systemd-sysupdate removes what is beyond InstancesMax before it writes: the early entry, too.
        r"""cat > /etc/early << 'EOF'
cp "$stage/skiff_$version.efi" "/boot/EFI/Linux/skiff_$version+3-0.efi"
sync
EOF
edit /usr/bin/skiff-upgrade 's/^empty_slot .*/&; . \/etc\/early/'
edit /usr/lib/sysupdate.d/30-uki.transfer 's/InstancesMax=2/InstancesMax=3/'""",
        r"was restarted before it came up",
        # While the slot is written: seen to be noticed at w00140 and w00155.
        options=("--cut=w00150-clean",),
    ),
    Case(
        "a reset wipes bit by bit",
        "power/test_power_reset.py",
        r"""cat > /etc/half << 'EOF'
cd /run/skiff/var
rm -rf lib/skiff
for n in $(seq 200); do dd if=/dev/zero of=half bs=4096 count=1 conv=fsync status=none; done
rm -rf half kept
cd /
EOF
edit /usr/bin/skiff-recovery 's/touch .run.skiff.var.\.skiff-reset/. \/etc\/half/'""",
        r"half of the state is there",
        "recovery",
        # In the middle of the 200 writes.
        ("--cut=w00500-clean",),
    ),
    Case(
        "the installer does not mind a full disk",
        "power/test_power_faults.py::test_an_installation_onto_a_disk_that_fails[full]",
        """edit /usr/bin/skiff-install 's/fail "(systemd-repart|.dev)/true "/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "the installer does not mind a disk that cannot flush",
        "power/test_power_faults.py::test_an_installation_onto_a_disk_that_fails[flush]",
        """edit /usr/bin/skiff-install 's/fail "(systemd-repart|.dev)/true "/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "an upgrade does not mind a disk that fails",
        "power/test_power_faults.py::test_an_upgrade_onto_a_disk_that_fails[full]",
        f"""edit {UPGRADE} 's/ fail "/ true "/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "sync does not wait for the disk",
        "power/test_power_cut.py::test_a_plain_power_cut_while_the_system_writes",
        "mount --bind /usr/bin/true /usr/bin/sync",
        r"/var/written/.* ended with status 1",
    ),
)
