"""The signature appended to a kernel module: who made it, with which key, over which hash. Not verified here.

Behind the module's ELF image lie a PKCS#7 message, a 12-byte struct that says how long it is, and a marker
(include/linux/module_signature.h). Of the message only the first signer's identity is read
(SignerInfo of RFC 5652, 5.3): a walk along DER's tags, no ASN.1 library needed.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

MARKER = b"~Module signature appended~\n"
_PKCS7 = 2  # id_type of the struct
_STRUCT = 12


class Signature(NamedTuple):
    """Who signed a module."""

    signer: str  #: common name of the certificate's issuer; empty where the signer is named by key alone
    key_id: str  #: serial number or subject key identifier, upper-case hex bytes as modinfo prints them
    hash_algorithm: str  #: sha256, or a dotted object identifier


_COMMON_NAME = bytes.fromhex("550403")
_HASHES = {
    bytes.fromhex("2b0e03021a"): "sha1",
    **{
        bytes.fromhex("6086480165030402") + bytes([n]): name
        for n, name in enumerate(["sha256", "sha384", "sha512", "sha224"], 1)
    },
    **{bytes.fromhex("6086480165030402") + bytes([n]): f"sha3-{bits}" for n, bits in ((8, 256), (9, 384), (10, 512))},
}
_LONGEST = 64  # bytes of an object identifier; those of hashes have 9
_SEQUENCE, _SET, _INTEGER, _OID, _CONTEXT_0, _KEY_ID = 0x30, 0x31, 0x02, 0x06, 0xA0, 0x80


def read_signature(data: bytes | mmap) -> Signature | None:
    """The signature behind a module's image, None when there is none.

    One that cannot be read (not PKCS#7, or malformed) gives empty fields: it is there all the same.
    """
    end = len(data) - len(MARKER)
    if end < _STRUCT or data[end:] != MARKER:
        return None
    trailer = data[end - _STRUCT : end]
    size = int.from_bytes(trailer[8:], "big")
    start = end - _STRUCT - size
    if trailer[2] != _PKCS7 or start < 0:
        return Signature("", "", "")
    try:
        return _remembered(data[start : end - _STRUCT])
    except (IndexError, ValueError):
        return Signature("", "", "")


_last: tuple[int, bytes, Signature] = (0, b"", Signature("", "", ""))


def _remembered(der: bytes) -> Signature:
    """_signer() of a message: thousands of modules differ in nothing but what comes behind the part that is read."""
    global _last  # noqa: PLW0603  # a cache of one
    size, head, known = _last
    if size == len(der) and der.startswith(head):
        return known
    known, used = _signer(der)
    _last = len(der), der[:used], known
    return known


def _signer(der: bytes) -> tuple[Signature, int]:
    """What the message says, and how many of its bytes that took."""
    _, at, _ = _enter(der, 0, _SEQUENCE)  # ContentInfo
    at = _skip(der, at)
    _, at, _ = _enter(der, at, _CONTEXT_0)
    _, at, end = _enter(der, at, _SEQUENCE)  # SignedData
    for _ in range(3):  # version, digest algorithms, contents
        at = _skip(der, at)
    while at < end and der[at] != _SET:  # certificates and revocation lists, if any
        at = _skip(der, at)
    _, at, _ = _enter(der, at, _SET)  # SignerInfos
    _, at, _ = _enter(der, at, _SEQUENCE)
    at = _skip(der, at)
    signer, key = "", b""
    tag, inner, after = _enter(der, at)
    if tag == _SEQUENCE:  # issuer and serial number
        who = der[:after]  # nothing in it reaches beyond it: the last byte that is read is the algorithm's
        signer = _common_name(who, inner)
        _, value, stop = _enter(who, _skip(who, inner), _INTEGER)
        key = who[value:stop]
    elif tag == _KEY_ID:
        key = der[inner:after]
    _, at, _ = _enter(der, after, _SEQUENCE)
    _, at, stop = _enter(der, at, _OID)
    algorithm = _HASHES.get(der[at:stop]) or _dotted(der[at:stop])
    return Signature(signer, key.hex(":").upper(), algorithm), stop


def _common_name(der: bytes, at: int) -> str:
    """The common name in a Name: a sequence of sets of (type, value)."""
    _, at, end = _enter(der, at, _SEQUENCE)
    while at < end:
        _, pair, at = _enter(der, at, _SET)
        _, pair, _ = _enter(der, pair, _SEQUENCE)
        _, kind, value = _enter(der, pair, _OID)
        if der[kind:value] == _COMMON_NAME:
            _, text, stop = _enter(der, value)
            return der[text:stop].decode("utf-8", "replace")
    return ""


def _enter(der: bytes, at: int, wanted: int | None = None) -> tuple[int, int, int]:
    """Tag, start and end of the contents of the element at `at`; IndexError or ValueError when it is none."""
    tag, size = der[at], der[at + 1]
    at += 2
    if size & 0x80:
        width = size & 0x7F
        size = int.from_bytes(der[at : at + width], "big")
        at += width
    if at + size > len(der) or (wanted is not None and tag != wanted):
        raise ValueError("not the element looked for")
    return tag, at, at + size


def _skip(der: bytes, at: int) -> int:
    return _enter(der, at)[2]


def _dotted(raw: bytes) -> str:
    """An object identifier in dotted form."""
    if not 0 < len(raw) <= _LONGEST:
        return ""
    parts, value = [min(raw[0] // 40, 2), raw[0] - 40 * min(raw[0] // 40, 2)], 0
    for byte in raw[1:]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            parts.append(value)
            value = 0
    return ".".join(map(str, parts))
