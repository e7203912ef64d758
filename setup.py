"""Compiles what is not Python when the package is built; the rest is in pyproject.toml.

No compiler is needed where it is used: the load-time gate (src/splitlock/guard/bpf), gate.bpf.o for the kernel (CO-RE)
and libgate.so for user space; QEMU's plugin (src/splitlock/guest/plugin); the probe's image (guest/probe/boot); the
matrix's init (guest/matrix/inside); what analyses programs (image/scan); and the agent that watches them from inside
(process/agent/inside). Without clang, libbpf's headers or a C compiler the package is built without them, and
`splitlock guard`, `guest`, `probe`, `matrix` or `run` says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

from distutils.command.build_scripts import build_scripts  # isort: skip  # setuptools brings distutils

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
PLUGIN = Path(__file__).parent / "src" / "splitlock" / "guest" / "plugin"
PLUGIN_BUILT = PLUGIN / "splitlock.so"
PLUGGED = [
    "cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread",
    "plugin.c", "table.c", "-o",
]  # fmt: skip
PROBE = Path(__file__).parent / "src" / "splitlock" / "guest" / "probe" / "boot"
PROBE_BUILT = PROBE / "probe.bin"
# 32-bit code for a bare machine, linked to where probe.ld says, without an object file's format
BARE = [
    "cc", "-m32", "-march=i686", "-Os", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib", "-static", "-fno-pic",
    "-no-pie", "-mgeneral-regs-only", "-fcf-protection=none", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none,-z,noexecstack,--oformat=binary,-T,probe.ld",
    *sorted(path.name for path in (*PROBE.glob("*.S"), *PROBE.glob("*.c"))), "-o",
]  # fmt: skip
MATRIX = Path(__file__).parent / "src" / "splitlock" / "guest" / "matrix" / "inside"
INIT, INIT_32, VMM = MATRIX / "init", MATRIX / "init32", MATRIX / "vmm"
# a guest's first process, without a library; <asm/types.h> of the same folder does for 32 bits, too
FIRST = [
    "cc", "-O2", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-mno-red-zone",
    "-fcf-protection=none", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-idirafter", "/usr/include/x86_64-linux-gnu", "-Wl,--build-id=none,-z,noexecstack,-s", "init.c", "-o",
]  # fmt: skip
FIRST_32 = [*FIRST[:1], "-m32", "-march=i686", *FIRST[1:]]
VIRTUAL = [each for word in FIRST for each in (("vmm.c", "linux.c") if word == "init.c" else (word,))]
AGENT = Path(__file__).parent / "src" / "splitlock" / "process" / "agent" / "inside"
AGENT_BUILT = AGENT / "agent.so"
# without a C library and its headers; it must touch no vector registers, which nobody has saved. Each mapping makes
# every fork of the program slower: so the agent has as few as can be.
INSIDE = [
    "cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-ffreestanding",
    "-nostdlib", "-mgeneral-regs-only", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none", "-fno-tree-loop-distribute-patterns",
    "-Wl,-z,noexecstack,-z,now,-z,norelro,-z,noseparate-code,--hash-style=gnu,--build-id=none,-soname,agent.so",
    "-s", # a breakpoint by name is meant for the program
    *sorted(path.name for path in (*AGENT.glob("*.c"), *AGENT.glob("*.S"))), "-o",
]  # fmt: skip
FRONT = AGENT.parent / "front"
FRONT_BUILT = FRONT / "splitlock"
FIRST_STEP = [
    "cc",
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "front.c",
    "options.c",
    "place.c",
    "summary.c",
    "-ldl",
    "-o",
]
SCAN = Path(__file__).parent / "src" / "splitlock" / "image" / "scan"
SCAN_BUILT = SCAN / "libscan.so"
SCANNER = [
    "cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden",
    *sorted(path.name for path in SCAN.glob("*.c")), "-o",
]  # fmt: skip
NATIVE = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=default", "native.c", "-o"]


MADE = (
    (OBJECT, BPF, "guard"),
    (LIBRARY, NATIVE, "guard"),
    (PLUGIN_BUILT, PLUGGED, "guest"),
    (PROBE_BUILT, BARE, "probe"),
    (INIT, FIRST, "matrix"),
    (INIT_32, FIRST_32, "matrix"),
    (VMM, VIRTUAL, "matrix"),
    (AGENT_BUILT, INSIDE, "run"),
    (FRONT_BUILT, FIRST_STEP, "run"),
    (SCAN_BUILT, SCANNER, "run"),
)  # file, how, the command that needs it


def build() -> bool:
    """Compile what is not there, or older than its sources; whether all of it is there now."""
    for target, command, verb in MADE:
        place = target.parent
        made_of = (*place.glob("*.[chS]"), *place.glob("*.ld"), *place.glob("../inside/*.h"), Path(__file__))
        sources = max(path.stat().st_mtime for path in made_of)
        if target.exists() and target.stat().st_mtime >= sources:
            continue
        part = target.with_name(f"{target.name}.part")
        try:
            subprocess.run([*command, part.name], cwd=place, check=True)
            if target is OBJECT:  # BTF stays, which the kernel wants; DWARF, ten times as much, goes
                subprocess.run([shutil.which("llvm-strip") or "llvm-strip-14", "-g", part.name], cwd=place, check=True)
            part.rename(target)
        except (OSError, subprocess.CalledProcessError) as error:
            part.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            print(f"splitlock {verb}: {target.name} is not built, {verb} will not work: {error}", file=sys.stderr)
    return all(target.exists() for target, _, _ in MADE)


class BuildPy(build_py):
    """build_py, with what is C compiled first."""

    def run(self) -> None:
        build()
        super().run()


class BuildScripts(build_scripts):
    """build_scripts, with the command `splitlock` itself: compiled, so no text, or Python's script where it is not."""

    def copy_scripts(self) -> tuple[list[str], list[str]]:
        build()
        outputs, updated = super().copy_scripts()
        command = Path(self.build_dir) / "splitlock"
        shutil.copy(FRONT_BUILT if FRONT_BUILT.exists() else command.with_name("splitlock-python"), command)
        command.chmod(0o755)
        return [*outputs, str(command)], [*updated, str(command)]


class BdistWheel(bdist_wheel):
    """A wheel for one platform where it holds compiled files, for any Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = not build()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy, "build_scripts": BuildScripts, "bdist_wheel": BdistWheel})
