"""The deformation that is left after the affine fit: SyN at 2 mm, smooth and bounded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.lean_ants import ants
from preprocessing.register import Atlas
from preprocessing.resample import resample
from preprocessing.scans import ScanError
from preprocessing.warp import Field, Warp

FIT_MM = 2  # spacing of the fit; a whole number of atlas voxels
FIELD_MM = 4  # spacing of the field that is kept
MARGIN_MM = 24  # around the two brains; the deformation has died down there

# What is unlike the atlas pulls at a deformation, a lesion first of all. What is normal changes its
# volume by less than half from one head to the next once size is taken off; more than that is not
# followed, so that a bleed is neither squeezed to nothing nor blown up.
MOST_CHANGE = 1.5
SMOOTHINGS = 200


def fit_deformation(
    image: np.ndarray,
    grid: Grid,
    brain: np.ndarray,
    atlas: Atlas,
    scan_from_atlas: np.ndarray,
    seed: int = 0,
) -> Warp:
    """`scan_from_atlas` with the deformation after an affine (4x4) that lays a scan on the atlas.

    SyN (Avants et al. 2008) with mutual information between the two brains; `brain` is bool, on the
    grid of `image`. Where the field changes volume by more than `MOST_CHANGE` it is smoothed
    (Gaussian) until it does not. Raises ScanError where ANTs fails.
    """
    window = _window(atlas, FIT_MM)
    inside = resample(brain.astype(np.float32), grid, window, scan_from_atlas)
    moving = resample(image, grid, window, scan_from_atlas) * inside
    # a Gaussian of half a voxel of the fit keeps the finer template from aliasing
    smooth = ndimage.gaussian_filter(atlas.image, FIT_MM / 2)
    fixed = resample(smooth, atlas.grid, window)

    step = FIELD_MM // FIT_MM
    found = _syn(fixed, moving, window.affine, seed)
    field = Field(found[::step, ::step, ::step], window.every(step))
    return Warp((scan_from_atlas, bounded(field)))


def bounded(field: Field, most: float = MOST_CHANGE) -> Field:
    """A field smoothed until it changes no volume by more than `most`, and none at its edge."""
    mm = _ending_at_zero(field.mm)
    for _ in range(SMOOTHINGS):
        change = Field(mm, field.grid).jacobian()
        wrong = (change > most) | (change < 1 / most)
        if not wrong.any():
            return Field(mm, field.grid)
        # only where it is too steep: elsewhere the fit stays as good as it is
        near = ndimage.gaussian_filter(wrong.astype(np.float32), 2)[..., None]
        share = np.clip(near / near.max() * 2, 0, 1)
        mm = mm + share * (ndimage.gaussian_filter(mm, (1, 1, 1, 0)) - mm)
        mm = _ending_at_zero(mm)
    return Field(np.zeros_like(mm), field.grid)


def _ending_at_zero(mm: np.ndarray) -> np.ndarray:
    """A field (X, Y, Z, 3) with its outermost voxels at 0, and the next ones on the way there."""
    result = mm.astype(np.float32)
    for axis, n in enumerate(mm.shape[:3]):
        at = np.arange(n)
        weight = np.clip(np.minimum(at, n - 1 - at) / 4, 0, 1).astype(np.float32)
        result = result * weight.reshape([-1 if a == axis else 1 for a in range(4)])
    return result


def _window(atlas: Atlas, spacing: int) -> Grid:
    """The grid at `spacing` mm around the atlas brain; the atlas has voxels of 1 mm."""
    start = []
    shape = []
    for places in np.nonzero(atlas.brain):
        first = int(places.min()) - MARGIN_MM
        start.append(first)
        shape.append(-(-(int(places.max()) + MARGIN_MM + 1 - first) // spacing))
    affine = atlas.affine @ np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = nib.affines.apply_affine(atlas.affine, start)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _syn(fixed: np.ndarray, moving: np.ndarray, affine: np.ndarray, seed: int) -> np.ndarray:
    """ANTs' SyN of two images on one grid: displacements (X, Y, Z, 3), RAS+ mm, fixed to moving."""
    ants().config.set_ants_deterministic(False, seed + 1)
    with tempfile.TemporaryDirectory(prefix="norma-") as folder:
        try:
            done = ants().registration(
                register.to_ants(fixed, affine),
                register.to_ants(moving, affine),
                type_of_transform="SyNOnly",
                initial_transform="Identity",
                outprefix=f"{folder}/",
                syn_metric="mattes",
                syn_sampling=32,
                reg_iterations=(40, 20, 0),  # at 8 and 4 mm; what 2 mm would add is not kept
                flow_sigma=3,
                total_sigma=0,
            )
            warp = next(p for p in map(Path, done["fwdtransforms"]) if p.suffix == ".gz")
            lps = np.asarray(nib.Nifti1Image.from_filename(warp).dataobj, np.float32)[:, :, :, 0]
            return lps * np.array([-1, -1, 1], np.float32)
        except (RuntimeError, KeyError, StopIteration, ValueError) as error:
            raise ScanError(f"deformable registration to the atlas failed ({error}).") from None
