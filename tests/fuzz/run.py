"""Fuzz the readers: `python tests/fuzz/run.py TARGET [--minutes N] [--findings DIR]`, or `make fuzz MINUTES=N`.

With atheris installed the fuzzer is guided by coverage (libFuzzer), else inputs are made from the seeds and from what
was made before. Either way each failure is written to the directory of findings with its traceback, once for each place
that fails, and the fuzzing goes on. Exit status 1 when there were any. `--replay FILE...` runs single inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]


class Findings:
    """Failures, one for each place in the code."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.seen: dict[str, int] = {}
        self.tried = 0
        place.mkdir(parents=True, exist_ok=True)

    def attempt(self, check: Any, clock: Any, raw: bytes) -> None:
        """Run an input; write it down where it fails in a way that is new."""
        self.tried += 1
        try:
            with clock():
                check(raw)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if ROOT.as_posix() in f.filename]
            late = type(error).__name__ == "TooLong"  # stopped anywhere: the function is what counts
            where = [f"{Path(f.filename).name}:{f.name}" + ("" if late else f":{f.lineno}") for f in frames[-4:]]
            key = f"{type(error).__name__} {' '.join(where)}"
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] == 1:
                name = hashlib.sha256(raw).hexdigest()[:12]
                (self.place / name).write_bytes(raw)
                (self.place / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
                print(f"finding: {self.place / name}: {key}: {str(error)[:200]}", flush=True)


def guided(atheris: Any, target: Any, findings: Findings, clock: Any, args: argparse.Namespace) -> None:
    """libFuzzer, with our mutators for half of the inputs. Does not return: libFuzzer leaves the process."""
    corpus = findings.place.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, raw in enumerate(target.seeds()):
        (corpus / f"seed-{number:02}").write_bytes(raw)

    def run(raw: bytes) -> None:
        findings.attempt(target.check, clock, raw)

    def mutate(raw: bytes, largest: int, seed: int) -> bytes:
        chance = Random(seed)
        made: bytes = atheris.Mutate(raw, len(raw)) if chance.random() < 0.3 else target.mutate(raw, chance)
        return made[:largest]

    options = [
        f"-max_total_time={round(args.minutes * 60)}", f"-seed={args.seed % (1 << 32) or 1}", "-max_len=65536",
        "-timeout=1800", "-rss_limit_mb=3000", f"-artifact_prefix={findings.place}/", "-print_final_stats=1",
        "-verbosity=1", "-len_control=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


def blind(target: Any, findings: Findings, clock: Any, args: argparse.Namespace) -> None:
    """Without coverage: from seeds, and from inputs made of them before."""
    seeds = target.seeds()
    made = list(seeds)
    chance = Random(args.seed)
    end = time.monotonic() + 60 * args.minutes
    shown = started = time.monotonic()
    while (now := time.monotonic()) < end:
        raw = target.mutate(chance.choice(made if chance.random() < 0.5 else seeds), chance)
        findings.attempt(target.check, clock, raw)
        if len(made) < 2000:
            made.append(raw)
        else:
            made[chance.randrange(len(seeds), len(made))] = raw
        if now > shown + 60:
            shown = now
            print(f"{findings.tried:,} inputs, {findings.tried / (now - started):.0f} a second", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("image", "package", "signature", "text", "oops", "kallsyms"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument("--blind", action="store_true", help="without atheris, installed or not")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these inputs, nothing else")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT / "src"))
    try:
        atheris = None if args.blind or args.replay else importlib.import_module("atheris")
    except ImportError:
        atheris = None
    if atheris:
        with atheris.instrument_imports(include=["splitlock", "tarfile"]):
            from fuzz import targets

            for late in ("image.functions", "modules.sweep"):
                importlib.import_module(f"splitlock.{late}")
    else:
        from fuzz import targets
    target = targets.TARGETS[args.target]
    if args.replay:
        for path in args.replay:
            with targets.clock():
                target.check(path.read_bytes())
        return 0
    started = time.time()
    findings = Findings(args.findings / args.target / "findings")
    print(f"{args.target}: {args.minutes:g} minutes, seed {args.seed}, {'atheris' if atheris else 'blind'}", flush=True)
    if atheris:
        child = os.fork()
        if child == 0:
            guided(atheris, target, findings, targets.clock, args)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    else:
        with targets.limited(targets.MEMORY):
            blind(target, findings, targets.clock, args)
        status = 0
        print(f"{findings.tried:,} inputs", flush=True)
    found = [path for path in findings.place.iterdir() if path.stat().st_mtime >= started]
    print(f"{args.target}: {f'{len(found)} files in {findings.place}' if found else 'nothing found'}")
    return 1 if found or status else 0


if __name__ == "__main__":
    sys.exit(main())
