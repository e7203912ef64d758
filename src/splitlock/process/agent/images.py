"""The image files of a run's images, from the cache or made now, and the names that go with them."""

from __future__ import annotations

import os
from stat import S_ISREG

from splitlock.process.agent.memory import NOTHING
from splitlock.process.agent.named import VERSION, Named, Unwatched
from splitlock.process.analysis import UnanalysedError, apart
from splitlock.process.cache import SHARED, Cache, contents, decode, encode, key_of, shared_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.process.agent.image import Raw
    from splitlock.process.agent.memory import Seen

    Key = tuple[int, ...]


_HEAD = VERSION.to_bytes(4, "little")
_BEGIN = 12  # bytes of an image file that hold its version
_HOOKS_AT = 140  # the number of calls in it that an agent sees: inside/image.h, hook_count


class Images:
    """By key: device, inode, size, times."""

    def __init__(self, cache: Cache, spare: Callable[[str], None], beat: Callable[[], None]) -> None:
        """`spare` is told of a directory of this run's own, when the cache takes nothing; `beat` that work goes on."""
        self._cache, self._spare, self._beat = cache, spare, beat
        self._abandoned = False
        self._own: Cache | None = None
        self._shared = shared_cache() if shared_directory() else None
        self._own_place = ""
        self._named: dict[Key, Named] = {}
        self._made: set[Key] = set()

    def make(self, seen: Seen) -> bool:
        """Make what an agent asks for; whether its image file is there now."""
        if seen.key in self._made:  # whoever asks may not open it
            return True
        descriptor = _open(seen)
        if descriptor < 0:
            unwatched = [] if os.path.isfile(seen.name) else [Unwatched("no ELF image", seen.size, None)]
            self._named[seen.key] = Named(0, 0, unwatched, [], None)
            return False
        try:
            raw, named = made(descriptor, seen.key, self._called)
        except UnanalysedError as error:
            self._named[seen.key] = Named(0, 0, [Unwatched(f"not analysed: {error}", seen.size, None)], [], None)
            return False
        self._named[seen.key] = named
        is_there = keep(seen.key, raw, named, self._cache) or self._keep_apart(seen.key, raw)
        self._made.update([seen.key] * is_there)
        return is_there

    def _called(self) -> str:
        self._beat()
        return "cut short" if self._abandoned else ""

    def _keep_apart(self, key: Key, raw: Raw) -> bool:
        """The program maps patched text from files: for this run they are kept elsewhere."""
        if self._own is None:
            import tempfile

            self._own_place = tempfile.mkdtemp(prefix="splitlock-")
            self._own = Cache(lambda text: None, directory=self._own_place)
            self._spare(self._own_place)
        return self._own.keep(key, "image", raw)

    def close(self) -> None:
        """Remove what was kept for this run alone."""
        if self._own_place:
            import shutil

            shutil.rmtree(self._own_place, ignore_errors=True)

    def abandon(self) -> None:
        """The program has ended while an image is analysed: what is not known by now stays so."""
        self._abandoned = True

    def named(self, seen: Seen) -> Named:
        """The names of an image; none of one whose file is no image, or gone."""
        if seen.state == NOTHING and not seen.watched and not seen.unwatched:  # whoever has found that (inside/plain.c)
            return Named(0, seen.watched_bytes, [], [], None)
        named = self._named.get(seen.key) or self._load(seen.key)
        if named is None:
            self.make(seen)
            named = self._named[seen.key]
        self._named[seen.key] = named
        return named

    def calls_kernel(self, seen: Seen) -> bool:
        """Whether an image makes system calls that an agent has to see; where it has no image file, as a libc does."""
        for cache in (self._cache, self._own, self._shared):
            if cache is not None and (head := cache.read(seen.key, "image", _HOOKS_AT + 4)) is not None:
                return any(head[_HOOKS_AT:])
        return os.path.basename(seen.name).startswith("libc.")

    def _load(self, key: Key) -> Named | None:
        raw = self._cache.read(key, "names")
        if raw is None and self._shared is not None:
            raw = self._shared.read(key, "names")
        if raw is None or raw[:4] != _HEAD:
            return None
        try:
            return Named.of(decode(raw[4:]) or ())
        except (TypeError, ValueError, AssertionError):
            return None


def shared_cache() -> Cache:
    """Root's, for everybody; only root can put something there."""
    return Cache(lambda text: None, directory=SHARED, owner=0)


def made(descriptor: int, key: Key, called: Callable[[], str] = lambda: "") -> tuple[Raw, Named]:
    """The image file and the names of an opened file, which is closed, by a process that has no rights.

    `called`: words for what calls us away, or "". Raises OSError, UnanalysedError.
    """
    import msgspec

    from splitlock.process.agent import image  # and with it iced-x86

    image.load()

    def make(give_up: Callable[..., None]) -> bytes:
        give_up(file.fileno())
        return msgspec.msgpack.encode(image.make(contents(file), key))

    with os.fdopen(descriptor, "rb", buffering=0) as file:
        raw = apart(make, called)
    try:
        return msgspec.msgpack.decode(raw, type=tuple[bytes, Named])
    except msgspec.DecodeError as error:
        raise UnanalysedError(f"its reader answered nonsense: {error}") from None


def keep(key: Key, raw: Raw, named: Named, cache: Cache, mode: int = 0o600) -> bool:
    """Put both in a cache; whether they are there."""
    return cache.keep(key, "names", _HEAD + encode(named.values()), mode) and cache.keep(key, "image", raw, mode)


def is_kept(key: Key, cache: Cache) -> bool:
    """Whether a cache has both, of this version."""
    image, names = (cache.read(key, half, _BEGIN) for half in ("image", "names"))
    return image is not None and names is not None and image[8:12] == _HEAD and names[:4] == _HEAD


def _open(seen: Seen) -> int:
    """The very file that an agent has mapped: by the agent's descriptor or by name; -1 when it is gone."""
    for path in (f"/proc/{seen.pid}/fd/{seen.fd}", seen.name):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        status = os.fstat(descriptor)
        if S_ISREG(status.st_mode) and key_of(status) == seen.key:
            return descriptor
        os.close(descriptor)
    return -1
