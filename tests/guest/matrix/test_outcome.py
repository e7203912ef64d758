"""What a guest's hypervisor tells becomes a cell; the processor's log is cut where its guest's init says so."""

from __future__ import annotations

import os

import pytest

from splitlock.guest.matrix.guests import GUESTS, HYPERVISORS, PAIRS, Pair
from splitlock.guest.matrix.log import Log
from splitlock.guest.matrix.outcome import cell
from splitlock.guest.matrix.traps import Traps
from splitlock.report.matrix import End
from splitlock.report.matrix_vmx import Cell, Side

_SIDE = Side(place="guest", cpl=0, traps=78_037, exits=78_037, injected=78_037, delivered=0, triple_faults=0)


def number(value: int) -> str:
    """As inside/syscalls.h writes it."""
    return f"0x{value:016x}"


def console(kind: str, *lines: str, killed: int = 0) -> Log:
    said = [f"splitlock-matrix: begin {kind}", *lines]
    said += [f"splitlock-matrix: end {kind} status={number(0)} killed={number(killed)} oops={number(0)}"]
    return Log("\r\n".join(f"[   12.345678] {line}" for line in said).encode())


def made(pair: Pair, *lines: str, killed: int = 0, end: End = "done") -> Cell:
    (told,) = console(pair.kind, *lines, killed=killed).kinds
    return cell(pair, told, end, kernel="6.1", mode="warn", boot=0, processor=_SIDE)


def kvm(guest: str, reason: int, value: int, *before: str, ip: int = 0) -> Cell:
    """A small guest's cell: its VMM's lines."""
    pair = next(pair for pair in PAIRS.values() if pair == ("kvm", guest))
    took = f"splitlock-matrix: took {pair.kind} ns={number(34_000_000)} executed={number(value == 1)}"
    exit_line = (
        f"splitlock-matrix: exit {pair.kind} reason={number(reason)} value={number(value)} error={number(0)} "
        f"ip={number(ip)} rip={number(0x1000)} returned={number(0)}"
    )
    return made(pair, *before, took, exit_line)


@pytest.mark.parametrize(
    ("reason", "value", "outcome"),
    [
        (2, 1, "completed"),  # KVM_EXIT_IO, and what the guest wrote
        (2, 2, "derailed"),
        (2, 0x91, "handled"),
        (2, 0x8D, "gp"),
        (2, 0x55, "other"),
        (8, 0, "triple-fault"),  # KVM_EXIT_SHUTDOWN
        (1, 17, "other"),  # KVM_EXIT_EXCEPTION without the signal that goes with it
        (9, 0, "other"),  # KVM_EXIT_FAIL_ENTRY
    ],
)
def test_kvm(reason: int, value: int, outcome: str) -> None:
    found = kvm("kernel_idt", reason, value, ip=0x1000)
    assert found.outcome == outcome
    assert (found.reason is None) == (outcome != "other")
    assert found.nanoseconds == 34_000_000


def test_where_it_was() -> None:
    """A fault's IP is the instruction; one that is elsewhere is told so."""
    assert kvm("kernel_idt", 2, 0x91, ip=0x1000).at_instruction is True
    assert kvm("kernel_idt", 2, 0x91, ip=0x1006).at_instruction is False
    assert kvm("kernel_idt", 2, 1).at_instruction is None


def test_sigbus() -> None:
    kind = "kvm_kernel"
    signal = f"splitlock-matrix: signal {kind} number={number(7)} code={number(1)} address={number(0)}"
    line = "x86/split lock detection: #AC: vmm/132 fatal split_lock trap at address: 0x1000"
    found = kvm("kernel", 1, 17, line, signal)
    assert found.outcome == "sigbus"
    assert found.signal is not None
    assert (found.signal.number, found.signal.code, found.signal.address) == (7, 1, "0x0")
    assert found.log == [line]


def blind(guest: str, end: str, killed: int = 0) -> Cell:
    line = (
        "blind: way=handle idt=1 detection=1 ac=1 info=0x80000b11 error=0x0 ip=0x4 "
        f"end={end} reason=0x12 qualification=0x0 instruction-error=0 executed=0 handler-error=0x0 handler-ip=0x4"
    )
    return made(Pair("handle", "kernel_idt" if guest else "kernel"), line, killed=killed)


