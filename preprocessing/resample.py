"""Any grid to any grid by one affine or deformation, in one interpolation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from preprocessing.images import Grid, box_around
from preprocessing.warp import Map, Warp, carry, carry_box, inverse

Box = list[tuple[int, int]]  # first index and one past the last, along each axis


def resample(
    data: np.ndarray,
    grid: Grid,
    onto: Grid,
    source_from_target: Map | None = None,
    *,
    order: int = 1,
    pad: float | None = 0.0,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """Carry an array from its grid onto another one.

    source_from_target: maps mm of the grid `onto` to mm of the array (4x4); None where both are of
    one space. Any affine that has an inverse will do, sheared ones too, and so will a `Warp`.
    order: 1 for images (linear), 0 for masks (nearest neighbour).
    pad: the value outside the source's voxel centres; None repeats the nearest voxel.
    within: bool, of the shape of `onto`. Outside the box around it the result is `pad`, or 0.

    Returns the dtype of `data`, which must not be bool. What lies outside the box, or comes from
    voxels that are all `pad`, costs nothing.
    """
    between = np.eye(4) if source_from_target is None else source_from_target
    source_from_onto = np.linalg.inv(grid.affine) @ between @ onto.affine  # voxels to voxels

    box = [(0, n) for n in onto.shape] if within is None else _box_of(within)
    filled = [(0, n) for n in data.shape]
    if pad is not None:
        filled = _box_of(data != pad)
        box = _common(box, _reach(filled, inverse(source_from_onto)))
    value = 0.0 if pad is None else pad
    result = np.full(onto.shape, value, data.dtype)
    if any(low >= high for low, high in box):
        return result

    inner = _slices(box)
    how: dict[str, Any] = {
        "order": order,
        "mode": "nearest" if pad is None else "constant",
        "cval": value,
    }
    if isinstance(source_from_onto, Warp):
        result[inner] = _warped(data, source_from_onto, box, how)
        return result
    linear = source_from_onto[:3, :3]
    offset = linear @ [low for low, _ in box] + source_from_onto[:3, 3]
    shape = [int(high - low) for low, high in box]
    if pad is not None and _known_to_itk(data, order):
        result[inner] = _by_itk(data, filled, (linear, offset), shape, order, pad)
    else:
        result[inner] = ndimage.affine_transform(data, linear, offset, tuple(shape), **how)
    return result


def _known_to_itk(data: np.ndarray, order: int) -> bool:
    """Whether ITK takes such an array, and rounds as scipy does.

    Whole numbers between voxels it rounds where scipy cuts them off.
    """
    if data.dtype.kind in "iu":
        return order == 0 and data.dtype.isnative
    return data.dtype == np.float32  # float64 would differ in the last digit


def _by_itk(
    data: np.ndarray,
    filled: Box,
    affine: tuple[np.ndarray, np.ndarray],
    shape: list[int],
    order: int,
    pad: float,
) -> np.ndarray:
    """scipy's `affine_transform` of what is `filled`, the same numbers in a part of the time."""
    linear, offset = affine
    whole = [(0, n) for n in data.shape]
    around = _common([(low - 1, high + 1) for low, high in filled], whole)
    here = offset - [low for low, _ in around]
    result = _resampled(data[_slices(around)], linear, here, shape, order, pad)
    for axis, n in enumerate(data.shape):
        if filled[axis][0] > 0 and filled[axis][1] < n:
            continue
        # half a voxel beyond the array ITK repeats its outermost voxels, scipy does not
        steps = np.ix_(*(row * np.arange(n) for row, n in zip(linear[axis], shape, strict=True)))
        places = steps[0] + steps[1] + (steps[2] + offset[axis])
        result[(places < 0) | (places > n - 1)] = pad
    return result


def _resampled(
    data: np.ndarray,
    linear: np.ndarray,
    offset: np.ndarray,
    shape: list[int],
    order: int,
    pad: float,
) -> np.ndarray:
    """An array under an affine map, voxels to voxels, by ITK; `pad` outside."""
    if data.strides[0] < data.strides[-1]:  # as nibabel reads
        turned = (linear[::-1, ::-1], offset[::-1], shape[::-1])
        return _resampled(data.T, *turned, order, pad).T
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(linear[::-1, ::-1].ravel())  # ITK's first axis is the last one here
    transform.SetTranslation(offset[::-1].tolist())
    source = sitk.GetImageFromArray(np.ascontiguousarray(data))
    how = sitk.sitkLinear if order else sitk.sitkNearestNeighbor
    grid = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), np.eye(3).ravel())
    return sitk.GetArrayFromImage(sitk.Resample(source, shape[::-1], transform, how, *grid, pad))


def _slices(box: Box) -> tuple[slice, ...]:
    """The part of an array in a box."""
    return tuple(slice(low, high) for low, high in box)


def _warped(data: np.ndarray, source_from_onto: Warp, box: Box, how: dict[str, Any]) -> np.ndarray:
    """`data` where a warp, voxels to voxels, sends the voxels of a box; plane by plane."""
    shape = [high - low for low, high in box]
    result = np.empty(shape, data.dtype)
    plane = np.indices((*shape[:2], 1)).reshape(3, -1).T + [float(low) for low, _ in box]
    for z in range(shape[2]):
        places = carry(source_from_onto, plane + np.array([0, 0, z])).T
        result[..., z] = ndimage.map_coordinates(data, places, **how).reshape(shape[:2])
    return result


def carry_mask(
    mask: np.ndarray,
    grid: Grid,
    onto: Grid,
    source_from_target: Map | None = None,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """`resample` for a bool mask, by nearest neighbour; bool, of the shape of `onto`."""
    values = mask.astype(np.uint8)
    return resample(values, grid, onto, source_from_target, order=0, within=within).astype(bool)


def _box_of(mask: np.ndarray) -> Box:
    """The box around what is True; (0, 0) along each axis where nothing is."""
    if not mask.any():
        return [(0, 0)] * mask.ndim
    return [(part.start, part.stop) for part in box_around(mask)]


def _reach(box: Box, onto_from_source: Map) -> Box:
    """The box of all voxels within one voxel of `box`, after the voxel-to-voxel map."""
    if any(low == high for low, high in box):
        return [(0, 0)] * len(box)
    corners = np.array(list(itertools.product(*((low - 1, high) for low, high in box))))
    carried = carry_box(onto_from_source, corners)
    ends = zip(carried.min(0), carried.max(0), strict=True)
    return [(math.floor(low), math.ceil(high) + 1) for low, high in ends]


def _common(a: Box, b: Box) -> Box:
    """What two boxes share; an axis whose first index is not below its last shares nothing."""
    axes = zip(a, b, strict=True)
    return [(max(low, other), min(high, end)) for (low, high), (other, end) in axes]
