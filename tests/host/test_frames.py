"""The program's own function stands in front, not the header that its atomic operation is inlined from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from splitlock.host.explain.based import Based
from splitlock.host.explain.line import explain
from splitlock.linux.log import lines
from splitlock.report.frames import inlined, last, own, short, system
from splitlock.report.watch import Event, Frame
from splitlock.report.watch_text import render

_CXX = """#include <atomic>
struct Counter { std::atomic<long> value;
    void add() { value.fetch_add(1); } };
namespace game { struct Physics { Counter counter; __attribute__((noinline)) void step(int times); };
void Physics::step(int times) { for (int i = 0; i < times; i++) counter.add(); } }
int main(int argc, char **) { game::Physics made{}; made.step(argc); return (int)made.counter.value; }
"""
_RUST = """use std::sync::atomic::{AtomicU64, Ordering};
pub struct Counter { pub value: AtomicU64 }
impl Counter {
    #[inline(always)]
    pub fn add(&self) { self.value.fetch_add(1, Ordering::SeqCst); }
}
pub mod physics {
    #[inline(never)]
    pub fn step(counter: &super::Counter) { counter.add() }
}
fn main() {
    let made = Counter { value: AtomicU64::new(std::env::args().count() as u64) };
    physics::step(&made);
    println!("{}", made.value.load(Ordering::SeqCst));
}
"""


def _explained(program: Path, function: str) -> Event:
    """The locked instruction in the function whose symbol this pattern finds, by objdump."""
    listing = subprocess.run(["objdump", "-d", program], capture_output=True, text=True, check=True).stdout
    body = re.split(r"^[0-9a-f]+ <", re.split(function, listing, maxsplit=1)[1], flags=re.M)[0]
    at = int(next(line for line in body.splitlines() if "lock " in line).split(":")[0], 16)
    text = f"#AC: demo/12 took a split_lock trap at address: {0x555555554000 + at:#x}"
    return explain(next(lines(text)), Based(str(program), 0x555555554000))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_std_atomic(tmp_path: Path, compiler: str) -> None:
    (tmp_path / "inl.cc").write_text(_CXX)
    words = [compiler, "-O2", "-g", "-o", "game", "inl.cc"]
    subprocess.run(words, cwd=tmp_path, check=True)
    event = _explained(tmp_path / "game", "_ZN4game7Physics4stepEi>:")
    place = event.place
    assert place
    assert place.function == "game::Physics::step(int)"
    assert place.source
    assert place.source.endswith("inl.cc:5")
    names = [frame.function for frame in place.frames]
    assert [short(name or "") for name in names[-2:]] == ["Counter::add", "game::Physics::step"]
    assert "fetch_add" in (names[0] or "") or "operator" in (names[0] or "")
    assert "/include/" in (place.frames[0].source or "")
    assert [frame.inlined for frame in place.frames] == [True] * (len(names) - 1) + [False]
    text = " ".join(render(event).split())
    assert re.search(r"game::Physics::step inl\.cc:5 \(inlined: Counter::add, .*fetch_add\) game\+0x", text), text
    assert "inl.cc:3" in render(event, verbose=True)


@pytest.mark.parametrize("mangling", ["default", "v0"])
def test_rust(tmp_path: Path, mangling: str) -> None:
    (tmp_path / "game.rs").write_text(_RUST)
    command = ["rustc", "-g", "-O", *(["-Csymbol-mangling-version=v0"] if mangling == "v0" else []), "game.rs"]
    subprocess.run(command, cwd=tmp_path, check=True)
    event = _explained(tmp_path / "game", r"7physics4step(?:17h[0-9a-f]{16}E)?>:")
    assert event.place
    assert event.place.function == "game::physics::step"
    assert event.place.source
    assert event.place.source.endswith("game.rs:9")
    text = " ".join(render(event).split())
    assert re.search(r"game::physics::step game\.rs:9 \(inlined: .*Counter.*::add, .*fetch_add.*\) game\+0x", text), (
        text
    )


def test_which_is_the_programs_own() -> None:
    header = Frame(
        function="std::x<int>::fetch_add(int)", source="/usr/include/c++/12/bits/atomic_base.h:618", inlined=True
    )
    user = Frame(function="{lambda()#1}::operator()() const", source="a.cc:3", inlined=True)
    thread = Frame(function="std::thread::_M_run()", source="/usr/include/c++/12/bits/std_thread.h:210", inlined=False)
    bare = Frame(function="f", source=None, inlined=False)
    for frames, front, inside in (
        ([header, user, thread], user, ["fetch_add"]), ([header, thread], header, []), ([bare], bare, []),
        ([header, user, bare], bare, ["{lambda()#1}::operator()", "fetch_add"]), ([], None, []),
    ):  # fmt: skip
        assert own(frames) is front
        assert inlined(frames) == inside


@pytest.mark.parametrize(
    ("source", "is_system"),
    [
        ("/usr/include/x86_64-linux-gnu/c++/12/bits/atomic.h:1", True),
        ("/usr/lib/gcc/x86_64-linux-gnu/12/include/xmmintrin.h:1", True),
        ("/usr/lib/llvm-14/lib/clang/14.0.6/include/mm.h:2", True),
        ("/opt/gcc-14/include/c++/14/atomic:3", True), ("/usr/local/include/boost/atomic.hpp:9", True),
        ("/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/core/src/sync/atomic.rs:4", True),
        ("/home/a/.rustup/toolchains/x/lib/rustlib/src/rust/library/core/src/sync/atomic.rs:4", True),
        (r"C:\Program Files\Microsoft Visual Studio\2022\VC\Tools\MSVC\14.38\include\atomic:5", True),
        ("inl.cc:5", False), ("/home/a/include/counter.h:5", False), ("/usr/src/debug/game/a.c:1", False),
        ("../sysdeps/nptl/lock.c:3", False), ("src/rustc/a.rs:1", False), (None, False),
    ],
)  # fmt: skip
def test_whose_a_source_file_is(source: str | None, is_system: bool) -> None:
    assert system(source) is is_system


@pytest.mark.parametrize(
    ("name", "shorter", "end"),
    [
        ("game::Physics::step(int)", "game::Physics::step", "step"),
        ("std::__atomic_base<long>::fetch_add(long, std::order)", "std::__atomic_base<long>::fetch_add", "fetch_add"),
        ("public: void __cdecl game::Physics::step(void)+0x2", "game::Physics::step+0x2", "step+0x2"),
        ("f<g(int)>(h)", "f<g(int)>", "f"), ("a::operator()(int)", "a::operator()", "operator()"),
        ("std::atomic<int>::operator++()", "std::atomic<int>::operator++", "operator++"),
        ("a::operator<(b)", "a::operator<", "operator<"), ("a::operator->() const", "a::operator->", "operator->"),
        ("(anonymous namespace)::f(int)", "(anonymous namespace)::f", "f"), ("main", "main", "main"), ("", "", ""),
        ("<core::sync::atomic::AtomicU64>::fetch_add", "<core::sync::atomic::AtomicU64>::fetch_add", "fetch_add"),
        ("core::sync::atomic::atomic_add::<u64, u64>", "core::sync::atomic::atomic_add::<u64, u64>", "atomic_add"),
        ("core::sync::atomic::AtomicU64::add::{closure#0}", "core::sync::atomic::AtomicU64::add::{closure#0}",
         "{closure#0}"),
    ],
)  # fmt: skip
def test_short_names(name: str, shorter: str, end: str) -> None:
    assert short(name) == shorter
    assert last(shorter) == end
