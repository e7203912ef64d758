"""The command line with oopses: `explain` and `watch` on consoles of real kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "linux" / "data"
SCHEMA = json.loads((ROOT / "docs" / "watch.schema.json").read_text())
TRAP = "[   1.5] x86/split lock detection: #AC: CHTTPClientThre/{pid} took a split_lock trap at address: 0x{at:x}\n"


def splitlock(*words: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """The program, with a log on standard input."""
    command = [sys.executable, "-m", "splitlock", *map(str, words)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


def dump(name: str) -> str:
    """A console's dump."""
    return (DATA / f"oops-{name}.txt").read_text()


def test_explain_takes_a_whole_dump() -> None:
    done = splitlock("explain", text=dump("xdp-7.1.8"))
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "the Linux kernel stopped the machine: the function skb_clone took a split lock" in text
    assert "4 bytes at 0xff33735342d478fe: 2 on one cache line, 2 on the next" in text
    assert "known cause: A bug in Linux: while an XDP program" in text
    assert "https://git.kernel.org/linus/dc0df5a0c62c" in text


def test_explain_as_json_fits_its_schema() -> None:
    done = splitlock("explain", "--format", "json", text=dump("7.2-timer"))
    event = json.loads(done.stdout)
    jsonschema.validate(event, SCHEMA)
    assert (event["kind"], event["detail"]) == ("oops", "splitoops_get+0x64/0x90 [splitoops]")
    assert event["oops"]["operand"]["address"] == "0xffffffffc020107d"
    assert event["oops"]["panic"] == "Fatal exception in interrupt"
    assert [frame["context"] for frame in event["oops"]["frames"]][:2] == ["IRQ", "IRQ"]


def test_explain_without_the_instruction_is_1() -> None:
    done = splitlock("explain", text=dump("6.1-no-code"))
    assert done.returncode == 1
    assert "--module splitoops.ko" in done.stdout


@pytest.mark.parametrize("verb", ["explain", "watch"])
@pytest.mark.parametrize("option", ["--vmlinux", "--module", "--debug", "--causes"])
def test_a_file_that_is_not_there(verb: str, option: str, tmp_path: Path) -> None:
    words = [verb, "-"] if verb == "watch" else [verb]
    done = splitlock(*words, option, tmp_path / "none", text=dump("7.2-skb"))
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr
    assert done.stderr.count("\n") == 1


def test_watch_tells_each_oops_and_each_cause_once() -> None:
    traps = "".join(TRAP.format(pid=pid, at=0xF323A000 + pid) for pid in range(5))
    done = splitlock("watch", "-", text=traps + dump("xdp-7.1.8") + dump("6.12-module"))
    assert done.returncode == 1
    assert done.stdout.count("most likely, by its name: The Steam client") == 1
    assert done.stdout.count("known cause: A bug in Linux") == 1
    assert done.stdout.count("took a split lock\n") + done.stdout.count("split lock\n") >= 2
    assert "5 traps, 2 oopses" in done.stdout
    assert "skb_clone+0x154/0x1e0" in done.stdout
    assert "splitoops_get+0x38/0x50 [splitoops]" in done.stdout


def test_more_causes(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        '[[cause]]\nname = "mine"\nmodules = ["splitoops"]\nwhat = "Ours."\nfix = "None."\nlinks = ["https://a.example"]\n'
    )
    done = splitlock("explain", "--causes", path, text=dump("6.12-module"))
    assert "known cause: Ours." in done.stdout
    assert "known cause" not in splitlock("explain", text=dump("6.12-module")).stdout


def test_status_tells_known_causes_once(tmp_path: Path) -> None:
    (tmp_path / "var" / "log").mkdir(parents=True)
    boot = "[    0.000000] Linux version 7.1.8+deb13-cloud-amd64 (debian) (gcc) #1 SMP\n"
    mode = (
        "[    0.4] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
    )
    traps = "".join(TRAP.format(pid=pid, at=0xF323A000 + pid) for pid in range(5))
    (tmp_path / "var" / "log" / "dmesg").write_text(boot + mode + "split_locks\n" + traps + dump("xdp-7.1.8"))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("vendor_id\t: GenuineIntel\nflags\t\t: fpu split_lock_detect\n")
    text = " ".join(splitlock("status", "--root", tmp_path).stdout.split())
    assert text.count("most likely, by its name: The Steam client") == 1
    assert text.count("known cause: A bug in Linux: while an XDP program") == 1
    report = json.loads(splitlock("status", "--root", tmp_path, "--format", "json").stdout)
    jsonschema.validate(report, json.loads((ROOT / "docs" / "status.schema.json").read_text()))
    assert [cause["name"] for cause in report["log"]["causes"]] == ["steam-client", "xdp-on-loopback"]


def test_an_older_kernel_s_alignment_check() -> None:
    done = splitlock("explain", text="alignment check: 0000 [#1] SMP PTI\nRIP: 0010:handler+0x1/0x20\n")
    assert "before 5.7" in " ".join(done.stdout.split())
    assert done.returncode == 1


def test_every_oops_is_verbose_on_demand() -> None:
    done = splitlock("explain", "-v", text=dump("6.12-timer"))
    assert "called by run_timer_softirq+0x8c" in done.stdout
    assert "log: Oops: Split lock detected" in done.stdout


def test_an_oops_at_the_same_place_is_one_line() -> None:
    """However often; text is no more than a few times the log."""
    log = dump("6.12-module") + "[   9.5] Oops: Split lock detected\n" * 300 + dump("6.12-module")
    out = splitlock("watch", "-", text=log).stdout
    assert out.count("Report it to") == 2  # at a place, and at none
    assert out.count("(again, see above") == 300
    assert len(out) < 4 * len(log)
    assert out.count("302 oopses") == 1
