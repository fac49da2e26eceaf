"""A tilted gantry: slices that slide over each other, laid on a straight grid.

dcm2niix corrects tilt too, but what it writes lies up to some centimetres off, and with some
orientations (prone, feet first) it slides the slices the wrong way. So it gets the slices without
their slide, and they slide here, by the headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.dicom_geometry import Stack
from preprocessing.dicom_headers import Header
from preprocessing.files import atomic
from preprocessing.scans import ScanError

STEEPEST = 45.0  # degrees; a gantry tilts by 30 at most, so more is no tilt
TO_LPS = np.array([-1.0, -1.0, 1.0])


def upright(headers: Sequence[Header], stack: Stack) -> tuple[list[Header], Stack]:
    """The slices at places on the normal through the lowest one, and their stack.

    ScanError for a shear that is none of a gantry.
    """
    if stack.tilt > STEEPEST:
        raise ScanError(
            f"slices sheared by {stack.tilt:.1f} degrees, expected at most {STEEPEST:g}; "
            "export it again, or convert it by hand and give the NIfTI."
        )
    if any(header.frames > 1 and header.compressed for header in headers):
        raise ScanError(
            "a tilted gantry in a compressed multi-frame file, which is not corrected; "
            "decompress it (dcmdjpeg, gdcmconv --raw)."
        )
    moved = []
    for header in headers:
        slides = np.outer(header.positions @ stack.normal - stack.distances[0], stack.shear)
        moved.append(replace(header, positions=header.positions - slides))
    positions = np.concatenate([header.positions for header in moved])
    return moved, Stack.of(positions, headers[0].orientations[0])


def straighten(path: Path, stack: Stack) -> Path:
    """Slide the slices of an upright volume as `stack` says, and write that beside it.

    Linear between pixels; air where no slice reaches.
    """
    volume = nib.Nifti1Image.from_filename(path)
    axes = volume.affine[:3, :3] * TO_LPS[:, None]
    origin = volume.affine[:3, 3] * TO_LPS
    distances = (origin + np.outer(np.arange(volume.shape[2]), axes[:, 2])) @ stack.normal
    millimetres = np.outer(distances - stack.distances[0], stack.shear)
    slides = millimetres @ axes[:, :2] / np.sum(axes[:, :2] ** 2, axis=0)  # (N, 2) pixels
    slides = slides.round(3)  # no pixel more for what is none

    first = np.floor(slides.min(0))
    shape = volume.shape[:2] + (np.ceil(slides.max(0)) - first).astype(int)
    data = np.asanyarray(volume.dataobj)
    made = np.empty((*shape, volume.shape[2]), data.dtype)
    for k, slide in enumerate(slides):
        plane = _slid(data[:, :, k], slide - first, shape)
        made[:, :, k] = np.rint(plane) if np.issubdtype(data.dtype, np.integer) else plane

    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :2] @ first
    image = nib.Nifti1Image(made, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    target = path.with_name(f"{path.name.split('.nii')[0]}_straight.nii.gz")
    with atomic(target) as temporary:
        nib.save(image, temporary)
    return target


def _slid(plane: np.ndarray, by: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A slice (X, Y) moved by pixels (2,) on a canvas of a larger shape, in air."""
    air = float(plane.min())
    canvas = np.full(shape, air)
    canvas[: plane.shape[0], : plane.shape[1]] = plane
    return ndimage.shift(canvas, by, order=1, mode="grid-constant", cval=air)
