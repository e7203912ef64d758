#!/bin/sh
# scripts/qemu.sh DIR: QEMU of Debian's backports for this machine's release, unpacked into DIR and not installed (its
# plugin interface is newer than the release's own). Prints the program to run, which is DIR/qemu-VERSION/run.
# Its shared libraries are those of qemu-system-x86 as installed.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
for found in "$directory"/qemu-*/run; do
    [ ! -x "$found" ] || { echo "$found"; exit 0; }
done
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
part=$(mktemp -d "$directory/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
from=$(cd "$(dirname "$0")" && pwd)/apt-from.sh
(cd "$part" && "$from" "$release-backports" "$part" download qemu-system-x86 qemu-system-common qemu-system-data seabios >&2)
mkdir "$part/root"
version=""
for package in "$part"/*.deb; do
    dpkg-deb -x "$package" "$part/root"
    case $package in */qemu-system-x86_*) version=$(dpkg-deb -f "$package" Version | sed 's/^[0-9]*://; s/+.*//') ;; esac
done
target="$directory/qemu-$version"
cat >"$part/root/run" <<RUN
#!/bin/sh
export QEMU_MODULE_DIR='$target/usr/lib/x86_64-linux-gnu/qemu'
exec '$target/usr/bin/qemu-system-x86_64' -L '$target/usr/share/qemu' -L '$target/usr/share/seabios' \\
    -L /usr/lib/ipxe/qemu "\$@"
RUN
chmod +x "$part/root/run"
chmod 755 "$part/root"
mv "$part/root" "$target"
echo "$target/run"
