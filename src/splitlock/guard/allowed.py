"""Modules let in whatever is found in them: the list of `guard allow`, by the SHA-256 of their contents."""

from __future__ import annotations

import hashlib
import os

from splitlock._errors import SplitlockError
from splitlock.guard import gate
from splitlock.image.package import Failure, File, Member, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guard.libbpf import Map

_LIMIT = 512 << 20  # bytes of a file


def contents(path: str) -> Member:
    """The one module in a file, decompressed. Raises SplitlockError where there is none, or more (a package)."""
    found = list(read(File(path, True)))
    for each in found:
        if isinstance(each, Failure):
            raise SplitlockError(f"{path}: {each.reason}", 2)
    if len(found) != 1 or found[0].member is not None:
        raise SplitlockError(f"{path}: a package; name one module", 2)
    member = found[0]
    assert isinstance(member, Member)
    return member


def digests(path: str) -> list[str]:
    """What the kernel may see of a module's file: its contents decompressed and, when it is compressed, as they are.

    A file that is not compressed is seen as it is, its signature included. Raises SplitlockError.
    """
    member = contents(path)
    found = [hashlib.sha256(member.data).hexdigest()]
    try:
        with open(path, "rb") as file:
            raw = hashlib.sha256(file.read(_LIMIT)).hexdigest()
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}", 2) from None
    return found if raw in found else [*found, raw]


def change(path: str, remove: bool) -> list[str]:
    """Put a module on the running gate's list, or take it off; the digests. Raises SplitlockError.

    To take one off whose file is gone, `path` may be its digest.
    """
    given = len(path) == 64 and not os.path.exists(path) and not set(path.lower()) - set("0123456789abcdef")
    found = [path.lower()] if given else digests(path)
    if given and not remove:
        raise SplitlockError(f"allow {path}: name the module's file; only --remove takes a digest", 2)
    with gate.opened("allowed") as allowed:
        removed = [_change(allowed, bytes.fromhex(digest), remove) for digest in found]
    if not any(removed):
        raise SplitlockError(f"allow --remove {path}: it is not on the list (splitlock guard status shows it)", 2)
    return found


def _change(allowed: Map, digest: bytes, remove: bool) -> bool:
    if remove:
        return allowed.delete(digest)
    try:
        allowed.write(digest, (1).to_bytes(8, "little"))
    except OSError as error:
        raise SplitlockError(f"guard allow: {error.strerror}; is the list full? --remove takes one off", 2) from None
    return True


def listed() -> list[str]:
    """The digests on the running gate's list."""
    with gate.opened("allowed") as allowed:
        return sorted(key.hex() for key in allowed.keys(32))
