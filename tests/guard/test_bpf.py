"""The BPF build in this machine's own kernel: it loads, and judges as the user-space build does, to the last byte.

Only judge_test is loaded, by BPF_PROG_TEST_RUN; programs on LSM hooks are for guests, where they are also called.
"""

from __future__ import annotations

import errno
import lzma
import statistics
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from guard.elves import CLEAN, FUNCTION, LAUNCH, TEXT, module
from guard.native import SOURCES, Kernel, Native, kernel, native
from guard.test_judge import made_up_files
from modules.debian import unpacked

from splitlock.guard import config, judge, layout
from splitlock.modules.policy import load

VERIFIER_LIMIT = 100_000  # instructions that the verifier may look at; it gives up at a million
PROGRAMS = {
    "read_file", "load_data", "read_part", "load_part", "keep_unlink", "keep_rmdir", "keep_rename", "keep_mount",
    "check_file", "check_data", "judge_test",
}  # fmt: skip


@pytest.fixture(scope="module")
def bpf() -> Iterator[Kernel]:
    with kernel() as made:
        yield made


@pytest.fixture(scope="module")
def gate() -> Native:
    return native()


def test_programs_are_those_that_others_name() -> None:
    from splitlock.guard.bpfobject import Object

    with Object(judge.built(judge.OBJECT)) as made:
        assert set(made.programs) == PROGRAMS


def same(bpf: Kernel, gate: Native, asked: layout.Config, data: bytes) -> layout.Decision:
    """The decision of both builds, which must be one."""
    decision, answer = bpf.judge(data)
    wanted = gate.judge(data, asked)
    took = decision.duration
    decision.duration = 0
    assert bytes(decision) == bytes(wanted)
    number = errno.ENOSYS if decision.doubt == layout.DOUBTS.index("no-elf") else errno.EPERM
    assert answer == (-number if decision.refused else 0)
    decision.duration = took
    return decision


def made_up() -> list[bytes]:
    hidden = b"\x48\xb8" + LAUNCH + b"\x90" * 8 + b"\xc3"
    good = module([(b".text", 1, TEXT, CLEAN)])
    return [
        b"", b"\x7fELF", bytes(100), bytes(good), bytes(good[:200]),
        module([(b".text", 1, TEXT, LAUNCH)], modinfo=b"name=" + b"x" * 200 + b"\0sld_safe=Y\0" + b"\0" * 9),
        module([(b".text", 1, TEXT, b"\x90" * 300_000 + hidden)], [(b"f", FUNCTION, 1, 300_002)]),
        module([(b".text", 1, TEXT, b"\x06")]),
        bytes(module([(b".text", 1, TEXT, LAUNCH)]) + bytes(12) + b"~Module signature appended~\n"),
        module([(b".text", 8, TEXT, LAUNCH)]),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["refuse", "disable", "break:__vmalloc,vmap", "possible", "named"])
@pytest.mark.parametrize("audit", [False, True])
def test_made_up_modules(bpf: Kernel, gate: Native, tmp_path: Path, policy: str, audit: bool) -> None:
    rules = {
        "possible": 'certainty = "possible"\n[[rule]]\nverdict = "refuse"\nkinds = ["vmx"]\n',
        "named": '[[rule]]\nverdict = "allow"\nname = ["xx*", "foo-bar"]\n'
        '[[rule]]\nverdict = "refuse"\nsigned = false\n[[rule]]\nverdict = "disable"\nkinds = ["HLT", "vmx"]\n',
    }
    if policy in rules:
        (tmp_path / "policy.toml").write_text(rules[policy])
        policy = str(tmp_path / "policy.toml")
    asked = config.build(load(policy), audit=audit, digests=True, release="6.1")
    bpf.configure(asked)
    for data in [*made_up(), *(path.read_bytes() for path in made_up_files(tmp_path))]:
        assert same(bpf, gate, asked, data).digested


def test_worst_case_ends_soon(bpf: Kernel, gate: Native) -> None:
    asked = config.build(load("refuse"), digests=False, release="6.1")
    bpf.configure(asked)
    size = 32 << 20
    decision = same(bpf, gate, asked, bytes(module([(b".text", 1, TEXT, b"\x90" * size)])))
    assert layout.VERDICTS[decision.verdict] == "allow"
    assert decision.duration < 10e9  # 33 million instructions


def modules(kind: str) -> Iterator[bytes]:
    for path in sorted((unpacked(kind) / "lib" / "modules").rglob("*.ko*")):
        data = path.read_bytes()
        yield lzma.decompress(data) if path.suffix == ".xz" else data


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy", "count"), [
    ("amd64", "refuse", 100_000), ("xz", "disable", 100_000), ("cloud-amd64", "break:vmap", 300)
])  # fmt: skip
def test_real_modules(
    bpf: Kernel, gate: Native, kind: str, policy: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config.build(load(policy), digests=kind == "xz", release="6.1")
    bpf.configure(asked)
    times, size = [], 0
    for data in islice(modules(kind), count):
        times.append(same(bpf, gate, asked, data).duration / 1e6)
        size += len(data)
    with capsys.disabled():
        rate = size / sum(times) / 1e3
        print(
            f"\n{kind}, {policy}, in the kernel: {len(times)} modules, median {statistics.median(times):.3f} ms, ",
            end="",
        )
        print(f"longest {max(times):.1f} ms, {rate:.0f} MB/s of file")


def test_what_it_takes_to_verify() -> None:
    """How much the verifier has to look at: what makes loading slow, and in the end impossible."""
    with kernel():
        pass
    program = Path(__file__).with_name("verifier.py")
    done = subprocess.run(["python3", program, judge.OBJECT], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < VERIFIER_LIMIT


def test_nothing_large_of_the_kernel_is_declared() -> None:
    assert not list(SOURCES.glob("vmlinux*"))
