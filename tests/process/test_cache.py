"""The plan cache: never a wrong plan, whatever happened to its files, and never a run that fails for its sake."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from x86.building import function, link

from splitlock.process import cache as module
from splitlock.process.cache import Cache, decode, encode
from splitlock.process.plan import Plan, build

SOURCE = function("f", "lock inc dword ptr [rdi]; mov eax, 1; ret")
OTHER = function("f", "lock dec qword ptr [rdi+8]; xchg [rsi], eax; mov eax, 1; ret")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two small libraries."""
    directory = tmp_path_factory.mktemp("images")
    return link(directory, SOURCE, name="one").read_bytes(), link(directory, OTHER, name="two").read_bytes()


@pytest.fixture
def library(tmp_path: Path, images: tuple[bytes, bytes]) -> Path:
    """The first of them, in a file of its own."""
    path = tmp_path / "library.so"
    path.write_bytes(images[0])
    return path


class Told:
    """A cache in a directory, and what it said."""

    def __init__(self, directory: Path | str | None) -> None:
        self.warnings: list[str] = []
        self.progress: list[str] = []
        self.cache = Cache(self.warnings.append, self.progress.append, None if directory is None else str(directory))

    def plan(self, path: Path | str) -> Plan:
        return self.cache.plan(str(path), "name")[1]


def no_build(_: object) -> tuple[Plan, object]:
    raise AssertionError("analysed again")


def entries(directory: Path) -> dict[str, Path]:
    """The cache's files by how their names end."""
    found = {path.name.rpartition(".")[2]: path for path in directory.iterdir()}
    assert len(found) == len(list(directory.iterdir()))
    return found


# -- what is stored -------------------------------------------------------------------------------

VALUES: tuple[object, ...] = (7, [("why", 3, None)], (0, 4096), b"\0\xff", {1: 2}, -(1 << 40), "text", None, [])


def test_what_was_encoded_is_decoded() -> None:
    for values in (VALUES, (), (0,), ((),)):
        assert decode(encode(values)) == values


def test_anything_else_is_none() -> None:
    raw = encode(VALUES)
    for other in (b"", b"SPLK", raw[:8], raw[:11], raw[:12], raw[8:], raw + b"\0", b"\0" + raw, bytes(len(raw))):
        assert decode(other) is None
    assert decode(encode([1, 2])) is None  # type: ignore[arg-type]


def test_every_flipped_bit_is_noticed() -> None:
    raw = encode(VALUES)
    for at in range(len(raw)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            assert decode(raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :]) is None


def test_random_damage_is_noticed(images: tuple[bytes, bytes]) -> None:
    chance = random.Random(30)
    whole = [encode(half.values()) for image in images for half in build(image)]
    for _ in range(2000):
        raw = bytearray(chance.choice(whole))
        before = bytes(raw)
        way = chance.randrange(5)
        at, count = chance.randrange(len(raw)), chance.randrange(1, 40)
        if way == 0:
            del raw[at:]
        elif way == 1:
            del raw[at : at + count]
        elif way == 2:
            raw[at:at] = chance.randbytes(count)
        elif way == 3:
            raw[at : at + count] = bytes(min(count, len(raw) - at))
        else:
            raw[at : at + count] = chance.randbytes(min(count, len(raw) - at))
        assert decode(bytes(raw)) == (decode(before) if raw == before else None)


# -- the second time ------------------------------------------------------------------------------


