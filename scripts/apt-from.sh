#!/bin/sh
# scripts/apt-from.sh RELEASE DIR ARGUMENT...: apt-get, or apt-cache where the first argument is one of its own (search),
# with the packages of another Debian release (bullseye, bookworm-backports, sid), from where this machine gets its own,
# with lists in DIR: this machine's sources stay as they are.
set -eu
release=$1
directory=$2
shift 2
mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial"
sources=$("$(dirname "$0")/../src/splitlock/guest/bochs/sources.py" "$release")
echo "$sources" >"$directory/debian.sources"
[ -e "$directory/updated" ] || set -- update "" "$@"
options="-qq -o Dir::Etc::sourcelist=$directory/debian.sources -o Dir::Etc::sourceparts=-
    -o Dir::State::Lists=$directory/lists -o Dir::State::status=/dev/null
    -o Dir::Cache=$directory/cache -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false"
if [ "$1" = update ]; then
    # shellcheck disable=SC2086  # options are words
    apt-get $options update >&2
    touch "$directory/updated"
    shift 2
fi
program=apt-get
[ "$1" != search ] || program=apt-cache
# shellcheck disable=SC2086
exec $program $options "$@"
