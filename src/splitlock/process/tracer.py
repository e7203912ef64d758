"""The event loop: everything the target's tasks stop for, one event at a time."""

from __future__ import annotations

import heapq
import os
import signal
import sys
import time

from splitlock._errors import failure, reserves
from splitlock.linux.proc import Memory, children, origin, program_of, tracer_of
from splitlock.process import filter as calls
from splitlock.process import inject, ptrace, strict
from splitlock.process.abi import MAGIC
from splitlock.process.analysis import on_terminal
from splitlock.process.arrivals import Arrivals
from splitlock.process.births import CLONE_THREAD, CLONE_VM, clone_flags, space_of
from splitlock.process.cache import Cache
from splitlock.process.hits import Hits, Site
from splitlock.process.inject import Refused, TaskGone
from splitlock.process.launch import Child
from splitlock.process.policy import WAIT, Policy, say
from splitlock.process.signals import Signals
from splitlock.process.space import Module, Space
from splitlock.process.task import Task
from splitlock.process.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_SYSCALL_STOP = 0x80  # set in the signal's number at a stop for a system call (PTRACE_O_TRACESYSGOOD)
NOT_STRICT = "it has no strict seccomp mode, which it asked for (prctl 22): the tracer's filter keeps it out"


class Tracer:
    """One run of one program. `run()` does it; then the other attributes hold what was found.

    exit_status: the program's, 128 + signal when killed. sites: those hit. watch: what was watched.
    lost: processes whose last counts could not be read.
    """

    def __init__(self, policy: Policy, quiet: bool = False, warn: Callable[[str], None] = say) -> None:
        self.policy = policy
        progress = on_terminal if sys.stderr.isatty() and not quiet else lambda name: None
        self._tasks: dict[int, Task] = {}
        self._arrivals = Arrivals(self._tasks)
        self.cache = Cache(lambda text: warn(f"splitlock: warning: {text}"), progress, work=self._arrivals.apart)
        self.watch = Watch(self.cache)
        self.hits = Hits(self.cache, policy, (lambda line: None) if quiet else say)
        self.signals = Signals(self.hits)
        self.exit_status = 125
        self.lost = 0
        self.processes = 1
        #: stopped new tasks whose parent's event has not come yet, with the process they or their parent belong to
        self._unclaimed: dict[int, int] = {}
        #: the last few that ended, for orphans
        self._ended_spaces: list[Space] = []
        #: (when, tie-break, task, the module it asked for or None: the end of its turn)
        self._timers: list[tuple[float, int, int, Module | None]] = []
        self._main = self._ties = 0
        self._registers = ptrace.Registers()

    @property
    def sites(self) -> list[Site]:
        """Sites that took split locks, most hits first."""
        return sorted((s for s in self.hits.sites.values() if s.hits), key=lambda s: (-s.hits, s.name, s.address))

    def unmonitored(self) -> list[tuple[str, bool, str, int | None, int | None]]:
        """Code that was not watched: (name, whether it is an image, reason, bytes, locked instructions)."""
        found: list[tuple[str, bool, str, int | None, int | None]] = [
            (name, image, reason, size, held) for (name, image, reason), (size, held) in self.watch.unmonitored.items()
        ]
        if self.policy.mode == "off":
            found.append(("everything", False, "split_lock_detect=off", None, None))
        if self.lost:
            reason = f"{self.lost} ended without a last look at their counters; the hits are a lower bound"
            found.append(("processes", False, reason, None, None))
        return found

    def run(self, child: Child) -> None:
        """Run a program to its end, and everything it started. Raises SplitlockError when it cannot start."""
        kept = reserves(1)
        child.go()
        self._main = self._arrivals.main = child.pid
        self._tasks[self._main] = Task(self._main, self._main, Space())
        try:
            self._loop()
        except MemoryError:  # the program is alive, and dies with us
            kept.clear()
            self._loop()
        child.check()

    def follow(self, pid: int) -> None:
        """Watch a process that stands where it has just executed a program, and everything it starts, to their ends."""
        self._main = self._arrivals.main = pid
        task = self._tasks[pid] = Task(pid, pid, Space())
        ptrace.get_registers(pid, self._registers)
        try:
            inject.put_filter(pid, self._registers, task.stopped)
        except TaskGone as gone:
            self._ended(pid, gone.status)
        except (Refused, OSError) as error:
            why = str(error) if isinstance(error, Refused) else failure(error)
            self.watch.note(program_of(pid), f"could not be followed, nor what it starts: {why}")
            ptrace.request(ptrace.DETACH, pid)
        else:
            self._exec(task)
            self._loop()

    # -- waiting -------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._tasks or self._unclaimed:
            try:
                tid, status = os.waitpid(-1, ptrace.WALL | os.WNOHANG)
            except ChildProcessError:
                break
            if tid:
                self._dispatch(tid, status)
                continue
            timeout = self._timers[0][0] - time.monotonic() if self._timers else None
            if timeout is not None and timeout <= 0:
                self._wake()
                continue
            self._arrivals.wait(timeout)

    def _wake(self) -> None:
        _, _, tid, module = heapq.heappop(self._timers)
        task = self._tasks.get(tid)
        if module is None:
            self._release(tid)
        elif task is None:
            return
        elif task.waiting:
            task.waiting = False
            try:
                ptrace.get_registers(tid, self._registers)
                self._ask(task, module, again=True)
            except ProcessLookupError:
                pass
            except Exception as error:
                self._let_go(tid, ptrace.EVENT_SECCOMP << 16, error)

    def _release(self, tid: int) -> None:
        """The time in which one task alone may run split locks is over (mitigation): it asks again."""
        if self.policy.holder != tid:
            return
        self.policy.holder = None
        task = self._tasks.get(tid)
        if task:
            self._forget_slots(task)

    def _dispatch(self, tid: int, status: int) -> None:
        task = self._tasks.get(tid)
        try:
            if os.WIFSTOPPED(status):
                if task is None and status >> 16 == ptrace.EVENT_EXIT:  # killed before it ran
                    ptrace.request(ptrace.CONT, tid)
                elif task is None:  # a new task's first stop, before its parent's event
                    self._unclaimed[tid] = process = origin(tid)
                    if not any(t.pid == process for t in self._tasks.values()):
                        self._adopt(tid, space_of(tid, self._spaces()))  # the parent is dead already
                else:
                    self._stopped(task, status)
            else:
                self._ended(tid, status)
        except TaskGone as gone:
            self._dispatch(tid, gone.status)
        except ProcessLookupError:  # killed while stopped: its end is still to come
            pass
        except Exception as error:  # mostly a process that even its tracer may not read (no dump, no read permission)
            self._let_go(tid, status, error)

    def _let_go(self, tid: int, status: int, error: Exception) -> None:
        """We cannot do what a task's stop was for: that is said, and it runs on with the signal that it stopped for."""
        try:
            why = "may not be read" if isinstance(error, PermissionError) else "could not be followed"
            self.watch.note(f"process {tid}", f"{why}: {failure(error)}", image=False)
        except MemoryError:  # not even a line; the task must run on
            self.lost += 1
        number = status >> 8 & 0xFF
        try:
            ptrace.request(ptrace.CONT, tid, 0, number if status >> 16 == 0 and number < _SYSCALL_STOP else 0)
        except OSError:  # it runs already, or is gone
            pass

    def _stopped(self, task: Task, status: int) -> None:
        number, event = status >> 8 & 0xFF, status >> 16
        if event == 0:
            if number == signal.SIGTRAP | 0x80:
                self.signals.returned(task)
                return
            asks = self.signals.deliver(task, number)
            if asks:
                self._registers = asks[1]
                self._ask(task, asks[0])
        elif event == ptrace.EVENT_SECCOMP:
            self._call(task)
        elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
            self._forked(task, event)
            task.resume(0)
        elif event == ptrace.EVENT_EXEC:
            self._exec(task)
        elif event == ptrace.EVENT_EXIT:
            self._exiting(task)
            task.resume(0)
        elif event == ptrace.EVENT_STOP and number in _STOPS:
            ptrace.request(ptrace.LISTEN, task.tid)
            if task.tid == self._main and number != signal.SIGSTOP and os.getpgid(task.tid) == os.getpgrp():
                os.kill(os.getpid(), signal.SIGSTOP)  # job control: the shell waits for us to stop too
        else:
            task.resume(0)
        while task.stopped:
            os.kill(task.pid, task.stopped.pop())

    # -- events --------------------------------------------------------------------------------

    def _call(self, task: Task) -> None:
        """A system call that the filter stops at."""
        registers = self._registers
        ptrace.get_registers(task.tid, registers)
        number, space = registers[ptrace.ORIG_RAX], task.space
        if space.strict and ptrace.event_message(task.tid) == strict.MARK:
            strict.punish(task, space.tasks == {task.tid}, registers)
        elif number == MAGIC:
            module = space.arena_at(registers[ptrace.RIP])
            if module and registers[ptrace.RIP] == module.arena + module.plan.asked:
                self._ask(task, module)
                return
        elif number in (calls.EXECVE, calls.EXECVEAT):
            space.exec_seen = True
            if space.hit:
                space.snapshot(task.tid)
            self.watch.scan_anonymous(task.tid, space)
        elif number in (calls.PRCTL, calls.SECCOMP):
            if strict.is_asked(task.tid, registers):
                space.strict = strict.put(task, registers)
                if not space.strict:
                    self.watch.note(program_of(task.tid), NOT_STRICT)
            else:
                self._finish_call(task)
            if space.strict or registers[ptrace.RAX] == 0:
                self._own_filter(task)
        elif number == calls.MREMAP:
            self.watch.before_mremap(task.tid, space, registers)
        elif number == calls.SHMAT:
            space.anonymous = True
        elif number == calls.CLONE:
            registers[ptrace.RDI] &= ~calls.CLONE_UNTRACED  # or it would run unseen, with our filter on
            ptrace.set_registers(task.tid, registers)
        elif number == calls.MMAP:
            file = self.watch.before_mmap(task.tid, space, registers)
            if file:
                asked = ptrace.Registers.from_buffer_copy(registers)
                self._finish_call(task)
                self.watch.after_mmap(task.tid, space, file, asked, registers, task.stopped)
        elif not self.watch.before_mprotect(task.tid, space, registers):  # nor pkey_mprotect
            asked = ptrace.Registers.from_buffer_copy(registers)
            self._finish_call(task)
            self.watch.after_mprotect(task.tid, space, asked, registers, task.stopped)
        task.resume(0)

    def _ask(self, task: Task, module: Module, again: bool = False) -> None:
        """A task asks whether it may take a split lock; its registers are in `_registers`."""
        verdict, when = self.hits.ask(task, module, self._registers, again)
        if verdict == WAIT:
            task.waiting = True
            self._timer(when, task.tid, module)
            return
        if self.policy.holder == task.tid:
            self._timer(self.policy.until, task.tid, None)
        task.resume(0)

    def _timer(self, when: float, tid: int, module: Module | None) -> None:
        self._ties += 1
        heapq.heappush(self._timers, (when, self._ties, tid, module))

    def _forget_slots(self, task: Task) -> None:
        """Have the next task with this one's thread pointer, or this one itself, ask again."""
        try:
            memory = Memory(task.tid, write=True)
        except OSError:  # it may not be read any more
            return
        with memory:
            try:
                for slot in task.slots:
                    memory.write(slot, bytes(8))
            except OSError:  # the module was unmapped by the program, its arena with it
                pass
        task.slots.clear()

    def _finish_call(self, task: Task) -> None:
        """From a call's entry to its exit; leaves the registers there in `_registers`."""
        ptrace.request(ptrace.SYSCALL, task.tid)
        inject.wait(task.tid, task.stopped)
        ptrace.get_registers(task.tid, self._registers)

    def _own_filter(self, task: Task) -> None:
        """The program has put up a seccomp filter (or asked of one): from now on no system call of ours is safe."""
        task.space.filtered = True
        for module in task.space.modules:
            if module.arena:
                inject.set_flag(task.tid, module)

    def _forked(self, task: Task, event: int) -> None:
        child = ptrace.event_message(task.tid)
        ptrace.get_registers(task.tid, self._registers)
        flags = clone_flags(task, child, event, self._registers)
        shared = flags & CLONE_VM
        pid = task.pid if flags & CLONE_THREAD else child
        if pid == child:
            self.processes += 1
        space = task.space if shared else task.space.fork()
        new = self._tasks[child] = Task(child, pid, space)
        if child in self._unclaimed:
            del self._unclaimed[child]
            new.resume(0)

    def _exec(self, task: Task) -> None:
        former = ptrace.event_message(task.tid)
        old = task.space
        space = Space()
        space.filtered = old.filtered
        if old.hit and not old.exec_seen:  # int 0x80, or a filter of the program's own hid the call
            old.unread = True
        old.live -= {task.tid, former}  # their counts were read when execve was called
        if former != task.tid and former in self._tasks:  # exec from a thread: it takes the leader's number
            self._drop(self._tasks.pop(former))
        self._adopt_unclaimed(task)
        self._drop(task)
        task = self._tasks[task.tid] = Task(task.tid, task.pid, space)
        ptrace.get_registers(task.tid, self._registers)
        self.watch.at_exec(task.tid, space, self._registers, task.stopped)
        task.resume(0)
        while task.stopped:
            os.kill(task.pid, task.stopped.pop())

    def _exiting(self, task: Task) -> None:
        space = task.space
        if ptrace.event_message(task.tid) & 0x7F == signal.SIGKILL:
            self._adopt_children(task)
        space.live.discard(task.tid)
        if space.hit:
            space.snapshot(task.tid)
            if space.live:
                self._forget_slots(task)
        if not space.live:
            self.watch.scan_anonymous(task.tid, space)

    def _adopt_children(self, task: Task) -> None:
        """A task was killed: a child that it could not report any more is ours all the same."""
        for child in children(task.tid):
            if child not in self._tasks and tracer_of(child) == os.getpid():
                self._adopt(child, task.space)

    def _adopt(self, child: int, parent: Space) -> None:
        """A child whose parent was killed before it could report the fork."""
        self.processes += 1
        new = self._tasks[child] = Task(child, child, parent.fork())
        if self._unclaimed.pop(child, None) is not None:
            new.resume(0)

    def _spaces(self) -> list[Space]:
        """Those that there are, then the last few that were."""
        return [*{id(t.space): t.space for t in self._tasks.values()}.values(), *reversed(self._ended_spaces)]

    def _ended(self, tid: int, status: int) -> None:
        if tid == self._main:
            self.exit_status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self._unclaimed.pop(tid, None)
        task = self._tasks.pop(tid, None)
        if task is None:
            return
        if not any(t.pid == task.pid for t in self._tasks.values()):  # else another thread may report it yet
            self._adopt_unclaimed(task)
        self._drop(task)

    def _adopt_unclaimed(self, task: Task) -> None:
        """No thread of a task's process is left that could report a fork: its new tasks are ours all the same."""
        for child in [c for c, process in self._unclaimed.items() if process == task.pid]:
            self._adopt(child, task.space)

    def _drop(self, task: Task) -> None:
        """A task has left its space; the last one closes it."""
        space = task.space
        space.tasks.discard(task.tid)
        if task.tid in space.live:
            space.live.discard(task.tid)
            if space.hit and not space.live:
                space.unread = True
        self.policy.forget(task.tid)
        if not space.tasks:
            self.lost += space.unread
            self.hits.collect(space, whole=not space.unread)
            self.hits.forget(space)
            self._ended_spaces = [*self._ended_spaces[-15:], space]
