"""How are the modules built that take split locks in the kernel, and in a guest of their own?"""

from __future__ import annotations

import os
import shutil
import subprocess

from splitlock._errors import SplitlockError

NAME = "splitlock_matrix"
BLIND = "blind"  #: a hypervisor: see its source
SOURCES = os.path.join(os.path.dirname(__file__), "inside")
_PATIENCE = 300  # seconds


def build(headers: str, directory: str, name: str = NAME) -> bytes:
    """The module for the kernel with these headers; `directory` is where to work. Raises SplitlockError.

    With the compiler that the headers name, or the one in the environment's CC.
    """
    for source in (f"{name}.c", f"{name}.h"):
        if os.path.exists(path := os.path.join(SOURCES, source)):
            shutil.copy(path, directory)
    with open(os.path.join(directory, "Kbuild"), "w") as file:
        file.write(f"obj-m := {name}.o\n")
    # without BTF of its own, which would take pahole
    command = ["make", "-s", "-C", headers, f"M={directory}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    command += [f"CC={os.environ['CC']}"] if "CC" in os.environ else []
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_PATIENCE,
        )  # fmt: skip
    except OSError as error:
        raise SplitlockError(f"make: {error.strerror}; install make and the kernel's compiler", 2) from None
    except subprocess.TimeoutExpired:
        raise SplitlockError(f"--headers {headers}: no module after {_PATIENCE} s", 2) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror" in line or "not found" in line] or ["make failed"]
        remedy = "install what builds modules for this kernel, or name a compiler in CC"
        raise SplitlockError(f"--headers {headers}: {said[0].strip()}; {remedy}", 2)
    with open(os.path.join(directory, f"{name}.ko"), "rb") as built:
        return built.read()
