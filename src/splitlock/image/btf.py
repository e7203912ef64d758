"""BTF: where in the kernel's structures a field lies, as the kernel itself carries it.

Source: Documentation/bpf/btf.rst. Read from a vmlinux's section .BTF, or from the memory between __start_BTF and
__stop_BTF.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from splitlock._errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC, _VOID = 0xEB9F, 0
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_FUNC, _FUNC_PROTO = 12, 13
_FLOAT, _ENUM64 = 16, 19
_ALIASES = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
# bytes after a type's header: fixed, and for each of its members
_EXTRA = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0),
          19: (0, 12)}  # fmt: skip
_LAST = 19
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_POINTER = 8  # bytes
_DEEP = 32


class Field(NamedTuple):
    """A member of a structure."""

    offset: int  #: in the structure, in bytes
    size: int  #: in bytes
    type: int  #: its number


class Btf:
    """The types in BTF data. Raises ImageError where it does not hold together.

    `base`: the kernel's own, whose types and names a module's go on from.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < _HEADER.size:
            raise ImageError("BTF: cut short")
        magic, _, _, head, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ImageError("BTF: not in it")
        own, end = data[head + strings : head + strings + strings_size], head + types + types_size
        if end > len(data):
            raise ImageError("BTF: cut short")
        before = len(base._data) if base else 0
        self._data: bytes = base._data + data if base else data
        self._strings: bytes = base._strings + own if base else own
        data = self._data
        self._types: list[int] = list(base._types) if base else [0]  # where each begins; type 0 is void
        self._named: dict[str, int] = dict(base._named) if base else {}
        self._functions: dict[str, int] | None = None
        at, end = before + head + types, before + end
        while at < end:
            if at + _TYPE.size > end:
                raise ImageError("BTF: cut short")
            name, info, _ = _TYPE.unpack_from(data, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            if not 0 < kind <= _LAST:
                raise ImageError(f"BTF: unknown kind of type, {kind}")
            if kind in (_STRUCT, _UNION) and name:
                self._named.setdefault(self._name(name), len(self._types))
            self._types.append(at)
            fixed, each = _EXTRA.get(kind, (0, 0))
            at += _TYPE.size + fixed + each * count
        if at != end:
            raise ImageError("BTF: cut short")

    def _name(self, at: int) -> str:
        return self._strings[at : self._strings.find(b"\0", at)].decode("utf-8", "replace")

    def _type(self, number: int) -> tuple[int, int, int, int]:
        """Kind, number of members, size or referred type, and where in the data what follows begins."""
        for _ in range(_DEEP):
            if not 0 < number < len(self._types):
                break
            at = self._types[number]
            _, info, value = _TYPE.unpack_from(self._data, at)
            kind = info >> 24 & 31
            if kind not in _ALIASES:
                return kind, info & 0xFFFF, value, at + _TYPE.size
            number = value
        raise LookupError("BTF: a type that is none")

    def _size(self, number: int, depth: int = 0) -> int:
        kind, _, value, at = self._type(number)
        if kind == _PTR:
            return _POINTER
        if kind == _ARRAY and depth < _DEEP:
            element, _, count = struct.unpack_from("<III", self._data, at)
            return int(count * self._size(element, depth + 1))
        return value if kind in (_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64) else 0

    def size(self, structure: str) -> int:
        """Bytes of a structure or union. Raises LookupError where there is none of that name."""
        return self._size(self._structure(structure))

    def field(self, structure: str, path: str) -> Field:
        """A member, `path` with dots for one in another: `field("file", "f_path.dentry")`. Raises LookupError."""
        number, offset, size = self._structure(structure), 0, 0
        for name in path.split("."):
            found = self._member(number, name, 0)
            if found is None:
                raise LookupError(f"struct {structure} has no {path}")
            more, number = found
            offset += more
            size = self._size(number)
        return Field(offset, size, number)

    def offset(self, structure: str, path: str) -> int:
        """Bytes from the structure's start to a member. Raises LookupError."""
        return self.field(structure, path).offset

    def has(self, structure: str, path: str) -> bool:
        """Whether there is such a member."""
        try:
            self.field(structure, path)
        except LookupError:
            return False
        return True

    def parameters(self, function: str) -> list[tuple[str, int]]:
        """Names and types of a function's parameters. Raises LookupError where there is none of that name."""
        if self._functions is None:
            self._functions = {}
            for at in self._types[1:]:
                name, info, value = _TYPE.unpack_from(self._data, at)
                if info >> 24 & 31 == _FUNC:
                    self._functions.setdefault(self._name(name), value)
        kind, count, _, at = self._type(self._functions[function])
        if kind != _FUNC_PROTO:
            raise LookupError(f"{function} is no function")
        pairs = [struct.unpack_from("<II", self._data, at + 8 * each) for each in range(count)]
        return [(self._name(name), number) for name, number in pairs]

    def pointee(self, number: int) -> int | None:
        """The type that a pointer of a type points to; None where it is no pointer."""
        try:
            kind, _, value, _ = self._type(number)
        except LookupError:
            return None
        return value if kind == _PTR else None

    def structure_name(self, number: int) -> str:
        """`struct NAME` or `union NAME`; empty where a type is neither, or has no name."""
        try:
            kind, _, _, at = self._type(number)
        except LookupError:
            return ""
        name = self._name(_TYPE.unpack_from(self._data, at - _TYPE.size)[0])
        return f"{'struct' if kind == _STRUCT else 'union'} {name}" if kind in (_STRUCT, _UNION) and name else ""

    def members_at(self, number: int, offset: int, size: int, depth: int = 0) -> Iterator[tuple[str, int]]:
        """The members of a structure that are `size` bytes at an offset: path and type; a union can have several."""
        try:
            kind, count, _, at = self._type(number)
        except LookupError:
            return
        if depth > _DEEP:
            return
        if kind == _ARRAY:
            element, _, _ = struct.unpack_from("<III", self._data, at)
            if each := self._size(element):
                for path, inner in self.members_at(element, offset % each, size, depth + 1):
                    yield f"[{offset // each}]{_dot(path)}", inner
        elif kind not in (_STRUCT, _UNION):
            if offset == 0 and self._size(number) == size:
                yield "", number
        else:
            for member in range(count):
                label, inner, bits = _MEMBER.unpack_from(self._data, at + member * _MEMBER.size)
                start = (bits & 0xFF_FFFF) // 8
                if start <= offset < start + max(self._size(inner), 1):
                    for path, found in self.members_at(inner, offset - start, size, depth + 1):
                        yield (f"{self._name(label)}{_dot(path)}" if label else path), found

    def _structure(self, name: str) -> int:
        try:
            return self._named[name]
        except KeyError:
            raise LookupError(f"no struct {name}") from None

    def _member(self, number: int, name: str, depth: int) -> tuple[int, int] | None:
        """Offset in bytes and type of a member, also of one in a member without a name."""
        kind, count, _, at = self._type(number)
        if kind not in (_STRUCT, _UNION) or depth > _DEEP:
            return None
        for member in range(count):
            label, inner, bits = _MEMBER.unpack_from(self._data, at + member * _MEMBER.size)
            offset = (bits & 0xFF_FFFF) // 8  # the upper byte is a bit field's width, where there are any
            if label:
                if self._name(label) == name:
                    return offset, inner
            else:
                found = self._member(inner, name, depth + 1)
                if found is not None:
                    return offset + found[0], found[1]
        return None


def _dot(path: str) -> str:
    """A path as it goes on behind a name."""
    return f".{path}" if path and not path.startswith("[") else path
