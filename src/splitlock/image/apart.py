"""What does a stranger's ELF file say of an address? Read by libdw in a child process, never in our own.

libdw is a large library of C, and the file, its debug information and their sizes are whoever's made the program. So
one child without rights (image/child.py) reads all files, and sends back names and numbers. When it dies or does not
answer, another one reads the file's symbol table alone, and `Symbols.failure` says what happened. A child that never
answered anything says nothing of a file.
"""

from __future__ import annotations

import os

from splitlock.image import child
from splitlock.image.child import FailedError
from splitlock.image.symbols import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeVar

    from splitlock.image.child import Reader

    T = TypeVar("T")
    _Fault = Literal["libdw", "both", "start"]

_MOST = 4096  # functions that one address may be in
_AGAIN = "The file or its debug information is damaged, or made to do harm: install it again, and ask once more"
#: What failed over a file, and how -> what is not known for it, and the way on.
_SENTENCES: dict[_Fault, str] = {
    "libdw": "libdw could not read {} ({}). Functions are by its symbol table alone, source lines are not known. "
    + _AGAIN,
    "both": "neither libdw nor a reader of symbol tables could read {} ({}). Functions and source lines are not known. "
    + _AGAIN,
    "start": "{} was not read: the process that reads ELF files does not start ({}). Functions and source lines are "
    "not known. See to memory and to the number of processes, or install splitlock again, and ask once more",
}


class Symbols:
    """The names in one ELF image, with its separate debug information where that is installed.

    The file is opened at the first question. `descriptor`: it is open already, and `path` its name only; the descriptor
    stays the caller's. `beside`: whether debug information may be looked for by that name, too. libdw looks for it by
    build-id and debug link below /usr/lib/debug, and asks the servers in $DEBUGINFOD_URLS if that is set (not as root),
    as gdb and perf do. As root only what everybody may read is found so.

    Nothing here raises because of what a file holds: what cannot be read is not known.
    """

    def __init__(self, path: str, descriptor: int | None = None, *, beside: bool = True) -> None:
        self.path = path
        self.failure = ""  #: what became of libdw over this file: `killed by signal 11`; empty: it read it
        self._beside, self._plain, self._closed, self._own = beside, False, False, descriptor is None
        self._fault: _Fault = "libdw"  # of what, where there is a failure
        self._file = descriptor
        self._at: tuple[Reader, int] | None = None  # who has it open, by which number
        self._kept: dict[tuple[object, ...], object] = {}

    def __enter__(self) -> Symbols:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free the file. Answers already given are still given, others are then unknown."""
        self._closed = True
        at, self._at = self._at, None
        if at is not None:
            at[0].forget(at[1])
        if self._own and self._file is not None:
            os.close(self._file)
            self._file = None

    def frames(self, address: int) -> list[Frame]:
        """The functions at a file address, innermost first; the last is the one that was not inlined.

        Empty when nothing is known. Its `source` is where the address itself comes from; that of
        each further frame is where the one before it was inlined (DW_AT_call_file, _line).
        """
        return list(self._ask("frames", address, _frames, list[Frame]()))

    def named(self, name: str) -> list[tuple[int, int]]:
        """File addresses and sizes of the functions of a name, as the symbol table spells it. Empty without libdw.

        In a relocatable file (a kernel module) the addresses are those that `frames` takes, and no others'.
        """
        return list(self._ask("named", name, _pairs, list[tuple[int, int]]()))

    def data(self, address: int) -> tuple[str, int, str] | None:
        """The data object at a file address: `(name, offset into it, section name)`.

        The name is "" and the offset that into the section when no sized object symbol holds the
        address. None outside all sections. Thread-local objects have no address and are not found.
        """
        return self._ask("data", address, _object, None)

    def section(self, address: int) -> str | None:
        """The name of the section loaded at a file address."""
        return self._ask("section", address, _word, None)

    @property
    def trouble(self) -> str:
        """What to say where libdw did not read the file, and what to do; empty: it did, or was not asked."""
        return self.trouble_of(self.path)

    def trouble_of(self, name: str) -> str:
        """The same of a file that users know by another name."""
        return f"cannot say: {_SENTENCES[self._fault].format(name, self.failure)}" if self.failure else ""

    def _ask(self, what: str, about: int | str, checked: Callable[[object], T], unknown: T) -> T:
        key = what, about
        if key not in self._kept:
            if self._closed or not self._opened():
                return unknown
            self._kept[key] = self._answer(what, about, checked, unknown)
        return self._kept[key]  # type: ignore[return-value]  # of this very question

    def _opened(self) -> bool:
        """Is there a file? To open a device or a pipe may do or wait for something."""
        if self._file is None and os.path.isfile(self.path):
            try:
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (OSError, ValueError):
                self._closed = True
        return self._file is not None

    def _answer(self, what: str, about: int | str, checked: Callable[[object], T], unknown: T) -> T:
        """By libdw; where that fails once, from then on by the symbol table alone; else unknown for good."""
        while True:
            try:
                reader, number = self._handed()
                return reader.checked(checked, reader.ask(what, number, about))
            except FailedError as failed:
                self._at = None
                self.failure = self.failure or str(failed)
                if self._plain or not failed.begun:
                    self._fault = "both" if failed.begun else "start"
                    self._closed = True
                    return unknown
                self._plain = True

    def _handed(self) -> tuple[Reader, int]:
        """The child that has the file open, and its number there. It reads nothing of a file until it is asked."""
        assert self._file is not None
        reader = child.reader()
        if self._at is None or self._at[0] is not reader:
            name = os.path.abspath(self.path)
            try:
                number = reader.open(self._file, name, beside=self._beside, plain=self._plain)
            except FailedError as failed:
                if not failed.begun:
                    raise
                return self._handed()  # it died since it was last asked: of no file's fault, or another's
            self._at = reader, number
        return self._at


def _frames(answer: object) -> list[Frame]:
    return [Frame(_word(name), _word(source), inlined is True) for name, source, inlined in _rows(answer, 3)]


def _pairs(answer: object) -> list[tuple[int, int]]:
    return [(_number(address), _number(size)) for address, size in _rows(answer, 2)]


def _object(answer: object) -> tuple[str, int, str] | None:
    if answer is None:
        return None
    ((name, offset, section),) = _rows([answer], 3)
    return _word(name) or "", _number(offset), _word(section) or ""


def _rows(answer: object, width: int) -> list[list[object]]:
    if not isinstance(answer, list) or len(answer) > _MOST:
        raise ValueError
    if not all(isinstance(row, list) and len(row) == width for row in answer):
        raise ValueError
    return answer


def _word(answer: object) -> str | None:
    if answer is not None and not isinstance(answer, str):
        raise ValueError
    return answer


def _number(answer: object) -> int:
    if type(answer) is not int:
        raise ValueError
    return answer
