"""QEMU's gdb stub: the remote serial protocol (gdb's manual, appendix E), as much of it as is needed here.

A client of our own: on PyPI are drivers of gdb and servers of this protocol, but no client that is kept up.
"""

from __future__ import annotations

import re
import socket

from splitlock._errors import SplitlockError

_PACKET = re.compile(rb"\$([^#]*)#([0-9a-f]{2})", re.DOTALL)
_PATIENCE = 30.0  # seconds for an answer, which takes a tenth of a millisecond
_STOPPED = (b"T", b"S", b"W", b"X")  # what packets begin with that answer no question
_MOST = 1 << 20  # bytes that may wait for the end of a packet
_THREAD = re.compile(rb"thread:(?:p[0-9a-f]+\.)?([0-9a-f]{1,8});")


class GoneError(Exception):
    """QEMU has ended."""


class Stub:
    """The stub at the other end of `link`. While the guest runs nothing may be asked."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = b""
        self._stops: list[bytes] = []
        self._chosen = self._shown = -1
        link.settimeout(_PATIENCE)
        self.ask("qXfer:features:read:target.xml:0,fff")  # QEMU 7.2: no `p` and `P` without it

    def fileno(self) -> int:
        """What is to be read, for select(2), while the guest runs."""
        return self._link.fileno()

    def close(self) -> None:
        """Free it."""
        self._link.close()

    def ask(self, words: str) -> str:
        """The answer to a packet. Raises GoneError, and SplitlockError where none comes."""
        self._send(words)
        while True:
            packet = self._packet(words)
            if packet.startswith(_STOPPED):
                self._stops.append(packet)
            else:
                return packet.decode("ascii", "replace")

    def monitor(self, command: str) -> str:
        """What QEMU's monitor says to a command."""
        said = ""
        answer = self.ask(f"qRcmd,{command.encode().hex()}")
        while answer.startswith("O") and answer != "OK":
            said += _bytes(answer[1:]).decode("ascii", "replace")
            answer = self._packet(command).decode("ascii", "replace")
        return said

    def registers(self, cpu: int) -> str:
        """What `info registers` says of a CPU."""
        if self._shown != cpu:
            self.monitor(f"cpu {cpu}")
            self._shown = cpu
        return self.monitor("info registers")

    def register(self, cpu: int, number: int) -> int:
        """A register by its number in gdb's description of x86-64 (gdb-xml/i386-64bit.xml)."""
        self._choose(cpu)
        return int.from_bytes(_bytes(self.ask(f"p{number:x}")), "little")

    def set_register(self, cpu: int, number: int, value: int) -> None:
        """Write one. Raises SplitlockError where that is refused."""
        self._choose(cpu)
        self._must(f"P{number:x}={value.to_bytes(8, 'little').hex()}")

    def read(self, cpu: int, address: int, size: int) -> bytes:
        """Memory at a linear address, as far as it is mapped there."""
        self._choose(cpu)
        return _bytes(self.ask(f"m{address:x},{size:x}"))

    def write(self, cpu: int, address: int, data: bytes) -> bool:
        """Write memory; whether it is all there."""
        self._choose(cpu)
        return self.ask(f"M{address:x},{len(data):x}:{data.hex()}") == "OK"

    def stop_at(self, address: int) -> None:
        """Stop every CPU that is about to execute what is at a linear address, whatever is mapped there."""
        self._must(f"Z0,{address:x},1")

    def go_on(self) -> None:
        """Let the guest run."""
        self._send("vCont;c")

    def step(self, cpu: int) -> None:
        """Let a CPU execute one instruction, stops or not, while the others stand still."""
        self._send(f"vCont;s:{cpu + 1:x}")

    def stopped(self) -> int | None:
        """The CPU that has stopped, None for none yet; waits until something comes. Raises GoneError."""
        self._chosen = -1  # QEMU chooses the CPU that stops
        while not self._stops:
            packet = self._next()
            if packet is None:
                self._fill("")
                if not _PACKET.search(self._buffer):
                    return None
            elif packet.startswith(_STOPPED):
                self._stops.append(packet)
        packet = self._stops.pop(0)
        if packet.startswith((b"W", b"X")):
            raise GoneError
        found = _THREAD.search(packet)
        return int(found[1], 16) - 1 if found and int(found[1], 16) else 0

    def _choose(self, cpu: int) -> None:
        if self._chosen != cpu:
            self._must(f"Hg{cpu + 1:x}")
            self._chosen = cpu

    def _must(self, words: str) -> None:
        if (answer := self.ask(words)) != "OK":
            raise SplitlockError(f"--slow: QEMU's gdb stub says {answer[:40]!r} to {words.partition(',')[0]}", 2)

    def _send(self, words: str) -> None:
        data = words.encode()
        try:
            self._link.sendall(b"$%s#%02x" % (data, sum(data) & 255))
        except OSError:
            raise GoneError from None

    def _packet(self, words: str) -> bytes:
        while (packet := self._next()) is None:
            self._fill(words)
        return packet

    def _next(self) -> bytes | None:
        """The next whole packet of those that came, taken away and acknowledged."""
        found = _PACKET.search(self._buffer)
        if found is None:
            return None
        self._buffer = self._buffer[found.end() :]
        if sum(found[1]) & 255 != int(found[2], 16):
            raise SplitlockError("--slow: QEMU's gdb stub sent a packet with a wrong sum", 2)
        try:
            self._link.sendall(b"+")
        except OSError:
            raise GoneError from None
        return found[1]

    def _fill(self, words: str) -> None:
        try:
            data = self._link.recv(1 << 16)
        except TimeoutError:
            raise SplitlockError(f"--slow: QEMU's gdb stub does not answer {words[:40]}", 2) from None
        except OSError:
            data = b""
        if not data:
            raise GoneError
        self._buffer += data
        if len(self._buffer) > _MOST:
            raise SplitlockError("--slow: QEMU's gdb stub sends no packets", 2)


def _bytes(text: str) -> bytes:
    """Of hexadecimal digits; nothing where they are none, as in an error."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
