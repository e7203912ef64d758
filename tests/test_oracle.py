"""The oracle counts exactly: programs whose split locks are known by construction, run under QEMU alone.

The programs below do thousands of split locks. Never run them natively.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from oracle import OracleError, build_plugin, qemu_run, qemu_split_locks

# Name → (operand size in bytes, the locked instruction). The operand is (%rdi); rdi, r10, r11 and rbx are set up.
KINDS = {
    f"{name}{size}": (size, f"{prefix}{name}{suffix} {operands}")
    for size, suffix, a in ((2, "w", "%ax"), (4, "l", "%eax"), (8, "q", "%rax"))
    for prefix, name, operands in (
        *(("lock ", op, f"{a}, (%rdi)") for op in ("add", "adc", "sub", "sbb", "and", "or", "xor")),
        *(("lock ", op, f"{a}, (%rdi)") for op in ("bts", "btr", "btc", "xadd", "cmpxchg")),
        *(("lock ", op, "(%rdi)") for op in ("inc", "dec", "not", "neg")),
        ("", "xchg", f"{a}, (%rdi)"),
    )
} | {
    "add_imm8": (4, "lock addl $1, (%rdi)"),
    "add_imm32": (8, "lock addq $0xf0f0f0, (%rdi)"),
    "and_imm16": (2, "lock andw $0x1234, (%rdi)"),
    "bts_imm": (8, "lock btsq $33, (%rdi)"),
    "btr_imm": (2, "lock btrw $3, (%rdi)"),
    "btc_imm": (4, "lock btcl $3, (%rdi)"),
    "rex_regs": (4, "lock xaddl %r8d, (%r10)"),
    "sib_disp": (8, "lock incq 64(%r10,%r11,4)"),  # r10 + 4 * -16 + 64
    "lock_xchg": (4, "lock xchgl %eax, (%rdi)"),
    "repne_xchg": (8, "repne; xchgq %rax, (%rdi)"),
    "prefixes": (2, ".byte 0x2e, 0xf0, 0x66, 0x01, 0x07"),  # cs lock data16 add %eax, (%rdi)
    "bts_far": (4, "movl $128, %eax; site_bts_far: lock btsl %eax, -16(%rdi)"),  # bit 128 is 16 bytes further
    "gs_base": (4, "lock incl %gs:(%rdi)"),
    "cmpxchg8b": (8, "lock cmpxchg8b (%rdi)"),
    "cmpxchg8b_66": (8, ".byte 0x66; lock cmpxchg8b (%rdi)"),
    "page_crosser": (4, ".balign 4096; .skip 4093, 0x90; site_page_crosser: lock addl $0x11223344, (%rdi)"),
}

# The same at the end of a line, but not locked or not possible to split; none may count.
INNOCENT = {
    "plain_add": "addq %rax, (%rdi)",
    "xchg_regs": "xchgq %rax, %rdx",
    "lock_in_data": "movabsq $0xf00701f0070187f0, %rax",
    "byte_add": "lock addb %al, (%rdi)",
    "byte_xchg": "xchgb %al, (%rdi)",
    "cmpxchg16b": "movq %rdi, %r9; andq $-16, %r9; lock cmpxchg16b (%r9)",
    "bts_elsewhere": "movl $128, %eax; lock btsl %eax, (%rdi)",  # bit 128 of rdi is 16 bytes further
    "fxsave": "fxsave 16+room(%rip)",
    "fnsave": "fnsave 6+room(%rip)",
}


def function(name: str, text: str) -> str:
    """Assembly of `NAME(operand, times)`, which executes `text` so often and has the symbol site_NAME before it."""
    label = "" if f"site_{name}:" in text else f"site_{name}: "
    return f"""
        .globl {name}, site_{name}
        .type {name}, @function
        {name}: pushq %rbx
        movq %rsi, %rcx
        movq %rdi, %r10
        movq $-16, %r11
        1: movl $1, %eax
        xorl %edx, %edx
        pushq %rcx
        {label}{text}
        popq %rcx
        decq %rcx
        jnz 1b
        popq %rbx
        ret
        .size {name}, . - {name}
    """


def calls(names: list[str], where: str, times: int) -> str:
    """C statements that call each of the functions on the operand `where` so often."""
    return "\n".join(f"{name}({where}, {times});" for name in names)


DECLARATIONS = "".join(f"void {name}(void *, long);\n" for name in (*KINDS, *INNOCENT))
ASSEMBLY = (
    ".text\n"
    + "".join(function(name, text) for name, (_, text) in KINDS.items())
    + "".join(function(name, text) for name, text in INNOCENT.items())
    + '.bss\n.balign 64\nroom: .skip 640\n.section .note.GNU-stack,"",@progbits\n'
)
# Each kind N times across a line (its own N, so that no two can be mixed up), 5 times up to the line's end, 5 times in
# its middle. The last byte of a line at `line + 63`.
TIMES = {name: 10 + index for index, name in enumerate(KINDS)}
MAIN = (
    "#include <stdlib.h>\n"
    + DECLARATIONS
    + "_Alignas(4096) static char memory[8192];\nint main(void) { char *line = memory + 1024;\n"
    + "".join(
        calls([name], "line + 63", times) + calls([name], f"line + 64 - {KINDS[name][0]}", 5) + calls([name], "line", 5)
        for name, times in TIMES.items()
    )
    + calls(list(INNOCENT), "line + 63", 7)
    + "return 3; }\n"
)


def compile_(directory: Path, name: str, sources: dict[str, str], *flags: str) -> Path:
    """Compile `sources` (file name → text) to `directory`/`name`; gives its path."""
    paths = []
    for source, text in sources.items():
        (directory / source).write_text(text)
        paths.append(directory / source)
    program = directory / name
    subprocess.run(["gcc", "-O1", "-o", program, *paths, *flags], check=True)
    return program


def addresses(image: Path) -> dict[str, int]:
    """Symbol → ELF virtual address, by nm."""
    words = (line.split() for line in subprocess.check_output(["nm", image], text=True).splitlines())
    return {line[2]: int(line[0], 16) for line in words if len(line) == 3}


def by_name(found: dict[tuple[Path | None, int | None], int], image: Path) -> dict[str, int]:
    """Hits by site name; fails when one lies in another image or at no symbol."""
    names = {value: name for name, value in addresses(image).items() if name.startswith("site_")}
    result = {}
    for (path, vaddr), hits in found.items():
        assert path == image.resolve()
        assert vaddr is not None
        result[names[vaddr].removeprefix("site_")] = hits
    return result


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("oracle") / "oracle_plugin.so")


@pytest.mark.parametrize("link", ["-static", "-static-pie", "-pie", "-no-pie"])
def test_every_kind(tmp_path: Path, plugin: Path, link: str) -> None:
    pic = "-fPIE" if link.endswith("pie") and link != "-no-pie" else "-fno-pie"
    program = compile_(tmp_path, "kinds", {"main.c": MAIN, "kinds.s": ASSEMBLY}, link, pic)
    run = qemu_run([str(program)], plugin)
    assert run.returncode == 3, run.stderr
    assert by_name(run.by_place(), program) == TIMES
    names = {value: name for name, value in addresses(program).items()}
    sizes = {names[site.vaddr].removeprefix("site_"): site.size for site in run.sites if site.vaddr}
    assert sizes == {name: size for name, (size, _) in KINDS.items()}

    hits, maps = qemu_split_locks([str(program)], plugin)
    assert sorted(hits.values()) == sorted(TIMES.values())
    assert set(maps) == set(hits)
    assert len({pc - (vaddr or 0) for pc, (_, vaddr) in maps.items()}) == 1  # one load bias for all


def test_count_all(tmp_path: Path, plugin: Path) -> None:
    # No libc, so that every locked instruction is one of ours: 100 split, 100 aligned, 50 bytes, 30 pairs, 20 implicit.
    source = """
        .globl _start
        _start: leaq room(%rip), %rdi
        movl $50, %ecx
        1: lock incl 62(%rdi)
        lock decq 62(%rdi)
        lock incl (%rdi)
        lock decq 8(%rdi)
        lock notb 1(%rdi)
        decl %ecx
        jnz 1b
        movl $30, %ebp
        2: lock cmpxchg16b 64(%rdi)
        decl %ebp
        jnz 2b
        movl $20, %ebp
        3: xchgl %eax, (%rdi)
        decl %ebp
        jnz 3b
        movl $60, %eax
        xorl %edi, %edi
        syscall
        .bss
        .balign 64
        room: .skip 128
    """
    program = compile_(tmp_path, "bare", {"bare.s": source}, "-nostdlib", "-static")
    run = qemu_run([str(program)], plugin, count_all=True)
    assert (run.hits, run.executed) == (100, 300)
    assert qemu_run([str(program)], plugin).executed is None


def test_32_bit(tmp_path: Path, plugin: Path) -> None:
    # 40 to 4f are inc and dec here, not REX; 82 is an alias of 80, on bytes.
    source = """
        .code32
        .globl _start, site_a, site_b, site_c
        _start: movl $room, %edi
        movl $9, %esi
        1: xorl %ecx, %ecx
        site_a: lock incl 61(%edi)
        .byte 0x48
        site_b: lock xaddw %ax, 63(%edi)
        .byte 0xf0, 0x82, 0x47, 0x3f, 0x01
        site_c: lock cmpxchg8b 60(%edi)
        decl %esi
        jnz 1b
        movl $1, %eax
        xorl %ebx, %ebx
        int $0x80
        .bss
        .balign 64
        room: .skip 128
    """
    program = compile_(tmp_path, "bare32", {"bare.s": source}, "-m32", "-nostdlib", "-static", "-no-pie")
    assert by_name(qemu_run([str(program)], plugin).by_place(), program) == {"a": 9, "b": 9, "c": 9}


def test_two_threads(tmp_path: Path, plugin: Path) -> None:
    # With two threads QEMU takes other paths: aligned operands are truly atomic, split ones are redone one by one.
    names = list(TIMES)
    source = (
        "#include <pthread.h>\n" + DECLARATIONS + "_Alignas(4096) static char memory[8192];\n"
        "static void *work(void *line) {" + calls(names, "(char *)line + 63", 200) + calls(names, "line", 100) + "\n"
        "for (int i = 0; i < 50; i++) {" + calls([*INNOCENT, "page_crosser"], "(char *)line + 63", 2) + "}\n"
        "return 0; }\n"
        "int main(void) { pthread_t one, two;\n"
        "pthread_create(&one, 0, work, memory + 1024); pthread_create(&two, 0, work, memory + 1024);\n"
        "pthread_join(one, 0); pthread_join(two, 0); return 0; }\n"
    )
    program = compile_(tmp_path, "threads", {"main.c": source, "kinds.s": ASSEMBLY}, "-pthread")
    run = qemu_run([str(program)], plugin)
    assert run.returncode == 0, run.stderr
    assert by_name(run.by_place(), program) == dict.fromkeys(names, 400) | {"page_crosser": 600}


def test_contended_neg_counts_once(tmp_path: Path, plugin: Path) -> None:
    # QEMU does an aligned `lock neg` as a loop around a compare-exchange (of a value that is not 0), each with a store.
    source = """
        #include <pthread.h>
        void neg4(void *, long);
        _Alignas(64) static char memory[192] = {1};
        static void *work(void *unused) { neg4(memory, 300000); return unused; }
        int main(void) {
            pthread_t one, two;
            pthread_create(&one, 0, work, 0); pthread_create(&two, 0, work, 0);
            pthread_join(one, 0); pthread_join(two, 0);
            return 0;
        }
    """
    text = ".text\n" + function("neg4", KINDS["neg4"][1])
    run = qemu_run([str(compile_(tmp_path, "neg", {"main.c": source, "neg4.s": text}))], plugin, count_all=True)
    assert run.executed is not None
    assert 600000 <= run.executed < 600000 + 1000  # and some of libc's own


def test_dlopened_libraries(tmp_path: Path, plugin: Path) -> None:
    # Two libraries of one shape, opened one after the other, so that the second may well lie where the first one lay.
    libraries = []
    for name in ("first", "second"):
        text = ".text\n" + function("work", KINDS["xadd8"][1]) + '.section .note.GNU-stack,"",@progbits\n'
        libraries.append(compile_(tmp_path, f"lib{name}, odd.so", {f"{name}.s": text}, "-shared"))
    source = """
        #include <dlfcn.h>
        void xadd8(void *, long);
        _Alignas(64) static char memory[192];
        int main(int argc, char **argv) {
            for (int i = 1; i < argc; i++) {
                void *library = dlopen(argv[i], RTLD_NOW);
                if (!library) return 1;
                ((void (*)(void *, long))dlsym(library, "work"))(memory + 60, 100 * i);
                dlclose(library);
            }
            xadd8(memory + 60, 7);
            return 0;
        }
    """
    text = ".text\n" + function("xadd8", KINDS["xadd8"][1])
    program = compile_(tmp_path, "opener", {"main.c": source, "xadd8.s": text})
    run = qemu_run([str(program), *map(str, libraries)], plugin)
    assert run.returncode == 0, run.stderr
    assert run.by_place() == {
        (libraries[0].resolve(), addresses(libraries[0])["site_work"]): 100,
        (libraries[1].resolve(), addresses(libraries[1])["site_work"]): 200,
        (program.resolve(), addresses(program)["site_xadd8"]): 7,
    }


def test_forked_children_count_and_execed_ones_do_not(tmp_path: Path, plugin: Path) -> None:
    # Parent 5 before and 7 after the forks. Each of two children 11; one of them tries an exec that fails, then one
    # that does not. A grandchild 13.
    source = """
        #include <sys/wait.h>
        #include <unistd.h>
        void xadd8(void *, long);
        _Alignas(64) static char memory[192];
        int main(void) {
            xadd8(memory + 60, 5);
            for (int i = 0; i < 2; i++) {
                pid_t child = fork();
                if (child == 0) {
                    xadd8(memory + 60, 11);
                    if (i == 0) {
                        execl("/nonexistent", "nonexistent", (char *)0);
                        pid_t grandchild = fork();
                        if (grandchild == 0) {
                            xadd8(memory + 60, 13);
                            _exit(0);
                        }
                        waitpid(grandchild, 0, 0);
                        execl("/bin/true", "true", (char *)0);
                    }
                    _exit(0);
                }
                waitpid(child, 0, 0);
            }
            xadd8(memory + 60, 7);
            return 0;
        }
    """
    text = ".text\n" + function("xadd8", KINDS["xadd8"][1])
    program = compile_(tmp_path, "forks", {"main.c": source, "xadd8.s": text})
    run = qemu_run([str(program)], plugin)
    assert run.returncode == 0, run.stderr
    assert by_name(run.by_place(), program) == {"xadd8": 5 + 2 * 11 + 13 + 7}


def test_jit_code_lies_in_no_image(tmp_path: Path, plugin: Path) -> None:
    source = """
        #include <string.h>
        #include <sys/mman.h>
        _Alignas(64) static char memory[192];
        int main(void) {
            char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memcpy(code, "\\xf0\\xff\\x07\\xc3", 4);
            for (int i = 0; i < 21; i++) ((void (*)(void *))code)(memory + 61);
            memcpy(code, "\\x90\\xf0\\x48\\xff\\x0f\\xc3", 6);
            for (int i = 0; i < 22; i++) ((void (*)(void *))code)(memory + 61);
            return 0;
        }
    """
    program = compile_(tmp_path, "jit", {"main.c": source})
    run = qemu_run([str(program)], plugin)
    assert [(site.hits, site.size, site.image, site.vaddr) for site in run.sites] == [
        (21, 4, None, None),
        (22, 8, None, None),
    ]
    assert run.sites[1].pc == run.sites[0].pc + 1


def test_a_clean_program_is_clean(plugin: Path) -> None:
    assert qemu_split_locks(["true"], plugin) == ({}, {})
    run = qemu_run(["echo", "hello"], plugin, count_all=True)
    assert (run.stdout, run.hits) == (b"hello\n", 0)
    assert run.executed


def test_no_answer_is_no_answer(tmp_path: Path, plugin: Path) -> None:
    program = compile_(tmp_path, "abort", {"main.c": "#include <stdlib.h>\nint main(void) { abort(); }"})
    with pytest.raises(OracleError, match="no result"):
        qemu_run([str(program)], plugin)
    # QEMU 7.2 honours a REX.W that is not right before the opcode; processors do not (SDM volume 2, 2.2.1).
    text = ".text\n" + function("dead_rex", ".byte 0x48, 0xf0, 0x0f, 0xc1, 0x07")
    main = "void dead_rex(void *, long);\nchar m[8];\nint main(void) { dead_rex(m, 1); }"
    program = compile_(tmp_path, "rex", {"rex.c": main, "rex.s": text})
    with pytest.raises(OracleError, match="mismatched 1"):
        qemu_run([str(program)], plugin)
    with pytest.raises(OracleError, match="not found"):
        qemu_run([str(tmp_path / "nothing")], plugin)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(OracleError, match="not an ELF program"):
        qemu_run([str(script)], plugin)
