"""Checks on arguments that the evaluation functions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def as_mask(array: np.ndarray, name: str) -> np.ndarray:
    """Return `array` as bool; ValueError when it holds anything but 0 and 1."""
    array = np.asarray(array)
    if array.dtype == bool:
        return array
    ones = array == 1
    if not np.all(ones | (array == 0)):
        raise ValueError(f"{name} must hold only 0 and 1; binarise it first")
    return ones


def check_same_shape(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Raise ValueError when the two arrays named in `names` differ in shape."""
    if first.shape != second.shape:
        raise ValueError(f"{names} must have one shape, got {first.shape} and {second.shape}")


def check_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return the voxel size in mm as three floats.

    ValueError unless they are finite and positive.
    """
    sizes = tuple(float(size) for size in spacing)
    if len(sizes) != 3 or not all(np.isfinite(size) and size > 0 for size in sizes):
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing!r}")
    return sizes


def check_not_negative(value: float, name: str) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_affine(affine: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) from voxel indices to mm as float64; ValueError for another one."""
    affine = np.asarray(affine, dtype=float)
    known = affine.shape == (4, 4) and np.isfinite(affine).all()
    if not known or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"affine must be an invertible 4x4 voxel-to-world matrix, got {affine!r}")
    return affine


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the slices of the smallest box around the true voxels; None when no voxel is true.

    The box is wider by `margin` voxels on each side, but ends at the array border.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        start = max(int(hits[0]) - margin, 0)
        stop = min(int(hits[-1]) + 1 + margin, mask.shape[axis])
        box.append(slice(start, stop))
    return tuple(box)
