"""Does a program hand its work to a process that we did not start, or does it run without its rights?

By the names of programs that are known to: nothing else tells, since the request goes over a socket. That a name is not
here says nothing.
"""

from __future__ import annotations

import os
import stat

from splitlock.linux.proc import status, tracer_of

_UNIT = "put `splitlock run --` before the command in its unit"
_INSIDE = "run splitlock inside of it (with SYS_PTRACE allowed)"
_THERE = "run splitlock there"
_DAEMON = "end it, and have it started by `splitlock run`"
#: program -> (who does its work, the way to see it)
HANDS_OVER = {
    "docker": ("dockerd, in a container", _INSIDE),
    "docker-compose": ("dockerd, in containers", _INSIDE),
    "nerdctl": ("containerd, in a container", _INSIDE),
    "podman-remote": ("podman's service, in a container", _INSIDE),
    "kubectl": ("a cluster, in containers", _INSIDE),
    "lxc": ("lxd, in a container", _INSIDE),
    "incus": ("incusd, in a container", _INSIDE),
    "virsh": ("libvirtd, in a virtual machine", "use splitlock guest"),
    "systemd-run": ("systemd", "use systemd-run --scope, or " + _UNIT),
    "run0": ("systemd", "run splitlock as that user"),
    "systemctl": ("systemd", _UNIT),
    "machinectl": ("systemd, in a container", _INSIDE),
    "flatpak-spawn": ("flatpak's portal, outside of the sandbox", "run splitlock outside"),
    "snap": ("snapd, or snap-confine with root's rights", "run the program in /snap itself"),
    "at": ("atd", "put `splitlock run --` into the job"),
    "batch": ("atd", "put `splitlock run --` into the job"),
    "crontab": ("cron", "put `splitlock run --` into the job"),
    "ssh": ("another machine", _THERE),
    "adb": ("another machine", _THERE),
    "dbus-send": ("a service on the bus", _UNIT),
    "busctl": ("a service on the bus", _UNIT),
    "gdbus": ("a service on the bus", _UNIT),
    "gnome-terminal": ("gnome-terminal-server", "run splitlock in the terminal"),
    "gnome-terminal.real": ("gnome-terminal-server", "run splitlock in the terminal"),
    "emacsclient": ("a running emacs", _DAEMON),
    "xdg-open": ("whatever opens such files", "run that program itself"),
    "nix-build": ("nix-daemon", "put `splitlock run --` into the build"),
    "distcc": ("another machine", _THERE),
    "icecc": ("another machine", _THERE),
    "sccache": ("sccache's server", _DAEMON),
    "bazel": ("bazel's server", _DAEMON),
    "gradle": ("a gradle daemon", "use --no-daemon"),
}
#: programs that ask a running instance of themselves first
ONE_FOR_ALL = {
    "firefox", "firefox-esr", "firefox-bin", "thunderbird", "chromium", "chrome", "brave", "msedge", "opera", "vivaldi",
    "code", "code-insiders", "codium", "electron", "gedit", "gnome-text-editor", "nautilus", "evince", "soffice.bin",
    "tmux", "screen", "steam", "spotify", "slack", "discord",
}  # fmt: skip
_SCOPE = b"--scope"


def reasons(tid: int) -> list[tuple[str, str]]:
    """Of a program that has just been executed: its path, and why what it does may go unseen. Mostly none.

    Raises OSError when the task is gone.
    """
    path = os.readlink(f"/proc/{tid}/exe")
    found = []
    if reason := handed_over(path, _comm(tid), _SCOPE in _arguments(tid), tid):
        found.append((path, reason))
    if lost := _lost_rights(tid):
        found.append((path, lost))
    return found


def handed_over(path: str, comm: str, has_scope: bool, tid: int) -> str:
    """Why the work of a program may be done elsewhere, by its file's and its task's name; empty mostly.

    `has_scope`: an argument is --scope. `tid`: a task that is no other instance.
    """
    file = os.path.basename(path.removesuffix(" (deleted)"))
    for name in dict.fromkeys((file, comm)):
        if name in HANDS_OVER and not (name == "systemd-run" and has_scope):
            who, way = HANDS_OVER[name]
            return f"the work is done by another process that `run` did not start: {who}; {way}"
        if name in ONE_FOR_ALL and (pid := _another(path, tid, "" if name == file else comm)):
            return f"the work may be done by process {pid} of the same program, which `run` did not start; end it"
    return ""


def _comm(tid: int) -> str:
    """The task's name: of a script its own, where its program is the interpreter's."""
    with open(f"/proc/{tid}/comm", "rb", buffering=0) as file:
        return os.fsdecode(file.read().rstrip(b"\n"))


def _arguments(tid: int) -> list[bytes]:
    with open(f"/proc/{tid}/cmdline", "rb", buffering=0) as file:
        return file.read().split(b"\0")


def _another(path: str, tid: int, comm: str) -> int:
    """A process of the same program that we do not trace; 0 without one.

    `comm`: a script's name, whose file is its interpreter's; else empty.
    """
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != tid:
            try:
                same = os.readlink(f"/proc/{entry}/exe") == path and comm in ("", _comm(int(entry)))
            except OSError:  # another user's, or gone
                continue
            if same and tracer_of(int(entry)) != os.getpid():
                return int(entry)
    return 0


def _lost_rights(tid: int) -> str:
    """Whether the file's set-user-ID or set-group-ID bit came to nothing, which a tracer without privileges causes."""
    file = os.stat(f"/proc/{tid}/exe")
    user, group = file.st_mode & stat.S_ISUID, file.st_mode & stat.S_ISGID and file.st_mode & stat.S_IXGRP
    if not user and not group:
        return ""
    if os.statvfs(f"/proc/{tid}/exe").f_flag & os.ST_NOSUID:
        return ""
    fields = status(tid)
    lost_user = user and int(fields["Uid"].split()[1]) != file.st_uid
    lost_group = group and int(fields["Gid"].split()[1]) != file.st_gid
    if not lost_user and not lost_group:
        return ""
    bit = "set-user-ID" if lost_user else "set-group-ID"
    return f"a {bit} program runs without its rights under a tracer that is not root; run splitlock as root"
