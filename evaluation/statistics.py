"""Uncertainty of figures: a bootstrap over subjects, intervals, p values, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics import check_scores


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUROC (B,) of each resample; a tie counts one half (Hanley and McNeil 1982).

    Scores (n,) are finite, labels (n,) 0 or 1. Weights (B, n) say how often a resample drew each
    case. NaN where a resample lacks a class. ValueError on other shapes or values.
    """
    positive, negative = _grouped(scores, labels, weights)
    below = np.cumsum(negative, axis=1) - negative / 2  # half of the negatives of equal score
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _divided((positive * below).sum(axis=1), pairs, pairs > 0)


def weighted_average_precision(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return AP = sum_n (R_n - R_{n-1}) P_n (B,) of each resample; NaN where it lacks a class.

    Arguments and errors are those of `weighted_auroc`. Tied scores enter together, as in
    scikit-learn.
    """
    ascending = _grouped(scores, labels, weights)
    positive, negative = (group[:, ::-1] for group in ascending)
    marked = np.cumsum(positive + negative, axis=1)
    hits = np.cumsum(positive, axis=1)
    precision = np.divide(hits, marked, out=np.zeros_like(marked), where=marked > 0)

    positives = positive.sum(axis=1)
    both = (positives > 0) & (negative.sum(axis=1) > 0)
    return _divided((positive * precision).sum(axis=1), positives, both)


def _divided(top: np.ndarray, bottom: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return top / bottom (B,); NaN where it is not `known` (bool)."""
    return np.divide(top, bottom, out=np.full(len(known), np.nan), where=known)


def _grouped(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive and the negative weight (B, k) at each of the k distinct scores.

    Scores ascend.
    """
    scores, labels = check_scores(scores, labels)
    weights = np.asarray(weights, dtype=float)
    if weights.ndim != 2 or weights.shape[1] != scores.size:
        raise ValueError(
            f"weights must have one row per resample and {scores.size} columns, one per case; "
            f"got shape {weights.shape}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and at least 0")
    if scores.size == 0:
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))

    order = np.argsort(scores)
    starts = np.flatnonzero(np.append(True, np.diff(scores[order].astype(float)) > 0))
    positive = np.add.reduceat((weights * labels)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * ~labels)[:, order], starts, axis=1)
    return positive, negative


def resample_counts(
    subjects: Sequence[str], labels: Sequence[str | int], n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each bootstrap sample draws each subject, and the subject of each case.

    The counts are (B, n_subjects) int, with B = `n_resamples`, and the subjects are sorted by name.
    With the index (n_cases,), `counts[:, index]` is the weight of each case. A label is 'healthy'
    or 'abnormal', or 0 or 1.

    Whole subjects are drawn with replacement, as many abnormal and as many healthy ones as there
    are (Davison and Hinkley 1997). A subject is abnormal if any of its cases is. ValueError on
    another label, on lists of two lengths and on no resamples.
    """
    if len(subjects) != len(labels) or n_resamples < 1:
        raise ValueError(
            "one label per case and 1 resample or more are needed, "
            f"got {len(subjects)}, {len(labels)} and {n_resamples}"
        )
    unknown = sorted({str(label) for label in labels if label not in ("healthy", "abnormal", 0, 1)})
    if unknown:
        raise ValueError(
            f"a label must be 'healthy' or 'abnormal', 0 or 1, got {', '.join(unknown)}; "
            "leave such cases out"
        )

    names, index = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    of_abnormal = [label in ("abnormal", 1) for label in labels]
    abnormal = np.bincount(index, weights=of_abnormal, minlength=names.size) > 0
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, names.size), dtype=np.int64)
    # Apart, so that every sample has both kinds and the prevalence of the data.
    for stratum in (np.flatnonzero(abnormal), np.flatnonzero(~abnormal)):
        if stratum.size:
            chances = np.full(stratum.size, 1 / stratum.size)
            counts[:, stratum] = rng.multinomial(stratum.size, chances, size=n_resamples)
    return counts, index


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the finite bootstrap values (B,) (Efron 1981).

    (NaN, NaN) when fewer than half of the values are finite. ValueError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, got {level!r}")
    values = np.asarray(values, dtype=float)
    finite = values[np.isfinite(values)]
    if finite.size == 0 or 2 * finite.size < values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Return the two-sided bootstrap p in 0..1 of differences (B,) against 0.

    NaN among them does not count; p is NaN if none is left. Each tail counts one resample more than
    it holds, so that p is never 0 (Davison and Hinkley 1997).
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[~np.isnan(differences)]
    if differences.size == 0:
        return float("nan")
    tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (tail + 1) / (differences.size + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return the step-down adjusted p values in the order given, at most 1 (Holm 1979).

    NaN stays NaN and does not count as a test. ValueError on a p outside 0..1.
    """
    adjusted = np.array(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(adjusted))
    if np.any((adjusted[tested] < 0) | (adjusted[tested] > 1)):
        raise ValueError(f"a p value lies in 0..1, got {list(p)}")
    order = tested[np.argsort(adjusted[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * adjusted[order]), 1)
    return adjusted.tolist()
