"""What the fuzzers run on an input, and what has to hold whatever the input is."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import jsonschema
import msgspec
from fuzz import archives, images, oopses, symbol_tables, texts

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.module import KernelImage
from splitlock.image.package import Failure, File, Member, read
from splitlock.image.signature import Signature, _signer, read_signature
from splitlock.modules.audit import Job, audit, examine
from splitlock.modules.exports import load as load_exports
from splitlock.modules.exports import read_symvers
from splitlock.modules.policy import OTHERS, SHIPPED, Policy, load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import GRAVITY, judge
from splitlock.report.sarif import Sarif
from splitlock.report.scan import Json, Report, Summary
from splitlock.report.scan_text import Text
from splitlock.x86.privileged import KINDS

SECONDS = 5.0  # of CPU for one input; it takes a thousandth of that
MEMORY = 1 << 30  # bytes for all of them: decoders' windows have up to 256 MiB, threads' stacks and arenas a lot more
LIMIT = 1 << 20  # bytes of a member
SCHEMA = Path(__file__).parents[2] / "docs" / "scan.schema.json"
ALL = frozenset((*KINDS, *OTHERS))


class Target(NamedTuple):
    """A family of inputs: where to start, how to change one, and what to do with it. `check` raises where it fails."""

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    check: Callable[[bytes], None]


class TooLong(BaseException):
    """An input took more than `SECONDS` of CPU."""


def _alarm(_signal: int, _frame: object) -> None:
    raise TooLong


@contextmanager
def clock() -> Iterator[None]:
    """An alarm that counts CPU, not time: the machine may be busy, or we may be stopped for a while."""
    before = signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def limited(memory: int) -> Iterator[None]:
    """No more than so many bytes of address space above what is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@cache
def policies() -> list[Policy]:
    """The shipped ones, and one of the command line's."""
    return [load(name) for name in (*SHIPPED, "break:pv_ops,vmap")]


@cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def _check_code(raw: bytes, image: KernelImage) -> None:
    for code in image.code:
        assert 0 <= code.offset <= code.offset + code.size <= len(raw)
        assert isinstance(code.section, str)
        assert len(code.data) == code.size
        starts, ends, _ = image.functions(code)
        assert starts == sorted(set(starts)), starts
        assert all(0 <= start < code.size for start in starts)
        assert ends == sorted(ends)
        assert all(start <= end <= code.size for start, end in zip(starts, ends, strict=True))
        for start in starts:
            name = image.function(code, start)
            assert name is None or (isinstance(name, str) and name and "\0" not in name)
        for symbol in ("pv_ops", ""):
            assert all(0 <= relocation.offset < code.size for relocation in code.relocations(symbol))


def _check_names(names: frozenset[str]) -> None:
    assert all(isinstance(name, str) and "\0" not in name for name in names)


def _read_all(raw: bytes) -> None:
    """Each part of an image by itself: one that is damaged does not keep the others from being read."""
    image = KernelImage(raw)
    steps: list[Callable[[], object]] = [
        lambda: _check_names(image.imports),
        lambda: _check_names(image.exports),
        lambda: [value.encode() for values in image.modinfo.values() for value in values],
        lambda: [image.section_name(index) for index in range(len(image.kinds))],
        lambda: _check_code(raw, image),
    ]
    for step in steps:
        try:
            step()
        except ImageError as error:
            _check_line(str(error))


def _check_line(text: str) -> None:
    assert text
    assert "\n" not in text


def _scanned(data: bytes | mmap.mmap) -> Any:
    try:
        return scan(data, ALL, text=True)
    except ImageError as error:
        return str(error)


def check_report(raw: bytes, job: Job) -> None:
    """One file through the audit and out in each format."""
    batch = examine([Member("a.ko", None, raw)], job)
    assert (len(batch.files), batch.clean) == (1, 0)
    (file,) = batch.files
    summary = Summary()
    summary.add(file)
    rendering = Json("refuse")
    written = rendering.begin() + rendering.file(file) + rendering.end(summary)
    assert Report.from_json(written).files == [file]
    if len(raw) % 8 == 0:
        _validator().validate(msgspec.json.decode(written))
    sarif = Sarif("refuse", "1", [(kind, kind) for kind in sorted(ALL)])
    msgspec.json.decode(sarif.begin() + sarif.file(file) + sarif.end(summary))
    shown = Text("refuse", verbose=True).file(file).decode()
    assert all(c.isprintable() or c == "\n" for c in shown)


