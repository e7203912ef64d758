#!/bin/sh
# scripts/guest.sh DIR: the root file system of the tests' guests, an ext4 image in DIR, built once: Debian of this
# machine's release, from this machine's own sources of packages. Prints its path.
#
# The image's name is a digest of what it is made from (this file and the sources), so a change builds another one.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
packages=python3,kmod,busybox-static,libbpf1,libelf1,bpftool,xz-utils,zstd,gzip,systemd,systemd-sysv,udev,e2fsprogs,procps

sources() { # those of Debian's own archive: stanzas or lines that name the release or its updates
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        grep -E "^deb .* $release(-[a-z]+)?(/[a-z]+)? .*main" || true
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk -v release="$release" 'BEGIN { RS = ""; ORS = "\n\n" }
            $0 ~ "(^|\n)Suites:[^\n]* " release "([ \n-]|$)" { gsub(/(^|\n)#[^\n]*/, ""); print }' "$file"
    done
}

list=$(mktemp -d "$directory/part.XXXXXX")
trap 'rm -rf "$list"' EXIT
sources >"$list/all"
[ -s "$list/all" ] || { echo "$0: no sources of $release in /etc/apt/sources.list*" >&2; exit 1; }
image="$directory/guest-$(cat "$0" "$list/all" | sha256sum | cut -c1-12).ext4"
if [ ! -s "$image" ]; then
    # one-line and deb822 sources may not share a file: each goes in as its own
    grep '^deb ' "$list/all" >"$list/lines.list" || rm "$list/lines.list"
    grep -v '^deb ' "$list/all" >"$list/stanzas.sources" || rm -f "$list/stanzas.sources"
    [ -s "$list/stanzas.sources" ] || rm -f "$list/stanzas.sources"
    # the copy leaves out what mmdebstrap has mounted. shellcheck disable=SC2016,SC2046  # "$1" is the hook's
    mmdebstrap --quiet --variant=minbase --format=null --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='echo guest >"$1/etc/hostname"; passwd --root "$1" --delete root >/dev/null' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
        --customize-hook='mkdir -p "$1/lib/modules" "$1/payload"' \
        --customize-hook="cp -ax \"\$1\" '$list/root' && rm -rf '$list'/root/dev/* '$list'/root/var/cache/*" \
        --customize-hook="mkfs.ext4 -q -F -O ^has_journal -L guest -d '$list/root' '$list/image' 1G" \
        --customize-hook="rm -rf '$list/root'" \
        "$release" - $(ls "$list"/*.list "$list"/*.sources 2>/dev/null) >&2
    mv "$list/image" "$image"
fi
echo "$image"
