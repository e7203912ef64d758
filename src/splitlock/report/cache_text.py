"""The report of `splitlock cache` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, named, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.cache import Report

_FEW = 10  # failures without --verbose


def render(report: Report, action: str, *, verbose: bool = False) -> str:
    """The report of `status`, `warm` or `clear`, with a newline at the end; all failures where `verbose`."""
    lines = []
    if action == "warm":
        lines += wrap(
            f"{count(report.made, 'image')} made, {report.found:,} there already: programs that use no others start "
            "without delay under `splitlock run`."
            if report.made or report.found
            else "Nothing to make: no x86-64 program or library is there."
        )
    if action == "clear":
        removed = sum(cache.removed for cache in report.caches)
        lines += wrap(f"{count(removed, 'file')} removed: the next runs analyse their images again.")
    for cache in report.caches:
        whose = "; every user's programs use them" if cache.is_shared else ""
        lines += wrap(f"{named(cache.directory)}: {count(cache.images, 'image')}, {cache.bytes / 1e6:,.1f} MB{whose}")
    few = len(report.failed) if verbose else _FEW
    for failure in report.failed[:few]:
        lines += wrap(f"not ready: {named(failure.path)}: {failure.reason}")
    if len(report.failed) > few:
        lines += wrap(f"and {len(report.failed) - few:,} more that are not ready (-v lists them)")
    return page(lines)
