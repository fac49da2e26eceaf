"""Operating points and percentiles that come from healthy scans alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

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
    level = healthy_level(healthy_scores, false_alarm)
    if level.alarm_rate > false_alarm + 1e-9:
        needed = int(np.ceil(1 / false_alarm - 1 - 1e-9))
        raise ValueError(
            f"a false-alarm rate of {false_alarm:g} needs at least {needed} healthy validation "
            f"scans, there are {level.n}"
        )
    return level.value


@dataclass(frozen=True)
class Level:
    """A threshold taken from healthy scans: the `rank`-th smallest of `n` values.

    Each value comes from a model that has not seen its scan. `fold` is how many scans were left out
    of it together; 0 where no scan had a part in a model. With folds a new scan must pass the level
    by every fold's model (CV-minmax, after Barber et al. 2021).
    """

    value: float
    rank: int
    n: int
    fold: int = 0

    @property
    def alarm_rate(self) -> float:
        """How often a new healthy scan passes at most, over all draws of the healthy scans."""
        together = max(self.fold, 1)
        return (self.n + together - self.rank) / (self.n + together)

    def worst_rate(self, confidence: float = 0.95) -> float:
        """How often at most for the very scans that were drawn, with this confidence.

        The rate is beta distributed (Vovk 2012). For scans that trained no model alone.
        """
        return float(beta.ppf(confidence, self.n + 1 - self.rank, self.rank))


def healthy_level(values: np.ndarray, false_alarm: float, fold: int = 0) -> Level:
    """Return the lowest level that new healthy scans pass at the rate `false_alarm` at most.

    `values` (N,) are one per healthy scan. Too few of them allow no such level: then it is the
    highest value, and its `alarm_rate` is above `false_alarm`. ValueError as `healthy_quantile`.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"a false-alarm rate lies between 0 and 1, got {false_alarm!r}")
    known = np.sort(_healthy(values))
    rank = int(np.ceil((known.size + 1) * (1 - false_alarm) - 1e-9))  # 1e-9: float rounding
    rank = min(rank, known.size)
    return Level(float(known[rank - 1]), rank, known.size, fold)


def weighted_level(
    values: np.ndarray, weights: np.ndarray, own_weight: float, false_alarm: float
) -> float:
    """Return the level that a new healthy scan of a shifted kind passes at `false_alarm` at most.

    `values` (N,) are one per healthy scan. `weights` (N,) say how many times as frequent scans like
    each are among the new ones, up to a factor; `own_weight` says that of the new scan. With equal
    weights it is `conformal_threshold` (Tibshirani et al. 2019). It is infinite where the new scan
    weighs too much: then nothing may be called a finding. ValueError as `healthy_level`, for
    negative weights and for a sum of 0.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"a false-alarm rate lies between 0 and 1, got {false_alarm!r}")
    known = _healthy(values)
    weights = np.asarray(weights, float)
    total = float(weights.sum() + own_weight)
    valid = np.isfinite(weights).all() and (weights >= 0).all() and own_weight >= 0
    if weights.shape != known.shape or not valid or not 0 < total < float("inf"):
        raise ValueError("weights must be one per value, finite, not negative and not all 0")
    order = np.argsort(known, kind="stable")
    below = np.cumsum(weights[order]) / total
    reached = below >= 1 - false_alarm - 1e-9  # 1e-9: float rounding
    return float(known[order][np.argmax(reached)]) if reached.any() else float("inf")


def p_value_of(strength: float, healthy: np.ndarray) -> float:
    """Return how often a new healthy scan holds something as strong, at most (Vovk et al. 2005).

    `healthy` (N,) holds the strongest thing in each healthy scan: (1 + those >= strength) / (N+1).
    """
    known = _healthy(healthy)
    return float((1 + (known >= strength).sum()) / (known.size + 1))


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
