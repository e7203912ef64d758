"""systemd itself, as process 1 of namespaces of its own, over this machine's files: what it writes stays there.

It needs root, overlayfs and systemd, no virtual machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
INSIDE = "/mnt"  # not below /tmp: a unit may have one of its own
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {work}
mkdir {work}/upper {work}/below {work}/root
mount -t overlay overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/below {work}/root
cd {work}/root
mkdir -p .{root} && mount --rbind {root} .{root}
mount --rbind {place} .{inside}
cp {units}/* etc/systemd/system/
chmod o+x {above} # for a unit's own user
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mount -t sysfs -o ro sysfs sys
mount -t tmpfs cgroups sys/fs/cgroup
mkdir sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd systemd sys/fs/cgroup/systemd
mkdir -p var/log/journal
exec chroot . env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=all.target --log-target=null --show-status=no
"""
_LAST = """
[Service]
Type=oneshot
ExecStart=/bin/bash {script}
ExecStopPost=/bin/systemctl --no-block exit 0
"""


def boot(units: dict[str, str], script: str, place: Path) -> None:
    """Start it with some units; a shell then runs the script, and all ends.

    `place`: an empty directory, known inside as `INSIDE`.
    """
    here = place / "units"
    here.mkdir()
    for name, text in {"all.target": "[Unit]\nWants=last.service\n", **units}.items():
        (here / name).write_text(text)
    (here / "last.service").write_text(_LAST.format(script=f"{INSIDE}/script"))
    (place / "script").write_text(script)
    work = place / "work"
    work.mkdir()
    above = {str(d)[1:] or "." for path in (sys.base_prefix, ROOT, INSIDE) for d in (Path(path) / "x").parents}
    boot = _BOOT.format(
        work=work, units=here, root=ROOT, place=place, inside=INSIDE, above=" ".join(sorted(above)),
    )  # fmt: skip
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--ipc", "--uts", "bash", "-c", boot]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