def test_a_plan_is_made_once(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "deep" / "cache"
    first = Told(directory)
    made = first.plan(library)
    hot, cold = build(library.read_bytes())
    assert made.values() == hot.values()
    assert first.progress == ["name", ""]
    assert set(entries(directory)) == {"hot", "cold", "lock"}
    assert directory.stat().st_mode & 0o777 == 0o700

    monkeypatch.setattr(module, "build", no_build)
    second = Told(directory)
    key, again = second.cache.plan(str(library), "name")
    assert again.values() == hot.values()
    assert second.cache.sites(key, str(library)).values() == cold.values()
    assert (second.progress, second.warnings) == ([], [])
    shutil.rmtree(directory)
    assert second.cache.plan(str(library), "name") == (key, again)  # from memory
    monkeypatch.undo()
    assert first.cache.sites(key, str(library)).values() == cold.values()


def test_other_names_of_a_file_share_its_plan(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "cache"
    (tmp_path / "symbolic").symlink_to(library)
    (tmp_path / "hard").hardlink_to(library)
    made = Told(directory).plan(library)
    monkeypatch.setattr(module, "build", no_build)
    for name in ("symbolic", "hard"):
        assert Told(directory).plan(tmp_path / name).values() == made.values()


@pytest.mark.parametrize("how", ["rewritten", "replaced", "touched"])
def test_a_changed_file_gets_a_plan_of_its_own(
    tmp_path: Path, library: Path, images: tuple[bytes, bytes], how: str
) -> None:
    told = Told(tmp_path / "cache")
    before = told.cache.plan(str(library), "name")
    if how == "rewritten":
        with library.open("r+b") as file:
            file.truncate()
            file.write(images[1])
    elif how == "replaced":
        (tmp_path / "new").write_bytes(images[1])
        (tmp_path / "new").rename(library)
    os.utime(library, ns=(1, library.stat().st_mtime_ns + 1))
    for cache in (told, Told(tmp_path / "cache")):
        key, plan = cache.cache.plan(str(library), "name")
        assert key != before[0]
        assert plan.values() == build(library.read_bytes())[0].values()
        assert (plan.values() == before[1].values()) == (how == "touched")
    # what is mapped already keeps its plan
    assert told.cache.sites(before[0], str(library)).values() == build(images[0])[1].values()


def test_a_file_without_a_name_is_planned_and_not_kept(tmp_path: Path, library: Path) -> None:
    with library.open("rb") as file:
        library.unlink()
        told = Told(tmp_path / "cache")
        assert told.plan(f"/proc/self/fd/{file.fileno()}").sites == 1
    assert told.warnings == []
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Told(tmp_path / "cache").plan(tmp_path / "nothing")


def test_a_file_that_is_no_image_has_a_plan_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("hello")
    made = Told(tmp_path / "cache").plan(tmp_path / "text")
    assert [reason for reason, _, _ in made.unmonitored] == ["no ELF image"]
    monkeypatch.setattr(module, "build", no_build)
    assert Told(tmp_path / "cache").plan(tmp_path / "text").values() == made.values()


# -- damaged entries --------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "flipped": lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
    "longer": lambda raw: raw + b"\0",
    "another-version": lambda raw: raw[:4] + bytes([raw[4] ^ 0x80]) + raw[5:],
    "another-shape": lambda raw: encode((1, 2, 3)),
    "nothing-in-it": lambda raw: encode(()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_hot_half_is_made_again(
    tmp_path: Path, library: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    made = Told(directory).plan(library)
    hot = entries(directory)["hot"]
    whole = hot.read_bytes()
    hot.write_bytes(damage(whole))
    again = Told(directory)
    assert again.plan(library).values() == made.values()
    assert again.warnings == []
    assert hot.read_bytes() == whole
    monkeypatch.setattr(module, "build", no_build)
    assert Told(directory).plan(library).values() == made.values()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cold_half_is_made_again(tmp_path: Path, library: Path, damage: Callable[[bytes], bytes]) -> None:
    directory = tmp_path / "cache"
    Told(directory).plan(library)
    cold = entries(directory)["cold"]
    cold.write_bytes(damage(cold.read_bytes()))
    again = Told(directory)
    key, _ = again.cache.plan(str(library), "name")
    assert again.progress == []
    assert again.cache.sites(key, str(library)).values() == build(library.read_bytes())[1].values()


@pytest.mark.parametrize("gone", [True, False], ids=["file-gone", "another-file"])
def test_sites_without_a_name_when_both_the_cold_half_and_the_file_are_lost(
    tmp_path: Path, library: Path, images: tuple[bytes, bytes], gone: bool
) -> None:
    directory = tmp_path / "cache"
    Told(directory).plan(library)
    again = Told(directory)
    key, plan = again.cache.plan(str(library), "name")
    entries(directory)["cold"].unlink()
    library.unlink()
    if not gone:
        library.write_bytes(images[1])
    sites = again.cache.sites(key, str(library))
    assert [text for _, _, _, text in sites.sites] == ["?"] * plan.sites
    assert (sites.copies, sites.resume, sites.build_id, sites.original) == ({}, {}, None, [])


# -- places where nothing can be kept ---------------------------------------------------------------


@pytest.fixture(params=["under-a-file", "proc", "full"])
def hopeless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing can be written, not even by root."""
    if request.param == "under-a-file":
        (tmp_path / "file").write_text("")
        yield tmp_path / "file" / "cache"
    elif request.param == "proc":
        yield Path("/proc/splitlock-cache")
    else:
        place = tmp_path / "full"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a tmpfs")
        try:
            (place / "filler").write_bytes(bytes(4096))
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)


def test_where_nothing_can_be_kept_it_is_said_once(
    hopeless: Path, tmp_path: Path, library: Path, images: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    second = tmp_path / "second.so"
    second.write_bytes(images[1])
    told = Told(hopeless)
    for path, image in ((library, images[0]), (second, images[1]), (library, images[0])):
        key, plan = told.cache.plan(str(path), "name")
        hot, cold = build(image)
        assert plan.values() == hot.values()
        assert told.cache.sites(key, str(path)).values() == cold.values()
    assert len(told.warnings) == 1
    assert str(hopeless) in told.warnings[0]
    assert "XDG_CACHE_HOME" in told.warnings[0]
    assert list(elsewhere.iterdir()) == []
    if hopeless.exists():
        assert {path.name for path in hopeless.iterdir()} <= {"filler", "lock"}


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Told(None).plan(library)
    assert set(entries(tmp_path / "xdg" / "splitlock")) == {"hot", "cold", "lock"}
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        Told(None).plan(library)
        assert set(entries(tmp_path / "home" / ".cache" / "splitlock")) == {"hot", "cold", "lock"}
        shutil.rmtree(tmp_path / "home")


@pytest.mark.parametrize("how", ["group-writable", "world-writable", "foreign"])
def test_plans_are_not_taken_from_where_others_may_write(
    tmp_path: Path, library: Path, images: tuple[bytes, bytes], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "splitlock"
    Told(None).plan(library)
    # somebody puts another plan there
    entries(directory)["hot"].write_bytes(encode(build(images[1])[0].values()))
    assert Told(None).plan(library).values() == build(images[1])[0].values()
    if how == "foreign":
        if os.geteuid():
            pytest.skip("needs root")
        os.chown(directory, 12345, 12345)
    else:
        directory.chmod(0o770 if how == "group-writable" else 0o707)
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    told = Told(None)
    assert told.plan(library).values() == build(images[0])[0].values()
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    assert list(elsewhere.iterdir()) == []


# -- many at a time ---------------------------------------------------------------------------------


def test_many_processes_that_want_the_same_plan(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    directory = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(count), context.Queue()
    analysed: list[int] = []

    def counting(data: bytes) -> object:
        analysed.append(1)
        return build(data)

    def want() -> None:
        told = Told(directory)
        barrier.wait(30)
        key, plan = told.cache.plan(str(library), "name")
        both = encode(plan.values()) + encode(told.cache.sites(key, str(library)).values())
        results.put((hashlib.sha256(both).hexdigest(), len(analysed), told.warnings))

    monkeypatch.setattr(module, "build", counting)
    processes = [context.Process(target=want) for _ in range(count)]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    hot, cold = build(library.read_bytes())
    right = hashlib.sha256(encode(hot.values()) + encode(cold.values())).hexdigest()
    assert {digest for digest, _, _ in got} == {right}
    assert sum(times for _, times, _ in got) == 1
    assert all(warnings == [] for _, _, warnings in got)
    assert set(entries(directory)) == {"hot", "cold", "lock"}


def test_the_oldest_are_thrown_away_when_there_are_too_many(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    for i in range(20):
        (directory / f"{i}.hot").write_bytes(b"old")
        os.utime(directory / f"{i}.hot", (1000 + i, 1000 + i))
    monkeypatch.setattr(module, "_MOST", 21)
    made = Told(directory).plan(library)
    left = {path.name for path in directory.iterdir()}
    assert len(left) <= 21
    old = sorted(int(name[:-4]) for name in left if len(name) < 8 and name.endswith(".hot"))
    assert old == list(range(old[0], 20))
    monkeypatch.setattr(module, "build", no_build)
    again = Told(directory)
    key, plan = again.cache.plan(str(library), "name")
    assert plan.values() == made.values()
    assert again.cache.sites(key, str(library)).sites


def test_nothing_is_thrown_away_while_there_is_room(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    for i in range(20):
        (directory / f"{i}.hot").write_bytes(b"old")
    monkeypatch.setattr(module, "_MOST", 23)
    Told(directory).plan(library)
    assert len(list(directory.iterdir())) == 23
