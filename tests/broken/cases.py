"""Defects that fail an image's users, each with the scenario that must notice it.

An image is broken in place: a fork gets a command that changes one of its programs, and a unit repeats
the change at each boot. So one build of the image serves all cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Moment = Literal["fork", "cluster", "upgrade", "recovery", "code"]
"""The moment at which machines are broken: when the test gets one, or each member of a cluster; after an
upgrade; in recovery; when its code was read from its screen."""


@dataclass(frozen=True, slots=True)
class Case:
    """A broken image.

    Attributes:
        name: The defect.
        scenario: The test that must fail, below ``suites/``.
        command: The command that breaks the machine: for root's shell, after :data:`PRELUDE`.
        says: A regular expression for the line that gives the reason of the failure.
        moment: The moment at which the machine is broken.
        options: Further options for the scenario.
        plant: The fault of Harness' own provider that is there instead, by its name in
            :mod:`tests.broken.plugin`.
    """

    name: str
    scenario: str
    command: str
    says: str
    moment: Moment = "fork"
    options: tuple[str, ...] = ()
    plant: str = ""


PRELUDE: Final = r"""
set -e
# edit FILE EXPRESSION: put an edited copy over a file of the read-only root. An edit that changes
# nothing is an error: the image has changed, and the case breaks nothing any more.
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
"""The unit that breaks the machine again at each boot."""

UPGRADE = "/usr/bin/skiff-upgrade"
TAKES = "upgrade/test_upgrade.py::test_an_upgrade_changes_version_and_slot_and_keeps_state"
PULLS = "upgrade/test_upgrade.py::test_an_upgrade_from_a_registry"
REFUSES = "upgrade/test_upgrade_refusals.py::"
JOINS = "cluster/test_cluster_join.py::test_who_has_no_right_to_join_is_refused"
ADMIT = "/usr/lib/skiff/cluster/admit"
ARCHES = "upgrade/test_upgrade_arches.py::"

ANY_ARCH = """edit /usr/lib/skiff/sources.sh 's/ and .platform[.]architecture == [$]arch//'"""
FORGETS = """edit /usr/lib/skiff/boot-record 's/(last" = failed \\]) \\|\\| note/\\1 || true/'"""

