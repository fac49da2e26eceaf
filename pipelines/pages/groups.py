"""By whom a detector fails, on an evaluation's page: false findings by groups of healthy scans."""

from __future__ import annotations

from typing import Any

from pipelines.pages.html import Section
from pipelines.study.evaluation import Evaluation

HEADS = {
    "group": "group",
    "n": "healthy scans",
    "healthy_with_finding": "share with a finding",
    "false_findings": "findings per scan",
    "false_positive_ml": "marked in vain, ml",
}
NAMES = {"brain_ml": "brain volume, ml", "spacing_mm": "largest voxel side, mm"}


def healthy_sections(result: Evaluation) -> list[Section]:
    """A table for each column in which the healthy test scans differ."""
    sections: list[Section] = []
    for column, groups in result.healthy_groups.items():
        name = NAMES.get(column, column)
        text = "Healthy test scans alone: whatever is marked is false."
        rows: list[list[Any]] = []
        for group in groups:
            if "rho" in group:
                text += (
                    f" Rank correlation of {name} with the volume marked (Spearman): "
                    f"{group['rho']:.2f}, p {group['p']:.2g}."
                )
            else:
                rows.append([group[key] for key in HEADS])
        if rows:
            table = (list(HEADS.values()), rows)
            sections.append(Section(f"False findings by {name}", text, table))
    return sections
