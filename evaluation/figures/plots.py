"""Figures as PNG bytes: RAS+ volumes (X, Y, Z) in radiological display, true voxel proportions, no pyplot.

Patient right is drawn on the viewer's left and lettered so. Colours are told apart with any colour vision,
and markings also differ in style (thin outline, filled, thick outline), so they survive a grey printer.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing

MASK_COLOUR, TRUTH_COLOUR, BRAIN_COLOUR = "#E69F00", "#56B4E9", "#D55E00"  # Okabe and Ito 2008
OUTLINES = {
    "truth": (TRUTH_COLOUR, 1.8, "solid"),
    "brain": (BRAIN_COLOUR, 1.0, "solid"),
    "atlas": (TRUTH_COLOUR, 1.0, "dashed"),
}
PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}  # axis cut, across, up
ENDS = {
    "sagittal": ("A", "P"),
    "coronal": ("R", "L"),
    "axial": ("R", "L"),
}  # viewer's left, viewer's right
PANEL_INCHES, DPI = 2.3, 110


@dataclass(frozen=True)
class View:
    """One plane of a volume in radiological display, within a box, in mm."""

    plane: str
    index: int
    spacing: tuple[float, float, float]
    box: tuple[slice, ...]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return the plane as (rows from the top, columns from the viewer's left): R or A is on the left."""
        axis, across, up = PLANES[self.plane]
        return np.take(volume, self.index, axis=axis)[self.box[across], self.box[up]].T[::-1, ::-1]

    @property
    def pixel(self) -> tuple[float, float]:
        """Width and height of a pixel in mm."""
        _, across, up = PLANES[self.plane]
        return self.spacing[across], self.spacing[up]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the plane in mm."""
        _, across, up = PLANES[self.plane]
        counts = (self.box[axis].stop - self.box[axis].start for axis in (across, up))
        width, height = (count * size for count, size in zip(counts, self.pixel, strict=True))
        return width, height


def case_figure(
    image: np.ndarray,
    *,
    spacing: Sequence[float],
    vmax_image: float = 1.0,
    anomaly_map: np.ndarray | None = None,
    map_max: float | None = None,
    mask: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    brain: np.ndarray | None = None,
    reconstruction: np.ndarray | None = None,
    further: Mapping[str, np.ndarray] | None = None,
    slices: Sequence[int] | None = None,
    title: str = "",
) -> bytes:
    """Return a PNG with one row per axial slice and one column per given volume, all RAS+ and of one shape; `further` ones by name.

    Greys run from 0 to `vmax_image` and the map from 0 to `map_max`, never per image. Without `slices`, three
    are chosen: the one with most truth (else mask, else map) and two spread over the head. ValueError on
    shapes that differ, a map without `map_max`, or a slice outside the volume.
    """
    spacing, image = check_spacing(spacing), np.asarray(image)
    if anomaly_map is not None and not (map_max is not None and map_max > 0):
        raise ValueError("an anomaly map needs map_max > 0, one scale for all cases of a report")
    given = {"brain": brain, "mask": mask, "truth": truth}
    marks = {kind: as_mask(volume, kind) for kind, volume in given.items() if volume is not None}
    grey = {"cmap": "gray", "vmin": 0, "vmax": vmax_image}
    heat = {"cmap": "inferno", "vmin": 0, "vmax": map_max}
    columns = {"input": (image, grey, "brain")}  # title: picture, colour scale, marking
    columns |= {name: (np.asarray(volume), grey, "") for name, volume in (further or {}).items()}
    if reconstruction is not None:
        columns["reconstruction"] = (np.asarray(reconstruction), grey, "")
    if anomaly_map is not None:
        columns["anomaly map"] = (np.asarray(anomaly_map), heat, "")
    columns |= {kind: (image, grey, kind) for kind in ("mask", "truth") if kind in marks}
    for name, volume in ({name: column[0] for name, column in columns.items()} | marks).items():
        check_same_shape(image, volume, f"image and {name}")

    box = _shown_box(image, list(marks.values()))
    rows = _chosen_slices(slices, image.shape[2], box[2], [truth, mask, anomaly_map])
    figure, axes = _grid(len(rows), len(columns), View("axial", 0, spacing, box).size, title)
    for row, index in enumerate(rows):
        view = View("axial", index, spacing, box)
        for ax, (name, (picture, scale, kind)) in zip(axes[row], columns.items(), strict=True):
            drawn = _show(ax, view, picture, scale)
            if kind in marks:
                _mark(ax, view, marks[kind], kind)
            if row == 0:
                ax.set_title(name, fontsize=9)
            if name == "anomaly map" and row == len(rows) - 1:
                below = ax.inset_axes(
                    (0.05, -0.07, 0.9, 0.04)
                )  # an axis of its own would move the map out of its row
                figure.colorbar(drawn, cax=below, orientation="horizontal").ax.tick_params(
                    labelsize=7
                )
        axes[row, 0].set_ylabel(f"slice {index}", fontsize=8)
    _legend(figure, list(marks))
    return _png(figure)


def outline_figure(
    image: np.ndarray,
    brain: np.ndarray,
    *,
    spacing: Sequence[float],
    title: str = "",
    window: tuple[float, float] | None = None,
    atlas: np.ndarray | None = None,
) -> bytes:
    """Return a PNG of three orthogonal views and three more axial slices with the outline of `brain` (RAS+).

    For checks by eye of a skull stripping and, with the `atlas` mask as a dashed outline, of a registration. `window`
    is black and white in image units; by default the 1st and 99.5th percentile, for a look at one scan only.
    """
    spacing, image, brain = check_spacing(spacing), np.asarray(image), as_mask(brain, "brain")
    check_same_shape(image, brain, "image and brain")
    low, high = np.percentile(image, [1, 99.5]) if window is None else window
    whole = tuple(slice(0, size) for size in image.shape)
    inside = bounding_box(brain) or whole
    planes = [
        (plane, _between(inside[PLANES[plane][0]], 0.5))
        for plane in ("axial", "coronal", "sagittal")
    ]
    planes += [("axial", _between(inside[2], fraction)) for fraction in (0.15, 0.35, 0.8)]
    planes = planes if image.shape[2] > 1 else planes[:1]  # a picture has one view
    views = [View(plane, index, spacing, whole) for plane, index in planes]
    frame = (max(view.size[0] for view in views), max(view.size[1] for view in views))
    figure, axes = _grid(*((2, 3) if len(views) > 1 else (1, 1)), frame, title)
    for ax, view in zip(axes.flat, views, strict=True):
        _show(ax, view, image, {"cmap": "gray", "vmin": low, "vmax": high}, frame)
        _mark(ax, view, brain, "brain")
        if atlas is not None:
            _mark(ax, view, atlas, "atlas")
        ax.set_title(f"{view.plane} {view.index}", fontsize=9)
    return _png(figure)


def histogram_figure(
    healthy_scores: np.ndarray, abnormal_scores: np.ndarray, title: str = ""
) -> bytes:
    """Return a PNG of the scan scores of both groups in common bins; ValueError on NaN or no scores."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    healthy, abnormal = (
        np.asarray(scores, float).ravel() for scores in (healthy_scores, abnormal_scores)
    )
    both = np.concatenate([healthy, abnormal])
    if both.size == 0 or not np.isfinite(both).all():
        raise ValueError("a histogram needs at least one score, and all scores finite")
    bins = np.histogram_bin_edges(both, bins=min(max(int(np.sqrt(both.size)) * 2, 8), 40)).tolist()
    figure = Figure(figsize=(5.5, 3.2), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.hist(
        healthy, bins, color=TRUTH_COLOUR, edgecolor="black", label=f"healthy (n = {healthy.size})"
    )
    style: dict[str, Any] = {
        "histtype": "step",
        "edgecolor": "black",
        "hatch": "///",
        "linewidth": 1.5,
    }
    ax.hist(abnormal, bins, label=f"abnormal (n = {abnormal.size})", **style)
    ax.set(xlabel="anomaly score", ylabel="scans")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=8)
    ax.set_title(title, fontsize=10, parse_math=False)
    return _png(figure)


