"""The page of `make stress`: what is marked in vain under each shift, and what is gated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.figures.plots import curves_figure
from evaluation.shifts import SEVERITIES
from pipelines.pages.html import Section, page
from pipelines.study.stress import NONE, Asked, Row

PANELS = 3  # side by side in a picture
COLUMNS = (
    "run",
    "shift",
    "severity",
    "scans",
    "not scored",
    "warned",
    "rise of the score, sd",
    "marked in vain, ml",
    "findings per scan",
)
INTRODUCTION = (
    "Healthy test scans, shifted as another scanner or an unlucky minute would have, and prepared "
    "and scored anew. Whatever is marked here is false. A scan that is not scored did not pass the "
    "checks of preprocessing; one that is warned is unlike the training scans as a whole.\n\n"
    "The rise of the score is its mean change from the unshifted scan, in standard deviations of "
    "the unshifted scans. Volumes and findings are means over the scans that are scored."
)


def stress_page(asked: Asked, rows: Sequence[Row], table: Sequence[dict[str, Any]]) -> str:
    """The HTML page; `table` is the summary of the rows."""
    sections = [
        Section("What was done", INTRODUCTION),
        Section("In short", table=_gated(rows)),
        Section("Marked in vain, by severity", images=_curves(asked, table)),
        Section("All figures", table=(COLUMNS, [list(entry.values()) for entry in table])),
    ]
    if any(row.verdict == "not scored" for row in rows):
        sections.append(Section("Why scans were not scored", table=_reasons(rows)))
    return page("Norma: healthy scans under shift", sections)


def _gated(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """By run: unshifted and severely shifted scans that are not scored or warned."""
    found: list[list[Any]] = []
    for run in dict.fromkeys(row.run for row in rows):
        line: list[Any] = [run]
        for severity in (0, *SEVERITIES):
            own = [r for r in rows if r.run == run and r.severity == severity]
            own = [r for r in own if severity or r.shift == NONE]
            gated = sum(row.verdict != "scored" for row in own)
            line.append(f"{gated} of {len(own)}")
        found.append(line)
    names = ["unshifted", *(f"severity {severity}" for severity in SEVERITIES)]
    return ["not scored, or with a warning", *names], found


def _curves(asked: Asked, table: Sequence[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """Millilitres against severity, a panel for each shift and a curve for each run."""
    at = {(entry["run"], entry["shift"], entry["severity"]): entry for entry in table}
    panels: list[tuple[str, str, str, dict[str, list[tuple[float, float]]], bool]] = []
    for shift in asked.shifts:
        curves: dict[str, list[tuple[float, float]]] = {}
        for run in asked.runs:
            points: list[tuple[float, float]] = []
            for severity in (0, *SEVERITIES):
                entry = at.get((run, shift if severity else NONE, severity))
                if entry and entry["marked_ml"] is not None:
                    points.append((severity, entry["marked_ml"]))
            if points:
                curves[run] = points
        if curves:
            panels.append((shift, "severity", "marked in vain, ml", curves, False))
    pictures: list[tuple[str, bytes]] = []
    for first in range(0, len(panels), PANELS):
        shown = panels[first : first + PANELS]
        caption = ", ".join(panel[0] for panel in shown)
        pictures.append(
            (f"{caption}; scans that are not scored are left out.", curves_figure(shown))
        )
    return pictures


def _reasons(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Each refused scan once, with the sentence."""
    refused = {(r.shift, r.severity, r.scan): r.reason for r in rows if r.verdict == "not scored"}
    lines = [[*key, reason] for key, reason in sorted(refused.items())]
    return ["shift", "severity", "scan", "reason"], lines
