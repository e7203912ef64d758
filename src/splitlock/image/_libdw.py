"""The raw C side of `symbols`: libdw of elfutils, and the C types it uses.

Prototypes and layouts are those of elfutils/libdw.h and libdwfl.h (0.171 on; tried: 0.188 and 0.196).
Handles and DIEs travel as plain integers (addresses); a C `NULL` arrives as None.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint8, c_uint64, c_void_p

from splitlock.image.demangle import demangle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Die = ctypes.Array[ctypes.c_char]

DW_TAG_LEXICAL_BLOCK, DW_TAG_INLINED_SUBROUTINE, DW_TAG_CATCH_BLOCK, DW_TAG_TRY_BLOCK = 0x0B, 0x1D, 0x25, 0x32
DW_AT_CALL_FILE, DW_AT_CALL_LINE = 0x58, 0x59
DW_AT_LINKAGE_NAME, DW_AT_MIPS_LINKAGE_NAME = 0x6E, 0x2007
DW_UT_SKELETON = 4
DWARF_CB_OK, DWARF_CB_ABORT = 0, 1
SCOPES = (DW_TAG_LEXICAL_BLOCK, DW_TAG_INLINED_SUBROUTINE, DW_TAG_CATCH_BLOCK, DW_TAG_TRY_BLOCK)
_FUNCTIONS = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
DIE_SIZE = 32
"""Bytes of a Dwarf_Die: address, unit, abbreviation, padding."""

MOST = (1 << 64) - 1
"""The highest address."""

PTRACE_GETREGS = 12
USER_REGS_SIZE = 27 * 8
"""Bytes of struct user_regs_struct on x86-64 (sys/user.h)."""


class Attribute(ctypes.Structure):
    """Dwarf_Attribute, storage for the attribute getters."""

    _fields_ = (("code", c_uint), ("form", c_uint), ("valp", c_void_p), ("cu", c_void_p))


class Sym(ctypes.Structure):
    """GElf_Sym."""

    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", c_uint8),
        ("other", c_uint8),
        ("shndx", ctypes.c_uint16),
        ("value", c_uint64),
        ("size", c_uint64),
    )


class Callbacks(ctypes.Structure):
    """Dwfl_Callbacks; it must outlive every session begun with it."""

    _fields_ = (
        ("find_elf", c_void_p),
        ("find_debuginfo", c_void_p),
        ("section_address", c_void_p),
        ("debuginfo_path", c_void_p),
    )


Callback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
"""int (*callback)(Dwfl_Frame * or Dwarf_Die *, void *) of dwfl_getthread_frames, dwarf_getfuncs."""

NextThread = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)
ReadMemory = ctypes.CFUNCTYPE(c_bool, c_void_p, c_uint64, POINTER(c_uint64), c_void_p)
SetRegisters = ctypes.CFUNCTYPE(c_bool, c_void_p, c_void_p)


class ThreadCallbacks(ctypes.Structure):
    """Dwfl_Thread_Callbacks; it must outlive every session that it is attached to."""

    _fields_ = (
        ("next_thread", NextThread),
        ("get_thread", c_void_p),
        ("memory_read", ReadMemory),
        ("set_initial_registers", SetRegisters),
        ("detach", c_void_p),
        ("thread_detach", c_void_p),
    )


_OUT64 = POINTER(c_uint64)
_PROTOTYPES: dict[str, tuple[type | None, list[type]]] = {
    "dwfl_begin": (c_void_p, [POINTER(Callbacks)]),
    "dwfl_end": (None, [c_void_p]),
    "dwfl_report_begin": (None, [c_void_p]),
    "dwfl_report_elf": (c_void_p, [c_void_p, c_char_p, c_char_p, c_int, c_uint64, c_bool]),
    "dwfl_report_end": (c_int, [c_void_p, c_void_p, c_void_p]),
    "dwfl_module_addrdie": (c_void_p, [c_void_p, c_uint64, _OUT64]),
    "dwfl_module_nextcu": (c_void_p, [c_void_p, c_void_p, _OUT64]),
    "dwfl_module_addrinfo": (
        c_char_p,
        [c_void_p, c_uint64, _OUT64, POINTER(Sym), c_void_p, c_void_p, c_void_p],
    ),
    "dwfl_module_getsymtab": (c_int, [c_void_p]),
    "dwfl_module_getsym": (c_char_p, [c_void_p, c_int, POINTER(Sym), c_void_p]),
    "dwfl_linux_proc_report": (c_int, [c_void_p, c_int]),
    "dwfl_linux_proc_attach": (c_int, [c_void_p, c_int, c_bool]),
    "dwfl_attach_state": (c_bool, [c_void_p, c_void_p, c_int, POINTER(ThreadCallbacks), c_void_p]),
    "dwfl_thread_state_registers": (c_bool, [c_void_p, c_int, c_uint, _OUT64]),
    "dwfl_getthread_frames": (c_int, [c_void_p, c_int, Callback, c_void_p]),
    "dwfl_frame_pc": (c_bool, [c_void_p, _OUT64, POINTER(c_bool)]),
    "dwarf_getsrc_die": (c_void_p, [c_void_p, c_uint64]),
    "dwarf_linesrc": (c_char_p, [c_void_p, c_void_p, c_void_p]),
    "dwarf_lineno": (c_int, [c_void_p, POINTER(c_int)]),
    "dwarf_ranges": (c_long, [c_void_p, c_long, _OUT64, _OUT64, _OUT64]),
    "dwarf_haspc": (c_int, [c_void_p, c_uint64]),
    "dwarf_getfuncs": (c_long, [c_void_p, Callback, c_void_p, c_long]),
    "dwarf_cu_info": (c_int, [c_void_p, c_void_p, POINTER(c_uint8), *[c_void_p] * 5]),
    "dwarf_child": (c_int, [c_void_p, c_void_p]),
    "dwarf_siblingof": (c_int, [c_void_p, c_void_p]),
    "dwarf_tag": (c_int, [c_void_p]),
    "dwarf_attr": (c_void_p, [c_void_p, c_uint, POINTER(Attribute)]),
    "dwarf_attr_integrate": (c_void_p, [c_void_p, c_uint, POINTER(Attribute)]),
    "dwarf_formudata": (c_int, [c_void_p, _OUT64]),
    "dwarf_formstring": (c_char_p, [c_void_p]),
    "dwarf_diename": (c_char_p, [c_void_p]),
    "dwarf_getsrcfiles": (c_int, [c_void_p, POINTER(c_void_p), POINTER(c_size_t)]),
    "dwarf_filesrc": (c_char_p, [c_void_p, c_size_t, c_void_p, c_void_p]),
}
_HOOKS = (
    "dwfl_build_id_find_debuginfo",
    "dwfl_build_id_find_elf",
    "dwfl_linux_proc_find_elf",
    "dwfl_offline_section_address",
    "dwfl_standard_find_debuginfo",
)

libc = ctypes.CDLL(None)
libc.ptrace.argtypes, libc.ptrace.restype = [c_long, c_int, c_void_p, c_void_p], c_long

_loaded: list[ctypes.CDLL | None] = []
_callbacks: dict[tuple[str, str], Callbacks] = {}


def load() -> ctypes.CDLL | None:
    """libdw with its prototypes declared, or None when this machine has none; found once."""
    if not _loaded:
        _loaded.append(next(_libraries(), None))
    return _loaded[0]


def _libraries() -> Iterator[ctypes.CDLL]:
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(lib, name)
                function.restype, function.argtypes = result, arguments
            for name in _HOOKS:
                getattr(lib, name)
        except (OSError, AttributeError):  # not there, or a libdw too old to have the function
            continue
        yield lib


def _candidates() -> Iterator[str]:
    yield "libdw.so.1"
    # auditwheel puts a wheel's libraries into a directory beside the package.
    from importlib.util import find_spec

    try:
        spec = find_spec("drgn")
    except (ImportError, ValueError):
        return
    if spec is not None and spec.origin:
        folder = os.path.join(os.path.dirname(os.path.dirname(spec.origin)), "drgn.libs")
        if os.path.isdir(folder):
            yield from (os.path.join(folder, n) for n in os.listdir(folder) if n.startswith("libdw") and ".so" in n)


def begin(lib: ctypes.CDLL, find_elf: str, find_debuginfo: str) -> int | None:
    """A new Dwfl session with libdw's own functions of these names as callbacks."""
    names = find_elf, find_debuginfo
    if names not in _callbacks:
        hooks = (*names, "dwfl_offline_section_address")
        _callbacks[names] = Callbacks(*(ctypes.cast(getattr(lib, name), c_void_p) for name in hooks), None)
    session: int | None = lib.dwfl_begin(ctypes.byref(_callbacks[names]))
    return session


