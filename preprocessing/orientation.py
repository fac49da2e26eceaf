"""How a head lies: whether its header is right about it, and a guess where it says nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

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
RIVALS = 3  # other poses that are compared

Rival = tuple[np.ndarray, np.ndarray | None]  # where a short fit starts and ends (4x4), if it does
Shape = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Coarse:
    """A stripped scan, or an atlas, as poses of it are compared.

    image and brain (bool): at 4 mm, on `grid`. to_fit: the image at 8 mm, and its grid. centre: of
    the brain, in mm.
    """

    image: np.ndarray
    brain: np.ndarray
    grid: Grid
    to_fit: tuple[np.ndarray, Grid]
    centre: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, brain: np.ndarray, grid: Grid) -> Coarse:
        """From the image and the brain (bool) on any grid."""
        shown, coarse = block_means(image, grid)
        inside = block_means(brain, grid)[0] > 0.5
        to_fit = block_means(image, grid, FIT_MM)
        return cls(shown, inside, coarse, to_fit, register.centre(brain, grid.affine))


@lru_cache(maxsize=2)
def coarse_atlas(atlas: register.Atlas) -> Coarse:
    """An atlas as poses in it are compared."""
    return Coarse.of(atlas.image, atlas.brain, atlas.grid)


def over_other_poses(
    scan: Coarse, atlas: Coarse, scan_from_atlas: np.ndarray, rivals: Sequence[Rival]
) -> float:
    """The likeness of a scan where its fit laid it, over the best one in another pose.

    `rivals` are those of `rival_poses`. Likeness is mutual information where both brains are, at
    4 mm.
    """
    others = [end for start, end in rivals if degrees_between(start, scan_from_atlas) > APART]
    found = [0.0]
    for end in others[-RIVALS:]:
        # a fit may slip back to where the scan lies
        if end is not None and degrees_between(end, scan_from_atlas) > APART:
            found.append(_likeness(scan, atlas, end))
    return _likeness(scan, atlas, scan_from_atlas) / max(*found, 1e-6)


def rival_poses(scan: Coarse, atlas: Coarse) -> list[Rival]:
    """The likeliest poses of a scan, the best one last, each with where a short fit of it ends.

    They start at the turns of the scan that send axes to axes, where a wrong header would have to
    be mended. There is one more than is needed, as one of them may be that of the scan's own fit.
    No turn mirrors: whether left is right is not seen.
    """
    turns = [turn.T for turn in quarter_turns()]
    starts = register.turned_about(atlas.centre, scan.centre, turns)
    likeliest = sorted(starts, key=lambda start: _likeness(scan, atlas, start))[-RIVALS - 1 :]
    ends = register.short_fits(atlas.to_fit, scan.to_fit, likeliest)
    return list(zip(likeliest, ends, strict=True))


def rivals_in(template: str | None, shape: Shape, scan: Coarse) -> list[Rival]:
    """`rival_poses` in the atlas that `load_atlas` makes of a template and a shape."""
    return rival_poses(scan, coarse_atlas(register.load_atlas(template, shape)))


def rivals_later(template: str | None, shape: Shape, scan: Coarse) -> Callable[[], list[Rival]]:
    """A call of `rivals_in`."""
    return partial(rivals_in, template, shape, scan)


# Begins `rivals_in` before the fit, and gives a call that waits for them: where another process
# has nothing else to do, it finds them meanwhile.
begin_rivals: Callable[[str | None, Shape, Coarse], Callable[[], list[Rival]]] = rivals_later


def _likeness(scan: Coarse, atlas: Coarse, pose: np.ndarray) -> float:
    both = carry_mask(scan.brain, scan.grid, atlas.grid, pose, atlas.brain) & atlas.brain
    there = resample(scan.image, scan.grid, atlas.grid, pose, within=atlas.brain)[both]
    return mutual_information(there, atlas.image[both], BINS) if both.any() else 0.0


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
    wanted = coarse_atlas(atlas)
    # without the rim, where any two heads are alike
    inside = ndimage.binary_erosion(wanted.brain)

    middle = np.array(ndimage.center_of_mass(shown - shown.min()))
    centre = coarse.affine[:3, :3] @ middle + coarse.affine[:3, 3]
    turns = quarter_turns()
    starts = register.turned_about(wanted.centre, centre, [turn.T for turn in turns])
    ends = register.short_fits(wanted.to_fit, block_means(image, grid, FIT_MM), starts)

    found = []
    for turn, end in zip(turns, ends, strict=True):
        if end is not None:
            there = resample(shown, coarse, wanted.grid, end, within=inside)[inside]
            found.append((mutual_information(there, wanted.image[inside], BINS), turn))
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
