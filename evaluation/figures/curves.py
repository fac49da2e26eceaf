"""Figures of an evaluation as PNG bytes: ROC, precision-recall, thresholds, lesion size, FROC.

Methods differ in colour, for any colour vision, and in line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from evaluation.figures.plots import png_of
from evaluation.metrics import VoxelHistogram

# Okabe and Ito 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#F0E442")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = "os^Dv*Px"
DPI = 120
DICE_POINTS = 200  # of the curve of Dice over thresholds
Scored = Sequence[tuple[np.ndarray, np.ndarray]]
"""Scores (n,) and labels (n,), one pair per seed or fold."""


def style(number: int) -> dict[str, Any]:
    """Return colour and line of the `number`-th method."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def roc_and_pr_figure(methods: Mapping[str, Scored], title: str) -> bytes:
    """Return ROC and precision-recall curves, one thin line per seed or fold.

    A seed or fold without both labels is left out.
    """
    figure, (roc, pr) = _axes(2)
    for number, (name, runs) in enumerate(methods.items()):
        look = style(number) | {"linewidth": 1.6 if len(runs) == 1 else 0.9}
        defined = [(scores, labels) for scores, labels in runs if 0 < np.sum(labels) < len(labels)]
        for i, (scores, labels) in enumerate(defined):
            fpr, tpr, _ = roc_curve(labels, scores)
            precision, recall, _ = precision_recall_curve(labels, scores)
            roc.plot(fpr, tpr, label=name if i == 0 else None, **look)
            pr.step(recall, precision, where="post", **look)
    roc.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)

    limits = {"xlim": (0, 1), "ylim": (0, 1.01)}
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, **limits)
    pr.set(xlabel="recall", ylabel="precision", title="precision-recall", **limits)
    if roc.get_legend_handles_labels()[0]:
        roc.legend(fontsize=8, loc="lower right")
    return png_of(figure, DPI, None)


def threshold_figure(
    healthy: VoxelHistogram, test: VoxelHistogram, points: Mapping[str, float]
) -> bytes:
    """Return what a voxel threshold costs in healthy voxels, and what it gains in Dice.

    Dice is drawn where there are masks. Operating points are vertical lines.
    """
    figure, (ax,) = _axes(1, width=6.4)
    above = 1 - np.cumsum(healthy.counts[0]) / max(healthy.counts[0].sum(), 1)
    shown = (healthy.edges > 0) & (above < 0.5)
    name = "healthy validation voxels above, %"
    ax.plot(healthy.edges[shown], 100 * above[shown], label=name, **style(0))
    if test.counts[1].any():
        edges = test.edges[test.edges >= min(healthy.edges[shown], default=0.0)]
        edges = edges[:: max(1, len(edges) // DICE_POINTS)]
        dice = [100 * test.dice_at(float(edge)) for edge in edges]
        name = "pooled Dice on the test scans, % (needs their labels)"
        ax.plot(edges, dice, label=name, **style(1))

    known = {name: value for name, value in points.items() if np.isfinite(value) and value > 0}
    for number, (name, value) in enumerate(known.items()):
        line = LINES[number % len(LINES)]
        label = f"{name}: {value:.3g}"
        ax.axvline(value, color="0.25", linewidth=1, linestyle=line, label=label)
    ax.set(
        xscale="log",
        xlabel="voxel threshold",
        ylabel="%",
        ylim=(0, 100),
        title="choice of the voxel threshold",
    )
    ax.xaxis.set_minor_formatter("")
    ax.legend(fontsize=8)
    return png_of(figure, DPI, None)


def size_figure(
    methods: Mapping[str, Sequence[tuple[float, float]]],
    bins: Mapping[str, Sequence[dict[str, Any]]],
) -> bytes:
    """Return Dice against lesion volume per scan, and the share of lesions found by size.

    `methods` has pairs of ml and Dice by name, `bins` what `lesions.by_size` returns.
    """
    figure, (left, right) = _axes(2)
    _draw_dice_by_volume(left, methods)
    _draw_found_by_size(right, bins)
    return png_of(figure, DPI, None)


def _draw_dice_by_volume(ax: Any, methods: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for number, (name, pairs) in enumerate(methods.items()):
        if pairs:
            volume, dice = np.array(pairs).T
            marker = MARKERS[number % len(MARKERS)]
            colour = style(number)["color"]
            ax.scatter(volume, dice, s=18, marker=marker, alpha=0.75, color=colour, label=name)
    ax.set(
        xscale="log",
        xlabel="lesion volume of the scan, ml",
        ylabel="Dice",
        ylim=(-0.02, 1),
        title="Dice by lesion volume",
    )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)


def _draw_found_by_size(ax: Any, bins: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    width = 0.8 / max(len(bins), 1)
    for number, sizes in enumerate(bins.values()):
        at = np.arange(len(sizes)) + (number - (len(bins) - 1) / 2) * 0.8 / len(bins)
        shares = [size["detected"] / max(size["n"], 1) for size in sizes]
        colour = style(number)["color"]
        ax.bar(at, shares, width=width, color=colour, edgecolor="black", linewidth=0.4)

    sizes = next(iter(bins.values()), [])
    names = [f"{_size_name(size)}\nn={size['n']}" for size in sizes]
    ax.set_xticks(range(len(sizes)), names, fontsize=8)
    ax.set(
        xlabel="lesion size, ml", ylabel="lesions found", ylim=(0, 1), title="lesions found by size"
    )


def _size_name(size: dict[str, Any]) -> str:
    """Return the range of a bin in ml; a bin without an upper end has None or infinity."""
    if size["to_ml"] and np.isfinite(size["to_ml"]):
        return f"{size['from_ml']:g}–{size['to_ml']:g}"
    return f"≥ {size['from_ml']:g}"


def froc_figure(methods: Mapping[str, dict[str, list[float]]]) -> bytes:
    """Return free-response ROC curves: share of lesions found against marks in vain per scan."""
    figure, (ax,) = _axes(1, width=4.6)
    for number, (name, curve) in enumerate(methods.items()):
        alarms = curve["false_positives_per_scan"]
        ax.step(alarms, curve["sensitivity"], where="post", label=name, **style(number))
    ax.set(xlabel="false components per scan", ylabel="lesions found", ylim=(0, 1.01), title="FROC")
    ax.set_xlim(left=0)
    ax.legend(fontsize=8)
    return png_of(figure, DPI, None)


def _axes(count: int, width: float = 4.2) -> tuple[Figure, Any]:
    """Return a figure and its axes, side by side, `width` inches each."""
    figure = Figure(figsize=(width * count, 3.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(color="0.9", linewidth=0.6)
        ax.tick_params(labelsize=8)
    return figure, axes
