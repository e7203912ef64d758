"""Names as programmers wrote them: C++ by c++filt, both of Rust's manglings and Microsoft's by their specifications."""

from __future__ import annotations

import subprocess

import pytest

from splitlock.image.demangle import demangle


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        # rust-lang's RFC 2603 and rustc-demangle's documentation
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ("_RNvMsg_NtNtCsfZ2x_4core4sync6atomicNtB5_9AtomicI649fetch_add", "<core::sync::atomic::AtomicI64>::fetch_add"),
        ("_RINvNtC3std3mem8align_ofjdE", "std::mem::align_of::<usize, f64>"),
        ("_ZN4core4sync6atomic9AtomicU649fetch_add17h0123456789abcdefE", "core::sync::atomic::AtomicU64::fetch_add"),
        ("_ZN4testE", "test"),
        ("_ZN13test$u20$test4foobE", "test$u20$test::foob"),  # no hash: C++, for all that is known
        ("_ZN13test$u20$test4foob17h05af221e174051e9E", "test test::foob"),
        ("_ZN35Bar$LT$$u5b$u32$u3b$$u20$4$u5d$$GT$17h05af221e174051e9E", "Bar<[u32; 4]>"),
        ("_ZN12test$BP$test4foob17h05af221e174051e9E", "test*test::foob"),
        ("_ZN28_$u7b$$u7b$closure$u7d$$u7d$17h05af221e174051e9E", "{{closure}}"),
        ("_ZN8foo..bar3baz17h05af221e174051e9E", "foo::bar::baz"),
        # "C++ name decoration" in Microsoft's documentation of undname
        ("?func1@a@@AAEXH@Z", "private: void __thiscall a::func1(int)"),
        ("plain", "plain"), ("_Znot a name", "_Znot a name"), ("_R", "_R"), ("?", "?"), ("", ""), ("_RNvé", "_RNvé"),
        ("_ZN4core3fmt17h05af221e174051e9", "_ZN4core3fmt17h05af221e174051e9"),
    ],
)  # fmt: skip
def test_known_names(mangled: str, name: str) -> None:
    assert demangle(mangled) == name


def test_all_of_libstdcxx() -> None:
    """Every name that it exports, as c++filt has it."""
    listing = subprocess.check_output(
        ["nm", "-D", "--defined-only", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"], text=True
    )
    names = sorted({line.split()[2].partition("@")[0] for line in listing.splitlines() if " _Z" in line})
    told = subprocess.check_output(["c++filt"], input="\n".join(names), text=True).splitlines()
    same = sum(demangle(name) == other for name, other in zip(names, told, strict=True))
    assert not any(demangle(name).startswith("_Z") for name in names)
    assert same > 0.9 * len(names) > 3000  # the rest: std::istream for std::basic_istream<char, ...>


@pytest.mark.parametrize("start", ["_Z", "_R", "?", "_ZN", "_RNv", "_RINv"])
def test_what_is_no_name_stays(start: str) -> None:
    """Whatever a hostile symbol table holds: bounded, and given back."""
    for rest in (
        "",
        "0" * 70_000,
        "P" * 5_000,
        "N" * 5_000,
        "I" * 5_000,
        "\x00\xff",
        "999999999999999999999a",
        "B_" * 999,
    ):
        assert isinstance(demangle(start + rest), str)
