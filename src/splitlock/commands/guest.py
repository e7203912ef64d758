"""`splitlock guest`: boot a whole machine and name every split lock in it."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.commands import complain
from splitlock.commands._options import report_options, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.commands import Parser
    from splitlock.guest.bochs.emulator import Emulator
    from splitlock.guest.machine import Options
    from splitlock.guest.watch import Ended, Watch
    from splitlock.report.guest import Handling, Report

_EPILOG = """\
The guest's console is shown on standard error, the report on standard output.
What follows -- goes to QEMU. Disks are never written: what the guest writes is
gone with it. The guest has no network unless QEMU is told of one.

--vmx boots on one processor with VMX and split-lock detection, emulated by
Bochs, in which KVM and other hypervisors run: the report says where each #AC
was raised (host, virtual machine, nested), whether it was a VM exit, and what
the hypervisor made of it. --vmx --forward-ac is the same processor under a
kernel that knows nothing of detection.

exit status: 0 clean, or not what --fail-on asks for; 1 split locks; 2 wrong
usage, or not known: no Linux kernel came up, with --vmx no virtual machine was
entered, the guest could not be run, the emulator died.

examples:
  splitlock guest --disk image.qcow2 --duration 120
  splitlock guest --disk image.raw --firmware ovmf --until 'login:' -q
  splitlock guest --kernel vmlinuz --initrd initrd.img --append console=ttyS0
  splitlock guest --cdrom install.iso -m 4G --smp 2 --format json -o report.json
  splitlock guest --sld --kernel vmlinuz --append 'split_lock_detect=fatal ...'
  splitlock guest --disk image.raw -- -nic user,model=virtio-net-pci
  splitlock guest --build-emulator
  splitlock guest --vmx --kernel vmlinuz --initrd initrd.img --traps traps.json"""

PARSER = {
    "help": "boot a guest and name every split lock in it",
    "usage": "splitlock guest --kernel FILE [--initrd FILE] [--append TEXT] [options]\n"
    "       splitlock guest --disk IMAGE [options] [-- QEMU OPTIONS]\n"
    "       splitlock guest --cdrom ISO [options] [-- QEMU OPTIONS]\n"
    "       splitlock guest --vmx (--kernel | --disk | --cdrom) FILE [options]",
    "description": "Boot a guest in QEMU, and report every split lock in its firmware, boot loader,\n"
    "kernel and programs. Runs on any machine; nothing splits for real.",
    "epilog": _EPILOG,
}
_KERNEL = ("kernel", "module")
_DEFAULT_APPEND = "console=ttyS0"
_DEFAULT_CPUS = 2
_QEMU = "qemu-system-x86_64"
#: options of QEMU's machine, and what they are unless given
_NOT_WITH_VMX: dict[str, object] = {"firmware": None, "slow": False, "more": [], "qemu": _QEMU}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument("--kernel", metavar="FILE", help="boot this kernel: bzImage, or vmlinux with PVH")
    parser.add_argument("--initrd", metavar="FILE", help="with this initramfs")
    parser.add_argument("--append", metavar="TEXT", help=f"and this command line (default: {_DEFAULT_APPEND})")
    parser.add_argument("--disk", metavar="IMAGE", help="boot this disk, or give it to the kernel: raw or qcow2")
    parser.add_argument("--cdrom", metavar="ISO", help="boot this ISO image, or give it to the kernel")
    parser.add_argument("--firmware", metavar="ovmf|FILE", help="UEFI, not a BIOS: the installed one, or this")
    parser.add_argument("-m", "--memory", type=_size, default="1G", metavar="MEM", help="(default: 1G)")
    parser.add_argument(
        "--smp",
        type=int,
        metavar="N",
        help=f"CPUs; with one, Linux unlocks its own code (default: {_DEFAULT_CPUS}; --vmx: 1)",
    )
    parser.add_argument("--duration", type=seconds, metavar="S", help="end after so many seconds")
    parser.add_argument("--until", type=_pattern, metavar="REGEX", help="end when the console says this")
    parser.add_argument(
        "--fail-on",
        choices=("kernel", "user", "hypervisor", "any"),
        default="any",
        help="whose split locks are a failure; hypervisor: those it hands on (any)",
    )
    parser.add_argument("--sld", action="store_true", help="processors with split-lock detection: #AC, by TEST_CTRL")
    parser.add_argument("--bus-lock", action="store_true", help="processors with bus-lock detection: #DB, by DEBUGCTL")
    parser.add_argument(
        "--forward-ac", nargs="?", const="always", choices=("once", "always", "asked"),
        help="processors that announce nothing, and raise #AC all the same (default: always)",
    )  # fmt: skip
    parser.add_argument("--vmx", action="store_true", help="a processor with VMX and detection, emulated by Bochs")
    parser.add_argument("--build-emulator", action="store_true", help="build that emulator, once; two minutes")
    parser.add_argument(
        "--slow", action="store_true", help="these by QEMU's gdb stub, in passes: for a QEMU built without modules"
    )
    parser.add_argument("--traps", metavar="FILE", help="a line of JSON for each exception of these")
    parser.add_argument("--qemu", default=_QEMU, metavar="PROGRAM", help="(default: %(default)s)")
    report_options(parser, "list all of many sites", quiet="no console; no report when the status is 0")
    parser.add_argument("more", nargs="*", metavar="-- QEMU OPTIONS", help="more options for QEMU")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output
    from splitlock.guest import disk
    from splitlock.guest.detection import Detection
    from splitlock.guest.machine import Options

    if args.build_emulator:
        return _build()
    if args.vmx:
        _check_vmx(args)
    if not (args.kernel or args.disk or args.cdrom):
        raise SplitlockError("guest: nothing to boot; name a --kernel, --disk or --cdrom", 2)
    for option in ("initrd", "append"):
        if getattr(args, option) is not None and not args.kernel:
            raise SplitlockError(f"--{option}: goes with --kernel", 2)
    for option in ("kernel", "initrd", "cdrom"):
        disk.check_readable(f"--{option}", getattr(args, option))
    disk.check_kernel(args.kernel)
    detection = Detection(args.sld, args.bus_lock, args.forward_ac, args.vmx)
    if args.vmx and not args.forward_ac:
        detection = detection._replace(split_locks=True)
    if args.forward_ac and (args.sld or args.bus_lock):
        raise SplitlockError("--forward-ac: announces nothing; leave out --sld and --bus-lock", 2)
    if args.slow and not any(detection):
        raise SplitlockError("--slow: goes with --sld, --bus-lock or --forward-ac", 2)
    if args.slow and not args.kernel:
        raise SplitlockError("--slow: needs --kernel, which it tells to use the same addresses in each pass", 2)
    if args.traps and not any(detection):
        raise SplitlockError("--traps: goes with --vmx, --sld, --bus-lock or --forward-ac", 2)
    kind = disk.check(args.disk) if args.disk else None
    if args.vmx and kind:
        disk.check_raw(args.disk, kind)
    append = args.append if args.append is not None else _DEFAULT_APPEND + " noreplace-smp cryptomgr.notests" * args.vmx
    cpus = args.smp if args.smp is not None else 1 if args.vmx else _DEFAULT_CPUS
    options = Options(
        kernel=args.kernel, initrd=args.initrd, append=append,
        disk=args.disk, disk_format=kind, cdrom=args.cdrom,
        firmware=args.firmware, memory=args.memory, cpus=cpus,
        qemu=args.qemu, more=args.more,
        detection=detection,
    )  # fmt: skip
    way = _way(args)
    if any(detection):
        from splitlock.guest.selftest import check

        # of a processor that announces nothing the probe cannot tell what its TEST_CTRL is; the library is the same
        announced = detection._replace(split_locks=True, forward=None) if args.vmx else detection
        check(options._replace(detection=announced), way.emulator, way.lived)
    with Output(args.output) as out, _traps(args.traps) as traps:
        report = _watch(options._replace(traps=traps), args, way)
        status = _status(report, args.fail_on)
        if status or not args.quiet:
            from splitlock.report.guest_text import render

            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return status


class _Way(NamedTuple):
    """How a guest is run."""

    lived: Callable[..., AbstractContextManager[tuple[Watch, Ended]]]
    emulator: str | Emulator  #: what that takes: QEMU's version, or Bochs
    name: str  #: for the report


def _way(args: argparse.Namespace) -> _Way:
    if args.vmx:
        from splitlock.guest.bochs import emulator, machine

        found = emulator.find()
        return _Way(machine.lived, found, f"Bochs {found.version}")
    from splitlock.guest import watch
    from splitlock.guest.machine import version
    from splitlock.guest.stub import passes

    qemu = version(args.qemu)
    return _Way(passes.lived if args.slow else watch.lived, qemu, f"QEMU {qemu}")


def _build() -> int:
    from splitlock.guest.bochs import emulator

    complain("splitlock: the emulator: built once, in some two minutes of one core")
    print(emulator.build())
    return 0


def _check_vmx(args: argparse.Namespace) -> None:
    for option, without in _NOT_WITH_VMX.items():
        if getattr(args, option) != without:
            name = "-- QEMU OPTIONS" if option == "more" else f"--{option}"
            raise SplitlockError(f"{name}: is for QEMU, and --vmx runs in Bochs; leave it out", 2)
    if args.smp not in (None, 1):
        raise SplitlockError(f"--smp {args.smp}: --vmx has one CPU; leave it out", 2)
    if args.forward_ac not in (None, "always"):
        raise SplitlockError(f"--forward-ac={args.forward_ac}: with --vmx it takes no value: --forward-ac", 2)


@contextmanager
def _traps(path: str | None) -> Iterator[int | None]:
    """A descriptor of the file for exceptions."""
    if path is None:
        yield None
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    except OSError as error:
        raise SplitlockError(f"--traps {path}: {error.strerror}", 2) from None
    try:
        yield file
    finally:
        os.close(file)


def _watch(options: Options, args: argparse.Namespace, way: _Way) -> Report:
    from splitlock.guest.describe import describe
    from splitlock.guest.files import Files

    how: dict[str, object] = {"duration": args.duration, "until": args.until, "console": None if args.quiet else 2}
    if args.slow:
        how["tell"] = _quiet if args.quiet else _tell
    images = [(args.disk, options.disk_format)] if args.disk else []
    with (
        way.lived(options, way.emulator, **how) as (seen, ended),
        Files(images + ([(args.cdrom, "raw")] if args.cdrom else [])) as files,
    ):
        if not args.quiet and seen.said and not seen.said.endswith(b"\n"):
            sys.stderr.write("\n")  # the report begins on a line of its own
        return describe(seen, ended, args.disk or args.cdrom or args.kernel, way.name, options.cpus, files)


def _tell(words: str) -> None:
    complain(f"splitlock: {words}")


def _quiet(words: str) -> None:
    pass


def _status(report: Report, fail_on: str) -> int:
    """The exit status: a guest that did not live as it should have says nothing."""
    wheres = {site.where for site in report.sites}
    failed = {
        "kernel": any(where in _KERNEL for where in wheres),
        "user": "user" in wheres,
        "hypervisor": any(each.injected or each.straight for each in _handlings(report)),
        "any": bool(report.sites),
    }[fail_on] or bool(report.unnamed)
    if failed:
        return 1
    blind = report.detection is not None and report.detection.vmx and not _handlings(report)
    return 2 if report.watched.died or report.ready is None or blind else 0


def _handlings(report: Report) -> list[Handling]:
    return report.detection.hypervisors if report.detection else []


def _size(text: str) -> int:
    """Bytes of memory, in QEMU's words: a number of MiB, or one with M or G."""
    from splitlock.linux.text import number

    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("M", "G") else (text, "M")
    if not 0 < (amount := number(digits) or 0) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text}: not an amount of memory, such as 512M or 2G")
    return amount << (20 if unit == "M" else 30)


def _pattern(text: str) -> str:
    import re

    try:
        re.compile(text.encode())
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: no regular expression: {error}") from None
    return text
