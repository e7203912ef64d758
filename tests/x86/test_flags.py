"""Whether flags live behind a locked instruction: snippets judged by hand, libraries by a data-flow analysis."""

from __future__ import annotations

from pathlib import Path

import pytest
from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits
from x86.building import LIBC, LIBSTDCXX, assemble, run, symbols

from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.x86.flags import STATUS, flags_needed
from splitlock.x86.locked import split_size

# @ stands for a label at the instruction that is asked about
XCHG = "@: xchg [rdi], eax"  # changes no flag
INC = "@: lock inc dword ptr [rdi]"  # all but CF
CMPXCHG = "@: lock cmpxchg [rdi], edx"  # all
KILL = "xor ecx, ecx; ret"  # overwrites all, so that the `ret` behind it reads none

# name: (it, what follows it, whether flags must survive up to it)
SNIPPETS = {
    # straight on
    "cmp-kills": (XCHG, f"cmp eax, 1; jne 1f; {KILL}; 1: {KILL}", False),
    "jcc-reads": (XCHG, f"je 1f; {KILL}; 1: {KILL}", True),
    "mov-between": (XCHG, f"mov eax, 1; lea rdx, [rdi+rax]; jc 1f; {KILL}; 1: {KILL}", True),
    "mov-then-kill": (XCHG, f"mov eax, 1; lea rdx, [rdi+rax]; {KILL}", False),
    "setcc-reads": (XCHG, f"setb al; {KILL}", True),
    "cmov-reads": (XCHG, f"cmovs eax, edx; {KILL}", True),
    "pushf-reads": (XCHG, f"pushfq; {KILL}", True),
    "lahf-reads": (XCHG, f"lahf; {KILL}", True),
    "cmc-reads": (XCHG, f"cmc; {KILL}", True),
    "rcl-reads": (XCHG, f"rcl edx, 1; {KILL}", True),
    "adc-reads": (XCHG, f"adc edx, 1; {KILL}", True),
    "adox-reads-overflow": (XCHG, f"adox edx, ecx; {KILL}", True),
    "popf-kills": (XCHG, "popfq; jc 1f; xor ecx, ecx; ret; 1: xor ecx, ecx; ret", False),
    "shlx-changes-none": (XCHG, f"shlx eax, edx, ecx; jc 1f; {KILL}; 1: {KILL}", True),
    "stc-leaves-zero": (XCHG, f"stc; je 1f; {KILL}; 1: {KILL}", True),
    "stc-sets-carry": (XCHG, f"stc; jc 1f; {KILL}; 1: {KILL}", False),
    "sahf-leaves-overflow": (XCHG, f"sahf; jo 1f; {KILL}; 1: {KILL}", True),
    "sahf-sets-the-others": (XCHG, f"sahf; jbe 1f; {KILL}; 1: {KILL}", False),
    "bt-leaves-zero": (XCHG, f"bt eax, ecx; je 1f; {KILL}; 1: {KILL}", True),
    # what the instruction itself does
    "adc-itself": ("@: lock adc dword ptr [rdi], 0", KILL, True),
    "sbb-itself": ("@: lock sbb [rdi], rax", KILL, True),
    "inc-then-jc": (INC, f"jc 1f; {KILL}; 1: {KILL}", True),
    "inc-then-adc": (INC, f"adc eax, 0; {KILL}", True),
    "inc-then-setbe": (INC, f"setbe al; {KILL}", True),
    "dec-then-je": ("@: lock dec dword ptr [rdi]", f"je 1f; {KILL}; 1: {KILL}", False),
    "dec-then-add": (
        "@: lock dec dword ptr [rdi]",
        "add eax, eax; jc 1f; xor ecx, ecx; ret; 1: xor ecx, ecx; ret",
        False,
    ),
    "cmpxchg-then-jcc": (CMPXCHG, "jne 1f; ret; 1: ret", False),
    "xadd-then-anything": ("@: lock xadd [rdi], eax", "jo 1f; jc 1f; ret; 1: ret", False),
    "not-then-jcc": ("@: lock not dword ptr [rdi]", f"js 1f; {KILL}; 1: {KILL}", True),
    "not-then-kill": ("@: lock not dword ptr [rdi]", KILL, False),
    "neg-then-jc": ("@: lock neg dword ptr [rdi]", "jc 1f; ret; 1: ret", False),
    "bts-then-jc": ("@: lock bts dword ptr [rdi], 3", f"jc 1f; {KILL}; 1: {KILL}", False),
    "bts-then-je": ("@: lock bts dword ptr [rdi], 3", f"je 1f; {KILL}; 1: {KILL}", True),
    "cmpxchg8b-then-je": ("@: lock cmpxchg8b [rdi]", f"je 1f; {KILL}; 1: {KILL}", False),
    "cmpxchg8b-then-jc": ("@: lock cmpxchg8b [rdi]", f"jc 1f; {KILL}; 1: {KILL}", True),
    # shifts: by a count of 0 they change nothing
    "shl-cl-then-jc": (XCHG, f"shl edx, cl; jc 1f; {KILL}; 1: {KILL}", True),
    "shl-cl-then-kill": (XCHG, f"shl edx, cl; {KILL}", False),
    "shr-mem-cl-then-jc": (XCHG, f"shr dword ptr [rdx], cl; jc 1f; {KILL}; 1: {KILL}", True),
    "shld-cl-then-jc": (XCHG, f"shld edx, eax, cl; jc 1f; {KILL}; 1: {KILL}", True),
    "shl-1-then-jc": (XCHG, f"shl edx, 1; jc 1f; {KILL}; 1: {KILL}", False),
    "shl-3-then-je": (XCHG, f"shl edx, 3; je 1f; {KILL}; 1: {KILL}", False),
    "shl-0-then-jc": (XCHG, f".byte 0xc1, 0xe2, 0; jc 1f; {KILL}; 1: {KILL}", True),
    "shl-32-then-jc": (XCHG, f".byte 0xc1, 0xe2, 32; jc 1f; {KILL}; 1: {KILL}", True),
    "shl-64-bit-by-64": (XCHG, f".byte 0x48, 0xc1, 0xe2, 64; jc 1f; {KILL}; 1: {KILL}", True),
    "rol-leaves-zero": (XCHG, f"rol edx, 1; je 1f; {KILL}; 1: {KILL}", True),
    "rol-sets-carry": (XCHG, f"rol edx, 1; jc 1f; {KILL}; 1: {KILL}", False),
    # repeated string instructions: a count of 0 changes nothing
    "repe-cmps-then-je": (XCHG, f"repe cmpsb; je 1f; {KILL}; 1: {KILL}", True),
    "repne-scas-then-je": (XCHG, f"repne scasb; je 1f; {KILL}; 1: {KILL}", True),
    "cmps-then-je": (XCHG, f"cmpsb; je 1f; {KILL}; 1: {KILL}", False),
    "rep-stos-changes-none": (XCHG, f"rep stosd; {KILL}", False),
    # paths
    "jump-then-read": (XCHG, f"jmp 2f; {KILL}; 2: jp 1f; {KILL}; 1: {KILL}", True),
    "jump-then-kill": (XCHG, f"jmp 2f; jc 2f; 2: {KILL}", False),
    "one-path-reads": (XCHG, f"jrcxz 1f; {KILL}; 1: js 2f; {KILL}; 2: {KILL}", True),
    "the-other-path-reads": (XCHG, f"jrcxz 1f; js 1f; {KILL}; 1: {KILL}", True),
    "no-path-reads": (XCHG, f"jrcxz 1f; test eax, eax; jne 1f; {KILL}; 1: {KILL}", False),
    "loop-then-read": (XCHG, f"1: dec edx; jnz 1b; jc 2f; {KILL}; 2: {KILL}", True),
    "loop-then-kill": (XCHG, f"1: dec edx; jnz 1b; {KILL}", False),
    "loop-back-to-itself": (f"9: {XCHG}", f"test eax, eax; jne 9b; {KILL}", False),
    "loop-back-then-read": (f"9: jc 8f; {XCHG}", f"mov eax, 1; jmp 9b; 8: {KILL}", True),
    "loop-one-way-reads": (XCHG, f"1: loop 2f; {KILL}; 2: mov eax, edx; jrcxz 1b; jc 3f; {KILL}; 3: {KILL}", True),
    "endless": (XCHG, "1: pause; jmp 1b", False),
    "parts-killed-apart": (XCHG, f"jrcxz 1f; stc; jmp 2f; 1: mov eax, 2; 2: jc 3f; {KILL}; 3: {KILL}", True),
    "second-visit-wants-more": (INC, f"jrcxz 1f; mov eax, 1; 2: je 3f; {KILL}; 1: stc; jmp 2b; 3: {KILL}", False),
    # where the search must give up
    "ret": (XCHG, "ret", True),
    "call": (XCHG, f"call 1f; 1: {KILL}", True),
    "call-register": (XCHG, f"call rax; {KILL}", True),
    "syscall": (XCHG, f"syscall; {KILL}", True),
    "int3": (XCHG, f"int3; {KILL}", True),
    "ud2": (XCHG, "ud2", True),
    "jump-register": (XCHG, "jmp rax", True),
    "jump-table": (XCHG, "jmp [rax*8+16]", True),
    "jump-out": (XCHG, "jmp elsewhere", True),
    "branch-out": (XCHG, f"jrcxz . + 100; {KILL}", True),
    "falls-off-the-end": (XCHG, "mov eax, 1", True),
    "nothing-behind": (XCHG, "", True),
    "too-far": (XCHG, f".fill 60, 1, 0x90; {KILL}", True),
    "not-too-far": (XCHG, f".fill 40, 1, 0x90; {KILL}", False),
    # the end does not matter when nothing is wanted any more
    "cmp-then-ret": (XCHG, "cmp eax, 1; ret", False),
    "cmpxchg-then-ret": (CMPXCHG, "ret", False),
    "inc-then-ret": (INC, "ret", True),
}


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Instruction], int]]:
    """The instructions of each snippet, and which of them the question is about."""
    source = ["elsewhere:"]
    for number, (site, behind, _) in enumerate(SNIPPETS.values()):
        source += [f"begin{number}:", site.replace("@", f"site{number}"), behind, f"end{number}: ud2"]
    directory = tmp_path_factory.mktemp("snippets")
    made = assemble(directory, "\n".join(source))
    run("objcopy", "-O", "binary", "-j", ".text", made, directory / "text")
    code, labels = (directory / "text").read_bytes(), symbols(made)
    found = {}
    for number, name in enumerate(SNIPPETS):
        start, end = labels[f"begin{number}"], labels[f"end{number}"]
        instructions = list(Decoder(64, code[start:end], ip=start))
        (at,) = (i for i, x in enumerate(instructions) if x.ip == labels[f"site{number}"])
        assert split_size(instructions[at]), name
        found[name] = instructions, at
    return found


