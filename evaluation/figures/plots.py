"""Figures as PNG bytes, without pyplot.

Volumes are RAS+ (X, Y, Z), in radiological display and true voxel proportions.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing
from evaluation.figures.views import (
    BRAIN_COLOUR,
    MARKED_COLOUR,
    PLANES,
    TRUTH_COLOUR,
    View,
    between,
    chosen_slices,
    draw_marking,
    draw_view,
    shown_box,
)

PANEL_INCHES = 2.3
DPI = 110
BESIDE = 4  # panels of curves in a row
FEW = 10  # points that are marked one by one


@dataclass(frozen=True)
class Layers:
    """What is drawn beside and over the image of a case; each is of the image's shape, or None.

    anomaly_map: drawn from 0 to `map_max`, which a map needs: one scale for all cases.
    marked, lesions, brain: masks; what was found, the truth, the brain.
    reconstruction: the model's image without lesions.
    sequences: other images of the same scan, by name.
    """

    anomaly_map: np.ndarray | None = None
    map_max: float | None = None
    marked: np.ndarray | None = None
    lesions: np.ndarray | None = None
    brain: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    sequences: Mapping[str, np.ndarray] = field(default_factory=dict)


def case_figure(
    image: np.ndarray,
    layers: Layers | None = None,
    *,
    spacing: Sequence[float],
    vmax_image: float = 1.0,
    slices: Sequence[int] | None = None,
    title: str = "",
) -> bytes:
    """Return a PNG with one row per axial slice and one column per given volume.

    Greys run from 0 to `vmax_image` and the map from 0 to `map_max`, never per image. Without
    `slices`, three are chosen: the one with most lesions (else marked, else map) and two spread
    over the head. ValueError on shapes that differ, a map without `map_max`, or a slice outside
    the volume.
    """
    layers = layers or Layers()
    sizes = check_spacing(spacing)
    image = np.asarray(image)
    map_max = layers.map_max
    if layers.anomaly_map is not None and not (map_max is not None and map_max > 0):
        raise ValueError("an anomaly map needs map_max > 0, one scale for all cases of a report")
    given = {"brain": layers.brain, "mask": layers.marked, "truth": layers.lesions}
    masks = {kind: as_mask(volume, kind) for kind, volume in given.items() if volume is not None}
    columns = _columns(image, layers, list(masks), vmax_image)
    for name, column in columns.items():
        check_same_shape(image, masks.get(name, column.volume), f"image and {name}")
    if "brain" in masks:
        check_same_shape(image, masks["brain"], "image and brain")

    box = shown_box(image, list(masks.values()))
    volumes = [layers.lesions, layers.marked, layers.anomaly_map]
    indices = chosen_slices(slices, image.shape[2], box[2], volumes)
    panel = View("axial", 0, sizes, box).size
    figure, axes = _grid(len(indices), len(columns), panel, title)
    for line, index in zip(axes, indices, strict=True):
        view = View("axial", index, sizes, box)
        for ax, (name, column) in zip(line, columns.items(), strict=True):
            drawn = draw_view(ax, view, column.volume, column.scale)
            if column.marking in masks:
                draw_marking(ax, view, masks[column.marking], column.marking)
            if index == indices[0]:
                ax.set_title(name, fontsize=9)
            if name == "anomaly map" and index == indices[-1]:
                # An axis inside the map's: one of its own would move the map out of its row.
                below = ax.inset_axes((0.05, -0.07, 0.9, 0.04))
                bar = figure.colorbar(drawn, cax=below, orientation="horizontal")
                bar.ax.tick_params(labelsize=7)
        line[0].set_ylabel(f"slice {index}", fontsize=8)
    _legend(figure, list(masks))
    return png_of(figure)


@dataclass(frozen=True)
class _Column:
    """A column of `case_figure`: its volume, colour scale, and the kind of marking over it."""

    volume: np.ndarray
    scale: dict[str, Any]
    marking: str = ""


def _columns(
    image: np.ndarray, layers: Layers, kinds: Sequence[str], vmax_image: float
) -> dict[str, _Column]:
    """Return the columns by their titles; `kinds` are the masks that are given."""
    grey = {"cmap": "gray", "vmin": 0, "vmax": vmax_image}
    heat = {"cmap": "inferno", "vmin": 0, "vmax": layers.map_max}
    columns = {"input": _Column(image, grey, "brain")}
    for name, volume in layers.sequences.items():
        columns[name] = _Column(np.asarray(volume), grey)
    if layers.reconstruction is not None:
        columns["reconstruction"] = _Column(np.asarray(layers.reconstruction), grey)
    if layers.anomaly_map is not None:
        columns["anomaly map"] = _Column(np.asarray(layers.anomaly_map), heat)
    for kind in ("mask", "truth"):
        if kind in kinds:
            columns[kind] = _Column(image, grey, kind)
    return columns


def outline_figure(
    image: np.ndarray,
    brain: np.ndarray,
    *,
    spacing: Sequence[float],
    title: str = "",
    window: tuple[float, float] | None = None,
    atlas: np.ndarray | None = None,
) -> bytes:
    """Return a PNG of three orthogonal views and three more axial slices with the brain's outline.

    With it a skull stripping is checked by eye, and with the `atlas` mask as a dashed outline a
    registration. `window` is black and white in image units. By default it is the 1st and 99.5th
    percentile, for a look at one scan only.
    """
    sizes = check_spacing(spacing)
    image = np.asarray(image)
    brain = as_mask(brain, "brain")
    check_same_shape(image, brain, "image and brain")
    low, high = np.percentile(image, [1, 99.5]) if window is None else window
    grey = {"cmap": "gray", "vmin": low, "vmax": high}

    whole = tuple(slice(0, size) for size in image.shape)
    cuts = _outline_cuts(bounding_box(brain) or whole, image.shape[2])
    views = [View(plane, index, sizes, whole) for plane, index in cuts]
    frame = (max(view.size[0] for view in views), max(view.size[1] for view in views))
    rows, columns = (2, 3) if len(views) > 1 else (1, 1)
    figure, axes = _grid(rows, columns, frame, title)
    for ax, view in zip(axes.flat, views, strict=True):
        draw_view(ax, view, image, grey, frame)
        draw_marking(ax, view, brain, "brain")
        if atlas is not None:
            draw_marking(ax, view, atlas, "atlas")
        ax.set_title(f"{view.plane} {view.index}", fontsize=9)
    return png_of(figure)


def _outline_cuts(inside: tuple[slice, ...], depth: int) -> list[tuple[str, int]]:
    """Return plane and index of each view through a brain's box; one for a picture."""
    middle = [
        (plane, between(inside[PLANES[plane][0]], 0.5))
        for plane in ("axial", "coronal", "sagittal")
    ]
    if depth == 1:
        return middle[:1]
    # Three more levels: near the base, below the middle, near the vertex.
    return middle + [("axial", between(inside[2], fraction)) for fraction in (0.15, 0.35, 0.8)]


