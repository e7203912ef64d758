#!/usr/bin/env python3
"""What watching a program costs: `splitlock run` beside other ways to see its locked instructions, all in one run.

The peers take turns (native, splitlock, qemu, valgrind, native, splitlock, ...), because a machine's speed changes
from minute to minute: only numbers taken side by side can be compared. A ratio is a peer's time in a round divided by
native's time in that round; shown are the median over the rounds, and the least and greatest.

    benchmarks/bench.py                               everything, some 40 minutes
    benchmarks/bench.py --only core --rounds 3        the seven workloads of the mean
    benchmarks/bench.py --quick                       does it work? a minute or two, numbers of no worth
    benchmarks/bench.py --markdown docs/benchmarks.md

Each run's standard output must be byte for byte native's, and its exit status 0; a peer that fails at a workload is
named with the reason, and left out of its remaining rounds. Nothing here fails for being slow.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tables import Table, machine, median, number, rewrite_section, spread, version
from workloads import WORKLOADS, Unavailable, Workload, Workshop

NATIVE = "native"
# Sections that --only can name besides the workloads; "core" stands for the seven.
START, SPAWN, CORE = "start", "spawn", "core"
SPAWN_MODES = ("fork", "posix_spawn")


@dataclass(frozen=True)
class Peer:
    """A way to run a command. `wrap` gives the words to run for a command's words; `version` is for the report."""

    name: str
    wrap: Callable[[list[str]], list[str]]
    version: str = ""
    follows_exec: bool = True
    empty_cache: bool = False


@dataclass(frozen=True)
class Sample:
    """One run: seconds by the clock, seconds of CPU in all its processes, peak resident set of the largest, KiB."""

    wall: float
    cpu: float
    peak: int


@dataclass
class Series:
    """All runs of one command: a list of samples a peer, round by round, and for a peer that failed, why."""

    name: str
    title: str
    core: bool = False
    runs: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ratios(self, peer: str, what: Callable[[Sample], float] = lambda sample: sample.wall) -> list[float]:
        """The peer's ratio to native in each round; empty if it failed."""
        pairs = zip(self.runs.get(peer, []), self.runs.get(NATIVE, []), strict=False)
        # CPU time has a resolution of a microsecond, so it is above 0 for whatever was run.
        return [] if peer in self.failures else [what(run) / what(native) for run, native in pairs]

    def differences(self, peer: str) -> list[float]:
        """The peer's seconds beyond native's in each round; empty if it failed."""
        pairs = zip(self.runs.get(peer, []), self.runs.get(NATIVE, []), strict=False)
        return [] if peer in self.failures else [run.wall - native.wall for run, native in pairs]

    def walls(self, peer: str) -> list[float]:
        """The peer's seconds in each round; empty if it failed."""
        return [] if peer in self.failures else [run.wall for run in self.runs.get(peer, [])]


@dataclass
class Results:
    """Everything one call of bench.py measured. `spawn_count` is the children that each run in `spawn` starts."""

    machine: str
    versions: dict[str, str]
    load: float
    rounds: int
    quick: bool
    peers: list[str]
    workloads: list[Series] = field(default_factory=list)
    start: Series | None = None
    spawn: list[Series] = field(default_factory=list)
    spawn_count: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def mean(self, peer: str) -> tuple[float, int]:
        """Geometric mean of the peer's median ratios over the core workloads it managed, and how many those are."""
        medians = [statistics.median(ratios) for row in self.workloads if row.core and (ratios := row.ratios(peer))]
        return (statistics.geometric_mean(medians) if medians else math.nan), len(medians)


class Failed(Exception):
    """A run that did not do what the native one does; the message says how."""


