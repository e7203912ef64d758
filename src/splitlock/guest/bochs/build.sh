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

# apt's own lists stay as they are: only the package's place is asked for, of this machine's archives.
download() {
    if [ -z "${SOURCES:-}" ]; then
        SOURCES=$work/machine.sources
        python3 "$here/sources.py" "$release" >"$SOURCES" 2>"$work/why" || fail "$(tail -n 1 "$work/why")"
    fi
    sed 's/^Types:.*/Types: deb-src/' "$SOURCES" >"$work/debian.sources"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    options="-qq -o Dir::Etc::sourcelist=$work/debian.sources -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$work/lists
        -o Dir::State::status=/dev/null -o Dir::Cache=$work/cache -o APT::Sandbox::User=root"
    cd "$work"
    # shellcheck disable=SC2086  # options are words
    apt-get $options update >&2 || fail "apt-get update failed for Debian's source packages of $release"
    # Some archives lack the .dsc: what counts is the archive of the sources itself, which is checked below.
    # shellcheck disable=SC2086
    apt-get $options source --download-only bochs >"$work/said" 2>&1 || true
    is_right "$work/$archive" || fail "$archive cannot be downloaded: $(grep '^E:' "$work/said" | head -n 1)"
    mv "$work/$archive" "$directory/"
}

is_right "$directory/$archive" || command -v apt-get >/dev/null ||
    fail "there is no apt here; put $archive, of Debian's source package bochs, into $directory"
is_right "$directory/$archive" || (download) || exit 2
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
