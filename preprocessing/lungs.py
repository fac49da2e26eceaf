"""The lungs of a chest CT: air inside the body, the two largest pieces, without the windpipe."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.spaces import vox2out_vox
from scipy import ndimage

from preprocessing.brain import largest, tidy
from preprocessing.images import Grid, box_around
from preprocessing.resample import resample
from preprocessing.scans import ScanError

NAME = "lungs"  # of the frame, and of the method that finds them
AIR_HU = -400.0  # below: air or aerated lung
DARKEST_HU = -1024.0  # scanners write -2000 or -3024 outside their round field of view
BODY_MM = 4.0  # what is thinner than twice this is no body: the shell of a table, tubes
SECOND = 0.2  # of the larger lung: a smaller piece is a bubble in stomach or bowel
CLOSED_MM = 10.0  # vessels, nodules and gaps narrower than twice this belong to the lung
DOME_CM2 = 5.0  # of a filled hole with no lung below it, from which on it is the diaphragm
WINDPIPE_CM2 = (0.3, 8.0)  # of an axial cut through windpipe or main bronchi
WINDPIPE_WIDER = 2.0  # from one cut to the next: what grows faster has met a lung
MIDDLE_MM = 35.0  # from the body's middle, within which the windpipe begins


def to_coarse(image: nib.Nifti1Image, spacing: float, pad: float) -> tuple[np.ndarray, Grid]:
    """A CT on a straight RAS+ grid of `spacing` mm around it, float32 HU, and that grid.

    It is smoothed before, where its voxels are finer. `pad` stands outside the scan.
    """
    grid = Grid.of(image)
    fine = np.maximum(np.asarray(image.dataobj, np.float32), DARKEST_HU)
    sigma = [max(0.0, (spacing / size - 1) / 2) for size in grid.spacing]
    smooth = ndimage.gaussian_filter(fine, sigma, mode="nearest")
    shape, affine = vox2out_vox((grid.shape, grid.affine), (spacing,) * 3)
    x, y, z = (int(n) for n in shape)
    coarse = Grid((x, y, z), affine)
    return resample(smooth, grid, coarse, pad=pad), coarse


def lung_mask(hu: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Lungs and windpipe of a chest CT (X, Y, Z) in HU, RAS+, isotropic of `spacing` mm; bool.

    Air below -400 HU inside the body, without the windpipe; of it the two largest pieces, closed by
    a ball of 10 mm and filled axial slice by slice, so that vessels and nodules belong to them. A
    large consolidation that touches the chest wall is cut off, and main bronchi may stay. Raises
    ScanError without a body.
    """
    body = _filled(tidy(hu > AIR_HU, BODY_MM / spacing))
    if not body.any():
        raise ScanError("no body was found above -400 HU; is this a chest CT in HU?")
    air = body & (hu <= AIR_HU)
    tube = windpipe(air, body, spacing)
    # its wall goes too: one voxel around it
    near = ndimage.binary_dilation(tube)

    lungs = np.zeros_like(air)
    for lung in _two_largest(air & ~near):
        lungs |= _without_dome(_closed(lung, CLOSED_MM / spacing), spacing)
    return lungs & body & ~near, tube


def windpipe(air: np.ndarray, body: np.ndarray, spacing: float) -> np.ndarray:
    """The windpipe and main bronchi in the air of a body, followed from the top down; bool.

    It begins in the upper half of the air as a small piece near the body's middle, and goes on in
    what overlaps it, until that is as wide as a lung. Empty where no such piece is.
    """
    found = np.zeros_like(air)
    levels = np.flatnonzero(air.any((0, 1)))
    if not levels.size:
        return found
    middle = float(np.nonzero(body)[0].mean())
    half = (levels[0] + levels[-1]) / 2
    above = np.zeros(air.shape[:2], bool)
    for z in range(int(levels[-1]), int(levels[0]) - 1, -1):
        begun = above.any()
        if not begun and z < half:
            break
        below = _next_cut(air[:, :, z], above, middle, spacing)
        if begun and not below.any():
            break
        found[:, :, z] = below
        above = below
    return found


