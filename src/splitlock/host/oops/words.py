"""What is said of an oops: to somebody who is no kernel developer, and to whom it is to be told.

Flags of modules and of the kernel: Documentation/admin-guide/tainted-kernels.rst. An oops in an interrupt, or with
panic_on_oops set, stops the machine (arch/x86/kernel/dumpstack.c: oops_end); else the task is killed.
"""

from __future__ import annotations

import re

from splitlock.linux.versions import SPLIT_LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from splitlock.linux.dump import Dump, Frame
    from splitlock.report.oops import Oops

    Whose = Literal["kernel", "module", "foreign module", "unknown"]

_NAMED = 6  # modules in a sentence
_FOREIGN = frozenset("PO")  # a module's letters: proprietary, out of tree
#: What a release's name says of who made the kernel: Debian, Ubuntu, Fedora and so on. The first that fits.
_MAKERS = (
    (re.compile(r"Ubuntu|-generic$|-lowlatency$"), "Ubuntu (ubuntu-bug linux)"),
    (re.compile(r"Debian|\+deb\d|\.\d+-\d+-(?:cloud-|rt-)?amd64$"), "Debian (reportbug kernel)"),
    (re.compile(r"\.fc\d+\."), "Fedora (bugzilla.redhat.com, component kernel)"),
    (re.compile(r"\.el\d"), "your distribution (Red Hat's kernel)"),
    (re.compile(r"-default$|suse", re.I), "SUSE (bugzilla.opensuse.org)"),
    (re.compile(r"arch\d"), "Arch Linux"),
    (re.compile(r"cachyos", re.I), "CachyOS"),
    (re.compile(r"valve|neptune"), "Valve (SteamOS)"),
)
#: Names of machines that are none.
_VIRTUAL = re.compile(
    r"QEMU|KVM|VMware|VirtualBox|Xen|Bochs|OpenStack|Amazon EC2|Google Compute Engine|Microsoft Corporation Virtual"
    r"|Parallels|bhyve|Alibaba Cloud|Firecracker|Cloud Hypervisor"
)
_AREAS = {
    "skb_": "netdev@vger.kernel.org", "__skb_": "netdev@vger.kernel.org", "net": "netdev@vger.kernel.org",
    "tcp_": "netdev@vger.kernel.org", "udp_": "netdev@vger.kernel.org", "ip_": "netdev@vger.kernel.org",
    "ext4_": "linux-ext4@vger.kernel.org", "btrfs_": "linux-btrfs@vger.kernel.org", "xfs_": "linux-xfs@vger.kernel.org",
    "kvm_": "kvm@vger.kernel.org", "bpf_": "bpf@vger.kernel.org", "usb_": "linux-usb@vger.kernel.org",
    "hid_": "linux-input@vger.kernel.org", "blk_": "linux-block@vger.kernel.org",
    "nvme_": "linux-nvme@lists.infradead.org", "drm_": "dri-devel@lists.freedesktop.org",
}  # fmt: skip


_BPF = re.compile(r"bpf_prog_[0-9a-f]{16}_(\w+)")  # the kernel's name for one: its tag, and the name it was given
#: Functions that do on data what they were called for: who placed the data wrong is further up.
_TOOLS = re.compile(
    r"_?_?(?:raw_|native_|queued_)*(?:spin|read|write)_(?:lock|unlock|trylock)\w*|_?_?(?:ww_)?mutex_\w+|down(?:_\w+)?"
    r"|up(?:_\w+)?|rwsem_\w+|(?:__pv_)?queued_\w+|refcount_\w+|_?atomic\w*|(?:test_and_)?(?:set|clear|change)_bit\w*"
    r"|kref_\w+|lockref_\w+|osq_\w+|complete\w*|__wake_up\w*|(?:add|remove)_wait_queue\w*|prepare_to_wait\w*"
)


def _tool(symbol: str) -> bool:
    return bool(_TOOLS.fullmatch(symbol.partition(".")[0]))  # name.constprop.0 is a copy of name


def blamed(dump: Dump) -> Frame | None:
    """The place whose code is to blame: that of the oops, or of a tool's first caller that is none itself."""
    if dump.place is None or dump.place.module or not _tool(dump.place.symbol):
        return dump.place
    callers = (frame for frame in dump.frames if frame.reliable)
    return next((frame for frame in callers if frame.module or not _tool(frame.symbol)), dump.place)


