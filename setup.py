"""Compiles the load-time gate (src/splitlock/guard/bpf) when the package is built; the rest is in pyproject.toml.

Two files, which need no compiler where they are used: gate.bpf.o for the kernel (CO-RE), libgate.so for user space.
Without clang, libbpf's headers or a C compiler the package is built without them, and `splitlock guard` says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before 70.1 it is another package's
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        bdist_wheel = object  # then no wheel is being built

GATE = Path(__file__).parent / "src" / "splitlock" / "guard" / "bpf"
OBJECT, LIBRARY = GATE / "gate.bpf.o", GATE / "libgate.so"
# -mcpu=v3: 32-bit arithmetic and atomic operations (5.12). <asm/types.h> is in a folder of the machine's on Debian.
BPF = [
    "clang", "-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", "-ffile-prefix-map=" + str(GATE) + "=.",
    "-idirafter", "/usr/include/x86_64-linux-gnu", "-c", "gate.bpf.c", "-o",
]  # fmt: skip
NATIVE = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=default", "native.c", "-o"]


def build_gate() -> bool:
    """Compile what is not there, or older than its sources; whether all of it is there now."""
    sources = max(path.stat().st_mtime for path in (*GATE.glob("*.[ch]"), Path(__file__)))
    for target, command in ((OBJECT, BPF), (LIBRARY, NATIVE)):
        if target.exists() and target.stat().st_mtime >= sources:
            continue
        part = target.with_name(f"{target.name}.part")
        try:
            subprocess.run([*command, part.name], cwd=GATE, check=True)
            if target is OBJECT:  # BTF stays, which the kernel wants; DWARF, ten times as much, goes
                subprocess.run([shutil.which("llvm-strip") or "llvm-strip-14", "-g", part.name], cwd=GATE, check=True)
            part.rename(target)
        except (OSError, subprocess.CalledProcessError) as error:
            part.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            print(f"splitlock guard: {target.name} is not built, guard will not work: {error}", file=sys.stderr)
    return OBJECT.exists() and LIBRARY.exists()


class BuildPy(build_py):
    """build_py, with the gate compiled first."""

    def run(self) -> None:
        build_gate()
        super().run()


class BdistWheel(bdist_wheel):
    """A wheel for one platform where it holds compiled files, for any Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = not build_gate()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
