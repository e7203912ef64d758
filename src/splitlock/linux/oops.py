"""What does the kernel dump when a split lock of its own stops it? The grammar of an oops, from its lines to numbers.

The words: arch/x86/kernel/dumpstack.c (`__die_header`, `show_opcodes`, `show_iret_regs`, `show_trace_log_lvl`,
`oops_end`), process_64.c and process_32.c (`__show_regs`), lib/dump_stack.c (`dump_stack_print_info`), kernel/module
(`print_modules`), kernel/panic.c. Symbols are lib/vsprintf.c's %pS and %pBb: `name+0xOFFSET/0xSIZE [module build-id]`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from splitlock.linux.dump import Dump, Frame, Head
from splitlock.linux.log import lines
from splitlock.linux.others import Others

_LINES = 400  # of one dump that are read: two stacks and a list of modules have some 150
_QUIET = 60  # lines in a row that say nothing to us: the rest of the dump is lost
_AFTER = 5  # the same after its end, where the kernel may yet say that the machine stops
_LONGEST = 4096  # characters of a line: the kernel's have some 1,000
_FRAMES = 128
_BYTES = 256  # of code: the kernel prints 64
_MODULES = 1024
_NAME = 256  # characters: symbols are shorter (KSYM_NAME_LEN is 512, of mangled names)

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BREAK = re.compile(r"\\x0a|\\n|#012|\n")  # /dev/kmsg and journalctl; JSON; rsyslog; a record with a break in it
_CLOCK = re.compile(r"\[ *\d+\.\d{6}\]")
_CALLER = re.compile(r"\[ *([CT]\d{1,10})\]")  # CONFIG_PRINTK_CALLER: which CPU or task wrote the line

_NUMBER = re.compile(r": [0-9a-fA-F]{4} \[#(?P<number>\d{1,9})\]")

_MODULE = r"(?: \[(?P<module>[\w-]{1,64})(?: (?P<build>[0-9a-fA-F]+))?\])?"
_SYMBOL = r"(?P<symbol>[\w.$]{1,512})\+0x(?P<offset>[0-9a-fA-F]{1,16})/0x(?P<size>[0-9a-fA-F]{1,16})"
_SOURCE = (  # scripts/decode_stacktrace.sh
    r"(?P<decoded>[\w.$]{1,512}) \((?P<source>[^()\s:]{1,255}:\d{1,7})[^()]{0,255}(?:\([^()]{0,40}\))?[^()]{0,9}\)"
)
_PLACE = re.compile(rf"(?:{_SYMBOL}|(?P<address>0x[0-9a-fA-F]{{1,16}})|{_SOURCE}){_MODULE}")
_FRAME = re.compile(
    rf"(?:^|[\s\]>])(?P<guess>\? +)?(?:\[<[0-9a-fA-F]*>\] +(?P<guess2>\? +)?)?"
    rf"(?:{_SYMBOL}|(?P<address>0x[0-9a-fA-F]{{4,16}})|{_SOURCE}){_MODULE}$"
)
_IP = re.compile(r"\b(?P<name>[RE]IP): (?:(?P<cs>[0-9a-fA-F]{4}):)?(?:\[<[0-9a-fA-F]*>\] *)*(?P<where>.*)")
_CONTEXT = re.compile(r"(?:^|\s)<(?P<end>/?)(?P<name>[A-Z#][A-Z#0-9_]{1,15})>(?P<rest>.*)")
_REGISTER = re.compile(  # of all their digits: a line that was cut off has fewer
    r"\b(?:(R[A-D]X|R[SD]I|R[BS]P|R\d\d|[CD]R\d|FS|GS|knlGS): *(?:[0-9a-fA-F]{4}:)?([0-9a-fA-F]{16})"
    r"|(E[A-D]X|E[SD]I|E[BS]P|EFLAGS|[CD]R\d): *([0-9a-fA-F]{8}))\b"
)
_OPCODES = re.compile(r"\bCode: (?P<bytes>[<(]?[0-9a-fA-F]{2}(?![0-9a-fA-F])[0-9a-fA-F<>() ]*)")
_MORE = re.compile(r"(?: *+[<(]?[0-9a-fA-F]{0,2}[>)]?(?: |$))+")  # of it, where a terminal has broken the line
_BYTE = re.compile(r"([<(]?)([0-9a-fA-F]{2})([>)]?)")
_UNREADABLE = re.compile(
    r"\bCode: +(?:Unable to access opcode bytes at (?:RIP )?(?:0x(?P<start>[0-9a-fA-F]{1,16}))?|Bad RIP)"
)
_PROLOGUE, _SHOWN = 42, 64  # bytes before the instruction that `Code:` begins with; all of them
#: What a terminal has broken within: a place, a register's value. The line of a task, which else has a release.
_BROKEN = re.compile(
    r"\b[RE]IP: (?:\d{4}:)?[^ ]{0,600}(?: \[[^\]]{0,99})?$|\bCPU: \d+ "
    r"|\b(?:[RE][A-D]X|[RE][SD]I|[RE][BS]P|R\d\d|[CD]R\d|[FG]S|knlGS): *(?:[0-9a-fA-F]{4}:)?[0-9a-fA-F]{0,15}$"
)
_REST = re.compile(
    r"(?:[^\s:\[\]]++|[^\s:\[\]]{0,99}[ \[]?[\w-]{1,99}\])(?: [^:\[]*+$| .{0,400}[A-Z0-9]{2,5}: | #\d|$)"
)
_TASK = re.compile(  # a name may read like what follows it ("a Not tainted 1"): the last that does is the kernel's
    r"\bCPU: (?P<cpu>\d{1,9}) (?:UID: \d{1,10} )?PID: (?P<pid>\d{1,10}) Comm: (?P<comm>.{0,60}) {1,20}"
    r"(?:Kdump: loaded )?(?P<taint>Not tainted|Tainted: [A-Z -]{1,40}?) {1,20}(?P<release>\d\S*)(?: (?P<version>.*))?"
)
_HARDWARE = re.compile(r"\bHardware name: (.*)")
_WORK = re.compile(r"\bWorkqueue: (.*)")
_LINKED = re.compile(r"\bModules linked in:(?P<names>.*)")
_LINKED_ON = re.compile(
    r"(?:^|\]|\bkernel:) *+([\w-]++(?:\([A-Z+-]{1,9}\))?+(?: [\w-]++(?:\([A-Z+-]{1,9}\))?+)*+)(?: *+\[last unloaded:|$)"
)
_LOADED = re.compile(r"(?<![\w-])([\w-]{1,64})(?:\(([A-Z+-]{1,9})\))?(?: |$)")
_TRACE = re.compile(r"\bCall Trace:")
_END = re.compile(r"---\[ end trace ")
_PANIC = re.compile(r"\bKernel panic - not syncing: (.*)")
_NOTE = re.compile(r"\bnote: .{1,20}\[\d+\] exited with ")


def head(text: str) -> Head | None:
    """Whether a line, or a record of two lines, begins an oops by `#AC`. Whatever a logger puts first may be there."""
    found = _head(text)
    return found[0] if found else None


def _head(text: str) -> tuple[Head, list[str]] | None:
    """The head in a record, and the lines that follow it there."""
    if "lock detected" not in text and "alignment check:" not in text:
        return None
    return _beginning(text)


@lru_cache(maxsize=1)  # `head`, `Collector.feed` and `Collector()` ask the same of a record, one after the other
def _beginning(text: str) -> tuple[Head, list[str]] | None:
    records = _lines(text)
    for at, record in enumerate(records):
        for line in lines(record):
            if line.kind in ("oops", "alignment"):
                number = next((found for each in records[at : at + 2] if (found := _NUMBER.search(each))), None)
                return Head(line.kind == "oops", int(number["number"]) if number else None), records[at + 1 :]
    return None


def _lines(text: str) -> list[str]:
    """The kernel's lines in one record, without colours and what ends them."""
    return [(_COLOUR.sub("", line) if "\x1b" in line else line).rstrip() for line in _BREAK.split(text)]