def _next_cut(air: np.ndarray, above: np.ndarray, middle: float, spacing: float) -> np.ndarray:
    """The windpipe in an axial cut (X, Y): what goes on from above, or begins in the middle."""
    labels, count = ndimage.label(air)
    cm2 = np.bincount(labels.ravel(), minlength=count + 1) * spacing**2 / 100
    low, high = WINDPIPE_CM2
    if above.any():
        met = np.unique(labels[above & air])
        high = min(high, WINDPIPE_WIDER * float(above.sum()) * spacing**2 / 100)
    else:
        centres = ndimage.center_of_mass(air, labels, np.arange(1, count + 1))
        near = [abs(x - middle) * spacing <= MIDDLE_MM for x, _ in centres]
        met = 1 + np.flatnonzero(near)
    kept = [piece for piece in met if piece > 0 and low <= cm2[piece] <= high]
    return np.isin(labels, kept) & air


def _two_largest(air: np.ndarray) -> list[np.ndarray]:
    """The largest piece, and the second one where it may be the other lung.

    Both lungs may be one piece where they touch in front of the heart.
    """
    labels, count = ndimage.label(air)
    if count == 0:
        return []
    first = largest(labels)
    rest = np.where(first, 0, labels)
    if not rest.any():
        return [first]
    second = largest(rest)
    return [first, second] if second.sum() >= SECOND * first.sum() else [first]


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Closing by a ball of `radius` voxels; beyond the border the mask goes on as at it."""
    wide = int(np.ceil(radius)) + 1
    box = box_around(mask)
    padded = np.pad(mask[box], wide, mode="edge")
    grown = ndimage.distance_transform_edt(~padded) <= radius
    shrunk = ndimage.distance_transform_edt(np.pad(grown, wide, mode="edge")) > radius
    result = np.zeros_like(mask)
    inner = (slice(2 * wide, -2 * wide),) * 3
    result[box] = shrunk[inner] | mask[box]
    return result


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask (X, Y, Z) with the holes of each axial slice filled."""
    slices = [ndimage.binary_fill_holes(mask[:, :, z]) for z in range(mask.shape[2])]
    return np.stack(slices, -1)


def _without_dome(lung: np.ndarray, spacing: float) -> np.ndarray:
    """A lung filled slice by slice, but for the dome of the diaphragm: that is open from below."""
    filled = _filled(lung)
    labels, count = ndimage.label(filled & ~lung)
    over_nothing = labels[:, :, 1:][~filled[:, :, :-1]]
    open_cm2 = np.bincount(over_nothing, minlength=count + 1) * spacing**2 / 100
    domes = 1 + np.flatnonzero(open_cm2[1:] > DOME_CM2)
    return filled & ~np.isin(labels, domes)


def into_frame(
    data: np.ndarray, lungs: np.ndarray, grid: Grid, shape: tuple[int | None, ...], pad: float
) -> tuple[np.ndarray, np.ndarray, Grid, np.ndarray]:
    """Image and lungs cut out or padded to a frame of `shape` voxels about the lungs' middle.

    `grid` is straight, so nothing is interpolated; a `shape` of None keeps an axis. Returns both,
    the frame's grid, whose 0 mm is the lungs' middle, and `scan_from_frame` (4x4).
    """
    sizes = [n if size is None else size for n, size in zip(data.shape, shape, strict=True)]
    box = box_around(lungs)
    starts = [(b.start + b.stop - size) // 2 for b, size in zip(box, sizes, strict=True)]
    image = np.full(sizes, pad, np.float32)
    framed = np.zeros(sizes, bool)
    source = []
    target = []
    for start, size, n in zip(starts, sizes, data.shape, strict=True):
        low = max(start, 0)
        high = max(min(start + size, n), low)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    image[tuple(target)] = data[tuple(source)]
    framed[tuple(target)] = lungs[tuple(source)]

    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(sizes) - 1) / 2)
    scan_from_frame = np.eye(4)
    first = grid.affine @ [*starts, 1.0]
    scan_from_frame[:3, 3] = first[:3] - affine[:3, 3]
    x, y, z = sizes
    return image, framed, Grid((x, y, z), affine), scan_from_frame