# ------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """Runs commands under peers. `timeout` is in seconds for each run, `say` takes progress messages."""

    def __init__(self, shop: Workshop, timeout: float, say: Callable[[str], None]) -> None:
        self._shop = shop
        self._timeout = timeout
        self._say = say
        self._measure = shop.program("measure.c", "-static")
        # The user's own plan cache and git settings are left out of it. Temporary files of the peers go along.
        self._environment = os.environ | {
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "TMPDIR": str(shop.directory),
            "XDG_CACHE_HOME": str(shop.path("cache")),
        }

    def run(self, peer: Peer, command: list[str]) -> tuple[Sample, str]:
        """Run the command once under the peer. Gives the sample and a digest of its standard output; raises Failed."""
        result, out, err = (self._shop.path(name) for name in ("result", "stdout", "stderr"))
        result.unlink(missing_ok=True)
        environment = self._environment
        if peer.empty_cache:
            cache = self._shop.path("empty-cache")
            shutil.rmtree(cache, ignore_errors=True)
            environment = environment | {"XDG_CACHE_HOME": str(cache)}
        words = [self._measure, str(result), *peer.wrap(command)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            # A session of its own, so that a run that hangs can be ended with all its processes.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
            try:
                process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise Failed(f"not finished after {self._timeout:.0f} s") from None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        last_words = err.read_text(errors="replace").strip().splitlines()[-1:]
        if not result.exists():
            raise Failed(" ".join(["could not be started", *last_words]))
        wall, cpu, peak, status = (int(word) for word in result.read_text().split())
        code = os.waitstatus_to_exitcode(status)
        if code:
            end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise Failed(": ".join([end, *last_words]))
        with out.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Sample(wall / 1e9, cpu / 1e6, peak), digest

    def rounds(self, series: Series, peers: Sequence[Peer], command: list[str], rounds: int) -> None:
        """Fill `series` with so many interleaved rounds. Raises Failed if the native run itself fails."""
        native = next(peer for peer in peers if peer.name == NATIVE)
        # One unmeasured run of each: files get into memory and, natively, the expected output becomes known.
        _, expected = self.run(native, command)
        series.runs = {peer.name: [] for peer in peers}
        for turn in range(rounds + 1):
            for peer in peers:
                if peer.name in series.failures or (turn == 0 and peer is native):
                    continue
                try:
                    sample, digest = self.run(peer, command)
                    if digest != expected:
                        raise Failed("its output differs from native's")
                except Failed as failure:
                    if peer is native:
                        raise
                    series.failures[peer.name] = str(failure)
                    series.runs[peer.name] = []
                    continue
                if turn:
                    series.runs[peer.name].append(sample)
            self._say(f"\r{series.title}: round {turn} of {rounds} ")
        words = [f"{series.title}: native {median(series.walls(NATIVE))} s"]
        words += [
            f"{peer.name} {spread(ratios) if (ratios := series.ratios(peer.name)) else 'failed'}"
            for peer in peers
            if peer is not native
        ]
        self._say("\r" + ", ".join(words) + "\n")


def collect(arguments: argparse.Namespace, shop: Workshop, say: Callable[[str], None]) -> Results:
    """Measure everything that the arguments ask for."""
    peers, skipped = find_peers(arguments, shop)
    results = Results(
        machine=machine(),
        versions={peer.name: peer.version for peer in peers if peer.version},
        load=os.getloadavg()[0],
        rounds=arguments.rounds,
        quick=arguments.quick,
        peers=[peer.name for peer in peers],
        skipped=skipped,
    )
    bench = Bench(shop, arguments.timeout, say)

    def measure(series: Series, peers: list[Peer], command: Callable[[Workshop], list[str]], rounds: int) -> bool:
        say(f"\r{series.title}: building ")
        try:
            bench.rounds(series, peers, command(shop), rounds)
        except (Failed, Unavailable) as failure:
            results.skipped[series.title] = str(failure)
            say(f"\r{series.title}: skipped: {failure}\n")
            return False
        return True

    for workload in WORKLOADS:
        if wanted(workload, arguments.only):
            series = Series(workload.name, workload.title, workload.core)
            if measure(series, peers, workload.command, arguments.rounds):
                results.workloads.append(series)
    if not arguments.only or START in arguments.only:
        # A first use as well: what `splitlock run` keeps from one run to the next is not there yet.
        first = [
            dataclasses.replace(peer, name=f"{peer.name}, empty cache", empty_cache=True)
            for peer in peers
            if peer.name == "splitlock"
        ]
        series = Series(START, "/bin/true")
        rounds = 5 if arguments.quick else 20
        if measure(series, [*peers, *first], lambda _: ["/bin/true"], rounds):
            results.start = series
    if not arguments.only or SPAWN in arguments.only:
        count = results.spawn_count = shop.size(200)
        following = [peer for peer in peers if peer.follows_exec]
        for mode in SPAWN_MODES:
            series = Series(mode, f"{count} x {mode}")
            if measure(series, following, spawner(mode, count), arguments.rounds):
                results.spawn.append(series)
    return results


def spawner(mode: str, count: int) -> Callable[[Workshop], list[str]]:
    """The command that starts /bin/true so often, one after the other."""
    return lambda shop: [shop.program("spawn.c"), mode, str(count), "/bin/true"]


def wanted(workload: Workload, only: list[str]) -> bool:
    """Whether --only (empty: everything) asks for the workload."""
    return not only or workload.name in only or (workload.core and CORE in only)


def find_peers(arguments: argparse.Namespace, shop: Workshop) -> tuple[list[Peer], dict[str, str]]:
    """The peers to run, native first, and the reasons why others cannot be. Raises Unavailable for one asked for."""
    makers = {NATIVE: native_peer, "splitlock": splitlock_peer, "qemu": qemu_peer, "valgrind": valgrind_peer}
    names = arguments.peers or list(makers)
    peers, skipped = [], {}
    for name, maker in makers.items():
        if name != NATIVE and name not in names:
            continue
        try:
            peers.append(maker(arguments, shop))
        except Unavailable as reason:
            if arguments.peers:
                raise
            skipped[name] = str(reason)
    return peers, skipped


def native_peer(arguments: argparse.Namespace, shop: Workshop) -> Peer:
    """The command itself."""
    return Peer(NATIVE, lambda command: command)


def splitlock_peer(arguments: argparse.Namespace, shop: Workshop) -> Peer:
    """This project."""
    path = shutil.which(arguments.splitlock)
    if path is None:
        raise Unavailable(f"{arguments.splitlock}: not there or not executable; name it with --splitlock")
    words = [os.path.abspath(path), "run", "-q", "--"]
    return Peer("splitlock", lambda command: [*words, *command], version([path, "--version"]))


def qemu_peer(arguments: argparse.Namespace, shop: Workshop) -> Peer:
    """QEMU's user mode with a plugin that counts all locked instructions and the split ones among them."""
    path = which("qemu-x86_64")
    options = [f"file={shop.plugin()}", f"out={shop.path('qemu-hits')}", "count=all"]
    words = [path, "-plugin", ",".join(option.replace(",", ",,") for option in options)]
    # A program that the command execs runs natively, so where that matters there is nothing to compare.
    return Peer("qemu", lambda command: [*words, *command], version([path, "--version"]), follows_exec=False)


def valgrind_peer(arguments: argparse.Namespace, shop: Workshop) -> Peer:
    """Valgrind that looks for nothing: the least that any valgrind tool costs."""
    words = [which("valgrind"), "-q", "--tool=none", "--trace-children=yes"]
    return Peer("valgrind", lambda command: [*words, *command], version([words[0], "--version"]))


def which(name: str) -> str:
    """The program's path. Raises Unavailable."""
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not installed")
    return path


# ------------------------------------------------------------------------------------------------------- reporting


def tables(results: Results) -> list[Table]:
    """The report's tables."""
    others = [peer for peer in results.peers if peer != NATIVE]
    made = []
    if results.workloads:
        ratio_rows = [["", "native", *others]]
        use_rows = [["", NATIVE, *others]]
        # Above the mean what it is the mean of.
        ordered = sorted(results.workloads, key=lambda row: not row.core)
        core = sum(row.core for row in ordered)
        for row in ordered:
            ratio_rows.append([row.title, median(row.walls(NATIVE)), *(spread(row.ratios(peer)) for peer in others)])
            cells = [_use(row, peer) for peer in results.peers]
            use_rows.append([row.title, *cells])
        if core:
            means = []
            for peer in others:
                mean, count = results.mean(peer)
                means.append(number(mean) + ("" if count == core else f" ({count} of {core})") if count else "failed")
            all_core = sum(workload.core for workload in WORKLOADS)
            label = f"geom. mean of {core}" + ("" if core == all_core else f" (not {all_core})")
            ratio_rows.insert(core + 1, [label, "", *means])
        made.append(
            Table(
                "Wall-clock time, native's in seconds, the others' over native's: median, least..greatest.", ratio_rows
            )
        )
        made.append(Table("CPU time over native's; the largest process's peak memory in MiB: medians.", use_rows))
    if results.start:
        rows = [["", "ms in all", "beyond native"]]
        for peer in results.start.runs:
            beyond = "" if peer == NATIVE else spread([1e3 * value for value in results.start.differences(peer)])
            rows.append([peer, spread([1e3 * value for value in results.start.walls(peer)]), beyond])
        rounds = len(results.start.runs[NATIVE])
        made.append(Table(f"Start-up: /bin/true, {rounds} rounds: median, least..greatest.", rows))
    if results.spawn:
        count = results.spawn_count
        rows = [["", "ms a child", "beyond native"]]
        for mode in results.spawn:
            for peer in mode.runs:
                each = [1e3 / count * value for value in mode.walls(peer)]
                further = [1e3 / count * value for value in mode.differences(peer)]
                rows.append([f"{mode.name}, {peer}", spread(each), "" if peer == NATIVE else spread(further)])
        caption = f"Each further fork and exec: a {count}th of a program that starts /bin/true {count} times"
        made.append(Table(f"{caption}: median, least..greatest.", rows))
    return made


def _use(row: Series, peer: str) -> str:
    """CPU ratio and peak memory of one peer; for native the memory alone."""
    if peer in row.failures or not row.runs.get(peer):
        return "failed"
    peak = number(statistics.median(run.peak for run in row.runs[peer]) / 1024)
    ratios = row.ratios(peer, lambda sample: sample.cpu)
    return peak if peer == NATIVE else f"{number(statistics.median(ratios))}; {peak}"


def notes(results: Results) -> list[str]:
    """What the tables leave unsaid: who failed and why, what was not run."""
    every = [*results.workloads, *([results.start] if results.start else []), *results.spawn]
    said = [f"{peer} failed at {row.title}: {why}" for row in every for peer, why in row.failures.items()]
    said += [f"{what} was left out: {why}" for what, why in results.skipped.items()]
    if results.spawn and "qemu" in results.peers:
        said.append("qemu-user is not among the peers of fork and exec: it runs what is exec'ed natively, unseen")
    if results.quick:
        said.append("taken with --quick: much too short to say anything")
    return said


def heading(results: Results) -> list[str]:
    """Where, when and with which versions the run was made."""
    lines = [f"{results.machine}, load {results.load:.2f} before"]
    if results.versions:
        lines.append("; ".join(results.versions.values()))
    if results.workloads or results.spawn:
        plural = "" if results.rounds == 1 else "s"
        lines.append(f"{results.rounds} round{plural}, interleaved: {', '.join(results.peers)}")
    return lines


def text_report(results: Results) -> str:
    """The report for a terminal of 80 columns."""
    blocks = ["\n".join(heading(results))]
    blocks += [table.text() for table in tables(results)]
    blocks += [textwrap.fill(f"Note: {note}.", 80) for note in notes(results)]
    return "\n\n".join(blocks) + "\n"


def json_report(results: Results) -> str:
    """Every sample, in seconds and KiB, and the means."""
    data = dataclasses.asdict(results)
    data["geometric_mean"] = {peer: results.mean(peer)[0] for peer in results.peers if results.mean(peer)[1]}
    return json.dumps({"format": 1} | data, indent=1) + "\n"


# ---------------------------------------------------------------------------------------------------- command line


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [*(workload.name for workload in WORKLOADS), START, SPAWN, CORE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"NAME: {', '.join(names)}"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each workload (5; 2 with --quick)")
    parser.add_argument("--only", type=_list_of(names), action="extend", default=[], metavar="NAME,...")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: tests the harness")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between run:begin and run:end")
    parser.add_argument(
        "--peers",
        type=_list_of([NATIVE, "splitlock", "qemu", "valgrind"]),
        metavar="NAME,...",
        help="of native, splitlock, qemu, valgrind (all that are there; native always)",
    )
    beside = str(Path(sys.executable).parent / "splitlock")
    parser.add_argument("--splitlock", default=beside, metavar="PATH", help=f"the splitlock to run ({beside})")
    parser.add_argument("--timeout", type=float, default=180, metavar="SECONDS", help="of one run (180)")
    arguments = parser.parse_args(words)
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 5
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.markdown and not arguments.markdown.exists():
        parser.error(f"{arguments.markdown} does not exist")
    return arguments


def _list_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    known = list(allowed)

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names


def main(words: Sequence[str] | None = None) -> int:
    """Measure and report. Exit status 0 whatever the numbers; 1 if nothing could be measured."""
    arguments = parse(words)

    def say(message: str) -> None:
        # A terminal shows progress in place; a log gets the finished lines alone.
        if sys.stderr.isatty():
            message = message.replace("\r", "\r\033[K")
        elif not message.endswith("\n"):
            return
        print(message.removeprefix("\r"), end="", file=sys.stderr, flush=True)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="splitlock-bench-") as directory:
        try:
            results = collect(arguments, Workshop(Path(directory), quick=arguments.quick), say)
        except Unavailable as reason:
            print(f"bench.py: {reason}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130  # as a shell counts SIGINT; the lines said so far stand
    say(f"took {(time.monotonic() - begun) / 60:.1f} minutes\n")
    print(text_report(results), end="")
    if arguments.json:
        arguments.json.write_text(json_report(results))
    if arguments.markdown:
        rewrite_section(arguments.markdown, "run", f"```\n{text_report(results)}```\n")
    return 0 if results.workloads or results.start or results.spawn else 1


if __name__ == "__main__":
    sys.exit(main())
