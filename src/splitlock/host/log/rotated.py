"""Which files are one log, in which order? Rotated ones, the parts of a pstore dump, a directory's."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The kernel's log in a directory, by the name it begins with: what holds only the kernel's lines and all of them comes
#: first. `dmesg` is often the boot's alone.
FAMILIES = ("kern.log", "kernel.log", "kernel", "messages", "syslog", "dmesg")
# logrotate: kern.log.2.gz, kern.log-20260701.gz; savelog: dmesg.0; journald and pstore have names of their own
_ROTATED = re.compile(
    r"(.+?)(?:\.(\d{1,4})|-(\d{4}-?\d\d-?\d\d(?:[-T_]?\d{1,20})?))?(?:\.(?:gz|xz|zst|bz2|lz4|lzma))?$"
)
_PSTORE = re.compile(r"dmesg-[\w-]*?-?(\d{1,20})$")
_EFI = 10**13  # numbers from here on are EFI's: (seconds * 100 + part) * 1000 + count (efi-pstore.c, generic_id())
_PART = re.compile(rb"^(?:Panic|Oops|Emergency|Shutdown|Unknown|Restart|Halt|Poweroff)#(\d{1,9}) Part(\d{1,9})\n", re.M)
_UNIX = 10  # digits of the seconds since 1970, until 2286
_DUMP = 16 << 20  # bytes of a dump whose parts are put in order


def ordered(paths: Iterable[str]) -> list[str]:
    """Files to read, the oldest first; of a directory, those of its log. Raises SplitlockError where there is none."""
    found: list[str] = []
    for path in paths:
        found += _directory(path) if path != "-" and os.path.isdir(path) else [path]
    names = {_family(path) for path in found}
    if len(found) > 1 and len(names) == 1:
        found.sort(key=age)
    return list(dict.fromkeys(found))


def _directory(path: str) -> list[str]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; name a log file that can be read", 2) from None
    here = [os.path.join(path, name) for name in names if os.path.isfile(os.path.join(path, name))]
    for base in FAMILIES:
        if found := [each for each in here if _family(each)[1] == base]:
            return sorted(found, key=age)
    dumps = [each for each in here if _PSTORE.fullmatch(os.path.basename(each))]
    journals = [os.path.join(top, name) for top, _, files in os.walk(path) for name in files
                if ".journal" in name and os.path.isfile(os.path.join(top, name))]  # fmt: skip
    if not dumps and not journals:
        raise SplitlockError(f"{path}: no kernel log in this directory ({', '.join(FAMILIES)}, *.journal)", 2)
    return sorted(dumps, key=age) or sorted(journals)


def family(name: str) -> str:
    """The name that a file had before it was put aside and compressed."""
    if _PSTORE.fullmatch(name):
        return "dmesg-"
    match = _ROTATED.fullmatch(name)
    return match[1] if match else name


def _family(path: str) -> tuple[str, str]:
    return os.path.dirname(path), family(os.path.basename(path))


def age(path: str) -> tuple[int, int, str]:
    """Sorts the oldest first: by the date in the name, or by the number, the larger the older."""
    name = os.path.basename(path)
    if dump := _PSTORE.fullmatch(name):
        number = int(dump[1])
        if number < _EFI:
            return 0, number, name
        moment, part = divmod(number // 1000, 100)
        return moment, -part, name
    match = _ROTATED.fullmatch(name)
    if match and match[3]:
        return 0, int(re.sub(r"\D", "", match[3])), name
    return 1, -int(match[2]) - 1 if match and match[2] else 0, name


def number(path: str) -> int | None:
    """The number in a rotated file's name; None: there is none."""
    match = _ROTATED.fullmatch(os.path.basename(path))
    return int(match[2]) if match and match[2] else None


def date(path: str) -> tuple[int, bool] | None:
    """When a file was put aside, by the date in its name: seconds since 1970, and whether only the day is told."""
    match = _ROTATED.fullmatch(os.path.basename(path))
    if not match or not match[3]:
        return None
    digits = re.sub(r"\D", "", match[3])
    if len(digits) == _UNIX and digits < "1950":  # logrotate's dateformat -%s
        return int(digits), False
    try:
        day = datetime.strptime(digits[:8], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    hour, minute, second = (int(digits[at : at + 2] or 0) for at in (8, 10, 12))
    return int(day.timestamp()) + hour * 3600 + minute * 60 + second, len(digits) == len("20260701")


def beside(paths: Iterable[str]) -> tuple[str, ...]:
    """What was rotated from files that are named, and is not named itself."""
    given = [path for path in paths if path != "-" and not os.path.isdir(path)]
    found: list[str] = []
    for path in given:
        directory, base = _family(path)
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        same = [os.path.join(directory, name) for name in names if family(name) == base != "dmesg-"]
        found += [path for path in same if path not in given]
    return tuple(sorted(set(found), key=age))


def parts(texts: Iterator[bytes]) -> Iterator[bytes]:
    """A text in which the parts of a pstore dump stand in any order, in their own: part 1 is the last one."""
    head = next(texts, b"")
    if not _PART.match(head):
        yield head
        yield from texts
        return
    whole = head
    for text in texts:
        whole += text
        if len(whole) > _DUMP:
            yield whole
            yield from texts
            return
    starts = list(_PART.finditer(whole))
    ends = [match.start() for match in starts[1:]] + [len(whole)]
    found = [(-int(m[2]), n, whole[m.end() : end]) for n, (m, end) in enumerate(zip(starts, ends, strict=True))]
    dumps: dict[int, list[tuple[int, int, bytes]]] = {}
    for match, entry in zip(starts, found, strict=True):
        dumps.setdefault(int(match[1]), []).append(entry)
    for _, dump in sorted(dumps.items()):
        for _, _, text in sorted(dump):
            yield text if text.endswith(b"\n") else text + b"\n"
