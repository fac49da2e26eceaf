"""docs/performance.md and its plots, from docs/results/performance.json."""

from __future__ import annotations

import re
from typing import Any

from evaluation.figures.plots import curves_figure
from pipelines.config import RESULTS
from pipelines.pages.text import markdown_table, short_number
from preprocessing.files import read_json

PERFORMANCE = RESULTS / "performance.json"
PERFORMANCE_REMARKS = RESULTS / "performance_remarks.md"


def performance_page() -> str:
    """docs/performance.md, from docs/results/performance.json."""
    result = read_json(PERFORMANCE)
    machine = f"{result['machine']['cores']} cores, no GPU, {result['repeats']} repeats."
    versions = [f"{k} {v}" for k, v in result["versions"].items() if k != "commit"]
    parts = [
        "# Performance",
        "`make benchmark` wrote the figures to `docs/results/performance.json`. `make results` "
        "writes this page from it. A test fails where page and file differ.",
        "Each figure is a median of runs that alternate with the peer's on the same work. Seconds "
        "belong to one machine at one moment. The ratio carries over: it says how many times "
        "better Norma is.",
        f"{machine} Scans: {', '.join(result['scans'].values())}. {', '.join(versions)}.",
        PERFORMANCE_REMARKS.read_text(encoding="utf-8").strip(),
    ]
    for part in dict.fromkeys(r["part"] for r in result["rows"]):
        rows = [_row(r) for r in result["rows"] if r["part"] == part]
        parts += [
            f"## {part.capitalize()}",
            markdown_table(["what", "Norma", "beside", "its value", "ratio"], rows),
        ]
    if result["notes"]:
        parts += ["## Left out", "\n".join(f"- {note}" for note in result["notes"])]
    parts += [
        "## How cost grows",
        "![Cost by scans, resolution and workers](images/performance.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _row(measured: dict[str, Any]) -> list[str]:
    """A measured row of the file as a row of the page."""
    return [
        measured["name"],
        f"{short_number(measured['value'])} {measured['unit']}".strip(),
        measured["peer"] or "–",
        short_number(measured["peer_value"]),
        short_number(measured["ratio"]),
    ]


def performance_figure() -> bytes:
    """Seconds by number of scans, by side of a slice, and scans per hour by workers, as PNG."""
    rows = read_json(PERFORMANCE)["rows"]
    scans: dict[str, list[tuple[float, float]]] = {}
    sides: list[tuple[float, float]] = []
    workers: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if (found := re.fullmatch(r"([\d,]+) small scans: (.+)", r["name"])) and r["unit"] == "s":
            scans.setdefault(found[2], []).append((float(found[1].replace(",", "")), r["value"]))
        elif found := re.fullmatch(r"training step of 64 slices of (\d+) x \d+", r["name"]):
            sides.append((float(found[1]), r["value"]))
        elif r["part"] == "workers":
            workers[r["name"].partition(",")[0].partition(" by ")[0]] = [(1, 1.0), (2, r["ratio"])]
    panels = [
        ("Cohorts of small scans", "scans", "seconds", scans, True),
        (
            "Training step, 64 slices",
            "side of a slice, pixels",
            "seconds",
            {"vae_cr": sides} if sides else {},
            False,
        ),
        ("Processes of one thread", "processes", "times as fast as one", workers, False),
    ]
    return curves_figure([panel for panel in panels if panel[3]])
