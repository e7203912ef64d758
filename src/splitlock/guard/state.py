"""What is kept beside the gate while it is up: the policy's words, and how it was started.

In /run, which like the pins does not outlive the boot. The gate itself never reads it.
"""

from __future__ import annotations

import os

import msgspec

from splitlock._errors import SplitlockError

RUN = "/run/splitlock"
PATH = f"{RUN}/guard.json"
LOG = "/var/log/splitlock/guard.jsonl"


class RuleWords(msgspec.Struct):
    """What a rule says for people."""

    verdict: str
    reason: str  #: its own; may be empty
    why: str  #: what it asked for, where it gives no reason
    log: str
    imports: list[str]


class Words(msgspec.Struct):
    """What a policy says for people."""

    policy: str
    rules: list[RuleWords]


class State(msgspec.Struct, kw_only=True):
    """How the gate was started."""

    gate: str  #: `bpf` or `fanotify`
    started: str  #: UTC, ISO 8601
    audit: bool
    words: Words
    log: str = LOG  #: the file the decisions go to
    pid: int = 0  #: of the daemon, under fanotify
    pid_started: int = 0  #: and when it started, in the kernel's ticks: another process may get its number
    watched: list[str] = []  #: the file systems, under fanotify
    why: str = ""  #: why it is no BPF gate


def load(path: str = PATH) -> State | None:
    """The state of the running gate; None where there is none, or none that can be read."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=State)
    except (OSError, msgspec.DecodeError):
        return None


def save(state: State, path: str = PATH) -> None:
    """Put it there, whole or not at all. Raises SplitlockError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.encode(state) + b"\n")
        os.replace(f"{path}.new", path)
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; the gate's state cannot be kept", 2) from None


def forget(path: str = PATH) -> None:
    """The gate is down."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
