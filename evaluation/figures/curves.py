"""Figures of an evaluation as PNG bytes: ROC, precision-recall, thresholds, lesion size, FROC; colours and lines for any eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.metrics import VoxelHistogram

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
)  # Okabe and Ito 2008
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
Scored = Sequence[tuple[np.ndarray, np.ndarray]]
"""Scores (n,) and labels (n,), one pair per seed or fold."""


def style(number: int) -> dict[str, Any]:
    """Colour and line of the `number`-th method."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def roc_and_pr_figure(methods: Mapping[str, Scored], title: str) -> bytes:
    """Return ROC and precision-recall curves, one thin line per seed or fold; methods without both labels are left out."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, (roc, pr) = _axes(2)
    for number, (name, runs) in enumerate(methods.items()):
        look = style(number) | {"linewidth": 1.6 if len(runs) == 1 else 0.9}
        for i, (scores, labels) in enumerate(r for r in runs if 0 < np.sum(r[1]) < len(r[1])):
            fpr, tpr, _ = roc_curve(labels, scores)
            precision, recall, _ = precision_recall_curve(labels, scores)
            roc.plot(fpr, tpr, label=name if i == 0 else None, **look)
            pr.step(recall, precision, where="post", **look)
    roc.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    roc.set(
        xlabel="1 - specificity", ylabel="sensitivity", title=title, xlim=(0, 1), ylim=(0, 1.01)
    )
    pr.set(
        xlabel="recall", ylabel="precision", title="precision-recall", xlim=(0, 1), ylim=(0, 1.01)
    )
    if roc.get_legend_handles_labels()[0]:
        roc.legend(fontsize=8, loc="lower right")
    return _png(figure)


def threshold_figure(
    healthy: VoxelHistogram, test: VoxelHistogram, points: Mapping[str, float]
) -> bytes:
    """Return what a voxel threshold costs in healthy voxels and, where there are masks, gains in Dice; points as vertical lines."""
    figure, (ax,) = _axes(1, width=6.4)
    above = 1 - np.cumsum(healthy.counts[0]) / max(healthy.counts[0].sum(), 1)
    shown = (healthy.edges > 0) & (above < 0.5)
    ax.plot(
        healthy.edges[shown],
        100 * above[shown],
        label="healthy validation voxels above, %",
        **style(0),
    )
    if test.counts[1].any():
        edges = test.edges[test.edges >= min(healthy.edges[shown], default=0.0)]
        dice = [100 * test.dice_at(float(edge)) for edge in edges[:: max(1, len(edges) // 200)]]
        ax.plot(
            edges[:: max(1, len(edges) // 200)],
            dice,
            label="pooled Dice on the test scans, % (needs their labels)",
            **style(1),
        )
    for number, (name, value) in enumerate(
        (k, v) for k, v in points.items() if np.isfinite(v) and v > 0
    ):
        ax.axvline(
            value,
            color="0.25",
            linewidth=1,
            linestyle=LINES[number % len(LINES)],
            label=f"{name}: {value:.3g}",
        )
    ax.set(
        xscale="log",
        xlabel="voxel threshold",
        ylabel="%",
        ylim=(0, 100),
        title="choice of the voxel threshold",
    )
    ax.xaxis.set_minor_formatter("")
    ax.legend(fontsize=8)
    return _png(figure)


def size_figure(
    methods: Mapping[str, Sequence[tuple[float, float]]],
    bins: Mapping[str, Sequence[dict[str, Any]]],
) -> bytes:
    """Return Dice against lesion volume per scan (pairs of ml and Dice), and the share of lesions found by size."""
    figure, (left, right) = _axes(2)
    for number, (name, pairs) in enumerate(methods.items()):
        if pairs:
            volume, dice = np.array(pairs).T
            mark = "os^Dv*Px"[number % 8]
            left.scatter(
                volume,
                dice,
                s=18,
                marker=mark,
                alpha=0.75,
                color=style(number)["color"],
                label=name,
            )
    names = list(bins)
    for number, name in enumerate(names):
        rows = bins[name]
        at = np.arange(len(rows)) + (number - (len(names) - 1) / 2) * 0.8 / len(names)
        shares = [r["detected"] / max(r["n"], 1) for r in rows]
        right.bar(
            at,
            shares,
            width=0.8 / len(names),
            color=style(number)["color"],
            edgecolor="black",
            linewidth=0.4,
        )
    rows = bins[names[0]] if names else []
    ends = [
        f"{r['from_ml']:g}–{r['to_ml']:g}"
        if r["to_ml"] and np.isfinite(r["to_ml"])
        else f"≥ {r['from_ml']:g}"
        for r in rows
    ]
    right.set_xticks(
        range(len(rows)), [f"{e}\nn={r['n']}" for e, r in zip(ends, rows, strict=True)], fontsize=8
    )
    left.set(
        xscale="log",
        xlabel="lesion volume of the scan, ml",
        ylabel="Dice",
        ylim=(-0.02, 1),
        title="Dice by lesion volume",
    )
    right.set(
        xlabel="lesion size, ml", ylabel="lesions found", ylim=(0, 1), title="lesions found by size"
    )
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    return _png(figure)


def froc_figure(methods: Mapping[str, dict[str, list[float]]]) -> bytes:
    """Return free-response ROC curves: share of lesions found against marks in vain per scan."""
    figure, (ax,) = _axes(1, width=4.6)
    for number, (name, curve) in enumerate(methods.items()):
        ax.step(
            curve["false_positives_per_scan"],
            curve["sensitivity"],
            where="post",
            label=name,
            **style(number),
        )
    ax.set(xlabel="false components per scan", ylabel="lesions found", ylim=(0, 1.01), title="FROC")
    ax.set_xlim(left=0)
    ax.legend(fontsize=8)
    return _png(figure)


def _axes(count: int, width: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, 3.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(color="0.9", linewidth=0.6)
        ax.tick_params(labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
