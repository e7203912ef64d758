"""Images of the probe with a fault of the test's linked around trial(): as if the hypervisor did not survive a row."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from modules.debian import ROOT

_RESET = """
#include "probe.h"
void __real_trial(void);
static const struct { uint16_t limit; uint32_t base; } __attribute__((packed)) nowhere = {0, 0};
void __wrap_trial(void) {
    if (trial_op == OP_LOCK && (trial_operand & 63) == 62 && trial_mode == LONG && trial_cpl == 3)
        __asm__ volatile("lidt %0; int3" ::"m"(nowhere)); /* a triple fault */
    __real_trial();
}
"""


def resets(directory: Path) -> Path:
    """An image whose machine is reset by each split lock in long mode at CPL 3."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    source = directory / "reset.c"
    source.write_text(_RESET)
    target = directory / "probe.bin"
    command = [*setup["BARE"][:-1], "-I.", "-Wl,--wrap=trial", str(source), "-o", str(target)]
    subprocess.run(command, cwd=setup["PROBE"], check=True)
    return target
