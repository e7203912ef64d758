"""The decisions of `splitlock guard` and the gate's state as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import WIDTH, count, cut, named, page, printable, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guard import Decision, Status

_MARGIN = " " * 9
_MISSED = (
    "WARNING: missed: a program of the gate was not run, as it was interrupted on the same processor; a load that the "
    "judge missed is refused, unless the check behind it missed it too"
)
_ONE = {"decisions": "decision", "doubts": "doubt", "canaries": "canary"}  # of the counters' names
_COLOURS = {"allow": "32", "refuse": "1;31", "disable": "1;33"}


def head() -> str:
    """The table's head."""
    return f"{'VERDICT':<8} {'TIME (UTC)':<19} {'MODULE':<18} {'BY':<20} WHY"


def render(decision: Decision, *, verbose: bool = False, colour: bool = False) -> str:
    """One decision as text, 80 columns wide."""
    verdict = "REFUSED" if decision.refused else "allow" if decision.listed else decision.verdict
    by = f"{named(decision.comm)}/{decision.pid}"
    line = (
        f"{verdict:<8} {decision.time[:19].replace('T', ' '):<19} {cut(named(decision.name or '?'), 18):<18} {by:<20} "
    )
    rest = printable(decision.reason)
    lines = [line + rest] if len(line) + len(rest) <= WIDTH else [line.rstrip(), *wrap(_MARGIN + rest, "", _MARGIN)]
    if verbose or decision.refused:
        lines += wrap(", ".join(_facts(decision)), _MARGIN, _MARGIN)
    if verbose or verdict != "allow":
        lines += findings(decision, verbose)
        if decision.log:
            lines += wrap(f"log: {decision.log}", _MARGIN, _MARGIN + "     ")
    text = page(lines)
    if colour:
        number = _COLOURS.get(verdict, _COLOURS["refuse"])
        text = f"\x1b[{number}m{verdict}\x1b[0m" + text[len(verdict) :]
    return text


def render_test(decision: Decision, path: str, *, verbose: bool = False) -> str:
    """What the gate says of a file, as text."""
    verdict = "allow" if decision.listed else decision.verdict
    lines = wrap(f"{verdict:<8} {named(decision.name or path.rpartition('/')[2])}: {decision.reason}", "", _MARGIN)
    if verbose or decision.verdict != "allow":
        lines.append(_MARGIN + named(path))
        lines += findings(decision, verbose)
        if decision.log:
            lines += wrap(f"log: {decision.log}", _MARGIN, _MARGIN + "     ")
    if verbose and decision.digest:
        lines.append(f"{_MARGIN}sha256 {decision.digest}")
    return page(lines)


def findings(decision: Decision, verbose: bool) -> list[str]:
    """A line a kind, the first place; every finding when verbose."""
    lines, seen = [], set()
    for finding in decision.findings:
        if not verbose and finding.kind in seen:
            continue
        seen.add(finding.kind)
        where = f"{named(finding.section)}+{finding.offset}  " if finding.section else ""
        what = finding.kind + (" (possible)" if finding.possible else "")
        lines.append(cut(f"{_MARGIN}{what:<20} {where}{finding.evidence}"))
    if decision.total > len(decision.findings):
        lines.append(f"{_MARGIN}and {count(decision.total - len(decision.findings), 'more finding')}")
    return lines


def _facts(decision: Decision) -> list[str]:
    how = "from memory" if decision.source == "memory" else "from a file"
    facts = [f"{count(decision.size, 'byte')} {how}", f"uid {decision.uid}", f"{decision.nanoseconds / 1e6:.2f} ms"]
    if decision.digest:
        facts.append(f"sha256 {decision.digest}")
    elif decision.build_id:
        facts.append(f"build id {decision.build_id}")
    return facts


def render_status(status: Status) -> str:
    """The gate's state as text, 80 columns wide."""
    what = {"bpf": "BPF LSM", "fanotify": "fanotify", "none": "none"}[status.gate]
    lines = [f"gate      {what}{': live' if status.live else ': NOT LIVE' if status.gate != 'none' else ''}"]
    if status.why:
        lines += wrap(f"          {status.why}", "", " " * 10)
    if status.policy is not None:
        lines.append(f"policy    {status.policy}" + (" (audit: nothing is refused)" if status.audit else ""))
    if status.started:
        lines.append(f"since     {status.started}")
    if status.counters:
        shown = [count(number, _ONE.get(word, word), word) for word, number in status.counters.items()
                 if word != "nanoseconds"]  # fmt: skip
        lines += wrap(f"counted   {', '.join(shown)}", "", " " * 10)
        if status.counters.get("decisions"):
            each = status.counters["nanoseconds"] / status.counters["decisions"] / 1e6
            lines.append(f"          {each:.3f} ms a decision")
        if status.counters.get("lost"):
            lines.append("          lost: decided as all others, but nobody read the log in time")
        if status.counters.get("missed"):
            lines += wrap(f"          {_MISSED}", "", " " * 10)
    if status.allowed:
        lines += [f"{'allow' if not at else '':<9} {digest}" for at, digest in enumerate(status.allowed)]
    if status.pins:
        lines += wrap(f"pins      {' '.join(map(named, status.pins))}", "", " " * 10)
    if status.watched:
        lines += wrap(f"watches   {' '.join(map(named, status.watched))}", "", " " * 10)
    if status.gate != "none":
        lines.append(f"log       {named(status.log)}")
    for number, hole in enumerate(status.holes):
        lines += wrap(f"{'blind to' if not number else '':<9} {hole}", "", " " * 12)
    return page(lines)
