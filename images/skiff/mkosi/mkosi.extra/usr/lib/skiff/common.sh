# Shared by skiff-install, skiff-provision and skiff-status. Sourced by bash.
# shellcheck shell=bash

# The fields of this image's os-release.
image_version() {
    local IMAGE_VERSION=''
    # shellcheck source=/dev/null
    . /usr/lib/os-release
    printf '%s\n' "$IMAGE_VERSION"
}

# The dm device of the root file system, as dm-N; nothing if the root is not on one.
root_dm() {
    local name
    for name in /sys/block/dm-*/dm/name; do
        [ -e "$name" ] && [ "$(< "$name")" = root ] || continue
        name=${name%/dm/name}
        printf '%s\n' "${name##*/}"
        return
    done
}

# The partition that holds the data of the root file system, as a name below /sys/class/block.
# Of the two partitions under the verity device it is the one of lower number.
root_partition() {
    local slave best='' best_number=0 number dm
    dm=$(root_dm)
    [ -n "$dm" ] || return 0
    for slave in "/sys/block/$dm/slaves/"*; do
        number=$(cat "$slave/partition" 2> /dev/null) || continue
        if [ -z "$best" ] || [ "$number" -lt "$best_number" ]; then
            best=${slave##*/}
            best_number=$number
        fi
    done
    printf '%s\n' "$best"
}

# The disk a partition is on, both as names below /sys/class/block.
disk_of() {
    local path
    path=$(readlink -f "/sys/class/block/$1/..")
    printf '%s\n' "${path##*/}"
}

# ---- the settings of an installation ----
#
# settings_read FILE NAME reads the YAML subset that README.md describes into the variables below.
# Anything else is an error: then it returns 1 and settings_error is NAME:LINE: and the reason.

settings_disk='' settings_hostname='' settings_user=''
settings_password='' settings_password_hash='' settings_finally='' settings_cluster=''
settings_keys=()
settings_error=''

# The value of a YAML scalar of one line: plain, 'single' or "double" quoted. Sets value.
_scalar() {
    local text=$1
    local double='^"(([^"\\]|\\["\\])*)"[[:space:]]*(#.*)?$'
    local single="^'(([^']|'')*)'[[:space:]]*(#.*)?\$"
    if [[ $text == \"* ]]; then
        [[ $text =~ $double ]] || { why='a double-quoted value that does not end, or a \ escape'; return 1; }
        value=${BASH_REMATCH[1]//\\\"/\"}
        value=${value//\\\\/\\}
    elif [[ $text == \'* ]]; then
        [[ $text =~ $single ]] || { why='a single-quoted value that does not end'; return 1; }
        value=${BASH_REMATCH[1]//\'\'/\'}
    else
        text=${text%% #*}
        text=${text%"${text##*[![:space:]]}"}
        case $text in
            '') why='a value is missing'; return 1 ;;
            [][{}\&*!\|\>%@\`,?]* | '- '* | *': '* | *:)
                why="a value that YAML reads as more than text: quote it"
                return 1
                ;;
        esac
        value=$text
    fi
}

settings_read() {
    local file=$1 name=$2
    local line number=0 indent body key value why
    local depth1=-1 depth2=-1 state=start
    local -A seen=()
    local key_line='^([A-Za-z_][A-Za-z0-9_-]*):([[:space:]]+(.*))?$'

    settings_disk='' settings_hostname='' settings_user='' settings_finally='' settings_cluster=''
    settings_password='' settings_password_hash='' settings_keys=() settings_error=''
    _bad() { settings_error="$name:$number: $*"; return 1; }

    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=${line%$'\r'}
        if [ "$number" -eq 1 ]; then
            [[ $line =~ ^\#cloud-config[[:space:]]*$ ]] || { _bad "the first line is not #cloud-config"; return 1; }
            continue
        fi
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [ "$line" = --- ] && [ "$state" = start ] && continue
        [[ $line == *$'\t'* ]] && { _bad "a tab: YAML indents by spaces"; return 1; }
        body=${line#"${line%%[! ]*}"}
        indent=$((${#line} - ${#body}))

        if [[ $body == '- '* || $body == - ]]; then
            [ "$state" = keys ] && [ "$indent" -ge "$depth2" ] || { _bad "a list where none belongs"; return 1; }
            body=${body#-}
            body=${body#"${body%%[! ]*}"}
            _scalar "$body" || { _bad "$why"; return 1; }
            why=$(settings_check key "$value") || { _bad "$why"; return 1; }
            settings_keys+=("$value")
            continue
        fi
        [[ $body =~ $key_line ]] || { _bad "not understood: $body"; return 1; }
        key=${BASH_REMATCH[1]}
        body=${BASH_REMATCH[3]}
        [[ $body == '#'* ]] && body=''

        if [ "$indent" -eq 0 ]; then
            [ "$key" = skiff ] || { _bad "unknown key '$key' (known: skiff)"; return 1; }
            [ "$state" = start ] || { _bad "'skiff' is there twice"; return 1; }
            [ -z "$body" ] || { _bad "'skiff' holds keys, not a value"; return 1; }
            state=skiff
            continue
        fi
        [ "$state" != start ] || { _bad "indented, but under no key"; return 1; }
        if [ "$state" = skiff ]; then
            [ "$key" = install ] || { _bad "unknown key 'skiff.$key' (known: skiff.install)"; return 1; }
            [ -z "$body" ] || { _bad "'skiff.install' holds keys, not a value"; return 1; }
            depth1=$indent
            state=install
            continue
        fi
        [ "$depth2" -ge 0 ] || { [ "$indent" -gt "$depth1" ] && depth2=$indent; }
        [ "$indent" -eq "$depth2" ] || { _bad "indented by $indent, which fits nothing above"; return 1; }
        [ -z "${seen[$key]:-}" ] || { _bad "'$key' is there twice, first in line ${seen[$key]}"; return 1; }
        seen[$key]=$number
        state=install2
        case $key in
            ssh_authorized_keys)
                [ -z "$body" ] || { _bad "'$key' is a list: one key a line, each after '- '"; return 1; }
                state=keys
                continue
                ;;
            disk | hostname | user | password | password_hash | finally | cluster) ;;
            *)
                _bad "unknown key '$key' (known: disk, hostname, user, password, password_hash," \
                    "ssh_authorized_keys, finally, cluster)"
                return 1
                ;;
        esac
        [ -n "$body" ] || { _bad "'$key' has no value"; return 1; }
        _scalar "$body" || { _bad "$why"; return 1; }
        why=$(settings_check "$key" "$value") || { _bad "$why"; return 1; }
        printf -v "settings_$key" %s "$value"
    done < "$file"

    for key in disk hostname user; do
        [ -n "${seen[$key]:-}" ] || { _bad "ends without skiff.install.$key"; return 1; }
    done
    if [ ${#settings_keys[@]} -eq 0 ] && [ -z "$settings_password$settings_password_hash" ]; then
        _bad "ends without ssh_authorized_keys, password or password_hash: nobody could log in"
        return 1
    fi
    if [ -n "$settings_password" ] && [ -n "$settings_password_hash" ]; then
        _bad "has both password and password_hash"
        return 1
    fi
}

has_cluster() { [ -x /usr/bin/skiff-cluster ]; }

# Is VALUE one that KEY can have? If not, prints why and returns 1.
settings_check() {
    local key=$1 value=$2
    case $key in
        hostname)
            [[ $value =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]] && return
            echo "hostname '$value': 1 to 63 of a-z, 0-9 and -, no - at the ends"
            ;;
        user)
            [[ $value =~ ^[a-z_][a-z0-9_-]{0,30}$ ]] ||
                { echo "user '$value': 1 to 31 of a-z, 0-9, _ and -, a letter first"; return 1; }
            { [ "$value" != root ] && ! grep -q "^$value:" /usr/lib/skiff/passwd; } && return
            echo "user '$value': an account of the system itself"
            ;;
        password)
            [[ $value != *[[:cntrl:]]* ]] && return
            echo "password: a control character in it"
            ;;
        password_hash)
            [[ $value =~ ^\$[0-9a-z]+\$[A-Za-z0-9./=,\$]+$ ]] && return
            echo "password_hash: not in the form of crypt(5)"
            ;;
        key)
            ssh-keygen -l -f /dev/stdin <<< "$value" > /dev/null 2>&1 && return
            echo "not an SSH public key: '${value:0:40}'"
            ;;
        finally)
            [[ $value =~ ^(poweroff|reboot|none)$ ]] && return
            echo "finally '$value': one of poweroff, reboot, none"
            ;;
        cluster)
            has_cluster || { echo "cluster: only the variant cluster has that"; return 1; }
            [[ $value =~ ^[A-Za-z0-9./\ \;-]+$ ]] && return
            echo "cluster: lines of skiff.cluster, with ; between them"
            ;;
        *) return ;;
    esac
    return 1
}

# Print the settings in the form settings_read takes. They are kept in the OEM partition.
settings_write() {
    local key disk=${settings_disk//\\/\\\\}
    printf '#cloud-config\nskiff:\n  install:\n'
    printf '    %s: "%s"\n' disk "${disk//\"/\\\"}" hostname "$settings_hostname" user "$settings_user"
    [ -z "$settings_password_hash" ] || printf '    password_hash: "%s"\n' "$settings_password_hash"
    [ -z "$settings_cluster" ] || printf '    cluster: "%s"\n' "$settings_cluster"
    [ ${#settings_keys[@]} -eq 0 ] || printf '    ssh_authorized_keys:\n'
    for key in "${settings_keys[@]}"; do
        key=${key//\\/\\\\}
        printf '      - "%s"\n' "${key//\"/\\\"}"
    done
}
