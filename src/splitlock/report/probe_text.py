"""The report of `splitlock probe` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, cut, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.probe import Report, Row

VERDICTS = {
    "exposes-feature": "exposes the feature",
    "forwards-blindly": "forwards blindly",
    "breaks-guest": "breaks the guest",
    "throttles": "handles it for the guest: throttles",
    "injects-when-asked": "injects only when asked",
    "emulates": "emulates, or locks the bus",
    "nothing-to-handle": "no detection seen: nothing to handle",
    "unclear": "unclear",
}
_TABLES = (
    ("SPLIT LOCK", "split", False),
    ("SPLIT LOCK, TEST_CTRL ON", "split", True),
    ("MISALIGNED", "misaligned", False),
    ("BUS LOCK, DEBUGCTL ON", "buslock", False),
)
_MODES = {"real16": "real", "prot32": "protected", "long64": "long"}
_MSRS = {"000000cf": "CORE_CAPABILITIES", "00000033": "TEST_CTRL", "000001d9": "DEBUGCTL"}
_CLOCKS = {
    "hypervisor": "the hypervisor says", "pit": "measured", "cpuid15": "CPUID.15h", "cpuid16": "CPUID.16h",
    "guess": "not known, taken for the fastest",
}  # fmt: skip
_EXCEPTIONS = {1: "#DB", 6: "#UD", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 17: "#AC"}
_OUTCOMES = {"completed": "completes", "reset": "reset or end", "unended": "not known"}
_HEAD, _CELL = 26, 13  # columns


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; every row where `verbose`."""
    lines = wrap(f"verdict: {VERDICTS[report.verdict]}")
    for reason in report.reasons:
        lines += wrap(f"  {reason}", "", "    ")
    for words in report.not_told:
        lines += wrap(f"  not told: {words}", "", "    ")
    lines += ["", *_machine(report)]
    for title, access, detecting in _TABLES:
        lines += _table(title, [row for row in report.rows if row.access == access and row.detecting == detecting])
    if verbose:
        lines += _rows(report.rows)
    lines += ["", f"{count(len(report.rows), 'row')}, {count(report.split_locks, 'split lock')}"]
    for words in report.missing:
        lines += wrap(f"missing: {words}")
    if report.damaged:
        lines.append(f"{_lines(report.damaged)} the probe's, but spoilt")
    if verbose and report.foreign:
        lines.append(f"{_lines(report.foreign)} not the probe's")
    return page(lines)


def _lines(number: int) -> str:
    return f"{count(number, 'line')} {'is' if number == 1 else 'are'}"


def _machine(report: Report) -> list[str]:
    """What the processor says of itself."""
    leaves = {leaf.leaf: leaf for leaf in report.cpuid}
    words = [report.source]
    if vendor := leaves.get("00000000"):
        words.append(_text(vendor.ebx, vendor.edx, vendor.ecx))
    name = [leaves[leaf] for leaf in ("80000002", "80000003", "80000004") if leaf in leaves]
    words.append(" ".join("".join(_text(leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) for leaf in name).split()))
    if hypervisor := leaves.get("40000000"):
        words.append(f"hypervisor {_text(hypervisor.ebx, hypervisor.ecx, hypervisor.edx) or 'without a name'}")
    lines = wrap(" · ".join(word for word in words if word))
    seen = [f"{_MSRS.get(m.number, m.number)} {m.value or _exception(m.vector)}" for m in report.msrs]
    if clock := report.clock:
        seen.append(f"time-stamp counter {clock.khz:,} kHz ({_CLOCKS[clock.source]})")
    return lines + wrap(" · ".join(seen)) if seen else lines


def _text(*registers: str) -> str:
    """The characters in registers, each in hex."""
    raw = b"".join(int(register, 16).to_bytes(4, "little") for register in registers)
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw.rstrip(b"\0"))


def _table(title: str, rows: list[Row]) -> list[str]:
    """A line a mode and CPL, a column for each state of CR0.AM and EFLAGS.AC."""
    if not rows:
        return []
    heads = "".join(f"{f'AM={am} AC={ac}':<{_CELL}}" for am in (0, 1) for ac in (0, 1))
    lines = ["", f"{title:<{_HEAD}} {heads}".rstrip()]
    for mode, cpl in dict.fromkeys((row.mode, row.cpl) for row in rows):
        cells = {(row.am, row.ac): _outcome(row) for row in rows if (row.mode, row.cpl) == (mode, cpl)}
        states = [(am, ac) for am in (False, True) for ac in (False, True)]
        line = f"{_MODES[mode]:<9} mode, CPL {cpl}"
        lines.append(f"{line:<{_HEAD}} {''.join(f'{cells.get(state, chr(45)):<{_CELL}}' for state in states)}".rstrip())
    return lines


def _outcome(row: Row) -> str:
    """What became of it, in few words."""
    told = _exception(row.vector) if row.outcome == "raised" else _OUTCOMES[row.outcome]
    return f"{told}, wrong" if row.memory_right is False else told


def _exception(vector: int | None) -> str:
    return _EXCEPTIONS.get(vector or 0, f"exception {vector}")


def _rows(rows: list[Row]) -> list[str]:
    """Every row with all that is known of it."""
    lines = ["", "ROW  MODE    CPL AM AC TC  ACCESS      OUTCOME"]
    for row in rows:
        told = _outcome(row)
        if row.outcome == "raised":
            told += f" {row.place} the instruction" if row.place != "elsewhere" else " elsewhere"
            told += f", error {row.error}" if row.error else ""
        elif row.cycles:
            told += f", cycles {' '.join(f'{one:,}' for one in row.cycles)}"
        state = f"{row.am:>2} {row.ac:>2} {row.detecting:>2}"
        lines.append(cut(f"{row.number:>3}  {row.mode:<7} {row.cpl:>3} {state}  {row.access:<11} {told}"))
    return lines