class Collector:
    """Reads the lines after an oops's head, one at a time: `feed` until it says that it has all; `dump` holds them.

    Lines of others in between are passed over. Memory is bounded, whatever is fed.
    """

    def __init__(self, text: str) -> None:
        """`text`: the record with the head, for which `head` is not None."""
        found = _head(text)
        if found is None:
            raise ValueError("no head of an oops")
        self.dump = Dump(found[0])
        self.done = False
        self._fed = self._quiet = 0
        self._tracing = self._closing = self._listing = self._coding = self._again = False
        self._context = self._code = self._before = ""
        self._others, self._text = Others(), text
        caller = _CALLER.search(text[:_NAME])
        self._caller = caller[1] if caller else None
        self._take(found[1])

    @classmethod
    def headless(cls, records: list[str]) -> Collector:
        """Of a dump whose first line is lost. `records`: what was seen of it until it was known to be one."""
        made = cls("Split lock detected")
        made.dump.head = Head(split=True, number=None, lost=True)
        for record in records:
            made.feed(record)
        return made

    def again(self, text: str) -> bool:
        """Is it the last record once more, of the same microsecond? Two consoles wrote the log, or two loggers."""
        return text == self._text and _CLOCK.search(text[:_NAME]) is not None

    def feed(self, text: str) -> bool:
        """One more record. True: it is a part of the dump. `done` is set when no more is to come."""
        if self.done:
            return False
        self._text = text
        if head(text) is not None:
            self.done = True
            return False
        caller = _CALLER.search(text[:_NAME])
        if caller and self._caller and caller[1] != self._caller:
            return False
        return self._take(_lines(text))

    def _take(self, records: list[str]) -> bool:
        some = False
        for line in records:
            if self.done:
                break
            known = self._joined(line[:_LONGEST])
            some = some or known
            self._fed += 1
            self._quiet = 0 if known else self._quiet + 1
            if self._fed >= _LINES or self._quiet >= (_AFTER if self._closing else _QUIET):
                self.done = True
        return some

    def _joined(self, line: str) -> bool:
        """A line; with the one before it, where a terminal has broken that."""
        before = self._before
        task = _TASK.search(line)
        self._before = line if _BROKEN.search(line) and not (task and task["version"]) else ""
        if before and line.isascii() and not self._coding and _REST.match(line) and not _IP.search(line):
            place = self.dump.place
            if "IP: " in before and self._own:
                self.dump.place = None
            apart = "CPU: " in before and (line.startswith("#") or not _TASK.search(before + line))
            space = " " if apart else ""  # an end of line has lost it
            if self._line(before + space + line) and (self.dump.place or not place):
                return True
            self.dump.place = place
        return self._line(line)

    def _line(self, line: str) -> bool:
        dump = self.dump
        if self._others.take(line, dump, traced=self._tracing or bool(dump.frames)):
            dump.mixed, self._listing, self._coding = True, False, False
            return True
        listing, self._listing = self._listing, False
        if self._coding and _MORE.fullmatch(line):
            return self._opcodes(line, first=False)
        self._coding = False
        if found := _PANIC.search(line):
            dump.panic, dump.ended, self.done = found[1][:_NAME], True, True
        elif _NOTE.search(line):
            dump.ended = self.done = True
        elif _END.search(line):
            self._closing, dump.ended, self._tracing, self._quiet = True, True, False, 0
        elif found := _TASK.search(line):
            return self._task(found)
        elif found := _OPCODES.search(line):
            return self._opcodes(found["bytes"], first=True)
        elif found := _UNREADABLE.search(line):
            if self._own and not dump.code:
                dump.unreadable = True
                dump.address = int(found["start"], 16) + _PROLOGUE if found["start"] else dump.address
        elif found := _IP.search(line):
            self._place(found)
        elif found := _LINKED.search(line):
            dump.listed, self._listing, self._tracing = True, True, False
            self._loaded(found["names"])
        elif listing and (found := _LINKED_ON.search(line)):
            self._listing = True
            self._loaded(found[1])
        elif _TRACE.search(line):
            self._tracing = not self._closing
        elif self._registers(line) or self._traced(line):
            pass
        elif found := _NUMBER.search(line):
            if dump.head.number is None:
                dump.head = dump.head._replace(number=int(found["number"]))
        elif found := _HARDWARE.search(line):
            dump.hardware = dump.hardware or found[1][:_NAME]
        elif found := _WORK.search(line):
            dump.work = dump.work or found[1][:_NAME]
        else:
            return "PKRU:" in line or "Tainted: [" in line
        return True

    @property
    def _own(self) -> bool:
        """Whether what comes now is the oops's own: within a trace there are the registers of what was interrupted.
        After the end the kernel says its own once more."""
        return (not self._tracing and not self.dump.frames) or self._closing

    def _task(self, found: re.Match[str]) -> bool:
        dump = self.dump
        if dump.cpu is None and not self._closing:
            dump.cpu, dump.pid, dump.comm = int(found["cpu"]), int(found["pid"]), found["comm"].strip()
            dump.taint = "" if found["taint"] == "Not tainted" else "".join(found["taint"][9:].split())
            dump.release, dump.version = found["release"][:_NAME], (found["version"] or "").strip()[:_NAME]
            return True
        if dump.pid == int(found["pid"]) and not dump.version and found["release"].startswith(dump.release):
            dump.release, dump.version = found["release"][:_NAME], (found["version"] or "").strip()[:_NAME]
        if dump.pid != int(found["pid"]):  # somebody else's dump: a warning, a backtrace of all CPUs
            self.done = True
            return False
        return True

    def _place(self, found: re.Match[str]) -> None:
        dump = self.dump
        if found["cs"] and int(found["cs"], 16) & 3:  # a program's, whom the kernel worked for: the trace has begun
            self._tracing = self._tracing or not self._closing
            return
        if self._closing and dump.mixed and not self._again:  # said once more, with none of another's before it
            dump.place, dump.code, dump.at, self._again = None, b"", None, True
            dump.registers.clear()
        if not self._own or dump.place is not None:
            return
        where = found["where"].strip()
        place = _PLACE.match(where)
        dump.bits = 32 if found["name"] == "EIP" else 64
        dump.cs = int(found["cs"], 16) if found["cs"] else None
        if place is not None:
            dump.place = _frame(place)
            if place["address"]:
                dump.address = int(place["address"], 16)
        elif where:
            dump.place = Frame(where.split()[0][:_NAME], None, None)

    def _opcodes(self, text: str, *, first: bool) -> bool:
        """Bytes of code: the first line of them, or one that goes on where a terminal or a pager has broken it."""
        dump = self.dump
        if not self._own or (first and dump.at is not None):
            return True
        if first:  # a second time at the end: the first was cut off before the instruction
            self._code = text
        else:
            last = _BYTE.fullmatch((self._code.split() or [""])[-1])
            whole = last and bool(last[1]) == bool(last[3])
            self._code = (self._code + (" " if whole else "") + text)[:_LONGEST]
        dump.code, dump.at = b"", None
        for word in self._code.split()[:_BYTES]:
            found = _BYTE.fullmatch(word)
            if found is None:
                break
            if found[1] and dump.at is None:
                dump.at = len(dump.code)
            dump.code += bytes([int(found[2], 16)])
        if dump.at is None and len(dump.code) == _SHOWN:  # the mark was lost on the way; it stands there always
            dump.at = _PROLOGUE
        self._coding = True
        return True

    def _registers(self, line: str) -> bool:
        found = _REGISTER.findall(line)
        if self._own:
            for wide, value, narrow, half in found:
                if narrow[:1] == "E" and narrow != "EFLAGS":
                    self.dump.bits = 32
                if not half or narrow == "EFLAGS" or self.dump.bits == 32:
                    self.dump.registers.setdefault(wide or narrow, int(value or half, 16))
        return bool(found)

    def _loaded(self, text: str) -> None:
        modules = self.dump.modules
        for name, letters in _LOADED.findall(text.split("[last unloaded", maxsplit=1)[0]):
            if len(modules) < _MODULES:
                modules[name.replace("-", "_")] = letters

    def _traced(self, line: str) -> bool:
        context = _CONTEXT.search(line)
        if self._closing or not (self._tracing or context):
            return False
        if context:
            self._tracing = True
            self._context = "" if context["end"] else context["name"]
            line = context["rest"]
            if not line.strip():
                return True
        found = _FRAME.search(line)
        if found is None:
            return False
        if len(self.dump.frames) < _FRAMES:
            guess = bool(found["guess"] or found["guess2"])
            self.dump.frames.append(_frame(found)._replace(reliable=not guess, context=self._context))
        return True


def _frame(found: re.Match[str]) -> Frame:
    module, build = found["module"] or "", found["build"] or ""
    if found["address"]:
        return Frame(found["address"], None, None, module, build)
    if found["decoded"]:
        return Frame(found["decoded"], None, None, module, build, source=found["source"])
    return Frame(found["symbol"], int(found["offset"], 16), int(found["size"], 16), module, build)
