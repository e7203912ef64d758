"""A run with the agent inside: starts the program, answers agents, and in the end adds up what they wrote down.

Nobody is stopped, and nothing waits for us but an agent that has met a file for the first time.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

from splitlock._environment import given
from splitlock._errors import failure
from splitlock.linux.delays import JIFFIES, SLEEP_MS, STEP_MS
from splitlock.process.agent import memory as shared
from splitlock.process.agent.aside import step_aside
from splitlock.process.agent.images import Images
from splitlock.process.agent.judged import AGENT
from splitlock.process.agent.memory import Limits, Memory
from splitlock.process.agent.place import remember
from splitlock.process.agent.samples import Samples
from splitlock.process.agent.tracers import Tracers
from splitlock.process.cache import Cache, shared_directory
from splitlock.process.elsewhere import handed_over
from splitlock.process.hits import Site
from splitlock.process.launch import WAITED, Child
from splitlock.process.policy import Policy, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from splitlock.process.agent.named import Named, SiteName
    from splitlock.process.agent.traced import Found

    Key = tuple[int, ...]

_HZ = 250  # jiffies a second of most distributions
_ANALYSING = 0.2  # seconds that an analysis may still take then
_LOST = "what a tracer has found is lost: it, or the process that started it, was killed"
_UNSEEN = "; programs that it starts and code that it brings are not seen"  # where a libc, say, is not patched
_PATIENCE = 1.0  # seconds for an agent to begin in what has been executed
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_POLL_MS = 20  # between looks at whether a process is left, once the program itself has ended


class _Line(bytes):
    """A name of an environment line that may be there twice: each is a key of its own."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Watched:
    """What was watched: locked instructions by image's key and by path, bytes, and which file each path was."""

    def __init__(self) -> None:
        self.images: dict[Key, int] = {}
        self.sizes: dict[Key, int] = {}
        self.names: dict[str, int] = {}
        self.files: dict[str, Key] = {}


