"""A fully preemptible kernel with one processor: the gate is interrupted in the middle of judging, and asked again.

Linux before 6.2 runs no BPF program of a trampoline on a processor where the same program is under way (prog->active,
kernel/bpf/trampoline.c): the second call is skipped, which for an LSM hook means that it is let in. Debian's 6.1.192
has 6.2's fix, and 6.12 too: nothing is missed there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from guard.guests import gate_payload, start
from guard.machine import Machine, kernel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["amd64", "xz"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), request.param)
    with Machine(kernel(request.param), payload, memory=1024, cpus=1, command_line="preempt=full") as machine:
        start(machine)
        yield machine


def test_nothing_gets_past_a_gate_that_is_interrupted(guest: Machine) -> None:
    assert "(full)" in guest.run("mount -t debugfs d /sys/kernel/debug; cat /sys/kernel/debug/sched/preempt").out
    found = guest.run("ls -S $(find /lib/modules/$(uname -r) -name '*.ko*') | head -n 1").ok().out.strip()
    done = guest.run(["python3", "/payload/ways/preempt.py", "/payload/ways/way_bad.ko", found, "20"]).ok()
    (line,) = done.lines()
    status = json.loads(guest.splitlock("guard", "status", "--format", "json").ok().out)
    programs = json.loads(guest.run("bpftool prog show -j").ok().out)
    missed = sum(each.get("recursion_misses", 0) for each in programs if each["type"] == "lsm")
    print(guest.kernel.release, line, missed)
    assert status["counters"]["missed"] == missed
    assert line["tried"] > 100
    assert line["other"] == {}
