"""What does the kernel's dump of an oops hold? Numbers and names, as linux/oops.py reads them from its lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Head(NamedTuple):
    """The first words of an oops by `#AC`.

    split  a kernel that knows of split locks (5.7 and later): `Split lock detected`. False: `alignment check`, which
           older kernels say, for whom `#AC` in kernel mode has no meaning
    number `[#N]`: the number of this oops since boot; None where the line with it is missing
    lost   the first line is missing: why the kernel stopped is not said, and `split` is a guess by the rest
    """

    split: bool
    number: int | None
    lost: bool = False


class Frame(NamedTuple):
    """A function and a place in it.

    symbol    as the kernel has it; an address (0x...) where no symbol is known
    offset    bytes from its start; None with an address
    size      bytes of the function, as kallsyms counts them
    module    empty: the kernel itself, or what its symbols do not tell
    build     the module's build-id, where the kernel prints it
    reliable  False: marked with `?`, an address found on the stack which may be left over from an earlier call
    context   which stack: TASK, IRQ, NMI, ...; empty where that is not said
    source    `file:line`, where scripts/decode_stacktrace.sh has put it in the offset's place
    """

    symbol: str
    offset: int | None
    size: int | None
    module: str = ""
    build: str = ""
    reliable: bool = True
    context: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = self.symbol if self.offset is None else f"{self.symbol}+{self.offset:#x}/{self.size or 0:#x}"
        return f"{where} [{self.module}]" if self.module else where


@dataclass(slots=True)
class Dump:
    """What one oops says. None and empty: the line is missing.

    bits       64, or 32 for a kernel of 32 bits
    cs         code segment; its lowest two bits are 0 in the kernel
    address    of the instruction; printed only where there is no symbol, or no code that could be read
    code       bytes around the instruction, `at`: where in them it begins; None: not marked
    unreadable the kernel could not read its own code there
    registers  by the kernel's names (RAX, R08, EFLAGS, CR2, ...); FS, GS: their bases
    taint      the letters; None: the line is missing
    modules    loaded ones, each with its own letters; `listed`: whether the list was there
    ended      the dump was read to its end; False: the log breaks off, or other lines took its place
    panic      why the whole machine stopped; None: it went on, as far as the log says
    mixed      lines of another dump stood within it, and were left out
    """

    head: Head
    bits: int = 64
    place: Frame | None = None
    cs: int | None = None
    address: int | None = None
    code: bytes = b""
    at: int | None = None
    unreadable: bool = False
    registers: dict[str, int] = field(default_factory=dict)
    cpu: int | None = None
    pid: int | None = None
    comm: str = ""
    taint: str | None = None
    release: str = ""
    version: str = ""
    hardware: str = ""
    work: str = ""
    frames: list[Frame] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    ended: bool = False
    panic: str | None = None
    mixed: bool = False
