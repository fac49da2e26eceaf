"""The background of a scan: the one value that voxels outside the head or brain share."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from preprocessing.images import outer_planes

WIDE = 2**20  # between the least and the most of whole numbers that are counted one by one
MOST = 2**30


def off_background(data: np.ndarray) -> np.ndarray:
    """What has another value than the background, bool.

    It has to be asked of a scan as it came in: interpolation blurs the one value of the background,
    by an amount that depends on that value.
    """
    return data != _background(data)


def fill_background(data: np.ndarray) -> tuple[np.ndarray, float]:
    """A scan whose background is NaN with a number in its place, and the share of such voxels.

    NaN is background where nine tenths of it hang together with the border: the rest are holes. It
    becomes a value a hundredth of the range below the lowest one, which no other voxel has. Any
    other scan stays as it is, and one with infinite values too.
    """
    absent = np.isnan(data)
    if not absent.any() or absent.all() or np.isinf(data).any():
        return data, 0.0
    labels, _ = ndimage.label(absent)
    outer = np.unique(np.concatenate([plane.ravel() for plane in outer_planes(labels)]))
    if np.isin(labels, outer[outer > 0]).sum() < 0.9 * absent.sum():
        return data, 0.0
    low = float(np.nanmin(data))
    high = float(np.nanmax(data))
    filled = data.copy()
    filled[absent] = low - 0.01 * max(high - low, abs(low) / 1000, 1e-6)
    return filled, float(absent.mean())


def _background(data: np.ndarray) -> float:
    """The commonest value of every second voxel.

    Not that of the border: there a frame or a blank slice may be burnt in.
    """
    values, counts = distinct(data[::2, ::2, ::2])
    return float(values[counts.argmax()])


def distinct(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of an array in rising order, and how often each is there; NaN comes last.

    As `np.unique`, many times as fast for whole numbers that lie close together, as scanners store
    them.
    """
    if not _countable(data):
        return np.unique(data, return_counts=True)
    low = int(data.min())
    counts = np.bincount((data.astype(np.int32) - np.int32(low)).ravel())
    found = np.flatnonzero(counts)
    return (found + low).astype(data.dtype), counts[found]


def _countable(data: np.ndarray) -> bool:
    """Whether an array holds whole numbers alone, which lie close together."""
    if data.size == 0:
        return False
    low = data.min()
    high = data.max()
    near = -MOST < low <= high < MOST and float(high) - float(low) < WIDE  # not so with NaN
    return near and (data.dtype.kind != "f" or np.array_equal(data, np.rint(data)))
