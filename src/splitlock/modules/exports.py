"""What hangs on a kernel's exports: who uses one, who no longer loads without it, which to remove to break whom.

A module loads when each symbol it imports is exported by the kernel or by a module that loads. Take an export away
and its users fail; a module that fails takes its own exports along, unless another provides them too.
`cut` (which exports to remove) is in modules/cut.py.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.module import ET_REL, KernelImage
from splitlock.image.package import Failure, members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from splitlock.image.package import Member

VMLINUX = "vmlinux"  #: as an exporter: what is built in
_INSTEAD = ("/updates/", "/extra/", "/weak-updates/")  # where modules lie that replace the kernel's own (depmod.d(5))


class Module(NamedTuple):
    """A module, where it was found, and its symbols."""

    name: str  #: as the kernel has it
    path: str
    member: str | None  #: its name inside a package
    imports: frozenset[str]
    exports: frozenset[str]
    release: str  #: of the kernel that it was built for


class Loss(NamedTuple):
    """Why a module fails."""

    module: str
    direct: list[str]  #: the removed symbols that it imports, sorted
    through: list[str]  #: the failing modules that it imports from, sorted


class Kernel:
    """One kernel's modules and who exports what to whom.

    modules    by name
    exporters  of each symbol: the names of modules, or `VMLINUX`; a symbol that is imported and exported by none
               of the modules is taken to be the kernel's where the kernel's exports are not known
    users      of each symbol that is imported: the names of modules
    unresolved modules that import what nobody exports: these do not load anyhow, and are no loss (none where the
               kernel's exports are not known)
    source     where the kernel's own exports are known from; None where not
    failures   what could not be read
    """

    def __init__(
        self,
        modules: Iterable[Module],
        exported: Mapping[str, str] | None = None,
        source: str | None = None,
        failures: Iterable[Failure] = (),
    ) -> None:
        self.modules = {module.name: module for module in sorted(modules)}
        self.source = source
        self.failures = list(failures)
        self.users: dict[str, list[str]] = {}
        self.exporters: dict[str, list[str]] = {}
        for name, module in self.modules.items():
            for symbol in module.imports:
                self.users.setdefault(symbol, []).append(name)
            for symbol in module.exports:
                self.exporters.setdefault(symbol, []).append(name)
        for symbol, exporter in (exported or {}).items():
            if exporter == VMLINUX or exporter not in self.modules:
                self.exporters.setdefault(symbol, []).append(exporter)
        if exported is None:
            for symbol in self.users:
                self.exporters.setdefault(symbol, [VMLINUX])
        self.unresolved: list[str] = []
        self.unresolved = sorted(self.without(self.users.keys() - self.exporters.keys()))

    @property
    def releases(self) -> list[str]:
        """The kernels that the modules were built for: one, as a rule."""
        return sorted({module.release for module in self.modules.values() if module.release})

    def without(self, symbols: Iterable[str]) -> list[str]:
        """The modules that no longer load without these exports: the users of these first."""
        removed = set(symbols)
        failed = set(self.unresolved)
        lost = sorted({user for symbol in removed for user in self.users.get(symbol, ())} - failed)
        failed.update(lost)
        for module in lost:  # which grows
            for symbol in self.modules[module].exports - removed:
                if symbol in self.users and failed.issuperset(self.exporters[symbol]):
                    removed.add(symbol)
                    more = [user for user in self.users[symbol] if user not in failed]
                    failed.update(more)
                    lost += more
        return lost

    def losses(self, symbols: Iterable[str]) -> list[Loss]:
        """As `without`, with the reasons: those who use one of the symbols first, each part by name."""
        removed = frozenset(symbols)
        failed = set(self.without(removed))
        gone = failed.union(self.unresolved)
        found = []
        for name in failed:
            imports = self.modules[name].imports
            through = {
                exporter
                for symbol in imports - removed
                if gone.issuperset(self.exporters[symbol])
                for exporter in failed.intersection(self.exporters[symbol])
            }
            found.append(Loss(name, sorted(imports & removed), sorted(through)))
        return sorted(found, key=lambda loss: (not loss.direct, loss.module))

    def named(self, name: str) -> str:
        """The module that is meant by a name, with `-` or `_`, with or without `.ko`. Raises SplitlockError if none."""
        plain = module_name(name)
        if plain in self.modules:
            return plain
        where = f"no such module among the {len(self.modules):,} read{_similar(plain, self.modules)}"
        raise SplitlockError(f"--break {name}: {where}; name one of these, or another kernel's --modules", 2)

    def known(self, symbol: str, option: str) -> str:
        """The symbol, where somebody exports or imports it. Raises SplitlockError, naming the option, if nobody."""
        if symbol in self.users or symbol in self.exporters:
            return symbol
        similar = _similar(symbol, self.users.keys() | self.exporters.keys())
        if self.source is not None:
            why = f"neither the kernel nor a module exports it{similar}; name a symbol that one does"
        else:
            why = f"no module imports or exports it{similar}; whether the kernel exports it, its --symvers would tell"
        raise SplitlockError(f"{option} {symbol}: {why}", 2)


def _similar(word: str, words: Iterable[str]) -> str:
    from difflib import get_close_matches

    return "".join(f" (did you mean {found}?)" for found in get_close_matches(word, sorted(words), 1, 0.8))


def module_name(path: str) -> str:
    """As the kernel would call the module in a file: up to the first dot, `_` for `-`."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")


