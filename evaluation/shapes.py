"""Random shapes of synthetic lesions, and places for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, label

from evaluation.checks import as_mask, bounding_box, check_spacing

BUMPS = 12  # waves that roughen a shape's surface
BUMP_SIZE = 0.25  # spread of the log radius that they make together


def random_shape(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing: Sequence[float],
    centre_voxel: Sequence[int],
    volume_ml: float,
) -> np.ndarray:
    """Return a smooth blob (bool, `shape` (X, Y, Z)) in one piece about `centre_voxel`.

    It is an ellipsoid of random axes and pose whose log radius varies smoothly with direction, so
    that every ray from the centre leaves it once. It has `volume_ml` where the array has room.
    `spacing` is the voxel size in mm; a picture is one slice, and its thickness counts. ValueError
    for a centre outside the array or a volume that is not positive.
    """
    sizes = np.array(check_spacing(spacing))
    centre = np.array(centre_voxel)
    if not (np.isfinite(volume_ml) and volume_ml > 0):
        raise ValueError(f"volume_ml must be a positive number, got {volume_ml!r}")
    if (centre < 0).any() or (centre >= shape).any():
        raise ValueError(
            f"the centre {centre.tolist()} lies outside an array of shape {tuple(shape)}"
        )
    count = min(max(1, round(volume_ml * 1000 / float(sizes.prod()))), int(np.prod(shape)))

    # Axes of 0.7 to 1.4 times the radius of a ball: exp(0.35) is 1.42.
    pose = np.linalg.qr(rng.normal(size=(3, 3)))[0] * np.exp(rng.uniform(-0.35, 0.35, 3))
    waves = rng.normal(0, 2, (3, BUMPS))
    phases = rng.uniform(0, 2 * np.pi, BUMPS)

    # The box grows until the blob touches none of its sides but the array's.
    reach = 1.5 * _radius_mm(volume_ml, shape, spacing)
    while True:
        steps = np.ceil(reach / sizes).astype(int)
        low = np.maximum(centre - steps, 0)
        high = np.minimum(centre + steps + 1, shape)
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
    """Return a voxel of `brain` (X, Y, Z) about which a lesion of `volume_ml` lies mostly inside.

    It lies 0.7 radii of a ball of that volume and `margin_mm` below the brain's surface, or as deep
    as the brain allows. The array border counts as surface. ValueError for an empty brain.
    """
    brain = as_mask(brain, "brain")
    if not brain.any():
        raise ValueError("the brain mask is empty")
    depth = depth_mm(brain, spacing)
    # 0.7 radii and not 1: mostly inside is enough, as `plant` cuts off what lies outside.
    # At most 0.8 of the deepest place, so that a small brain has several places too.
    wanted = margin_mm + 0.7 * _radius_mm(volume_ml, brain.shape, spacing)
    wanted = min(wanted, 0.8 * float(depth.max()))
    voxels = np.argwhere(brain)[depth >= wanted]
    x, y, z = voxels[rng.integers(len(voxels))]
    return int(x), int(y), int(z)


def depth_mm(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance in mm (N,) from each voxel of a mask to the nearest outside it.

    Beyond the array border is outside, but not across the plane of a single slice.
    """
    box = bounding_box(mask)
    inner = mask[box]
    margins = [int(n > 1) for n in mask.shape]
    padded = np.pad(inner, [(margin, margin) for margin in margins])
    distance = distance_transform_edt(padded, sampling=check_spacing(spacing))
    sides = zip(margins, inner.shape, strict=True)
    return distance[tuple(slice(margin, margin + n) for margin, n in sides)][inner]


def _radius_mm(volume_ml: float, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the radius of a ball of the volume, or of a disc in a single slice."""
    mm3 = volume_ml * 1000
    if shape[2] == 1:
        return float(np.sqrt(mm3 / spacing[2] / np.pi))
    return float((mm3 * 3 / 4 / np.pi) ** (1 / 3))


def _distance(
    box: tuple[slice, ...],
    centre: np.ndarray,
    sizes: np.ndarray,
    pose: np.ndarray,
    waves: np.ndarray,
    phases: np.ndarray,
) -> np.ndarray:
    """Return the distance from the centre over the box, in radii of the blob up to a factor."""
    indices = [np.arange(side.start, side.stop) for side in box]
    voxels = np.stack(np.meshgrid(*indices, indexing="ij"), -1)
    along = (voxels - centre) * sizes @ pose
    distance = np.linalg.norm(along, axis=-1)
    directions = along / np.maximum(distance, 1e-9)[..., None]
    bumps = np.cos(directions @ waves + phases).sum(-1)
    return distance * np.exp(-BUMP_SIZE * np.sqrt(2 / BUMPS) * bumps)


def _nearest(distance: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` voxels (bool) of smallest distance; all where there are fewer."""
    count = min(count, distance.size)
    return distance <= np.partition(distance.ravel(), count - 1)[count - 1]


def _touches(chosen: np.ndarray, below: np.ndarray, above: np.ndarray) -> bool:
    """Whether a shape touches a side of its box beyond which the array goes on."""
    for axis in range(3):
        if below[axis] and chosen.take(0, axis).any():
            return True
        if above[axis] and chosen.take(-1, axis).any():
            return True
    return False


def _piece_at(mask: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    """Return the face-connected piece of a mask that holds a voxel.

    Coarse voxels can cut a thin spur off.
    """
    pieces, _ = label(mask)
    return pieces == pieces[voxel]
