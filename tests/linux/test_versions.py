"""Does `linux.versions` say of every kernel what its source says?

OBSERVED was read from 38 source trees of Linux (Debian's linux-source packages and single releases): `#`, the
change is in the tree's files, `.`, it is not. Nothing in it comes from our table.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from splitlock.linux import versions
from splitlock.linux.versions import CHANGES, Change, Release, has, release

TREES = """
    5.7.6 5.7.14 5.8.1 5.9.1 5.10.262 5.11.0 5.11.4 5.12.9 5.14.0 5.14.2 5.15.145 5.17.0 5.18.12 5.19.0 6.0.1 6.1.10
    6.1.20 6.1.55 6.1.192 6.2.12 6.3.8 6.4.6 6.6.17 6.8.1 6.9.0 6.10.0 6.11.11 6.12.118 6.13.2 6.13.7 6.14.0 6.17.0
    6.18.2 6.19.9 7.0.0 7.1.5 7.2.13 7.3.4
"""
OBSERVED = """
    SPLIT_LOCKS                ######################################
    LEAVES_OTHERS_ALONE        .#####################################
    BUS_LOCKS                  ........##############################
    FLAG_IN_EVERY_MODE         ........##############################
    RATELIMIT                  ........##############################
    MISERY                     .............#########################
    MITIGATE                   ...............#######################
    ONLY_ANNOUNCED             .....................#################
    AMD_BUS_LOCKS              ............................##########
    BUS_LOCK_CONFIG            ............................##########
    CLEARS_BUS_LOCKS           ..........#...########################
    REENABLE_PER_CPU           ..................#............#######
    DR6_BUS_LOCK               ...........................#...#######
    OOPS_PREFIX                .........................#############
    TRAPS_OFFSET               .........................#############
    OFF_SAYS_NOTHING           ...................................###
    NON_WB_WORDS_GONE          ...................................###
    UNKNOWN_PARAMETERS         ........##############################
    PARAMETER_IS_KNOWN         ...................................###
    SYSCTL_ON_COMMAND_LINE     ..####################################
    KVM_ASKS                   ######################################
    NESTED_ASKS                ....#...##############################
    KVM_BUS_LOCK_EXIT          .......###############################
    KVM_SHOWS_BUS_LOCKS        ........##############################
    VM_ENABLE_AT_LOAD          ...........................###########
    KVM_SWITCHES_DEBUGCTL      ...........................#.#########
    KVM_AMD_BUS_LOCK_EXIT      ...............................#######
    EXPORTS_FOR_KVM            .................................#####
    VMX_IN_VMLINUX             ...................................###
    TDX_BUS_LOCK_EXIT          .....................................#
    TDX_GUEST                  ????.?????????????#????????#????????##
    TDX_HOST                   ????.?????????????.????????.???#######
    BUILT_IN_COMMAND_LINE      .........................#############
    BOOTCONFIG_COMMAND_LINE    .....................................#
    KVM_HIDES_BUS_LOCKS_ON_AMD ..................#.......############
