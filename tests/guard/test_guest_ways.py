"""Every way in, tried in a real kernel: first without the gate, which proves that the way is one, then with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from guard.guests import decisions, gate_payload, gets_in, judged, start, try_ways
from guard.machine import STORE, Machine, kernel

Lines = list[dict[str, Any]]
KERNELS = ["amd64", pytest.param("xz", marks=pytest.mark.slow)]
# the modules that raw bytes would keep out, and the hypervisors that know of split locks or need not
LEGITIMATE = ("bnx2x", "nouveau", "e752x_edac", "kvm", "kvm_intel", "kvm_amd", "psmouse", "vmwgfx", "ptp_kvm")
ORDINARY = (
    "virtio_net", "virtio_scsi", "xfs", "btrfs", "vfat", "isofs", "fuse", "nvme", "ahci", "xhci_pci", "usb_storage",
    "e1000e", "tun", "veth", "bridge", "nf_tables", "ip_tables", "dm_crypt", "raid1", "aesni_intel", "loop", "overlay",
)  # fmt: skip


@pytest.fixture(scope="module", params=KERNELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def guest(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), kind)
    with Machine(kernel(kind), payload, memory=1536) as machine:
        yield machine


@pytest.fixture(scope="module")
def control(guest: Machine) -> Lines:
    """The ways without a gate."""
    return try_ways(guest, seconds=1.5)


@pytest.fixture(scope="module")
def gate(guest: Machine, control: Lines) -> str:
    """The gate up, under `refuse`; what `guard start` said."""
    return start(guest).out


@pytest.fixture(scope="module")
def gated(guest: Machine, kind: str, control: Lines, gate: str) -> Lines:
    """The ways with the gate. Both runs are kept: docs/guard-ways.md is made of them."""
    lines = try_ways(guest)
    result = {"kernel": guest.kernel.release, "without": control, "with": lines}
    (STORE / f"ways-{kind}.json").write_text(json.dumps(result, indent=1))
    return lines


def race(line: dict[str, Any]) -> dict[str, Any]:
    """The counts of a race; empty for what is none."""
    return json.loads(line["said"]) if line["said"].startswith("{") else {}


def test_without_the_gate_each_way_is_one(control: Lines) -> None:
    assert len(control) > 90
    for line in control:
        if line["kernel"]:
            assert not line["loaded"], line
        elif line["group"] == "races":
            assert race(line)["armed"] > 0, line
        elif line["expect"] == "clean":
            assert line["loaded"] == ["way_good"], line
        else:
            assert line["armed"], line


def test_the_gate_comes_up(gate: str) -> None:
    assert "live" in gate


def test_with_the_gate_nothing_refused_gets_in(gated: Lines) -> None:
    inside = {line["way"]: line["said"] for line in gated if line["expect"] in ("refused", "clean") and line["armed"]}
    assert not inside
    for line in gated:
        if line["group"] == "races":
            assert race(line)["armed"] == 0, line
            assert race(line)["refused"] > 0 or line["kernel"], line


def test_with_the_gate_what_the_policy_lets_in_gets_in(control: Lines, gated: Lines) -> None:
    before = {line["way"]: line["loaded"] for line in control}
    for line in gated:
        if line["expect"] == "clean" or line["expect"].startswith("let in"):
            assert line["loaded"] == before[line["way"]], line


def test_each_refusal_is_the_gates_own(guest: Machine, gated: Lines) -> None:
    """What did not get in was refused by a decision of that moment, and not for a reason of its own."""
    times = [
        datetime.fromisoformat(decision["time"]).timestamp() for decision in decisions(guest) if decision["refused"]
    ]
    for line in gated:
        if line["expect"] == "refused" and not line["kernel"] and not line["armed"]:
            assert any(line["begin"] - 0.1 < time < line["end"] + 0.1 for time in times), line
    status = json.loads(guest.splitlock("guard", "status", "--format", "json").ok().out)
    assert status["counters"]["lost"] == 0


def test_legitimate_modules_are_let_in(guest: Machine, kind: str, gate: str) -> None:
    listed = guest.run("find /lib/modules/$(uname -r) -name '*.ko*'").ok().out.split()
    by_name = {path.rsplit("/", 1)[1].split(".")[0].replace("-", "_"): path for path in listed}
    wanted = [by_name[name] for name in (*LEGITIMATE, *ORDINARY) if name in by_name]
    assert len(wanted) >= (31 if kind == "amd64" else 15)
    said = judged(guest, wanted)
    assert {path: what for path, what in said.items() if what not in ("EFAULT", "ENOENT", "EEXIST")} == {}
    verdicts = {decision["name"]: decision["verdict"] for decision in decisions(guest)}
    assert {verdicts[name] for name in (*LEGITIMATE, *ORDINARY) if name in by_name} == {"allow"}


def test_legitimate_modules_load(guest: Machine, kind: str, gate: str) -> None:
    names = ("bnx2x", "nouveau", "e752x_edac", "kvm_amd") if kind == "amd64" else ("xfs", "kvm_amd", "virtio_scsi")
    for name in (*names, *ORDINARY[:6]):
        done = guest.run(["modprobe", name])
        # this machine may have no such device; the gate says EPERM or ENOSYS
        assert done.status == 0 or "No such device" in done.err, f"{name}: {done.err}"


ATTEMPTS = {
    "kill -9 of every process of ours": "for p in $(pgrep -f 'python3 -m [s]plitlock'); do kill -9 $p; done",
    "rm of the pins": "rm -rf /sys/fs/bpf/splitlock; rm -f /sys/fs/bpf/splitlock/*",
    "umount of bpffs": "umount /sys/fs/bpf",
    "umount -l of bpffs": "umount -l /sys/fs/bpf",
    "another bpffs over it": "mount -t bpf bpf /sys/fs/bpf; umount /sys/fs/bpf",
    "the directory renamed": "mv /sys/fs/bpf/splitlock /sys/fs/bpf/aside; mv /sys/fs/bpf/aside /sys/fs/bpf/splitlock",
    "the directory renamed, and left so": "mv /sys/fs/bpf/splitlock /sys/fs/bpf/y",
    "another directory in its place": "mkdir /sys/fs/bpf/y; mv -T /sys/fs/bpf/y /sys/fs/bpf/splitlock;"
    " rmdir /sys/fs/bpf/y",
    "rmdir of the pins' directory": "rmdir /sys/fs/bpf/splitlock",
    "bpftool link detach": "for i in $(bpftool link | cut -d: -f1 | grep '^[0-9]'); do bpftool link detach id $i; done",
    "bpftool map update of the policy": "for map in /sys/fs/bpf/splitlock/config;"
    " do bpftool map delete pinned $map key 0 0 0 0;"
    " bpftool map update pinned $map key 0 0 0 0 value $(bpftool -j map dump pinned $map"
    " | python3 -c \"import json,sys; print(*json.load(sys.stdin)[0]['value'])\"); done",
    "the BPF JIT's and LSM's settings": "echo 1 >/proc/sys/kernel/unprivileged_bpf_disabled;"
    " echo 0 >/proc/sys/kernel/bpf_stats_enabled; echo 0 >/proc/sys/net/core/bpf_jit_enable",
}  # fmt: skip


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_the_gate_stays(guest: Machine, gate: str, attempt: str) -> None:
    done = guest.run("(exec python3 -m splitlock guard log --follow >/dev/null 2>&1 &) ; sleep 1; " + ATTEMPTS[attempt])
    assert not gets_in(guest), f"{attempt}: {done.out}{done.err}"
    status = guest.splitlock("guard", "status")
    assert status.status == 0, f"{attempt}: {done.out}{done.err}\n{status.out}{status.err}"


def test_stop_lets_all_in_again(guest: Machine, gate: str) -> None:
    guest.splitlock("guard", "stop").ok()
    assert gets_in(guest)
    assert guest.splitlock("guard", "status").status == 1


def test_the_kernel_has_nothing_to_complain_of(guest: Machine, gate: str) -> None:
    said = guest.run("dmesg").ok().out
    for word in ("BUG:", "Oops", "rcu_sched self-detected", "blocked for more than"):
        assert word not in said, said[said.index(word) - 500 :][:3000]
    # 6.12 warns of modules that were altered so that their returns are not patched: of some ways, gate or not
    warnings = [each for each in said.split("cut here")[1:] if "Unpatched return thunk" not in each]
    assert not warnings, warnings[0][:3000]
