"""Whether a scan is skull-stripped: told by anatomy, by what lies under the surface of its head."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.background import off_background
from preprocessing.images import Grid, box_around

BONE_HU = 100.0  # at and above: bone; pictures windowed to 100 HU clip there

COARSE = 3.0  # mm, about which the shape of the head is looked at
GAP = 3.0  # mm: gaps that are closed, as dark sulci of the background's own value
THIN = 10.0  # mm: what is thinner than twice this goes: lines, text, frames, boards, a neck's stump
ONE_PIECE = 0.9  # share of what is left that lies in one piece
BRAIN_ML = (400.0, 2300.0)  # a brain, with the fluid around it
# An ellipse that is cut straight above and below fills pi/4 of its box; a field of view fills all.
ROUND = 0.8

RAYS = 3000
SECTORS = 40  # of the rays, each about 3 x 3 cm of the surface
DEPTH = 30  # mm under the surface that the rays look at: scalp, skull and some brain
SCALP = 12  # mm within which a scalp begins
SKULL = 15  # mm within which the skull lies under it
# CT-ICH heads have bone under 0.26 to 0.85 of their surface, the stripped CT template under none.
BONE_SHARE = 0.1
# A skull is darker than this share of scalp and brain. Whole heads show it in 0.35 to 0.88 of their
# sectors, one cut badly in 0.18; stripped T1, T2 and FLAIR in 0 to 0.1 (docs/experiments.md).
DARK = 0.6
DARK_SHARE = 0.2


def is_stripped(image: nib.Nifti1Image, modality: str) -> bool:
    """Whether a scan, as it came in, is skull-stripped.

    It is where three things hold. Off the one value of its background lies one thick piece, as
    large and as round as a brain. A CT has no bone under the surface of that piece. An MR has no
    bright scalp over a dark skull there. Thin things beside the head do not count. A linear change
    of grey leaves the answer for MR; CT is in HU.
    """
    data = np.asarray(image.dataobj)
    spacing = np.array(Grid.of(image).spacing)
    step = np.maximum(1, COARSE // spacing).astype(int)
    every = tuple(slice(None, None, n) for n in step)
    mm = spacing * step

    piece = thick_piece(off_background(data)[every], mm)
    if not _like_a_brain(piece, mm):
        return False
    profiles, sectors = surface_profiles(data, spacing, piece, mm)
    if modality == "ct":
        return bool(bone_share(profiles) < BONE_SHARE)
    low = float(np.percentile(data[every][piece], 2))
    return skull_share(profiles, sectors, low) < DARK_SHARE


def thick_piece(front: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """The one piece of a foreground (bool) that is thicker than 2 cm; nothing where there are more.

    mm: the size of a voxel along each axis.
    """
    nothing = np.zeros_like(front)
    if not front.any():
        return nothing
    wide = int(np.ceil(GAP / mm.min())) + 1  # around the array lies background
    away = ndimage.distance_transform_edt(~np.pad(front, wide), sampling=mm)
    closed = ndimage.binary_fill_holes(away <= GAP)
    core = ndimage.distance_transform_edt(closed, sampling=mm) > GAP + THIN
    labels, count = ndimage.label(core)
    if count == 0:
        return nothing
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < ONE_PIECE * sizes.sum():
        return nothing
    near = ndimage.distance_transform_edt(labels != sizes.argmax() + 1, sampling=mm)
    inner = (slice(wide, -wide),) * 3
    return (near <= THIN + GAP)[inner] & closed[inner] & (away <= 0)[inner]


def _like_a_brain(piece: np.ndarray, mm: np.ndarray) -> bool:
    """Whether a piece (bool) is as large and as round as a brain."""
    ml = piece.sum() * float(np.prod(mm)) / 1000
    if not BRAIN_ML[0] < ml < BRAIN_ML[1]:
        return False
    box = box_around(piece)
    return bool(piece[box].mean() < ROUND)


def surface_profiles(
    data: np.ndarray, spacing: np.ndarray, piece: np.ndarray, mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values under the surface of a piece along rays from its middle, and the sector of each ray.

    Profiles (rays, `DEPTH`) go inwards from the surface, mm by mm. Rays that leave the piece where
    the scan ends are left out: there it is cut, and has no surface. `data` has voxels of `spacing`
    mm, `piece` of `mm`.
    """
    middle = np.array([axis.mean() for axis in np.nonzero(piece)]) * mm
    rays = _directions(RAYS)
    length = int(np.linalg.norm(np.array(piece.shape) * mm))
    voxels = np.rint((middle + rays[:, None] * np.arange(length)[:, None]) / mm).astype(int)
    within = ((voxels >= 0) & (voxels < piece.shape)).all(-1)
    x, y, z = np.moveaxis(np.clip(voxels, 0, np.array(piece.shape) - 1), -1, 0)
    inside = piece[x, y, z] & within

    surface = length - 1 - inside[:, ::-1].argmax(1)
    beyond = np.minimum(surface + int(mm.max()), length - 1)
    whole = within[np.arange(RAYS), beyond]
    depths = surface[whole, None] - np.arange(DEPTH)
    at = (middle + rays[whole, None] * depths[..., None]) / spacing
    profiles = ndimage.map_coordinates(
        data.astype(np.float32, copy=False), np.moveaxis(at, -1, 0), order=1, mode="nearest"
    )
    return profiles, (rays[whole] @ _directions(SECTORS).T).argmax(1)


def bone_share(profiles: np.ndarray) -> float:
    """The share of rays (rays, depths), in HU, that meet bone; 0 without rays."""
    return float((profiles >= BONE_HU).any(1).mean()) if len(profiles) else 0.0


def skull_share(profiles: np.ndarray, sectors: np.ndarray, low: float) -> float:
    """The share of sectors whose median profile goes bright, dark, bright: scalp, skull, brain.

    `low` is the darkest value of the scan. Where a brain is stripped, a profile rises from the
    fluid at its surface, or stays level. 0 without rays.
    """
    found = [_dip(np.median(profiles[sectors == s], 0) - low) for s in np.unique(sectors)]
    return float(np.mean(found)) if found else 0.0


def _dip(profile: np.ndarray) -> bool:
    """Whether a profile above 0 has a dark valley between its outermost part and its depth."""
    smooth = ndimage.uniform_filter1d(profile, 3, mode="nearest")
    outer = int(smooth[:SCALP].argmax())
    under = smooth[outer : outer + SKULL + 1]
    valley = outer + int(under.argmin())
    rim = min(smooth[outer], smooth[valley:].max())
    return bool(smooth[valley] < DARK * rim)


def _directions(count: int) -> np.ndarray:
    """Unit vectors (count, 3) spread evenly over a sphere (a Fibonacci lattice)."""
    steps = np.arange(count) + 0.5
    height = 1 - 2 * steps / count
    turn = np.pi * (1 + 5**0.5) * steps
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], 1)
