#!/bin/bash
# scripts/fresh.sh DIR [TARGET...]: does `make TARGET` (demo and test) pass where nothing is installed? A new Debian, made by
# mmdebstrap from this machine's own sources, with make, git and certificates; in it a clone of the committed HEAD.
# Ends with pytest's summary line and the step it ended with; its exit status is make's.
#
# RELEASE names Debian's release (this machine's), TESTS what `make test` runs (all). From this machine come the settings
# that lead to the packages: apt's of downloading, pip's, DNS, certificates. DIR keeps the downloads and the log; what was
# installed goes, and so do all mounts and processes, however this ends: they live in namespaces of their own.
set -euo pipefail

now() { # now STEP: the step before has passed, this one begins; an empty one begins nothing
    [ -z "$doing" ] || echo "fresh: $doing: passed, $((SECONDS - since)) s"
    doing=$1 since=$SECONDS
    [ -z "$doing" ] || echo "fresh: $doing"
}

failed() { # which step did not pass
    status=$?
    [ "$status" = 0 ] || echo "fresh: $doing: exit status $status after $((SECONDS - since)) s"
}

named() { # the absolute paths in the settings that were taken over; of a package index DIR/simple, which points beside
    # itself, DIR
    cat "$root"/etc/pip.conf "$root"/etc/xdg/pip/* "$root"/root/.config/pip/* "$root"/root/.pip/* \
        "$root"/etc/apt/sources.list.d/* "$directory/environment" 2>/dev/null |
        grep -oE '(^|[ =,"]|file:(//)?|copy:)/[^ ,"]+' | sed -E 's,^[^/]*(//)?/,/,; s,/simple/?$,,' | sort -u || true
}

settings() { # what this machine needs to reach Debian's packages and Python's
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    for path in /etc/pip.conf /etc/xdg/pip /root/.config/pip /root/.pip; do
        [ ! -e "$path" ] || (cd / && cp -a --parents ".$path" "$root")
    done
    if [ -d /usr/local/share/ca-certificates ]; then
        cp -a /usr/local/share/ca-certificates "$root/usr/local/share/"
        chroot "$root" update-ca-certificates >"$directory/certificates.log" 2>&1
    fi
    while read -r path; do
        if [ -e "$root$path" ] || [ ! -e "$path" ]; then
            continue
        elif [ -d "$path" ]; then
            mkdir -p "$root$path" && mount --bind --read-only "$path" "$root$path"
        else
            mkdir -p "$root$(dirname "$path")" && cp "$path" "$root$path"
        fi
    done < <(named)
}

mounts() { # what a machine that has started has, and the downloads of the runs before
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
    mount -t tmpfs -o mode=755 run "$root/run"
    mkdir -p "$root/var/cache/pip"
    mount --bind "$directory/apt" "$root/var/cache/apt/archives"
    mount --bind "$directory/pip" "$root/var/cache/pip"
}

inside() { # inside DIR ROOT RELEASE TARGET...: the run itself, in namespaces of its own
    directory=$1 root=$2 doing="" since=$SECONDS
    trap failed EXIT
    now "mmdebstrap $3"
    mmdebstrap --quiet --variant=minbase --include=make,git,ca-certificates --aptopt="$directory/apt.conf" \
        "$3" "$root" "$directory/debian.sources"
    now "mounts and settings"
    mounts
    settings
    cp "$directory/head.bundle" "$root/srv/" # not in /root, which other users cannot read, as some tests must
    mapfile -t environment <"$directory/environment"
    cd "$root" # no chroot: in one, user namespaces are refused and / is no mount, other than on a machine
    mkdir .before
    pivot_root . .before
    umount -l .before
    now "git clone"
    git -c advice.detachedHead=false -c init.defaultBranch=main clone --quiet /srv/head.bundle /srv/splitlock
    for target in "${@:4}"; do
        now "make $target"
        env -i HOME=/root TERM=dumb PIP_CACHE_DIR=/var/cache/pip PIP_ROOT_USER_ACTION=ignore \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${environment[@]}" \
            make --no-print-directory --directory /srv/splitlock "$target" TESTS="${TESTS:-}"
    done
    now ""
}

gone() { # nothing is left: with the last process of the namespaces their mounts go
    [ -z "${child:-}" ] || { kill -KILL "$child" && wait "$child"; } 2>/dev/null || true
    for _ in 1 2 3 4 5; do
        ! rm -rf --one-file-system "$root" "$directory/output" 2>/dev/null || break
        sleep 1
    done
}

outside() { # outside DIR [TARGET...]: what the run needs of this machine, the run, and what is left of it
    [ $# -ge 1 ] || { echo "usage: $0 DIR [TARGET...]" >&2; exit 2; }
    [ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"
    mkdir -p "$1/apt" "$1/pip"
    directory=$(cd "$1" && pwd)
    here=$(cd "$(dirname "$0")/.." && pwd)
    shift
    [ $# -gt 0 ] || set -- demo test
    # shellcheck source=/dev/null
    release=${RELEASE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
    exec 9>"$directory/lock"
    flock -n 9 || { echo "$0: another run is at work in $directory" >&2; exit 1; }
    rm -rf --one-file-system "$directory"/root.* # of a run that was killed
    "$here/src/splitlock/guest/bochs/sources.py" "$release" >"$directory/debian.sources"
    apt-config dump | grep '^Acquire::' | grep -vE '^Acquire::(IndexTargets|Changelogs|Languages|GzipIndexes)' \
        >"$directory/apt.conf"
    env | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE=|CURL_CA_BUNDLE=|(http|https|no|all)_proxy=)' \
        >"$directory/environment" || true
    git=(git -c safe.directory='*' -C "$here")
    "${git[@]}" bundle create --quiet "$directory/head.bundle" HEAD
    [ -z "$("${git[@]}" status --porcelain)" ] || echo "fresh: what is not committed is not tried" >&2

    root=$(mktemp -d "$directory/root.XXXXXX")
    chmod 755 "$root"
    trap gone EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    rm -f "$directory/output" && mkfifo "$directory/output"
    tee "$directory/log" <"$directory/output" &
    tee=$!
    # --default-signal: what a shell starts in the background has Ctrl-C switched off, and tests press it
    setpriv --pdeathsig KILL env --default-signal unshare --mount --pid --ipc --fork --kill-child --mount-proc \
        "$0" --inside "$directory" "$root" "$release" "$@" >"$directory/output" 2>&1 9>&- &
    child=$!
    status=0
    wait "$child" || status=$?
    child=""
    wait "$tee"
    if grep -aE '[0-9]+ (passed|failed|error).* in [0-9.]+s' "$directory/log" | tail -n 1 | grep .; then
        grep -a '^fresh: ' "$directory/log" | tail -n 1
    fi
    exit "$status"
}

# The last line: bash reads a script as it goes, and this one may be edited while it runs.
if [ "${1:-}" = --inside ]; then inside "${@:2}"; else outside "$@"; fi; exit
