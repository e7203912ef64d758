"""How a machine of tests/host/trees is made of its TOML, and where a report's JSON says what `right` asks for.

This is the one place that knows the fields of `splitlock/status/1` and `splitlock/advise/1` by name.
"""

from __future__ import annotations

import gzip
import re
import struct
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

PLACE = Path(__file__).parent / "trees"
MODES = ("off", "warn", "fatal", "ratelimit")
WHO = ("program", "kernel", "guest")
Json = dict[str, Any]


class Said(NamedTuple):
    """What one command told of a tree."""

    exit: int
    report: Json
    text: str  #: blanks collapsed


class Setting(NamedTuple):
    """A setting that was found."""

    where: str
    text: str
    counts: str  #: at the next boot; of proc/cmdline, now: yes, no, unknown
    why: str


def trees() -> dict[str, Json]:
    """All machines, by name."""
    found = [tree for path in sorted(PLACE.glob("*.toml")) for tree in tomllib.loads(path.read_text()).get("tree", [])]
    return {tree["name"]: tree for tree in found}


def build(tree: Json, root: Path) -> Path:
    """Its files below `root`."""
    files: Json = dict(tree["files"])
    if "cpu" in tree:
        files["proc/cpuinfo"] = _cpuinfo(tree)
    if "release" in tree:
        files.setdefault("proc/sys/kernel/osrelease", tree["release"] + "\n")
    if "cmdline" in tree:
        files.setdefault("proc/cmdline", tree["cmdline"] + "\n")
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content.removeprefix("\n"))
        elif "link" in content:
            path.symlink_to(content["link"])
        elif "gzip" in content:
            path.write_bytes(gzip.compress(content["gzip"].removeprefix("\n").encode()))
        else:
            path.write_bytes(uki(content["uki"]))
    return root


def _cpuinfo(tree: Json) -> str:
    cpu = tomllib.loads((PLACE / "processors.toml").read_text())[tree["cpu"]]
    family, model, stepping = cpu["numbers"]
    one = (
        f"vendor_id\t: {cpu['vendor']}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {cpu['name']}\n"
        f"stepping\t: {stepping}\nflags\t\t: {cpu['flags']} {tree.get('flags', '')}".rstrip()
    )
    return "".join(f"processor\t: {number}\n{one}\n\n" for number in range(2))


def uki(command_line: str) -> bytes:
    """A unified kernel image, as far as systemd-stub(7) says: PE, with the section .cmdline."""
    data = command_line.encode()
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 240, 0x22E)
    optional = struct.pack("<H", 0x20B).ljust(240, b"\0")
    section = struct.pack("<8sIIIIIIHHI", b".cmdline", len(data), 0x1000, 512, 512, 0, 0, 0, 0, 0x40000040)
    return (dos + coff + optional + section).ljust(512, b"\0") + data.ljust(512, b"\0")


def processes(tree: Json) -> bool:
    """Does the tree list any process?"""
    return any(re.match(r"proc/\d+/|sos_commands/process/ps_", name) for name in tree["files"])


def uses(advise: Json) -> tuple[str, str]:
    """Does this kernel make use of #AC, of #DB: yes, no, unknown."""
    found = advise["judgement"]
    return found["split_locks"]["known"], found["bus_locks"]["known"]


def mode(status: Json) -> str:
    """In effect: off, warn, fatal, ratelimit:N, unknown."""
    kernel = status["kernel"]
    return f"{kernel['mode']}:{kernel['rate']}" if kernel["rate"] else str(kernel["mode"])


def fates(report: Json, wanted: str) -> dict[str, set[str]]:
    """Of each victim, what becomes of it in a mode: goes-on, slowed, limited, killed, oops, stuck, nothing, not-known.

    Both reports have a list of modes, each with `effects`: {who: program|kernel|guest, fate, why, source}; `guest` once
    for each hypervisor, if there is any.
    """
    modes = report["judgement"]["modes"]
    (one,) = [entry for entry in modes if entry["mode"].partition(":")[0] == wanted]
    return {who: {effect["fate"] for effect in one["effects"] if effect["who"] == who} for who in WHO}


def log(status: Json) -> tuple[bool, int, bool]:
    """Was there a log; how many lines about split and bus locks, an oops counted once; was it read whole."""
    found = status["log"]
    return found["source"] is not None, found["lines"], found["whole"]


def machines(status: Json) -> list[str] | None:
    """The virtual machines that run; None: not known."""
    found: list[Json] | None = status["vmms"]
    return None if found is None else sorted(vmm["vm"] or "" for vmm in found)


def recommended(advise: Json) -> str:
    """A mode; `nothing`: there is nothing to turn on; `not-known`."""
    if advise["command_line"]:
        return str(advise["judgement"]["recommended"]).partition(":")[0]
    return "nothing" if set(uses(advise)) == {"no"} else "not-known"


def settings(status: Json) -> list[Setting]:
    """What is configured, for the next boot or in vain."""
    return [Setting(s["where"], s["text"], s["counts"], s["why"]) for s in status["kernel"]["settings"]]
