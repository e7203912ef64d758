"""A progress bar on a terminal's standard error, for what takes longer than a moment. Imports rich only then."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from threading import Lock, Timer

from splitlock.image.package import File, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

_AFTER = 0.7  # seconds: what is over by then needs no bar
_MANY_IN_ONE = (".deb", ".rpm", ".tar", ".gz", ".xz", ".zst")  # how many files these hold nobody knows beforehand


class Bar:
    """How many files of `paths` are done, and of how many; a bar without an end where packages are among them.

    Or other things than files, as many as `of` says.
    """

    def __init__(self, what: str, paths: list[str], *, unit: str = "files", quiet: bool = False) -> None:
        self.what, self.paths, self.unit = what, paths, unit
        self._done = 0
        self._total: int | None = None
        self._bar: Progress | None = None
        self._lock = Lock()  # of the terminal
        self._timer = None if quiet or not sys.stderr.isatty() else Timer(_AFTER, self._begin)

    def __enter__(self) -> Bar:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join(1)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def of(self, total: int) -> None:
        """There are so many."""
        self._total = total
        self.advance(0)

    def advance(self, more: int = 1) -> None:
        """So many more are done."""
        self._done += more
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total, completed=self._done, count=self._count())

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Off the terminal meanwhile."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            yield
            if self._bar is not None:
                self._bar.start()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        if not console.is_interactive:  # TERM=dumb
            return
        inputs = [file.path for file in files(self.paths) if isinstance(file, File)]
        if inputs and all(not path.endswith(_MANY_IN_ONE) or ".ko" in path for path in inputs):
            self._total = len(inputs)
        columns = (TextColumn(self.what), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
        bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        bar.add_task("", total=self._total, completed=self._done, count=self._count())
        with self._lock:
            bar.start()
            self._bar = bar

    def _count(self) -> str:
        known = self._total is not None and self._done <= self._total
        return f"{self._done:,} of {self._total:,} {self.unit}" if known else f"{self._done:,} {self.unit}"
