"""A QEMU as it is built without loadable modules: it exports no function that the plugin's detection calls."""

from __future__ import annotations

import shutil
from pathlib import Path

_NAMES = (
    "qemu_get_cpu", "x86_cpu_gdb_read_register", "x86_cpu_dump_state", "raise_exception_err_ra", "cpu_restore_state",
    "cpu_loop_exit_noexc", "in_code_gen_buffer", "cpu_x86_cpuid", "cpu_svm_has_intercept", "probe_access",
    "do_interrupt_x86_hardirq",
)  # fmt: skip


def unexported(qemu: str, place: Path) -> Path:
    """A copy of a QEMU in which the names of these functions are others, so that no symbol of theirs is found.

    `qemu`: Debian's, or a script of scripts/qemu.sh that runs one.
    """
    found = Path(str(shutil.which(qemu)))
    program = found
    script = (
        "#!/bin/sh\nexport QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu\n"
        f"exec '{found}' -L /usr/share/qemu -L /usr/share/seabios \"$@\"\n"
    )
    if found.read_bytes()[:2] == b"#!":
        script = found.read_text()
        program = found.parent / "usr" / "bin" / "qemu-system-x86_64"
    data = bytearray(program.read_bytes())
    for name in _NAMES:
        at = data.index(b"\0%s\0" % name.encode())  # in .dynstr, the first of the string tables
        data[at + 1] = ord("#")
    copy = place / "qemu-system-x86_64"
    copy.write_bytes(data)
    runner = place / "run"
    runner.write_text(script.replace(f"'{program}'", f"'{copy}'"))
    for path in (copy, runner):
        path.chmod(0o755)
    return runner
