"""From an anomaly map to a clean mask and its components; sizes in mm, voxels of any spacing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing

from evaluation.checks import (
    as_mask,
    bounding_box,
    check_affine,
    check_not_negative,
    check_same_shape,
    check_spacing,
)
from evaluation.lesions import highest_in

MEDIAN_VOXELS = 20_000  # filtered at a time by a thread: 10 MB for 5 x 5 x 5
Strength = Literal["peak", "mass", "cluster"]
FEW = 8  # steps of a closing per voxel of the box: with more, distances everywhere take less time
ROUNDING = 1e-6  # relative slack, so that 3 voxels of 0.1 mm are 0.3 mm


def smooth(
    anomaly_map: np.ndarray, size: int, inside: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Return the 3-D median of a map as float32, its border repeated (Baur 2021).

    `size` counts voxels along each axis, as in the paper, where they are 1 mm. It is odd; 0 or 1
    turn the filter off. With `inside` (bool) only those voxels are filtered, from all their
    neighbours, and the rest is 0. On a brain this takes a third of the time. ValueError on an even
    size or a map with NaN.
    """
    if size < 0 or (size % 2 == 0 and size != 0):
        raise ValueError(
            f"the median filter needs an odd size in voxels (0 or 1 = off), got {size}"
        )
    values = _finite_map(anomaly_map).astype(np.float32)  # a copy
    wanted = np.ones(values.shape, bool) if inside is None else as_mask(inside, "inside")
    check_same_shape(values, wanted, "anomaly_map and inside")
    smoothed = np.where(wanted, values, 0).astype(np.float32)
    box = bounding_box(values != 0, margin=size // 2)
    if size <= 1 or box is None:
        return smoothed

    padded = np.pad(values[box], size // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3)
    voxels = np.argwhere(wanted[box])
    half = size**3 // 2
    part = smoothed[box]  # a view

    def filter_from(start: int) -> None:
        at = tuple(voxels[start : start + MEDIAN_VOXELS].T)
        values = windows[at].reshape(-1, size**3)  # a copy
        values.partition(half, axis=1)
        part[at] = values[:, half]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(filter_from, range(0, len(voxels), MEDIAN_VOXELS)))  # raises what one raises
    return smoothed


def erode_rim(brain: np.ndarray, spacing: Sequence[float], rim_mm: float) -> np.ndarray:
    """Return the brain voxels (bool) more than `rim_mm` away from the nearest voxel outside it.

    The array border is not outside: a brain that the field of view cuts off keeps its cut slices.
    A ball of `rim_mm` is taken as rods along the last axis, each of the length that it has there.
    """
    eroded = as_mask(brain, "brain").copy()
    spacing = check_spacing(spacing)
    check_not_negative(rim_mm, "rim_mm")
    box = bounding_box(eroded, margin=1)
    if rim_mm == 0 or box is None or eroded.all():
        return eroded

    reach = rim_mm + 1e-4 * max(rim_mm, *spacing)
    inside = np.ascontiguousarray(eroded[box])
    kept = inside.copy()
    by_length = {0: inside}  # voxels with as many voxels of the brain before and behind them
    rows, columns = (int(reach / step) for step in spacing[:2])
    for i, j in itertools.product(range(-rows, rows + 1), range(-columns, columns + 1)):
        left = reach**2 - (i * spacing[0]) ** 2 - (j * spacing[1]) ** 2
        if left < 0:
            continue
        length = int(left**0.5 / spacing[2])
        for longer in range(len(by_length), length + 1):
            by_length[longer] = by_length[longer - 1].copy()
            by_length[longer][..., :-longer] &= inside[..., longer:]
            by_length[longer][..., longer:] &= inside[..., :-longer]
        here, there = zip(_overlap(i, inside.shape[0]), _overlap(j, inside.shape[1]), strict=True)
        kept[here] &= by_length[length][there]
    eroded[box] = kept
    return eroded


def _overlap(shift: int, n: int) -> tuple[slice, slice]:
    """Of `n` places those that have one `shift` on, and the latter; both empty where none has."""
    shift = max(-n, min(n, shift))
    return slice(max(0, -shift), n - max(0, shift)), slice(max(0, shift), n - max(0, -shift))


def binarise(
    anomaly_map: np.ndarray,
    brain: np.ndarray,
    spacing: Sequence[float],
    threshold: float,
    closing_mm: float = 0.0,
    min_volume_mm3: float = 0.0,
) -> np.ndarray:
    """Return the mask (bool) of map > threshold in the brain, closed, without its small components.

    Closing uses a ball of `closing_mm`, stays in the brain and never removes a voxel. Then
    26-connected components under `min_volume_mm3` go. ValueError on NaN in the map or on other
    shapes.
    """
    brain = as_mask(brain, "brain")
    spacing = check_spacing(spacing)
    check_same_shape(np.asarray(anomaly_map), brain, "anomaly_map and brain")
    check_not_negative(closing_mm, "closing_mm")
    check_not_negative(min_volume_mm3, "min_volume_mm3")
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN")

    marked = brain & (_finite_map(anomaly_map) > float(threshold))
    box = bounding_box(marked)
    if box is None:
        return marked
    marked[box] = _close(marked[box], spacing, closing_mm) & brain[box]
    marked[box] = _without_small(marked[box], min_volume_mm3 / float(np.prod(spacing)))
    return marked


def cluster_enhanced(
    anomaly_map: np.ndarray,
    spacing: Sequence[float],
    extent: float = 0.5,
    height: float = 2.0,
    steps: int = 25,
) -> np.ndarray:
    """Return the threshold-free cluster enhancement of a map (Smith & Nichols 2009).

    It is float32 and has the map's shape. A voxel's value is the integral of
    e(h)^`extent` h^`height` over heights h from 0 to the voxel's height. Here e(h) is the volume in
    ml of the 26-connected component of map > h that the voxel lies in. So what is high counts, and
    what is large. The paper's exponents are the defaults. The integral is a sum over `steps`
    heights up to the map's maximum. ValueError on NaN in the map.
    """
    values = _finite_map(anomaly_map)
    voxel_ml = float(np.prod(check_spacing(spacing))) / 1000
    enhanced = np.zeros(values.shape, np.float32)
    box = bounding_box(values > 0)
    if box is None:
        return enhanced

    inside = values[box]
    part = enhanced[box]  # a view
    width = float(inside.max()) / steps
    for h in (np.arange(steps) + 0.5) * width:
        labels = label(inside > h, connectivity=3)
        weight = (np.bincount(labels.ravel()) * voxel_ml) ** extent * (h**height * width)
        weight[0] = 0
        part += weight.astype(np.float32)[labels]
    return enhanced


def strengths(
    marked: np.ndarray,
    anomaly_map: np.ndarray,
    spacing: Sequence[float],
    low: float = 0.0,
    kind: Strength = "peak",
) -> np.ndarray:
    """Return how strong each 26-connected component of `marked` is, in scikit-image's order (N,).

    By `kind`: the map's "peak" in it; its "mass", the integral in ml of what exceeds `low`; or the
    peak of the map's "cluster" enhancement.
    """
    marked = as_mask(marked, "marked")
    values = _finite_map(anomaly_map)
    check_same_shape(marked, values, "marked and anomaly_map")
    box = bounding_box(marked)
    if box is None:
        return np.zeros(0)
    labels = label(marked[box], connectivity=3)
    if kind == "mass":
        voxel_ml = float(np.prod(check_spacing(spacing))) / 1000
        above = np.maximum(values[box].astype(float) - low, 0)
        return np.bincount(labels.ravel(), above.ravel())[1:] * voxel_ml

    taken = cluster_enhanced(values, spacing)[box] if kind == "cluster" else values[box]
    return highest_in(labels, taken, int(labels.max()))


def keep_strong(marked: np.ndarray, found: np.ndarray, level: float) -> np.ndarray:
    """Return `marked` without the components whose strength (`strengths`) is not above `level`."""
    marked = as_mask(marked, "marked").copy()
    box = bounding_box(marked)
    if box is not None:
        strong = np.concatenate([[False], found > level])
        marked[box] = strong[label(marked[box], connectivity=3)]
    return marked


def components(
    mask: np.ndarray,
    anomaly_map: np.ndarray,
    affine: np.ndarray,
    low: float = 0.0,
    kind: Strength = "peak",
) -> list[dict[str, Any]]:
    """Return the 26-connected components of `mask`, strongest first, as dictionaries for JSON.

    Keys: volume_mm3, n_voxels, centre_voxel (mean index), centre_mm, peak_voxel, peak_mm, peak and
    mean of the map, and the strength (`strengths`). `affine` (4, 4) maps voxel indices to mm.
    """
    mask = as_mask(mask, "mask")
    affine = check_affine(affine)
    anomaly_map = _finite_map(anomaly_map)
    check_same_shape(mask, anomaly_map, "mask and anomaly_map")
    box = bounding_box(mask)
    if box is None:
        return []

    corner = np.array([side.start for side in box])
    labels = label(mask[box], connectivity=3)
    regions = regionprops(labels, intensity_image=anomaly_map[box].astype(float))
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    strong = strengths(mask, anomaly_map, spacing, low, kind)
    found: list[dict[str, Any]] = []
    for region, strength in zip(regions, strong.tolist(), strict=True):
        found.append(_describe(region, corner, anomaly_map, affine) | {"strength": strength})
    return sorted(found, key=lambda item: (-item["strength"], -item["n_voxels"]))


def location_of_maximum(anomaly_map: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Return voxel (index), mm and value of the map's maximum, the first in array order if tied."""
    anomaly_map = _finite_map(anomaly_map)
    affine = check_affine(affine)
    voxel = np.array(np.unravel_index(np.argmax(anomaly_map), anomaly_map.shape))
    return {
        "voxel": voxel.tolist(),
        "mm": _in_mm(voxel, affine),
        "value": float(anomaly_map[tuple(voxel)]),
    }


def _close(mask: np.ndarray, spacing: tuple[float, float, float], radius: float) -> np.ndarray:
    """Return the closing of `mask` by a ball: dilation, then erosion, each by a distance in mm.

    Few marked voxels are closed one by one; else distances are taken everywhere.
    """
    radius *= 1 + ROUNDING
    margins = [int(radius // size) + 1 for size in spacing]
    # Room on every side, so that the closing never takes the array border for marked voxels.
    padded = np.pad(mask, [(2 * margin, 2 * margin) for margin in margins])
    inner = tuple(slice(2 * margin, -2 * margin) for margin in margins)
    ball = _ball(margins, spacing, radius)
    if len(ball) * np.count_nonzero(mask) > FEW * mask.size:
        return isotropic_closing(padded, radius, spacing=spacing)[inner]

    _, rows, columns = padded.shape
    steps = ball @ np.array([rows * columns, columns, 1])  # as `flatnonzero` counts
    marked = np.flatnonzero(padded)
    wide = np.zeros(padded.size, bool)
    for step in steps:
        wide[marked + step] = True
    reached = np.flatnonzero(wide)
    stays = np.ones(reached.size, bool)
    for step in steps:
        stays &= wide[reached + step]
    closed = np.zeros(padded.size, bool)
    closed[reached[stays]] = True
    return closed.reshape(padded.shape)[inner]


def _ball(margins: Sequence[int], spacing: Sequence[float], radius: float) -> np.ndarray:
    """Return the steps (N, 3) in voxels that are no longer than `radius` mm."""
    steps = np.indices([2 * margin + 1 for margin in margins]).reshape(3, -1).T - margins
    return steps[np.linalg.norm(steps * np.array(spacing), axis=1) <= radius]


def _without_small(mask: np.ndarray, min_voxels: float) -> np.ndarray:
    """Return `mask` without 26-connected components of fewer than `min_voxels` voxels."""
    labels = label(mask, connectivity=3)
    large = np.bincount(labels.ravel()) >= min_voxels * (1 - ROUNDING)
    large[0] = False
    return large[labels]


def _describe(
    region: Any, corner: np.ndarray, anomaly_map: np.ndarray, affine: np.ndarray
) -> dict[str, Any]:
    """Return a region of scikit-image as in `components`; its voxels count from `corner`."""
    voxels = region.coords + corner
    centre = np.array(region.centroid) + corner
    peak = voxels[np.argmax(anomaly_map[tuple(voxels.T)])]
    return {
        "volume_mm3": float(region.area * abs(np.linalg.det(affine[:3, :3]))),
        "n_voxels": int(region.area),
        "centre_voxel": centre.tolist(),
        "centre_mm": _in_mm(centre, affine),
        "peak_voxel": peak.tolist(),
        "peak_mm": _in_mm(peak, affine),
        "peak": float(region.intensity_max),
        "mean": float(region.intensity_mean),
    }


def _in_mm(voxel: np.ndarray, affine: np.ndarray) -> list[float]:
    return (affine[:3, :3] @ voxel + affine[:3, 3]).tolist()


def _finite_map(anomaly_map: np.ndarray) -> np.ndarray:
    """Return the map as an array; ValueError when it is not (X, Y, Z) or holds NaN or infinity."""
    anomaly_map = np.asarray(anomaly_map)
    if anomaly_map.ndim != 3:
        raise ValueError(f"an anomaly map has three dimensions, got shape {anomaly_map.shape}")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("the anomaly map must be finite, got NaN or infinity")
    return anomaly_map
