"""Figures as text: short names, mean and interval, one line for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

COMPARED = (
    "scan_auroc",
    "slicewise_auroc",
    "clinical_slicewise_auroc",
    "f1",
    "f1_share",
    "f1_few_label",
    "dice_mean",
    "dice_pooled",
    "oracle_dice_pooled",
    "voxel_ap",
    "lesion_sensitivity",
    "abnormal_with_finding",
    "healthy_with_finding",
    "healthy_false_positive_ml",
)

SHORT = {
    "scan_auroc": "AUROC scan",
    "scan_ap": "AP scan",
    "voxel_ap_mean": "voxel AP mean",
    "slicewise_auroc": "AUROC slicewise",
    "clinical_slicewise_auroc": "AUROC clinical",
    "f1": "F1",
    "f1_share": "F1 share",
    "f1_few_label": "F1 few-label",
    "dice_mean": "Dice mean",
    "dice_pooled": "Dice pooled",
    "oracle_dice_pooled": "oracle Dice",
    "voxel_ap": "voxel AP",
    "lesion_sensitivity": "lesions found",
    "abnormal_with_finding": "abnormal with finding",
    "healthy_with_finding": "healthy with finding",
    "healthy_false_positive_ml": "FP ml healthy",
}


def comparison_line(entry: dict[str, Any]) -> str:
    """A model of a comparison on the terminal."""
    figures = entry["figures"]
    texts = [
        f"{SHORT[k]} {figure_text(figures[k])}"
        for k in COMPARED
        if figures.get(k, {}).get("mean") is not None
    ]
    return f"{entry['model']} ({len(entry['runs'])} runs): " + "; ".join(texts)


def tally(names: Sequence[str]) -> str:
    """How often each name is there, the most frequent first: "atlas in 3 runs, vae in 1"."""
    (first, most), *others = Counter(names).most_common()
    texts = [f"{name} in {count}" for name, count in others]
    return ", ".join([f"{first} in {counted(most, 'run')}", *texts])


def counted(n: int, what: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def figure_text(figure: dict[str, Any]) -> str:
    """Mean ± sd [low, high] of a figure."""
    if not is_known(figure.get("mean")):
        return "–"
    text = f"{figure['mean']:.3f}" if abs(figure["mean"]) < 100 else f"{figure['mean']:.0f}"
    if figure.get("sd") and figure["n"] > 1:
        text += f" ± {figure['sd']:.3f}"
    known = figure.get("interval") and figure["interval"][0] is not None
    return text + (" " + interval_text(figure["interval"]) if known else "")


def interval_text(interval: Sequence[float | None]) -> str:
    """[low, high] with three digits; a dash where it is not defined."""
    low, high = interval
    return f"[{low:.3f}, {high:.3f}]" if low is not None and high is not None else "–"


def is_known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def value_text(value: float | None) -> str:
    """A figure on the terminal."""
    return "not defined" if value is None or np.isnan(value) else f"{value:.4g}"


def short_number(value: float | None) -> str:
    """Three significant digits, or a whole number with its thousands parted."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with these heads."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