def visit(call: Callable[[object], object], body: Callable[[int], bool]) -> None:
    """Run `call` with a C callback that hands each handle to `body`, until that returns False.

    An exception of `body` (KeyboardInterrupt above all) ends the walk and is raised after it:
    within the callback ctypes would print and drop it.
    """
    failed: list[BaseException] = []

    def step(handle: int, _: int) -> int:
        try:
            return DWARF_CB_OK if body(handle) else DWARF_CB_ABORT
        except BaseException as error:
            failed.append(error)
            return DWARF_CB_ABORT

    call(Callback(step))
    if failed:
        raise failed[0]


def stack(lib: ctypes.CDLL, session: int, tid: int, limit: int) -> list[int]:
    """At most `limit` program counters of a thread that the session is attached to, innermost first.

    The first is the thread's rip. One that is a return address is lowered by one, so that it lies in the call it
    returns from. Ends early where unwinding fails.
    """
    found: list[int] = []
    pc, activation = c_uint64(), c_bool()

    def add(frame: int) -> bool:
        if not lib.dwfl_frame_pc(frame, ctypes.byref(pc), ctypes.byref(activation)):
            return False
        if not activation.value:
            if pc.value == 0:  # the outermost caller, by frame pointers
                return False
            pc.value -= 1
        found.append(pc.value)
        return len(found) < limit

    visit(lambda callback: lib.dwfl_getthread_frames(session, tid, callback, None), add)
    return found


