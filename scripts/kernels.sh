#!/bin/sh
# scripts/kernels.sh DIR [KIND...]: the newest of Debian's kernel packages, downloaded into DIR where missing.
# KIND: amd64, cloud-amd64, rt-amd64 (linux-image-6.1), xz (6.12's cloud kernel: its modules are .ko.xz),
# headers (what building a module for 6.1 amd64 takes; has Module.symvers). Default: all of these. Also: xz-headers;
# old, old-headers (the release before: 5.10, from its own archive); new, new-modules, new-headers (sid's cloud kernel, its
# modules, and what building one takes, with the C library that the programs among these need: see new-headers.sh).
# Prints `KIND FILE` for each package that is there. What this machine's sources do not have is named on
# standard error, and the exit status is then 1.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 DIR [amd64|cloud-amd64|rt-amd64|xz|headers]..." >&2; exit 2; }
directory=$1
shift
[ $# -gt 0 ] || set -- amd64 cloud-amd64 rt-amd64 xz headers
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$directory"
directory=$(cd "$directory" && pwd -P)
status=0
release=""
updated=""

newest() { # the highest version of the packages whose name fits: signed images, as they are installed
    apt-cache search --names-only "$1" | cut -d' ' -f1 | sort -V | tail -n 1
}

update() { # package lists: once, and only where something was not found
    [ -z "$updated" ] || return 0
    updated=yes
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    $as_root apt-get update -qq >&2 || true
}

fetch() { # fetch KIND PACKAGE
    version=$(apt-cache show --no-all-versions "$2" | sed -n 's/^Version: //p' | head -n 1)
    architecture=$(apt-cache show --no-all-versions "$2" | sed -n 's/^Architecture: //p' | head -n 1)
    file="$directory/$2_$(echo "$version" | sed 's/:/%3a/')_$architecture.deb"
    if [ ! -s "$file" ]; then # in a directory of its own first: others may be at it, and a half is no package
        part=$(mktemp -d "$directory/part.XXXXXX")
        (cd "$part" && apt-get download -qq -o APT::Sandbox::User=root "$2" >&2) || { rm -rf "$part"; return 1; }
        mv "$part"/*.deb "$directory"/
        rmdir "$part"
    fi
    echo "$1 $file"
}

find_and_fetch() { # find_and_fetch KIND PATTERN
    package=$(newest "$2")
    [ -n "$package" ] || { update; package=$(newest "$2"); }
    if [ -z "$package" ]; then
        echo "$0: no package ^$2 in this machine's sources" >&2
        status=1
    else # an old list names versions that are gone
        fetch "$1" "$package" || { update; package=$(newest "$2"); fetch "$1" "$package"; } || status=1
    fi
}

of() { # of RELEASE KIND PACKAGE FILES: of another of Debian's releases, where it is not there
    found=$(find "$directory" -maxdepth 1 -name "$4" | sort -V | tail -n 1)
    if [ -z "$found" ]; then
        part=$(mktemp -d "$directory/part.XXXXXX")
        (cd "$part" && "$here/apt-from.sh" "$1" "$directory/$1" download "$3" >&2) && mv "$part"/*.deb "$directory"/
        rm -rf "$part"
        found=$(find "$directory" -maxdepth 1 -name "$4" | sort -V | tail -n 1)
    fi
    [ -n "$found" ] && echo "$2 $found" || status=1
}

old() { # old KIND PACKAGE FILES: of Debian 11, where nothing changes any more
    of bullseye "$@"
}

release_of_sid() { # 7.2.13+deb14: that of the kernel that is there already, else of sid's newest
    there=$(find "$directory" -maxdepth 1 -name 'linux-binary-*-cloud-amd64_*.deb' | sort -V | tail -n 1)
    if [ -n "$there" ]; then
        basename "$there" | sed 's/^linux-binary-//; s/-cloud-amd64_.*//'
    else
        "$here/apt-from.sh" sid "$directory/sid" search --names-only '^linux-binary-[0-9.]+\+deb[0-9]+-cloud-amd64$' |
            sed 's/^linux-binary-//; s/-cloud-amd64 .*//' | sort -V | tail -n 1
    fi
}

new() { # new KIND PREFIX SUFFIX: a package of sid's kernel; its name is PREFIX-RELEASE-SUFFIX
    release=${release:-$(release_of_sid)}
    if [ -z "$release" ]; then
        echo "$0: no kernel among sid's packages" >&2
        status=1
    else
        of sid "$1" "$2-$release$3" "$2-$release${3}_*.deb"
    fi
}

for kind in "$@"; do
    case $kind in
    amd64 | cloud-amd64 | rt-amd64) find_and_fetch "$kind" "^linux-image-6\\.1\\.0-[0-9]+-$kind\$" ;;
    xz) find_and_fetch xz '^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64$' ;;
    headers)
        find_and_fetch headers '^linux-headers-6\.1\.0-[0-9]+-amd64$'
        find_and_fetch headers-common '^linux-headers-6\.1\.0-[0-9]+-common$'
        find_and_fetch kbuild '^linux-kbuild-6\.1$'
        ;;
    xz-headers)
        find_and_fetch xz-headers '^linux-headers-6\.12\.[0-9]+\+deb12-cloud-amd64$'
        find_and_fetch xz-headers-common '^linux-headers-6\.12\.[0-9]+\+deb12-common$'
        find_and_fetch xz-kbuild '^linux-kbuild-6\.12\.[0-9]+\+deb12$'
        ;;
    old) old old linux-image-5.10.0-46-amd64 'linux-image-5.10.*.deb' ;;
    old-headers)
        old old-headers linux-headers-5.10.0-46-amd64 'linux-headers-5.10*-amd64_*.deb'
        old old-headers-common linux-headers-5.10.0-46-common 'linux-headers-5.10*-common_*.deb'
        old old-kbuild linux-kbuild-5.10 'linux-kbuild-5.10*.deb'
        ;;
    new) new new linux-binary -cloud-amd64 ;;
    new-modules) new new-modules linux-modules -cloud-amd64 ;;
    new-headers)
        new new-headers linux-headers -cloud-amd64
        new new-headers-common linux-headers -common
        new new-kbuild linux-kbuild ""
        for library in libc6 libelf1t64 libzstd1 zlib1g; do
            of sid "new-$library" "$library" "${library}_*.deb"
        done
        ;;
    *)
        echo "$0: $kind: no such kind" >&2
        exit 2
        ;;
    esac
done
exit $status