def check_image(raw: bytes) -> None:
    """An ELF file: what is read of it holds together, and it gets a verdict from each policy."""
    try:
        _read_all(raw)
    except ImageError:
        assert isinstance(_scanned(raw), str)
    result = _scanned(raw)
    if len(raw) % 4 == 0 and raw:
        mapped = mmap.mmap(-1, len(raw))  # as the gate has files
        mapped[:] = raw
        assert _scanned(mapped) == result
    if isinstance(result, str):
        _check_line(result)
    else:
        sizes: dict[str, int] = {}
        for code in KernelImage(raw).code:
            sizes[code.section] = max(sizes.get(code.section, 0), code.size)
        for found in result.findings:
            assert found.kind in ALL
            assert found.certainty in ("exact", "possible")
            if found.offset is None:
                assert found.kind == "FOREIGN-CODE"
            else:
                assert 0 <= found.offset < sizes[found.section], found
                assert isinstance(found.instruction, str)
            assert found.function is None or isinstance(found.function, str)
        for policy in policies():
            verdict = judge(result, policy, raw)
            assert verdict.verdict in GRAVITY
            assert verdict.reason
    check_report(raw, Job(policies()[len(raw) % 3], ALL, True))


def check_signature(message: bytes) -> None:
    """A signature's message: an answer, and the same one whatever was read before."""
    other = message[:-1] + bytes([message[-1] ^ 1]) if message else b""
    for each in (message, other, message, images.message(b"other"), message):
        try:
            expected = _signer(each)[0]
        except (IndexError, ValueError):
            expected = Signature("", "", "")
        found = read_signature(images.signed(b"", each))
        assert found == expected
        assert all(isinstance(part, str) and len(part.encode()) <= 3 * len(each) + 64 for part in expected)


@cache
def _place() -> Path:
    """A directory for one file at a time, in memory where that can be had."""
    memory = "/dev/shm"
    made = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
    _kept.append(made)  # for as long as the process
    return Path(made.name)


_kept: list[Any] = []


def _left() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def check_package(raw: bytes) -> None:
    """A package, archive or compressed file: ELF files within the limit, and at most one failure of the whole."""
    if not raw:
        return
    name = archives.NAMES[raw[0] % len(archives.NAMES)]
    path = _place() / name
    path.write_bytes(raw[1:])
    before = _left()
    try:
        failed = False
        for item in read(File(str(path), raw[0] < 128), limit=LIMIT):
            assert not failed, "something behind the failure of the whole"
            assert item.path == str(path)
            if isinstance(item, Member):
                assert item.data[:4] == b"\x7fELF"
                assert len(item.data) <= LIMIT
            else:
                assert isinstance(item, Failure)
                _check_line(item.reason)
                failed = item.member is None
            assert item.member is None or isinstance(item.member.encode(), bytes)
        assert _left() == before
        if raw[0] % 4 == 0:
            files = [file for batch in audit([str(path.parent)], Job(policies()[0], ALL, True)) for file in batch.files]
            Report.from_json(_json(files))
        elif raw[0] % 4 == 1:
            _check_exports(path)
    finally:
        path.unlink()
    assert _left() == before


def _json(files: list[Any]) -> bytes:
    rendering, summary = Json("refuse"), Summary()
    parts = [rendering.begin()]
    for file in files:
        summary.add(file)
        parts.append(rendering.file(file))
    return b"".join([*parts, rendering.end(summary)])


def _check_exports(path: Path) -> None:
    try:
        kernel = load_exports([str(path)])
    except SplitlockError as error:
        _check_line(str(error) if error.exit_code == 2 else "")
    else:
        for module in kernel.modules.values():
            assert kernel.modules[module.name] is module
            assert set(kernel.without(module.imports)) <= kernel.modules.keys()


def check_text(raw: bytes) -> None:
    """A Module.symvers, and a policy: read, or refused in one line."""
    path = _place() / ("Module.symvers" if raw[:1] < b"\x80" else "own.toml")
    path.write_bytes(raw[1:])
    try:
        if path.suffix == ".toml":
            policy = load(str(path))
            result = scan(images.module(), ALL)
            assert judge(result, policy, images.module()).verdict in GRAVITY
        else:
            found = read_symvers(str(path))
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())
            (path.parent / "toy.ko").write_bytes(images.module())
            load_exports([str(path.parent / "toy.ko")], str(path))
    except SplitlockError as error:
        _check_line(str(error) if error.exit_code == 2 else "")
    finally:
        path.unlink()


TARGETS = {
    "image": Target(images.seeds, images.mutate, check_image),
    "package": Target(archives.seeds, archives.mutate, check_package),
    "signature": Target(images.messages, images.damaged_message, check_signature),
    "text": Target(texts.seeds, texts.mutate, check_text),
    "oops": Target(oopses.seeds, oopses.mutate, oopses.check),
    "kallsyms": Target(symbol_tables.seeds, symbol_tables.mutate, symbol_tables.check),
}
