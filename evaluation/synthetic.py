"""Synthetic lesions for healthy scans, in the manner of the MOOD challenge (Zimmerer et al. 2022): shapes, places and kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing

KINDS = ("bright", "dark", "blend", "deform", "noise", "mirror", "swap")
BUMPS, BUMP_SIZE = (
    12,
    0.25,
)  # waves that roughen a shape's surface, and the spread of its log radius
PLACES = 64  # tried for a patch that lies in the brain and off the lesion


def random_shape(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing: Sequence[float],
    centre_voxel: Sequence[int],
    volume_ml: float,
) -> np.ndarray:
    """Return a smooth blob (bool, `shape` (X, Y, Z)) in one piece about `centre_voxel`, of `volume_ml` where the array has room.

    An ellipsoid of random axes and pose whose log radius varies smoothly with direction, so that every ray from the
    centre leaves it once. `spacing` is the voxel size in mm; a picture is one slice, and its thickness counts. ValueError
    for a centre outside the array or a volume that is not positive.
    """
    sizes, centre = np.array(check_spacing(spacing)), np.array(centre_voxel)
    if not (np.isfinite(volume_ml) and volume_ml > 0):
        raise ValueError(f"volume_ml must be a positive number, got {volume_ml!r}")
    if (centre < 0).any() or (centre >= shape).any():
        raise ValueError(
            f"the centre {centre.tolist()} lies outside an array of shape {tuple(shape)}"
        )
    count = min(max(1, round(volume_ml * 1000 / float(sizes.prod()))), int(np.prod(shape)))
    pose = np.linalg.qr(rng.normal(size=(3, 3)))[0] * np.exp(rng.uniform(-0.35, 0.35, 3))
    waves, phases = rng.normal(0, 2, (3, BUMPS)), rng.uniform(0, 2 * np.pi, BUMPS)
    reach = 1.5 * _radius_mm(volume_ml, shape, spacing)
    while True:
        steps = np.ceil(reach / sizes).astype(int)
        low, high = np.maximum(centre - steps, 0), np.minimum(centre + steps + 1, shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        chosen = _nearest(_distance(box, centre, sizes, pose, waves, phases), count)
        if not _touches(chosen, low > 0, high < shape):
            break
        reach *= 1.5
    result = np.zeros(tuple(shape), bool)
    result[box] = _piece_at(chosen, tuple(centre - low))
    return result


def place(
    rng: np.random.Generator,
    brain: np.ndarray,
    spacing: Sequence[float],
    volume_ml: float,
    margin_mm: float,
) -> tuple[int, int, int]:
    """Return a voxel of `brain` (X, Y, Z) about which a lesion of `volume_ml` lies mostly inside, or as deep as the brain allows.

    It lies 0.7 radii of a ball of that volume and `margin_mm` below the brain's surface, the array's border included.
    ValueError for an empty brain.
    """
    brain = as_mask(brain, "brain")
    if not brain.any():
        raise ValueError("the brain mask is empty")
    depth = _depth(brain, spacing)
    wanted = min(
        margin_mm + 0.7 * _radius_mm(volume_ml, brain.shape, spacing), 0.8 * float(depth.max())
    )
    voxels = np.argwhere(brain)[depth >= wanted]
    x, y, z = voxels[rng.integers(len(voxels))]
    return int(x), int(y), int(z)


def plant(
    rng: np.random.Generator,
    kind: str,
    image: np.ndarray,
    brain: np.ndarray,
    shape: np.ndarray,
    spacing: Sequence[float],
    donor: np.ndarray | None = None,
    lr_axis: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy of `image` (X, Y, Z) float32 with one lesion, and its mask (bool): `shape` within `brain`.

    Outside the mask nothing changes; nothing falls below the brain's 1st percentile, which is fluid. Strengths are
    shares of the brain's range from the 5th to the 95th percentile, edges fade over 1-2 mm inwards.

    - bright, dark: shifted by 0.3-0.7
    - blend: 0.5-0.9 of `donor`, another subject on this grid with intensities by `match` (FPI, Tan et al. 2020)
    - deform: pushed from or drawn to the deepest point, nothing moves at the border
    - noise: grain of 1-2 voxels, sd 0.2-0.4
    - mirror: the place across the brain's mid plane along `lr_axis`, mirrored
    - swap: a patch from elsewhere in the brain

    ValueError for an unknown kind, a blend without donor, other shapes, or a shape outside the brain.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; expected one of {', '.join(KINDS)}")
    brain, shape = as_mask(brain, "brain"), as_mask(shape, "shape")
    for array, name in ((brain, "brain"), (shape, "shape"), (donor, "donor")):
        if array is not None:
            check_same_shape(image, array, f"image and {name}")
    mask = shape & brain
    if not mask.any():
        raise ValueError("no voxel of the shape lies in the brain")
    depth = _depth(mask, spacing) - 0.5 * min(
        check_spacing(spacing)
    )  # of the border's voxels half a voxel
    weight = np.minimum(depth / rng.uniform(1, 2), 1)
    floor, low, high = np.percentile(image[brain], (1, 5, 95))
    values, span = image[mask].astype(np.float64), float(high - low)
    if kind == "bright":
        content = values + rng.uniform(0.3, 0.7) * span
    elif kind == "dark":
        content = values - rng.uniform(0.3, 0.7) * span
    elif kind == "blend":
        if donor is None:
            raise ValueError("a blend needs a donor: another subject's image on this grid")
        content = _mixed(values, donor[mask], rng.uniform(0.5, 0.9))
    elif kind == "deform":
        content, weight = _deformed(rng, image, mask, depth), np.ones_like(weight)
    elif kind == "noise":
        content = values + rng.uniform(0.2, 0.4) * span * _grain(rng, mask)
    elif kind == "mirror":
        content = mirrored(image, brain, lr_axis)[mask]
    else:
        content = _elsewhere(rng, image, brain, mask)
    new = image.astype(np.float32)
    new[mask] = np.maximum(_mixed(values, content, weight), np.minimum(values, floor))
    return new, mask


def visibility(image: np.ndarray, new: np.ndarray, brain: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean absolute change within `mask` as a share of the brain's range, 5th to 95th percentile; 0 in a flat brain."""
    low, high = np.percentile(image[brain], (5, 95))
    return float(np.abs(new[mask] - image[mask]).mean() / (high - low)) if high > low else 0.0


