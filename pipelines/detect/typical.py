"""Is a scan like the training scans? Measured before any lesion is looked for.

A detector of what is unusual cannot tell an unusual scanner from an unusual brain. So a report says
how the scan as a whole compares with the healthy scans that the run knows: those that it has
learned from and those that it was calibrated on. `gate` gives one p-value for all features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.fft import irfftn, next_fast_len, rfftn
from scipy.ndimage import (
    binary_erosion,
    convolve,
    gaussian_filter,
    generate_binary_structure,
    white_tophat,
)
from scipy.stats import wasserstein_distance

from evaluation.checks import bounding_box
from pipelines.cohort.cases import Case, load
from preprocessing.files import read_json, write_json
from preprocessing.orientation import block_means
from preprocessing.prepare import Prepared
from preprocessing.warp import volume_change

NAME = "typical.json"
BINS = np.linspace(0, 1, 65)
CENTRES = (BINS[:-1] + BINS[1:]) / 2
VOLUME = "brain volume, ml"
LUNG_VOLUME = "lung volume, ml"
DISTANCE = "distance of the intensity histogram"
FEWEST = 5  # training scans; of fewer a range says nothing
SLACK = 0.5  # of the training range, beyond each of its ends
CHECKS = {  # the name of a check of preprocessing, and the feature's
    "overlap with the atlas brain, rigid (Dice)": "overlap with the atlas brain, rigid",
    "overlap with the atlas brain, affine (Dice)": "overlap with the atlas brain, affine",
    "likeness to a brain (mutual information with the atlas, affine)": "likeness to the atlas",
}
EVERY = (slice(None, None, 2),) * 3  # voxels that tell shading
SHADING = ("left to right", "back to front", "feet to head", "middle to rim")  # of atlas space
AXES = ("left to right", "back to front")  # of an axial slice
THIRD = 3  # every so many axial slices tell texture
DETAIL_MM = (0.8, 3.0)  # sigmas of the detail of a slice
THIN_MM = 4.0
CLIPPED = 4.0  # of the detail's median size
ROUNDING = 1e-5  # of the scaled intensity
FEWEST_COMMON = 0.035  # of the voxels: what fewer have in common is no echo
NEAR_MM = (6.0, 40.0)  # motion rings
FAR_MM = 40.0  # a ghost is a whole copy, and lies farther away
FEWEST_FAR = 0.02  # of the voxels: less of a brain meets its ghost
COARSE_MM = 2.0  # voxels that tell ghosts
SMOOTH_MM = 4.0  # sigma of what is no detail of them
LAPLACE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)


class Typical(BaseModel):
    """typical.json: the features of each training scan, and their mean intensity histogram."""

    features: dict[str, list[float]]
    histogram: list[float]


class Compared(BaseModel):
    """A feature of a scan among those of the training scans.

    `percentile` is the share of training scans that have no more. `outside`: farther beyond their
    range than half of it.
    """

    name: str
    value: float
    percentile: float
    lowest: float
    highest: float
    outside: bool


def histogram(prepared: Prepared) -> np.ndarray:
    """Shares of the brain's voxels by intensity of the first channel, (64,)."""
    values = prepared.channels[0][prepared.brain]
    counts = np.histogram(values.clip(0, 1), BINS)[0]
    return counts / max(int(counts.sum()), 1)


