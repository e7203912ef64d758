"""A reboot: the unit that `guard install` writes brings the gate up before systemd loads modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guard.guests import decisions, gate_payload, gets_in
from guard.machine import Machine, kernel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), "amd64")
    with Machine(kernel("amd64"), payload, memory=1536, systemd=True, patience=400) as machine:
        yield machine


def test_the_gate_comes_up_before_modules_do(guest: Machine) -> None:
    guest.put("/usr/lib/python3/dist-packages/payload.pth", b"/payload/python\n")
    guest.put("/etc/modprobe.d/way.conf", b"install way_bad /sbin/insmod /payload/ways/way_bad.ko\n")
    guest.put("/etc/modules-load.d/way.conf", b"way_bad\noverlay\n")
    # without the gate it does get in at boot
    guest.run("systemctl restart systemd-modules-load; true")
    assert "way_bad" in guest.run("cat /proc/modules").out
    guest.splitlock("guard", "install").ok()
    guest.reset()
    done = guest.run(
        "systemctl is-active splitlock-guard; cat /proc/modules; systemctl --no-pager status splitlock-guard"
    )
    assert done.out.startswith("active"), done.out
    assert "way_bad" not in done.out
    assert "overlay" in done.out
    logged = [decision for decision in decisions(guest) if decision["name"] == "way_bad"]
    assert logged
    assert logged[0]["verdict"] == "refuse"
    assert logged[0]["comm"] == "insmod"
    assert not gets_in(guest)
    order = guest.run(
        "journalctl -b -o short-monotonic --no-pager | grep -E 'splitlock|modules-load|Load Kernel Modules'"
    )
    print(order.out)
    words = "systemctl show -p ActiveEnterTimestampMonotonic --value splitlock-guard; "
    words += "systemctl show -p InactiveExitTimestampMonotonic --value systemd-modules-load systemd-udev-trigger"
    gate, *others = [int(word) for word in guest.run(words).ok().out.split()]
    assert all(gate < other for other in others), (gate, others)
