"""What in a kernel image makes it a hypervisor, or lets it meddle with the processor: findings, not yet a verdict.

A byte pattern finds candidates in the executable sections; only the functions that hold one are decoded
(facts: 3 % of a kernel's code). A candidate becomes a finding when a decoder arrives at it:

  exact     on an instruction boundary of the decoding from its function's start, without anything
            undecodable before it; where no function is over it, of a sweep from the function before (or the section's
            start) that meets nothing undecodable and ends where the next function starts
  possible  reached by another decoding only: a sweep that is none of these, or from where a branch before it lands
            within the instruction over it

Raw matches that no decoding reaches are nothing. Relocations against `pv_ops` are candidates as well, and
what a module imports can be evidence by itself.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from itertools import islice
from typing import Final, Literal, NamedTuple

from iced_x86 import Decoder, FlowControl, Instruction

from splitlock._errors import ImageError
from splitlock.image.module import Code, KernelImage
from splitlock.modules import paravirt
from splitlock.modules.foreign import loads_foreign_code
from splitlock.x86.privileged import DEFAULT, FREQUENT, PATTERN, PATTERN_FREQUENT, classify, spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sized
    from mmap import mmap

    from splitlock.modules.paravirt import Operation

#: The import that says a hypervisor knows what to do with a guest's split locks (KVM's; facts: mainline since 5.7).
SLD_AWARE = "handle_guest_split_lock"

Certainty = Literal["exact", "possible"]
EXACT: Final = "exact"
POSSIBLE: Final = "possible"
_LONGEST = 15  # bytes an instruction can have
_FIELD = 4  # bytes of a relocated displacement
# Limits on what a file can make us keep. None of Debian's has 1,000 findings; 400 MB of code have 800,000 candidates.
_FINDINGS = 100_000
_CANDIDATES = 4_000_000  # in a section
_CALLS = {
    FlowControl.CALL, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_CALL, FlowControl.INDIRECT_BRANCH
}  # fmt: skip


class Finding(NamedTuple):
    """One thing found; None where there is no such thing."""

    kind: str  #: of x86.privileged.KINDS, or FOREIGN-CODE
    certainty: Certainty
    section: str | None  #: its name
    offset: int | None  #: in bytes from its start
    function: str | None  #: over it
    instruction: str | None  #: disassembly, Intel syntax
    evidence: str  #: "instruction", "relocation pv_ops+0xNN (operation)", "imports A, B"


class Scan(NamedTuple):
    """All that is found in one file."""

    name: str | None  #: as the kernel has it (.modinfo), None in other files
    modinfo: dict[str, list[str]]
    imports: frozenset[str]
    exports: frozenset[str]
    findings: list[Finding]
    signer: str | None  #: common name, "" when it is signed by a key without a name, None when unsigned
    sha256: str | None
    malformed: str | None  #: where `.text` cannot be decoded from its start to its end; None: it can, or nobody asked
    type: int  #: e_type: 1 module, 2 program, 3 shared object


def scan(data: bytes | mmap, kinds: frozenset[str] = DEFAULT, *, text: bool = False, digest: bool = True) -> Scan:
    """Look at one file's contents. ImageError when it is no x86-64 ELF file, or does not hold together.

    `kinds`: what to look for; `text`: decode all of `.text`, for `malformed`; `digest`: compute SHA-256
    (a third of the time; None without).
    """
    image = KernelImage(data)
    modinfo, imports = image.modinfo, image.imports
    findings = []
    layout, certain = None, False
    if paravirt.SYMBOL in imports:
        layout, certain = paravirt.layout_for(modinfo.get("vermagic", [""])[0])
    pattern = PATTERN_FREQUENT if kinds & FREQUENT else PATTERN
    for code in image.code:
        matches = islice(pattern.finditer(data, code.offset, code.offset + code.size), _CANDIDATES)
        candidates = [match.start() - code.offset for match in matches]
        if len(candidates) == _CANDIDATES:
            raise ImageError(f"more than {_CANDIDATES:,} places that may be privileged instructions: this is no code")
        hidden = paravirt.operations(code, layout) if layout else {}
        if paravirt.CR4_WRITER in imports:
            hidden |= paravirt.cr4_writes(code)
        if candidates or hidden:
            findings += _Section(code, kinds, hidden, certain).look([*candidates, *hidden])
            _limit(findings)
    foreign = loads_foreign_code(imports)
    if foreign:
        findings.append(Finding("FOREIGN-CODE", "possible", None, None, None, None, f"imports {', '.join(foreign)}"))
    signature = image.signature
    return Scan(
        name=modinfo["name"][0] if "name" in modinfo else None,
        modinfo=modinfo,
        imports=imports,
        exports=image.exports,
        findings=findings,
        signer=signature.signer if signature else None,
        sha256=hashlib.sha256(data).hexdigest() if digest else None,
        malformed=undecodable(image) if text else None,
        type=image.type,
    )


def undecodable(image: KernelImage) -> str | None:
    """Where a decoding of `.text` from its start first meets bytes that are no instruction, None when it never does."""
    for code in image.code:
        if code.section == ".text":
            for instruction in Decoder(64, code.data):
                if instruction.is_invalid:
                    return f"no instruction at .text+{instruction.ip:#x}"
    return None


def _limit(found: Sized) -> None:
    if len(found) > _FINDINGS:
        raise ImageError(f"more than {_FINDINGS:,} privileged instructions: this is no kernel code")


class _Section:
    """One executable section that holds candidates: byte patterns, and fields relocated against pv_ops."""

    def __init__(self, code: Code, kinds: frozenset[str], hidden: dict[int, Operation], certain: bool) -> None:
        self.code, self.kinds, self.hidden, self.certain = code, kinds, hidden, certain
        self.data = code.data
        self.starts = code.starts
        self.findings: dict[int, Finding] = {}
        self.targets: set[int] = set()  # of the branches met
        self.over: dict[int, int] = {}  # candidate that is none so far: start of the instruction over it

    def look(self, candidates: list[int]) -> list[Finding]:
        """The findings among candidate offsets, in the order of their addresses."""
        groups: dict[int, list[int]] = {}
        for at in sorted(candidates):
            groups.setdefault(bisect_right(self.starts, at) - 1, []).append(at)
        for index, group in groups.items():
            start = self.starts[index] if index >= 0 else 0
            over = [at for at in group if self.code.covered(at)]
            missed = self._decode(start, over, EXACT)
            gap = group[len(over) :]
            if gap:
                missed += self._decode(start, gap, EXACT if self._sound(start, index + 1) else POSSIBLE)
            if missed and index >= 0:
                missed = self._decode(self.starts[index - 1] if index else 0, missed, POSSIBLE, joins=start)
            if missed:
                self._follow(missed)
        return [self.findings[at] for at in sorted(self.findings)]

    def _sound(self, start: int, following: int) -> bool:
        """Whether a gap between functions decodes as code, from the function before it right to the next one.

        Where no function is known at all there is nothing to check a sweep against.
        """
        if not self.starts:
            return True
        end = self.starts[following] if following < len(self.starts) else self.code.size
        return all(Decoder(64, self.data[start:end]))

    def _decode(self, start: int, wanted: list[int], certainty: Certainty, joins: int = -1) -> list[int]:
        """Decode from `start` until past the last of the sorted offsets; note findings, return offsets without one.

        Stops where an instruction starts at `joins`: from there on all has been decoded before.
        """
        if not wanted or start == joins:
            return wanted
        decoder = Decoder(64, self.data[start : wanted[-1] + _LONGEST], ip=start)
        missed, waiting = [], iter(wanted)
        at = next(waiting)
        for instruction in decoder:
            behind, target = instruction.next_ip, instruction.near_branch_target
            if target:
                self.targets.add(target)
            if not instruction:
                certainty = POSSIBLE  # nothing vouches for the way on: by a byte, as objdump goes on
                behind = decoder.ip = instruction.ip + 1
                decoder.position = behind - start
            if behind > joins >= 0 and instruction.ip == joins:
                return wanted
            while at < behind:
                if at < instruction.ip or not self._note(instruction, at, certainty):
                    missed.append(at)
                    self.over.setdefault(at, instruction.ip)
                following = next(waiting, None)
                if following is None:
                    return missed
                at = following
        return [*missed, at, *waiting]

    def _follow(self, missed: list[int]) -> None:
        """Decode from where a branch met on the way lands within the instruction over a candidate."""
        for at in missed:
            for target in range(self.over.get(at, at) + 1, at + 1):
                if target in self.targets:
                    self._decode(target, [at], POSSIBLE)

    def _note(self, instruction: Instruction, at: int, certainty: Certainty) -> bool:
        """Whether the instruction over a candidate is a finding; noted if it is, and of a kind that is wanted."""
        operation = self.hidden.get(at)
        if operation is None:
            kind, evidence = classify(instruction), "instruction"
        elif instruction.next_ip != at + _FIELD or not instruction:
            return False
        else:
            kind, evidence = operation.kind, operation.evidence
            certain = self.certain or operation.operand == paravirt.CR4_WRITER
            if not certain or instruction.flow_control not in _CALLS:
                certainty = POSSIBLE  # a guess at the layout of pv_ops; or the address is only taken
        if kind is None:
            return False
        if kind in self.kinds:
            ip = instruction.ip
            _limit(self.findings)
            function = self.code.image.function(self.code, ip)
            text = spell(instruction, operation.operand if operation else None)
            self.findings.setdefault(ip, Finding(kind, certainty, self.code.section, ip, function, text, evidence))
        return True
