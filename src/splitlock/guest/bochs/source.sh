#!/bin/sh
# source.sh PACKAGE FILE DIRECTORY [RELEASE]: downloads FILE (a pattern, quoted) of Debian's source package PACKAGE into DIRECTORY.
#
# Of RELEASE, by default this machine's. Prints the file's name; what is wrong is one line on standard error. SOURCES: a file in
# apt's deb822 format, instead of this machine's own sources. apt's own lists stay as they are.
set -eu
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
package=$1
file=$2
directory=$(cd "$3" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "$1" >&2
    exit 2
}

if [ -z "${SOURCES:-}" ]; then
    SOURCES=$work/machine.sources
    python3 "$here/sources.py" ${4:+"$4"} >"$SOURCES" 2>"$work/why" || fail "$(tail -n 1 "$work/why")"
fi
sed 's/^Types:.*/Types: deb-src/' "$SOURCES" >"$work/debian.sources"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
options="-qq -o Dir::Etc::sourcelist=$work/debian.sources -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$work/lists
    -o Dir::State::status=/dev/null -o Dir::Cache=$work/cache -o APT::Sandbox::User=root"
cd "$work"
# shellcheck disable=SC2086  # options are words
apt-get $options update >&2 || fail "apt-get update failed for Debian's source packages${4:+ of $4}"
# Some archives lack the .dsc: what counts is the file itself.
# shellcheck disable=SC2086
apt-get $options source --download-only "$package" >"$work/said" 2>&1 || true
found=$(find . -maxdepth 1 -type f -name "$file" | sort -V | tail -n 1)
[ -n "$found" ] || fail "$file cannot be downloaded: $(grep '^E:' "$work/said" | head -n 1)"
mv "$found" "$directory/"
echo "$directory/${found#./}"
