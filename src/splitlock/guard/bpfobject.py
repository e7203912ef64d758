"""A compiled BPF object: opened, loaded, attached, pinned. `libbpf` says what of libbpf is used."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from ctypes import c_int, c_size_t, c_uint32, c_void_p

from splitlock.guard import libbpf
from splitlock.guard.kernel import Missing
from splitlock.guard.libbpf import Map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts"""

    _fields_ = [
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p),
        ("data_size_in", c_uint32), ("data_size_out", c_uint32),
        ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32), ("ctx_size_out", c_uint32),
        ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32),
        ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    ]  # fmt: skip


class Object:
    """One object file. A context: leaving it closes what is not pinned."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = libbpf.library()
        libbpf.printed()
        self._object = self._library.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise libbpf.failure(path)
        self._links: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        program = None
        while program := self._library.bpf_object__next_program(self._object, program):
            self.programs[self._library.bpf_program__name(program).decode()] = program

    def __enter__(self) -> Object:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all file descriptors; pinned links and maps live on."""
        for link in self._links.values():
            self._library.bpf_link__destroy(link)
        self._links = {}
        if self._object:
            self._library.bpf_object__close(self._object)
        self._object = None

    def leave_out(self, name: str) -> None:
        """Do not load this program, if there is one."""
        if name in self.programs:
            self._library.bpf_program__set_autoload(self.programs.pop(name), False)

    def load(self) -> None:
        """Through the verifier. Raises Missing, with the verifier's log in a file."""
        result = self._library.bpf_object__load(self._object)
        if result:
            raise _not_loaded(self.path, -result)

    @property
    def maps(self) -> dict[str, Map]:
        """The loaded maps by name."""
        found, at = {}, None
        while at := self._library.bpf_object__next_map(self._object, at):
            found[self._library.bpf_map__name(at).decode()] = Map(self._library.bpf_map__fd(at))
        return found

    def attach(self, name: str) -> None:
        """Attach a program where its section says."""
        link = self._library.bpf_program__attach(self.programs[name])
        if not link:
            raise Missing(str(libbpf.failure(f"attaching {name}")))
        self._links[name] = link

    def pin_map(self, name: str, path: str) -> None:
        """Pin a map."""
        found = self._library.bpf_object__find_map_by_name(self._object, name.encode())
        result = self._library.bpf_map__pin(found, os.fsencode(path))
        if result:
            raise libbpf.failure(f"pinning {path}", result)

    def pin_link(self, name: str, path: str) -> None:
        """Pin the link of an attached program."""
        result = self._library.bpf_link__pin(self._links[name], os.fsencode(path))
        if result:
            raise libbpf.failure(f"pinning {path}", result)

    def run(self, name: str, data: bytes = b"", context: bytes = b"") -> int:
        """Run a loaded program once (BPF_PROG_TEST_RUN); its return value. Raises OSError."""
        options = _TestRun(sz=ctypes.sizeof(_TestRun))
        if data:
            options.data_in = ctypes.cast(ctypes.c_char_p(data), c_void_p)
            options.data_size_in = len(data)
        if context:
            options.ctx_in = ctypes.cast(ctypes.c_char_p(context), c_void_p)
            options.ctx_size_in = len(context)
        fd = self._library.bpf_program__fd(self.programs[name])
        if self._library.bpf_prog_test_run_opts(fd, ctypes.byref(options)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), name)
        return int(options.retval)


def _not_loaded(path: str, number: int) -> Missing:
    """What to say when the kernel does not take the object: its reason if there is one, and where all of it is."""
    if number == errno.EPERM:
        return Missing(
            f"{os.path.basename(path)}: the kernel forbids programs on LSM hooks here (EPERM: in a container, or by a "
            "security module)"
        )
    text = libbpf.printed()
    where = ""
    if text:
        try:
            with tempfile.NamedTemporaryFile("w", prefix="splitlock-gate-", suffix=".log", delete=False) as file:
                file.write(text)
            where = f"; all the kernel said is in {file.name}"
        except OSError:
            pass
    lines = [line.removeprefix("libbpf: ").strip() for line in text.splitlines()]
    told = next((line for line in reversed(lines) if _telling(line)), "")
    said = f" ({told})" if told else ""
    return Missing(f"{os.path.basename(path)}: the kernel does not take it: {os.strerror(number)}{said}{where}")


def _telling(line: str) -> bool:
    """Is a line of the verifier's or libbpf's one that names the cause?"""
    if not line or line.startswith(("processed ", "prog '", "--", "failed to load object", "verification time")):
        return False
    return "END PROG" not in line and "BEGIN PROG" not in line