def match(
    donor: np.ndarray, donor_brain: np.ndarray, image: np.ndarray, brain: np.ndarray
) -> np.ndarray:
    """Return `donor` as float32 with the mean and standard deviation within its brain that `image` has within `brain`."""
    theirs, ours = donor[donor_brain].astype(np.float64), image[brain].astype(np.float64)
    return ((donor - theirs.mean()) * (ours.std() / max(theirs.std(), 1e-12)) + ours.mean()).astype(
        np.float32
    )


def mirrored(array: np.ndarray, brain: np.ndarray, axis: int) -> np.ndarray:
    """Return `array` mirrored about the middle of `brain`'s extent along `axis`; beyond the border its edge repeats."""
    n = array.shape[axis]
    return np.take(array, np.clip(_twice_mid(brain, axis) - np.arange(n), 0, n - 1), axis)


def hemisphere(rng: np.random.Generator, brain: np.ndarray, axis: int) -> np.ndarray:
    """Return the brain (bool) on one drawn side of the middle of its extent along `axis`."""
    side = np.sign(2 * np.arange(brain.shape[axis]) - _twice_mid(brain, axis)) == rng.choice(
        [-1, 1]
    )
    return brain & np.expand_dims(side, [a for a in range(brain.ndim) if a != axis])


def _twice_mid(brain: np.ndarray, axis: int) -> int:
    """First plus last index of the brain along an axis: an index and its mirror image add up to it."""
    hits = np.flatnonzero(brain.any(tuple(a for a in range(brain.ndim) if a != axis)))
    return int(hits[0] + hits[-1])


