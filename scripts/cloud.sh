#!/bin/sh
# scripts/cloud.sh DIR KERNEL.deb: Debian as clouds boot it, a root file system (ext4, label `root`) in DIR, built once:
# systemd, the kernel with its initramfs, and a unit that runs /payload/run where there is one, then powers off.
# Prints its path. The image's name is a digest of what it is made from, so a change builds another one.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 DIR KERNEL.deb" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
kernel=$(realpath "$2")
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
sources=$("$(dirname "$0")/../src/splitlock/guest/bochs/sources.py")
image="$directory/cloud-$( (cat "$0"; echo "$sources $(basename "$kernel")") | sha256sum | cut -c1-12).ext4"
if [ ! -s "$image" ]; then
    part=$(mktemp -d "$directory/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    echo "$sources" >"$part/debian.sources"
    cat >"$part/payload.service" <<'UNIT'
[Unit]
Description=what the test put into the image
ConditionPathExists=/payload/run
After=multi-user.target
[Service]
ExecStart=/payload/run
ExecStopPost=/usr/bin/systemctl poweroff --no-block
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
UNIT
    # shellcheck disable=SC2016  # "$1" is the hook's
    mmdebstrap --quiet --variant=minbase --format=null \
        --include=systemd-sysv,udev,kmod,linux-base,initramfs-tools,zstd,busybox-static,login,passwd,util-linux \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="copy-in '$part/payload.service' /etc/systemd/system" \
        --customize-hook="cp '$kernel' \"\$1/kernel.deb\"" \
        --customize-hook='echo "LABEL=root / ext4 defaults 0 1" >"$1/etc/fstab"; echo cloud >"$1/etc/hostname"' \
        --customize-hook='printf "MODULES=list\nCOMPRESS=zstd\n" >"$1/etc/initramfs-tools/conf.d/small"' \
        --customize-hook='printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >"$1/etc/initramfs-tools/modules"' \
        --customize-hook='chroot "$1" dpkg -i /kernel.deb >&2; rm "$1/kernel.deb"' \
        --customize-hook='chroot "$1" systemctl enable payload.service >&2; mkdir "$1/payload"' \
        --customize-hook='passwd --root "$1" --delete root >/dev/null; rm -rf "$1"/var/lib/apt/lists/*' \
        --customize-hook="cp -ax \"\$1\" '$part/root' && rm -rf '$part'/root/dev/* '$part'/root/var/cache/*" \
        --customize-hook="mkfs.ext4 -q -F -L root -d '$part/root' '$part/image' 1G" \
        --customize-hook="rm -rf '$part/root'" \
        "$release" - "$part/debian.sources" >&2
    mv "$part/image" "$image"
fi
echo "$image"
