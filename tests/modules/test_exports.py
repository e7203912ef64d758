"""Who breaks without an export: Debian's figures, oracles of other makes, and brute force for `--break`."""

from __future__ import annotations

import itertools
import random
import subprocess
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from modules.debian import modules, packages, unpacked

from splitlock._errors import SplitlockError
from splitlock.image.package import Failure
from splitlock.modules import cut as cutting
from splitlock.modules.cut import cut
from splitlock.modules.exports import Kernel, Module, load, module_name, read_symvers

# Debian 6.1 amd64, measured once with other tools: importers, and with everything above them
FIGURES = {
    "cr4_update_irqsoff": (1, 1),
    "handle_guest_split_lock": (1, 1),
    "__vmalloc": (12, 275),
    "vmalloc": (118, 815),
    "vmap": (18, 390),
    "vmap_pfn": (2, 13),
    "apply_to_page_range": (3, 5),
    "pv_ops": (206, 931),
}
NOT_EXPORTED = ("native_write_cr4", "set_memory_x", "kallsyms_lookup_name", "map_kernel_range", "module_alloc")


@cache
def debian() -> Kernel:
    """Debian's 6.1 amd64, straight from the package: its vmlinuz says what the kernel exports."""
    return load([str(packages("amd64")["amd64"])])


@cache
def symvers() -> str:
    directory = packages("headers")["headers"].parent / "unpacked-headers"
    if not directory.exists():
        subprocess.run(["dpkg-deb", "-x", packages("headers")["headers"], directory], check=True)
    return str(next(directory.rglob("Module.symvers")))


def test_the_figures() -> None:
    kernel = debian()
    assert len(kernel.modules) == 4023
    assert not kernel.failures
    assert not kernel.unresolved
    found = {name: (len(kernel.users[name]), len(kernel.without([name]))) for name in FIGURES}
    assert found == FIGURES
    assert not [name for name in NOT_EXPORTED if name in kernel.exporters]


def test_symvers_agrees_with_the_files() -> None:
    """Module.symvers names for each export just who has it in its own table."""
    kernel = debian()
    exported = read_symvers(symvers())
    assert len(exported) > 24_000
    assert {symbol: [exporter] for symbol, exporter in exported.items()} == kernel.exporters


def test_depends_says_the_same() -> None:
    """modpost's own `depends=` against the graph from symbols; and the closure against one over `depends=`."""
    kernel = debian()
    depends: dict[str, set[str]] = {}
    for path in modules("amd64").values():
        name = module_name(str(path))
        raw = path.read_bytes()
        at = raw.index(b"\0depends=") + 9
        depends[name] = {d.replace("-", "_") for d in raw[at : raw.index(b"\0", at)].decode().split(",") if d}
        imports = kernel.modules[name].imports
        assert depends[name] == {e for s in imports for e in kernel.exporters[s]} - {"vmlinux"}, name
    for symbol in FIGURES:
        failed = set(kernel.users[symbol])
        while more := {m for m, needs in depends.items() if needs & failed} - failed:
            failed |= more
        assert failed == set(kernel.without([symbol]))