def _radius_mm(volume_ml: float, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Radius of a ball of the volume, or in a single slice of a disc."""
    mm3 = volume_ml * 1000
    return float(
        np.sqrt(mm3 / spacing[2] / np.pi) if shape[2] == 1 else (mm3 * 3 / 4 / np.pi) ** (1 / 3)
    )


def _distance(
    box: tuple[slice, ...],
    centre: np.ndarray,
    sizes: np.ndarray,
    pose: np.ndarray,
    waves: np.ndarray,
    phases: np.ndarray,
) -> np.ndarray:
    """Distance from the centre over the box, in radii of the blob up to a factor."""
    at = np.stack(np.meshgrid(*[np.arange(b.start, b.stop) for b in box], indexing="ij"), -1)
    along = (at - centre) * sizes @ pose
    distance = np.linalg.norm(along, axis=-1)
    ways = along / np.maximum(distance, 1e-9)[..., None]
    return distance * np.exp(
        -BUMP_SIZE * np.sqrt(2 / BUMPS) * np.cos(ways @ waves + phases).sum(-1)
    )


def _nearest(distance: np.ndarray, count: int) -> np.ndarray:
    """The `count` voxels of smallest distance; all where there are fewer."""
    count = min(count, distance.size)
    return distance <= np.partition(distance.ravel(), count - 1)[count - 1]


def _touches(chosen: np.ndarray, below: np.ndarray, above: np.ndarray) -> bool:
    """Whether a shape touches a side of its box beyond which the array goes on."""
    ends = [
        (chosen.take(0, a).any() and below[a], chosen.take(-1, a).any() and above[a])
        for a in range(3)
    ]
    return bool(np.any(ends))


def _piece_at(mask: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    """The face-connected piece of a mask that holds a voxel: coarse voxels can cut a thin spur off."""
    from scipy.ndimage import label

    pieces, _ = label(mask)
    return pieces == pieces[voxel]


def _depth(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm from each voxel of a mask (N,) to the nearest outside it; beyond the array is outside, not so along one slice."""
    from scipy.ndimage import distance_transform_edt

    box = bounding_box(mask)
    inner = mask[box]
    margin = [int(n > 1) for n in mask.shape]
    padded = distance_transform_edt(
        np.pad(inner, [(m, m) for m in margin]), sampling=check_spacing(spacing)
    )
    return padded[tuple(slice(m, m + n) for m, n in zip(margin, inner.shape, strict=True))][inner]


def _mixed(values: np.ndarray, other: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Convex mix: `weight` of the other, the rest of the values."""
    return (1 - weight) * values + weight * other


def _deformed(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Values (N,) of the mask after a radial push from, or pull to, its deepest voxel that ends at its border; linear.

    In a ball, a point at radius r shows what was at r (1 - a (1 - r²/R²)): one to one for -0.5 < a < 1.
    """
    from scipy.ndimage import map_coordinates

    at = np.argwhere(mask)
    centre, inwards = at[np.argmax(depth)], depth / depth.max()
    amount = rng.uniform(0.6, 0.9) if rng.random() < 0.5 else -rng.uniform(0.3, 0.45)
    source = centre + (at - centre) * (1 - amount * inwards * (2 - inwards))[:, None]
    return map_coordinates(image, source.T, order=1, mode="nearest")


def _grain(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Smooth noise (N,) in the mask, correlated over 1-2 voxels, of mean 0 and standard deviation 1 about it."""
    from scipy.ndimage import gaussian_filter

    box = bounding_box(mask, margin=4)
    noise = gaussian_filter(rng.normal(size=mask[box].shape), rng.uniform(1, 2))
    return ((noise - noise.mean()) / noise.std())[mask[box]]


def _elsewhere(
    rng: np.random.Generator, image: np.ndarray, brain: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Values (N,) of a patch of the mask's shape at another place: the first drawn in the brain and off the mask, or the best."""
    at, inside = np.argwhere(mask), np.argwhere(brain)
    moves = inside[rng.integers(len(inside), size=PLACES)] - np.rint(at.mean(0)).astype(int)

    def source(move: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.clip(at + move, 0, np.array(mask.shape) - 1).T)

    def worth(move: np.ndarray) -> float:
        return min(0.95, float(brain[source(move)].mean()) - float(mask[source(move)].mean()))

    return image[source(max(moves, key=worth))]