CASES: Final = (
    Case(
        "an upgrade writes nothing",
        TAKES,
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "an upgrade from a registry writes nothing",
        PULLS,
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "an upgrade under load writes nothing",
        "upgrade/test_upgrade.py::test_an_upgrade_under_load",
        f"""edit {UPGRADE} 's/^empty_slot .*/say "done: nothing at all"; exit 0/'""",
        r"assert \('.*', 'empty', .* == \('2', 'trying', 3\)",
    ),
    Case(
        "an upgrade writes to the running slot",
        TAKES,
        "dd if=/dev/vda2 of=/dev/vda2 bs=64K count=1 conv=fsync,notrunc",
        r"\['boot', 'a', 'b'\] == \['boot', 'b'\]",
        "upgrade",
    ),
    Case(
        "an upgrade loses the contents of /var",
        TAKES,
        "touch /var/.skiff-reset",
        r"HostKeyChangedError|cat /var/kept.* ended with status",
        "upgrade",
    ),
    Case(
        "an upgrade changes the machine id",
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
        "a rollback changes nothing",
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
        "a downgrade is done without permission",
        PULLS,
        f"""edit {UPGRADE} 's/\\[ "\\$downgrade" -eq 1 \\]/true/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "a downgrade is refused although it is allowed",
        "upgrade/test_upgrade.py::test_a_downgrade_that_is_allowed",
        f"""edit {UPGRADE} 's/\\[ "\\$downgrade" -eq 1 \\]/false/'""",
        r"UpgradeRefusedError",
    ),
    Case(
        "every upgrade goes to the same slot",
        "upgrade/test_upgrade.py::test_two_upgrades_in_a_row_then_a_downgrade",
        "edit /usr/lib/skiff/slots.sh 's/^other_slot.*/other_slot() { echo b; }/'",
        r"PanicError|assert \('1', '\w+', .* == \('3', 'trying', 3\)|UpgradeRefusedError",
    ),
    Case(
        "checksums are not compared before the slot is written",
        f"{REFUSES}test_a_faulty_server[flipped bit]",
        f"""edit {UPGRADE} 's/refuse "\\$name is not what was signed/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "a truncated file is accepted",
        f"{REFUSES}test_a_faulty_server[truncated]",
        f"""edit {UPGRADE} 's/refuse "(cannot fetch|\\$name is not what was signed)/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "a file of the wrong length is accepted",
        f"{REFUSES}test_a_faulty_server[wrong length]",
        f"""edit {UPGRADE} 's/refuse "(cannot fetch|\\$name is not what was signed)/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "an error page is accepted as a file",
        f"{REFUSES}test_a_faulty_server[server error]",
        f"""edit {UPGRADE} 's/ --fail / /; s/refuse "\\$name is not what was signed/true "/'""",
        r"assert \[(Slot|'(boot|a|b)')",
    ),
    Case(
        "an expired certificate is accepted",
        f"{REFUSES}test_a_faulty_server[expired certificate]",
        f"""edit {UPGRADE} 's/--cacert "[^"]*"/--insecure/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "any CA is accepted",
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
        "a stranger's signature is checked after the slot is written",
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
        "the minimum version is ignored",
        f"{REFUSES}test_older_than_allowed",
        f"""edit {UPGRADE} 's/^( *)! newer "\\$minimum" "\\$version"/\\1true/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "the first manifest of an index is taken, whatever its architecture",
        f"{ARCHES}test_one_address_for_all_architectures[registry]",
        ANY_ARCH,
        r"assert '' == '2'",
    ),
    Case(
        "the folder of another architecture is taken",
        f"{ARCHES}test_one_address_for_all_architectures[server]",
        "edit /usr/lib/skiff/sources.sh 's/echo arm64 arm64/echo x86-64 arm64/;"
        " s/echo x86-64 amd64/echo arm64 amd64/'",
        r"UpgradeRefusedError: skiff_1_.* is for ",
    ),
    Case(
        "the last manifest for an architecture is taken",
        f"{ARCHES}test_the_first_of_two_entries_for_one_architecture",
        "edit /usr/lib/skiff/sources.sh 's/first[(]/last(/'",
        r"assert '' == '2'",
    ),
    Case(
        "any manifest is taken where there is none for the architecture",
        f"{ARCHES}test_no_update_for_the_architecture[registry]",
        ANY_ARCH,
        r"DID NOT RAISE",
    ),
    Case(
        "a missing folder of an architecture is a server that fails",
        f"{ARCHES}test_no_update_for_the_architecture[server]",
        f"""edit {UPGRADE} 's/refuse "[$]given has no update/true "/'""",
        r"where False = .*\('architecture'",
    ),
    Case(
        "the name of an update's architecture is not compared",
        f"{ARCHES}test_an_update_for_another_architecture_under_the_right_name[server]",
        f"""edit {UPGRADE} 's/refuse "[$]name is for/true "/'""",
        r"assert \[Slot|where False = .*\('architecture'",
    ),
    Case(
        "a version that panicked is not recorded",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[panic]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "an unhealthy version is not recorded",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[unhealthy]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a version that failed verification is not recorded",
        "fallback/test_fallback.py::test_a_broken_version_is_given_up[verity]",
        FORGETS,
        r"ailed'\) in \[",
    ),
    Case(
        "a version that is stuck is not recorded",
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
        "a repair writes nothing",
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
        "a reset keeps the identity",
        "recovery/test_recovery.py::test_a_reset[recovery]",
        "edit /usr/bin/skiff-recovery 's/touch (.run.skiff.var).\\.skiff-reset/rm -f \\1\\/gone/'",
        # pytest shortens the texts, or not, by the width of the terminal.
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
        # A point between the two. A sample of two points can miss it.
        options=("--cut=w00450-clean",),
    ),
    Case(
        "an upgrade writes the boot entry before the slot",
        "power/test_power_upgrade.py",
        # systemd-sysupdate removes entries beyond InstancesMax before it writes: the early one, too.
        r"""cat > /etc/early << 'EOF'
cp "$stage/skiff_${version}_"*.efi "/boot/EFI/Linux/skiff_$version+3-0.efi"
sync
EOF
edit /usr/bin/skiff-upgrade 's/^empty_slot .*/&; . \/etc\/early/'
edit /usr/lib/sysupdate.d/30-uki.transfer 's/InstancesMax=2/InstancesMax=3/'""",
        r"assert \d+ == 0",
        # While the slot is written: noticed at w00140 and at w00155.
        options=("--cut=w00150-clean",),
    ),
    Case(
        "a reset wipes the state file by file",
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
        "the installer ignores a full disk",
        "power/test_power_faults.py::test_an_installation_onto_a_disk_that_fails[full]",
        """edit /usr/bin/skiff-install 's/fail "(systemd-repart|.dev)/true "/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "the installer ignores failed flushes",
        "power/test_power_faults.py::test_an_installation_onto_a_disk_that_fails[flush]",
        """edit /usr/bin/skiff-install 's/fail "(systemd-repart|.dev)/true "/'""",
        r"DID NOT RAISE",
    ),
    Case(
        "an upgrade ignores a failing disk",
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
    Case(
        "any code lets one install",
        "install/test_install.py::test_paired_by_the_code_on_its_screen",
        "edit /usr/lib/skiff/pairing 's/^( *if ).*code_file.*/\\1false; then/'",
        r"DID NOT RAISE",
        "code",
    ),
    Case(
        "any token lets a machine join",
        JOINS,
        f"""edit {ADMIT} 's/^\\[ "\\$mac" = .*/:/'""",
        r"is not signed",
        "cluster",
    ),
    Case(
        "an expired token lets a machine join",
        JOINS,
        f"""edit {ADMIT} 's/^\\[ "\\$now" -lt "\\$expires" \\]/true/'""",
        r"DID NOT RAISE",
        "cluster",
    ),
    Case(
        "a machine joins whose clock is an hour off",
        JOINS,
        f"""edit {ADMIT} 's/^\\[ "\\$\\{{apart#-\\}}" -le "\\$skew" \\]/true/'""",
        r"DID NOT RAISE",
        "cluster",
    ),
    Case(
        "what a cluster acknowledges is not on disk yet",
        "cluster/test_cluster_faults.py::test_a_full_stop_and_a_cold_start",
        r"""mkdir -p /etc/systemd/system/etcd.service.d
cd /etc/systemd/system/etcd.service.d
printf '[Service]\nEnvironment=ETCD_UNSAFE_NO_FSYNC=true\n' > broken.conf
systemctl daemon-reload
systemctl restart etcd.service
sync""",
        r"acknowledged|to be healthy|to come up",
        "cluster",
    ),
    Case(
        "two members have the virtual address",
        "cluster/test_cluster_address.py::test_the_virtual_address_moves[parted]",
        # One of them does not hear the others.
        r"""[ "$(hostname)" = node-2 ] || exit 0
sed -i 's/virtual_router_id 77/virtual_router_id 78/' /etc/keepalived/keepalived.conf
systemctl restart keepalived.service""",
        r"the members that had it at the same time",
        "cluster",
    ),
    Case(
        "the provider says yes before it stores",
        "cluster/test_cluster_network.py::test_one_is_parted_from_the_others[leader]",
        "",
        r"HistoryError",
        "cluster",
        plant="acknowledges",
    ),
    Case(
        "the provider reads what one member has",
        "cluster/test_cluster_network.py::test_one_is_parted_from_the_others[leader]",
        "",
        r"HistoryError",
        "cluster",
        plant="stale",
    ),
)
