"""Decisions: what the gate's own code says of real instructions, in words; the log; what is handed on."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock

import jsonschema
import msgspec
import pytest
from guard.elves import CLEAN, TEXT, module

from splitlock._errors import SplitlockError
from splitlock.commands import main
from splitlock.guard import gate, judge, kernel, layout
from splitlock.guard import log as logs
from splitlock.guard.bpfobject import Object
from splitlock.guard.config import build, words
from splitlock.guard.decisions import decode, from_scan, record
from splitlock.guard.journal import Journal
from splitlock.guard.libbpf import Map, RingBuffer
from splitlock.guard.log import Drain, LogFile, tail
from splitlock.guard.mitigate import disable
from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge as verdict
from splitlock.report.guard import Decision, Status
from splitlock.report.guard_text import head, render, render_status

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA, STATUS = (json.loads((DOCS / f"{name}.schema.json").read_text()) for name in ("guard", "guard-status"))
POLICY = load("refuse")
CONFIG = build(POLICY, release="6.1.0")
WORDS = words(POLICY)


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


@pytest.mark.parametrize(
    ("code", "imports", "rule"),
    [
        (b"\x0f\x01\xc2\xc3", (), "VMLAUNCH: a hypervisor"),
        (b"\x0f\x01\xc2\x0f\x30\xc3", (), "VMLAUNCH: a hypervisor"),  # wrmsr, which another rule refuses
        (b"\x0f\x30\x0f\x01\xc2\x0f\x01\xc4\xc3", (), "VMLAUNCH and VMXOFF: a hypervisor"),
        (CLEAN, (b"set_memory_x",), "FOREIGN-CODE: "),
        (CLEAN, (b"kallsyms_lookup_name", b"pv_ops", b"vmap"), "FOREIGN-CODE: "),
    ],
)
def test_words_are_the_scanner_s(code: bytes, imports: tuple[bytes, ...], rule: str) -> None:
    data = module([(b".text", 1, TEXT, code)], [(name, 0x10, 0, 0) for name in imports])
    found = scan(data)
    wanted = verdict(found, POLICY, data)
    said = record(judge.judge(data, CONFIG), CONFIG, WORDS, "")
    by_fanotify = from_scan(data, found, wanted, "", POLICY, os.getpid(), refused=True, nanoseconds=1)
    assert (said.verdict, said.reason, said.log) == (wanted.verdict, wanted.reason, wanted.log)
    assert said.reason.startswith(rule)
    assert [(each.kind, each.evidence) for each in said.findings] == [(f.kind, f.evidence) for f in found.findings]
    assert said.findings == by_fanotify.findings


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
    said = record(made, config, words(policy), "")
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
    if os.geteuid():
        pytest.skip("needs root: loads a BPF program")
    data = (b"\x7fELF" + bytes(300)) * 3
    memory = ctypes.create_string_buffer(data, len(data))
    with Object(judge.built(judge.OBJECT)) as made:
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


def test_lines_that_are_no_decisions_are_counted_by_those_who_follow_too(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "guard.jsonl"))
    line = _say(_found(_made(), "VMXON")).to_json()
    log.append(line)
    rounds = iter([line, b'half{"\n\n', b'{"schema":"\xff"}\n', line])

    def going() -> bool:  # what is there when it begins is not new
        more = next(rounds, None)
        if more is not None and taken_up:
            with open(log.path, "ab") as file:
                file.write(more)
        taken_up.append(True)
        return more is not None

    taken: list[Decision] = []
    taken_up: list[bool] = []
    tail(log, taken.append, going)
    assert [decision.to_json() for decision in taken] == [line]
    assert log.told() == f"--log {log.path}: 3 lines passed over: no decision"
    log.passed = 0
    assert len(list(log.read())) == 2
    assert log.passed == 3


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "guard.jsonl"))
    said = _say(_found(_made(), "VMXON"))
    Path(log.path).write_bytes(said.to_json()[:100])  # what a full disk took
    log.append(said.to_json())
    assert (list(log.read()), log.passed) == ([said], 1)


@contextmanager
def _full() -> Iterator[None]:
    """No file has room for a whole decision."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class _Ring:
    """A ring buffer as libbpf gives it out: a record for which `take` raises is gone as well."""

    pending: list[bytes]

    def __init__(self, _: object, take: Callable[[bytes], None]) -> None:
        self.take = take

    def consume(self) -> None:
        while self.pending:
            self.take(self.pending.pop(0))

    def close(self) -> None:
        pass


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> type[_Ring]:
    """A gate that is up, with two decisions to hand out."""
    records = [bytes(_found(_made(name=name), "VMXON")) for name in (b"one", b"two")]
    monkeypatch.setattr(_Ring, "pending", records, raising=False)
    monkeypatch.setattr(logs, "RingBuffer", _Ring)
    monkeypatch.setattr(Map, "pinned", lambda path: Map(os.open(os.devnull, os.O_RDONLY)))
    monkeypatch.setattr(gate, "is_up", lambda: True)
    monkeypatch.setattr(gate, "locked", nullcontext)
    monkeypatch.setattr(gate, "live_config", lambda directory: CONFIG)
    monkeypatch.setattr(gate, "counters", lambda: {"lost": 0})
    monkeypatch.setattr(kernel, "check_root", lambda what: None)
    return _Ring


