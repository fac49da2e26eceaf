"""Operating points and percentiles that come from healthy scans alone."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import VoxelHistogram, quantile_rank


def healthy_quantile(histogram_or_values: VoxelHistogram | np.ndarray, quantile: float) -> float:
    """Return the threshold that at most a fraction 1 - quantile of healthy scores exceeds.

    A score exceeds it when score > threshold. Takes a VoxelHistogram (its label-0 voxels) or an
    array of healthy scores. ValueError without a score, for a score that is not finite, or for a
    quantile outside [0, 1].
    """
    if isinstance(histogram_or_values, VoxelHistogram):
        return histogram_or_values.quantile(quantile)
    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile lies in 0..1, got {quantile!r}")
    values = _healthy(histogram_or_values)
    rank = quantile_rank(quantile, values.size) - 1
    return float(np.partition(values, rank)[rank])


def conformal_threshold(healthy_scores: np.ndarray, false_alarm: float) -> float:
    """Return the threshold that a new healthy scan exceeds with probability `false_alarm` at most.

    It is the k-th smallest of the n scores, k = ceil((n + 1)(1 - false_alarm)) (Vovk et al. 2005).
    This holds where new healthy scans are exchangeable with these. ValueError when
    n < 1 / false_alarm - 1: then no finite threshold keeps the promise.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"a false-alarm rate lies between 0 and 1, got {false_alarm!r}")
    scores = np.sort(_healthy(healthy_scores))
    rank = int(np.ceil((scores.size + 1) * (1 - false_alarm) - 1e-9))  # 1e-9: float rounding
    if rank > scores.size:
        needed = int(np.ceil(1 / false_alarm - 1 - 1e-9))
        raise ValueError(
            f"a false-alarm rate of {false_alarm:g} needs at least {needed} healthy validation "
            f"scans, there are {scores.size}"
        )
    return float(scores[rank - 1])


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the threshold (score > threshold) with the highest F1, and that F1.

    It is chosen with labels. Thresholds lie midway between neighbouring scores, and just below the
    lowest. Of thresholds with equal F1 the lowest is returned. (NaN, NaN) when no label is 1.
    """
    scores = np.asarray(scores, float)
    labels = np.asarray(labels).astype(bool)
    if not labels.any():
        return float("nan"), float("nan")
    known = np.unique(scores)
    cuts = np.append(known[0] - max(abs(known[0]), 1.0) * 1e-6, (known[:-1] + known[1:]) / 2)
    marked = scores[None] > cuts[:, None]
    hits = (marked & labels).sum(1)
    f1 = 2 * hits / (marked.sum(1) + labels.sum())
    best = int(np.argmax(f1))
    return float(cuts[best]), float(f1[best])


def percentile_of(score: float, healthy_scores: np.ndarray) -> float:
    """Return the percentage 0..100 of healthy scores <= score; ValueError on empty or NaN input."""
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
