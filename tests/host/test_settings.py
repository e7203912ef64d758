"""Settings in files, against the trees, systemd's own tools, the shell, and the kernel's rules by hand."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from host import trees_read as read

from splitlock.host import config
from splitlock.host.root import Root
from splitlock.host.settings import sysctl
from splitlock.host.settings.audit import NOW, Setting, Unused, settings
from splitlock.host.settings.command_lines import booted, command_lines
from splitlock.host.settings.version_order import compare
from splitlock.linux import parameter
from splitlock.linux.versions import release

TREES = read.trees()
_KEY = "kernel/split_lock_mitigate"
_LIKE = re.compile("split_lock_mitigate")
_NEW = release("6.12.48")
_NOT = {True: "yes", False: "no"}


def made(root: Path, files: dict[str, Any]) -> Root:
    root.mkdir(exist_ok=True)
    return Root(str(read.build({"files": files}, root)))


def found(root: Root, number: str = "6.12.48", unused: Unused = Unused()) -> list[Setting]:  # noqa: B008
    return settings(root, release(number), unused)


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if "settings" in tree["right"]])
def test_trees(name: str, tmp_path: Path) -> None:
    """What the trees say of settings, where the machine's own facts are told as they say them."""
    tree = TREES[name]
    right = tree["right"]
    unused = Unused()
    if right.get("split_lock") == "no":
        unused = Unused(mitigate="#DB delays nobody in warn")
        if right.get("bus_lock") == "no":
            unused = Unused(detect="this processor, or this kernel, has no split-lock detection")
    (tmp_path / "root").mkdir()
    root = Root(str(read.build(tree, tmp_path / "root")))
    all_found = settings(root, release(tree.get("release", "")), unused)
    for one in right["settings"]:
        counts = _NOT.get(one["counts"], one["counts"]).split("|")
        some = [s for s in all_found if one["text"] in s.text and re.search(one.get("where", ""), s.where)]
        assert [s for s in some if s.counts in counts and re.search(one.get("why", ""), s.why)], (one, some)
    for pattern in right.get("never", []):
        assert not [s for s in all_found if re.search(pattern, s.where)], pattern


