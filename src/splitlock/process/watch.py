"""Code that appears in the target: at exec, by mmap, by mprotect. What can be patched is, the rest is noted."""

from __future__ import annotations

import os

from splitlock.linux.pages import all_written, mappings_within
from splitlock.linux.proc import Mapping, Memory, mappings
from splitlock.process import elsewhere, inject, ptrace
from splitlock.process.analysis import UnanalysedError
from splitlock.process.copied import Copies
from splitlock.process.inject import Refused
from splitlock.process.interpreters import is_interpreted, text_without_linker
from splitlock.process.space import Module, Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

    from splitlock.process.cache import Cache
    from splitlock.process.plan import Plan
    from splitlock.process.space import Key

_MAP_ANONYMOUS, _MAP_TYPE, _MAP_SHARED = 0x20, 0x0F, 1
_PROT_EXEC = 4
_FAILED = ptrace.U64 - 4095  # results from here on are errors

_PIECE = 1 << 20  # bytes read at a time
_MOST_SCANNED = 64 << 20  # bytes of anonymous code looked at, at a program's end
_MEMORY = ("/dev/zero (deleted)", "/SYSV")  # what the kernel calls shared anonymous memory, and System V segments
_INTERPRETED = "mapped by the program itself, past the dynamic linker"  # as agent/memory.py's REASONS have it
_MEMORY_FILE = "/memfd:"
ANONYMOUS = "anonymous executable memory"
OWN_FILTER = "the program's own seccomp filter forbids what patching needs"


