"""Intensities to [0, 1]: fixed CT windows, robust MR percentiles inside the brain."""

from __future__ import annotations

import numpy as np

from preprocessing.scans import ScanError


def window(hu: np.ndarray, brain: np.ndarray, low: float, high: float) -> np.ndarray:
    """CT in HU through a fixed window to [0, 1], 0 outside the brain; never scaled per image."""
    scaled = np.clip((hu - low) / (high - low), 0, 1)
    return np.where(brain, scaled, 0).astype(np.float32)


def percentiles(
    image: np.ndarray, brain: np.ndarray, low: float, high: float, top: float = 1.0
) -> np.ndarray:
    """MR to [0, 1] by two percentiles inside the brain, which become 0 and `top`.

    The result is clipped, and 0 outside the brain. A `top` below 1 leaves room for tissue brighter
    than the `high` percentile, such as a bright lesion. It lets `high` be so low that a large
    lesion does not move it. Raises ScanError where the brain is constant.
    """
    bottom, ceiling = np.percentile(image[brain], (low, high))
    if not ceiling > bottom:
        raise ScanError(
            f"the intensity inside the brain is constant ({bottom:g}); this is no scan of a brain."
        )
    scaled = np.clip(top * (image - bottom) / (ceiling - bottom), 0, 1)
    return np.where(brain, scaled, 0).astype(np.float32)
