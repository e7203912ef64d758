"""systemd units that bring the gate up before modules are loaded, written to this machine or into an image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from splitlock._errors import SplitlockError

UNITS = Path(__file__).parent / "units"
NAMES = ("splitlock-guard.service", "splitlock-guard-log.service")
_WANTED_BY = {"splitlock-guard.service": "sysinit.target", "splitlock-guard-log.service": "multi-user.target"}


def install(root: str, policy: str, *, audit: bool = False, digests: bool = False, command: str | None = None) -> str:
    """Write the units below `root` and enable them; what to say about it. Raises SplitlockError.

    `command`: how splitlock is started at boot; by default as it was now.
    """
    directory = _directory(root)
    options = f" --policy {_quoted(_policy_path(policy))}" + " --audit" * audit + " --digests" * digests
    values = {"@SPLITLOCK@": command or _command(), "@OPTIONS@": options}
    said = []
    try:
        os.makedirs(directory, exist_ok=True)
        for name in NAMES:
            text = (UNITS / name).read_text("utf-8")
            for mark, value in values.items():
                text = text.replace(mark, value)
            target = directory / name
            target.write_text(text, "utf-8")
            link = directory / f"{_WANTED_BY[name]}.wants" / name
            os.makedirs(link.parent, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(f"/etc/systemd/system/{name}")  # as systemctl enable does
            said.append(f"wrote {target}")
    except OSError as error:
        raise SplitlockError(f"install {error.filename or directory}: {error.strerror}; run it with sudo", 2) from None
    _reload(root)
    now = "" if _elsewhere(root) else " (now: systemctl start splitlock-guard splitlock-guard-log)"
    return "\n".join([*said, f"enabled: the gate comes up with the next boot{now}"]) + "\n"


def uninstall(root: str) -> str:
    """Remove the units; a gate that is up stays up until `guard stop` or the next boot. Raises SplitlockError."""
    directory = _directory(root)
    said = []
    try:
        for name in NAMES:
            for path in (directory / f"{_WANTED_BY[name]}.wants" / name, directory / name):
                if path.is_symlink() or path.exists():
                    path.unlink()
                    said.append(f"removed {path}")
    except OSError as error:
        raise SplitlockError(f"install --uninstall {error.filename}: {error.strerror}; run it with sudo", 2) from None
    if not said:
        raise SplitlockError(f"install --uninstall: no unit of ours in {directory}", 2)
    _reload(root)
    return "\n".join([*said, "a gate that is up stays up until `splitlock guard stop` or the next boot"]) + "\n"


def _directory(root: str) -> Path:
    if not os.path.isdir(root):
        raise SplitlockError(f"install --root {root}: no such directory", 2)
    return Path(root) / "etc/systemd/system"


def _elsewhere(root: str) -> bool:
    return os.path.realpath(root) != "/"


def _reload(root: str) -> None:
    """Have a running systemd read its units again; it may not be there."""
    if not _elsewhere(root) and os.path.isdir("/run/systemd/system"):
        subprocess.run(["systemctl", "daemon-reload"], check=False, stderr=subprocess.DEVNULL)


def _command() -> str:
    """How we were started, as an absolute path: a script that is there, else the interpreter and `-m`."""
    script = os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    if os.path.basename(script) == "splitlock" and os.access(script, os.X_OK):
        return _quoted(script)
    return f"{_quoted(sys.executable)} -m splitlock"


def _policy_path(policy: str) -> str:
    """A policy's file by its absolute path: units start in the root directory."""
    return os.path.abspath(policy) if policy.endswith(".toml") or "/" in policy else policy


def _quoted(word: str) -> str:
    """A word for ExecStart=: quoted where it has to be, percent signs and dollars doubled (systemd.service(5))."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if set(word) & set(" \t'\"\\;") else word
