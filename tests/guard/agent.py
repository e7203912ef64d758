"""Runs inside a guest: does what the host's machine.py asks for over a virtio port, one JSON line each way.

As PID 1 it is the whole of user space; under systemd it is a service. Needs nothing but Python's own library.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "PYTHONPATH": "/payload/python", "LANG": "C.UTF-8", "NO_COLOR": "1"}


def port() -> int:
    """The device of the virtio port called agent, opened."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == "agent":
                return os.open(f"/dev/{name.parent.name}", os.O_RDWR)
        time.sleep(0.05)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command to its end."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            request["run"], input=base64.b64decode(request["input"]), capture_output=True, check=False, cwd="/tmp",
            timeout=request["timeout"], env={**ENVIRONMENT, **request["env"]},
        )  # fmt: skip
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        status, out, err = -124, error.stdout or b"", error.stderr or b""
    except OSError as error:
        status, out, err = 127, b"", str(error).encode()
    return {
        "status": status, "out": out.decode(errors="replace"), "err": err.decode(errors="replace"),
        "seconds": time.monotonic() - begin,
    }  # fmt: skip


def main() -> None:
    """Answer for ever."""
    channel = port()

    def say(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(channel, data[:30000]) :]

    say({"hello": os.uname().release})
    rest = b""
    while True:
        chunk = os.read(channel, 1 << 16)
        if not chunk:  # nobody at the other end
            time.sleep(0.05)
            continue
        rest += chunk
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            request = json.loads(line)
            if "reset" in request:
                os.sync()
                Path("/proc/sysrq-trigger").write_text("b")
            else:
                say(run(request))


if __name__ == "__main__":
    main()
