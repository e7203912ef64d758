"""The gate under stress, in a small guest: a log nobody reads, many loads at once, no memory left, kill -9."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from guard.guests import gate_payload, gets_in, judged, start
from guard.machine import Machine, kernel

pytestmark = pytest.mark.slow
BAD, GOOD = "/payload/ways/way_bad.ko", "/payload/ways/way_good.ko"
LET_IN = {"EFAULT", "EEXIST", "EBUSY"}  # what came of a good one that is never started; see ways/judged.py


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), "amd64")
    numbered = payload / "numbered"  # judged.py tells its results by path
    numbered.mkdir()
    for number in range(800):
        (numbered / f"bad{number}.ko").symlink_to(BAD)
        (numbered / f"good{number}.ko").symlink_to(GOOD)
    with Machine(kernel("amd64"), payload, memory=512) as machine:
        start(machine)
        yield machine


def check(said: dict[str, str], also: frozenset[str] = frozenset()) -> None:
    """Every bad one was refused, no good one was."""
    assert {what for path, what in said.items() if "/bad" in path} == {"EPERM"}
    good = {what for path, what in said.items() if "/good" in path}
    assert good <= LET_IN | also, good


def numbered(count: int) -> list[str]:
    return [f"/payload/numbered/{kind}{number}.ko" for number in range(count) for kind in ("bad", "good")]


def test_a_flood_nobody_reads(guest: Machine) -> None:
    before = counters(guest)
    said = judged(guest, numbered(800))
    check(said)
    after = counters(guest)
    assert after["decisions"] - before["decisions"] >= 1600
    assert after["refused"] - before["refused"] >= 800
    print(f"lost {after['lost'] - before['lost']} of 1600 decisions that nobody read")
    logged = guest.splitlock("guard", "log", "--format", "json").ok()
    assert len(logged.lines()) + after["lost"] >= 1600
    if after["lost"]:
        assert f"{after['lost']:,}" in logged.err  # said, not hidden


def test_many_at_once(guest: Machine) -> None:
    said = judged(guest, numbered(100), together=100)
    check(said)
    done = guest.run(
        "for n in $(seq 50); do insmod /payload/numbered/bad$n.ko 2>/dev/null & insmod /payload/numbered/good$n.ko "
        "2>/dev/null & done; wait; grep ^way_ /proc/modules; rmmod way_good"
    )
    assert "way_good" in done.out
    assert "way_bad" not in done.out


def test_killed(guest: Machine) -> None:
    script = (
        "for n in 1 2 3 4 5; do python3 -m splitlock guard log --follow >/dev/null 2>&1 & p=$!; sleep 0.$((n * 2));"
        " kill -9 $p; wait $p; done; true"
    )
    guest.run(script).ok()
    assert not gets_in(guest)
    assert guest.splitlock("guard", "status").status == 0
    check(judged(guest, numbered(5)))


def test_no_memory_left(guest: Machine) -> None:
    """Processes that eat all memory until the kernel kills them, while modules load."""
    eater = (
        "import os, time\n"
        "end = time.time() + 20\n"
        "while time.time() < end:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        "        food = []\n"
        "        while True: food.append(bytearray(4 << 20))\n"
        "    os.waitpid(child, 0)\n"
        "    time.sleep(1)\n"
    )
    guest.put("/run/eater.py", eater.encode())
    guest.run("python3 /run/eater.py >/dev/null 2>&1 & echo $! >/run/eater").ok()
    said: dict[str, str] = {}
    for _ in range(8):
        one = judged(guest, numbered(20), together=4)
        check(one, also=frozenset({"ENOMEM"}))
        said |= one
    guest.run("kill $(cat /run/eater); sleep 1")
    assert "Out of memory" in guest.run("dmesg").out
    check(judged(guest, numbered(20)))  # and afterwards
    assert not gets_in(guest)


def test_a_small_control_group(guest: Machine) -> None:
    """The process that loads may use 8 MB and no more: its loads are judged like any."""
    group = "/sys/fs/cgroup/small"
    guest.run(
        f"echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir -p {group}; echo 12M >{group}/memory.max"
    ).ok()
    command = f"echo $$ >{group}/cgroup.procs; exec python3 /payload/ways/judged.py"
    done = guest.run(command, input="\n".join(numbered(20)))
    check({line["path"]: line["errno"] for line in done.lines()}, also=frozenset({"ENOMEM"}))
    assert len(done.lines()) == 40 or done.status in (-9, 137)


def counters(guest: Machine) -> dict[str, int]:
    return dict(json.loads(guest.splitlock("guard", "status", "--format", "json").ok().out)["counters"])
