"""`splitlock exports`: answers on Debian's own modules, its JSON, and every failure in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
from modules.debian import unpacked, vmlinuz

from splitlock.report.exports import Report
from splitlock.report.exports_text import render

DOCS = Path(__file__).parents[2] / "docs"
SPLITLOCK = [sys.executable, "-m", "splitlock"]


@pytest.fixture(scope="session")
def where() -> list[str]:
    """Debian's kernel for clouds, unpacked."""
    return ["--modules", str(unpacked("cloud-amd64") / "lib")]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SPLITLOCK, "exports", *words], capture_output=True, text=True, timeout=300, check=False)


def test_without(where: list[str]) -> None:
    done = run("--without", "__vmalloc", *where)
    assert (done.returncode, done.stderr) == (1, "")
    assert "through kvm\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = Report.from_json(run("--without", "__vmalloc", "--format", "json", *where).stdout)
    assert report.direct == 5
    assert {loss.module for loss in report.losses} >= {"kvm", "kvm_intel", "kvm_amd"}
    assert render(report) == done.stdout
    brief, everything = (run("--without", "vmalloc", *more, *where).stdout for more in ([], ["-v"]))
    assert "more (-v lists all)\n" in brief
    assert "more" not in everything
    assert len(everything.splitlines()) > len(brief.splitlines())


@pytest.mark.parametrize("name", ["unexport-2020", "sanitize-vmalloc-api"])
def test_a_set_of_2020(where: list[str], name: str) -> None:
    """By its name, which is no misspelt symbol; 6.1 exports none of them any more."""
    done = run("--without", name, *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all of them still load" in done.stdout
    report = Report.from_json(run("--without", name, "vmap", "--format", "json", *where).stdout)
    of_the_set = [symbol for symbol in report.symbols if symbol.name != "vmap"]
    assert {symbol.name for symbol in of_the_set} >= {"__get_vm_area", "map_vm_area"}
    assert not any(symbol.exporters or symbol.users for symbol in of_the_set)
    assert report.losses  # vmap's


def test_users(where: list[str]) -> None:
    done = run("--users", "kvm_init", *where)
    assert (done.returncode, "kvm_init: kvm_amd, kvm_intel" in done.stdout) == (1, True)


def test_break(where: list[str]) -> None:
    done = run("--break", "kvm-intel.ko", *where)
    assert done.returncode == 0
    assert "cr4_update_irqsoff" in done.stdout
    assert "without cr4_update_irqsoff only what was asked for fails: 1 module\n" in done.stdout
    assert run("--break", "kvm_intel", "-q", *where).stdout == ""
    done = run("--break", "kvm", *where)
    assert done.returncode == 1
    assert "(not asked for)" in done.stdout


def test_any_hash_seed_gives_the_same(where: list[str]) -> None:
    words = [*SPLITLOCK, "exports", "--break", "kvm_intel", "bochs", "ext4", "hv_vmbus", "--format", "json", *where]
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2", "3")]
    answers = {subprocess.run(words, env=seed, capture_output=True, text=True, check=False).stdout for seed in seeds}
    assert len(answers) == 1


def test_json_is_what_the_published_schema_says(where: list[str]) -> None:
    schema = json.loads((DOCS / "exports.schema.json").read_text())
    assert schema == msgspec.json.schema(Report), "regenerate with: make schema"
    for question in (["--without", "__vmalloc"], ["--break", "kvm_intel"], ["--users", "vmap"]):
        done = run(*question, "--format", "json", *where)
        jsonschema.validate(json.loads(done.stdout), schema)
        assert Report.from_json(done.stdout).question == question[0][2:]
    with pytest.raises(msgspec.ValidationError):
        Report.from_json(done.stdout.replace("exports/1", "exports/0"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(done.stdout.replace("exports/1", "exports/0")), schema)


def test_with_the_kernels_own_file(where: list[str]) -> None:
    """It tells what the kernel exports though no module imports it, and what it does not."""
    kernel = str(vmlinuz("cloud-amd64"))
    done = run("--without", "unregister_kretprobe", "--format", "json", *where, kernel)
    report = Report.from_json(done.stdout)
    assert (done.returncode, report.kernel_exports, report.losses) == (0, kernel, [])
    assert report.symbols[0].exporters == ["vmlinux"]
    done = run("--without", "native_write_cr4", *where, kernel)
    assert (done.returncode, done.stdout) == (2, "")
    assert "native_write_cr4: neither the kernel nor a module exports it" in done.stderr


def test_it_fails_in_one_line(where: list[str], tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for words, what, remedy in (
        (["--break", "kvm_intle", *where], "--break kvm_intle: no such module", "did you mean kvm_intel?"),
        (["--break", "nonsense", *where], "--break nonsense: no such module", "name one of these"),
        (["--without", "__vmaloc", *where], "--without __vmaloc: no module imports", "did you mean __vmalloc?"),
        (["--users", "vmap", "no_such", *where], "--users no_such: no module imports or exports it", "--symvers"),
        (["--without", "x", "--symvers", f"{tmp_path}/none", *where], "none: No such file", "Module.symvers of"),
        (["--without", "x", "--symvers", str(tmp_path), *where], f"--symvers {tmp_path}: Is a directory", "give the"),
        (["--without", "x", "--symvers", str(binary), *where], "binary: not a text file", "give the Module.symvers"),
        (["--without", "x", "--modules", f"{tmp_path}/none"], "none: No such file", "name a kernel's modules"),
        (["--without", "x", "--modules", str(tmp_path)], f"--modules no kernel modules in {tmp_path}", "name a kernel"),
        (["--without", "vmap", "-o", str(tmp_path), *where], f"-o {tmp_path}: Is a directory", "that can be written"),
        ([], "required", "--help"),
    ):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert what in done.stderr
        assert remedy in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_cannot_be_read_is_said_and_the_rest_counts(where: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.ko").write_bytes(b"bad")
    done = run("--without", "__vmalloc", *where, str(tmp_path))
    assert done.returncode == 2
    assert "not read:" in done.stdout
    assert "bad.ko: not an ELF file" in " ".join(done.stdout.split())
    assert "through kvm\n" in done.stdout


def test_output(where: list[str], tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    done = run("--users", "vmap", "--format", "json", "-o", str(target), *where)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert Report.from_json(target.read_bytes()).symbols[0].name == "vmap"
    with open("/dev/full", "w") as full:
        words = [*SPLITLOCK, "exports", "--users", "vmap", *where]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "splitlock: standard output: No space left on device: no report\n")


def test_a_reader_that_has_seen_enough(where: list[str]) -> None:
    words = " ".join([*SPLITLOCK, "exports", "--without", "vmalloc", "-v", *where])
    done = subprocess.run(f"{words} | head -n 1", shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout.split()[0], done.stderr) == ("SYMBOL", "")
