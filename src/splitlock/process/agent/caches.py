"""The caches that runs use here: the user's own, and root's for everybody."""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError
from splitlock.process.agent.images import shared_cache
from splitlock.process.cache import SHARED, Cache, Kept, kept, shared_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.cache import Cache as Counted


def to_fill() -> Cache:
    """The one that `warm` puts images in: root's is everybody's. Raises SplitlockError where it takes none."""
    if os.geteuid() == 0:
        os.makedirs(os.path.dirname(SHARED), mode=0o755, exist_ok=True)
        os.makedirs(SHARED, mode=0o755, exist_ok=True)
        if not shared_directory():
            raise SplitlockError(f"{SHARED}: another than root can write there; chown and chmod it, or remove it", 2)
        return shared_cache()
    cache = Cache(lambda text: None)
    if cache.directory is None:
        raise SplitlockError("the cache takes nothing: name a place of your own by XDG_CACHE_HOME", 2)
    return cache


def counted() -> list[Counted]:
    """Both, those that there are."""
    from splitlock.report.cache import Cache as Counted

    found = []
    for directory in _directories():
        files = _files(directory)
        images = sum(file.name.endswith(".image") for file in files)
        size = sum(file.size for file in files)
        made = Counted(directory=directory, is_shared=directory == SHARED, images=images, bytes=size)
        found.append(made)
    return found


def clear() -> list[Counted]:
    """Empty those that this user may write to. Raises OSError."""
    before = counted()
    for cache in before:
        if cache.is_shared and os.geteuid():
            continue
        for file in _files(cache.directory):
            os.unlink(os.path.join(cache.directory, file.name))
            cache.removed += 1
        cache.images = cache.bytes = 0
    return before


def _directories() -> list[str]:
    own = Cache(lambda text: None)
    places = [own.directory or "", shared_directory()]
    return [place for place in places if place]


def _files(directory: str) -> list[Kept]:
    """Of ours only: each name has the key before its last dot."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [file for file in kept(descriptor) if file.name.count("-") >= 4]
    finally:
        os.close(descriptor)
