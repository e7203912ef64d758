"""Decisions: what the gate's own code says of real instructions, in words; the log; what is handed on."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time
from pathlib import Path

import jsonschema
import pytest

from splitlock._errors import SplitlockError
from splitlock.guard import judge, layout
from splitlock.guard.bpfobject import Object
from splitlock.guard.config import build, words
from splitlock.guard.decisions import decode, record
from splitlock.guard.journal import Journal
from splitlock.guard.libbpf import RingBuffer
from splitlock.guard.log import LogFile
from splitlock.guard.mitigate import disable
from splitlock.modules.policy import load
from splitlock.report.guard import Decision, head, render

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "guard.schema.json").read_text())
POLICY = load("refuse")
CONFIG = build(POLICY, release="6.1.0")
WORDS = words(POLICY, CONFIG)


def _made(**fields: object) -> layout.Decision:
    made = layout.Decision(verdict=layout.REFUSE, rule=1, refused=1, pid=7, uid=0, comm=b"insmod", name=b"evil", size=9)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _found(made: layout.Decision, *kinds: str) -> layout.Decision:
    for at, kind in enumerate(kinds):
        number = layout.NUMBER[kind]
        made.finding[at].kind, made.finding[at].evidence, made.finding[at].offset = number, layout.INSTRUCTION, 16
        made.finding[at].section = b".text"
        for bitmap in (made.kinds, made.because):
            bitmap[number // 64] |= 1 << number % 64
    made.total = made.named = len(kinds)
    return made


def _say(made: layout.Decision) -> Decision:
    return record(made, CONFIG, WORDS, "2026-01-02T03:04:05.000000Z")


def test_a_rule_s_words() -> None:
    said = _say(_found(_made(), "VMLAUNCH", "VMXON"))
    assert said.reason == "VMLAUNCH and VMXON: a hypervisor, neither sld_safe nor SLD-aware"
    assert said.log.endswith("boot with: 'split_lock_detect=off': evil")
    assert [(f.kind, f.section, f.offset) for f in said.findings] == [
        ("VMLAUNCH", ".text", "0x10"),
        ("VMXON", ".text", "0x10"),
    ]
    assert (said.verdict, said.refused, said.rule, said.policy, said.digest) == ("refuse", True, 1, "refuse", None)
    jsonschema.validate(json.loads(said.to_json()), SCHEMA)
    assert Decision.from_json(said.to_json()) == said


def test_without_its_words_a_decision_is_still_one() -> None:
    said = record(_found(_made(), "VMLAUNCH"), CONFIG, None, "2026-01-02T03:04:05.000000Z")
    assert (said.verdict, said.reason) == ("refuse", "rule 1 of the policy")


@pytest.mark.parametrize(
    ("facts", "kinds", "reason"),
    [
        ((), (), "nothing found"),
        (("sld_aware", "intree"), ("VMLAUNCH",), "SLD-aware: imports handle_guest_split_lock"),
        (("sld_safe",), ("VMXON",), "marked sld_safe; its own word: it does not import handle_guest_split_lock"),
        (("intree",), ("VMRUN",), "in-tree"),
        ((), ("RDMSR",), "nothing this policy forbids"),
    ],
)
def test_why_something_is_let_in(facts: tuple[str, ...], kinds: tuple[str, ...], reason: str) -> None:
    made = _found(_made(verdict=layout.ALLOW, rule=-1, refused=0), *kinds)
    made.facts = sum(layout.FACTS[fact] for fact in facts)
    assert _say(made).reason == reason


def test_doubts_and_the_list() -> None:
    for number, doubt in enumerate(layout.DOUBTS):
        if doubt:
            assert _say(_made(doubt=number, rule=-1)).reason == f"cannot be judged: {layout.WORDS[doubt]}"
    listed = _say(_found(_made(allowed=1, refused=0, digested=1), "VMXON"))
    assert (listed.reason, listed.listed, listed.digest) == ("on the list of `guard allow`", True, "00" * 32)
    assert render(listed).startswith("allow ")


def test_break_names_the_symbols() -> None:
    policy = load("break:vmap_pfn")
    config = build(policy)
    made = _made(rule=0, imports=config.rule[0].imports)
    said = record(made, config, words(policy, config), "")
    assert said.reason == "imports vmap_pfn: would no longer link"
    assert said.log == "evil: Unknown symbol vmap_pfn (err -2)"


def test_text_is_80_columns_and_harmless() -> None:
    made = _found(_made(name=b"evil\x1b[31m\n", comm=b"a\x07b"), *["WRMSR"] * 24)
    made.total = 5000
    text = head() + "\n" + render(_say(made), verbose=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "and 4,976 more findings" in text


def test_out_of_the_kernel_s_ring_buffer(tmp_path: Path) -> None:
    """The compiled object's own maps, and the verifier's word on its judge, on this machine's kernel."""
    if os.geteuid() or not judge.OBJECT.exists():
        pytest.skip("needs root, and gate.bpf.o (clang and libbpf-dev)")
    data = (b"\x7fELF" + bytes(300)) * 3
    memory = ctypes.create_string_buffer(data, len(data))
    with Object(str(judge.OBJECT)) as made:
        for name in [name for name in made.programs if name != "judge_test"]:
            made.leave_out(name)  # on some hosts only this kind may be loaded
        made.load()
        maps = made.maps
        maps["config"].write(bytes(4), CONFIG)
        maps["config"].freeze()
        with pytest.raises(PermissionError):
            maps["config"].write(bytes(4), CONFIG)
        context = bytes(layout.Test(ctypes.addressof(memory), len(data)))
        made.run("judge_test", context=context)
        decision = layout.Decision()
        assert maps["tested"].read(bytes(4), decision)
        assert layout.DOUBTS[decision.doubt] == "malformed"
        assert judge.judge(data, CONFIG).doubt == decision.doubt
        maps["allowed"].write(bytes(32), (1).to_bytes(8, "little"))
        assert list(maps["allowed"].keys(32)) == [bytes(32)]
        assert maps["allowed"].delete(bytes(32))
        assert not maps["allowed"].delete(bytes(32))
        buffer = RingBuffer(maps["decisions"], lambda raw: None)
        assert buffer.consume() == 0
        buffer.close()


