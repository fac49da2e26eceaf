"""Intensities to [0, 1]: fixed CT windows, robust MR percentiles inside the brain."""

from __future__ import annotations

import numpy as np

from preprocessing.scans import ScanError


def window(hu: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """CT in HU through a fixed window to [0, 1], 0 outside the mask; never scaled per image."""
    return np.where(mask, np.clip((hu - low) / (high - low), 0, 1), 0).astype(np.float32)


def percentiles(
    image: np.ndarray, mask: np.ndarray, low: float, high: float, top: float = 1.0
) -> np.ndarray:
    """MR to [0, 1] by two percentiles of the brain, which become 0 and `top`; clipped, 0 outside the mask.

    A `top` below 1 leaves room for tissue brighter than the `high` percentile, such as a bright lesion, and lets `high`
    be low enough that a large lesion does not move it. Raises ScanError where the brain is constant.
    """
    bottom, ceiling = np.percentile(image[mask], (low, high))
    if not ceiling > bottom:
        raise ScanError(
            f"the intensity inside the brain is constant ({bottom:g}); this is no scan of a brain."
        )
    return np.where(mask, np.clip(top * (image - bottom) / (ceiling - bottom), 0, 1), 0).astype(
        np.float32
    )