class Watch:
    """Keeps the address spaces' modules; `images` and `unmonitored` say in the end what was watched."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._copies = Copies(cache)
        #: locked instructions watched, by image
        self.images: dict[Key, int] = {}
        #: bytes of code in them that are watched
        self.sizes: dict[Key, int] = {}
        #: locked instructions by path, for people
        self.names: dict[str, int] = {}
        #: which file each path was
        self.files: dict[str, Key] = {}
        #: (image or mapping, whether it is an image, reason) -> (bytes, locked instructions), where known
        self.unmonitored: dict[tuple[str, bool, str], tuple[int | None, int | None]] = {}

    def note(
        self, name: str, reason: str, size: int | None = None, sites: int | None = None, image: bool = True
    ) -> None:
        """Code that is not watched. The same said twice counts once, with the larger size."""
        known = self.unmonitored.get((name, image, reason))
        if known is None or (size or 0) > (known[0] or 0):
            self.unmonitored[name, image, reason] = size, sites

    def at_exec(self, tid: int, space: Space, registers: ctypes.Array[ctypes.c_uint64], stopped: list[int]) -> None:
        """A new program: the kernel has mapped it and its dynamic linker."""
        narrow = registers[ptrace.CS] != 0x33
        try:
            for path, reason in elsewhere.reasons(tid):
                self.note(path, reason)
            found = mappings(tid)
            space.static_text = text_without_linker(tid, found)
        except PermissionError as error:
            self.note(f"process {tid}", f"may not be read: {error.strerror}", image=False)
            return
        for m in found:
            if "x" not in m.permissions or m.path.startswith("[v") or (narrow and m.path.startswith("[")):
                continue
            if narrow:
                space.narrow = True
                self.note(m.path or ANONYMOUS, "32-bit code", m.end - m.start, image=m.inode != 0)
            elif m.inode:
                self._file(tid, space, m, _openable(tid, m), m.path, registers, stopped)
            else:
                space.anonymous = True

    def before_mmap(self, tid: int, space: Space, registers: ctypes.Array[ctypes.c_uint64]) -> tuple[str, str] | None:
        """An executable mmap is about to happen: (openable path, name) when the code should be looked at after."""
        if registers[ptrace.R10] & _MAP_ANONYMOUS:
            space.anonymous = True
            return None
        descriptor = registers[ptrace.R8] & 0xFFFF_FFFF
        path = f"/proc/{tid}/fd/{descriptor}"
        try:
            return path, os.readlink(path)
        except OSError:  # a bad descriptor: the call will fail
            return None

    def after_mmap(
        self,
        tid: int,
        space: Space,
        file: tuple[str, str],
        asked: ctypes.Array[ctypes.c_uint64],
        registers: ctypes.Array[ctypes.c_uint64],
        stopped: list[int],
    ) -> None:
        """The mmap has happened; `asked` are the registers at its entry."""
        start = registers[ptrace.RAX]
        if start >= _FAILED:
            return
        shared = "s" if asked[ptrace.R10] & _MAP_TYPE == _MAP_SHARED else "p"
        end = start + (asked[ptrace.RSI] + 4095 & ~4095)
        mapping = Mapping(start, end, "r-x" + shared, asked[ptrace.R9], 1, file[1])
        self._brought(tid, space, mapping, file[0], file[1], registers, stopped)

    def before_mprotect(self, tid: int, space: Space, registers: ctypes.Array[ctypes.c_uint64]) -> bool:
        """mprotect or pkey_mprotect is about to make a range executable: whether that is all there is to know.

        It is where the program has written all of it: then it is no image's, and is looked at in the end.
        """
        written = all_written(tid, registers[ptrace.RDI], registers[ptrace.RSI])
        space.anonymous = space.anonymous or written
        if written:
            self._copies.restore(tid, space, registers[ptrace.RDI], registers[ptrace.RSI])
        return written

    def after_mprotect(
        self,
        tid: int,
        space: Space,
        asked: ctypes.Array[ctypes.c_uint64],
        registers: ctypes.Array[ctypes.c_uint64],
        stopped: list[int],
    ) -> None:
        """mprotect or pkey_mprotect has made a range executable."""
        if registers[ptrace.RAX] >= _FAILED:
            return
        start, end = asked[ptrace.RDI], asked[ptrace.RDI] + asked[ptrace.RSI]
        for m in mappings_within(tid, start, end):
            if "x" in m.permissions:
                known = any(module.name == m.path and module.holds(max(start, m.start)) for module in space.modules)
                if not m.inode or m.path.startswith(_MEMORY):
                    space.anonymous = True
                    if m.permissions[3] == "p":
                        low = max(start, m.start)
                        self._copies.restore(tid, space, low, min(end, m.end) - low)
                elif not known:
                    self._brought(tid, space, m, _openable(tid, m), m.path, registers, stopped)

    def before_mremap(self, tid: int, space: Space, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        """Memory is about to move: a watched image in it gets its own text back first, and is unmonitored then."""
        start, size = registers[ptrace.RDI], registers[ptrace.RSI]
        for module in list(space.modules):
            for address, _, length in module.plan.segments:
                text = address + module.bias
                if module.arena and text < start + size and start < text + length:
                    inject.restore_text(tid, module, self.cache.sites(module.key, module.name).original)
                    self._drop(tid, space, module)
                    self.note(module.name, "text moved by the program (mremap)", length)
                    break

    def scan_anonymous(self, tid: int, space: Space) -> None:
        """A program ends: what executable memory it has that is no image's, and how many locks that holds.

        Shared anonymous memory and System V segments have a file of the kernel's own.
        """
        if not space.anonymous or space.narrow:
            return
        from splitlock.x86.patterns import EXCHANGE, LOCK_PREFIXED

        size = sites = read = 0
        arenas = {m.arena for m in space.modules + space.gone}
        said = {name for name, image, _ in self.unmonitored if image}
        with Memory(tid) as memory:
            try:
                for m in mappings(tid):
                    if "x" not in m.permissions or m.path.startswith("[v") or m.start in arenas:
                        continue
                    if m.inode and (m.path in said or any(_overlaps(module, m) for module in space.modules)):
                        continue
                    size += m.end - m.start
                    for at in range(m.start, m.end, _PIECE):
                        if read < _MOST_SCANNED and (m.permissions[0] == "r"):
                            code = memory.read(at, min(_PIECE, m.end - at))
                            read += len(code)
                            if LOCK_PREFIXED.search(code) or EXCHANGE.search(code):  # or spare the decoder's import
                                sites += _likely_locked(code)
            except OSError:
                pass
        if size:
            whole = read >= size
            self.note(ANONYMOUS, "code made at run time (JIT)", size, sites if whole else None, image=False)

    def _brought(
        self,
        tid: int,
        space: Space,
        mapping: Mapping,
        path: str,
        name: str,
        registers: ctypes.Array[ctypes.c_uint64],
        stopped: list[int],
    ) -> None:
        """An executable mapping of a file that the program has made."""
        if is_interpreted(tid, space, registers[ptrace.RIP], path):
            self.note(name, _INTERPRETED, mapping.end - mapping.start)
        else:
            self._file(tid, space, mapping, path, name, registers, stopped)

    def _file(
        self,
        tid: int,
        space: Space,
        mapping: Mapping,
        path: str,
        name: str,
        registers: ctypes.Array[ctypes.c_uint64],
        stopped: list[int],
    ) -> None:
        """An executable mapping of a file: plan it and patch it."""
        size = mapping.end - mapping.start
        for other in [m for m in space.modules if _overlaps(m, mapping) and m.name != name]:
            self._drop(tid, space, other)
        try:
            key, plan = self.cache.plan(path, name)
        except OSError as error:
            self.note(name, f"cannot read the file: {error.strerror}", size)
            return
        except UnanalysedError as error:
            self.note(name, f"not analysed: {error}", size)
            return
        self.files[name] = key
        for reason, unseen, sites in plan.unmonitored:
            self.note(name, reason, unseen if plan.segments else size, sites)
        whole = [
            (address, length)
            for address, offset, length in plan.segments
            if mapping.offset <= offset and offset + length <= mapping.offset + size
        ]
        if not whole:
            if name.startswith(_MEMORY_FILE):
                shared = mapping.permissions[3] == "s"  # such a mapping is not written through
                self._copies.restore(tid, space, mapping.start, size, path if shared else "", mapping.offset)
            if plan.segments or not plan.unmonitored:
                self.note(name, "an executable mapping that is no segment of the image", size)
            return
        offset = next(offset for address, offset, _ in plan.segments if address == whole[0][0])
        bias = mapping.start + offset - mapping.offset - whole[0][0]
        module = next((m for m in space.modules if m.key == key and m.bias == bias), None)
        if module is None:
            module = Module(key, name, plan, bias)
            space.modules.append(module)
        if not plan.sites:
            self._watched(name, key, plan)
            return
        try:
            if mapping.permissions[3] == "s":
                raise Refused("a shared executable mapping")
            if space.filtered:
                raise Refused(OWN_FILTER)
            if not module.arena:
                inject.place_arena(tid, module, mapping.start, registers, stopped)
            inject.write_text(tid, module, mapping.start, mapping.end)
            self._watched(name, key, plan)
        except Refused as refused:
            self.note(name, str(refused), size, plan.watched)
        except OSError as error:
            ptrace.get_registers(tid, ptrace.Registers())  # was it killed meanwhile? then that is all there is to say
            self.note(name, f"cannot patch: {error.strerror}", size, plan.watched)

    def _watched(self, name: str, key: Key, plan: Plan) -> None:
        self.images[key] = self.names[name] = plan.watched
        code = sum(length for _, _, length in plan.segments)
        self.sizes[key] = max(0, code - sum(size for _, size, _ in plan.unmonitored))

    def _drop(self, tid: int, space: Space, module: Module) -> None:
        """A module is gone from the space: keep its counts, let its arena be."""
        if space.hit and module.arena:
            space.snapshot(tid)
        space.modules.remove(module)
        space.gone.append(module)


def _likely_locked(code: bytes) -> int:
    from splitlock.x86.locked import likely_locked

    return likely_locked(code)


def _overlaps(module: Module, mapping: Mapping) -> bool:
    return any(
        address + module.bias < mapping.end and mapping.start < address + module.bias + length
        for address, _, length in module.plan.segments
    )


def _openable(tid: int, mapping: Mapping) -> str:
    """A path by which we can open the file behind a mapping of the task's."""
    for path in (f"/proc/{tid}/root{mapping.path}", f"/proc/{tid}/exe"):
        try:
            if os.stat(path).st_ino == mapping.inode:
                return path
        except OSError:
            pass
    return f"/proc/{tid}/map_files/{mapping.start:x}-{mapping.end:x}"