def test_a_record_s_time_is_that_of_the_clock() -> None:
    made = _made(time=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    said = decode(bytes(made), CONFIG, WORDS)
    assert said.time.startswith(time.strftime("%Y-%m-%dT%H:", time.gmtime()))


def test_an_object_that_does_not_load_names_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "gate.bpf.o"
    broken.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(SplitlockError) as caught:
        Object(str(broken))
    assert "\n" not in str(caught.value)


def test_log_file(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "deep" / "guard.jsonl"))
    assert list(log.read()) == []
    first = _say(_found(_made(), "VMXON"))
    log.append(first.to_json())
    log.append(b'{"half a line\n')
    (tmp_path / "deep" / "guard.jsonl").rename(tmp_path / "deep" / "guard.jsonl.1")  # logrotate
    log.append(first.to_json())
    assert list(log.read()) == [first]
    assert list(LogFile(str(tmp_path / "deep" / "guard.jsonl.1")).read()) == [first]
    with pytest.raises(SplitlockError, match="--log /dev/full: No space left on device"):
        LogFile("/dev/full").append(first.to_json())


def test_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(5)
        Journal(path).send(_say(_found(_made(name=b"evil\nPRIORITY=0"), "VMXON")))
        fields = dict(line.split("=", 1) for line in server.recv(1 << 16).decode().splitlines())
    assert fields["SPLITLOCK_MODULE"] == "evil?PRIORITY=0"  # a module's name makes no fields
    assert (fields["PRIORITY"], fields["SPLITLOCK_VERDICT"], fields["SPLITLOCK_FINDINGS"]) == ("4", "refuse", "VMXON")
    gone = Journal(path + "-not")
    gone.send(_say(_made()))
    assert gone.failed == 1


def test_disable_says_what_it_could_do(tmp_path: Path) -> None:
    policy = load("disable")
    config = build(policy)
    said = record(_found(_made(verdict=layout.DISABLE, refused=0), "VMLAUNCH"), config, words(policy, config), "")
    sysctl, kmsg = tmp_path / "split_lock_mitigate", tmp_path / "kmsg"
    sysctl.write_text("1\n")
    assert "kernel.split_lock_mitigate=0" in disable(said, str(sysctl), str(kmsg))
    assert sysctl.read_text() == "0\n"
    assert kmsg.read_text().startswith(
        "<4>x86/split lock detection: disabled due to VMLAUNCH in module: evil (splitlock: "
    )