#: What the kernel makes of a word of its command line: arch/x86/lib/cmdline.c, match_option(), do_sysctl_args().
WORDS = {
    "split_lock_detect=off": "yes", "split_lock_detect=warn": "yes", "split_lock_detect=fatal": "yes",
    "split_lock_detect=ratelimit:1": "yes", "split_lock_detect=ratelimit:1000": "yes",
    "split_lock_detect=ratelimit:0": "no", "split_lock_detect=ratelimit:1001": "no",
    "split_lock_detect=ratelimit:-5": "no", "split_lock_detect=ratelimit": "no", "split_lock_detect=": "no",
    "split_lock_detect=Off": "no", "split_lock_detect=off,warn": "no", "split_lock_detect=on": "no",
    "split_lock_detect='off'": "no", '"split_lock_detect=off"': "no", 'split_lock_detect="off"': "no",
    "split-lock-detect=off": "no", "x86.split_lock_detect=off": "no", "split_lock_detect": "no",
    "split_lock_detection=off": "no", "split_lock_mitigate=0": "no", "kernel.split_lock_mitigate=0": "no",
    "sysctl.kernel.split_lock_mitigate=0": "yes", "sysctl.kernel.split_lock_mitigate=1": "yes",
    "sysctl/kernel/split_lock_mitigate=0": "yes", "sysctl.kernel/split_lock_mitigate=0": "yes",
    '"sysctl.kernel.split_lock_mitigate=0"': "yes", 'sysctl.kernel.split_lock_mitigate="0"': "yes",
    "sysctl.kernel.split_lock_mitigate=2": "no", "sysctl.kernel.split_lock_mitigate=off": "no",
    "sysctl.split_lock_mitigate=0": "no",
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_words(word: str, tmp_path: Path) -> None:
    root = made(tmp_path, {"proc/cmdline": f"root=/dev/sda1 {word} quiet\n"})
    (one,) = found(root)
    assert (one.where, one.text, one.counts) == ("proc/cmdline", word, WORDS[word])
    assert bool(one.why) == (one.counts == "no")
    (other,) = found(root, unused=Unused(detect="no such processor"))
    assert other.counts == "no"


def test_older_kernels(tmp_path: Path) -> None:
    root = made(tmp_path, {"proc/cmdline": "split_lock_detect=ratelimit:9 sysctl.kernel.split_lock_mitigate=0\n"})
    assert [s.counts for s in found(root, "6.12.48")] == ["yes", "yes"]
    assert [s.counts for s in found(root, "5.13.19")] == ["no", "yes"]
    assert [s.counts for s in found(root, "5.7.3")] == ["no", "no"]


def test_built_in(tmp_path: Path) -> None:
    """CONFIG_CMDLINE: setup_arch() takes it in before sld_setup() from 6.10 on."""
    text = 'CONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE="quiet split_lock_detect=off"\n'
    for number, right in (("6.12.48", "yes"), ("6.1.0-57-amd64", "unknown"), ("6.1.150", "no"), ("5.10.100", "no")):
        for where, content in ((f"boot/config-{number}", text), ("proc/config.gz", {"gzip": text})):
            root = made(tmp_path / f"{number}-{where[:4]}", {where: content})
            assert [(s.where, s.counts) for s in found(root, number)] == [(where, right)]


@pytest.mark.parametrize(
    "packed", [b"", b"\x1f\x8b", gzip.compress(b"CONFIG_X86=y\n")[:12], os.urandom(99)], ids=range(4)
)
def test_a_configuration_that_is_none(packed: bytes, tmp_path: Path) -> None:
    """Broken, and the kernel's file in /boot is taken."""
    root = made(tmp_path / "root", {"boot/config-6.12.48": "CONFIG_A=y\n", "proc/x": ""})
    (tmp_path / "root/proc/config.gz").write_bytes(packed)
    assert config.config(root, _NEW) == "CONFIG_A=y\n"


def test_a_configuration_that_is_huge(tmp_path: Path) -> None:
    """A bomb of zeros is not unpacked whole, and none."""
    root = made(tmp_path / "root", {"proc/x": ""})
    (tmp_path / "root/proc/config.gz").write_bytes(gzip.compress(bytes(1 << 28), 9)[: 1 << 20])
    assert config.config(root, _NEW) == ""


def test_bootconfig(tmp_path: Path) -> None:
    """Words in /proc/cmdline that are bootconfig's are not the boot loader's; a sysctl in it counts."""
    files = {
        "proc/bootconfig": 'kernel.split_lock_detect = "fatal"\nkernel.sysctl.kernel.split_lock_mitigate = "0"\n',
        "proc/cmdline": 'split_lock_detect="fatal" sysctl.kernel.split_lock_mitigate="0" root=/dev/sda bootconfig\n',
    }
    root = made(tmp_path, files)
    assert booted(root) == "root=/dev/sda bootconfig"
    assert [(s.where, s.counts) for s in found(root)] == [("proc/bootconfig", "no"), ("proc/bootconfig", "yes")]
    made(tmp_path, {"boot/config-7.3.0": "CONFIG_CMDLINE_FROM_BOOTCONFIG=y\n"})
    assert [s.counts for s in found(root, "7.3.0")] == ["unknown", "yes"]  # the embedded one alone is read early


#: /proc/bootconfig, /proc/cmdline, and what of it the boot loader gave: xbc_snprint_cmdline() writes each value of
#: each key below `kernel`, in quotes (before 6.9: always), and puts that before the loader's words.
BOOTED = [
    ('kernel.split_lock_detect = "warn"\n', 'split_lock_detect="warn" split_lock_detect=off root=a', "off"),
    ('kernel.split_lock_detect = "warn"\n', "split_lock_detect=warn split_lock_detect=off root=a", "off"),
    ('kernel.split_lock_detect = "warn"\n', "split_lock_detect=warn root=a", None),
    ('kernel.split_lock_detect = "warn", "fatal"\n',
     'split_lock_detect="warn" split_lock_detect="fatal" split_lock_detect=off', "off"),
    ('kernel.a = "x y"\nkernel.split_lock_detect = "fatal"\ninit.b = "1"\n',
     'a="x y" split_lock_detect="fatal" root=a split_lock_detect=off -- b', "off"),
    ('kernel.quiet = ""\nkernel.split_lock_detect = "fatal"\n', 'quiet split_lock_detect="fatal" quiet root=a', None),
    ('kernel.split_lock_detect = "fatal"\n# Parameters from bootloader:\n# ro split_lock_detect=off\n',
     "split_lock_detect=fatal ro split_lock_detect=off", "off"),
    ('init.split_lock_detect = "warn"\n', "split_lock_detect=off root=a -- split_lock_detect=warn", "warn"),
    ("", "split_lock_detect=off split_lock_detect=warn", "warn"),
]  # fmt: skip


@pytest.mark.parametrize(("bootconfig", "words", "right"), BOOTED)
def test_bootconfig_and_the_loader(bootconfig: str, words: str, right: str | None, tmp_path: Path) -> None:
    """Both may name the parameter: the loader's counts."""
    root = made(tmp_path, {"proc/bootconfig": bootconfig, "proc/cmdline": words + "\n"})
    assert parameter.find(booted(root)) == right


# -- sysctl.d: systemd reads the same files ---------------------------------------------------------------------------

_DIRECTORIES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")


@pytest.mark.parametrize("seed", range(25))
def test_the_same_file_as_systemd(seed: int, tmp_path: Path) -> None:
    """The assignment that counts is in the last file that `systemd-analyze cat-config` shows to have one."""
    dice = random.Random(seed)
    files: dict[str, Any] = {}
    for _ in range(dice.randint(2, 12)):
        name = dice.choice(["10-a.conf", "50-b.conf", "50-B.conf", "9.conf", "90-z.conf", "z.conf", "60-c", "70.conf~"])
        content: Any = dice.choice(["kernel.split_lock_mitigate=1\n", "kernel.other=1\n", "", {"link": "/dev/null"}])
        files.setdefault(f"{dice.choice(_DIRECTORIES)}/{name}", content)
    root = made(tmp_path / "root", files)
    command = ["systemd-analyze", f"--root={root.directory}", "cat-config", "sysctl.d"]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "SYSTEMD_COLORS": "0"}
    )
    where, right = "", None
    for line in shown.stdout.splitlines():
        if line.startswith("# /"):
            where = os.path.relpath(line[2:], root.directory)
        elif line.startswith("kernel.split_lock_mitigate"):
            right = where
    counting = [one.where for one in sysctl.assignments(root, _KEY, _LIKE) if one.counts == "yes"]
    assert counting == ([right] if right else [])