"""
ROWS = [line.split() for line in OBSERVED.strip().splitlines()]
BY_NAME = {change.name: change for change in CHANGES}


def known(text: str) -> Release:
    """Of a text that is a release."""
    found = release(text)
    assert found is not None, text
    return found


@pytest.mark.parametrize(("name", "marks"), ROWS, ids=[name for name, _ in ROWS])
def test_every_tree_that_was_read_gets_its_own_answer(name: str, marks: str) -> None:
    # NON_WB_WORDS_GONE is `.` where the words had not come yet; 5.17.0 was a release candidate's tree. A stable release
    # may have a fix that the table does not know of: has() then must say so, and never the contrary of the source.
    assert len(marks) == len(TREES.split())
    change = BY_NAME[name]
    for tree, mark in zip(TREES.split(), marks, strict=True):
        said = has(change, known(tree))
        expected = {"#": "yes", ".": "no"}.get(mark, said)  # ?: this file of that tree was not at hand
        assert said == expected or (said == "unknown" and change.fix), (tree, name, said)


def test_every_change_was_looked_for_in_the_trees() -> None:
    assert {name for name, _ in ROWS} == set(BY_NAME)
    assert all(getattr(versions, name) is change for name, change in BY_NAME.items())


# What `uname -r` prints, and what it tells: written from the distributions' own naming.
@pytest.mark.parametrize(
    ("text", "series", "patch", "patched"),
    [
        ("6.1.0-56-amd64", (6, 1), None, False),  # Debian 12: the ABI's name, of any 6.1.y
        ("6.1.0-56-cloud-amd64", (6, 1), None, False),
        ("6.12.117+deb13-amd64", (6, 12), 117, False),  # Debian 13
        ("7.2.13-amd64", (7, 2), 13, False),
        ("6.8.0-60-generic", (6, 8), None, False),  # Ubuntu
        ("5.15.0-1051-azure", (5, 15), None, False),
        ("6.8.12-10-pve", (6, 8), 12, False),  # Proxmox
        ("6.18.7-200.fc43.x86_64", (6, 18), 7, False),
        ("6.13.7-arch1-1", (6, 13), 7, False),
        ("6.19.9-2-cachyos", (6, 19), 9, False),
        ("6.6.87.2-microsoft-standard-WSL2", (6, 6), 87, False),
        ("5.14.0-427.el9.x86_64", (5, 14), None, True),
        ("4.18.0-553.el8_10.x86_64", (4, 18), None, True),
        ("6.12.0-124.8.1.el10_1.x86_64", (6, 12), None, True),
        ("6.4.0-150600.23.47-default", (6, 4), None, True),  # SUSE Linux Enterprise 15 SP6
        ("5.15.0-307.178.5.el9uek.x86_64", (5, 15), None, True),
        ("6.1.52-valve16-1-neptune-61", (6, 1), 52, True),
        ("6.11.11-valve24-2-neptune-611-g1a2b3c", (6, 11), 11, True),
        ("5.10.0-216.0.0.115.oe2203sp4.x86_64", (5, 10), None, True),
        ("5.10.134-16.3.al8.x86_64", (5, 10), 134, True),  # Alibaba Cloud Linux 3
        ("6.6.88-4.2.alnx4.x86_64", (6, 6), 88, True),
        ("4.19.90-52.22.v2207.ky10.x86_64", (4, 19), 90, True),  # Kylin V10
        ("5.10.0-182.0.0.95.r1941_123.hce2.x86_64", (5, 10), None, True),  # Huawei Cloud EulerOS 2
        ("5.10.0-136.12.0.88.ctl3.x86_64", (5, 10), None, True),  # CTyunOS
        ("5.4.119-1-tlinux4-0010", (5, 4), 119, True),
        ("5.10.223-212.873.amzn2.x86_64", (5, 10), 223, False),
        ("6.1.109-118.189.amzn2023.x86_64", (6, 1), 109, False),
        ("6.6.57.1-2.azl3", (6, 6), 57, False),
        ("6.6.77-1.qubes.fc37.x86_64", (6, 6), 77, False),
        ("6.1.0", (6, 1), 0, False),  # mainline's own first release
        ("7.3-rc7", (7, 3), None, False),
        ("7.3.0-rc7", (7, 3), None, False),
        ("7.3~rc7-amd64", (7, 3), None, False),
        ("5.10\n", (5, 10), None, False),
        ("6.12.0+", (6, 12), None, False),
    ],
)
def test_what_a_release_tells(text: str, series: tuple[int, int], patch: int | None, patched: bool) -> None:
    found = known(text)
    assert (found.series, found.patch, found.patched) == (series, patch, patched)


@pytest.mark.parametrize(
    "text", ["", "x", "6", "6.", ".1", "6.x", "6.1x", "1e3.4", "-6.1", "٦.١", "6.1" * 400, "9999.1"]
)
def test_what_is_no_release(text: str) -> None:
    assert release(text) is None


@pytest.mark.parametrize(
    ("change", "text", "answer"),
    [
        ("REENABLE_PER_CPU", "6.1.0-56-amd64", "unknown"),  # Debian 12 may be before or behind 6.1.135
        ("REENABLE_PER_CPU", "6.12.117+deb13-amd64", "no"),
        ("REENABLE_PER_CPU", "6.12.200", "unknown"),
        ("REENABLE_PER_CPU", "6.13.10", "no"),
        ("MITIGATE", "6.1.0-56-amd64", "unknown"),
        ("MITIGATE", "6.1.5", "unknown"),
        ("MITIGATE", "5.10.0-35-amd64", "no"),  # there is no misery to take off
        ("AMD_BUS_LOCKS", "6.12.117+deb13-amd64", "no"),
        ("AMD_BUS_LOCKS", "6.12.0-124.8.1.el10_1.x86_64", "unknown"),
        ("AMD_BUS_LOCKS", "6.11.11-valve24-2-neptune-611", "unknown"),
        ("SPLIT_LOCKS", "4.18.0-553.el8_10.x86_64", "unknown"),
        ("SPLIT_LOCKS", "5.14.0-427.el9.x86_64", "yes"),
        ("SPLIT_LOCKS", "4.19.0-27-amd64", "no"),
        ("OFF_SAYS_NOTHING", "7.0.0-21-generic", "no"),
        ("DR6_BUS_LOCK", "6.12.0-1-generic", "unknown"),
        ("KVM_ASKS", "5.7.0", "yes"),
        ("NESTED_ASKS", "5.10.49", "no"),
        ("NESTED_ASKS", "5.10.50", "yes"),
        ("TDX_BUS_LOCK_EXIT", "7.3.1", "no"),
        ("TDX_BUS_LOCK_EXIT", "7.3.2", "yes"),
    ],
)
def test_stable_releases_and_distributions(change: str, text: str, answer: str) -> None:
    assert has(BY_NAME[change], known(text)) == answer


SERIES = [(5, n) for n in range(4, 20)] + [(6, n) for n in range(20)] + [(7, n) for n in range(5)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_within_a_series_a_change_comes_and_does_not_go(change: Change) -> None:
    rank = {"no": 0, "unknown": 1, "yes": 2}
    for series in SERIES:
        name = "{}.{}".format(*series)
        said = [has(change, known(f"{name}.{patch}")) for patch in range(300)]
        assert said == sorted(said, key=rank.__getitem__), name
        whole = has(change, known(f"{name}.0-1-amd64"))
        assert whole == "unknown" or set(said) == {whole}, name  # what holds for no patch level may not be said of all
        taken_back = has(change, known(f"{name}.0-1.el9"))
        assert taken_back == ("yes" if series >= change.since else "unknown")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_the_table_does_not_contradict_itself(change: Change) -> None:
    tables = (change.stable, change.seen, change.lacks)
    assert all(series < change.since for table in tables for series in table), "since is the first release with it"
    for one, other in itertools.combinations(tables, 2):
        for series in one.keys() & other.keys():
            assert change.lacks.get(series, -1) < min(change.stable.get(series, 999), change.seen.get(series, 999))
    assert not change.stable or change.fix or change.needs
    assert re.search(r"[0-9a-f]{12}|\(\)", change.source), "a function or a commit"
    assert change.what[0].islower() or change.what.split()[0] in ("KVM", "VMXON", "`traps:") or change.what[0] in "`#"


def test_what_splitlock_run_starts_with_does_not_import_it() -> None:
    source = Path(versions.__file__).parents[1] / "process"
    assert not [path for path in source.rglob("*.py") if "linux.versions" in path.read_text(encoding="utf-8")]


#: What answers as Linux does, by `uname -r` and /proc/version as it was seen.
FOREIGN = [
    ("4.19.0-gvisor", "", "gVisor"),
    ("4.4.0", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", "gVisor"),
    ("4.4.0-19041-Microsoft", "", "WSL 1"),
    ("4.4.0", "Linux version 4.4.0-17763-Microsoft (Microsoft@Microsoft.com) (gcc version 5.4.0 (GCC) )", "WSL 1"),
    ("5.10.0", "Linux version 5.10.0 (BrandZ virtual linux) #1 SMP", "an LX zone of illumos"),
    ("5.15.0", "Linux version 5.15.0 (des@freebsd.org) (gcc version 4.6.3) #4 Sun Dec 18 04:30:00 CET 1977",
     "FreeBSD's Linux layer"),
    ("4.19.43-microsoft-standard", "Linux version 4.19.43-microsoft-standard (oe-user@oe-host)", ""),
    ("5.15.167.4-microsoft-standard-WSL2", "", ""),
    ("6.8.0-1020-azure", "Linux version 6.8.0-1020-azure (buildd@lcy02-amd64-001) #23-Ubuntu SMP", ""),
    ("6.1.0-25-amd64", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "version", "right"), FOREIGN)
def test_what_is_no_linux(name: str, version: str, right: str) -> None:
    assert versions.foreign(name, version) == right