def test_blind() -> None:
    assert blind("kernel_idt", "handled").outcome == "handled"
    assert blind("kernel_idt", "handled").at_instruction is True
    assert blind("kernel_idt", "triple-fault").outcome == "triple-fault"
    assert blind("kernel_idt", "stopped", killed=7).outcome == "sigbus"
    assert blind("kernel_idt", "stopped").outcome == "other"  # the kernel said no, and nobody was killed
    assert blind("kernel_idt", "no-vmx").reason == "blind.ko: no-vmx"


def linux(guest: str, *lines: str, late: bool = False, over: bool = False, reason: int = 2, value: int = 0) -> Cell:
    pair = next(pair for pair in PAIRS.values() if pair == ("kvm", guest))
    inner = guest.removeprefix("linux_")
    said = [f"splitlock-guest: [    1.234567] splitlock~matrix: begin {inner}"]
    said += [f"splitlock-guest: [    1.345678] {line}" for line in lines]
    exit_line = (
        f"splitlock-matrix: exit {pair.kind} reason={number(reason)} value={number(value)} over={number(over)} "
        f"late={number(late)} returned={number(0)}"
    )
    return made(pair, *said, exit_line)


def test_linux() -> None:
    """A guest's own lines are not its host's."""
    end = f"splitlock~matrix: end user status={number(0)} killed={number(0)} oops={number(0)}"
    took = f"splitlock~matrix: took user ns={number(40_000_000)} executed={number(1)}"
    found = linux("linux_user", took, end, "splitlock~matrix: done", over=True)
    assert (found.outcome, found.executed, found.nanoseconds) == ("completed", 1, 40_000_000)

    warned = "x86/split lock detection: #AC: init/67 took a split_lock trap at address: 0x40177e"
    stuck = linux("linux_user", warned, late=True)
    assert (stuck.outcome, stuck.guest_log, stuck.log, stuck.warnings) == ("livelock", [warned], [], 0)

    dead = f"splitlock~matrix: end module status={number(0)} killed={number(11)} oops={number(1)}"
    assert linux("linux_module", "Split lock detected", ": 0000 [#1] SMP NOPTI", dead, over=True).outcome == "oops"


def test_not_entered() -> None:
    """What stopped a VMM before it had a guest is no outcome."""
    pair = Pair("kvm", "kernel")
    found = made(pair, f"splitlock-matrix: failed {pair.kind} step=open errno={number(19)}")
    assert (found.outcome, found.reason) == ("not-tried", "open: ENODEV")
    assert made(pair).outcome == "other"
    assert made(pair).reason


def test_pairs() -> None:
    """All there are, each once; init's names are its own."""
    assert {(pair.hypervisor, pair.guest) for pair in PAIRS.values()} == {
        (hypervisor, guest) for hypervisor in HYPERVISORS for guest in GUESTS
    }
    possible = [kind for kind, pair in PAIRS.items() if not pair.impossible]
    assert possible == [PAIRS[kind].kind for kind in possible]
    assert len(possible) == len(set(possible)) == len(GUESTS) + 4 * 2


def test_traps() -> None:
    """What comes before the first mark is nobody's; the last kind's goes on to the end."""
    traps = Traps()
    try:

        def say(**words: object) -> None:
            text = ",".join(f'"{name}":"{value}"' for name, value in words.items())
            os.write(traps.fd, f'{{{text},"cpu":0,"place":"guest","cpl":3}}\n'.encode())

        say(trap="#AC")
        traps.mark()
        traps.mark()
        say(trap="#AC")
        for step in ("vm exit", "injected", "injected", "triple fault"):
            say(then=step)
        traps.mark()
        say(trap="#AC")
        say(then="delivered")
        assert traps.sides() == [
            Side(place=None, cpl=None, traps=0, exits=0, injected=0, delivered=0, triple_faults=0),
            Side(place="guest", cpl=3, traps=1, exits=1, injected=2, delivered=0, triple_faults=1),
            Side(place="guest", cpl=3, traps=1, exits=0, injected=0, delivered=1, triple_faults=0),
        ]
    finally:
        traps.close()