def whose(dump: Dump) -> Whose:
    """Whose code is to blame, by the module's name and letters."""
    place = blamed(dump)
    if place is None:
        return "unknown"
    if not place.module:
        return "unknown" if place.offset is None and not place.source else "kernel"
    letters = dump.modules.get(place.module)
    if letters is not None:
        return "foreign module" if _FOREIGN & set(letters) else "module"
    if dump.taint is not None and not _FOREIGN & set(dump.taint):
        return "module"  # no module from outside had ever been loaded
    return "unknown"


def foreign(dump: Dump) -> list[str]:
    """The modules in the dump's places that are not of Linux's own source, by their letters."""
    named = {frame.module for frame in (*([dump.place] if dump.place else []), *dump.frames)}
    return [name for name in outside(dump) if name in named]


def outside(dump: Dump) -> list[str]:
    """All loaded modules that are not."""
    return sorted(name for name, letters in dump.modules.items() if _FOREIGN & set(letters))


def _code(oops: Oops) -> str:
    """The code by its name, for a sentence."""
    if oops.place is None:
        return "a function that the log does not name"
    module = f" of the module {oops.place.module}" if oops.place.module else ""
    return f"the function {oops.place.function}{module}"


def summary(oops: Oops) -> str:
    """The first line, for everybody."""
    if oops.inferred:
        return f"the Linux kernel stopped in {_code(oops)}, {_GUESSES[oops.fits]}"
    if not oops.detected:
        return f"the kernel was stopped by an alignment check that it did not expect, in {_code(oops)}"
    what = "stopped the machine" if oops.panic else "stopped a part of itself"
    return f"the Linux kernel {what}: {_code(oops)} took a split lock"


def sentences(oops: Oops) -> list[str]:
    """What it means, the most important first."""
    if oops.inferred:
        return _inferred(oops)
    said = [_bug(oops)]
    if oops.fits == "no":
        said.append(_misfit(oops))
    if not oops.detected:
        said.append(
            f"Kernels before {SPLIT_LOCKS.first} know nothing of split locks. This one got the exception #AC all the"
            " same, which in the"
            " kernel nothing but a split lock raises: it runs in a virtual machine, and the hypervisor has detection on"
            " and hands #AC on. The host must keep it from the guest, or run without detection."
        )
    elif guest := _VIRTUAL.search(oops.hardware):
        said.append(
            f"This kernel runs in a virtual machine ({guest[0]}). The host may have handed the exception on: then it"
            " comes whatever this kernel's split_lock_detect= is."
        )
    said.append(_aftermath(oops))
    said.append(
        "split_lock_detect=off hides it and mends nothing: each such access still holds up all processors, and if the"
        " data should not lie where it does, that goes on unseen."
    )
    return said


#: Of a dump that does not say why, by whether its instruction and registers make a split lock.
_GUESSES = {
    "yes": "most likely for a split lock (inferred: the dump's first line is missing)",
    "unknown": "perhaps for a split lock (a guess: the dump's first line is missing)",
    "no": "by what is left of the dump for another reason than a split lock (its first line is missing)",
}


def _inferred(oops: Oops) -> list[str]:
    """Without the first line nothing is certain: what the instruction and the registers say, and no more."""
    lost = "The dump's first line is missing, which says why the kernel stopped."
    if oops.fits == "no":
        return [f"{lost} The marked instruction with these registers makes no split lock.", _aftermath(oops)]
    if oops.fits == "yes":
        why = (
            "That it was a split lock is inferred: the marked instruction is a locked one, and by the registers its"
            " operand crosses a cache line. A fault of another kind at this very instruction is not ruled out."
        )
    elif oops.operand is not None:
        why = "The marked instruction is a locked one; whether its operand crossed a cache line is not known."
    else:
        why = "Nothing else that is left of it tells whether it was a split lock."
    bug = _bug(oops)
    return [f"{lost} {why}", f"If it was one: {bug[0].lower()}{bug[1:]}", _aftermath(oops)]


