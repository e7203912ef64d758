"""The client of QEMU's gdb stub: what is no packet, or ends too soon, is an error that says so."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from splitlock._errors import SplitlockError
from splitlock.guest.stub.cpu import Cpu
from splitlock.guest.stub.protocol import GoneError, Stub


def _packet(words: bytes) -> bytes:
    return b"+$%s#%02x" % (words, sum(words) & 255)


@pytest.fixture
def stub() -> Callable[[bytes], Stub]:
    """A stub whose other end has said this, after its greeting, and has gone."""

    def made(said: bytes) -> Stub:
        ours, theirs = socket.socketpair()
        theirs.sendall(_packet(b"l<target>") + said)
        theirs.shutdown(socket.SHUT_WR)
        made_of.append(theirs)
        return Stub(ours)

    made_of: list[socket.socket] = []
    return made


def test_answers(stub: Callable[[bytes], Stub]) -> None:
    """An answer, and a stop that comes before it and is not lost."""
    found = stub(b"+" + _packet(b"T05thread:02;") + _packet(b"00ff"))
    assert found.ask("m0,2") == "00ff"
    assert found.stopped() == 1


@pytest.mark.parametrize("said", [b"", b"+", b"$OK", b"$OK#", b"no packet", b"\0\xff" * 500])
def test_gone(stub: Callable[[bytes], Stub], said: bytes) -> None:
    """Its end in the middle of anything."""
    with pytest.raises(GoneError):
        stub(said).ask("?")


@pytest.mark.parametrize(
    ("said", "words"), [(b"$OK#00", "wrong sum"), (_packet(b"E22"), "says 'E22'"), (_packet(b"\xff\x80"), "says")]
)
def test_refused(stub: Callable[[bytes], Stub], said: bytes, words: str) -> None:
    """One line."""
    with pytest.raises(SplitlockError, match=words):
        stub(said).stop_at(0)


@pytest.mark.parametrize("said", [b"E14", b"zz", b"", b"0"])
def test_no_memory(stub: Callable[[bytes], Stub], said: bytes) -> None:
    """What is not hexadecimal is nothing."""
    assert stub(_packet(b"OK") + _packet(said)).read(0, 0, 2) == b""


@pytest.mark.parametrize("said", [b"W00", b"X06"])
def test_ended(stub: Callable[[bytes], Stub], said: bytes) -> None:
    """QEMU says that it ends."""
    with pytest.raises(GoneError):
        stub(_packet(said)).stopped()


@pytest.mark.parametrize("said", [b"T05", b"T05thread:", b"T05thread:zz;", b"T05thread:00;", b"S05"])
def test_stop_of_nobody(stub: Callable[[bytes], Stub], said: bytes) -> None:
    """A stop that names no CPU is the first one's."""
    assert stub(_packet(said)).stopped() == 0


@pytest.mark.parametrize("text", ["", "unknown command", "RAX=zz", "EAX=00000000 CR0=1"])
def test_no_registers(stub: Callable[[bytes], Stub], text: str) -> None:
    """A monitor that prints something else."""
    shown = _packet(b"O" + text.encode().hex().encode()) if text else b""
    with pytest.raises(SplitlockError, match="shows no"):
        Cpu(stub(_packet(b"OK") + shown + _packet(b"OK")), 0)
