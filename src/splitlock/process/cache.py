"""Plans on disk, by file identity (device, inode, size, times).

Under `$XDG_CACHE_HOME/splitlock` or `~/.cache/splitlock`, two files a plan. Writers put a whole
file in place with rename(2), so readers never see half of one; a checksum catches the rest.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
import zlib
from typing import NamedTuple

from splitlock.process.analysis import UnanalysedError, here
from splitlock.process.plan import VERSION, Cold, Hot, Plan, Sites, build, load, unnamed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from splitlock.process.analysis import Make, Take

    Key = tuple[int, ...]

_MAGIC = b"SPLK" + VERSION.to_bytes(2, "little") + b"\r\n"
_MOST, _LARGEST = 100_000, 4 << 30  # files kept, and bytes in them
_SOMETIMES = 64  # files put there between two looks at how many there are
#: what root has made for everybody (`splitlock cache warm`)
SHARED = "/var/cache/splitlock/images"


class Cache:
    """Plans for images, from memory, disk, or made now.

    `warn` is told, once, why nothing can be kept. `progress` is told which image is being analysed, and
    "" when that is done. `owner`: whose the directory must be (by default ours).
    `work` does what takes long, here or elsewhere (splitlock.process.analysis).
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        progress: Callable[[str], None] = lambda name: None,
        directory: str | None = None,
        owner: int | None = None,
        work: Callable[[Make, Take], bytes] = here,
    ) -> None:
        self._warn, self._progress, self._work = warn, progress, work
        self._plans: dict[Key, Plan] = {}
        self._sites: dict[Key, Sites] = {}
        self._directory: str | None = directory or _directory()
        self._owner = os.geteuid() if owner is None else owner
        self._descriptor = -1
        self._trouble = ""
        self._puts = 0
        self._held = -1  # the lock of the plan that is made here
        #: whether it is looked through now and then
        self.prunes = True

    def plan(self, path: str, name: str) -> tuple[Key, Plan]:
        """The plan for the file that can be opened as `path`; `name` is what a person calls it.

        Gives its key too, for `sites`. Raises OSError when the file cannot be read, UnanalysedError when there is
        no plan all the same.
        """
        status = os.stat(path)
        key = key_of(status)
        plan = self._plans.get(key)
        if plan is None:
            keep = status.st_nlink > 0 and stat.S_ISREG(status.st_mode)
            plan = (self._hot(key) if keep else None) or self._build(key, path, name, keep)
            self._plans[key] = plan
        return key, plan

    def sites(self, key: Key, path: str) -> Sites:
        """The cold half of a plan given before; rebuilt from `path` where it got lost.

        When that has become another file meanwhile, instructions are "?".
        """
        sites = self._sites.get(key)
        if sites is None:
            values = self._load(key, "cold")
            try:
                sites = Sites(*values) if values else None  # type: ignore[arg-type]
            except TypeError:
                sites = None
            if sites is None:
                try:
                    if key_of(os.stat(path)) == key:
                        sites = Sites(*_received(self._work(lambda give_up: _made(path, give_up), lambda raw: None))[1])
                except (OSError, UnanalysedError):
                    pass
            self._sites[key] = sites = sites or unnamed(self._plans[key])
        return sites

    def _hot(self, key: Key) -> Plan | None:
        values = self._load(key, "hot")
        try:
            return Plan(values) if values else None
        except (TypeError, ValueError):
            return None

    def _build(self, key: Key, path: str, name: str, keep: bool) -> Plan:
        made: list[tuple[Hot, Cold, str]] = []

        def take(raw: bytes) -> None:
            if raw:
                hot, cold = _received(raw)
                stores = keep and self._directory is not None
                trouble = (self._store(key, "cold", cold) or self._store(key, "hot", hot)) if stores else ""
                made.append((hot, cold, trouble))

        self._progress(name)
        try:
            self._work(lambda give_up: self._make(key, path, keep, give_up), take)
        finally:
            self._progress("")
            if self._held >= 0:
                os.close(self._held)
                self._held = -1
        if not made:  # another process made it while we waited
            return self._hot(key) or self._build(key, path, name, False)
        hot, cold, trouble = made[0]
        if trouble or not keep or self._directory is None:
            self._sites[key] = Sites(*cold)
        if trouble:
            self._give_up(trouble)
        return Plan(hot)

    def _make(self, key: Key, path: str, keep: bool, give_up: Callable[..., None]) -> bytes:
        """Both halves, as `_received` takes them; nothing where another process has made them meanwhile."""
        self._held = self._lock(key) if keep else -1
        if self._held >= 0 and self._hot(key) is not None:
            return b""
        return _made(path, give_up, *[self._held] * (self._held >= 0))

    def _lock(self, key: Key) -> int:
        """A descriptor that holds the right to build this plan; -1 where there can be none.

        That is so, too, where its holder does not get on: a stopped or frozen process keeps nobody waiting.
        """
        import fcntl

        from splitlock.process.patience import Holder

        try:
            descriptor = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._open(create=True))
        except OSError:
            return -1
        at = hash(key) & 0xFFFF_FFFF  # one byte a plan, so that different images are built side by side
        holder = Holder(descriptor, at)
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
                return descriptor
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or not holder.wait():
                    os.close(descriptor)
                    return -1

    def _open(self, create: bool = False) -> int:
        """The directory, once opened for good: nobody can put another in its place under us.

        Used only where nobody else could have put a file, since plans are code. Raises OSError.
        """
        if self._descriptor < 0:
            if self._directory is None:
                raise FileNotFoundError(2, os.strerror(2))
            if create:
                _make_directory(self._directory)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._directory, flags)
            status = os.fstat(descriptor)
            if status.st_uid != self._owner or status.st_mode & 0o022:
                os.close(descriptor)
                whose = "it is another user's" if status.st_uid != self._owner else "others may write there"
                raise PermissionError(errno.EPERM, whose)
            self._descriptor = descriptor
        return self._descriptor

    @property
    def is_shared(self) -> bool:
        """Whether it is root's for everybody."""
        return self._directory == SHARED

    @property
    def directory(self) -> str | None:
        """Where plans are kept, there and ours; None where they cannot be kept."""
        try:
            self._open(create=True)
        except OSError as error:
            self._trouble = error.strerror or str(error)
            return None
        return self._directory

    def read(self, key: Key, half: str, most: int = -1) -> bytes | None:
        """A file that `keep` has put there, or its first bytes; None when there is none."""
        try:
            descriptor = os.open(_file(key, half), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._open())
        except OSError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return file.read(most)

    def _load(self, key: Key, half: str) -> tuple[object, ...] | None:
        raw = self.read(key, half)
        return None if raw is None else decode(raw)

    def _store(self, key: Key, half: str, values: tuple[object, ...]) -> str:
        return self.put(_file(key, half), encode(values))

    def keep(self, key: Key, half: str, raw: bytes | bytearray, mode: int = 0o600) -> bool:
        """Put a whole file in place; whether it is there. Warns, once, when it cannot."""
        if self._directory is None:
            return False
        trouble = self._trouble or self.put(_file(key, half), raw, mode)
        if trouble:
            self._give_up(trouble)
        return not trouble

    def put(self, target: str, raw: bytes | bytearray, mode: int = 0o600) -> str:
        """Keep a file of this name; gives why that is not possible, or ""."""
        temporary = f"{target}.{os.getpid()}"
        place = -1
        try:
            place = self._open(create=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=place)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # whatever the umask
                file.write(raw)
            os.replace(temporary, target, src_dir_fd=place, dst_dir_fd=place)
            self._puts += 1
            if self.prunes and self._puts % _SOMETIMES == 1:
                self.prune()
            return ""
        except OSError as error:
            try:
                if place >= 0:
                    os.unlink(temporary, dir_fd=place)
            except OSError:
                pass
            return error.strerror or str(error)

    def _give_up(self, trouble: str) -> None:
        """Nothing is kept from now on."""
        if self._directory is not None:
            self._warn(
                f"cannot keep plans in {self._directory}: {trouble}; "
                "every start will analyse again; set XDG_CACHE_HOME to another directory"
            )
        self._directory = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def prune(self) -> None:
        """Too many, or too much: the oldest go until there is room again. Raises OSError."""
        place = self._open()
        files = sorted(kept(place), key=lambda file: file.made)
        count, size = len(files), sum(file.size for file in files)
        if count <= _MOST and size <= _LARGEST:
            return
        for file in files:
            if count <= _MOST * 3 // 4 and size <= _LARGEST * 3 // 4:
                break
            count, size = count - 1, size - file.size
            try:
                os.unlink(file.name, dir_fd=place)
            except FileNotFoundError:
                pass


