"""Synthetic lesions for healthy scans, of several kinds; evaluation/shapes.py draws their shapes.

In the manner of the MOOD challenge (Zimmerer et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing
from evaluation.shapes import depth_mm

KINDS = ("bright", "dark", "blend", "deform", "noise", "mirror", "swap")
PLACES = 64  # tried for a patch that lies in the brain and off the lesion


def plant(
    rng: np.random.Generator,
    kind: str,
    image: np.ndarray,
    brain: np.ndarray,
    shape: np.ndarray,
    spacing: Sequence[float],
    donor: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy of `image` (X, Y, Z) float32 with one lesion, and the lesion (bool).

    The lesion is `shape` within `brain`. Outside it nothing changes. Nothing falls below the
    brain's 1st percentile, which is fluid. Strengths are shares of the brain's range from the 5th
    to the 95th percentile. Edges fade over 1-2 mm inwards.

    - bright, dark: shifted by 0.3-0.7
    - blend: 0.5-0.9 of `donor`, another subject on this grid with intensities by
      `match_intensities` (FPI, Tan et al. 2020)
    - deform: pushed from or drawn to the deepest point; nothing moves at the border
    - noise: grain of 1-2 voxels, sd 0.2-0.4
    - mirror: all of `donor`, which is this image by `mirrored`
    - swap: a patch from elsewhere in the brain

    ValueError for an unknown kind, a blend or mirror without donor, other shapes, or a shape
    outside the brain.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; expected one of {', '.join(KINDS)}")
    brain = as_mask(brain, "brain")
    shape = as_mask(shape, "shape")
    for array, name in ((brain, "brain"), (shape, "shape"), (donor, "donor")):
        if array is not None:
            check_same_shape(image, array, f"image and {name}")
    lesion = shape & brain
    if not lesion.any():
        raise ValueError("no voxel of the shape lies in the brain")

    # The centre of a border voxel lies half a voxel deep.
    depth = depth_mm(lesion, spacing) - 0.5 * min(check_spacing(spacing))
    weight = np.minimum(depth / rng.uniform(1, 2), 1)
    floor, low, high = np.percentile(image[brain], (1, 5, 95))
    if kind == "deform":  # it ends at the border by itself
        content = _deformed(rng, image, lesion, depth)
        weight = np.ones_like(weight)
    else:
        content = _content(rng, kind, image, brain, lesion, float(high - low), donor)

    values = image[lesion].astype(np.float64)
    new = image.astype(np.float32)
    new[lesion] = np.maximum(_mixed(values, content, weight), np.minimum(values, floor))
    return new, lesion


def _content(
    rng: np.random.Generator,
    kind: str,
    image: np.ndarray,
    brain: np.ndarray,
    lesion: np.ndarray,
    span: float,
    donor: np.ndarray | None,
) -> np.ndarray:
    """Return the values (N,) of a lesion of any kind but "deform"; `span` is the brain's range."""
    values = image[lesion].astype(np.float64)
    if kind == "bright":
        return values + rng.uniform(0.3, 0.7) * span
    if kind == "dark":
        return values - rng.uniform(0.3, 0.7) * span
    if kind == "noise":
        return values + rng.uniform(0.2, 0.4) * span * _grain(rng, lesion)
    if kind == "swap":
        return _elsewhere(rng, image, brain, lesion)
    if donor is None and kind == "blend":
        raise ValueError("a blend needs a donor: another subject's image on this grid")
    if donor is None:
        raise ValueError("a mirror needs a donor: this image, mirrored")
    return (
        _mixed(values, donor[lesion], rng.uniform(0.5, 0.9)) if kind == "blend" else donor[lesion]
    )


