"""A progress bar on standard error, for what takes longer than a moment. Imports rich only then."""

from __future__ import annotations

import time

from splitlock.image.package import File, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from splitlock.modules.audit import Batch

_AFTER = 0.7  # seconds: what is over by then needs no bar
_MANY_IN_ONE = (".deb", ".rpm", ".tar", ".gz", ".xz", ".zst")  # how many files these hold nobody knows beforehand


def shown(batches: Iterable[Batch], paths: list[str]) -> Iterator[Batch]:
    """Pass results on and show how many files they were of."""
    from_then = time.monotonic() + _AFTER
    bar = None
    done = 0
    try:
        for batch in batches:
            done += len(batch.files) + batch.clean
            if bar is None and time.monotonic() > from_then:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

                columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                bar = Progress(*columns, console=Console(stderr=True), transient=True)
                task = bar.add_task("", total=_total(paths))
                bar.start()
            if bar is not None:
                bar.update(task, completed=done)
            yield batch
    finally:
        if bar is not None:
            bar.stop()


def _total(paths: list[str]) -> int | None:
    inputs = [file for file in files(paths) if isinstance(file, File)]
    plain = all(not file.path.endswith(_MANY_IN_ONE) or ".ko" in file.path for file in inputs)
    return len(inputs) if plain else None
