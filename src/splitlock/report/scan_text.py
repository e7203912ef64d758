"""The report of `splitlock scan` as text, 80 columns wide, a file at a time."""

from __future__ import annotations

from splitlock.report.lines import NO_BREAK, WIDTH, count, cut, named, page, printable, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.scan import File, Finding, Summary

_MARGIN = " " * 9
_COLOURS = {"allow": "32", "refuse": "1;31", "disable": "1;33", "error": "35"}


class Text:
    """A report as text, a piece at a time: `begin`, `file` for each file, `end`."""

    def __init__(self, policy: str, *, verbose: bool = False, quiet: bool = False, colour: bool = False) -> None:
        self.policy = policy
        self.verbose = verbose
        self.quiet = quiet
        self.colour = colour

    def begin(self) -> bytes:
        """Nothing: a table without a head."""
        return b""

    def file(self, file: File) -> bytes:
        """The verdict, why, and what was found: a line a kind, or with `verbose` a line a finding."""
        if self.quiet and file.verdict == "allow":
            return b""
        verdict = file.verdict
        lines = wrap(f"{verdict:<8} {named(file.name or _last(file))}: {file.reason}", "", _MARGIN)
        if self.verbose or verdict != "allow":
            place = f"{named(file.path)}: {named(file.member)}" if file.member else named(file.path)
            lines.append(_MARGIN + _tail(place, WIDTH - len(_MARGIN)))
        if self.verbose and verdict != "error":
            lines += wrap(", ".join(_facts(file)), _MARGIN, _MARGIN)
        if verdict == "allow" and not self.verbose:
            lines += _kinds(file)
        else:
            lines += _findings(file, self.verbose)
        if file.log:
            lines += wrap(f"log: {file.log}", _MARGIN, _MARGIN + "     ")
        text = page(lines)
        if self.colour:
            text = f"\x1b[{_COLOURS[verdict]}m{verdict}\x1b[0m" + text[len(verdict) :]
        return text.encode("utf-8", "replace")

    def end(self, summary: Summary) -> bytes:
        """The numbers."""
        if self.quiet and summary.complete and not (summary.refuse or summary.disable or summary.error):
            return b""
        counts = [
            f"{number:,} {word}"
            for number, word in (
                (summary.refuse, "refused"),
                (summary.disable, "would turn detection off"),
                (summary.allow, "allowed"),
                (summary.error, "could not be read"),
            )
            if number or word == "allowed"
        ]
        lines = [] if summary.complete else ["interrupted: what follows is what was scanned until then"]
        lines += wrap(f"{count(summary.files, 'file')} scanned, policy {self.policy}: {', '.join(counts)}")
        if summary.kinds:
            kinds = sorted(summary.kinds.items(), key=lambda item: (-item[1].instructions - item[1].evidence, item[0]))
            words = []
            for title, kind in kinds:
                sure = kind.instructions + kind.evidence
                word = f"{title} {sure:,}" + (f" (+{kind.possible:,} possible)" if kind.possible else "")
                words.append(word.replace(" ", NO_BREAK))
            lines += wrap(f"found: {', '.join(words)}")
        return page(lines).encode("utf-8", "replace")


def _kinds(file: File) -> list[str]:
    """How much of what: all there is to say of what is allowed."""
    counts: dict[tuple[str, bool], int] = {}
    for finding in file.findings:
        key = finding.kind, finding.certainty == "possible" and finding.evidence == "instruction"
        counts[key] = counts.get(key, 0) + 1
    words = [f"{kind} {count:,}{' possible' if doubt else ''}" for (kind, doubt), count in counts.items()]
    return wrap(", ".join(word.replace(" ", NO_BREAK) for word in words), _MARGIN, _MARGIN) if words else []


def _findings(file: File, verbose: bool) -> list[str]:
    groups: dict[tuple[bool, str, str, bool], list[Finding]] = {}
    for finding in file.findings:
        key = (
            finding.kind not in file.because,  # what led to the verdict comes first
            finding.kind,
            finding.certainty,
            finding.evidence == "instruction",
        )
        groups.setdefault(key, []).append(finding)
    lines = []
    for (_, kind, certainty, _), found in sorted(groups.items(), key=lambda item: item[0][0]):
        head = f"{len(found):>4} {kind}" + (" (possible)" if certainty == "possible" else "")
        for number, finding in enumerate(found if verbose else found[:1]):
            lines += _place(finding, f"{_MARGIN}{head if number == 0 else '':<18} ")
    return lines


def _place(finding: Finding, head: str) -> list[str]:
    where = [f"{named(finding.section)}+{finding.offset}"] if finding.section else []
    if finding.function:
        where.append(named(finding.function))
    what = finding.evidence if finding.evidence != "instruction" else finding.instruction or ""
    line = printable(head + "  ".join([*where, what]))
    if len(line) <= WIDTH or not where:
        return wrap(line, "", _MARGIN + " " * 19) if len(line) > WIDTH else [line]
    return [cut(head + "  ".join(where)), _MARGIN + " " * 19 + what]


def _facts(file: File) -> list[str]:
    facts = [word for word in ("sld_safe", "sld_aware", "intree") if getattr(file, word)]
    facts.append(f"signed by {named(file.signer)}" if file.signer else "unsigned")
    if file.vermagic:
        facts.append(f"vermagic {named(file.vermagic.strip())}")
    if file.depends:
        facts.append(f"depends on {' '.join(map(named, file.depends))}")
    if file.sha256:
        facts.append(f"sha256 {file.sha256}")
    return facts


def _last(file: File) -> str:
    return (file.member or file.path).rpartition("/")[2]


def _tail(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else "…" + text[-(width - 1) :]
