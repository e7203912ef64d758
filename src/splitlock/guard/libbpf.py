"""libbpf through ctypes: as much of it as the gate needs. Sources: bpf/libbpf.h and bpf/bpf.h of libbpf 0.6 to 1.5.

What libbpf prints is kept: when loading fails it holds the verifier's log, which goes to a file, and the one
line that says what is wrong.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROG_TYPE_LSM = 29  # enum bpf_prog_type
_STRICT_ALL = 0xFFFFFFFF  # libbpf_set_strict_mode: errors as 1.0 gives them

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

# name: (result, arguments...)
_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "bpf_object__open_file": (c_void_p, c_char_p, c_void_p),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__next_program": (c_void_p, c_void_p, c_void_p),
    "bpf_object__find_map_by_name": (c_void_p, c_void_p, c_char_p),
    "bpf_object__next_map": (c_void_p, c_void_p, c_void_p),
    "bpf_program__name": (c_char_p, c_void_p),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_program__set_autoload": (c_int, c_void_p, ctypes.c_bool),
    "bpf_program__attach": (c_void_p, c_void_p),
    "bpf_link__pin": (c_int, c_void_p, c_char_p),
    "bpf_link__destroy": (c_int, c_void_p),
    "bpf_map__fd": (c_int, c_void_p),
    "bpf_map__name": (c_char_p, c_void_p),
    "bpf_map__pin": (c_int, c_void_p, c_char_p),
    "bpf_obj_get": (c_int, c_char_p),
    "bpf_map_lookup_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_update_elem": (c_int, c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_delete_elem": (c_int, c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_freeze": (c_int, c_int),
    "bpf_prog_get_fd_by_id": (c_int, c_uint32),
    "bpf_obj_get_info_by_fd": (c_int, c_int, c_void_p, POINTER(c_uint32)),
    "bpf_prog_test_run_opts": (c_int, c_int, c_void_p),
    "libbpf_set_print": (c_void_p, _PRINT),
    "libbpf_num_possible_cpus": (c_int,),
    "ring_buffer__new": (c_void_p, c_int, _SAMPLE, c_void_p, c_void_p),
    "ring_buffer__epoll_fd": (c_int, c_void_p),
    "ring_buffer__consume": (c_int, c_void_p),
    "ring_buffer__free": (None, c_void_p),
}
_printed: list[str] = []


@cache
def library() -> ctypes.CDLL:
    """libbpf. Raises SplitlockError where it is not installed."""
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            found = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        try:
            for function, (result, *arguments) in _FUNCTIONS.items():
                made = getattr(found, function)
                made.restype, made.argtypes = result, arguments
        except AttributeError as error:
            raise SplitlockError(f"{name}: too old: {error}; libbpf 0.6 or later is needed", 2) from None
        if name.endswith("0"):
            found.libbpf_set_strict_mode(_STRICT_ALL)
        found.libbpf_set_print(_keep)
        return found
    raise SplitlockError("libbpf.so.1 is not installed; install libbpf1 (Debian, Ubuntu) or libbpf (others)", 2)


def _printing(level: int, text: bytes, arguments: int) -> int:
    """What libbpf prints, put together; `arguments` is a va_list, which on x86-64 is passed as a pointer."""
    if level <= 1:  # warnings and information; what else is for debugging
        made = ctypes.create_string_buffer(1 << 24 if b"VERIFIER LOG" in text or text == b"%s" else 1 << 16)
        ctypes.CDLL(None).vsnprintf(made, c_size_t(len(made)), text, c_void_p(arguments))
        _printed.append(made.value.decode("utf-8", "replace"))
    return 0


_keep = _PRINT(_printing)  # as long as the library may call it


def printed() -> str:
    """What libbpf has printed since it was last asked."""
    text = "".join(_printed)
    _printed.clear()
    return text


def failure(what: str, result: int = 0) -> SplitlockError:
    """An error that a call of libbpf ended in: errno has it, and `result` as a negative number."""
    number = ctypes.get_errno() or -result
    return SplitlockError(f"{what}: {os.strerror(number)}", 2)


class Map:
    """A map by its file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def pinned(cls, path: str) -> Map:
        """The map pinned at `path`. Raises FileNotFoundError or another OSError."""
        return cls(_get(path))

    def close(self) -> None:
        """Close a map that `pinned` gave."""
        os.close(self.fd)

    def read(self, key: bytes, value: ctypes.Structure | ctypes.Array[c_uint64]) -> bool:
        """Fill `value` from the entry of `key`; whether there is one."""
        ctypes.set_errno(0)
        return not library().bpf_map_lookup_elem(self.fd, key, byref(value))

    def write(self, key: bytes, value: bytes | ctypes.Structure) -> None:
        """Set the entry of `key`. Raises OSError."""
        raw = bytes(value)
        if library().bpf_map_update_elem(self.fd, key, raw, 0):
            _raise()

    def delete(self, key: bytes) -> bool:
        """Remove the entry of `key`; whether there was one."""
        return not library().bpf_map_delete_elem(self.fd, key)

    def keys(self, size: int) -> Iterator[bytes]:
        """The keys, of `size` bytes each."""
        at, following = None, ctypes.create_string_buffer(size)
        while not library().bpf_map_get_next_key(self.fd, at, following):
            at = following.raw
            yield at

    def freeze(self) -> None:
        """No system call changes it any more. Raises OSError."""
        if library().bpf_map_freeze(self.fd):
            _raise()

    def info(self) -> tuple[int, int, int, int]:
        """Its type, and the sizes of key, value and (how many) entries: the start of struct bpf_map_info."""
        raw = _info(self.fd)
        return raw[0], raw[2], raw[3], raw[4]


