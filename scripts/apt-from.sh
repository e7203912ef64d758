#!/bin/sh
# scripts/apt-from.sh RELEASE DIR APT-GET-ARGUMENT...: apt-get with the packages of another Debian release (bullseye,
# bookworm-backports), its lists in DIR: this machine's sources stay as they are.
set -eu
release=$1
directory=$2
shift 2
mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial"
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
mirror=${mirror:-http://deb.debian.org/debian}
mirror=${mirror%/}
line="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
{
    echo "$line $mirror $release main"
    case $release in *-*) ;; *) echo "$line $mirror-security $release-security main" ;; esac
} >"$directory/sources.list"
[ -e "$directory/updated" ] || set -- update "" "$@"
options="-qq -o Dir::Etc::sourcelist=$directory/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$directory/lists
    -o Dir::Cache=$directory/cache -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false"
if [ "$1" = update ]; then
    # shellcheck disable=SC2086  # options are words
    apt-get $options update >&2
    touch "$directory/updated"
    shift 2
fi
# shellcheck disable=SC2086
exec apt-get $options "$@"
