"""`splitlock watch` on a machine of its own: follows /dev/kmsg, names code of living tasks, counts what it missed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from guard.machine import Machine, kernel, splitlock_payload

_WAITS = """
#include <unistd.h>
__attribute__((noinline)) void bump(int *counter) { __asm__ volatile("lock addl $1, %0" : "+m"(*counter)); }
int main(void) { static int counter; bump(&counter); pause(); }
"""
_FLOOD = """
with open("/dev/kmsg", "w", buffering=1) as file:
    for number in range(30000):
        file.write(f"<6>line {number} of many that say nothing of locks\\n")
"""
_LAST = """
import os
file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
try:
    while True:
        last = os.read(file, 8192)
except BlockingIOError:
    print("last", last.split(b",")[1].decode())
"""
# The kernel's line, by another's hand: this processor detects nothing. Then the watch stands still while more is logged
# than the buffer holds.
_SCRIPT = """
cd /tmp
/payload/waits & task=$!
python3 -m splitlock watch --format json -o out & watch=$!
for turn in $(seq 60); do
    [ -s out ] && break
    echo "<4>x86/split lock detection: #AC: waits/$task took a split_lock trap at address: $1" >/dev/kmsg
    sleep 1
done
kill -STOP $watch
python3 /payload/flood.py
echo "<4>x86/split lock detection: #DB: gone/4194304 took a bus_lock trap at address: 0x10" >/dev/kmsg
kill -CONT $watch
for turn in $(seq 60); do grep -q bus_lock out && break; sleep 1; done
kill -TERM $watch; wait $watch; echo "status $?"  # not INT: a shell has what it starts with & ignore it
python3 /payload/last.py
cat out; kill $task  # or the output stays open
"""


@pytest.mark.slow
def test_in_a_guest(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.mkdir()
    (tmp_path / "waits.c").write_text(_WAITS)
    waits = payload / "waits"
    subprocess.run(["gcc", "-O2", "-g", "-static", "-no-pie", "-o", waits, tmp_path / "waits.c"], check=True)
    (payload / "flood.py").write_text(_FLOOD)
    (payload / "last.py").write_text(_LAST)
    splitlock_payload(payload)
    listing = subprocess.run(["objdump", "-d", waits], capture_output=True, text=True, check=True).stdout
    bump = listing[listing.index("<bump>:") :]
    address = int(re.search(r"^ *([0-9a-f]+):\t.*lock addl", bump, re.M)[1], 16)  # type: ignore[index]
    with Machine(kernel("amd64"), payload, command_line="printk.devkmsg=on") as guest:
        words = ["sh", "-c", _SCRIPT, "sh", f"{address:#x}"]
        done = guest.run(words, timeout=250, env={"PYTHONPATH": "/payload/python"}).ok()
    *events, summary = done.lines()
    trap = next(event for event in events if event["kind"] == "trap")
    assert trap["process"]["command"] == ["/payload/waits"]
    assert (trap["place"]["function"], trap["place"]["offset"]) == ("bump", f"{address:#x}")
    assert trap["place"]["instruction"].startswith("lock add dword ptr")
    assert trap["time"]
    assert trap["speaker"] == "user space"  # the kernel gives what is written to /dev/kmsg a facility of its own
    gone = next(event for event in events if event["exception"] == "#DB")
    assert "has ended" in gone["note"]
    lost = [event["number"] for event in events if event["kind"] == "lost"]
    assert sum(lost) == summary["lost"] > 1000
    # every record up to the last was read or counted as lost
    last = int(re.search(r"^last (\d+)", done.out, re.M)[1])  # type: ignore[index]
    assert summary["read"] + summary["lost"] == last + 1
    assert summary["others"] == {"user space": sum(bool(event["speaker"]) for event in events)}
    assert (summary["traps"], summary["whole"]) == (0, False)
    assert "status 2" in done.out
