"""What is an operand in words of the source? `skb->head + skb->end + 0x20`: by what it is made of, and the types."""

from __future__ import annotations

from itertools import islice

from splitlock.x86.origin import Argument, Load, Sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.btf import Btf

_MOST = 16  # members of one union that are looked at
_LONGEST = 120  # characters; what is longer tells nobody anything


class Words:
    """The words for a function's values. Raises LookupError where the function's types are not known."""

    def __init__(self, btf: Btf, function: str) -> None:
        self._btf = btf
        self._parameters = btf.parameters(function)

    def operand(self, address: Sum, size: int) -> str:
        """`ring->users (struct splitoops_ring)` where a structure's member is known, else the sum; empty: neither."""
        found = self._member(address, size)
        if found is not None:
            text, structure, _ = found
            text += f" ({structure})" if structure else ""
        else:
            text = self._sum(address)
        return text if len(text) <= _LONGEST else ""

    def _sum(self, value: Sum) -> str:
        words = []
        for term, factor in value.terms:
            word = self._term(term)
            if not word:
                return ""
            words.append(word if factor == 1 else f"{factor} * {word}")
        if value.constant or not words:
            words.append(f"{value.constant:#x}")
        return " + ".join(words).replace("+ -", "- ")

    def _term(self, term: Argument | Load) -> str:
        if isinstance(term, Argument):
            return self._parameters[term.number][0] if term.number < len(self._parameters) else ""
        found = self._member(term.address, term.size)
        return found[0] if found else ""

    def _type(self, value: Sum) -> tuple[str, int, int] | None:
        """A pointer's words, what it points to, and the bytes that are added to it."""
        if len(value.terms) != 1 or value.terms[0][1] != 1:
            return None
        term = value.terms[0][0]
        if isinstance(term, Argument):
            if term.number >= len(self._parameters):
                return None
            name, number = self._parameters[term.number]
        else:
            found = self._member(term.address, term.size, pointer=True)
            if found is None:
                return None
            name, _, number = found
        pointee = self._btf.pointee(number)
        return None if pointee is None else (name, pointee, value.constant)

    def _member(self, address: Sum, size: int, *, pointer: bool = False) -> tuple[str, str, int] | None:
        """A structure's member at an address: its words, the structure, the member's type. Of a union's several the
        one that is a pointer, where one is wanted."""
        base = self._type(address)
        if base is None:
            return None
        name, structure, offset = base
        members = list(islice(self._btf.members_at(structure, offset, size), _MOST)) if offset >= 0 else []
        if pointer:
            members.sort(key=lambda member: self._btf.pointee(member[1]) is None)
        if not members or not name:
            return None
        path, number = members[0]
        return (f"{name}->{path}" if path else f"*{name}"), self._btf.structure_name(structure), number
