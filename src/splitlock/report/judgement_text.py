"""A judgement as lines of text, 80 columns wide: for `splitlock status` and `advise`."""

from __future__ import annotations

from splitlock.report.lines import named, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.judgement import Effect, Judgement, Mode

_LABEL = 14  # columns
_NAMED = 4


def modes(judgement: Judgement, *, verbose: bool = False) -> list[str]:
    """What each mode would do; `*` marks the one in effect."""
    return [line for mode in judgement.modes for line in _mode(mode, verbose)]


def _mode(mode: Mode, verbose: bool) -> list[str]:
    margin = " " * _LABEL
    lines = wrap(f"{'*' if mode.now else ' '} {mode.mode:<12}{mode.what}", "", margin)
    if mode.verdict == "nothing" and not verbose:
        return lines
    for effect in mode.effects:
        if effect.fate != "nothing" or verbose:
            lines += wrap(_effect(effect), margin, margin + "  ")
            lines += wrap(f"[{effect.source}]", margin + "  ", margin + "  ") if verbose and effect.source else []
    return lines


def _effect(effect: Effect) -> str:
    note = "" if effect.counts else "note: "
    more = f" and {len(effect.names) - _NAMED} more" if len(effect.names) > _NAMED else ""
    names = f" (here: {', '.join(map(named, effect.names[:_NAMED]))}{more})" if effect.names else ""
    return f"{note}{effect.what}{names}"
