"""Known causes: which fit what, and a file of them that is not as it should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from host.dumps import DATA, HERE, read, real

from splitlock._errors import SplitlockError
from splitlock.host.causes import Causes
from splitlock.host.oops.explanation import explain
from splitlock.report.oops import Oops
from splitlock.report.oops_text import cause_lines


def cause(oops: Oops) -> list[str]:
    """Names of the known causes that fit."""
    return [found.name for found in Causes().of_oops(oops)]


def test_the_known_causes_fit_what_they_were_found_with() -> None:
    # the call trace of netbirdio/netbird 7331, Debian's 7.1.8
    text = (
        "Oops: Split lock detected\nCPU: 9 UID: 1000 PID: 97729 Comm: Bun Pool 1  Not tainted 7.1.8+deb13-amd64\n"
        "RIP: 0010:skb_clone+0x154/0x1e0\nCall Trace:\n <IRQ>\n raw_local_deliver+0x1ed/0x2c0\n"
        " ip_protocol_deliver_rcu+0x54/0x1c0\n ip_local_deliver_finish+0x85/0x100\n"
    )
    oops = explain(read(text), HERE)
    assert cause(oops) == ["xdp-on-loopback"]
    assert oops.interrupt
    assert "The program Bun Pool 1 only happened to be running" in oops.means[0]
    assert cause(explain(read(text.replace(" raw_local", " ? raw_local")), HERE)) == []
    assert cause(real("7.2-skb")) == []  # the same function, from elsewhere
    assert cause(real("xdp-7.1.8")) == ["xdp-on-loopback"]  # the bug itself, in a guest
    razer = "Split lock detected\nRIP: 0010:razer_raw_event+0x34d/0x5b0 [razerkbd]\n"
    assert cause(explain(read(razer), HERE)) == ["openrazer-keyboard"]


# By its own versions in words: Linux 6.9 to 7.2; fixed in 7.3, in 6.12.115 and in 7.2.13.
@pytest.mark.parametrize(
    ("release", "shown"),
    [
        ("5.15.0-100-generic", False), ("6.8.0-60-generic", False), ("6.8.12", False), ("6.1.0-37-amd64", False),
        ("6.9.0", True), ("6.11.0-21-generic", True), ("6.12.114+deb13-amd64", True), ("6.12.115+deb13-amd64", False),
        ("6.12.117+deb12-cloud-amd64", False), ("6.12.0-1-amd64", True), ("7.1.8+deb13-cloud-amd64", True),
        ("7.2.12-arch1-1", True), ("7.2.13+deb14-amd64", False), ("7.2.13", False), ("7.3.0-rc4", False),
        ("7.3.5-1-default", False), ("8.0.1", False), ("5.14.0-503.el9.x86_64", True), ("nonsense", True),
    ],
)  # fmt: skip
def test_a_cause_is_none_of_a_kernel_that_does_not_have_it(release: str, shown: bool) -> None:
    text = (DATA / "oops-xdp-7.1.8.txt").read_text()
    assert "7.1.8+deb13-cloud-amd64" in text
    oops = explain(read(text.replace("7.1.8+deb13-cloud-amd64", release)), HERE)
    assert cause(oops) == (["xdp-on-loopback"] if shown else [])


def test_a_suspected_module_and_a_fault_of_linux_are_not_both_shown() -> None:
    text = (DATA / "oops-xdp-7.1.8.txt").read_text().replace("Modules linked in:", "Modules linked in: drv(OE)")
    for letters, shown in (("OE", []), ("", ["xdp-on-loopback"])):
        called = text.replace(" <IRQ>", " <IRQ>\n drv_poll+0x1/0x20 [drv]").replace("drv(OE)", f"drv({letters})")
        oops = explain(read(called.replace("drv()", "drv")), HERE)
        assert ("suspect that module first" in oops.means[0]) is (not shown)
        assert cause(oops) == shown


@pytest.mark.parametrize(
    ("register", "address", "past"),
    [  # what two users published: netbirdio/netbird 7295, and a workstation that died of a test's name server queries
        (0xFFFF88DDCA5E781F, 0xFFFF88DDCA5E783F, 3),
        (0xFFFF893B5292699E, 0xFFFF893B529269BE, 2),
    ],
)
def test_users_registers(register: int, address: int, past: int) -> None:
    text = (
        "Oops: Split lock detected\n: 0000 [#1] SMP NOPTI\nRIP: 0010:skb_clone+0x159/0x1e0\nCode: 90 <f0> ff 42 20 90\n"
        f"RDX: {register:016x} RSI: 0000000000000820 RDI: 0000000000000000\n"
        "Call Trace:\n <IRQ>\n raw_v4_input+0x9c/0x1e0\n"
    )
    oops = explain(read(text), HERE)
    assert oops.operand is not None
    assert (oops.operand.address, oops.operand.past, oops.fits) == (f"{address:#x}", past, "yes")
    assert cause(oops) == ["xdp-on-loopback"]


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("CHTTPClientThre", "steam-client"), ("CJobMgr::m_Work", "steam-client"), ("osu!.exe", "osu-in-wine"),
        ("bambustu_main", "bambu-network-plugin"), ("EMT-3", "virtualbox-on-kvm"), ("dosemu2.bin", "dosemu2"),
        ("remake", "remake"),
    ],
)  # fmt: skip
def test_causes_by_task(comm: str, name: str) -> None:
    assert [found.name for found in Causes().of_task(comm)] == [name]


def test_a_task_of_nobody() -> None:
    assert Causes().of_task("java") == []
    assert Causes().of_task("*") == []


GOOD = '[[cause]]\nname = "mine"\ncomms = ["prog"]\nwhat = "w"\nfix = "f"\nlinks = ["https://example.org/1"]\n'


def test_more_causes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(GOOD)
    found = Causes([str(tmp_path / "more.toml")]).of_task("prog")
    assert [each.name for each in found] == ["mine"]
    assert cause_lines(found[0])[0].strip() == "most likely, by its name: w"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("comms =", "coms ="), "coms"),
        (('comms = ["prog"]\n', ""), "fits nothing"),
        (("https://", "http://"), "no link"),
        (('["https://example.org/1"]', "[]"), "no links"),
        (('fix = "f"\n', ""), "fix"),
        (('"mine"', '"steam-client"'), "steam-client"),
        (('what = "w"', "what = 3"), "what"),
        (("links", 'fixed = ["soon"]\nlinks'), "soon"),
        (("links", 'since = "6"\nlinks'), "no release"),
        (("[[cause]]", "[[causes]]"), "cause"),
        (('what = "w"', "what = "), "more.toml"),
    ],
)
def test_a_file_of_causes_is_checked_strictly(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "more.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(SplitlockError, match=re.escape(words)) as caught:
        Causes([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
