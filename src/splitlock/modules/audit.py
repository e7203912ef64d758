"""Many files through scan and verdict: here, in processes, or on any `concurrent.futures.Executor`.

Files are handed out in batches and results taken back in the order of the input, a bounded number ahead, so
that memory does not grow with what is scanned. A worker reads its files itself; to executors on other machines,
which do not see them, their contents are sent. A worker that dies costs only the file that it died of.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import BrokenExecutor
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.image.module import ET_REL
from splitlock.image.package import Failure, Member, files, read, shown, status
from splitlock.image.package import File as Input
from splitlock.modules.scan import SLD_AWARE, scan
from splitlock.modules.verdict import judge
from splitlock.report.scan import File, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Executor, Future

    from splitlock.modules.policy import Policy

    Item = Input | Member | Failure


class Batch(NamedTuple):
    """What came of some files."""

    files: list[File]  #: that have something to say
    clean: int  #: how many have not


class Job(NamedTuple):
    """What a scan looks for and how it is judged. All of it can be pickled."""

    policy: Policy
    kinds: frozenset[str]  #: to report; the policy's own are looked for too
    every: bool = False  #: clean files are reported as well


_FILES = 48  # a batch: some ms of work, against a fraction of one to hand it over
_SENT = 8 << 20  # bytes of contents in a batch that is sent
_AHEAD = 4  # batches a worker
_BIG = 4 << 20  # bytes of a file that is a batch of its own: a package, a kernel


def audit(
    paths: Iterable[str],
    job: Job,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    send: bool = False,
    root: str = "",
) -> Iterator[Batch]:
    """Scan `paths` (files, packages, directories); yields the results in the order of the input.

    Without an executor everything happens in this process. `workers` says how many the executor has; with `send`
    the files are read here and their contents are sent. `root`: what the / of the paths is, which nothing leads out of;
    empty: this machine's. What cannot be read is a result with the verdict `error`.
    """
    if executor is None:
        for item in files(paths, root):
            for member in _opened([item]):
                yield examine([member], job)
        return
    waiting: deque[tuple[Future[Batch] | None, list[Item]]] = deque()
    try:
        for batch in _sent(paths, root) if send else batches(paths, root):
            try:
                waiting.append((executor.submit(examine, batch, job), batch))
            except BrokenExecutor:  # after a worker died nothing more is taken
                waiting.append((None, batch))
            if len(waiting) >= _AHEAD * workers:
                yield _result(*waiting.popleft(), job)
        while waiting:
            yield _result(*waiting.popleft(), job)
    finally:
        for future, _ in waiting:
            if future is not None:
                future.cancel()


def batches(paths: Iterable[str], root: str = "") -> Iterator[list[Item]]:
    """The files below `paths` in portions for a worker; a package is one by itself."""
    batch: list[Item] = []
    for item in files(paths, root):
        big = isinstance(item, Input) and _size(item) > _BIG
        if batch and (big or len(batch) >= _FILES):
            yield batch
            batch = []
        batch.append(item)
        if big:
            yield batch
            batch = []
    if batch:
        yield batch


def _sent(paths: Iterable[str], root: str) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for member in _opened(files(paths, root)):
        batch.append(member)
        size += len(member.data) if isinstance(member, Member) else 0
        if size >= _SENT or len(batch) >= _FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _opened(items: Iterable[Item]) -> Iterator[Member | Failure]:
    for item in items:
        if isinstance(item, Input):
            yield from read(item)
        else:
            yield item


def _size(file: Input) -> int:
    try:
        return status(file.path, file.root).st_size
    except OSError:
        return 0  # reading it says why


def _result(future: Future[Batch] | None, batch: list[Item], job: Job) -> Batch:
    if future is not None:
        try:
            return future.result()
        except BrokenExecutor:
            pass
        except Exception as error:  # a cluster's own failures are of its own kinds
            return _not_scanned(batch, f"{type(error).__name__}: {error}".partition("\n")[0])
    return _by_itself(batch, job)


def _by_itself(batch: list[Item], job: Job) -> Batch:
    """The result of a portion that a worker died of, or beside: from a process of its own, then file by file."""
    from splitlock.modules.workers import Workers

    with Workers(1) as worker:
        try:
            result: Batch = worker.submit(examine, batch, job).result()
            return result
        except BrokenExecutor:
            if len(batch) == 1:
                return _not_scanned(batch, "the process that scanned it died (out of memory?)")
    parts = [_by_itself([item], job) for item in batch]
    return Batch([file for part in parts for file in part.files], sum(part.clean for part in parts))


def _not_scanned(batch: list[Item], why: str) -> Batch:
    return Batch([_failed(shown(item.path), getattr(item, "member", None), f"not scanned: {why}") for item in batch], 0)


def examine(items: list[Item], job: Job) -> Batch:
    """Scan and judge a portion; what runs in a worker."""
    found = []
    clean = 0
    looked_for = job.kinds | job.policy.kinds
    for member in _opened(items):
        file = _examined(member, job, looked_for) if isinstance(member, Member) else _failed(*member)
        if file is None:
            clean += 1
        else:
            found.append(file)
    return Batch(found, clean)


def _examined(member: Member, job: Job, kinds: frozenset[str]) -> File | None:
    """What there is to say of a file; None for nothing."""
    policy: Policy = job.policy
    try:
        result = scan(member.data, kinds, digest=False)
        if not result.name:
            result = result._replace(name=_name(member, result.type))
        verdict = judge(result, policy, member.data)
    except ImageError as error:
        return _failed(member.path, member.member, str(error))
    except MemoryError:
        return _failed(member.path, member.member, "not enough memory")
    if verdict.verdict == "allow" and not job.every and not result.findings:
        return None
    info = result.modinfo
    findings = [
        Finding(
            kind=found.kind,
            certainty=found.certainty,
            section=found.section,
            offset=None if found.offset is None else f"{found.offset:#x}",
            function=found.function,
            instruction=found.instruction,
            evidence=found.evidence,
        )
        for found in result.findings
        if found.kind in job.kinds or found.kind in verdict.kinds
    ]
    if verdict.verdict == "allow" and not job.every and not findings:
        return None
    return File(
        path=member.path,
        member=member.member,
        name=result.name,
        sha256=hashlib.sha256(member.data).hexdigest(),
        verdict=verdict.verdict,
        reason=verdict.reason,
        log=verdict.log,
        because=sorted(verdict.kinds) if verdict.verdict != "allow" else [],
        sld_safe="sld_safe" in info,
        sld_aware=SLD_AWARE in result.imports,
        intree="intree" in info,
        signer=result.signer,
        vermagic=next(iter(info.get("vermagic", ())), None),
        depends=[name for name in ",".join(info.get("depends", ())).split(",") if name],
        srcversion=next(iter(info.get("srcversion", ())), None),
        findings=findings,
    )


def _name(member: Member, kind: int) -> str:
    """A module as the kernel would call it: its file's name up to the first dot, with underscores."""
    base: str = os.path.basename(member.member or member.path)
    return base.partition(".")[0].replace("-", "_") or base if kind == ET_REL else base


def _failed(path: str, member: str | None, reason: str) -> File:
    return File(
        path=path,
        member=member,
        name=None,
        sha256=None,
        verdict="error",
        reason=reason,
        log="",
        because=[],
        sld_safe=False,
        sld_aware=False,
        intree=False,
        signer=None,
        vermagic=None,
        depends=[],
        srcversion=None,
        findings=[],
    )
