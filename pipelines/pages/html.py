"""One self-contained HTML page: headings, text, tables and embedded pictures.

It loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

DISCLAIMER = (
    "Norma is research software. It is not a medical device and must not be used for diagnosis."
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 64rem;
  margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.25; }
h2 { margin-top: 2rem; border-bottom: 1px solid #ccc; }
p { max-width: 42rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #555; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
footer { margin-top: 3rem; padding-top: 0.5rem; border-top: 1px solid #ccc; font-size: 0.9rem; }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<section>
<h2>{{ section.heading }}</h2>
{% for paragraph in section.text.split("\n\n") if paragraph.strip() %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table %}
<div class="scroll">
<table>
<thead><tr>
{% for column in section.table[0] %}<th scope="col">{{ column }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in section | rows %}
<tr>
{% for cell in row %}
<td{% if cell | is_number %} class="number"{% endif %}>{{ cell | shown }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% for caption, png in section.images %}
<figure><img src="{{ png | data_uri }}" alt="{{ caption }}">\
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</section>
{% endfor %}
<footer>{{ footer }}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """One part of a page: plain text, a table and pictures.

    text: blank lines part paragraphs.
    table: (columns, rows); a row is a list in the order of the columns, or a dictionary by column.
    images: (caption, PNG).
    """

    heading: str
    text: str = ""
    table: tuple[Sequence[str], Sequence[Sequence[Any] | Mapping[str, Any]]] | None = None
    images: Sequence[tuple[str, bytes]] = ()


def page(title: str, sections: Sequence[Section], footer: str = DISCLAIMER) -> str:
    """Return the HTML page; all text is escaped.

    ValueError on a row that does not fit its columns, or a picture that is not PNG.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(rows=_rows, is_number=_is_number, shown=_shown, data_uri=_data_uri)
    return environment.from_string(TEMPLATE).render(title=title, sections=sections, footer=footer)


def _rows(section: Section) -> list[list[Any]]:
    """Return the cells of a section's table, row by row, in the order of its columns."""
    columns, rows = section.table or ((), ())
    cells = []
    for row in rows:
        if isinstance(row, Mapping):
            unknown = set(row) - set(columns)
            if unknown:
                raise ValueError(f"table '{section.heading}': no column for {sorted(unknown)}")
            row = [row.get(column) for column in columns]
        if len(row) != len(columns):
            raise ValueError(
                f"table '{section.heading}': {len(row)} cells for {len(columns)} columns"
            )
        cells.append(list(row))
    return cells


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, numbers.Real) and not isinstance(cell, bool))


def _shown(cell: Any) -> Any:
    """Return a cell as text: floats to three significant digits, an en dash for None and NaN."""
    if cell is None or (isinstance(cell, numbers.Real) and math.isnan(cell)):
        return Markup('<span title="not defined">\u2013</span>')
    if not _is_number(cell) or isinstance(cell, numbers.Integral):
        return str(cell)
    number = float(cell)
    if math.isinf(number):
        return "\u221e" if number > 0 else "\u2212\u221e"

    # 1234 and not 1.23e+03; from 1e9 on the exponent reads better.
    text = f"{number:.0f}" if 100 <= abs(number) < 1e9 else f"{number:#.3g}".rstrip(".")
    return text.replace("-", "\u2212") if text.startswith("-") and "e" not in text else text


def _data_uri(png: bytes) -> str:
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError("pictures of a report must be PNG bytes")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
