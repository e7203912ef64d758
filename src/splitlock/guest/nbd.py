"""An image of any format as plain bytes: qemu-storage-daemon serves it, read-only, and we ask through a socket.

Source: the NBD protocol (doc/proto.md of nbd), fixed newstyle negotiation with NBD_OPT_EXPORT_NAME.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import time

_MAGIC, _OPTION = 0x4E42444D41474943, 0x49484156454F5054
_REQUEST, _REPLY = 0x25609513, 0x67446698
_FIXED, _NO_ZEROES = 1, 2
_EXPORT_NAME, _READ, _DISCONNECT = 1, 0, 2
_NAME = b"image"
_PATIENCE = 20.0  # seconds
_MOST = 1 << 24  # bytes a request


class Served:
    """One image. Raises OSError where it cannot be served."""

    def __init__(self, path: str, kind: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="splitlock-nbd-")
        place = os.path.join(self._directory.name, "socket")
        file = os.path.abspath(path).replace(",", ",,")
        self._daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon",
             "--blockdev", f"driver={kind},node-name=image,read-only=on,file.driver=file,file.filename={file}",
             "--nbd-server", f"addr.type=unix,addr.path={place}",
             "--export", f"type=nbd,id=image,node-name=image,name={_NAME.decode()}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE)
        try:
            self._connect(place)
            self.size = self._negotiate()
        except BaseException:
            self.close()
            raise

    def _connect(self, place: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._socket.connect(place)
                return
            except OSError:
                if self._daemon.poll() is not None or time.monotonic() > deadline:
                    self._daemon.kill()
                    said = self._daemon.communicate()[1].decode("utf-8", "replace").strip()
                    raise OSError(f"qemu-storage-daemon: {said.splitlines()[-1] if said else 'no answer'}") from None
                time.sleep(0.02)

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._socket.recv(size - len(found))
            if not data:
                raise OSError("qemu-storage-daemon has gone")
            found += data
        return found

    def _negotiate(self) -> int:
        """Open the export; gives its size."""
        magic, option, flags = struct.unpack(">QQH", self._receive(18))
        if (magic, option) != (_MAGIC, _OPTION):
            raise OSError("qemu-storage-daemon does not speak NBD")
        self._socket.sendall(struct.pack(">I", flags & (_FIXED | _NO_ZEROES)))
        self._socket.sendall(struct.pack(">QII", _OPTION, _EXPORT_NAME, len(_NAME)) + _NAME)
        (size,) = struct.unpack(">Q", self._receive(10)[:8])
        if not flags & _NO_ZEROES:
            self._receive(124)
        return int(size)

    def read(self, at: int, size: int) -> bytes:
        """So many bytes, or fewer at the end. Raises OSError."""
        size = max(0, min(size, self.size - at))
        found = b""
        while len(found) < size:
            part = min(size - len(found), _MOST)
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _READ, 0, at + len(found), part))
            magic, error, _ = struct.unpack(">IIQ", self._receive(16))
            if magic != _REPLY or error:
                raise OSError(error, "the image cannot be read there")
            found += self._receive(part)
        return found

    def close(self) -> None:
        """Let the image go."""
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self._socket.close()
        self._daemon.terminate()
        self._daemon.communicate()
        self._directory.cleanup()
