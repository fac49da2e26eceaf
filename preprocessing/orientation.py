"""How a head lies: whether its header is right about it, and a guess where it says nothing."""

from __future__ import annotations

import itertools
from functools import lru_cache

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.quality import mutual_information
from preprocessing.recipe import Intensity
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import ScanError

COARSE_MM = 4.0  # at which poses are compared
FIT_MM = 8.0  # at which they are fitted
BINS = 16  # of the histogram there: with more, few voxels make any two images look alike
APART = 45  # degrees from which two poses are two; turns that send axes to axes are 90 apart
RIVALS = 3  # other poses that are fitted


def over_other_poses(
    image: np.ndarray,
    brain: np.ndarray,
    grid: Grid,
    atlas: register.Atlas,
    scan_from_atlas: np.ndarray,
) -> float:
    """The likeness of a stripped scan where its fit laid it, over the best one in another pose.

    Other poses start at the turns of the scan that send axes to axes, where a wrong header would
    have to be mended. The likeliest few are fitted shortly. Likeness is mutual information where
    both brains are, at 4 mm. No turn mirrors: whether left is right is not seen.
    """
    shown, coarse = block_means(image, grid)
    inside = block_means(brain, grid)[0] > 0.5
    wanted, atlas_brain, atlas_grid, to_fit = coarse_atlas(atlas)

    def likeness(pose: np.ndarray) -> float:
        both = carry_mask(inside, coarse, atlas_grid, pose, atlas_brain) & atlas_brain
        there = resample(shown, coarse, atlas_grid, pose, within=atlas_brain)[both]
        return mutual_information(there, wanted[both], BINS) if both.any() else 0.0

    centres = register.centre(atlas.brain, atlas.affine), register.centre(brain, grid.affine)
    starts = register.turned_about(*centres, [turn.T for turn in quarter_turns()])
    others = [start for start in starts if degrees_between(start, scan_from_atlas) > APART]
    rivals = sorted(others, key=likeness)[-RIVALS:]
    ends = register.short_fits(to_fit, block_means(image, grid, FIT_MM), rivals)
    found = [0.0]
    for end in ends:
        # a fit may slip back to where the scan lies
        if end is not None and degrees_between(end, scan_from_atlas) > APART:
            found.append(likeness(end))
    return likeness(scan_from_atlas) / max(*found, 1e-6)


@lru_cache(maxsize=2)
def coarse_atlas(
    atlas: register.Atlas,
) -> tuple[np.ndarray, np.ndarray, Grid, tuple[np.ndarray, Grid]]:
    """Image, brain (bool) and grid of an atlas at 4 mm, and its image with its grid at 8 mm."""
    image, grid = block_means(atlas.image, atlas.grid)
    brain = block_means(atlas.brain, atlas.grid)[0] > 0.5
    return image, brain, grid, block_means(atlas.image, atlas.grid, FIT_MM)


def degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between the rotations of two affine maps (4x4)."""
    one, two = (register.nearest_rigid(matrix, np.zeros(3))[:3, :3] for matrix in (a, b))
    return float(np.degrees(Rotation.from_matrix(one.T @ two).magnitude()))


def block_means(
    data: np.ndarray, grid: Grid, spacing: float = COARSE_MM
) -> tuple[np.ndarray, Grid]:
    """An image or mask at about `spacing` mm, float32: the means of blocks of voxels."""
    sizes = [max(1, round(spacing / float(step))) for step in grid.spacing]
    sizes = [min(size, n) for size, n in zip(sizes, data.shape, strict=True)]
    x, y, z = [n // size for size, n in zip(sizes, data.shape, strict=True)]
    i, j, k = sizes
    whole = data[: x * i, : y * j, : z * k].astype(np.float32)
    # one axis after the other, which is many times as fast as all at once
    for axis, size in enumerate(sizes):
        planes = [whole[(slice(None),) * axis + (slice(n, None, size),)] for n in range(size)]
        whole = np.sum(planes, axis=0) / np.float32(size)

    affine = grid.affine @ np.diag([*sizes, 1.0])
    affine[:3, 3] += grid.affine[:3, :3] @ ((np.array(sizes) - 1) / 2)
    return whole, Grid((x, y, z), affine)


def likely_turns(image: np.ndarray, grid: Grid, atlas: register.Atlas) -> list[np.ndarray]:
    """Turns (4x4) of space after which a scan may lie as the atlas does, the likeliest first.

    `image` is a whole head or a brain, on a grid whose axes may be any. Each of the 24 rotations
    that send axes to axes is a start of a short affine fit. They are sorted by how like the atlas
    its end is. Those whose fit fails are left out. None of them mirrors: whether left is right
    cannot be found this way. Raises ScanError where all fail.
    """
    shown, coarse = block_means(image, grid)
    wanted, atlas_brain, atlas_grid, to_fit = coarse_atlas(atlas)
    # without the rim, where any two heads are alike
    inside = ndimage.binary_erosion(atlas_brain)

    middle = ndimage.center_of_mass(shown - shown.min())
    centres = (
        register.centre(atlas.brain, atlas.affine),
        coarse.affine[:3, :3] @ np.array(middle) + coarse.affine[:3, 3],
    )
    turns = quarter_turns()
    starts = register.turned_about(*centres, [turn.T for turn in turns])
    ends = register.short_fits(to_fit, block_means(image, grid, FIT_MM), starts)

    found = []
    for turn, end in zip(turns, ends, strict=True):
        if end is not None:
            there = resample(shown, coarse, atlas_grid, end, within=inside)[inside]
            found.append((mutual_information(there, wanted[inside], BINS), turn))
    if not found:
        raise ScanError("registration to the atlas failed in every orientation.")
    return [turn for _, turn in sorted(found, key=lambda one: -one[0])]


def quarter_turns() -> list[np.ndarray]:
    """The 24 rotations (4x4) that send axes to axes; none of them mirrors."""
    turns = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.eye(4)
            turn[:3, :3] = np.diag(signs)[list(order)]
            if np.linalg.det(turn) > 0:
                turns.append(turn)
    return turns


def whole_head(image: nib.Nifti1Image, how: Intensity) -> np.ndarray:
    """A whole head in a range that registration can use; float32."""
    data = np.asarray(image.dataobj, np.float32)
    limits = (how.low, how.high) if how.kind == "window" else np.percentile(data, (0.5, 99.5))
    return np.clip(data, *limits)


def without_bone(image: nib.Nifti1Image, how: Intensity) -> np.ndarray:
    """`whole_head` in which what is above a window, as bone is, becomes as dark as air."""
    shown = whole_head(image, how)
    if how.kind == "window":
        shown = np.where(np.asarray(image.dataobj) > how.high, how.low, shown)
    return shown
