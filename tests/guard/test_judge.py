"""The gate's judge, as built for user space, against the scanner: whole kernels, toys, bent files."""

from __future__ import annotations

import ctypes
import lzma
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard.elves import ALLOC, CLEAN, E_SHNUM, FUNCTION, LAUNCH, TEXT, module
from guard.native import Native, native, sanitized
from modules.debian import unpacked
from modules.test_hypervisors import POLICIES as HYPERVISOR_POLICIES
from modules.test_hypervisors import VERDICTS as HYPERVISORS
from modules.test_toy_verdicts import VERDICTS

from splitlock._errors import ImageError
from splitlock.guard import config, layout
from splitlock.modules.policy import Policy, load
from splitlock.modules.scan import Scan, scan
from splitlock.modules.verdict import judge

KERNELS = ("amd64", "rt-amd64", "cloud-amd64", "xz")
POLICIES = ("refuse", "disable", "break:__vmalloc,vmap")
GRAVITY = {"allow": 0, "disable": 1, "refuse": 2}
ROUNDS = 400  # of bending, a file and policy


@pytest.fixture(scope="module")
def gate() -> Native:
    return native()


def gate_config(policy: Policy, release: str = "6.1.0", digests: bool = False) -> layout.Config:
    return config.build(policy, digests=digests, release=release)


def files(kind: str) -> Iterator[tuple[str, bytes]]:
    """A kernel's modules, decompressed."""
    for path in sorted((unpacked(kind) / "lib" / "modules").rglob("*.ko*")):
        data = path.read_bytes()
        yield path.name, lzma.decompress(data) if path.suffix == ".xz" else data


def expected(found: Scan) -> list[tuple[str, str, int, str]]:
    """The findings that count: kind, section, offset, class of evidence."""
    return sorted(
        (each.kind, (each.section or "")[:23], each.offset or 0, next(
            said for said in layout.EVIDENCE.values() if each.evidence.startswith(said)))
        for each in found.findings if each.certainty == "exact" or each.evidence != "instruction"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KERNELS)