class Kept(NamedTuple):
    """A file in a cache: bytes, and when it was made, in seconds since 1970."""

    name: str
    size: int
    made: float


def kept(place: int) -> list[Kept]:
    """All in a directory, by its descriptor."""
    files = []
    with os.scandir(place) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                files.append(Kept(entry.name, status.st_size, status.st_mtime))
    return files


def _make_directory(path: str) -> None:
    """With its parents, as os.makedirs, but for what would lie in another user's directory. Raises OSError.

    `sudo` keeps HOME: there root would make a directory that its user could then not write to.
    """
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above) or "."
    if above != path and os.stat(above).st_uid not in (os.geteuid(), 0):
        raise PermissionError(errno.EPERM, f"{above} is another user's")
    os.makedirs(path, mode=0o700, exist_ok=True)


def shared_directory() -> str:
    """`SHARED`, where nobody but root can have put a file; else ""."""
    for path in (os.path.dirname(SHARED), SHARED):
        try:
            status = os.lstat(path)
        except OSError:
            return ""
        if status.st_uid or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
            return ""
    return SHARED


def _made(path: str, give_up: Callable[..., None], *kept: int) -> bytes:
    import msgspec

    load()
    with open(path, "rb", buffering=0) as file:
        give_up(file.fileno(), *kept)
        plan, sites = build(contents(file))
    return msgspec.msgpack.encode((plan.values(), sites.values()))


