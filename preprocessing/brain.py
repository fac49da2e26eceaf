"""Brain masks: deepbet for MR and CT, BET, or none for scans that are stripped already."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from preprocessing.background import off_background
from preprocessing.by_deepbet import deepbet
from preprocessing.images import box_around
from preprocessing.scans import ScanError
from preprocessing.stripped import BONE_HU, is_stripped

CT_BRAIN_HU = 80.0  # the upper end of the brain window, which deepbet is shown
# At and above, beside bone: a voxel that shares bone. Fresh blood is darker, so that a bleed at the
# skull stays in the mask. Without this rule healthy scans held 10 to 20 ml of such bright voxels
# within 3 mm of the mask's edge; 0.3 ml are left (docs/experiments.md).
BLOOD_HU = 90.0
AIR_HU = -15.0  # at and below: air or fat; pictures windowed from -20 HU clip above air
SKULL_NEAR = 6  # mm from the mask's border within which bone counts as skull
SHARED = 2  # mm beside the skull that go too
LEAK = 6  # voxels: what is thinner than twice this and hangs on is a leak into the scalp
GIVEN_BACK = 2  # voxels that an opening gives back beyond its radius


def brain_mask(
    image: nib.Nifti1Image,
    modality: str,
    method: str = "auto",
    front: np.ndarray | None = None,
) -> tuple[np.ndarray, str]:
    """Brain mask of a 1 mm RAS+ scan, bool (X, Y, Z), and the method that made it.

    "auto": "none" for a scan that `is_stripped` recognises, "deepbet" for any other. `find_brain`
    asks that of a scan before it is resampled.
    "none": the scan's own foreground.
    "deepbet": Fisch et al. 2024. It gets CT as 0..80 HU with bone set to 0.
    "bet": the deformable surface of Smith 2002.

    `front` is what `off_background` found before the scan was resampled, on the grid of `image`;
    by default it is looked for here. Bone is removed from the mask of a CT. Raises ScanError where
    no brain is found.
    """
    if method == "auto":
        method = "none" if is_stripped(image, modality) else "deepbet"
    if method == "none":
        if front is None:
            front = off_background(np.asarray(image.dataobj))
        return tidy(front, opening=0), method

    data = np.asarray(image.dataobj, np.float32)
    if modality == "ct":
        data = np.ascontiguousarray(data)  # as the mask is: together they are read faster
        brain = _inside_skull(FINDERS[method](_soft_tissue(data), image.affine), data)
    else:
        brain = tidy(FINDERS[method](data, image.affine), opening=1)
    if not brain.any():
        raise ScanError(f"{method} found no brain; is this a head scan of modality {modality}?")
    return brain, method


def picture_foreground(data: np.ndarray) -> np.ndarray:
    """Head or brain in a picture (X, Y, 1) of values 0..1, bool.

    It is the largest piece off the background, holes filled. The background is the commonest of 64
    grey levels on the picture's border. Where that is light, a head fills the frame, and black is
    the background. Off it means by more than 10 of 255 levels.
    """
    picture = data[..., 0]
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    commonest = float(np.bincount((border * 63.999).astype(int)).argmax()) / 63
    background = commonest if commonest < 0.5 else 0.0

    labels, count = ndimage.label(np.abs(picture - background) > 10 / 255)
    if count == 0:
        return np.zeros(data.shape, bool)
    return ndimage.binary_fill_holes(largest(labels))[..., None]


def foreground(data: np.ndarray) -> np.ndarray:
    """Largest region in one piece that is not background, holes filled; bool, same shape."""
    return tidy(off_background(data), opening=0)


def _soft_tissue(hu: np.ndarray) -> np.ndarray:
    """A CT as deepbet is shown it: the brain window in HU, bone set to 0."""
    return np.clip(np.where(hu >= BONE_HU, 0, hu), 0, CT_BRAIN_HU)


def _inside_skull(brain: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """The part of a 1 mm CT mask that lies inside the skull, without air, bone and leaks.

    Where thin bone reads as soft tissue the mask leaks into the scalp: what is thinner than 12 mm
    and hangs on is cut off.
    """
    # deepbet can reach past a tilted head into the air beside it; air inside comes back as a hole
    brain = brain & (hu > AIR_HU)
    bone, count = ndimage.label(hu >= BONE_HU)
    if count and brain.any():
        box = box_around(brain, SKULL_NEAR + SHARED + 1)
        skull = _skull(brain[box], hu[box], bone[box], count)
        brain[box] &= ~ndimage.binary_dilation(skull, iterations=SHARED)
    return tidy(brain, opening=LEAK)


def _skull(brain: np.ndarray, hu: np.ndarray, bone: np.ndarray, count: int) -> np.ndarray:
    """The pieces of bone outside the mask or near its border, and the voxels that share them; bool.

    `bone` numbers the pieces from 1 to `count`. A calcified plexus or a clip deep inside the brain
    is no skull.
    """
    deep = ndimage.binary_erosion(brain, iterations=SKULL_NEAR)
    of_skull = np.zeros(count + 1, bool)
    of_skull[bone[~deep]] = True
    of_skull[0] = False  # no bone
    return ndimage.binary_dilation(of_skull[bone], iterations=SKULL_NEAR, mask=hu >= BLOOD_HU)


def tidy(mask: np.ndarray, opening: float) -> np.ndarray:
    """Largest piece after an opening by a ball of `opening` voxels, holes filled.

    The opening gives back 2 voxels more than it takes. The border of the array does not erode, so
    that a brain cut by the field of view keeps its cut slices.
    """
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    box = box_around(mask)
    inside = mask[box]

    core = inside
    if opening:
        padded = np.pad(inside, 1, mode="edge")
        core = _squared_distance(~padded)[1:-1, 1:-1, 1:-1] > opening**2
    labels, count = ndimage.label(core)
    if count == 0:
        return result
    piece = largest(labels)

    if opening:
        near = _squared_distance(piece) <= (opening + GIVEN_BACK) ** 2
        grown = inside & (near | piece)
        piece = largest(ndimage.label(grown)[0])
    result[box] = ndimage.binary_fill_holes(piece)
    return result


def _squared_distance(mask: np.ndarray) -> np.ndarray:
    """Squared distance in voxels to the nearest voxel of a mask; exact outside it, not inside.

    SimpleITK's (Maurer et al. 2003) takes a third of the time of scipy's.
    """
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=True))


def largest(labels: np.ndarray) -> np.ndarray:
    """The piece with most voxels of a labelled array (0 is none); bool."""
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


def _bet(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    from brainextractor import BrainExtractor  # loads numba; needed for this method alone

    with contextlib.redirect_stdout(io.StringIO()):  # it prints each iteration
        extractor = BrainExtractor(img=nib.Nifti1Image(data, affine))
        extractor.run()
        found = extractor.compute_mask()
    return np.asarray(found) > 0


# What finds a brain: a process without torch has another one ask deepbet.
FINDERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "deepbet": deepbet,
    "bet": _bet,
}
