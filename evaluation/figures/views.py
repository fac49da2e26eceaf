"""One plane of a volume in radiological display, and what is drawn over it.

Patient right is drawn on the viewer's left and lettered so. Markings differ in colour, for any
colour vision, and in style (thin outline, filled, thick outline), so they survive a grey printer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.checks import bounding_box

# Okabe and Ito 2008: colours that every colour vision keeps apart.
MARKED_COLOUR = "#E69F00"
TRUTH_COLOUR = "#56B4E9"
BRAIN_COLOUR = "#D55E00"
OUTLINES = {
    "truth": (TRUTH_COLOUR, 1.8, "solid"),
    "brain": (BRAIN_COLOUR, 1.0, "solid"),
    "atlas": (TRUTH_COLOUR, 1.0, "dashed"),
}
# The axis that is cut, the one that runs across, the one that runs up.
PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}
# The letters on the viewer's left and right.
ENDS = {"sagittal": ("A", "P"), "coronal": ("R", "L"), "axial": ("R", "L")}


@dataclass(frozen=True)
class View:
    """One plane of a volume in radiological display, within a box, in mm."""

    plane: str
    index: int
    spacing: tuple[float, float, float]
    box: tuple[slice, ...]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return the plane as (rows from the top, columns from the viewer's left).

        R or A is on the left.
        """
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
        width = (self.box[across].stop - self.box[across].start) * self.pixel[0]
        height = (self.box[up].stop - self.box[up].start) * self.pixel[1]
        return width, height


def draw_view(
    ax: Any,
    view: View,
    volume: np.ndarray,
    scale: dict[str, Any],
    frame: tuple[float, float] | None = None,
) -> Any:
    """Draw one view with its two letters, centred in a frame of (width, height) mm.

    Returns the image that was drawn, for a colour bar.
    """
    width, height = view.size
    outer_width, outer_height = frame or view.size
    across = (outer_width - width) / 2
    down = (outer_height - height) / 2
    picture = view.cut(volume)
    drawn = ax.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", **scale)
    ax.set(xticks=[], yticks=[], facecolor="0.2", autoscale_on=False)
    ax.set(xlim=(-across, width + across), ylim=(height + down, -down))

    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 8,
        "fontweight": "bold",
        "va": "center",
        "transform": ax.transAxes,
        "bbox": {"facecolor": "black", "edgecolor": "none", "pad": 1},
    }
    left, right = ENDS[view.plane]
    ax.text(0.02, 0.5, left, ha="left", **style)
    ax.text(0.98, 0.5, right, ha="right", **style)
    return drawn


def draw_marking(ax: Any, view: View, mask: np.ndarray, kind: str) -> None:
    """Draw a mask over a view: "mask" (what is marked) is filled, other kinds are outlines."""
    picture = np.pad(view.cut(mask), 1).astype(float)  # so that outlines close at the border
    if not picture.any():
        return
    width, height = view.pixel
    x = (np.arange(picture.shape[1]) - 0.5) * width
    y = (np.arange(picture.shape[0]) - 0.5) * height
    if kind == "mask":
        ax.contourf(x, y, picture, levels=[0.5, 1.5], colors=[MARKED_COLOUR], alpha=0.75)
    else:
        colour, line, style = OUTLINES[kind]
        ax.contour(x, y, picture, levels=[0.5], colors=[colour], linewidths=line, linestyles=style)


def shown_box(image: np.ndarray, masks: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Return the box around all that is not background, two voxels wider.

    It is the whole array if nothing is.
    """
    shown = np.logical_or.reduce([image > 0, *masks])
    return bounding_box(shown, margin=2) or tuple(slice(0, size) for size in image.shape)


def chosen_slices(
    slices: Sequence[int] | None,
    depth: int,
    extent: slice,
    volumes: Sequence[np.ndarray | None],
) -> list[int]:
    """Return slice indices, top of the head first: those that are asked for, or else three.

    The three are spread over `extent`. One of them gives way to the slice with most of the first
    volume that is not empty. ValueError for a slice outside 0..depth - 1.
    """
    if slices is not None:
        if not len(slices) or not all(0 <= index < depth for index in slices):
            raise ValueError(f"slices must lie in 0..{depth - 1}, got {list(slices)}")
        return [int(index) for index in slices]

    chosen = [between(extent, fraction) for fraction in (0.25, 0.5, 0.75)]
    sums = [np.sum(volume, axis=(0, 1), dtype=float) for volume in volumes if volume is not None]
    filled = next((per_slice for per_slice in sums if per_slice.any()), None)
    if filled is not None:
        fullest = int(np.argmax(filled))
        chosen[int(np.argmin([abs(fullest - index) for index in chosen]))] = fullest
    return sorted(set(chosen), reverse=True)


def between(side: slice, fraction: float) -> int:
    """Return the index at a fraction of the way from the first to the last of a slice."""
    return round(side.start + fraction * (side.stop - 1 - side.start))
