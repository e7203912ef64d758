#!/bin/sh
# build.sh [DIRECTORY]: builds the emulator that `splitlock guest --vmx` runs in, and prints where it is.
#
# Bochs, from Debian's source package, unchanged, with the library of instrument/, which makes its processor detect split
# and bus locks. Needs a C++ compiler, make and apt with a source of Debian's packages; two minutes of one core. What is
# there already, of the same sources, is printed at once: no network is needed then.
# DIRECTORY: where it is kept, by default ~/.cache/splitlock/emulator, or for root /var/cache/splitlock/emulator. SOURCES: a file in apt's deb822 format, instead of this
# machine's own sources. JOBS: compilers at once (2). `build.sh --mark` prints what its name ends in, and Bochs' version.
set -eu
export LC_ALL=C # in which the names of instrument/ are sorted: the mark below is one for all languages
here=$(cd "$(dirname "$0")" && pwd)
version=3.0+dfsg
release=trixie # Debian's, which has this version
sha256=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
archive=bochs_$version.orig.tar.xz

fail() {
    echo "splitlock: the emulator cannot be built: $1" >&2
    exit 2
}

# One name for what it is built from: other sources of ours make another emulator.
mark=$(cat "$here/build.sh" "$here"/instrument/* "$here"/../plugin/table.[ch] "$here"/../plugin/shared.h | sha256sum | cut -c 1-16)
if [ "${1:-}" = --mark ]; then
    echo "$mark ${version%%+*}"
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    cache=/var/cache # sudo may keep somebody else's HOME
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}
fi
directory=${1:-$cache/splitlock/emulator}
umask 022
mkdir -p "$directory" 2>/dev/null && [ -w "$directory" ] ||
    fail "$directory: cannot be made, or not be written; set XDG_CACHE_HOME"
directory=$(cd "$directory" && pwd)
built=$directory/bochs-$mark
if [ -x "$built" ]; then
    echo "$built"
    exit 0
fi
for program in g++ make xz strip python3; do
    command -v $program >/dev/null || fail "$program is missing; install g++, make, xz-utils, binutils and python3"
done
work=$(mktemp -d "$directory/bochs.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

is_right() {
    [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status
}

is_right "$directory/$archive" || command -v apt-get >/dev/null ||
    fail "there is no apt here; put $archive, of Debian's source package bochs, into $directory"
is_right "$directory/$archive" || why=$("$here/source.sh" bochs "$archive" "$directory" "$release" 2>&1) || fail "$(echo "$why" | tail -n 1)"
is_right "$directory/$archive" || fail "$directory/$archive is another than it should be"
cd "$work"
tar -xf "$directory/$archive"
cd bochs-*
mkdir instrument/splitlock
cp "$here"/instrument/* "$here"/../plugin/table.[ch] "$here"/../plugin/shared.h instrument/splitlock/
# nogui: no screen. No show-ips: its signal handler waits for a lock that its own thread may hold. evex: avx alone does
# not compile in this version.
if ! { ./configure --enable-x86-64 --enable-vmx=2 --enable-svm --enable-avx --enable-evex --enable-all-optimizations \
    --enable-instrumentation=instrument/splitlock --disable-plugins --disable-show-ips --with-nogui --without-x &&
    make -j "${JOBS:-2}" bochs; } >"$work/log" 2>&1; then
    grep -i -m 5 'error' "$work/log" >&2 || tail -n 5 "$work/log" >&2
    mv "$work/log" "$directory/bochs.log"
    fail "the compiler's words are above, all of them in $directory/bochs.log"
fi
strip bochs
mv bochs "$built"
echo "$built"
