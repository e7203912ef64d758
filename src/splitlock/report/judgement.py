"""What each mode would do on a machine: plain data, the same in the reports of `splitlock status` and `advise`."""

from __future__ import annotations

from typing import Literal

import msgspec

Known = Literal["yes", "no", "unknown"]
Who = Literal["program", "kernel", "guest"]
#: What becomes of who takes a split lock. nothing: it is not detected; goes-on: it is logged; slowed, limited: it has
#: to wait; killed; oops: of the kernel; stuck: it traps for ever; not-known: `what` says why
Fate = Literal["nothing", "goes-on", "slowed", "limited", "killed", "oops", "stuck", "not-known"]
#: The gravest fate that counts: an oops of the kernel does only where one was logged. `nothing`: see `Mode.what`
Verdict = Literal["nothing", "logs", "slows", "breaks", "not-known"]
Kind = Literal["kvm", "svm", "virtualbox", "unknown"]


class Use(msgspec.Struct, kw_only=True):
    """Does this kernel make use of one of the processor's two ways to detect?"""

    known: Known
    why: str


class Hypervisor(msgspec.Struct, kw_only=True):
    """What guests can be run with: a module, a file that a module loads, or a part of the kernel."""

    name: str
    path: str | None  #: null: its file was not seen
    kind: Kind  #: what it does with a guest's `#AC`: linux/hypervisors.py. svm: AMD's, not KVM; unknown: nobody knows
    loaded: Known
    why: str  #: it is taken for that
    refused: bool  #: by the policy `refuse` of `splitlock scan` and `guard`


class Effect(msgspec.Struct, kw_only=True):
    """What becomes of one who takes a split lock."""

    who: Who
    where: str  #: of a guest: the hypervisor that it runs in; else empty
    fate: Fate
    possible: list[Fate]  #: of `not-known`: all that it may be, as far as that is known
    what: str  #: in a sentence
    counts: bool  #: for the verdict
    names: list[str]  #: who took some here: by the log, or by a guest report
    source: str  #: the kernel's function, or what else says so


class Mode(msgspec.Struct, kw_only=True):
    """One mode."""

    mode: str  #: off, warn, fatal, ratelimit:N
    now: bool  #: it is in effect
    verdict: Verdict
    what: str  #: in a sentence
    effects: list[Effect]


class Judgement(msgspec.Struct, kw_only=True):
    """All modes, and which to take."""

    split_locks: Use  #: `#AC`
    bus_locks: Use  #: `#DB`
    hypervisors: list[Hypervisor]
    modes: list[Mode]
    recommended: str  #: a mode; empty: there is nothing to turn on, or it is not known whether there is
    because: str
    first: list[str]  #: what to do before, or besides
    unknown: list[str]  #: what this cannot know, and how to know it
