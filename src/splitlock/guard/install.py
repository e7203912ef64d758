"""systemd units that bring the gate up before modules are loaded, written to this machine or into an image."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from splitlock._errors import SplitlockError
from splitlock.linux import below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parent / "units"
_DIRECTORY = "etc/systemd/system"
NAMES = ("splitlock-guard.service", "splitlock-guard-log.service")
_WANTED_BY = {"splitlock-guard.service": "sysinit.target", "splitlock-guard-log.service": "multi-user.target"}


def install(root: str, policy: str, *, audit: bool = False, digests: bool = False, command: str | None = None) -> str:
    """Write the units below `root` and enable them; what to say about it. Raises SplitlockError.

    `command`: how splitlock is started at boot; by default as it was now. Whatever links an image holds, nothing is
    written outside of it.
    """
    top = _top(root)
    options = f" --policy {_quoted(_policy_path(policy))}" + " --audit" * audit + " --digests" * digests
    values = {"@SPLITLOCK@": command or _command(), "@OPTIONS@": options}
    said = []
    try:
        for name in NAMES:
            text = (UNITS / name).read_text("utf-8")
            for mark, value in values.items():
                text = text.replace(mark, value)
            with _folder(top, _DIRECTORY, make=True) as units:
                _write(units, name, text)
            with _folder(top, f"{_DIRECTORY}/{_WANTED_BY[name]}.wants", make=True) as wants:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=wants)
                os.symlink(f"/{_DIRECTORY}/{name}", name, dir_fd=wants)  # as systemctl enable does
            said.append(f"wrote {os.path.join(root, _DIRECTORY, name)}")
    except OSError as error:
        raise _refused("install", root, error) from None
    _reload(root)
    now = "" if top else " (now: systemctl start splitlock-guard splitlock-guard-log)"
    return "\n".join([*said, f"enabled: the gate comes up with the next boot{now}"]) + "\n"


def uninstall(root: str) -> str:
    """Remove the units; a gate that is up stays up until `guard stop` or the next boot. Raises SplitlockError."""
    top = _top(root)
    said = []
    try:
        for name in NAMES:
            for place in (f"{_DIRECTORY}/{_WANTED_BY[name]}.wants", _DIRECTORY):
                with suppress(FileNotFoundError), _folder(top, place, make=False) as folder:
                    os.unlink(name, dir_fd=folder)
                    said.append(f"removed {os.path.join(root, place, name)}")
    except OSError as error:
        raise _refused("install --uninstall", root, error) from None
    if not said:
        raise SplitlockError(f"install --uninstall: no unit of ours in {os.path.join(root, _DIRECTORY)}", 2)
    _reload(root)
    return "\n".join([*said, "a gate that is up stays up until `splitlock guard stop` or the next boot"]) + "\n"


def _refused(verb: str, root: str, error: OSError) -> SplitlockError:
    place = os.path.join(root, str(error.filename or _DIRECTORY).lstrip("/"))
    if error.errno == errno.ELOOP:
        return SplitlockError(f"{verb} {place}: a link (masked?); remove it, as by systemctl unmask", 2)
    return SplitlockError(f"{verb} {place}: {error.strerror}; run it with sudo", 2)


def _top(root: str) -> str:
    """What linux.below is to take for /; empty: this machine's."""
    if not os.path.isdir(root):
        raise SplitlockError(f"install --root {root}: no such directory", 2)
    if not _elsewhere(root):
        return ""
    below.check(os.path.realpath(root))
    return os.path.realpath(root)


@contextmanager
def _folder(top: str, name: str, *, make: bool) -> Iterator[int]:
    """A descriptor of a directory, which is made, with those above it, where it is missing. Raises OSError."""
    parts = name.split("/")
    for number in range(len(parts) if make else 0):
        above = below.opened(top, "/" + "/".join(parts[:number]), folder=True)
        try:
            os.mkdir(parts[number], 0o755, dir_fd=above)
        except FileExistsError:
            pass
        finally:
            os.close(above)
    held = below.opened(top, f"/{name}", folder=True)
    try:
        yield held
    finally:
        os.close(held)


def _write(folder: int, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, 0o644, dir_fd=folder), "w", encoding="utf-8") as file:
        file.write(text)


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