#: A file's lines, and which of them counts, by number: sysctl.d(5), "Configuration format".
LINES: list[tuple[list[str], int | None]] = [
    (["kernel.split_lock_mitigate=0"], 0),
    (["kernel/split_lock_mitigate = 0"], 0),
    ([" - kernel.split_lock_mitigate=0 "], 0),
    (["-kernel.split_lock_mitigate=0"], 0),
    (["# kernel.split_lock_mitigate=0", ";kernel.split_lock_mitigate=0"], None),
    (["kernel.split_lock_mitigate=0", "kernel/split_lock_mitigate=1"], 1),
    (["kernel.split_lock_*=0"], 0),
    (["kernel.split_lock_mitigate=1", "kernel.split_lock_*=0"], 0),
    (["kernel.split_lock_*=0", "-kernel.split_lock_mitigate"], None),
    (["kernel.split_lock_mitigate"], None),
    (["split_lock_mitigate=0"], None),
    (["kernel.split.lock.mitigate=0"], None),
    (["kernel.split_lock_m?tigate=0"], 0),
    (["kernel.split_lock_m[a-z]tigate=0"], 0),
    (["kernel.split_lock_m[!a-z]tigate=0"], None),
    (["kernel.split_lock_m[^x]tigate=0"], 0),
    (["*/split_lock_mitigate=0"], 0),
    (["kernel*mitigate=0"], None),  # no pattern goes over a separator
    (["*=0"], None),
    (["kernel.split_lock_mitigate=0", "kernel.split_lock_?itigate=1"], 0),
    (["-kernel.split_lock_mitigate", "kernel.split_lock_m?tigate=0"], None),
    (["kernel.split_lock_mitigate = 0 # no misery"], 0),
    (["=0", "-", "-=0", " = "], None),
]


