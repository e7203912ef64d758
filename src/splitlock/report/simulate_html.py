"""The matrix of `splitlock simulate` as one HTML file that needs nothing else, for wide and for narrow screens."""

from __future__ import annotations

from jinja2 import Environment

from splitlock.report.simulate_text import FATES, UNRELEASED, outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.simulate import Cell, Matrix

# A narrow screen shows each row as a block: what it is about, then a line for each mode, which a header would not fit.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Split locks by mode, policy, hypervisor and guest</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5em auto; padding: 0 1em; max-width: 70em; color: #111;
       background: #fff; }
table { border-collapse: collapse; margin: .5em 0 1em; }
th, td { border: 1px solid #bbb; padding: 3px 8px; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: #eee; }
tbody th { font-weight: normal; }
sup { line-height: 0; }
sup a { text-decoration: none; }
.harm { background: #fbb; } .slowed, .emulated { background: #ffd; } .not-started { color: #666; }
summary { cursor: pointer; margin: .3em 0; }
dt { float: left; clear: left; min-width: 8.5em; font-weight: 600; } dd { margin: 0 0 .3em 9em; }
ol { padding-left: 2.2em; } li:target { background: #dff; }
nav a { margin-right: .8em; }
@media (max-width: 640px) {
  table, tbody, tr, th, td { display: block; border: 0; padding: 2px 0; }
  thead { display: none; }
  tbody tr { border: 1px solid #bbb; margin-bottom: .6em; padding: .4em .6em; }
  tbody th { font-weight: 600; }
  td { padding: 2px 4px; overflow-wrap: anywhere; }
  td::before { content: attr(data-mode) ": "; color: #444; }
  dt { float: none; } dd { margin-left: 1em; }
}
</style>
<h1>What comes of a split lock</h1>
<p>Linux {{ report.linux }}, on a processor with {{ report.processor | join(" and ") or "no detection" }}. A split lock
is a locked instruction whose operand crosses a cache line. Each table shows what comes of one, in each mode of
<code>split_lock_detect=</code>; the small numbers lead to the <a href="#rules">rule that decided</a>.</p>
{% if report.unreleased %}
<p>{{ unreleased }}</p>
{% endif %}
<h2 id="legend">What the words mean</h2>
<dl>
{% for word, meaning in legend %}
<dt>{{ word }}<dd>{{ meaning }}
{% endfor %}
</dl>
<h2 id="policies">What a policy says to a hypervisor's module</h2>
<p>With detection on. A policy decides whether the module may be loaded, and so whether its guests can be started at
all.</p>
<table>
<thead><tr><th scope="col">hypervisor{% for policy in policies[1:] %}<th scope="col">{{ policy }}{% endfor %}
</thead>
<tbody>
{% for hypervisor in hypervisors %}
<tr><th scope="row">{{ hypervisor }}
{% for policy in policies[1:] %}{% set one = admitted[policy, hypervisor] %}
<td data-mode="{{ policy }}">{{ one.outcome }}{{ note(one.reason) }}
{% endfor %}
{% endfor %}
</tbody></table>
<nav aria-label="tables">Tables: {% for policy in policies %}<a href="#{{ policy }}">{{ policy }}</a> {% endfor %}</nav>
{% for policy in policies %}
<h2 id="{{ policy }}">{{ "No policy: Linux as it is" if policy == "none" else "Policy: " + policy }}</h2>
{% for hypervisor, lines in tables[policy].items() %}
<details{{ " open" if loop.first and policy == "none" else "" }}>
<summary>{{ "On the host itself" if hypervisor == "none" else hypervisor }}</summary>
<table>
<thead><tr><th scope="col">{{ "guest and " if hypervisor != "none" else "" }}split lock
{% for mode in modes %}<th scope="col">{{ mode }}{% endfor %}
</thead>
<tbody>
{% for (guest, access), cells in lines.items() %}
<tr><th scope="row">{{ guest + ": " if guest != "none" else "" }}{{ access }}
{% for mode in modes %}{% set cell = cells[mode] %}
<td data-mode="{{ mode }}" class="{{ "harm" if cell.victim else cell.fate }}">{{ outcome(cell) }}{{ note(cell.why) }}
{% endfor %}
{% endfor %}
</tbody></table>
</details>
{% endfor %}
{% endfor %}
<h2 id="rules">The rules that decided</h2>
<ol>
{% for rule in rules %}
<li id="rule-{{ loop.index }}">{{ rule }}
{% endfor %}
</ol>
</html>
"""


class _Notes:
    """Footnotes: each sentence has one number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The sentence's own."""
        return self.numbers.setdefault(text, len(self.numbers) + 1)


def render(report: Matrix) -> str:
    """The page."""
    from markupsafe import Markup

    tables: dict[str, dict[str, dict[tuple[str, str], dict[str, Cell]]]] = {}
    for cell in report.cells:
        lines = tables.setdefault(cell.policy, {}).setdefault(cell.hypervisor, {})
        lines.setdefault((cell.guest, cell.access), {})[cell.mode] = cell
    notes = _Notes()
    every = [one.reason for one in report.admissions] + [cell.why for cell in report.cells]
    rules = list(dict.fromkeys(every))
    for rule in rules:
        notes.number(rule)

    def note(text: str) -> Markup:
        number = notes.number(text)
        return Markup('<sup><a href="#rule-{0}">{0}</a></sup>').format(number)

    return (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(_PAGE)
        .render(
            report=report, tables=tables, policies=list(tables), outcome=outcome, note=note, rules=rules,
            legend=FATES, unreleased=UNRELEASED,
            modes=list(dict.fromkeys(cell.mode for cell in report.cells)),
            hypervisors=list(dict.fromkeys(one.hypervisor for one in report.admissions)),
            admitted={(one.policy, one.hypervisor): one for one in report.admissions},
        )
    )  # fmt: skip
