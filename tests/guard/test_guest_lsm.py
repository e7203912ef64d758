"""A kernel whose `lsm=` leaves bpf out: programs attach there and are never called, so the gate must say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guard.guests import gate_payload
from guard.machine import Machine, kernel


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), "cloud-amd64", with_ways=False)
    with Machine(kernel("cloud-amd64"), payload, command_line="lsm=lockdown,yama,apparmor") as machine:
        yield machine


def test_the_list_is_read(guest: Machine) -> None:
    done = guest.splitlock("guard", "start", "--gate", "bpf")
    assert done.status == 2
    assert done.err.startswith("splitlock: ")
    assert "lsm=" in done.err
    assert done.err.count("\n") == 1
    assert guest.splitlock("guard", "status").status == 1


def test_the_canary_finds_out_where_there_is_no_list(guest: Machine) -> None:
    guest.run("umount /sys/kernel/security").ok()
    done = guest.splitlock("guard", "start", "--gate", "bpf")
    guest.run("mount -t securityfs security /sys/kernel/security").ok()
    assert done.status == 2
    assert "not live" in done.err
    assert guest.run("ls /sys/fs/bpf").ok().out == ""
    assert "no program" in (guest.run("bpftool prog | grep -q lsm || echo no program").out)


def test_the_fallback_says_its_holes(guest: Machine) -> None:
    done = guest.splitlock("guard", "start", timeout=60).ok()  # one that waits for itself would hang all
    assert "fanotify" in done.out
    assert "init_module" in done.out
    status = guest.splitlock("guard", "status")
    assert status.status == 0
    assert "init_module" in status.out
    guest.splitlock("guard", "stop").ok()