def load(paths: Sequence[str], symvers: str | None = None, progress: Callable[[], None] | None = None) -> Kernel:
    """Read the modules in files, directories and packages (and the kernel, where they hold one); raises SplitlockError.

    `symvers`: a Module.symvers, which says what the kernel exports. `progress` is called for each file that was read.
    """
    exported = read_symvers(symvers) if symvers is not None else None
    source = symvers
    modules: dict[str, Module] = {}
    failures = []
    symbols: dict[str, str] = {}  # one copy of each name: they come 185,000 times in a kernel
    built_in: set[str] = set()
    for member in members(paths):
        if progress:
            progress()
        if isinstance(member, Failure):
            failures.append(member)
            continue
        try:
            image = KernelImage(member.data)
            if image.type != ET_REL:
                if exported is None and _is_kernel(member):
                    built_in |= image.exports
                    source = f"{member.path}: {member.member}" if member.member else member.path
                continue
            module = _module(member, image, symbols)
        except ImageError as error:
            failures.append(Failure(member.path, member.member, str(error)))
            continue
        if module is not None:
            modules[module.name] = _preferred(module, modules.get(module.name))
    if not modules:
        why = [": ".join(filter(None, failure)) for failure in failures] or [f"no kernel modules in {' '.join(paths)}"]
        raise SplitlockError(f"--modules {why[0]}; name a kernel's modules directory or its package", 2)
    if built_in:
        exported = dict.fromkeys(built_in, VMLINUX)
    return Kernel(modules.values(), exported, source if exported is not None else None, failures)


def read_symvers(path: str) -> dict[str, str]:
    """Module.symvers: each exported symbol, and the module that exports it. Raises SplitlockError.

    Lines are `CRC<TAB>symbol<TAB>module<TAB>kind<TAB>namespace` (Documentation/kbuild/modules.rst).
    """
    found = {}
    why = ""
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(4096), ""), 1):  # it may be a device
                fields = line.rstrip("\n").split("\t")
                if len(fields) < 4 or not fields[0].startswith("0x"):
                    why = f"line {number} is not of a Module.symvers"
                    break
                found[fields[1]] = VMLINUX if fields[2] == VMLINUX else module_name(fields[2])
    except OSError as error:
        why = error.strerror or str(error)
    except UnicodeDecodeError:
        why = "not a text file"
    if why:
        raise SplitlockError(f"--symvers {path}: {why}; give the Module.symvers of the kernel's headers", 2)
    return found


def _is_kernel(member: Member) -> bool:
    name: str = member.member or member.path
    return os.path.basename(name).startswith(("vmlinu", "bzImage"))


def _module(member: Member, image: KernelImage, symbols: dict[str, str]) -> Module | None:
    """A module's entry in the graph; None for an object file that is no module."""
    info = image.modinfo
    if not info:
        return None
    name = info.get("name", [module_name(member.member or member.path)])[0].replace("-", "_")
    imports = frozenset([symbols.setdefault(symbol, symbol) for symbol in image.imports])
    exports = frozenset([symbols.setdefault(symbol, symbol) for symbol in image.exports])
    release = info.get("vermagic", [""])[0].partition(" ")[0]
    return Module(name, member.path, member.member, imports, exports, release)


def _preferred(new: Module, old: Module | None) -> Module:
    """Which of two modules of a name is loaded. Raises SplitlockError where they are two kernels'."""
    if old is None:
        return new
    if old.release != new.release:
        places = " and ".join(dict.fromkeys(m.member or m.path for m in (old, new)))
        raise SplitlockError(
            f"{new.name} is there for {old.release or 'no'} and for {new.release or 'no'} kernel ({places}): "
            "give one kernel's modules with --modules", 2
        )  # fmt: skip
    instead = any(place in f"/{old.member or old.path}" for place in _INSTEAD)
    return old if instead else new if any(place in f"/{new.member or new.path}" for place in _INSTEAD) else old
