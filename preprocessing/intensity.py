"""Intensities to [0, 1]: fixed CT windows, robust MR percentiles inside the brain."""

from __future__ import annotations

import numpy as np

from preprocessing.scans import ScanError


def window(hu: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """CT in HU through a fixed window to [0, 1], 0 outside the mask; never scaled per image."""
    return np.where(mask, np.clip((hu - low) / (high - low), 0, 1), 0).astype(np.float32)


def percentiles(image: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """MR between two percentiles of the brain to [0, 1], clipped, 0 outside the mask.

    Raises ScanError where the brain is constant.
    """
    bottom, top = np.percentile(image[mask], (low, high))
    if not top > bottom:
        raise ScanError(f"the intensity inside the brain is constant ({bottom:g}); this is no scan of a brain.")
    return np.where(mask, np.clip((image - bottom) / (top - bottom), 0, 1), 0).astype(np.float32)