def _near_brain(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """The first channel and the brain in the box around it, with a voxel on each side."""
    box = bounding_box(prepared.brain, margin=1) or ()
    return prepared.channels[0][box], prepared.brain[box]


def noise(prepared: Prepared) -> float:
    """Standard deviation of the noise in units of the scaled intensity, from the axial slices.

    Median over slices of the mean absolute Laplacian inside the brain (Immerkaer 1996).
    """
    image, brain = _near_brain(prepared)
    found: list[float] = []
    for z in np.flatnonzero(brain.sum((0, 1)) >= 500):
        inside = brain[:, :, z]
        edges = convolve(image[:, :, z].astype(float), LAPLACE)
        found.append(float(np.abs(edges[inside]).mean()) * np.sqrt(np.pi / 2) / 6)
    return float(np.median(found)) if found else 0.0


def spread(values: np.ndarray) -> float:
    """Distance of the quartiles: a lesion hardly moves it."""
    low, high = np.percentile(values, (25, 75)) if values.size else (0.0, 0.0)
    return float(high - low)


def sharpness(prepared: Prepared) -> float:
    """Median slope inside the brain per millimetre over the spread of its intensity."""
    image, brain = _near_brain(prepared)
    image = image.astype(float)
    cross = generate_binary_structure(3, 1)
    inner = binary_erosion(brain, cross if brain.shape[2] > 1 else cross[:, :, 1:2])
    scale = spread(image[brain])
    if not inner.any() or scale == 0:
        return 0.0
    steps = [np.gradient(image, prepared.grid.spacing[axis], axis=axis)[inner] for axis in (0, 1)]
    return float(np.median(np.hypot(*steps)) / scale)


def shading(prepared: Prepared) -> dict[str, float]:
    """How much brighter one half of the brain is than the other, along `SHADING`, by name.

    Differences of medians over the median of the brain, the later half less the former, on every
    second voxel along each axis. Halves lie about the brain's middle; of the last, half of the
    voxels are rim. A lesion hardly moves a median, a bias field does. But of a single slice a
    lesion may be a large part of one side: no left to right there.
    """
    brain = prepared.brain[EVERY]
    values = prepared.channels[0][EVERY][brain]
    middle = float(np.median(values)) if values.size else 0.0
    if middle == 0:
        return {}
    places = np.argwhere(brain).astype(np.float32)
    away = places - places.mean(axis=0)
    ways = [*away.T, ((away / np.maximum(away.std(axis=0), 1)) ** 2).sum(axis=1)]
    ways[-1] -= np.median(ways[-1])
    found: dict[str, float] = {}
    for name, way in zip(SHADING, ways, strict=True):
        if brain.shape[2] == 1 and name == AXES[0]:
            continue
        halves = values[way > 0], values[way <= 0]
        if min(half.size for half in halves):
            found[f"shading, {name}"] = float(np.median(halves[0]) - np.median(halves[1])) / middle
    return found


def texture(prepared: Prepared) -> dict[str, float]:
    """How bright thin structures are, and how far they repeat or lean along an axis, by name.

    "thin bright structures": the 99.5th percentile of what an opening by `THIN_MM` takes away from
    axial slices, over the spread of the brain. "near echo": the highest correlation of the detail
    with itself, moved along an axis by NEAR_MM; motion repeats edges. "slopes": the logarithm of
    the median slope along one axis over that along the other; motion blurs along one. A lesion is
    wider than thin, and its edges are few and clipped. Empty for a brain without an inner part.
    """
    image, brain = _near_brain(prepared)
    image = image[:, :, ::THIRD].astype(np.float32)
    brain = brain[:, :, ::THIRD]
    sides = np.array(prepared.grid.spacing[:2])
    away = round(DETAIL_MM[1] / sides.min())
    inner = brain & binary_erosion(brain, np.ones((3, 3, 1), bool), iterations=away)
    scale = spread(image[brain])
    if not inner.any() or scale == 0:
        return {}
    fine, coarse = (gaussian_filter(image, (*(mm / sides), 0)) for mm in DETAIL_MM)
    size = [2 * round(THIN_MM / 2 / side) + 1 for side in sides]
    thin = white_tophat(fine, (*size, 1))[inner]
    found = {"thin bright structures": float(np.percentile(thin, 99.5)) / scale}

    detail = _clipped(fine - coarse, inner)
    for axis, name in enumerate(AXES):
        lags = slice(*(round(mm / sides[axis]) for mm in NEAR_MM))
        found[f"near echo, {name}"] = float(_likeness(detail, inner, axis)[lags].max())
    slopes = [float(np.median(np.abs(np.gradient(image, axis=axis))[inner])) for axis in (0, 1)]
    if min(slopes) > 0:
        found["slopes, back to front"] = float(np.log(slopes[1] / slopes[0]))
    return found


def _clipped(detail: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The detail inside, none larger than CLIPPED median ones, and nothing outside.

    Nothing at all where most of the scan is flat, so that rounding alone is left.
    """
    most = CLIPPED * float(np.median(np.abs(detail[inner])))
    if most < ROUNDING:
        return np.zeros(detail.shape, np.float32)
    return np.where(inner, detail.clip(-most, most), 0).astype(np.float32)


def _likeness(detail: np.ndarray, inner: np.ndarray, axis: int) -> np.ndarray:
    """Correlation of the detail with itself by the steps between along an axis; each by its voxels.

    Nothing where too few voxels have a partner, and of a detail that is flat.
    """
    values, common = (_autocorrelation(array, (axis,)) for array in (detail, inner))
    if values[0] == 0:
        return np.zeros_like(values)
    seen = common > FEWEST_COMMON * common[0]
    likeness = np.where(seen, values / np.maximum(common, 1), 0) / (values[0] / common[0])
    return likeness[: detail.shape[axis]]  # what follows are the same steps backwards


def ghost(prepared: Prepared) -> dict[str, float]:
    """How much the detail is like itself, moved by FAR_MM or more in any direction: "far echo".

    The highest correlation, times the square root of the share of voxels that have a partner: of
    fewer voxels chance brings more. Empty for a brain without an inner part.
    """
    near = _near_brain(prepared)
    (image, grid), (brain, _) = (block_means(data, prepared.grid, COARSE_MM) for data in near)
    sides = np.array(grid.spacing)
    away = round(SMOOTH_MM / sides[:2].min())
    inner = binary_erosion(brain == 1, np.ones((3, 3, 1), bool), iterations=away)
    if not inner.any():
        return {}
    detail = _clipped(image - gaussian_filter(image, SMOOTH_MM / sides), inner)
    detail -= np.where(inner, detail[inner].mean(), 0)
    values, common = (_autocorrelation(array, (0, 1, 2)) for array in (detail, inner))
    seen = common > FEWEST_FAR * common[0, 0, 0]
    places = [np.fft.fftfreq(n) * n * side for n, side in zip(seen.shape, sides, strict=True)]
    steps = np.meshgrid(*places, indexing="ij", sparse=True)
    seen &= sum(step**2 for step in steps) > FAR_MM**2
    if not seen.any() or values[0, 0, 0] == 0:
        return {}
    share = values[seen] / np.sqrt(common[seen])
    return {"far echo": float(share.max() * np.sqrt(common[0, 0, 0]) / values[0, 0, 0])}


def _autocorrelation(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Sums of products of an array with itself by the steps between, along some axes.

    Steps as of `np.fft.fftfreq`; the other axes are summed over.
    """
    lengths = [next_fast_len(2 * array.shape[axis], real=True) for axis in axes]
    power = np.abs(rfftn(array.astype(np.float32), lengths, axes)) ** 2
    others = tuple(axis for axis in range(array.ndim) if axis not in axes)
    return irfftn(power.sum(axis=others), lengths)


def features_of(
    prepared: Prepared, checks: Sequence[Mapping[str, Any]], healthy: np.ndarray
) -> dict[str, float]:
    """Features of a prepared scan by name; `healthy` is the training scans' mean histogram.

    `checks` are those of preprocessing, as a report holds them.
    """
    spacing = prepared.home.spacing
    scale = volume_change(prepared.scan_from_atlas, prepared.brain, prepared.grid)
    voxel_ml = float(np.prod(prepared.grid.spacing)) * scale / 1000
    inside = prepared.channels[0][prepared.brain]
    volume = LUNG_VOLUME if prepared.organ == "lung" else VOLUME
    features = {
        volume: float(prepared.brain.sum()) * voxel_ml,
        "smallest voxel side, mm": float(min(spacing)),
        "largest voxel side, mm": float(max(spacing)),
        "median intensity": float(np.median(inside)) if inside.size else 0.0,
        "spread of intensity": spread(inside),
        "noise": noise(prepared),
        "sharpness": sharpness(prepared),
        DISTANCE: _distance(histogram(prepared), healthy),
        **shading(prepared),
        **texture(prepared),
        **ghost(prepared),
    }
    for check in checks:
        if check["name"] in CHECKS and check["value"] is not None:
            features[CHECKS[check["name"]]] = float(check["value"])
    return features


def _distance(own: np.ndarray, healthy: np.ndarray) -> float:
    if not (own.sum() and healthy.sum()):
        return 0.0
    return float(wasserstein_distance(CENTRES, CENTRES, own, healthy))


def describe(cases: Sequence[Case]) -> Typical:
    """The features of healthy cases."""
    shapes: list[np.ndarray] = []
    rows: list[dict[str, float]] = []
    for case in cases:
        prepared = load(case)
        shapes.append(histogram(prepared))
        row = features_of(prepared, case.read_sidecar().get("checks", []), shapes[-1])
        if case.is_part:
            for volume in (VOLUME, LUNG_VOLUME):  # of some slices alone
                row.pop(volume, None)
        rows.append(row)
    mean = np.mean(shapes, axis=0) if shapes else np.zeros(len(CENTRES))
    found: dict[str, list[float]] = {}
    for row, shape in zip(rows, shapes, strict=True):
        row[DISTANCE] = _distance(shape, mean)
        for name, value in row.items():
            found.setdefault(name, []).append(round(value, 6))
    return Typical(features=found, histogram=[round(float(v), 8) for v in mean])


def own_features(typical: Typical, prepared: Prepared) -> dict[str, float]:
    """A prepared scan's features by name."""
    checks = [check.row() for check in prepared.checks]
    return features_of(prepared, checks, np.array(typical.histogram))


def compare_with(typical: Typical, own: Mapping[str, float]) -> list[Compared]:
    """A scan's features among those of the training scans; empty for too few of them."""
    rows: list[Compared] = []
    for name, value in own.items():
        known = np.array(typical.features.get(name, []))
        if known.size >= FEWEST:
            rows.append(_compared(name, value, known))
    return rows


def _compared(name: str, value: float, known: np.ndarray) -> Compared:
    low = float(known.min())
    high = float(known.max())
    beyond = SLACK * (high - low) + 0.01 * max(abs(low), abs(high))
    return Compared(
        name=name,
        value=value,
        percentile=float(100 * np.mean(known <= value)),
        lowest=low,
        highest=high,
        outside=not low - beyond <= value <= high + beyond,
    )


def flags_of(rows: Sequence[Compared]) -> list[str]:
    """A sentence for each feature that lies outside the training scans."""
    return [
        f"{row.name} {row.value:.3g} is unlike the training scans ({row.lowest:.3g} to "
        f"{row.highest:.3g})"
        for row in rows
        if row.outside
    ]


def write_typical(typical: Typical, run_dir: Path) -> None:
    """Write typical.json of a run."""
    write_json(run_dir / NAME, typical.model_dump())


def read_typical(run_dir: Path) -> Typical | None:
    """typical.json of a run; None for runs of version 0.1.0, which have none."""
    path = run_dir / NAME
    return Typical(**read_json(path)) if path.is_file() else None