def _received(raw: bytes) -> tuple[Hot, Cold]:
    """Both halves of a plan. Whoever read a stranger's file has sent them: plain data, of the right shape."""
    import msgspec

    try:
        return msgspec.msgpack.decode(raw, type=tuple[Hot, Cold])
    except msgspec.DecodeError as error:
        raise UnanalysedError(f"its reader answered nonsense: {error}") from None


def _file(key: Key, half: str) -> str:
    return f"{'-'.join(f'{n:x}' for n in key)}.{half}"


def encode(values: tuple[object, ...]) -> bytes:
    """Bytes to store for a plan's half."""
    body = marshal.dumps(values)  # type: ignore[arg-type]  # only what marshal takes is in them
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def decode(raw: bytes) -> tuple[object, ...] | None:
    """What `encode` was given, or None for anything else."""
    if raw[:8] != _MAGIC or zlib.crc32(memoryview(raw)[12:]) != int.from_bytes(raw[8:12], "little"):
        return None
    try:
        values = marshal.loads(memoryview(raw)[12:])
    except (ValueError, EOFError, TypeError):
        return None
    return values if isinstance(values, tuple) else None


def key_of(status: os.stat_result) -> Key:
    """What a file is known by: device, inode, size in bytes, modification and change times in nanoseconds."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def contents(file: FileIO) -> bytes:
    """What an ELF file holds; of anything else (devices without end, heaps of other languages) the first bytes."""
    head = file.read(64)
    return head + file.read() if head[:4] == b"\x7fELF" else head


def _directory() -> str:
    return f"{os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')}/splitlock"
