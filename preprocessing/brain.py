"""Brain masks: deepbet for MR and CT, BET, or none for scans that are stripped already."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocessing.scans import ScanError

if TYPE_CHECKING:
    import nibabel as nib

log = logging.getLogger("norma")
METHODS = ("auto", "deepbet", "bet", "none")
BONE_HU = 100.0  # at and above: bone (pictures windowed to 100 HU clip there)
BLOOD_HU = 90.0  # fresh blood is darker
SKULL_NEAR = 6  # mm
CT_BRAIN_HU = 80.0
AIR_HU = -15.0  # at and below: air or fat (pictures windowed from -20 HU clip above air)
_STRIPPED_ML = (400.0, 2300.0)


def brain_mask(
    image: nib.Nifti1Image, modality: str, method: str = "auto"
) -> tuple[np.ndarray, str]:
    """Brain mask of a 1 mm RAS+ scan, bool (X, Y, Z), and the method that made it.

    `auto` takes "none" for a scan that `is_stripped` recognises and "deepbet" otherwise. "none" returns the scan's own
    foreground. "deepbet" (Fisch et al. 2024) sees CT as 0..80 HU with bone set to 0, and bone is removed from its mask.
    "bet" is the deformable surface of Smith 2002. Raises ScanError where no brain is found.
    """
    if method == "auto":
        method = "none" if is_stripped(image) else "deepbet"
    if method == "none":
        return foreground(np.asarray(image.dataobj)), method
    data = np.asarray(image.dataobj, dtype=np.float32)
    shown = _soft_tissue(data) if modality == "ct" else data
    mask = _deepbet(shown, image.affine) if method == "deepbet" else _bet(shown, image.affine)
    mask = _inside_skull(mask, data) if modality == "ct" else _tidy(mask, opening=1)
    if not mask.any():
        raise ScanError(f"{method} found no brain; is this a head scan of modality {modality}?")
    return mask, method


def picture_foreground(data: np.ndarray) -> np.ndarray:
    """Head or brain in a picture (X, Y, 1) of values 0..1, bool: the largest piece off the background, holes filled.

    The background is the commonest of 64 grey levels on the picture's border, or black where that is light (a head that fills
    the frame); off it means by more than 10 of 255 levels.
    """
    from scipy import ndimage

    picture = data[..., 0]
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    level = float(np.bincount((border * 63.999).astype(int)).argmax()) / 63
    labels, n = ndimage.label(np.abs(picture - (level if level < 0.5 else 0.0)) > 10 / 255)
    if n == 0:
        return np.zeros(data.shape, bool)
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(largest)[..., None]


def is_stripped(image: nib.Nifti1Image) -> bool:
    """Whether a scan is skull-stripped: one background value, and a foreground of brain size in one piece.

    A whole head, even on an empty background, has a foreground well above 2.3 litres.
    """
    from scipy import ndimage

    data = np.asarray(image.dataobj)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    front = data != _background(data)
    if not _STRIPPED_ML[0] < front.sum() * voxel_ml < _STRIPPED_ML[1] or front.mean() > 0.6:
        return False
    labels, _ = ndimage.label(front[::2, ::2, ::2])
    return bool(np.bincount(labels.ravel())[1:].max() > 0.9 * (labels > 0).sum())


def foreground(data: np.ndarray) -> np.ndarray:
    """Largest connected region that differs from the background value, holes filled; bool, same shape."""
    return _tidy(data != _background(data), opening=0)


def _background(data: np.ndarray) -> float:
    """The value that most voxels of the outermost planes share."""
    planes = [np.take(data, i, axis).ravel() for axis in range(3) for i in (0, -1)]
    values, counts = np.unique(np.concatenate(planes), return_counts=True)
    return float(values[counts.argmax()])


def _soft_tissue(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.where(hu >= BONE_HU, 0, hu), 0, CT_BRAIN_HU)


def _inside_skull(mask: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """The part of a 1 mm CT mask that lies inside the skull: bone, voxels that share it and leaks through it go.

    Bone outside the mask or near its border counts as skull, and so does what adjoins it and is brighter than fresh blood: a calcified
    plexus or a clip deep inside the brain stays in. Where thin bone reads as soft tissue the mask leaks into the scalp: what is thinner
    than 12 mm and hangs on is cut off.
    """
    from scipy import ndimage

    mask = (
        mask & (hu > AIR_HU)
    )  # deepbet can reach past a tilted head into the air beside it; air inside comes back as a hole
    labels, n = ndimage.label(hu >= BONE_HU)
    if n:
        deep = ndimage.binary_erosion(mask, iterations=SKULL_NEAR)
        pieces = np.unique(labels[~deep & (labels > 0)])
        skull = np.isin(labels, pieces)
        skull = ndimage.binary_dilation(skull, iterations=SKULL_NEAR, mask=hu >= BLOOD_HU)
        mask = mask & ~ndimage.binary_dilation(skull, iterations=2)
    return _tidy(mask, opening=6)


def _tidy(mask: np.ndarray, opening: float) -> np.ndarray:
    """Largest component after an opening by a ball of `opening` voxels (2 voxels are given back), holes filled.

    The border of the array does not erode, so that a brain cut by the field of view keeps its cut slices.
    """
    from scipy import ndimage

    found = np.zeros_like(mask)
    if not mask.any():
        return found
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    core = (
        ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1, 1:-1] > opening
        if opening
        else inside
    )
    labels, n = ndimage.label(core)
    if n == 0:
        return found
    core = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    if opening:
        core = inside & (ndimage.distance_transform_edt(~core) <= opening + 2)
        labels, _ = ndimage.label(core)
        core = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    found[box] = ndimage.binary_fill_holes(core)
    return found


@lru_cache(maxsize=1)
def _deepbet_model() -> Any:
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)


def _deepbet(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    import nibabel as nib

    try:
        _, mask, _ = _deepbet_model().run(nib.Nifti1Image(data, affine))
    except (
        AssertionError,
        IndexError,
        ValueError,
        RuntimeError,
    ) as error:  # deepbet asserts when it sees no brain
        raise ScanError(f"deepbet found no brain ({error}).") from None
    return np.asarray(mask.dataobj) > 0


def _bet(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    import contextlib
    import io

    import nibabel as nib
    from brainextractor import BrainExtractor

    with contextlib.redirect_stdout(io.StringIO()):  # it prints each iteration
        extractor = BrainExtractor(img=nib.Nifti1Image(data, affine))
        extractor.run()
        mask = extractor.compute_mask()
    return np.asarray(mask) > 0
