# The part of an upgrade's source that is for this machine's architecture. Sourced by bash.
# shellcheck shell=bash

# The architecture by the names of systemd (%a in sysupdate.d(5)) and of OCI (GOARCH, see image-index.md of
# the OCI image specification).
arch_names() {
    case $(uname -m) in
        x86_64) echo x86-64 amd64 ;;
        aarch64) echo arm64 arm64 ;;
        *) echo "$(uname -m) $(uname -m)" ;;
    esac
}

# is_index FILE: a manifest of the OCI image specification has layers, an index has manifests.
is_index() { jq --exit-status 'has("manifests")' "$1" > /dev/null; }

# manifest_for GOARCH INDEX: the digest of the manifest for that architecture; status 4 if there is none. "If
# multiple manifests match a client or runtime's requirements, the first matching entry SHOULD be used."
manifest_for() {
    jq --exit-status --raw-output --arg arch "$1" 'first(.manifests[] |
        select(.mediaType == "application/vnd.oci.image.manifest.v1+json" and
            .platform.os == "linux" and .platform.architecture == $arch) | .digest)' "$2"
}

# platforms INDEX: those that it is for, as linux/amd64, linux/arm64.
platforms() {
    jq --raw-output '[.manifests[].platform // empty | "\(.os)/\(.architecture)"] | unique | join(", ")' "$1"
}