def unit_ranges(lib: ctypes.CDLL, module: int) -> list[tuple[int, int, int]]:
    """`(start, end, DIE)` in file addresses of every compilation unit."""
    bias = c_uint64()
    found = []
    die = lib.dwfl_module_nextcu(module, None, ctypes.byref(bias))
    while die is not None:
        found += [(start + bias.value & MOST, end + bias.value & MOST, die) for start, end in _ranges(lib, die)]
        die = lib.dwfl_module_nextcu(module, die, ctypes.byref(bias))
    return found


def function_ranges(lib: ctypes.CDLL, unit: int) -> tuple[int | Die, list[tuple[int, int, bytes]]]:
    """The unit that holds the functions, and the sorted `(start, end, DIE)` of each.

    Not by dwarf_getscopes: that does not look into what has no addresses itself, so it misses the
    functions in a namespace (Rust) and of a local class (a lambda), and takes longer.
    """
    kind, split = c_uint8(), ctypes.create_string_buffer(DIE_SIZE)
    holder: int | Die = unit
    cu = c_void_p.from_address(unit + ctypes.sizeof(c_void_p))  # Dwarf_Die.cu
    if lib.dwarf_cu_info(cu, None, ctypes.byref(kind), None, split, None, None, None) == 0 and any(split.raw):
        holder = split if kind.value == DW_UT_SKELETON else unit
    found: list[tuple[int, int, bytes]] = []

    def add(die: int) -> bool:
        found.extend((start, end, ctypes.string_at(die, DIE_SIZE)) for start, end in _ranges(lib, die))
        return True

    visit(lambda callback: lib.dwarf_getfuncs(holder, callback, None, 0), add)
    # Several may have one range (assembler functions with aliases): always the same one is then found.
    return holder, sorted(found, key=lambda r: r[:2])


