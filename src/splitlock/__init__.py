"""Find, explain and control split locks on x86 Linux.

`run([...])` is what the command `splitlock run` does; it gives a `Report`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from splitlock._errors import SplitlockError
    from splitlock.report.run import Report

__version__ = "0.1.0"
__all__ = ["Report", "SplitlockError", "__version__", "run"]


def run(
    command: Sequence[str],
    *,
    split_lock_detect: str = "warn",
    mitigate: bool = False,
    env: Mapping[str, str] | None = None,
) -> Report:
    """Run a program and report every split lock it and its children take.

    The same as `splitlock run -q --split-lock-detect=MODE -- COMMAND...`, in a process of its own, since a
    tracer owns all children of its process. Standard streams are inherited. Raises SplitlockError with
    the command's exit status when the program could not be run or traced; why is on standard error.
    """
    import os
    import subprocess
    import sys
    import tempfile

    from splitlock._environment import BOOT
    from splitlock._errors import SplitlockError
    from splitlock.report.run import Report

    with tempfile.TemporaryDirectory(prefix="splitlock-") as directory:
        target = os.path.join(directory, "report.json")
        words = [sys.executable, "-P", "-c", BOOT, "run", "-q", "--format", "json", "-o", target]
        words += [f"--split-lock-detect={split_lock_detect}", *(["--mitigate"] if mitigate else []), "--", *command]
        done = subprocess.run(words, env=None if env is None else dict(env), check=False, stderr=None)
        try:
            with open(target, "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            raw = b""
        if not raw:
            raise SplitlockError(f"{list(command)}: not run, as said on standard error", done.returncode)
        return Report.from_json(raw)


def __getattr__(name: str) -> object:
    if name == "Report":
        from splitlock.report.run import Report

        return Report
    if name == "SplitlockError":
        from splitlock._errors import SplitlockError

        return SplitlockError
    raise AttributeError(name)
