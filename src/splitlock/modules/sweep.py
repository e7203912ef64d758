"""A linear decode of `.text` from its first byte to its last, as the patches of April 2020 did it.

It is blind where they were: to other sections, and to what follows data bytes that put it out of step.
Their decoder was laxer than ours. Text was malformed where insn_complete() was false after insn_get_length(): past
the end of the text, or past 15 bytes; an opcode that it does not know is complete, without operands (patch "x86,module:
Detect VMX vs SLD conflicts", 7 April 2020; arch/x86/lib/insn.c). Here everything undecodable is MALFORMED.
"""

from __future__ import annotations

from iced_x86 import Code, Decoder, Mnemonic

from splitlock.image.module import KernelImage
from splitlock.x86.privileged import classify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# 0F 78 and 0F 79 with a prefix: the patches looked at the opcode alone and took these for VMREAD and VMWRITE.
_TAKEN_FOR_VMX = {Mnemonic.EXTRQ: "EXTRQ", Mnemonic.INSERTQ: "INSERTQ"}


def sweep(data: bytes) -> Iterator[tuple[str, int]]:
    """The (kind, offset in .text) of the privileged instructions that a linear decode meets, in order.

    Ends with ("MALFORMED", offset) at the first bytes that are no instruction. Raises ImageError on what is no ELF.
    """
    text = next((code for code in KernelImage(data).code if code.section == ".text"), None)
    if text is None:
        return
    for instruction in Decoder(64, bytes(text.data)):
        kind = classify(instruction) or _TAKEN_FOR_VMX.get(instruction.mnemonic)
        if kind is not None:
            yield kind, instruction.ip
        elif instruction.code == Code.INVALID:
            yield "MALFORMED", instruction.ip
            return
