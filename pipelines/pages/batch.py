"""index.html of `make infer`: every scan of a batch on one page, sortable, with a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from pipelines.detect.report import Report
from preprocessing.scans import NOTICE

NAME = "index.html"
COLUMNS = ("scan", "score", "percentile", "marked, ml", "findings", "largest finding", "flags")

MANY = 1000  # flags that a scan counts as that could not be scored

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Norma: {{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; max-width: 80rem; padding: 1rem; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 66rem; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: middle; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid #0072b2; }
th:nth-child(1) { width: 100px; }
th:nth-child(2) { width: 8rem; }
th:nth-child(n+3):nth-child(-n+6) { width: 5rem; }
th:nth-child(7) { width: 12rem; }
td { overflow-wrap: anywhere; }
img { display: block; width: 100px; height: auto; min-height: 100px; background: #000; }
.number { text-align: right; }
.failed { color: #8a1c1c; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ notice }}</p>
{% if promise %}<p>{{ promise }}</p>{% endif %}
<p>A picture shows the slice with the highest map value, patient's right on the viewer's left. Orange is marked. A heading sorts.
{% if lobes %}Lobes are those of the Desikan-Killiany atlas, laid on the head rigidly: near its border a lobe may be the neighbour's.{% endif %}</p>
<table id="scans">
<thead><tr><th scope="col">picture</th>
{% for column in columns %}<th scope="col"><button type="button">{{ column }}</button></th>{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.failed %} class="failed"{% endif %}>
<td>{% if row.picture %}<img src="{{ row.picture }}" alt="slice of {{ row.id }}" loading="lazy" decoding="async">{% endif %}</td>
{% for cell in row.cells %}<td{% if cell.number %} class="number"{% endif %} data-sort="{{ cell.sort }}">{{ cell.text }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
<script>
document.querySelectorAll("#scans th button").forEach((button, index) => {
  button.addEventListener("click", () => {
    const body = document.querySelector("#scans tbody");
    const down = button.dataset.down !== "yes";
    const value = (row) => row.cells[index + 1].dataset.sort;
    const compare = (a, b) => {
      const numbers = [Number(value(a)), Number(value(b))];
      if (numbers.some(Number.isNaN)) return value(a).localeCompare(value(b));
      return numbers[0] - numbers[1];
    };
    const rows = [...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b));
    button.dataset.down = down ? "yes" : "no";
    body.append(...rows);
  });
});
</script>
</body>
</html>
"""  # noqa: E501


def batch_page(reports: Sequence[Report], out: Path) -> str:
    """The page of all reports; scans that were not scored come first, then the highest scores.

    Pictures are files beside it, loaded when they come into view.
    """
    ordered = sorted(reports, key=lambda report: (report.scored, -(report.score or 0.0)))
    scored = [report for report in reports if report.scored]
    by_run = f" by the run {scored[0].run}" if scored else ""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render(
        rows=[_row(report, out) for report in ordered],
        columns=COLUMNS,
        title=f"{len(reports)} scan{'' if len(reports) == 1 else 's'}{by_run}",
        promise=_promise(scored),
        notice=NOTICE,
        lobes=not any(report.of_lungs for report in scored),
    )


def _promise(scored: Sequence[Report]) -> str:
    """How often healthy scans show a finding, and in how many of these that is not promised."""
    unlike = [report for report in scored if report.gate and report.gate.because]
    like = [report for report in scored if report not in unlike]
    if not like:
        return (scored[0].promise or "") if scored else ""
    text = like[0].promise or ""
    if text and unlike:
        text += f" Not promised for {len(unlike)} of the {len(scored)} scans: see their flags."
    return text


def _row(report: Report, out: Path) -> dict[str, Any]:
    name = f"{report.id}_picture.png"
    row: dict[str, Any] = {"id": report.id, "failed": not report.scored}
    row["picture"] = quote(name) if (out / name).is_file() else ""
    if not report.scored:
        reason = _text(report.reason or "", MANY)
        row["cells"] = [_text(report.id), *[_text("")] * 5, reason]
        return row
    found = report.largest
    what = ""
    if found:
        what = found.summary
        if found.p_value is not None:
            what += f", p {found.p_value:.2g}"
    row["cells"] = [
        _text(report.id),
        _number(report.score, 3),
        _number(report.percentile, 0),
        _number((report.anomalous_mm3 or 0) / 1000, 1),
        _number(report.n_components, 0),
        _text(what, found.volume_mm3 if found else 0),
        _text("; ".join(report.flags), len(report.flags)),
    ]
    return row


def _text(text: str, sort: float | None = None) -> dict[str, Any]:
    """A cell of text, sorted by itself or by a number."""
    return {"text": text, "sort": text if sort is None else f"{sort:.6g}", "number": False}


def _number(value: float | None, digits: int) -> dict[str, Any]:
    known = 0.0 if value is None else value
    return {"text": f"{known:.{digits}f}", "sort": f"{known:.6g}", "number": True}
