"""Operating points and percentiles that come from healthy scans alone."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import VoxelHistogram, quantile_rank


def healthy_quantile(histogram_or_values: VoxelHistogram | np.ndarray, quantile: float) -> float:
    """Return the threshold that at most a fraction 1 - quantile of healthy scores exceed (score > threshold).

    Takes a VoxelHistogram (its label-0 voxels) or an array of healthy scores; ValueError when there are no
    scores, when one is not finite, or when `quantile` is not in [0, 1].
    """
    if isinstance(histogram_or_values, VoxelHistogram):
        return histogram_or_values.quantile(quantile)
    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile lies in 0..1, got {quantile!r}")
    values = _healthy(histogram_or_values)
    rank = quantile_rank(quantile, values.size) - 1
    return float(np.partition(values, rank)[rank])


def percentile_of(score: float, healthy_scores: np.ndarray) -> float:
    """Return the percentage, 0..100, of healthy scores <= score; ValueError on empty or NaN input."""
    if np.isnan(score):
        raise ValueError("the score is NaN")
    return float(100 * np.mean(_healthy(healthy_scores) <= score))


def _healthy(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values).ravel()
    if values.size == 0:
        raise ValueError("there are no healthy scores to compare with")
    if not np.isfinite(values).all():
        raise ValueError("healthy scores must be finite, got NaN or infinity")
    return values