def inlined(lib: ctypes.CDLL, die: Die, pc: int) -> list[Die]:
    """The functions inlined at `pc` below a function's DIE, outermost first."""
    found = []
    scope: Die | None = die
    while scope is not None:
        child = ctypes.create_string_buffer(DIE_SIZE)
        more = lib.dwarf_child(scope, child)
        scope = None
        while more == 0:
            tag = lib.dwarf_tag(child)
            if tag in SCOPES and lib.dwarf_haspc(child, pc) > 0:
                scope = child
                if tag == DW_TAG_INLINED_SUBROUTINE:
                    found.append(child)
                break
            more = lib.dwarf_siblingof(child, child)
    return found


def _ranges(lib: ctypes.CDLL, die: int) -> Iterator[tuple[int, int]]:
    base, start, end = (c_uint64() for _ in range(3))
    step = 0
    while (step := lib.dwarf_ranges(die, step, ctypes.byref(base), ctypes.byref(start), ctypes.byref(end))) > 0:
        if start.value:  # 0: what the linker discarded
            yield start.value, end.value


def symbol(lib: ctypes.CDLL, module: int, address: int) -> tuple[str, int, int, int] | None:
    """Name, offset, type and size of the symbol that libdw takes for the best at an address."""
    offset, sym = c_uint64(), Sym()
    raw = lib.dwfl_module_addrinfo(module, address, ctypes.byref(offset), ctypes.byref(sym), None, None, None)
    return None if raw is None else (raw.decode("utf-8", "replace"), offset.value, sym.info & 15, sym.size)


def functions(lib: ctypes.CDLL, module: int) -> dict[str, list[tuple[int, int]]]:
    """Addresses and sizes of the functions, by name. Sections of a relocatable file lie where libdw puts them."""
    sym, found = Sym(), dict[str, list[tuple[int, int]]]()
    for number in range(max(0, lib.dwfl_module_getsymtab(module))):
        name = lib.dwfl_module_getsym(module, number, ctypes.byref(sym), None)
        if name and sym.info & 15 in _FUNCTIONS:
            found.setdefault(name.decode("utf-8", "replace"), []).append((sym.value, sym.size))
    return found


def line(lib: ctypes.CDLL, unit: int, pc: int) -> str | None:
    """ "path:line" of an address, from the line table."""
    row = lib.dwarf_getsrc_die(unit, pc)
    number = c_int()
    if row is None or lib.dwarf_lineno(row, ctypes.byref(number)) != 0:
        return None
    return _source(lib.dwarf_linesrc(row, None, None), number.value)


def call_site(lib: ctypes.CDLL, unit: int | Die, die: Die) -> str | None:
    """Where the function of an inlined instance was called."""
    attribute, file, line = Attribute(), c_uint64(), c_uint64()
    files = c_void_p()
    for code, value in ((DW_AT_CALL_FILE, file), (DW_AT_CALL_LINE, line)):
        at = lib.dwarf_attr(die, code, ctypes.byref(attribute))
        if at is None or lib.dwarf_formudata(at, ctypes.byref(value)) != 0:
            return None
    if lib.dwarf_getsrcfiles(unit, ctypes.byref(files), None) != 0:
        return None
    return _source(lib.dwarf_filesrc(files, file.value, None, None), line.value)


def _source(path: bytes | None, line: int) -> str | None:
    return f"{path.decode('utf-8', 'replace')}:{line}" if path and line > 0 else None  # line 0: the compiler's own


def die_name(lib: ctypes.CDLL, die: Die) -> tuple[str | None, bool]:
    """The name of a function's DIE, and whether it is the whole name, scope and arguments included."""
    attribute = Attribute()
    for code in (DW_AT_LINKAGE_NAME, DW_AT_MIPS_LINKAGE_NAME):
        at = lib.dwarf_attr_integrate(die, code, ctypes.byref(attribute))
        if at is not None and (raw := lib.dwarf_formstring(at)):
            return demangle(raw.decode("utf-8", "replace")), True
    raw = lib.dwarf_diename(die)
    return (raw.decode("utf-8", "replace") if raw else None), False


def can_read_registers(tid: int) -> bool:
    """Whether this thread traces `tid` and has it stopped, which is what libdw's unwinder needs."""
    return bool(libc.ptrace(PTRACE_GETREGS, tid, None, ctypes.create_string_buffer(USER_REGS_SIZE)) == 0)
