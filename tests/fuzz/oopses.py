"""Dumps of oopses for the fuzzer: those of real kernels, damaged; and causes. The first byte says which."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
from fuzz.mutate import damage_text

from splitlock._errors import SplitlockError
from splitlock.host import causes
from splitlock.host.oops.explanation import explain
from splitlock.host.oops.files import Files
from splitlock.linux.oops import Collector, head
from splitlock.report.lines import page
from splitlock.report.oops import Oops
from splitlock.report.oops_text import cause_lines, oops_lines
from splitlock.x86.lines import crosses

_DATA = Path(__file__).parents[1] / "linux" / "data"
_WORDS = (
    b"\r", b"\0", b"\xff", b"\x1b[31m", b"\\x0a", b"#012", b"[ T12]", b"<IRQ>", b"</TASK>", b"? ", b"<f0>", b"<66>",
    b"f0 0f b1 0d 00 00 00 00 ", b"RIP: 0010:", b"EIP: ", b"EAX: 00000001", b"Code: ", b"RAX: ", b"GS:0000000000000001",
    b"0x", b"+0x1/0x0", b"+0xffffffffffffffff/0xffffffffffffffff", b"[mod 0123abcd]", b"CPU: 1 PID: 2 Comm: ",
    b"Tainted: P", b"Call Trace:", b"---[ end trace ", b"Kernel panic - not syncing: ", b"Modules linked in: ",
    b"(OE+)", b"f" * 17, b"a" * 3000, b"Oops: Split lock detected\n: 0000 [#1] SMP\n", b"alignment check: 0000 [#9]\n",
    b"(a/b.c:1)", b"9" * 5000, b" " * 3000,
)  # fmt: skip


def seeds() -> list[bytes]:
    """All dumps that the tests have, and the causes that we know."""
    return [b"\0" + path.read_bytes() for path in sorted(_DATA.glob("*.txt"))] + [b"\x80" + causes.SHIPPED.read_bytes()]


def mutate(raw: bytes, chance: Random) -> bytes:
    """One of them, damaged."""
    return damage_text(raw, chance, _WORDS)


def check(raw: bytes) -> None:
    """Explained and shown whatever it is; and it is a split lock where we say so."""
    known = causes.Causes()
    if raw[:1] >= b"\x80":
        _check_causes(raw[1:])
        return
    found: list[Collector] = []
    for line in raw[1:].decode("utf-8", "replace").splitlines():
        if head(line):
            found.append(Collector(line))
        elif found:
            found[-1].feed(line)
    files = Files(root=None)
    for collector in found:
        oops = explain(collector.dump, files)
        _check_oops(oops)
        for cause in known.of_oops(oops):
            assert cause_lines(cause)
        assert msgspec.json.decode(msgspec.json.encode(oops), type=Oops) == oops


def _check_oops(oops: Oops) -> None:
    assert oops.says
    assert oops.means
    if oops.operand is not None and oops.operand.address is not None:
        assert (oops.fits == "yes") == crosses(int(oops.operand.address, 16), oops.operand.size)
    for verbose in (False, True):
        text = page([oops.says, *oops_lines(oops, verbose=verbose)])
        assert text.replace("\n", "").isprintable()


def _check_causes(raw: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(raw.replace(b'name = "', b'name = "x-'))
        file.flush()
        try:
            causes.Causes([file.name])
        except SplitlockError as error:
            said = error.exit_code, str(error).count("\n")
        else:
            return
    assert said == (2, 0)
