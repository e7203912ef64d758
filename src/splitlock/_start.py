"""The console script's first step, and its last: our interpreter does not heed what is meant for the program, and
whatever fails in us, a line says so and the exit status is ours.

Nothing of the standard library is imported before `entry` runs but what Python has at start: that may fail, too, or
come from where PYTHONPATH leads.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def entry() -> NoReturn:
    """Run the command line. Ends the process with its exit status."""
    try:
        if _command() == "run":
            _isolate()
        from splitlock.commands import entry as command

        command()
    except Exception as error:
        _end(error)


def _isolate() -> None:
    """Start again with `python -I`, and without LD_PRELOAD and the like, where the environment has such variables.

    The program gets it all the same (splitlock._environment.given). PYTHONPATH stays where we are found by it, and
    LD_LIBRARY_PATH where the interpreter's own library is.
    """
    from splitlock import _environment

    environment = _environment.own()
    ours = _environment.PLACE in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    hidden = _environment.hidden(environment, not sys.flags.isolated and not ours, not _needs_library_path())
    if hidden == environment or not sys.executable:
        return
    words = [sys.executable, "-P" if ours else "-I", "-c", _environment.BOOT, *sys.argv[1:]]
    try:
        os.execve(sys.executable, words, hidden)
    except OSError:  # no room for longer names: better heeding some of it than not at all
        pass


def _needs_library_path() -> bool:
    """Whether the interpreter would not start without LD_LIBRARY_PATH."""
    places = [place for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place]
    if not places:
        return False
    try:
        with open("/proc/self/maps", errors="replace") as file:
            mapped = {line.split(None, 5)[-1].rstrip("\n") for line in file if "/libpython" in line}
    except OSError:
        return True
    real = {os.path.realpath(place) for place in places}
    return any(os.path.dirname(path) in real for path in mapped)


def _end(error: Exception) -> NoReturn:
    """A failure of ours must not look like a finding, which 1 is, nor like the program's own status."""
    status = 125 if _command() == "run" else 2
    try:
        from splitlock._errors import failure

        line = failure(error)
    except Exception:  # no memory for that either
        line = "out of memory or open files (ulimit -a)"
    try:
        os.write(2, f"splitlock: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:  # nobody listens
        pass
    os._exit(status)


def _command() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")