def histogram_figure(
    healthy_scores: np.ndarray, abnormal_scores: np.ndarray, title: str = ""
) -> bytes:
    """Return a PNG of the scan scores of both groups in common bins.

    ValueError on NaN or without a score.
    """
    healthy = np.asarray(healthy_scores, float).ravel()
    abnormal = np.asarray(abnormal_scores, float).ravel()
    both = np.concatenate([healthy, abnormal])
    if both.size == 0 or not np.isfinite(both).all():
        raise ValueError("a histogram needs at least one score, and all scores finite")
    n_bins = min(max(int(np.sqrt(both.size)) * 2, 8), 40)
    edges = np.histogram_bin_edges(both, bins=n_bins).tolist()

    figure = Figure(figsize=(5.5, 3.2), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    name = f"healthy (n = {healthy.size})"
    ax.hist(healthy, edges, color=TRUTH_COLOUR, edgecolor="black", label=name)
    hatched: dict[str, Any] = {
        "histtype": "step",
        "edgecolor": "black",
        "hatch": "///",
        "linewidth": 1.5,
    }
    ax.hist(abnormal, edges, label=f"abnormal (n = {abnormal.size})", **hatched)
    ax.set(xlabel="anomaly score", ylabel="scans")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, fontsize=10, parse_math=False)
    return png_of(figure)


def curves_figure(
    panels: Sequence[tuple[str, str, str, dict[str, list[tuple[float, float]]], bool]],
) -> bytes:
    """Return a PNG of panels, up to four side by side.

    A panel is (title, x label, y label, curves of (x, y) points by name, logarithmic axes).
    """
    columns = min(len(panels), BESIDE)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, x, y, curves, logarithmic) in zip(axes[: len(panels)], panels, strict=True):
        points: list[tuple[float, float]] = []
        for (name, curve), marker in zip(curves.items(), itertools.cycle("osD^vPX"), strict=False):
            points += curve
            xs, ys = zip(*curve, strict=True)
            marked = marker if len(curve) <= FEW else ""
            ax.plot(xs, ys, marker=marked, markersize=4, linewidth=1.2, label=name)
        ax.set(xlabel=x, ylabel=y)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        if logarithmic:
            ax.set(xscale="log", yscale="log")
            ax.set_ylim(top=20 * ax.get_ylim()[1])  # room for the legend
        else:
            heights = [0, *(height for _, height in points)]
            ax.set_ylim(1.1 * min(heights), 1.1 * max(heights) or 1)
            places = sorted({at for at, _ in points})
            if len(places) <= FEW:
                ax.set_xticks(places)
        if any(curves):
            ax.legend(frameon=False, fontsize=7)
    return png_of(figure)


def _legend(figure: Figure, kinds: list[str]) -> None:
    if not kinds:
        return
    entries = {
        "brain": Line2D([], [], color=BRAIN_COLOUR, linewidth=1.0, label="brain"),
        "mask": Patch(color=MARKED_COLOUR, label="marked as anomalous"),
        "truth": Line2D([], [], color=TRUTH_COLOUR, linewidth=1.8, label="truth"),
    }
    style: dict[str, Any] = {
        "facecolor": "0.2",
        "labelcolor": "white",
        "fontsize": 8,
        "edgecolor": "none",
    }
    handles = [entries[kind] for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), **style)


def _grid(
    rows: int, columns: int, panel: tuple[float, float], title: str
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes (rows, columns) for panels of (width, height) mm."""
    width = PANEL_INCHES * columns + 0.4
    height = PANEL_INCHES * panel[1] / panel[0] * rows + 1.2
    figure = Figure(figsize=(width, height), layout="compressed")
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False)


def png_of(figure: Figure, dpi: int = DPI, bbox_inches: str | None = "tight") -> bytes:
    """Return a figure as PNG bytes that are the same on every call."""
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches=bbox_inches, metadata=metadata)
    return buffer.getvalue()
