"""Starting a program under the tracer: fork, seize, filter, exec.

The fork comes first, so that the child prepares itself while its parent still imports the tracer:
at start-up the interpreter's own work is most of what a person waits for.
"""

from __future__ import annotations

import errno
import os
import signal

from splitlock._environment import given
from splitlock._errors import SplitlockError, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    Environment = Mapping[str, str] | Mapping[bytes, bytes]

#: errors of execve(2) that say nothing of the program's file; 0: what failed was ours
_NOT_ITS_FAULT = {0, errno.E2BIG, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
_SAID = 1024  # bytes that the child may say when it cannot start the program
#: signals that we block, and wait for; but for SIGCHLD they go on to the program
WAITED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP,
    signal.SIGCHLD,
}  # fmt: skip


class Child:
    """The program to be, forked and waiting for `go`. `pid` is its process, `watched` whether it will be traced.

    Raises SplitlockError where there is no process to be had.
    """

    def __init__(self, argv: Sequence[str], env: Environment | None = None, watched: bool = True) -> None:
        self.program = argv[0]
        self.watched = watched
        if watched and not os.path.exists("/proc/self/mem"):
            raise SplitlockError("cannot watch: /proc is not mounted here; mount it, or use --split-lock-detect=off")
        of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
        try:
            if env is None:
                env = given()
            go, self._go = os.pipe2(os.O_CLOEXEC)
            self._error, error = os.pipe2(os.O_CLOEXEC)
            self.pid = os.fork()
        except OSError as failed:
            raise SplitlockError(f"{self.program}: cannot be started: {failure(failed)}") from None
        if self.pid == 0:
            os.close(self._go)
            signal.signal(signal.SIGCHLD, of_children)
            _become(go, error, argv, env, WAITED - before, watched)
        os.close(go)
        os.close(error)

    def go(self) -> None:
        """Seize it and let it exec. Raises SplitlockError when it cannot be traced."""
        from splitlock.process import ptrace

        reason = ""
        if self.watched and not ptrace.has_fsgsbase():
            reason = "cannot watch: no FSGSBASE here; it takes Linux 5.9 and a CPU of 2012 or later"
        try:
            if self.watched and not reason:
                ptrace.request(ptrace.SEIZE, self.pid, 0, ptrace.OPTIONS)
        except OSError as error:
            reason = _refused(error, self.pid)
        if reason:
            os.close(self._go)  # it reads the end of the pipe, and leaves
            os.close(self._error)
            os.waitpid(self.pid, 0)
            raise SplitlockError(reason)
        try:
            os.write(self._go, b"1")
        except BrokenPipeError:  # it has failed already, and says so in `check`
            pass
        os.close(self._go)

    def check(self) -> None:
        """After its end: raises SplitlockError when the program did not even start."""
        said = os.read(self._error, _SAID).decode(errors="replace")  # no file object: memory may be short by now
        os.close(self._error)
        if not said:
            return
        number, _, text = said.partition(" ")
        raise not_started(self.program, int(number), text)


def not_started(program: str, number: int, text: str) -> SplitlockError:
    """What is to be said of a program that the kernel would not execute, by the error and its text."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        if "/" in program and os.path.exists(program):  # a script's, or the dynamic linker
            return SplitlockError(f"{program}: what its file names as its interpreter is not there", 127)
        return SplitlockError(f"{program}: not found (give a path, or a name on PATH)", 127)
    if number in _NOT_ITS_FAULT:
        return SplitlockError(f"{program}: cannot start: {text}")
    return SplitlockError(f"{program}: cannot execute: {text}", 126)


def become(argv: Sequence[str], env: Environment) -> OSError:
    """Turn into the program. Gives what kept us from it."""
    # Python ignores these at start; a program expects the default.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        _execute(argv, env)
    except OSError as failed:
        return failed


def _become(
    go: int, error: int, argv: Sequence[str], env: Environment, unblock: set[signal.Signals], watched: bool
) -> None:
    """In the child: turn into the program once the parent says so. Does not return."""
    try:
        if watched:
            from splitlock.process import filter as seccomp
        if os.read(go, 1):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, unblock)
            if watched:
                seccomp.install()
            why = become(argv, env)
            os.write(error, f"{why.errno or 0} {why.strerror or why}".encode()[:_SAID])
    except BaseException as failed:  # nothing of ours may run on in the child
        os.write(error, f"0 {failure(failed)}".encode()[:_SAID])
    finally:
        os._exit(125)


def _execute(argv: Sequence[str], env: Environment) -> NoReturn:
    try:
        os.execvpe(argv[0], list(argv), env)
    except OSError as failed:
        if failed.errno != errno.ENOEXEC:
            raise
        # No interpreter named: a shell script, as execvp(3) has it.
        script = argv[0]
        if "/" not in script:
            places = (os.path.join(place, script) for place in os.get_exec_path())
            script = next(path for path in places if os.access(path, os.X_OK))
        os.execve("/bin/sh", ["/bin/sh", script, *argv[1:]], env)


def _refused(error: OSError, pid: int) -> str:
    """What keeps us from tracing our child `pid`, and what to do about it."""
    status = _read(f"/proc/{pid}/status")
    tracer = next((line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        return (
            f"cannot trace: process {tracer} (a debugger, strace or splitlock) traces us already; run splitlock alone"
        )
    if _read("/proc/sys/kernel/yama/ptrace_scope").strip() == "3":
        return "cannot trace: kernel.yama.ptrace_scope is 3, which forbids ptrace until the next boot"
    return (
        f"cannot trace: {error.strerror}; in a container, allow ptrace "
        "(docker run --cap-add SYS_PTRACE --security-opt seccomp=unconfined)"
    )


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