@pytest.mark.parametrize(("lines", "right"), LINES)
def test_lines_of_sysctls(lines: list[str], right: int | None, tmp_path: Path) -> None:
    root = made(tmp_path / "root", {"etc/sysctl.d/50-x.conf": "\n".join(lines) + "\n"})
    counting = [one.text for one in sysctl.assignments(root, _KEY, _LIKE) if one.counts == "yes"]
    assert counting == ([] if right is None else [lines[right].strip()])


def test_without_systemd(tmp_path: Path) -> None:
    """OpenRC's and others' sysctl(8) reads /etc/sysctl.conf, last."""
    files = {"etc/alpine-release": "3.22\n", "etc/sysctl.conf": "kernel.split_lock_mitigate=0\n"}
    assert [s.counts for s in found(made(tmp_path, files))] == ["yes"]


#: What proc_get_long() and proc_douintvec_minmax() take for 0 or 1.
VALUES = {
    "0": True, "1": True, "00": True, "01": True, "0x0": True, "0X1": True, "0 # no misery": True, "0\tx": True,
    "2": False, "02": False, "0x2": False, "-0": False, "-1": False, "+0": False, "": False, "off": False, "0b0": False,
    "0,1": False, '"0"': False, "0x": False, "\u00b2": False, "\u0660": False, "0" * 5000: False, "10": False,
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:9]))
def test_values_of_the_sysctl(value: str, tmp_path: Path) -> None:
    root = made(tmp_path, {"etc/sysctl.d/a.conf": f"kernel.split_lock_mitigate={value}\n"})
    assert [one.counts for one in found(root)] == [_NOT[VALUES[value]]]


# -- versions: systemd compares the same -----------------------------------------------------------------------------


def test_versions_as_systemd() -> None:
    dice, parts = random.Random(5), ["1", "2", "10", "0", "007", "a", "b", "rc", "~", "-", "^", ".", "+", "_", "fc43"]
    for _ in range(80):
        one, other = ("v" + "".join(dice.choices(parts, k=dice.randint(1, 6))) for _ in range(2))
        other = one[: dice.randint(1, len(one))] + other if dice.random() < 0.5 else other
        status = subprocess.run(["systemd-analyze", "compare-versions", one, other], capture_output=True, check=False)
        ours = compare(one, other)
        assert (ours > 0) - (ours < 0) == {0: 0, 11: 1, 12: -1}[status.returncode], (one, other)
        assert compare(other, one) == -ours