class Supervisor:
    """One run. As Tracer: `run()`, then the other attributes hold what was found."""

    def __init__(
        self,
        policy: Policy,
        quiet: bool = False,
        verbose: bool = False,
        warn: Callable[[str], None] = say,
        memory: int | None = None,
    ) -> None:
        """`memory`: the number of a run's that has begun (`join`)."""
        self.policy = policy
        self.watch = Watched()
        self.exit_status: int | None = 125
        self.processes = 1
        self._say = (lambda line: None) if quiet else say
        self._progress = sys.stderr.isatty() and not quiet
        self._cache = Cache(lambda text: warn(f"splitlock: warning: {text}"), self._analysing)
        self._unmonitored: list[tuple[str, bool, str, int | None, int | None]] = []
        self._found: dict[tuple[Key, int], Site] = {}
        self._traced: list[Site] = []
        self._warned: set[int] = set()
        self._taken = 0
        self._failures: list[tuple[str, bool, str, int | None, int | None]] = []
        self._ended = False
        self._left = 0
        self._pending: list[int] = []
        self._memory = self._new_memory() if memory is None else Memory(memory)
        self._images = Images(self._cache, self._memory.spare, self._memory.beat)
        self._samples = Samples(self._memory)
        self._tracers = Tracers(self._memory, policy, quiet, verbose)

    def _new_memory(self) -> Memory:
        policy = self.policy
        limits = Limits(policy.limit, SLEEP_MS, 1_000_000 * JIFFIES // _HZ, STEP_MS)
        mode = shared.MODES["mitigate" if policy.mitigate else policy.mode]
        return Memory.new(self._cache.directory or "", shared_directory(), mode, limits)

    @property
    def sites(self) -> list[Site]:
        """Sites that took split locks, most hits first."""
        hit = (site for site in (*self._found.values(), *self._traced) if site.hits)
        return sorted(hit, key=lambda s: (-s.hits, s.name, s.address))

    def unmonitored(self) -> list[tuple[str, bool, str, int | None, int | None]]:
        """Code that was not watched: (name, whether it is an image, reason, bytes, locked instructions)."""
        return self._unmonitored

    def run(self, argv: Sequence[str]) -> None:
        """Run a program to its end, and everything it started. Raises SplitlockError when it cannot start."""
        child = Child(argv, self._lines(), watched=False)
        done = self._start_serving()
        child.go()
        self._wait(child)
        self._wait_for_others()
        self._left = self._memory.attached() - 1
        self._end(done)
        child.check()
        self._finish()

    def run_aside(self, argv: Sequence[str]) -> None:
        """The same, but in a process of its own, in which this returns; the one that calls becomes the program.

        Its exit status is for its parent: here it is None.
        """
        beside = step_aside(argv, self._lines())
        self.exit_status = None
        self._memory.take_over()
        done = self._start_serving()
        beside.go()
        began = beside.wait()
        self._wait_for_others()
        self._left = self._memory.attached() - 1
        self._end(done)
        if not began:  # it is said there
            os._exit(0)
        self._finish()

    def join(self, told: int) -> None:
        """Do what is ours in a run that the front (front/) has begun and waits for; it tells by a pipe how it ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # tracers are waited for
        self._memory.take_over()
        done = self._start_serving()
        with os.fdopen(told, "rb") as pipe:
            said = pipe.read()
        if not said:  # it has been killed; the program goes on without us
            os._exit(125)
        self.exit_status = int(said)
        self._left = max(0, self._memory.attached() - 2)
        self._end(done)
        self._finish()

    def reported(self) -> None:
        """All is said that there is to say."""
        self._memory.reported()

    def _lines(self) -> dict[bytes, bytes]:
        """The program's environment, with ours behind."""
        lines = {os.fsencode(name): os.fsencode(value) for name, value in given().items()}
        lines[_Line(b"LD_AUDIT")] = os.fsencode(AGENT)
        lines[_Line(b"SPLITLOCK_RUN")] = b"%d" % self._memory.number
        return lines

    def _start_serving(self) -> _thread.LockType:
        self._memory.keep_from_children()
        done = _thread.allocate_lock()
        done.acquire()
        try:
            _thread.start_new_thread(self._serve, (done,))
        except RuntimeError:  # no memory for one: what is in the cache is watched, the rest is not
            self._memory.resign()
            done.release()
        return done

    def _wait_for_others(self) -> None:
        """The program itself has ended; those that it started may not, and one that is executed is nobody's until its
        agent begins. One of those who have the memory are we.
        """
        begin = time.monotonic()
        while self._memory.attached() > 1 or self._memory.totals.lost > 0:
            if self._memory.attached() > 1:
                begin = time.monotonic()
            elif time.monotonic() - begin > _PATIENCE:
                break
            told = signal.sigtimedwait(WAITED - {signal.SIGCHLD}, _POLL_MS / 1000)
            if told and told.si_signo in _ENDING:
                break

    def _end(self, done: _thread.LockType) -> None:
        self._ended = True
        self._memory.wake()
        if not done.acquire(timeout=_ANALYSING):  # an image that nobody waits for any more
            self._images.abandon()

    def _finish(self) -> None:
        try:
            self._collect()
        except Exception as error:  # the program has run: its exit status, and what is known, are told all the same
            for site in self._found.values():  # not counted: at least as many as there were threads
                site.hits = site.hits or len(site.tasks)
            reason = f"not all that was found is known, the hits are a lower bound: {failure(error)}"
            self._unmonitored.append(("processes", False, reason, None, None))
        self._images.close()
        remember(self._cache, AGENT)

    # -- while it runs -------------------------------------------------------------------------

    def _wait(self, child: Child) -> None:
        while True:
            pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
            if not pid:
                got = signal.sigwaitinfo(WAITED)
                # A signal from the terminal has reached the program already.
                if got.si_signo != signal.SIGCHLD and got.si_code <= 0:
                    os.kill(child.pid, got.si_signo)
            elif os.WIFSTOPPED(status):
                if os.WSTOPSIG(status) != signal.SIGSTOP and os.getpgid(child.pid) == os.getpgrp():
                    os.kill(os.getpid(), signal.SIGSTOP)  # job control: the shell waits for us to stop too
            else:
                self.exit_status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                return

    def _serve(self, done: _thread.LockType) -> None:
        """Answer agents until all have ended."""
        try:
            known = 0
            while not self._ended:
                self._memory.beat()
                known = self._memory.wait(known, 1000)
                for image in self._memory.images():
                    if image.state == shared.ASKED:
                        self._answer(image)
                self._tracers.look()
                self._take_hits()
        except Exception as error:  # those who ask from now on are answered when they see that nobody does
            self._failures.append(("samples", False, f"not all are known: {failure(error)}", None, None))
            self._memory.resign()
        finally:
            done.release()

    def _answer(self, image: shared.Seen) -> None:
        """Make what an agent waits for. Whatever fails, it is answered: else the program would wait for ever."""
        made = False
        try:
            made = self._images.make(image)
        except Exception as error:
            self._failures.append((image.name, True, f"cannot be analysed: {failure(error)}", image.size, None))
        finally:
            self._memory.answer(image, shared.CLAIMED if made else shared.REFUSED, 0 if made else 2)

    def _analysing(self, name: str) -> None:
        if self._progress:
            text = f"splitlock: analysing {os.path.basename(name)}, once ..." if name else ""
            os.write(2, os.fsencode(f"\r\x1b[K{text}"))

    def _take_hits(self) -> None:
        """What is written down by now. A thread that was killed while it wrote never gets ready: the others go on."""
        used = min(self._memory.totals.tasks, shared.TASKS)
        waiting = [*self._pending, *range(self._taken, used)]
        self._pending, self._taken = [], used
        for number in waiting:
            if task := self._memory.task(number):
                self._take(task)
            else:
                self._pending.append(number)

    def _take(self, task: shared.Task) -> None:
        image = self._memory.image(task.image)
        named = self._images.named(image)
        site = self._site(image, task.site, named)
        site.tasks.add((task.pid, task.tid))
        rip = site.address + self._samples.add(task, site)
        if task.tid not in self._warned:
            self._warned.add(task.tid)
            self._warn(task, image, named.sites[task.site], rip)

    def _warn(self, task: shared.Task, image: shared.Seen, site: SiteName, rip: int) -> None:
        bias = rip - site.address
        where = f" in {os.path.basename(image.name)}[{image.low + bias:x}+{image.size:x}]"
        self._say(self.policy.line(task.comm, task.tid, rip, site.next + bias, 0, where))

    def _site(self, image: shared.Seen, number: int, named: Named) -> Site:
        site = self._found.get((image.key, number))
        if site is None:
            known = named.sites[number]
            site = Site(image.name, known.address, known.size, known.text, named.build_id)
            self._found[image.key, number] = site
        return site

    # -- in the end ----------------------------------------------------------------------------

    def _collect(self) -> None:
        self._take_hits()
        self._unmonitored += self._failures
        self.processes = 1 + self._memory.totals.processes
        for image in self._memory.images():
            named = self._images.named(image)
            name = image.name
            if image.state in (shared.READY, shared.NOTHING) and image.patched:
                self.watch.images[image.key] = self.watch.names[name] = named.watched
                self.watch.sizes[image.key] = named.size
                self.watch.files[name] = image.key
                self._unmonitored += [(name, True, u.reason, u.size, u.sites) for u in named.unwatched]
            missed = image.patched < image.mapped or image.lost > 0
            unseen = _UNSEEN if missed and self._images.calls_kernel(image) else ""
            if not image.patched and not named.watched and named.unwatched:
                self._unmonitored += [(name, True, u.reason + unseen, image.size, u.sites) for u in named.unwatched]
            elif missed:
                reason = shared.REASONS[image.reason] or "not all of its mappings could be patched"
                self._unmonitored.append((name, True, reason + unseen, image.size, named.watched))
            if image.state == shared.READY:
                for number, count in enumerate(self._memory.counts(image.counters, len(named.sites))):
                    if count:
                        self._site(image, number, named).hits += count
        started = [*self._memory.programs(), *(shared.Program(e.name, "", False) for e in self._memory.escapes())]
        for program in started:
            if reason := handed_over(program.name, program.comm, program.has_scope, os.getpid()):
                self._unmonitored.append((program.name, True, reason, None, None))
        if len(started) >= shared.PROGRAMS:
            reason = f"more than {shared.PROGRAMS} different ones: whether others hand their work over is not known"
            self._unmonitored.append(("programs", False, reason, None, None))
        for escape in self._memory.escapes():
            self._unmonitored.append((escape.name, True, shared.REASONS[escape.reason], None, None))
        self._collect_totals()
        if trouble := self._samples.unwind():
            self._unmonitored.append(("stacks", False, trouble, None, None))
        left = self._memory.traced
        for found in self._tracers.found():
            self._add(found)
            left -= 1
        for _ in range(min(left, shared.PROGRAMS)):  # whatever is written there
            self._unmonitored.append(("processes", False, _LOST, None, None))

    def _add(self, found: Found) -> None:
        """What a tracer has found."""
        here = {(site.name, site.address): site for site in (*self._found.values(), *self._traced)}
        for site in found.sites:
            if (same := here.get((site.name, site.address))) is None:
                self._traced.append(site)
                continue
            same.hits += site.hits
            same.tasks |= site.tasks
            same.samples = sorted((*same.samples, *site.samples), key=lambda sample: sample.time)[: shared.OF_SITE]
        self._unmonitored += [line for line in found.unmonitored if line not in self._unmonitored]
        self.watch.images.update(found.images)
        self.watch.sizes.update(found.sizes)
        self.watch.names.update(found.names)
        self.watch.files.update(found.files)
        self.processes += found.processes - 1  # its first was forked before it was asked for

    def _collect_totals(self) -> None:
        totals = self._memory.totals
        if totals.made_bytes:
            from splitlock.x86.locked import likely_locked

            held = sum(likely_locked(code, at) for code, at in self._memory.finds())
            reason = "code made at run time (JIT)"
            # none is nobody's word: the code may have been overwritten, or its process killed, before it was looked at
            known = held if 0 < totals.finds <= shared.FINDS else None
            self._unmonitored.append(("anonymous executable memory", False, reason, totals.made_bytes, known))
        tasks_lost = totals.tasks_lost + len(self._pending)
        if self._left:
            reason = f"{self._left} still run: what they do from now on is in no report"
            self._unmonitored.append(("processes", False, reason, None, None))
        if tasks_lost:
            reason = f"{tasks_lost} more first split locks of threads at sites are counted, not listed"
            self._unmonitored.append(("threads", False, reason, None, None))
        if totals.images_lost:
            self._unmonitored.append(
                ("images", False, f"{totals.images_lost} mappings of more files than are noted", None, None)
            )
        if totals.escapes_lost:
            self._unmonitored.append(("programs", False, f"{totals.escapes_lost} more started unwatched", None, None))
        if totals.lost > 0:
            causes = "the agent could not begin there (a limit on memory, another user, an IPC namespace)"
            reason = f"{totals.lost} ran unwatched, with all that they started: {causes}"
            self._unmonitored.append(("programs", False, reason, None, None))