def test_what_the_log_does_not_take_is_shown(
    up: type[_Ring], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "log")
    with _full():
        assert main(["guard", "log", "--format", "json", "--log", path]) == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["one"]
    assert err.splitlines() == [
        f"splitlock: guard log: --log {path}: 1 line passed over: no decision",  # what there was room for
        f"splitlock: --log {path}: File too large; decisions stay in force, unlogged",
    ]
    assert len(up.pending) == 1  # still the kernel's
    assert main(["guard", "log", "--format", "json", "--log", path]) == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["two"]
    assert main(["guard", "log", "--log", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"splitlock: --log {tmp_path}: Is a directory\n"


def test_what_the_log_did_not_take_is_written_with_the_next(up: type[_Ring], tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    draining = Drain(log)
    for name in ("one", "two"):
        with _full(), pytest.raises(SplitlockError):
            draining.take()
        assert [decision.name for decision in draining.taken] == [name]
    assert draining.take() == []
    assert [decision.name for decision in log.read()] == ["one", "two"]
    draining.close()


def test_status_warns_of_runs_that_the_kernel_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*gate.JUDGES, *gate.CHECKS):
        (tmp_path / f"link_{name}").touch()
    counters = Mock(**{"info.return_value": (2, 4, ctypes.sizeof(layout.Counters), 1)})
    misses = {"link_read_file": 3, "link_check_file": 1}
    monkeypatch.setattr(gate, "recursion_misses", lambda path: misses.get(os.path.basename(path), 0))
    monkeypatch.setattr(gate, "opened", lambda *_: nullcontext(counters))
    assert gate.counters(str(tmp_path))["missed"] == 4
    found = Status(
        gate="bpf", live=True, why="", policy="refuse", audit=False, started=None, pins=[], allowed=[], holes=[],
        counters=gate.counters(str(tmp_path)), log="",
    )  # fmt: skip
    jsonschema.validate(json.loads(msgspec.json.encode(found)), STATUS)
    text = render_status(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "0 canaries, 4 missed" in " ".join(text.split())
    assert "WARNING: missed: a program of the gate was not run" in text
    misses.clear()
    found.counters = gate.counters(str(tmp_path))
    assert "WARNING" not in render_status(found)


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
    said = record(_found(_made(verdict=layout.DISABLE, refused=0), "VMLAUNCH"), config, words(policy), "")
    sysctl, kmsg = tmp_path / "split_lock_mitigate", tmp_path / "kmsg"
    sysctl.write_text("1\n")
    assert "kernel.split_lock_mitigate=0" in disable(said, str(sysctl), str(kmsg))
    assert sysctl.read_text() == "0\n"
    assert kmsg.read_text().startswith(
        "<4>x86/split lock detection: disabled due to VMLAUNCH in module: evil (splitlock: "
    )