def _bug(oops: Oops) -> str:
    place, suspect, tool = oops.blamed, foreign_caller(oops), ""
    if place is None:
        said = "This is a bug in the kernel or in one of its modules."
    elif program := _BPF.match(place.function):
        said = (
            f"This is in the BPF program {program[1]}, which something on this machine has loaded: a bug in it, or in"
            " how Linux lets it reach its data."
        )
    elif oops.whose == "foreign module":
        said = f"This is a bug in the module {place.module}, which is not a part of Linux."
    elif suspect:
        said = (
            f"This is a bug in Linux, or in the module {suspect}, which is not a part of Linux and called it: suspect"
            " that module first."
        )
    else:
        part = f"the module {place.module}" if place.module else "Linux"
        said = f"This is a bug in {part}, or in other code of the kernel that gave it misplaced data."
    if place and oops.place and place.function != oops.place.function:
        tool = f" {oops.place.function} only does what it is asked to; {place.function} called it."
    task = f" The program {oops.comm} only happened to be running." if _bystander(oops) else ""
    return f"{said}{tool} Neither the machine nor its settings are to blame.{task}"


def foreign_caller(oops: Oops) -> str | None:
    """A module from outside Linux that had called the function; the nearest one."""
    return next((f.module for f in oops.frames if f.reliable and f.module in oops.foreign), None)


def _bystander(oops: Oops) -> bool:
    """Whether the task is a program that an interrupt fell upon, not the kernel's own thread."""
    return oops.interrupt and bool(oops.comm) and not oops.comm.startswith(("kworker/", "ksoftirqd/", "swapper/"))


def _misfit(oops: Oops) -> str:
    if oops.operand is None:
        return (
            "The dump does not fit: at the marked byte there is no locked instruction that can split, and nothing else"
            " raises this. The line that begins with Code: is damaged, or is another's."
        )
    return (
        "The dump does not fit: by these registers the operand lies on one cache line. A line of registers is damaged,"
        " or is another's."
    )


def _aftermath(oops: Oops) -> str:
    if oops.panic:
        return f"The whole machine stopped ({oops.panic})."
    if oops.interrupt:
        return "It happened in an interrupt: the kernel then stops the whole machine."
    if not oops.ended:
        return "The log breaks off within the dump: whether the machine went on is not known."
    task = f"The task {oops.comm}/{oops.pid}" if oops.comm else "The task"
    return f"{task} was killed, and the kernel went on. Locks it held are held for ever: save your work and reboot."


def report_to(oops: Oops) -> str:
    """Whom to tell, and with what."""
    place, log = oops.blamed, "with this whole dump"
    if oops.inferred and oops.fits != "yes":
        return ""
    if not oops.detected:
        return "whoever runs the host of this virtual machine"
    if place is None:
        return f"your distribution's kernel, {log}"
    if program := _BPF.match(place.function):
        return f"who makes what loads the BPF program {program[1]} (`bpftool prog` lists them), {log}"
    if oops.whose == "foreign module":
        return f"who makes the module {place.module} ({_letters(oops)}), {log}; not to Linux's developers"
    if oops.whose == "unknown" and place.module:
        return f"who makes the module {place.module} (`modinfo {place.module}` tells whether it is Linux's own), {log}"
    suspect = foreign_caller(oops)
    if suspect:
        return f"who makes the module {suspect} first, {log}; then to your distribution"
    maker = next((name for words, name in _MAKERS if words.search(f"{oops.release} {oops.version}")), None)
    area = next((address for start, address in _AREAS.items() if place.function.startswith(start)), None)
    who = maker or "your distribution's kernel"
    others = _others(oops)
    return f"{who}{f'; the developers: {area}' if area else ''}, {log}{others}"


def _letters(oops: Oops) -> str:
    words = {"P": "proprietary", "O": "from outside Linux", "E": "unsigned"}
    return ", ".join(words[letter] for letter in oops.module_taint if letter in words) or "not Linux's own"


def _others(oops: Oops) -> str:
    """What Linux's developers will ask first."""
    if not (oops.taint and _FOREIGN & set(oops.taint)):
        return ""
    named = oops.outside[:_NAMED] + (["..."] if len(oops.outside) > _NAMED else [])
    which = f": {', '.join(named)}" if named else " (the kernel is tainted)"
    return f". They will ask to see it without modules from outside Linux{which}"
