"""The matrix of `splitlock simulate` as one HTML file that needs nothing else."""

from __future__ import annotations

from jinja2 import Environment

from splitlock.report.simulate_text import outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.simulate import Matrix

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Split locks by mode, policy, hypervisor and guest</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; margin-bottom: 2em; }
th, td { border: 1px solid #bbb; padding: 2px 8px; text-align: left; }
thead th { position: sticky; top: 0; background: #eee; }
.harm { background: #fbb; } .slowed, .emulated { background: #ffd; } .not-started { color: #888; }
</style>
<h1>What comes of a split lock</h1>
<p>Linux {{ report.linux }}, processor with {{ report.processor | join(" and ") or "no detection" }}. Hover over a
cell for the rule that decided.</p>
<p>{% for policy in policies %}<a href="#{{ policy }}">{{ policy }}</a> {% endfor %}</p>
{% for policy in policies %}
<h2 id="{{ policy }}">Policy: {{ policy }}</h2>
<table>
<thead><tr><th>hypervisor<th>module<th>guest<th>split lock{% for mode in modes %}<th>{{ mode }}{% endfor %}</thead>
{% for (hypervisor, guest, access), cells in rows[policy].items() %}
<tr><td>{{ hypervisor }}<td title="{{ reasons[policy, hypervisor] }}">{{ admitted[policy, hypervisor] }}
<td>{{ guest }}<td>{{ access }}{% for mode in modes %}{% set cell = cells[mode] %}
<td class="{{ "harm" if cell.victim else cell.fate }}" title="{{ cell.why }}">{{ outcome(cell) }}{% endfor %}
{% endfor %}
</table>
{% endfor %}
</html>
"""


def render(report: Matrix) -> str:
    """The page."""
    rows: dict[str, dict[tuple[str, str, str], dict[str, object]]] = {}
    for cell in report.cells:
        table = rows.setdefault(cell.policy, {})
        table.setdefault((cell.hypervisor, cell.guest, cell.access), {})[cell.mode] = cell
    return (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(_PAGE)
        .render(
            report=report, rows=rows, policies=list(rows), outcome=outcome,
            modes=list(dict.fromkeys(cell.mode for cell in report.cells)),
            admitted={(one.policy, one.hypervisor): one.outcome for one in report.admissions},
            reasons={(one.policy, one.hypervisor): one.reason for one in report.admissions},
        )
    )  # fmt: skip