# -- boot loaders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bootctl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """systemd-boot's own reader of entries. It wants the top of a file system: a tmpfs of a namespace of its own."""
    place = tmp_path_factory.mktemp("bootctl")
    if not (path := shutil.which("bootctl")):
        done = subprocess.run(
            ["apt-get", "download", "systemd-boot"], cwd=place, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no bootctl: {done.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", next(place.glob("*.deb")), place], check=True)
        path = str(place / "usr/bin/bootctl")
    if os.geteuid():
        pytest.skip("bootctl wants a mounted file system, and only root may mount one")
    return Path(path)


def _default(bootctl: Path, esp: Path) -> str | None:
    script = (
        'mount -t tmpfs none "$1/t" && cp -r "$1/boot/." "$1/t" && '
        'SYSTEMD_RELAX_ESP_CHECKS=1 "$2" --no-pager --esp-path="$1/t" list'
    )
    (esp / "t").mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(esp), str(bootctl)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = done.stdout
    at = text.find("(default)")
    return re.findall(r"\bq=(\S+)", text[at:])[0] if at >= 0 else None


@pytest.mark.parametrize("seed", range(16))
def test_the_same_entry_as_systemd_boot(bootctl: Path, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    files: dict[str, Any] = {"proc/cmdline": "root=/dev/sda1\n", "boot/linux": "x"}
    chosen = dice.choice(["", "", "default deb*\n", "default fed-6.1.0-9.conf\n", "default none\n"])
    files["boot/loader/loader.conf"] = "timeout 3\n" + chosen
    for _ in range(dice.randint(1, 6)):
        # a name with ~ is none for systemd-boot
        version = dice.choice(["6.1.0-9", "6.1.0-10", "6.12.1", "6.2~rc1", "6.2"])
        name = f"{dice.choice(['deb', 'fed', 'arch'])}-{version.replace('~', '_')}"
        left = dice.choice(["", "", "", "+3", "+1-2", "+0-3"])  # automatic boot assessment: tries left, and done
        if any(f"entries/{name}{end}" in one for one in files for end in (".", "+")):
            continue  # one entry of a name
        key = dice.choice(["", "", "sort-key debian\n", "sort-key fedora\n"])
        files[f"boot/loader/entries/{name}{left}.conf"] = (
            f"title {name}\n{key}version {version}\nlinux /linux\noptions split_lock_detect=off\noptions q={name}\n"
        )
    root = made(tmp_path, files)
    right = _default(bootctl, tmp_path)
    assert right is not None
    assert [line.text.rpartition("q=")[2] for line in command_lines(root) if line.used == "yes"] == [right]


GRUB_DEFAULTS = {
    'GRUB_CMDLINE_LINUX_DEFAULT="quiet split_lock_detect=off"': "split_lock_detect=off",
    "GRUB_CMDLINE_LINUX='split_lock_detect=off'": "split_lock_detect=off",
    "GRUB_CMDLINE_LINUX=split_lock_detect=off": "split_lock_detect=off",
    'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX split_lock_detect=off"': "split_lock_detect=off",
    'GRUB_CMDLINE_LINUX_DEFAULT="quiet \\"split_lock_detect=off\\""': "split_lock_detect=off",
    'GRUB_CMDLINE_LINUX="a=1 # split_lock_detect=off"': None,
    '#GRUB_CMDLINE_LINUX="split_lock_detect=off"': None,
    'GRUB_CMDLINE="split_lock_detect=off"': None,
    'GRUB_CMDLINE_XEN="split_lock_detect=off"': None,
}


@pytest.mark.parametrize("line", GRUB_DEFAULTS)
def test_grub_defaults(line: str, tmp_path: Path) -> None:
    right = GRUB_DEFAULTS[line]
    root = made(
        tmp_path, {"etc/default/grub": line + "\n", "proc/cmdline": "BOOT_IMAGE=/vmlinuz split_lock_detect=off\n"}
    )
    texts = [one.text for one in found(root) if one.where == "etc/default/grub" and one.counts == "yes"]
    assert texts == ([right] if right else [])


_DEFAULT, _WORD = "GRUB_CMDLINE_LINUX_DEFAULT", "split_lock_detect=off"
#: Files that a shell reads one after the other, and whether the word reaches GRUB's linux line.
GRUB_FILES: list[tuple[dict[str, str], bool]] = [
    ({"grub": f'{_DEFAULT}="quiet {_WORD}"\n{_DEFAULT}="quiet"\n'}, False),
    ({"grub": f'{_DEFAULT}="quiet"\n{_DEFAULT}="{_WORD}"\n'}, True),
    ({"grub": f'{_DEFAULT}="{_WORD}"\n{_DEFAULT}="${_DEFAULT} quiet"\n'}, True),
    ({"grub": f'{_DEFAULT}="{_WORD}"\n{_DEFAULT}="${{{_DEFAULT}}} quiet"\n'}, True),
    ({"grub": f'{_DEFAULT}="{_WORD}"\n', "grub.d/50-cloud.cfg": f'{_DEFAULT}="quiet"\n'}, False),
    ({"grub": f'{_DEFAULT}="{_WORD}"\n', "grub.d/50-cloud.cfg": f'{_DEFAULT}="${_DEFAULT} a"\n'}, True),
    ({"grub": f'{_DEFAULT}="{_WORD}"\n', "grub.d/50-cloud.cfg": 'GRUB_CMDLINE_LINUX="quiet"\n'}, True),
    ({"grub": "", "grub.d/99.cfg": f'GRUB_CMDLINE_LINUX="{_WORD}"\n'}, True),
    ({"grub": "", "grub.d/99.cfg.dpkg-old": f'GRUB_CMDLINE_LINUX="{_WORD}"\n'}, False),
    ({"grub": f'{_DEFAULT}="quiet"\n', "grub.d/a.cfg~": f'{_DEFAULT}="{_WORD}"\n'}, False),
    ({"grub": f'{_DEFAULT}="quiet \\\n  {_WORD}"\n'}, True),
    ({"grub": f'{_DEFAULT}="quiet\n  {_WORD}"\n'}, False),  # grub.cfg gets the line break
    ({"grub": f'MORE="{_WORD}"\nGRUB_CMDLINE_LINUX="quiet $MORE"\n'}, True),
    ({"grub": f"MORE='{_WORD}'\nGRUB_CMDLINE_LINUX='quiet $MORE'\n"}, False),
    ({"grub": f"# don't\nGRUB_CMDLINE_LINUX=\"{_WORD}\"\n# can't\n"}, True),
]


@pytest.mark.parametrize(("files", "right"), GRUB_FILES)
def test_grub_files(files: dict[str, str], right: bool, tmp_path: Path) -> None:
    """Against the shell: grub-mkconfig sources the files and writes `linux ... ARGS` (10_linux)."""
    placed = {f"etc/default/{name}": text for name, text in files.items()}
    root = made(tmp_path, {**placed, "proc/cmdline": f"BOOT_IMAGE=/vmlinuz {_WORD}\n"})
    script = 'cd "$1/etc/default"; for f in ./grub ./grub.d/*.cfg; do [ -f $f ] && . $f; done; echo "linux $2"'
    both = script.replace("$2", f"$GRUB_CMDLINE_LINUX ${_DEFAULT}")
    shell = subprocess.run(["sh", "-c", both, "sh", root.directory], capture_output=True, text=True, check=True)
    assert (_WORD in shell.stdout.splitlines()[0].split()) == right
    counting = [one.text for one in found(root) if one.counts == "yes" and one.where != "proc/cmdline"]
    assert counting == ([_WORD] if right else [])
    meant = {f"etc/default/{name}" for name, text in files.items() if _WORD in text and name.endswith(("grub", "cfg"))}
    assert meant <= {one.where for one in found(root)} or "MORE" in files["grub"]


def menu(*entries: tuple[str, str]) -> str:
    return "".join(
        f"menuentry '{name}' --id '{name}' {{\n\tlinux /vmlinuz root=/ {text}\n}}\n" for name, text in entries
    )


#: grub.cfg, grubenv, and the value that the next boot has; None: it is not known, or there is none.
MENUS: list[tuple[str, str, str | None]] = [
    (menu(("one", "split_lock_detect=off")), "", "off"),
    (menu(("one", ""), ("two", "split_lock_detect=off")), "", None),
    ('set default="0"\n' + menu(("one", "split_lock_detect=off"), ("two", "")), "", "off"),
    ('set default="two"\n' + menu(("one", ""), ("two", "split_lock_detect=fatal")), "", "fatal"),
    ('set default="more>two"\n' + menu(("one", ""), ("two", "split_lock_detect=fatal")), "", "fatal"),
    (
        'set default="${saved_entry}"\n' + menu(("one", ""), ("two", "split_lock_detect=fatal")),
        "saved_entry=two\n",
        "fatal",
    ),
    ('set default="${saved_entry}"\n' + menu(("one", "split_lock_detect=off"), ("two", "")), "saved_entry=two\n", None),
    ('set default="3"\n' + menu(("one", "split_lock_detect=off"), ("two", "")), "", None),
    (menu(("one", '"split_lock_detect=off"')), "", "off"),
    (menu(("one", "split_lock_detect=off split_lock_detect=warn")), "", "warn"),
    ('set tuned_params="skew_tick=1 split_lock_detect=off"\n' + menu(("one", "$tuned_params")), "", "off"),
    ('set tuned_params="split_lock_detect=off"\n' + menu(("one", "${tuned_params} quiet")), "", "off"),
    ('set tuned_params="split_lock_detect=off"\nset tuned_params=""\n' + menu(("one", "$tuned_params")), "", None),
    (menu(("one", "$extra")), "extra=split_lock_detect=fatal\n", "fatal"),
    (menu(("one", "'$extra'")), "extra=split_lock_detect=fatal\n", None),
    (menu(("one", "quiet \\\n split_lock_detect=off")), "", "off"),
    (menu(("one", "quiet # split_lock_detect=off")), "", None),
    ("# linux /vmlinuz split_lock_detect=off\n" + menu(("one", "quiet")), "", None),
    ("menuentry 'a' {\n linux16 /boot/memtest86+.bin\n}\n" + menu(("one", "split_lock_detect=off")), "", "off"),
    ("menuentry 'a' {\n linux /kernel-6.8 split_lock_detect=off\n}\n", "", "off"),
]


def next_boot(found: list[Setting]) -> str | None:
    """The value of split_lock_detect= that the next boot will have; None: none, or it is not known."""
    counting = [one for one in found if one.where not in NOW and one.counts == "yes"]
    return next((value for one in counting if (value := parameter.find(one.text)) is not None), None)


@pytest.mark.parametrize(("config", "environment", "right"), MENUS)
def test_grub_menus(config: str, environment: str, right: str | None, tmp_path: Path) -> None:
    files = {
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/\n",
        "boot/grub/grub.cfg": config,
        "boot/grub/grubenv": environment,
    }
    assert next_boot(found(made(tmp_path, files))) == right


_ENTRY_OF_GRUB = "title a\nversion 6.8\noptions root=x ro {}\n"
#: An entry's options, grub.cfg, grubenv, and the value that the next boot has: blscfg expands GRUB's variables.
BLS = [
    ("$kernelopts $tuned_params", "insmod blscfg\n", "kernelopts=a split_lock_detect=off\n", "off"),
    ("$tuned_params", 'insmod blscfg\nset tuned_params="split_lock_detect=off"\n', "", "off"),
    ("${tuned_params}", 'set tuned_params="split_lock_detect=off"\ninsmod blscfg\n', "tuned_params=\n", "off"),
    ("$tuned_params", "insmod blscfg\n", "other=split_lock_detect=off\n", None),
]


@pytest.mark.parametrize(("options", "config", "environment", "right"), BLS)
def test_variables_of_entries(options: str, config: str, environment: str, right: str | None, tmp_path: Path) -> None:
    files = {
        "proc/cmdline": "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.8 root=x ro\n",
        "boot/grub2/grub.cfg": config,
        "boot/grub2/grubenv": environment,
        "boot/loader/entries/m-6.8.conf": _ENTRY_OF_GRUB.format(options),
    }
    assert next_boot(found(made(tmp_path, files))) == right


#: Other loaders' files: the file, what stands in it, and whether it counts.
_OURS = "split_lock_detect=off"
_EXTLINUX = "boot/extlinux/extlinux.conf"
LOADERS: list[tuple[dict[str, str], str]] = [
    ({_EXTLINUX: f"default b\nlabel a\n append x\nlabel b\n linux /l\n APPEND root=/ {_OURS}\n"}, "yes"),
    ({_EXTLINUX: f"default b\nlabel a\n append {_OURS}\nlabel b\n append root=/\n"}, "no"),
    ({"boot/refind_linux.conf": '"Boot" "root=/ split_lock_detect=off"\n"Rescue" "root=/ single"\n'}, "yes"),
    ({"boot/refind_linux.conf": '"Boot" "root=/"\n"Rescue" "root=/ split_lock_detect=off"\n'}, "no"),
    ({"boot/limine.conf": f"timeout: 5\n/CachyOS\n    protocol: linux\n    cmdline: root=/ {_OURS}\n"}, "yes"),
    ({"etc/kernel/cmdline": "root=/ split_lock_detect=off\n"}, "unknown"),
    ({"etc/mkinitcpio.conf": "", "etc/cmdline.d/a.conf": "split_lock_detect=off\n"}, "unknown"),
    ({"etc/dracut.conf.d/a.conf": f'kernel_cmdline="{_OURS}"\n', "boot/grub/grub.cfg": menu(("a", ""))}, "no"),
    ({"boot/grub/grub.cfg": menu(("a", "split_lock_detect=off")), "boot/refind_linux.conf": '"a" "b"\n'}, "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "right"), LOADERS)
def test_other_loaders(files: dict[str, str], right: str, tmp_path: Path) -> None:
    assert [one.counts for one in found(made(tmp_path, dict(files)))] == [right]


@pytest.mark.parametrize(
    "data", [b"", b"MZ", b"MZ" + bytes(300), read.uki("split_lock_detect=off")[:200], os.urandom(5000)]
)
def test_no_unified_image(data: bytes, tmp_path: Path) -> None:
    """What is none is passed over."""
    place = tmp_path / "boot/EFI/Linux"
    place.mkdir(parents=True)
    (place / "a.efi").write_bytes(data)
    assert found(Root(str(tmp_path))) == []


# -- files that nobody meant to be read ------------------------------------------------------------------------------

#: Files of strangers, which must neither end in an exception nor take their time.
_ENTRY = 'menuentry "a" --id b {\n linux /vmlinuz split_lock_detect=off\n}\n'
_LONG = {
    f"boot/loader/entries/{'9' * 120}{i}.conf": f"version {'9' * 6000}\nsort-key a\noptions {i}\n" for i in range(9)
}
HOSTILE: list[dict[str, Any]] = [
    {"etc/sysctl.d/a.conf": ("kernel.split_lock_mitigate" + " " * 200_000 + "x\n") * 2},
    {"etc/default/grub": "GRUB_CMDLINE_LINUX=" + "'\"\\" * 100_000 + "\n" + "a='\n" * 100_001},
    {"etc/default/grub": 'A="$A$A$A$A x"\n' * 5000 + 'GRUB_CMDLINE_LINUX="$A"\n' * 500},
    {"boot/grub/grub.cfg": ("set a=$a$a$a$ab\n linux /vmlinuz " + "$a " * 5000 + "\n") * 40},
    {
        "boot/loader/entries/a.conf": "options " + "$a " * 20_000 + "\n",
        "boot/grub/grubenv": "a=" + "b " * 50_000 + "\n",
    },
    {"proc/bootconfig": "= x\n\n#k = 1\nkernel.split_lock_detect\n", "proc/cmdline": "\0 split_lock_detect=\n"},
    {"boot/grub/grub.cfg": "menuentry 'x' --id " * 5000 + "\nlinux /vmlinuz " + "'" * 100001},
    {"boot/grub/grub.cfg": _ENTRY * 20000},
    {"etc/sysctl.d/a.conf": ("*a" * 40 + "=1\n") * 3 + "*" * 3000 + "kernel.split_lock_mitigate=1\n"},
    {"boot/loader/loader.conf": "default " + "*a" * 30 + "\n", **_LONG},
]


@pytest.mark.parametrize("files", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files(files: dict[str, Any], tmp_path: Path) -> None:
    root = made(tmp_path, files)
    began = time.process_time()
    found(root)
    assert time.process_time() - began < 5


def test_mangled_trees(tmp_path: Path) -> None:
    """Bytes of the trees' files changed, taken out, repeated, cut: never an exception."""
    dice = random.Random(3)
    for turn in range(150):
        tree = dice.choice(list(TREES.values()))
        place = tmp_path / str(turn)
        place.mkdir()
        root = read.build(tree, place)
        paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        for path in dice.sample(paths, min(3, len(paths))):
            path.write_bytes(_mangled(path.read_bytes(), dice))
        settings(Root(str(root)), release(tree.get("release", "")), Unused())


def _mangled(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.randint(1, 6)):
        at = dice.randint(0, len(data))
        data = dice.choice([
            data[:at] + bytes([dice.choice(b"\n\"'\\= $#*/.\0\xff>{}-~")]) + data[at + 1 :],
            data[:at] + data[at + dice.randint(1, 40) :],
            data[:at] + data[max(0, at - 60) :],
            data[:at],
        ])  # fmt: skip
    return data