@pytest.mark.parametrize("name", SNIPPETS)
def test_flags_needed(snippets: dict[str, tuple[list[Instruction], int]], name: str) -> None:
    instructions, at = snippets[name]
    index = {x.ip: i for i, x in enumerate(instructions)}
    assert flags_needed(instructions, at, index) is SNIPPETS[name][2]


# -- the same question answered the classical way ------------------------------------------------

_SHIFTS = {"SHL", "SHR", "SAR", "SAL", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD"}
_MNEMONICS = {getattr(Mnemonic, name) for name in _SHIFTS}


def _surely_changed(x: Instruction) -> int:
    if x.mnemonic in _MNEMONICS and any(
        x.op_kind(i) == OpKind.REGISTER and x.op_register(i) == Register.CL for i in range(1, x.op_count)
    ):
        return 0
    if x.has_rep_prefix or x.has_repne_prefix:
        return 0
    return x.rflags_written | x.rflags_cleared | x.rflags_set | x.rflags_undefined


def live_before(instructions: list[Instruction]) -> list[int]:
    """Flags live before each instruction: backward data flow to a fixed point, all live wherever control leaves."""
    status = RflagsBits.OF | RflagsBits.SF | RflagsBits.ZF | RflagsBits.AF | RflagsBits.CF | RflagsBits.PF
    index = {x.ip: i for i, x in enumerate(instructions)}
    count = len(instructions)
    successors: list[list[int]] = []
    for i, x in enumerate(instructions):
        flow, following = x.flow_control, i + 1 if i + 1 < count else -1
        if flow == FlowControl.NEXT:
            successors.append([following])
        elif flow == FlowControl.CONDITIONAL_BRANCH:
            successors.append([following, index.get(x.near_branch_target, -1)])
        elif flow == FlowControl.UNCONDITIONAL_BRANCH:
            successors.append([index.get(x.near_branch_target, -1)])
        else:
            successors.append([-1])
    reads = [x.rflags_read & status for x in instructions]
    keeps = [status & ~_surely_changed(x) for x in instructions]
    live = [0] * count + [status]  # the last stands for -1
    changed = True
    while changed:
        changed = False
        for i in range(count - 1, -1, -1):
            after = 0
            for successor in successors[i]:
                after |= live[successor]
            before = reads[i] | after & keeps[i]
            if before != live[i]:
                live[i] = before
                changed = True
    return live[:-1]


@pytest.mark.parametrize("path", [LIBC, LIBSTDCXX], ids=lambda path: path.name)
def test_flags_are_never_lost_where_data_flow_says_they_live(path: Path) -> None:
    elf = Elf(path.read_bytes())
    asked = cautious = 0
    for start, end in function_ranges(elf):
        instructions = list(Decoder(64, elf.read(start, end - start), ip=start))
        sites = [i for i, x in enumerate(instructions) if split_size(x)]
        if not sites:
            continue
        index = {x.ip: i for i, x in enumerate(instructions)}
        live = live_before(instructions)
        for at in sites:
            needed = flags_needed(instructions, at, index)
            assert needed or not live[at], f"{instructions[at].ip:#x}: {instructions[at]}"
            asked += 1
            cautious += needed and not live[at]
    assert asked > 500
    assert cautious < asked / 20


def test_status_is_the_six_arithmetic_flags() -> None:
    assert sum(getattr(RflagsBits, name) for name in ("OF", "SF", "ZF", "AF", "CF", "PF")) == STATUS
