"""From what the tracer saw to the report: names for addresses, looked up once the program has ended."""

from __future__ import annotations

import os

from splitlock.image.apart import Symbols
from splitlock.linux.text import when
from splitlock.process.hits import Sample, Site
from splitlock.report import run as report
from splitlock.x86.lines import past_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.agent.supervise import Supervisor
    from splitlock.process.tracer import Tracer


def describe(tracer: Tracer | Supervisor, command: list[str]) -> report.Report:
    """The report of a finished run."""
    names = _Names(tracer.watch.files)
    sites = [_site(site, names) for site in tracer.sites]
    return report.Report(
        schema=report.SCHEMA,
        command=[_text(word) for word in command],
        mode=str(tracer.policy),
        exit_status=tracer.exit_status,
        hits=sum(s.hits for s in sites),
        sites=sites,
        watched=report.Watched(
            sites=sum(tracer.watch.images.values()), bytes=sum(tracer.watch.sizes.values()),
            images=len(tracer.watch.images), processes=tracer.processes,
        ),
        unmonitored=[
            report.Unmonitored(
                reason=reason, bytes=size, sites=held,
                **({"image": _text(name)} if image else {"mapping": _text(name)}),
            )
            for name, image, reason, size, held in tracer.unmonitored()
        ],
    )  # fmt: skip


class _Names:
    """Symbols by image, opened once each; none where the path now names another file than was watched."""

    def __init__(self, files: dict[str, tuple[int, ...]]) -> None:
        self._files = files
        self._open: dict[str, Symbols] = {}

    def of(self, image: str) -> Symbols:
        symbols = self._open.get(image)
        if symbols is None:
            symbols = self._open[image] = Symbols(image if self._unchanged(image) else os.devnull)
        return symbols

    def _unchanged(self, image: str) -> bool:
        try:
            status = os.stat(image)
        except OSError:  # deleted, or in another mount namespace
            return False
        return self._files.get(image, ())[:2] == (status.st_dev, status.st_ino)

    def place(self, image: str, address: int) -> str:
        """`function image+0xaddress` for a line of a stack."""
        if not image:
            return f"{address:#x}"
        frames = self.of(image).frames(address)
        function = next((f.function for f in frames if f.function), None)
        where = f"{image.rsplit('/', 1)[-1]}+{address:#x}"
        return f"{function} {where}" if function else where


def _text(name: str) -> str:
    """A name from the system, fit for JSON: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def _site(site: Site, names: _Names) -> report.Site:
    found = names.of(site.name).frames(site.address)
    frames = [report.Frame(function=f.function, source=f.source, inlined=f.inlined) for f in found]
    return report.Site(
        image=_text(site.name),
        offset=f"{site.address:#x}",
        build_id=site.build_id,
        function=frames[0].function if frames else None,
        source=frames[0].source if frames else None,
        frames=frames,
        instruction=site.instruction,
        operand_size=site.size,
        hits=site.hits,
        processes=len({pid for pid, _ in site.tasks}),
        threads=len(site.tasks),
        samples=[_sample(sample, site.size, names) for sample in site.samples],
    )


def _sample(sample: Sample, size: int, names: _Names) -> report.Sample:
    return report.Sample(
        time=when(sample.time // 1000 / 1e6),
        pid=sample.pid,
        tid=sample.tid,
        comm=_text(sample.comm),
        operand_address=f"{sample.operand_address:#x}",
        operand=_text(_operand(sample, names)),
        past_line=past_line(sample.operand_address, size),
        stack=[_text(names.place(image, address)) for image, address in sample.stack],
    )


def _operand(sample: Sample, names: _Names) -> str:
    image, address = sample.operand
    if not image.startswith("/") or not address:
        return image
    data = names.of(image).data(address)
    if data is None:
        return f"{image.rsplit('/', 1)[-1]}+{address:#x}"
    symbol, offset, section = data
    return f"{symbol}+{offset:#x} ({section})" if symbol else f"{section}+{offset:#x}"
