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

sources=$("$(dirname "$0")/../src/splitlock/guest/bochs/sources.py")
image="$directory/guest-$( (cat "$0"; echo "$sources") | sha256sum | cut -c1-12).ext4"
if [ ! -s "$image" ]; then
    part=$(mktemp -d "$directory/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    echo "$sources" >"$part/debian.sources"
    # the copy leaves out what mmdebstrap has mounted. shellcheck disable=SC2016  # "$1" is the hook's
    mmdebstrap --quiet --variant=minbase --format=null --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='echo guest >"$1/etc/hostname"; passwd --root "$1" --delete root >/dev/null' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
        --customize-hook='mkdir -p "$1/lib/modules" "$1/payload"' \
        --customize-hook="cp -ax \"\$1\" '$part/root' && rm -rf '$part'/root/dev/* '$part'/root/var/cache/*" \
        --customize-hook="mkfs.ext4 -q -F -O ^has_journal -L guest -d '$part/root' '$part/image' 1G" \
        --customize-hook="rm -rf '$part/root'" \
        "$release" - "$part/debian.sources" >&2
    mv "$part/image" "$image"
fi
echo "$image"
