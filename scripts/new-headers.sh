#!/bin/sh
# scripts/new-headers.sh DIR: the headers of sid's kernel, unpacked below DIR, to build modules with on this machine.
# Prints the directory for `make -C`.
#
# The kernel's own build programs among them (modpost, objtool) are made for sid's C library: each runs by sid's loader
# and libraries, which lie beside it. The compiler is gcc-12, as for the other kernels: sid's own does not run here.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd -P)
packages=$("$(dirname "$0")/kernels.sh" "$directory" new-headers | cut -d' ' -f2-)
name=$(basename "$(echo "$packages" | head -n 1)" .deb)
target="$directory/headers-$name"
if [ ! -d "$target" ]; then
    part=$(mktemp -d "$directory/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    for package in $packages; do
        case $package in
        */linux-*) dpkg-deb -x "$package" "$part" ;;
        *) dpkg-deb -x "$package" "$part/libraries" ;;
        esac
    done
    libraries="$target/libraries/usr"
    find "$part"/usr/lib/linux-kbuild-* -type f -perm -100 | while read -r program; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        mv "$program" "$program.new"
        place="$target${program#"$part"}"
        cat >"$program" <<RUN
#!/bin/sh
exec '$libraries/lib64/ld-linux-x86-64.so.2' --argv0 '$place' --library-path '$libraries/lib/x86_64-linux-gnu' '$place.new' "\$@"
RUN
        chmod 755 "$program"
    done
    for tree in "$part"/usr/src/linux-headers-*-amd64; do
        sed -i "s,/usr/src/,$target/usr/src/," "$tree/Makefile"
        sed -i 's/^CC = .*/CC = gcc-12/' "$tree/.kernelvariables"
        # what gcc-12 does not know
        sed -i '/^CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=/d' "$tree/include/config/auto.conf"
        sed -i '/define CONFIG_CC_HAS_COUNTED_BY /d' "$tree/include/generated/autoconf.h"
    done
    chmod 755 "$part"
    mv "$part" "$target"
fi
for tree in "$target"/usr/src/linux-headers-*-amd64; do
    echo "$tree"
done