def _get(path: str) -> int:
    fd: int = library().bpf_obj_get(os.fsencode(path))
    if fd < 0:
        _raise(path)
    return fd


def recursion_misses(path: str) -> int:
    """How often the program of the link pinned at `path` was not run, as it was interrupted on the same processor.

    0 where the kernel does not tell (before Linux 5.12). Raises OSError.
    """
    link = _get(path)
    try:
        program = library().bpf_prog_get_fd_by_id(_info(link)[2])  # struct bpf_link_info: type, id, prog_id
        if program < 0:
            _raise(path)
        try:
            raw = _info(program)
            return raw[52] | raw[53] << 32  # struct bpf_prog_info, byte 208
        finally:
            os.close(program)
    finally:
        os.close(link)


def _info(fd: int) -> ctypes.Array[c_uint32]:
    """What the kernel says of a map, a link or a program: the start of struct bpf_*_info. Raises OSError."""
    raw = (c_uint32 * 64)()
    size = c_uint32(ctypes.sizeof(raw))
    if library().bpf_obj_get_info_by_fd(fd, byref(raw), byref(size)):
        _raise()
    return raw


def _raise(path: str | None = None) -> None:
    number = ctypes.get_errno() or errno.EIO
    raise OSError(number, os.strerror(number), path)


class RingBuffer:
    """A consumer of a ring buffer map. `take(bytes)` is called for each record, and keeps its own exceptions."""

    def __init__(self, ring: Map, take: Callable[[bytes], None]) -> None:
        self._error: BaseException | None = None

        def sample(_: int, data: int, size: int) -> int:
            try:
                take(ctypes.string_at(data, size))
            except BaseException as error:  # must not unwind through C
                self._error = error
                return -1
            return 0

        self._callback = _SAMPLE(sample)  # as long as the buffer uses it
        self._buffer = library().ring_buffer__new(ring.fd, self._callback, None, None)
        if not self._buffer:
            raise failure("the gate's ring buffer")

    def fileno(self) -> int:
        """To be polled for reading."""
        fd: int = library().ring_buffer__epoll_fd(self._buffer)
        return fd

    def consume(self) -> int:
        """Take what is there; how many records. What `take` raised is raised here."""
        result: int = library().ring_buffer__consume(self._buffer)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if result < 0:
            raise failure("the gate's ring buffer", result)
        return result

    def close(self) -> None:
        """Unmap it."""
        library().ring_buffer__free(self._buffer)