def test_pyelftools_sees_the_same_symbols() -> None:
    kernel = debian()
    for path in list(modules("amd64").values())[::160]:
        with open(path, "rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            symbols = list(table.iter_symbols())
        module = kernel.modules[module_name(str(path))]
        undefined = [s for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name]
        assert module.imports == {s.name for s in undefined}
        assert not [s for s in undefined if s["st_info"]["bind"] != "STB_GLOBAL"]  # a weak one could stay away
        assert module.exports == {s.name.removeprefix("__ksymtab_") for s in symbols if s.name.startswith("__ksymtab_")}


def test_losses_have_reasons() -> None:
    """Each loss imports a removed symbol, or something that only failing modules export."""
    kernel = debian()
    removed = ["vmap", "vmap_pfn"]
    losses = kernel.losses(removed)
    assert {loss.module for loss in losses} == set(kernel.without(removed))
    assert [loss.module for loss in losses if loss.direct] == sorted({*kernel.users["vmap"], *kernel.users["vmap_pfn"]})
    names = {loss.module for loss in losses}
    for loss in losses:
        assert loss.direct or loss.through
        assert set(loss.through) <= names
        needs = {e for s in kernel.modules[loss.module].imports for e in kernel.exporters[s]}
        assert set(loss.through) == needs & names


def made(graph: dict[str, tuple[str, str]]) -> Kernel:
    """A kernel of `name: (imports, exports)`, words apart by blanks."""
    return Kernel(
        Module(name, f"{name}.ko", None, frozenset(imports.split()), frozenset(exports.split()), "1")
        for name, (imports, exports) in graph.items()
    )


def test_two_exporters_both_have_to_fail() -> None:
    kernel = made({"a": ("x", "shared"), "b": ("y", "shared"), "c": ("shared", ""), "d": ("z", "")})
    assert kernel.without(["x"]) == ["a"]
    assert set(kernel.without(["x", "y"])) == {"a", "b", "c"}
    assert set(kernel.without(["shared"])) == {"c"}


def test_modules_that_need_each_other() -> None:
    """They hold each other up until one of them loses something else."""
    kernel = made({"a": ("of_b x", "of_a"), "b": ("of_a", "of_b"), "c": ("of_b", "")})
    assert kernel.without(["nothing"]) == []
    assert set(kernel.without(["x"])) == {"a", "b", "c"}


def test_unresolved() -> None:
    """Where the kernel's exports are known, what imports something else does not load anyhow: it is no loss."""
    graph = {"a": ("known unknown", "of_a both"), "b": ("of_a known", ""), "c": ("known", ""), "d": ("known", "both")}
    entries = [*made(graph).modules.values(), *made({"e": ("both", "")}).modules.values()]
    assert Kernel(entries).unresolved == []
    kernel = Kernel(entries, {"known": "vmlinux"})
    assert kernel.unresolved == ["a", "b"]
    assert set(kernel.without(["known"])) == {"c", "d", "e"}  # a, which exports `both` too, was no help
    assert {loss.module: loss.through for loss in kernel.losses(["known"])} == {"c": [], "d": [], "e": ["d"]}
    assert kernel.without(["of_a"]) == []
    for _ in range(2):  # where some symbol has two exporters, and where none has
        assert cut(kernel, ["c"]).symbols == ["known"]
        with pytest.raises(SplitlockError, match="--break a: does not load anyhow"):
            cut(kernel, ["a"])
        kernel = Kernel([entry for entry in entries if entry.name not in "de"], {"known": "vmlinux"})


# Which exports to remove


def brute(kernel: Kernel, wanted: set[str]) -> list[str]:
    """The best set among all sets of symbols: fewest others lost, fewest symbols, the least preferred the most so."""

    def objections(symbol: str) -> tuple[bool, int, bool, str]:
        strangers = len(set(kernel.users[symbol]) - wanted)
        return "vmlinux" not in kernel.exporters[symbol], strangers, symbol.startswith("_"), symbol

    best: tuple[tuple[int, int, list[tuple[bool, int, bool, str]]], list[str]] | None = None
    for size in range(1, len(wanted) + 1):
        for chosen in itertools.combinations(sorted(kernel.users), size):
            lost = set(kernel.without(chosen))
            if wanted <= lost:
                value = len(lost - wanted), size, sorted(map(objections, chosen), reverse=True)
                best = (value, list(chosen)) if best is None else min(best, (value, list(chosen)))
    assert best is not None
    return best[1]


def random_kernel(chance: random.Random, *, shared: bool) -> Kernel:
    """Up to nine modules in layers, importing from the kernel and from those below."""
    graph: dict[str, tuple[str, str]] = {}
    available = [f"{'_' * (i % 2)}k{i}" for i in range(chance.randrange(2, 6))]
    for number in range(chance.randrange(3, 10)):
        imports = chance.sample(available, chance.randrange(1, min(4, len(available)) + 1))
        own = [f"m{number}_{i}" for i in range(chance.randrange(3))]
        if shared and chance.random() < 0.4:
            own.append(f"both{chance.randrange(2)}")
        graph[f"m{number}"] = " ".join(imports), " ".join(own)
        available = list(dict.fromkeys([*available, *own]))[-9:]
    return made(graph)


@pytest.mark.parametrize("shared", [False, True])
def test_cut_is_the_best_there_is(shared: bool) -> None:
    """Against all sets, on some hundreds of small kernels; with symbols that two modules export as well."""
    chance = random.Random(7)
    for _ in range(250):
        kernel = random_kernel(chance, shared=shared)
        wanted = set(chance.sample(sorted(kernel.modules), chance.randrange(1, min(4, len(kernel.modules)) + 1)))
        found = cut(kernel, wanted)
        lost = set(kernel.without(found.symbols))
        assert wanted <= lost
        assert found.optimal
        assert found.symbols == brute(kernel, wanted)
        for symbol, others in found.alternatives.items():
            for other in others:
                assert set(kernel.without([other])) == set(kernel.without([symbol]))


def test_cut_of_debian() -> None:
    """The hypervisors can be cut off with nothing else lost: by symbols of the kernel's own that say what they are."""
    kernel = debian()
    found = cut(kernel, ["kvm_intel"])
    assert found.symbols == ["cr4_update_irqsoff"]
    assert found.alternatives["cr4_update_irqsoff"][0] == "handle_guest_split_lock"
    assert kernel.without(found.symbols) == ["kvm_intel"]
    both = cut(kernel, ["kvm_intel", "kvm_amd"])
    assert [kernel.exporters[symbol] for symbol in both.symbols] == [["vmlinux"]]
    assert set(kernel.without(both.symbols)) == {"kvm_intel", "kvm_amd"}
    many = cut(kernel, ["kvm_intel", "vboxguest", "bochs"])
    assert "cr4_update_irqsoff" in many.symbols
    assert len(many.symbols) <= 3
    assert found.optimal
    assert both.optimal
    assert many.optimal


def test_of_sets_as_good_the_preferred() -> None:
    """The kernel's own export, then who else imports it, then what only hypervisors need, then the name."""
    exports = {"m": ("k0", "of_m"), "other": ("k9", "")}
    for imports, wanted in (
        ("of_m zz", "zz"),
        ("of_m _aa zz", "zz"),
        ("of_m _aa", "_aa"),
        ("of_m aa handle_guest_split_lock", "handle_guest_split_lock"),
        ("aa handle_guest_split_lock cr4_update_irqsoff", "cr4_update_irqsoff"),
    ):
        found = cut(made({**exports, "a": (imports, "")}), ["a"])
        assert found.symbols == [wanted]
        assert {wanted, *found.alternatives[wanted]} == set(imports.split())
    # fewer symbols come first; of {of_m, k_c}, {of_m, k_bc} and {k_a, k_bc} the one without another module's
    graph = {**exports, "a": ("of_m k_a", ""), "b": ("of_m k_bc", ""), "c": ("k_bc k_c", "")}
    assert cut(made(graph), ["a", "b"]).symbols == ["of_m"]
    assert cut(made(graph), ["a", "b", "c"]).symbols == ["k_a", "k_bc"]


def test_a_search_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "_STEPS", 1)
    kernel = debian()
    names = random.Random(1).sample(sorted(kernel.modules), 10)
    found = cut(kernel, names)
    assert not found.optimal
    assert set(names) <= set(kernel.without(found.symbols))


