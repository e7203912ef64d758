"""The reader of kernel images against pyelftools, readelf and modinfo on real modules, and on damaged files."""

from __future__ import annotations

import io
import mmap
import random
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import binutils
from modules.debian import modules, packages, vmlinuz
from x86.building import LIBC, assemble, function, link, run

from splitlock._errors import ImageError
from splitlock.image.bzimage import vmlinux
from splitlock.image.module import ET_REL, KernelImage
from splitlock.image.signature import MARKER, Signature, read_signature

SAMPLE = random.Random(3).sample(range(4000), 25)
NAMED = ("kvm-intel.ko", "kvm.ko", "vmwgfx.ko", "ptp_kvm.ko", "nettel.ko", "dummy.ko")


def sample() -> list[Path]:
    found = modules("amd64")
    return [found[name] for name in NAMED] + [list(found.values())[at] for at in SAMPLE]


def test_real_modules_as_pyelftools_reads_them() -> None:
    for path in sample():
        raw = path.read_bytes()
        image, elf = KernelImage(raw), ELFFile(io.BytesIO(raw))
        assert image.type == ET_REL
        sections = list(elf.iter_sections())
        executable = [(s.name, s["sh_offset"], s["sh_size"]) for s in sections if s["sh_flags"] & 4 and s["sh_size"]]
        assert [(c.section, c.offset, c.size) for c in image.code] == executable
        (table,) = (s for s in sections if isinstance(s, SymbolTableSection))
        symbols = list(table.iter_symbols())
        assert image.imports == {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}
        prefix = "__ksymtab_"
        assert image.exports == {s.name[len(prefix) :] for s in symbols if s.name.startswith(prefix)}
        for code in image.code:
            functions = {
                s["st_value"] for s in symbols if s["st_shndx"] == code.index and s["st_info"]["type"] == "STT_FUNC"
            }
            assert code.starts == sorted(functions)
            for symbol in symbols:
                if symbol["st_shndx"] == code.index and symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]:
                    assert code.covered(symbol["st_value"])
                    assert image.function(code, symbol["st_value"])
        for relocation in (s for s in sections if isinstance(s, RelocationSection)):
            wanted = sorted(
                (r["r_offset"], r["r_info_type"], r["r_addend"])
                for r in relocation.iter_relocations()
                if symbols[r["r_info_sym"]].name == "pv_ops"
            )
            for code in image.code:
                if code.index == relocation["sh_info"]:
                    assert [tuple(r) for r in code.relocations("pv_ops")] == wanted


def test_real_modules_as_readelf_reads_them() -> None:
    for path in sample():
        image = KernelImage(path.read_bytes())
        executable = [s for s in binutils.sections(path) if "X" in s.flags and s.size and s.type != "NOBITS"]
        assert [(c.index, c.section, c.address, c.offset, c.size) for c in image.code] == [
            (s.number, s.name, s.address, s.offset, s.size) for s in executable
        ]
        symbols = binutils.symbols(path)
        assert image.imports == {s.name for s in symbols if s.section == "UND" and s.name}
        for code in image.code:
            functions = [s for s in symbols if s.section == str(code.index) and s.type == "FUNC"]
            assert code.starts == sorted({s.value for s in functions})
            for start in code.starts:  # of several names for a place any will do
                names = {s.name for s in functions if s.value == start and s.size}
                assert not names or image.function(code, start) in names
        relocations = binutils.relocations(path)
        for code in image.code:
            assert [tuple(r)[::2] for r in code.relocations("pv_ops")] == sorted(
                (r.offset, r.addend) for r in relocations if (r.section, r.symbol) == (code.section, "pv_ops")
            )


def test_real_modules_as_modinfo_reads_them() -> None:
    for path in sample():
        image = KernelImage(path.read_bytes())
        said: dict[str, list[str]] = {}
        for line in run("modinfo", "-0", path).split("\0"):
            key, separator, value = line.partition("=")
            if separator:
                said.setdefault(key, []).append(value.strip())
        signature = image.signature
        assert signature is not None
        assert [signature.signer, signature.key_id] == said["signer"] + said["sig_key"]
        assert [signature.hash_algorithm] == said["sig_hashalgo"]
        for key, values in image.modinfo.items():
            if not key.startswith("parm"):  # modinfo joins a parameter's type to its description
                assert [" ".join(value.split()) for value in values] == [" ".join(v.split()) for v in said[key]], key


def test_the_kernel_itself() -> None:
    packages("amd64")
    image = KernelImage(vmlinux(vmlinuz("amd64").read_bytes(), 512 << 20))
    assert image.type == 2
    assert next(code.section for code in image.code) == ".text"
    assert {"vmalloc", "printk", "cr4_update_irqsoff", "pv_ops", "_printk"} & image.exports >= {"vmalloc", "pv_ops"}
    assert "native_write_cr4" not in image.exports
    assert not image.imports
    assert image.signature is None


def test_a_shared_object(tmp_path: Path) -> None:
    raw = LIBC.read_bytes()
    image = KernelImage(raw)
    (text,) = (code for code in image.code if code.section == ".text")
    (section,) = (s for s in ELFFile(io.BytesIO(raw)).iter_sections() if s.name == ".text")
    assert (text.address, text.size) == (section["sh_addr"], section["sh_size"])
    assert len(text.starts) > 3000
    made = link(tmp_path, function("first", "nop; ret") + function("second", "vmcall; ret"))
    run("strip", "-s", made)
    (text,) = (code for code in KernelImage(made.read_bytes()).code if code.section == ".text")
    assert len(text.starts) == 2  # .dynsym and call frames are still there


