"""By whom a detector fails: what it marks in healthy scans, by a column of their table.

False positives vary with age, sex and scanner (Frotscher et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Row = Mapping[str, Any]
FEWEST = 8  # healthy scans, below which a trend says nothing
TELL_APART = 5  # different numbers; of fewer each is a group


def healthy_groups(scans: Sequence[Row], column: str) -> list[dict[str, Any]]:
    """Return one record per group of healthy scans; none where they do not differ in the column.

    Numbers of at least 5 values are parted at their median. "n" counts scans; the others are means
    over the group: share with a finding, findings, ml marked. Numbers have a last record, their
    rank correlation with the ml marked (Spearman): "rho", and its two-sided "p".
    """
    known = [s for s in scans if s["label"] == "healthy" and s.get(column) not in (None, "")]
    values = [str(scan[column]) for scan in known]
    numbers = _numbers(values)
    is_ordered = numbers is not None and len(set(numbers)) >= TELL_APART
    if numbers is not None and is_ordered:
        middle = float(np.median(numbers))
        values = [f"up to {middle:g}" if n <= middle else f"above {middle:g}" for n in numbers]
    if len(set(values)) < 2:
        return []

    table: list[dict[str, Any]] = []
    for name in sorted(set(values), reverse=is_ordered):
        own = [scan for scan, value in zip(known, values, strict=True) if value == name]
        counts = [scan["findings"] for scan in own if scan.get("findings") is not None]
        table.append(
            {
                "group": name,
                "n": len(own),
                "healthy_with_finding": _mean([float(count > 0) for count in counts]),
                "false_findings": _mean([float(count) for count in counts]),
                "false_positive_ml": _mean([float(scan["false_positive_ml"]) for scan in own]),
            }
        )
    if numbers is not None and is_ordered and len(known) >= FEWEST:
        marked = [scan["false_positive_ml"] for scan in known]
        if len(set(marked)) > 1:
            found = spearmanr(numbers, marked)
            trend = {"rho": float(found.statistic), "p": float(found.pvalue)}
            table.append({"group": "trend", "n": len(known)} | trend)
    return table


def _numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers; None where one is none."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