def test_a_whole_kernel(gate: Native, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    policies = [load(policy) for policy in POLICIES]
    configs = [gate_config(policy, "6.12" if kind == "xz" else "6.1") for policy in policies]
    differences, times, size, findings = [], [], 0, 0
    for name, data in files(kind):
        scanned = scan(data)
        for policy, asked in zip(policies, configs, strict=True):
            begin = time.perf_counter()
            decision = gate.judge(data, asked)
            times.append(time.perf_counter() - begin)
            said = layout.VERDICTS[decision.verdict], layout.DOUBTS[decision.doubt]
            wanted = judge(scanned, policy).verdict, None
            if said != wanted:
                differences.append(f"{name}, {policy.name}: {said}, not {wanted}")
        _, found = gate.findings(data, configs[0])
        if sorted((each.kind, each.section, each.offset, each.evidence) for each in found) != expected(scanned):
            differences.append(f"{name}: {found} and {scanned.findings}")
        size += len(data) * len(policies)
        findings += len(found)
    with capsys.disabled():
        rate = size / sum(times) / 1e6
        print(f"\n{kind}: {len(times)} judged, {findings} findings, median {statistics.median(times) * 1e3:.3f} ms, "
              f"longest {max(times) * 1e3:.1f} ms, {rate:.0f} MB/s of file")  # fmt: skip
    assert not differences


@pytest.mark.parametrize("name", VERDICTS)
def test_toys(gate: Native, toys: dict[str, Path], name: str) -> None:
    data = toys[name].read_bytes()
    refuse, disable, _, broken = VERDICTS[name]
    for policy, wanted in (("refuse", refuse), ("disable", disable), ("break:__vmalloc", broken)):
        decision, found = gate.findings(data, gate_config(load(policy)))
        assert layout.VERDICTS[decision.verdict] == wanted, (policy, found)
        assert not decision.doubt
        assert decision.name == name.encode()


@pytest.mark.parametrize("name", HYPERVISORS)
def test_hypervisors(gate: Native, hypervisors: dict[str, Path], name: str) -> None:
    """One that runs, and its variants: the same verdicts and findings as scan's."""
    data = hypervisors[name].read_bytes()
    for policy, wanted in zip(HYPERVISOR_POLICIES, HYPERVISORS[name], strict=True):
        decision = gate.judge(data, gate_config(load(policy)))
        assert (layout.VERDICTS[decision.verdict], decision.doubt) == (wanted, 0), policy
    _, found = gate.findings(data, gate_config(load("refuse")))
    seen = [(each.kind, each.section, each.offset, each.evidence) for each in found]
    assert sorted(seen) == expected(scan(data))


def test_possible_findings_count_where_a_policy_says_so(
    gate: Native,
    toys: dict[str, Path],
    tmp_path: Path,
) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text('certainty = "possible"\n[[rule]]\nverdict = "refuse"\nkinds = ["vmx"]\n')
    asked = gate_config(load(str(strict)))
    decision, found = gate.findings(toys["jump_over"].read_bytes(), asked)
    assert layout.VERDICTS[decision.verdict] == "refuse"
    assert [each.kind for each in found] == ["VMLAUNCH"]
    assert layout.VERDICTS[gate.judge(toys["decoy"].read_bytes(), asked).verdict] == "allow"


# Files made up: what no compiler makes.


def verdict(gate: Native, data: bytes, policy: str = "refuse") -> tuple[str, str | None]:
    decision = gate.judge(data, gate_config(load(policy)))
    return layout.VERDICTS[decision.verdict], layout.DOUBTS[decision.doubt]


ALLOWED, REFUSED, MALFORMED = ("allow", None), ("refuse", None), ("refuse", "malformed")


def test_made_up_modules(gate: Native) -> None:
    assert verdict(gate, module([(b".text", 1, TEXT, CLEAN)])) == ALLOWED
    assert verdict(gate, module([(b".text", 1, TEXT, LAUNCH)])) == REFUSED
    assert verdict(gate, module([(b".rodata", 1, ALLOC, LAUNCH)])) == ALLOWED
    assert verdict(gate, module([(b".text", 1, TEXT, LAUNCH)], modinfo=b"sld_safe=no\0")) == ALLOWED
    assert (
        verdict(gate, module([(b".text", 1, TEXT, LAUNCH)], modinfo=b"x=sld_safe=Y\0sld_safer=Y\0sld_saf=\0"))
        == REFUSED
    )
    assert verdict(gate, module([(b".text", 1, TEXT, CLEAN)], [(b"set_memory_x", 0x10, 0, 0)])) == REFUSED
    assert verdict(gate, module([(b".text", 1, TEXT, CLEAN)], [(b"set_memory_x", 0x10, 0xFFF1, 0)])) == ALLOWED


def test_knowing_of_split_locks_must_be_linked(gate: Native) -> None:
    text = [(b".text", 1, TEXT, LAUNCH)]
    assert verdict(gate, module(text, [(b"handle_guest_split_lock", 0x10, 0, 0)])) == ALLOWED
    assert verdict(gate, module(text, [(b"handle_guest_split_lock", 0x20, 0, 0)])) == REFUSED  # weak: need not be there


def test_data_before_code(gate: Native) -> None:
    hidden = b"\x48\xb8" + LAUNCH + b"\x90" * 8 + b"\xc3"
    assert verdict(gate, module([(b".text", 1, TEXT, hidden)])) == ALLOWED
    for info in (FUNCTION, 0x02, 0x10, 0x0A):  # functions, global and local; no type; an indirect one
        assert verdict(gate, module([(b".text", 1, TEXT, hidden)], [(b"f", info, 1, 2)])) == REFUSED
    far = bytes(8) * 50_000 + hidden  # beyond the first window
    assert verdict(gate, module([(b".text", 1, TEXT, far)])) == ALLOWED
    assert verdict(gate, module([(b".text", 1, TEXT, far)], [(b"f", FUNCTION, 1, 400_002)])) == REFUSED
    second = [(b".text", 1, TEXT, CLEAN), (b".text.more", 1, TEXT, hidden)]
    assert verdict(gate, module(second, [(b"f", FUNCTION, 2, 2)])) == REFUSED
    assert verdict(gate, module(second, [(b"f", FUNCTION, 1, 2)])) == ALLOWED


@pytest.mark.parametrize("size", [8168, 8183, 8184, 8185, 262144 - 2, 262144, 262144 + 3])
def test_instructions_across_what_is_read_at_once(gate: Native, size: int) -> None:
    for before in range(16):
        text = b"\x90" * (size - before) + LAUNCH + b"\x90" * 40
        assert verdict(gate, module([(b".text", 1, TEXT, text)])) == REFUSED
        hidden = b"\x90" * (size - before) + b"\x48\xb8" + LAUNCH + b"\x90" * 20
        assert verdict(gate, module([(b".text", 1, TEXT, hidden)], [(b"f", FUNCTION, 1, size - before + 2)])) == REFUSED


def test_undecodable(gate: Native) -> None:
    assert verdict(gate, module([(b".text", 1, TEXT, b"\x06")])) == ("refuse", "undecodable")
    assert verdict(gate, module([(b".text", 1, TEXT, b"\xe8\0\0\0")])) == ("refuse", "undecodable")  # cut off
    # ends where AMD's processors and Intel's do not agree
    assert verdict(gate, module([(b".text", 1, TEXT, b"\x66\x0f\x84\0\0\0\0")])) == ("refuse", "undecodable")


def test_relocations_fill_in_fields_and_nothing_else(gate: Native) -> None:
    call = [(b".text", 1, TEXT, b"\xff\x15\0\0\0\0\xc3" + bytes(6))]
    pv_ops = [(b"pv_ops", 0x10, 0, 0)]
    assert verdict(gate, module(call, pv_ops, [(2, 2, 1, 0xC0 - 4)])) == REFUSED  # write_msr
    assert verdict(gate, module(call, pv_ops, [(2, 2, 1, -4)])) == ALLOWED
    assert verdict(gate, module(call, [(b"cr4_update_irqsoff", 0x10, 0, 0)], [(2, 4, 1, -4)])) == REFUSED
    for offset, kind in ((0, 2), (1, 2), (3, 2), (7, 10), (2, 1), (2, 99), (13, 2), (1 << 40, 2), (-8, 2)):
        assert verdict(gate, module(call, pv_ops, [(offset & (1 << 64) - 1, kind, 1, 0)])) == MALFORMED, offset
    assert verdict(gate, module(call, pv_ops, [(2, 2, 1, 0), (1, 0, 0, 0)])) == MALFORMED  # not sorted


def test_headers_that_lie(gate: Native) -> None:
    """What the loader would take otherwise than it looks, refused as malformed."""
    good = module([(b".text", 1, TEXT, CLEAN)])
    assert verdict(gate, good) == ALLOWED
    (headers,) = struct.unpack_from("<Q", good, 40)
    count = good[E_SHNUM]
    text, modinfo, rela, symtab, strtab = range(1, 6)
    assert count == 7

    def bent(section: int, field: int, value: int, size: str = "<Q") -> bytes:
        made = bytearray(good)
        struct.pack_into(size, made, headers + 64 * section + field, value)
        return bytes(made)

    name, kind, flags, offset, size, link = 0, 4, 8, 24, 32, 40
    for made in (
        bent(0, kind, 1, "<I"), bent(0, size, 1),
        bent(text, kind, 8, "<I"),  # NOBITS: filled in by relocations
        bent(text, flags, 7), bent(text, flags, 0x806),
        bent(text, offset, 1 << 63), bent(text, offset, len(good) - 2), bent(text, size, (1 << 64) - 1),
        bent(text, name, 1 << 30, "<I"),
        bent(modinfo, flags, 0), bent(modinfo, kind, 8, "<I"), bent(modinfo, size, 3),  # not ended
        bent(rela, kind, 2, "<I"),  # two symbol tables
        bent(symtab, kind, 1, "<I"),  # none
        bent(symtab, link, 99, "<I"), bent(symtab, link, 1, "<I"), bent(symtab, size, 0),
        bent(strtab, size, 0), bent(strtab, kind, 8, "<I"), bent(strtab, offset, len(good)),
        module([(b".text", 1, TEXT, CLEAN), (b".modinfo", 1, ALLOC, b"sld_safe=Y\0")]),
    ):  # fmt: skip
        assert verdict(gate, made) == MALFORMED
    for at, value, length in ((16, 2, 2), (18, 3, 2), (4, 1, 1), (5, 2, 1), (40, 1 << 50, 8), (58, 40, 2), (60, 0, 2),
                              (62, 0, 2), (62, 7, 2), (62, 1, 2)):  # fmt: skip
        made = good[:at] + value.to_bytes(length, "little") + good[at + length :]
        assert verdict(gate, made) == MALFORMED, at
    assert verdict(gate, good[:E_SHNUM] + b"\xff\xff" + good[E_SHNUM + 2 :]) == ("refuse", "too-big")
    # The loader copies what has SHF_ALLOC whatever its type is: code is code
    for odd in (0, 7, 14, 0x70000001):
        hidden = module([(b".text", odd, TEXT, LAUNCH)])
        assert verdict(gate, hidden)[0] == "refuse", odd
    for nothing in (b"", b"\x7fEL", b"\xfd7zXZ\0" + bytes(99), bytes(64)):
        assert verdict(gate, nothing) == ("refuse", "no-elf")
    assert verdict(gate, good[:63]) == MALFORMED


def test_limits(gate: Native) -> None:
    size = (32 << 20) + 1
    big = module([(b".text", 1, TEXT, b"\x90" * size)])
    begin = time.perf_counter()
    assert verdict(gate, big) == ("refuse", "too-big")
    big = module([(b".text", 1, TEXT, b"\x90" * (size - 1))])
    assert verdict(gate, big) == ALLOWED
    # every instruction of two decodings that never meet: refused before long
    apart = module([(b".text", 1, TEXT, b"\x3d\x05" + b"\0\x3d\0\x05" * 100_000 + CLEAN)], [(b"f", FUNCTION, 1, 1)])
    assert verdict(gate, apart)[0] in ("refuse", "allow")
    assert time.perf_counter() - begin < 20


def test_digests(gate: Native) -> None:
    import hashlib

    for length in (0, 1, 54, 55, 56, 63, 64, 8127, 8128, 8129, 8128 * 2, 8191, 100_000):
        data = b"\x7fELF"[: length % 5] + bytes(range(251)) * (length // 251 + 1)
        decision = gate.judge(data[:length], gate_config(load("refuse"), digests=True))
        assert decision.digested
        assert bytes(decision.digest) == hashlib.sha256(data[:length]).digest(), length
    assert not gate.judge(module([(b".text", 1, TEXT, CLEAN)]), gate_config(load("refuse"))).digested


def test_sizes_are_those_of_the_mirror() -> None:
    from splitlock.guard import judge as module_judge

    assert module_judge.sizes(module_judge.library()) == [ctypes.sizeof(each) for each in layout.STRUCTURES]


def test_canary_is_that_of_the_header() -> None:
    from guard.native import SOURCES

    header = (SOURCES / "gate.h").read_text()
    assert f"#define GATE_ERRNO_CANARY {layout.CANARY_ERRNO}\t" in header
    magic = header.split("#define GATE_CANARY_MAGIC ")[1].split('"')[1].encode()
    assert layout.CANARY[:32] == magic.ljust(32, b"\0")


def bend(gate: Path, asked: layout.Config, seed: int, rounds: int, paths: list[Path], directory: Path) -> list[str]:
    """Lines of fuzz.c: the changed files that it let in. The sanitizer ends it, and the test, at the first fault."""
    where = directory / "config"
    where.write_bytes(bytes(asked))
    done = subprocess.run(
        [gate, where, str(seed), str(rounds), *paths], capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def check(lines: list[str], policy: Policy) -> list[str]:
    """Of these, the ones that the scanner would not let in."""
    differences = []
    for line in lines:
        name, length, *changes = line.split()
        data = bytearray(Path(name).read_bytes())
        for change in changes:
            at, _, new = change.partition(":")
            data[int(at) : int(at) + len(new) // 2] = bytes.fromhex(new)
        try:
            said: str = judge(scan(bytes(data[: int(length)])), policy).verdict
        except ImageError as error:
            said = str(error)
        if said != "allow":
            differences.append(f"{said}: {line}")
    return differences


def made_up_files(directory: Path) -> list[Path]:
    hidden = b"\x48\xb8" + LAUNCH + b"\x90" * 8 + b"\xc3"
    made: dict[str, bytes] = {
        "launch": module([(b".text", 1, TEXT, CLEAN * 9), (b".init.text", 1, TEXT, LAUNCH)], [(b"f", FUNCTION, 1, 3)]),
        "hidden": module([(b".text", 1, TEXT, hidden)], [(b"f", FUNCTION, 1, 2)]),
        "pv": module([(b".text", 1, TEXT, b"\xff\x15\0\0\0\0\xc3")], [(b"pv_ops", 16, 0, 0)], [(2, 2, 1, 0xC0 - 4)]),
        "foreign": module([(b".text", 1, TEXT, CLEAN)], [(b"set_memory_x", 0x10, 0, 0), (b"vmap", 0x10, 0, 0)]),
        "safe": module([(b".text", 1, TEXT, LAUNCH)], modinfo=b"name=made\0sld_safe=Y\0"),
    }  # fmt: skip
    paths = []
    for name, data in made.items():
        paths.append(directory / name)
        paths[-1].write_bytes(data)
    return paths


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized(tmp_path_factory.mktemp("sanitized"))


def test_bent_files(careful: Path, tmp_path: Path) -> None:
    policy = load("refuse")
    lines = bend(careful, gate_config(policy, digests=True), 1, 20 * ROUNDS, made_up_files(tmp_path), tmp_path)
    assert not check(lines, policy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["refuse", "disable"])
def test_bent_modules(careful: Path, tmp_path: Path, seed: int, name: str) -> None:
    policy = load(name)
    base = unpacked("amd64") / "lib" / "modules"
    paths = [next(base.rglob(f"{each}.ko")) for each in ("kvm-intel", "kvm-amd", "ptp_kvm", "crc32c_generic", "nettel")]
    lines = bend(careful, gate_config(policy), seed, ROUNDS, paths, tmp_path)
    assert not check(lines, policy)
