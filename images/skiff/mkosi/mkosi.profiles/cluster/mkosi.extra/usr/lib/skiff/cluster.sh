# Shared by skiff-cluster and the programs in /usr/lib/skiff/cluster. Sourced by bash, after common.sh.
# shellcheck shell=bash

readonly conf=/etc/skiff/cluster
# There from when this machine is a member, or is about to be one; the units have it as their condition.
readonly env=$conf/etcd.env
readonly data=/var/lib/etcd
readonly keepalived=/etc/keepalived/keepalived.conf
readonly join_port=7420
# Seconds that two clocks may be apart.
readonly skew=60

# The interface of the segment: eth0 is the user-mode one, where there is another.
interface() {
    local path
    for path in /sys/class/net/eth[1-9]*; do
        [ ! -e "$path" ] || { echo "${path##*/}"; return; }
    done
    echo eth0
}

# lease KEY: of the DHCP lease of the segment's interface, as systemd-networkd keeps it.
lease() {
    local file
    file=/run/systemd/netif/leases/$(< "/sys/class/net/$(interface)/ifindex") || return
    sed -n "s/^$1=//p" "$file" 2> /dev/null
}

# ---- names, versions, messages ----

valid_name() { [[ $1 =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]]; }
valid_address() { [[ $1 =~ ^([0-9]{1,3}\.){3}[0-9]{1,3}$ ]]; }
# TOKEN: the name of the token, and its secret.
valid_token() { [[ $1 =~ ^skiff\.([0-9a-f]{8})\.([0-9a-f]{64})$ ]]; }

# near VERSION VERSION: the same, or neighbours. A broken one counts as the version in its name: 2-panic as 2.
near() {
    local a=${1%%-*} b=${2%%-*}
    [[ $a =~ ^[0-9]{1,9}$ && $b =~ ^[0-9]{1,9}$ ]] && [ $((10#$a - 10#$b)) -ge -1 ] && [ $((10#$a - 10#$b)) -le 1 ]
}

random_hex() { od -An -vtx1 -N"$1" /dev/urandom | tr -d ' \n'; }

# hmac KEY TEXT: HMAC-SHA256 (RFC 2104) in hexadecimal; the key as well, of 64 bytes at most. Not by a program
# that gets the key as an argument, where everybody could read it.
hmac() {
    local i byte inner='' outer='' padded=$1
    while [ ${#padded} -lt 128 ]; do padded+=00; done
    for ((i = 0; i < 128; i += 2)); do
        byte=$((16#${padded:i:2}))
        printf -v inner '%s\\x%02x' "$inner" $((byte ^ 0x36))
        printf -v outer '%s\\x%02x' "$outer" $((byte ^ 0x5c))
    done
    byte=$({ printf %b "$inner"; printf %s "$2"; } | sha256sum)
    byte=$(sed 's/../\\x&/g' <<< "${byte%% *}")
    byte=$({ printf %b "$outer$byte"; } | sha256sum)
    echo "${byte%% *}"
}

# ---- etcd, by the JSON gateway of its clients' port ----

# etcd HOST PATH JSON [SECONDS]: the answer; status 1, and what went wrong in it, if it is no success.
etcd() {
    local answer status
    if [ "$1" = 127.0.0.1 ]; then
        answer=$(post "$2" "$3" "${4:-5}")
    else
        answer=$(curl --silent --show-error --noproxy '*' --max-time "${4:-5}" --data-binary "$3" \
            --write-out '\n%{http_code}' "http://$1:2379/v3/$2" 2>&1)
    fi
    status=${answer##*$'\n'}
    answer=${answer%$'\n'*}
    if [ "$status" = 200 ]; then printf '%s\n' "$answer"; return 0; fi
    jq -r '.message // .error' <<< "$answer" 2> /dev/null || printf '%s\n' "$answer"
    return 1
}

# post PATH JSON SECONDS: to the local etcd; the body of the answer, and its status in the last line. Emulated, curl
# takes ten times as long to start as bash itself takes for all of it.
post() {
    local peer status='' line body
    exec {peer}<> /dev/tcp/127.0.0.1/2379 || { printf 'etcd does not run\n000\n'; return; }
    printf 'POST /v3/%s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "$1" "${#2}" "$2" >&"$peer"
    read -r -t "$3" _ status _ <&"$peer" || { printf 'etcd does not answer\n000\n'; return; }
    while IFS= read -r -t "$3" line <&"$peer" && [ "$line" != $'\r' ]; do :; done
    IFS= read -r -d '' -t "$3" body <&"$peer"
    printf '%s\n%s\n' "${body%$'\n'}" "$status"
} 2> /dev/null

# patient COMMAND...: run it until it succeeds, for a minute. An etcd that many ask at once, or whose host is busy,
# answers late.
patient() {
    local answer last=$((SECONDS + 60))
    until answer=$("$@"); do
        [ "$SECONDS" -lt "$last" ] || { printf '%s\n' "$answer"; return 1; }
        sleep 1
    done
    printf '%s\n' "$answer"
}

b64() { printf %s "$1" | base64 -w0; }

# put KEY VALUE; get KEY; del KEY: of the local member. Keys of skiff's own are below skiff/.
put() { etcd 127.0.0.1 kv/put "{\"key\":\"$(b64 "$1")\",\"value\":\"$(b64 "$2")\"}"; }
get() {
    local answer
    answer=$(etcd 127.0.0.1 kv/range "{\"key\":\"$(b64 "$1")\"}") || { printf '%s\n' "$answer"; return 1; }
    jq -r '.kvs[0].value // "" | @base64d' <<< "$answer"
}
del() { etcd 127.0.0.1 kv/deleterange "{\"key\":\"$(b64 "$1")\"}"; }

# members [HOST]: as that member sees them, without a majority, too; a line for each: ID NAME URL VOTER, the
# name "-" if it never started.
members() {
    local answer
    answer=$(etcd "${1:-127.0.0.1}" cluster/member/list '{"linearizable":false}' 3) || { printf '%s\n' "$answer"; return 1; }
    jq -r '.members[] | [.ID, (.name // "" | if . == "" then "-" else . end), .peerURLs[0], (.isLearner | not)] |
        join(" ")' <<< "$answer"
}

# healthy [SECONDS]: the local member answers a read that a majority has confirmed.
healthy() { /usr/lib/skiff/cluster/healthy "${1:-3}"; }

# alive ADDRESS: its etcd runs, with or without a majority.
alive() {
    curl --silent --fail --noproxy '*' --max-time "${2:-2}" --output /dev/null "http://$1:2380/version"
}

# setting KEY: of this member.
setting() { sed -n "s/^$1=//p" "$env" 2> /dev/null; }

# keep FILE: write standard input to it, whole or not at all.
keep() {
    mkdir -p "${1%/*}" && cat > "$1.new" && sync "$1.new" && mv "$1.new" "$1" && sync "${1%/*}"
}

# A machine that is no member: nothing runs, no data is left.
forget() {
    rm -f "$env"
    sync "$conf"
    systemctl --no-block stop skiff-join.socket skiff-member.service keepalived.service
    find "$data" -mindepth 1 -delete
    rm -rf /var/lib/skiff/cluster/members
}
