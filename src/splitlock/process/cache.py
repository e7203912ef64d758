"""Plans on disk, by file identity (device, inode, size, times).

Under `$XDG_CACHE_HOME/splitlock` or `~/.cache/splitlock`, two files a plan. Writers put a whole
file in place with rename(2), so readers never see half of one; a checksum catches the rest.
"""

from __future__ import annotations

import marshal
import os
import stat
import zlib

from splitlock.process.plan import VERSION, Plan, Sites, build, unnamed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Key = tuple[int, ...]

_MAGIC = b"SPLK" + VERSION.to_bytes(2, "little") + b"\r\n"
_MOST = 4000  # files kept


class Cache:
    """Plans for images, from memory, disk, or made now.

    `warn` is told, once, why nothing can be kept. `progress` is told which image is being analysed, and
    "" when that is done.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        progress: Callable[[str], None] = lambda name: None,
        directory: str | None = None,
    ) -> None:
        self._warn, self._progress = warn, progress
        self._plans: dict[Key, Plan] = {}
        self._sites: dict[Key, Sites] = {}
        self._directory: str | None = directory or _directory()
        self._descriptor = -1

    def plan(self, path: str, name: str) -> tuple[Key, Plan]:
        """The plan for the file that can be opened as `path`; `name` is what a person calls it.

        Gives its key too, for `sites`. Raises OSError when the file cannot be read.
        """
        status = os.stat(path)
        key = _key(status)
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
                    same = _key(os.stat(path)) == key
                    sites = build(_contents(path))[1] if same else None
                except OSError:
                    sites = None
            self._sites[key] = sites = sites or unnamed(self._plans[key])
        return sites

    def _hot(self, key: Key) -> Plan | None:
        values = self._load(key, "hot")
        try:
            return Plan(values) if values else None
        except (TypeError, ValueError):
            return None

    def _build(self, key: Key, path: str, name: str, keep: bool) -> Plan:
        lock = self._lock(key) if keep else -1
        try:
            plan = self._hot(key) if lock >= 0 else None
            if plan is not None:  # another process made it while we waited
                return plan
            self._progress(name)
            plan, sites = build(_contents(path))
            self._progress("")
            self._sites[key] = sites
            if keep:
                self._store(key, "cold", sites.values())
                self._store(key, "hot", plan.values())
            return plan
        finally:
            if lock >= 0:
                os.close(lock)

    def _lock(self, key: Key) -> int:
        """A descriptor that holds the right to build this plan; -1 where there can be none."""
        import fcntl

        try:
            descriptor = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._open(create=True))
            # One byte a plan, so that different images are built side by side.
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, hash(key) & 0xFFFF_FFFF)
            return descriptor
        except OSError:
            return -1

    def _open(self, create: bool = False) -> int:
        """The directory, once opened for good: nobody can put another in its place under us.

        Used only where nobody else could have put a file, since plans are code. Raises OSError.
        """
        if self._descriptor < 0:
            if self._directory is None:
                raise FileNotFoundError(2, os.strerror(2))
            if create:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._directory, flags)
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                os.close(descriptor)
                self._directory = None
                raise PermissionError(1, os.strerror(1))
            self._descriptor = descriptor
        return self._descriptor

    def _load(self, key: Key, half: str) -> tuple[object, ...] | None:
        try:
            descriptor = os.open(_file(key, half), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._open())
        except OSError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return decode(file.read())

    def _store(self, key: Key, half: str, values: tuple[object, ...]) -> None:
        if self._directory is None:
            return
        target = _file(key, half)
        temporary = f"{target}.{os.getpid()}"
        try:
            place = self._open(create=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=place)
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode(values))
            os.replace(temporary, target, src_dir_fd=place, dst_dir_fd=place)
            self._prune(place)
        except OSError as error:
            self._warn(
                f"cannot keep plans in {self._directory}: {error.strerror}; "
                "every start will analyse again (XDG_CACHE_HOME names another place)"
            )
            self._directory = None
            if self._descriptor >= 0:
                try:
                    os.unlink(temporary, dir_fd=self._descriptor)
                except OSError:
                    pass
                os.close(self._descriptor)
                self._descriptor = -1

    def _prune(self, place: int) -> None:
        """Too many: the older half goes."""
        names = os.listdir(place)
        if len(names) > _MOST:
            names.sort(key=lambda name: _age(place, name))
            for name in names[: len(names) // 2]:
                try:
                    os.unlink(name, dir_fd=place)
                except FileNotFoundError:
                    pass


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


def _age(place: int, name: str) -> float:
    try:
        return os.stat(name, dir_fd=place).st_mtime
    except FileNotFoundError:
        return 0.0


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _contents(path: str) -> bytes:
    """What an ELF file holds; of anything else (devices without end, heaps of other languages) the first bytes."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(64)
        return head + file.read() if head[:4] == b"\x7fELF" else head


def _directory() -> str:
    return f"{os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')}/splitlock"