def test_cut_of_what_imports_nothing() -> None:
    with pytest.raises(SplitlockError, match="--break a: imports nothing"):
        cut(made({"a": ("", "x")}), ["a"])


# Reading


def test_other_sources_of_the_same() -> None:
    """An unpacked directory; with Module.symvers; a package of .ko.xz."""
    directory = load([str(unpacked("amd64") / "lib")], symvers())
    assert {n: (m.imports, m.exports) for n, m in directory.modules.items()} == {
        n: (m.imports, m.exports) for n, m in debian().modules.items()
    }
    assert directory.exporters == debian().exporters
    xz = load([str(packages("xz")["xz"])])
    assert len(xz.modules) > 1000
    assert not xz.failures
    assert not xz.unresolved
    assert set(xz.users["handle_guest_split_lock"]) == {"kvm_intel"}


def test_two_kernels_at_once_are_refused() -> None:
    with pytest.raises(SplitlockError, match="give one kernel's modules"):
        load([str(unpacked("cloud-amd64") / "lib"), str(unpacked("amd64") / "lib")])


def test_updates_come_before_the_kernels_own(tmp_path: Path) -> None:
    source = modules("amd64")["kvm-intel.ko"].read_bytes()
    for place in ("kernel", "updates/dkms", "zzz"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "kvm-intel.ko").write_bytes(source)
    assert "/updates/dkms/" in load([str(tmp_path)]).modules["kvm_intel"].path


def test_bad_modules_are_failures(tmp_path: Path) -> None:
    good = modules("amd64")["kvm-intel.ko"].read_bytes()
    (tmp_path / "good.ko").write_bytes(good)
    (tmp_path / "cut.ko").write_bytes(good[:5000])
    files_read = 0

    def progress() -> None:
        nonlocal files_read
        files_read += 1

    kernel = load([str(tmp_path), str(tmp_path / "missing")], progress=progress)
    assert files_read == 3
    assert list(kernel.modules) == ["kvm_intel"]
    assert [Path(f.path).name for f in kernel.failures if isinstance(f, Failure)] == ["cut.ko", "missing"]


@pytest.mark.parametrize("text", ["no symvers\n", "0x0\tx\n"])
def test_bad_symvers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "Module.symvers"
    path.write_text(text)
    with pytest.raises(SplitlockError, match="line 1 is not of a Module"):
        read_symvers(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SplitlockError, match="not a text file"):
        read_symvers(str(path))
    with pytest.raises(SplitlockError, match="No such file"):
        read_symvers(str(tmp_path / "missing"))
