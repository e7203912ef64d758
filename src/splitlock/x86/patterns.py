"""Byte patterns of locked instructions: where decoding is worth while. Matches are candidates only."""

from __future__ import annotations

import re

# A superset of all locked instructions in raw bytes: a LOCK prefix, further prefixes, an opcode
# that may take it; or xchg with a ModRM byte that names memory. Matches are candidates only.
PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3" + bytes(range(0x40, 0x50))  #: legacy ones, REX
_PREFIXES = rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3\x40-\x4f]*"
_LOCKABLE = (
    rb"(?:[\x00\x01\x08\x09\x10\x11\x18\x19\x20\x21\x28\x29\x30\x31\x80\x81\x83\x86\x87\xf6\xf7\xfe\xff]"
    rb"|\x0f[\xab\xb3\xba\xbb\xb0\xb1\xc0\xc1\xc7])"
)
CANDIDATE = re.compile(rb"\xf0" + _PREFIXES + _LOCKABLE + rb"[\x00-\xbf]|[\x86\x87][\x00-\xbf]", re.DOTALL)
# The same with an explicit LOCK prefix only: few false matches, for code without known bounds.
LOCK_PREFIXED = re.compile(rb"\xf0" + _PREFIXES + _LOCKABLE + rb"[\x00-\xbf]", re.DOTALL)
# xchg with memory without its prefixes; 86 would be that of a byte, which never splits.
EXCHANGE = re.compile(rb"\x87[\x00-\xbf]", re.DOTALL)