def test_mapped_files_are_read_alike(tmp_path: Path) -> None:
    made = assemble(tmp_path, function("one", "call other; ret"))
    with made.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        image = KernelImage(mapped)
        assert image.imports == {"other"}
        assert [code.starts for code in image.code if code.section == ".text"] == [[0]]


def test_the_first_symbol_is_none(tmp_path: Path) -> None:
    """The loader passes it by, with a name, too."""
    raw = bytearray(assemble(tmp_path, function("one", "call other; ret")).read_bytes())
    (table,) = (s for s in ELFFile(io.BytesIO(raw)).iter_sections() if s.name == ".symtab")
    assert isinstance(table, SymbolTableSection)
    (name,) = (s["st_name"] for s in table.iter_symbols() if s.name == "other")
    at = table["sh_offset"]
    raw[at : at + 4] = (name + 2).to_bytes(4, "little")
    assert KernelImage(bytes(raw)).imports == {"other"}


def test_a_symbol_whose_name_is_the_end_of_another(tmp_path: Path) -> None:
    made = assemble(tmp_path, function("one", "call [rip+pv_ops+0xc0]; call [rip+my_pv_ops+0xc0]; ret"))
    image = KernelImage(made.read_bytes())
    (text,) = (code for code in image.code if code.section == ".text")
    assert [r.offset for r in text.relocations("pv_ops")] == [2]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not an ELF file"),
        (b"\x7fELF" + bytes(60), "not a 64-bit little-endian ELF file"),
        (b"\x7fELF\x01\x01" + bytes(60), "not a 64-bit little-endian ELF file"),
        (b"\x7fELF\x02\x02" + bytes(60), "not a 64-bit little-endian ELF file"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\1\0\xb7\0" + bytes(50), "not x86-64 code (e_machine 183)"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\4\0\x3e\0" + bytes(50), "not a module, program or library (e_type 4)"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\1\0\x3e\0" + bytes(50), "no section headers (truncated?)"),
    ],
)
def test_what_is_no_image(raw: bytes, complaint: str) -> None:
    with pytest.raises(ImageError) as caught:
        KernelImage(raw)
    assert str(caught.value) == complaint


def read_all(raw: bytes) -> None:
    """Read whatever there is to read; ImageError is the only way to fail."""
    try:
        image = KernelImage(raw)
        assert all(isinstance(x, frozenset) for x in (image.imports, image.exports))
        assert isinstance(image.modinfo, dict)
        for code in image.code:
            assert code.starts == sorted(code.starts)
            assert len(code.data) == code.size
            code.relocations("pv_ops")
    except ImageError:
        pass
    read_signature(raw)


@pytest.fixture(scope="module")
def small() -> bytes:
    return modules("amd64")["dummy.ko"].read_bytes()


def test_truncated(small: bytes) -> None:
    for size in [*range(256), *range(256, len(small), 97)]:
        read_all(small[:size])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped(data: st.DataObject) -> None:
    raw = bytearray(modules("amd64")["dummy.ko"].read_bytes())
    # half of the damage goes where it hurts: the header, the section headers, the signature
    table = int.from_bytes(raw[40:48], "little")
    places = st.one_of(
        st.integers(0, 63),
        st.integers(table, len(raw) - 1),
        st.integers(0, len(raw) - 1),
        st.integers(len(raw) - 720, len(raw) - 1),
    )
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(places)] = data.draw(st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF]))
    read_all(bytes(raw))


def test_signatures(small: bytes, tmp_path: Path) -> None:
    start = len(small) - len(MARKER) - 12
    size = int.from_bytes(small[start + 8 : start + 12], "big")
    plain = small[: start - size]
    assert read_signature(plain) is None
    assert read_signature(small[:-1]) is None
    assert read_signature(plain + bytes(12) + MARKER) == Signature("", "", "")
    assert read_signature(MARKER) is None
    # the other form of SignerInfo: named by key identifier, with the certificate inside
    key, cert, done = tmp_path / "key", tmp_path / "cert", tmp_path / "p7"
    (tmp_path / "text").write_bytes(plain)
    new: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/O=Some/CN=A toy key",
    ]
    subprocess.run([*new, "-keyout", key, "-out", cert], check=True, capture_output=True)
    sign: list[str | Path] = [
        "openssl",
        "cms",
        "-sign",
        "-binary",
        "-md",
        "sha512",
        "-signer",
        cert,
        "-inkey",
        key,
        "-outform",
        "DER",
    ]
    for options, signer in ((["-keyid"], ""), ([], "A toy key"), (["-nocerts", "-noattr"], "A toy key")):
        subprocess.run([*sign, "-in", tmp_path / "text", "-out", done, *options], check=True, capture_output=True)
        message = done.read_bytes()
        trailer = bytes([0, 0, 2]) + bytes(5) + len(message).to_bytes(4, "big")
        found = read_signature(plain + message + trailer + MARKER)
        assert found is not None
        assert (found.signer, found.hash_algorithm) == (signer, "sha512")
        assert found.key_id.count(":") == 19
        for cut in range(0, len(message), 7):  # never anything but an answer
            damaged = message[:cut] + b"\xff" + message[cut + 1 :]
            assert read_signature(plain + damaged + trailer + MARKER) is not None