def curves_figure(
    panels: Sequence[tuple[str, str, str, dict[str, list[tuple[float, float]]], bool]],
) -> bytes:
    """Return a PNG of panels side by side: (title, x label, y label, curves of (x, y) points by name, logarithmic axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(panels), 3.6), dpi=DPI, layout="constrained")
    for ax, (title, x, y, curves, logarithmic) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for (name, points), marker in zip(curves.items(), itertools.cycle("osD^vPX"), strict=False):
            ax.plot(
                *zip(*points, strict=True), marker=marker, markersize=4, linewidth=1.2, label=name
            )
        ax.set(xlabel=x, ylabel=y)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        if logarithmic:
            ax.set(xscale="log", yscale="log")
            ax.set_ylim(top=20 * ax.get_ylim()[1])  # room for the legend
        else:
            ax.set_ylim(0, 1.1 * max(point[1] for points in curves.values() for point in points))
            ax.set_xticks(sorted({point[0] for points in curves.values() for point in points}))
        if any(curves):
            ax.legend(frameon=False, fontsize=7)
    return _png(figure)


def _shown_box(image: np.ndarray, marks: list[np.ndarray]) -> tuple[slice, ...]:
    """Return the box around all that is not background, two voxels wider; the whole array if nothing is."""
    shown = np.logical_or.reduce([image > 0, *marks])
    return bounding_box(shown, margin=2) or tuple(slice(0, size) for size in image.shape)


def _chosen_slices(
    slices: Sequence[int] | None, depth: int, extent: slice, volumes: list[np.ndarray | None]
) -> list[int]:
    """Return slice indices, top of the head first: those asked for, or three as `case_figure` says."""
    if slices is not None:
        if not len(slices) or not all(0 <= index < depth for index in slices):
            raise ValueError(f"slices must lie in 0..{depth - 1}, got {list(slices)}")
        return [int(index) for index in slices]
    chosen = [_between(extent, fraction) for fraction in (0.25, 0.5, 0.75)]
    sums = [np.sum(volume, axis=(0, 1), dtype=float) for volume in volumes if volume is not None]
    telling = next((per_slice for per_slice in sums if per_slice.any()), None)
    if telling is not None:
        fullest = int(np.argmax(telling))
        chosen[int(np.argmin([abs(fullest - index) for index in chosen]))] = fullest
    return sorted(set(chosen), reverse=True)


def _between(side: slice, fraction: float) -> int:
    return round(side.start + fraction * (side.stop - 1 - side.start))


def _show(
    ax: Any,
    view: View,
    volume: np.ndarray,
    scale: dict[str, Any],
    frame: tuple[float, float] | None = None,
) -> Any:
    """Draw one view with its two letters, centred in a frame of (width, height) mm; return its image."""
    width, height = view.size
    across, down = (
        (outer - inner) / 2 for outer, inner in zip(frame or view.size, view.size, strict=True)
    )
    drawn = ax.imshow(
        view.cut(volume), extent=(0, width, height, 0), interpolation="nearest", **scale
    )
    ax.set(xticks=[], yticks=[], facecolor="0.2", autoscale_on=False)
    ax.set(xlim=(-across, width + across), ylim=(height + down, -down))
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 8,
        "fontweight": "bold",
        "va": "center",
        "transform": ax.transAxes,
    }
    style["bbox"] = {"facecolor": "black", "edgecolor": "none", "pad": 1}
    left, right = ENDS[view.plane]
    ax.text(0.02, 0.5, left, ha="left", **style)
    ax.text(0.98, 0.5, right, ha="right", **style)
    return drawn


def _mark(ax: Any, view: View, marked: np.ndarray, kind: str) -> None:
    """Draw a mask over a view: brain as a thin outline, mask filled, truth thick, atlas dashed."""
    picture = np.pad(view.cut(marked), 1).astype(float)  # so that outlines close at the border
    if not picture.any():
        return
    x, y = (
        (np.arange(n) - 0.5) * mm for n, mm in zip(picture.shape[::-1], view.pixel, strict=True)
    )
    if kind == "mask":
        ax.contourf(x, y, picture, levels=[0.5, 1.5], colors=[MASK_COLOUR], alpha=0.75)
    else:
        colour, line, style = OUTLINES[kind]
        ax.contour(x, y, picture, levels=[0.5], colors=[colour], linewidths=line, linestyles=style)


def _legend(figure: Any, kinds: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = {
        "brain": Line2D([], [], color=BRAIN_COLOUR, linewidth=1.0, label="brain"),
        "mask": Patch(color=MASK_COLOUR, label="marked as anomalous"),
        "truth": Line2D([], [], color=TRUTH_COLOUR, linewidth=1.8, label="truth"),
    }
    if kinds:
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
) -> tuple[Any, np.ndarray]:
    """Return a figure and its axes (rows, columns) for panels of (width, height) mm."""
    from matplotlib.figure import Figure

    height = PANEL_INCHES * panel[1] / panel[0]
    figure = Figure(
        figsize=(PANEL_INCHES * columns + 0.4, height * rows + 1.2), layout="compressed"
    )
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
