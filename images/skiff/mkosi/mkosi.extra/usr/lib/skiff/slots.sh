# Slots and boot entries. Sourced by bash, after common.sh. README.md explains the names of the files.
# shellcheck shell=bash

readonly boots=/var/lib/skiff/boots
declare -rA slot_number=([a]=2 [b]=4)

# The disk that this system is installed on, as a path.
system_disk() { printf '/dev/%s\n' "$(disk_of "$(root_partition)")"; }

# partition DISK NUMBER: its device.
partition() { if [[ $1 == *[0-9] ]]; then echo "$1p$2"; else echo "$1$2"; fi; }

# The slot that runs: live, recovery, a or b.
running_slot() {
    case " $(< /proc/cmdline) " in
        *" skiff.live "*) echo live; return ;;
        *" skiff.recovery "*) echo recovery; return ;;
    esac
    case $(cat "/sys/class/block/$(root_partition)/partition" 2> /dev/null) in
        2) echo a ;;
        4) echo b ;;
        *) echo unknown ;;
    esac
}

other_slot() { if [ "$1" = a ]; then echo b; else echo a; fi; }

# The folder of the UKIs. systemd-gpt-auto-generator(8) mounts the ESP at /boot when it is looked at.
entries() { echo /boot/EFI/Linux; }

# slot_version DISK SLOT: the version in its partitions' labels; nothing if empty or half-written.
slot_version() {
    local root verity number=${slot_number[$2]}
    root=$(sfdisk --part-label "$1" "$number" 2> /dev/null)
    verity=$(sfdisk --part-label "$1" $((number + 1)) 2> /dev/null)
    [[ $root == skiff_* && $verity == "${root}_verity" ]] && printf '%s\n' "${root#skiff_}"
}

# entry_of VERSION: its UKI, with any counters; status 1 if there is none. An empty file is none: systemd-boot
# passes over it. Power that fails in a rename leaves one, since Linux writes the new name of a file on FAT
# first, and its size and place later (vfat_rename in fs/fat/namei_vfat.c).
entry_of() {
    local file folder
    folder=$(entries)
    for file in "$folder/skiff_$1.efi" "$folder/skiff_$1+"*.efi; do
        [ -s "$file" ] && { printf '%s\n' "$file"; return 0; }
    done
    return 1
}

# entry_state FILE: "good - -", "trying LEFT DONE" or "bad 0 DONE", after the counters in its name. A good
# version has its tries before it, so that one that stops booting some day is given up, too.
entry_state() {
    local counted='\+([0-9]+)(-([0-9]+))?\.efi$'
    if ! [[ $1 =~ $counted ]]; then
        echo "good - -"
    elif [ "${BASH_REMATCH[1]}" -eq 0 ]; then
        echo "bad 0 ${BASH_REMATCH[3]:-0}"
    elif [ -z "${BASH_REMATCH[2]}" ]; then
        echo "good - -"
    else
        echo "trying ${BASH_REMATCH[1]} ${BASH_REMATCH[3]}"
    fi
}

# slot_state DISK SLOT: VERSION STATE LEFT DONE, "-" for none.
slot_state() {
    local version file
    version=$(slot_version "$1" "$2")
    if [ -z "$version" ]; then
        echo "- empty - -"
    elif file=$(entry_of "$version"); then
        echo "$version $(entry_state "$file")"
    else
        echo "$version bad - -"
    fi
}

# flush FILE_OR_FOLDER...: write all changes of the ESP to its disk. syncfs(2) writes all of it, and sends
# no flush to the disk, since FAT has no sync_fs (fs/fat/inode.c); fsync(2) sends one, and writes no more
# than the one file.
flush() { sync -f -- "$1" && sync -- "$@"; }

# count VERSION SUFFIX: give its entry other counters: +3 is good, +3-0 on trial, +0 set aside.
count() {
    local file
    file=$(entry_of "$1") || return 1
    [ "$file" = "${file%/*}/skiff_$1$2.efi" ] || mv "$file" "${file%/*}/skiff_$1$2.efi" || return 1
    flush "${file%/*}/skiff_$1$2.efi" "${file%/*}"
}

# empty_slot DISK SLOT: nothing boots from it any more. Entries go first, all but that of the other
# slot: at no moment does one point to a slot that is not whole.
empty_slot() {
    local keep number=${slot_number[$2]} file folder
    folder=$(entries)
    [ -d "$folder" ] || return 1
    keep=$(slot_version "$1" "$(other_slot "$2")")
    # The running system is in the other slot, or in recovery, which repairs even if both are empty.
    [ -n "$keep" ] || [ "$(running_slot)" = recovery ] || return 1
    for file in "$folder"/skiff_*; do
        case ${file##*/} in "skiff_$keep.efi" | "skiff_$keep+"*.efi) continue ;; esac
        [ ! -e "$file" ] || rm -f "$file" || return 1
    done
    flush "$folder" || return 1
    label "$1" "$number" _empty && label "$1" $((number + 1)) _empty && sync "$1"
}

label() { sfdisk --quiet --no-reread --no-tell-kernel --part-label "$1" "$2" "$3"; }

newer() { systemd-analyze compare-versions "$1" gt "$2" > /dev/null; }

# own_slots [FLOCK-OPTION...]: have the slots and their entries to oneself until the end; status 1 if not.
own_slots() { mkdir -p /run/skiff && exec 9> /run/skiff/slots.lock && flock "$@" 9; }

# recording COMMAND...: run it while no other program writes to the boot record.
recording() { ( flock 8 && "$@" ) 8> /run/skiff-boots.lock; }

# note VERSION SLOT TRIES WHAT [BOOT]: a line for the boot record.
note() {
    recording append "$(date -u +%FT%TZ) ${5:--} $1 $2 $3 $4"
}

append() { printf '%s\n' "$1" >> "$boots" && sync "$boots"; }