def visibility(image: np.ndarray, new: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> float:
    """Return the mean absolute change within `lesion` as a share of the brain's range.

    The range is that from the 5th to the 95th percentile. A flat brain gives 0.
    """
    low, high = np.percentile(image[brain], (5, 95))
    change = np.abs(new[lesion] - image[lesion]).mean()
    return float(change / (high - low)) if high > low else 0.0


def match_intensities(
    donor: np.ndarray, donor_brain: np.ndarray, image: np.ndarray, brain: np.ndarray
) -> np.ndarray:
    """Return `donor` as float32 with the mean and sd within its brain that `image` has in its."""
    theirs = donor[donor_brain].astype(np.float64)
    ours = image[brain].astype(np.float64)
    scale = ours.std() / max(theirs.std(), 1e-12)
    return ((donor - theirs.mean()) * scale + ours.mean()).astype(np.float32)


def mirrored(array: np.ndarray, brain: np.ndarray, axis: int) -> np.ndarray:
    """Return `array` mirrored about the middle of the brain's extent along `axis`.

    Beyond the array border its edge repeats.
    """
    n = array.shape[axis]
    source = np.clip(_twice_middle(brain, axis) - np.arange(n), 0, n - 1)
    return np.take(array, source, axis)


def hemisphere(rng: np.random.Generator, brain: np.ndarray, axis: int) -> np.ndarray:
    """Return the brain (bool) on one drawn side of the middle of its extent along `axis`."""
    sides = np.sign(2 * np.arange(brain.shape[axis]) - _twice_middle(brain, axis))
    drawn = sides == rng.choice([-1, 1])
    return brain & np.expand_dims(drawn, [a for a in range(brain.ndim) if a != axis])


def _twice_middle(brain: np.ndarray, axis: int) -> int:
    """Return first plus last index of the brain along an axis.

    An index and its mirror image add up to it.
    """
    hits = np.flatnonzero(brain.any(tuple(a for a in range(brain.ndim) if a != axis)))
    return int(hits[0] + hits[-1])


def _mixed(values: np.ndarray, other: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Return the convex mix: `weight` of the other, the rest of the values."""
    return (1 - weight) * values + weight * other


def _deformed(
    rng: np.random.Generator, image: np.ndarray, lesion: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Return the values (N,) of a lesion after a radial push from, or pull to, its deepest voxel.

    The move ends at the border. In a ball, a point at radius r shows what was at
    r (1 - a (1 - r²/R²)): one to one for -0.5 < a < 1. Interpolation is linear.
    """
    voxels = np.argwhere(lesion)
    centre = voxels[np.argmax(depth)]
    inwards = depth / depth.max()
    # Strong, but one to one.
    amount = rng.uniform(0.6, 0.9) if rng.random() < 0.5 else -rng.uniform(0.3, 0.45)
    source = centre + (voxels - centre) * (1 - amount * inwards * (2 - inwards))[:, None]
    return map_coordinates(image, source.T, order=1, mode="nearest")


def _grain(rng: np.random.Generator, lesion: np.ndarray) -> np.ndarray:
    """Return smooth noise (N,) in a lesion: correlated over 1-2 voxels, mean near 0, sd near 1."""
    box = bounding_box(lesion, margin=4)
    noise = gaussian_filter(rng.normal(size=lesion[box].shape), rng.uniform(1, 2))
    return ((noise - noise.mean()) / noise.std())[lesion[box]]


def _elsewhere(
    rng: np.random.Generator, image: np.ndarray, brain: np.ndarray, lesion: np.ndarray
) -> np.ndarray:
    """Return the values (N,) of a patch of the lesion's shape at another place.

    Of `PLACES` drawn places it is the first in the brain and off the lesion, or else the best.
    """
    voxels = np.argwhere(lesion)
    inside = np.argwhere(brain)
    places = inside[rng.integers(len(inside), size=PLACES)]
    moves = places - np.rint(voxels.mean(0)).astype(int)
    last = np.array(lesion.shape) - 1

    def source(move: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.clip(voxels + move, 0, last).T)

    def worth(move: np.ndarray) -> float:
        # From 0.95 on all places are equal, so that the first of them is taken.
        patch = source(move)
        return min(0.95, float(brain[patch].mean()) - float(lesion[patch].mean()))

    return image[source(max(moves, key=worth))]
