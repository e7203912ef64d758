"""Starting a program under the tracer: fork, seize, filter, exec."""

from __future__ import annotations

import errno
import os
import signal

from splitlock._errors import SplitlockError
from splitlock.process import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def start(
    argv: Sequence[str], env: dict[str, str] | None, unblock: Iterable[int], watched: bool = True
) -> tuple[int, int]:
    """Start `argv`, seized and filtered if `watched`; gives its pid and a descriptor for `exec_error`.

    `unblock`: signals that we block and the program shall not. Raises SplitlockError when it cannot
    be traced at all.
    """
    if env is None:
        env = dict(os.environ)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            if os.read(go_read, 1):
                _become(argv, env, unblock, watched)
        except OSError as error:
            os.write(error_write, f"{error.errno} {error.strerror}".encode())
        except BaseException as error:  # nothing of ours may run on in the child
            os.write(error_write, f"0 {error}".encode())
        finally:
            os._exit(125)
    os.close(go_read)
    os.close(error_write)
    try:
        if watched:
            ptrace.request(ptrace.SEIZE, pid, 0, ptrace.OPTIONS)
    except OSError as error:
        reason = _refused(error, pid)
        os.close(go_write)
        os.close(error_read)
        os.waitpid(pid, 0)
        raise SplitlockError(reason) from None
    os.write(go_write, b"1")
    os.close(go_write)
    return pid, error_read


def _become(argv: Sequence[str], env: dict[str, str], unblock: Iterable[int], watched: bool) -> None:
    from splitlock.process import filter as seccomp

    # Python ignores these at start; a program expects the default.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, unblock)
    if watched:
        seccomp.install()
    try:
        os.execvpe(argv[0], list(argv), env)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # No interpreter named: a shell script, as execvp(3) has it.
        os.execve("/bin/sh", ["/bin/sh", *argv], env)


def exec_error(descriptor: int, program: str) -> SplitlockError | None:
    """Why the program did not start, once the child is gone; None when it did. Closes the descriptor."""
    with os.fdopen(descriptor, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    if not said:
        return None
    number, _, text = said.partition(" ")
    if int(number) in (errno.ENOENT, errno.ENOTDIR):
        return SplitlockError(f"{program}: not found (give a path, or a name on PATH)", 127)
    if int(number) in (errno.EACCES, errno.EISDIR, errno.ENOEXEC, errno.ELIBBAD):
        return SplitlockError(f"{program}: cannot execute: {text}", 126)
    return SplitlockError(f"{program}: cannot start: {text}")


def _refused(error: OSError, pid: int) -> str:
    """What keeps us from tracing our child `pid`, and what to do about it."""
    status = _read(f"/proc/{pid}/status")
    tracer = next((line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        return f"cannot trace: process {tracer} (a debugger, strace or splitlock) traces us already; run splitlock alone"
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
