"""Metrics of overlap and of ranking.

A voxel is anomalous when its score is greater than the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from evaluation.checks import as_mask, check_same_shape, check_spacing

DECADES = 16  # the smallest bin edge of a VoxelHistogram is maximum / 10**DECADES


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice overlap 2|P&T| / (|P|+|T|) of two masks of one shape (Dice 1945).

    NaN when the truth is empty, whatever the prediction. A healthy scan is judged by
    `false_positive_ml`.
    """
    prediction = as_mask(prediction, "prediction")
    truth = as_mask(truth, "truth")
    check_same_shape(prediction, truth, "prediction and truth")
    if not truth.any():
        return float("nan")
    both = np.count_nonzero(prediction & truth)
    return 2 * both / (np.count_nonzero(prediction) + np.count_nonzero(truth))


def false_positive_ml(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Return the volume in ml that `prediction` marks outside `truth`.

    The masks have one shape; `spacing` is the voxel size in mm.
    """
    prediction = as_mask(prediction, "prediction")
    truth = as_mask(truth, "truth")
    check_same_shape(prediction, truth, "prediction and truth")
    return float(np.count_nonzero(prediction & ~truth) * np.prod(check_spacing(spacing)) / 1000)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; a tie counts one half. NaN unless both classes occur."""
    scores, labels = check_scores(scores, labels)
    if not _both_classes(labels):
        return float("nan")
    ones = np.count_nonzero(labels)
    above = rankdata(scores)[labels].sum() - ones * (ones + 1) / 2  # pairs of a one over a zero
    return float(above / (ones * (labels.size - ones)))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return AP = sum_n (R_n - R_{n-1}) P_n, not interpolated; NaN unless both classes occur."""
    scores, labels = check_scores(scores, labels)
    if not _both_classes(labels):
        return float("nan")
    falling = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[falling])), labels.size - 1)  # of equal scores
    found = np.cumsum(labels[falling])[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / found[-1])


def classification(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return accuracy, recall, precision, f1 and specificity of score > threshold.

    NaN where one is not defined: precision when nothing is marked, recall and F1 when no label is
    1, specificity when no label is 0.
    """
    scores, labels = check_scores(scores, labels)
    marked = scores > threshold
    hits = float((marked & labels).sum())
    alarms = float((marked & ~labels).sum())
    positives = float(labels.sum())
    negatives = float((~labels).sum())
    return {
        "accuracy": share(hits + negatives - alarms, positives + negatives),
        "recall": share(hits, positives),
        "precision": share(hits, hits + alarms),
        "f1": share(2 * hits, hits + alarms + positives) if positives else float("nan"),
        "specificity": share(negatives - alarms, negatives),
    }


def share(part: float, whole: float) -> float:
    """Return part / whole; NaN where the whole is 0."""
    return part / whole if whole else float("nan")


class VoxelHistogram:
    """Voxel-wise metrics pooled over any number of scans in constant memory.

    Scores are finite, in [0, maximum], and are read as float32. Bin k holds
    edge[k-1] < score <= edge[k]. Bin 0 holds the exact zeros; the other edges are log-spaced over
    16 decades.

    Residual maps are zero in many voxels and heavy-tailed elsewhere. With linear bins most voxels
    would share a few bins. With these bins every score is known to 0.06 % of itself, whatever the
    scale of the map, and zeros are tied exactly as in the data.

    Every returned threshold is an edge, at which the counts of score > threshold are exact. Any
    other threshold is rounded up to its edge. A negative threshold marks every voxel.
    """

    def __init__(self, maximum: float = 1e4, bins: int = 2**16) -> None:
        if not (np.isfinite(maximum) and maximum > 0 and bins >= 3):
            raise ValueError(
                f"a positive maximum and at least 3 bins are needed, got {maximum} and {bins}"
            )
        self.maximum = float(maximum)
        self.bins = int(bins)
        positive = np.geomspace(maximum / 10.0**DECADES, maximum, bins - 1)
        self.edges = np.concatenate([[0.0], positive]).astype(np.float32)
        self.counts = np.zeros((2, bins), dtype=np.int64)  # of label 0 and of label 1

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add the voxels of one brain: scores (N,) in [0, maximum], labels (N,) in {0, 1}."""
        scores, labels = check_scores(scores, labels)
        if scores.size and (scores.min() < 0 or scores.max() > self.edges[-1]):
            raise ValueError(
                f"scores must lie in 0..{self.maximum:g}, got {scores.min():g}..{scores.max():g}; "
                "shift the map, or make the histogram with a larger maximum"
            )
        bins = np.searchsorted(self.edges, scores.astype(np.float32), side="left")
        for label in (0, 1):
            self.counts[label] += np.bincount(bins[labels == label], minlength=self.bins)

    def __add__(self, other: VoxelHistogram) -> VoxelHistogram:
        """Return the histogram of both sets of voxels; ValueError when their bins differ."""
        if (self.maximum, self.bins) != (other.maximum, other.bins):
            raise ValueError(
                "only histograms with the same maximum and number of bins can be added"
            )
        total = VoxelHistogram(self.maximum, self.bins)
        total.counts = self.counts + other.counts
        return total

    def coarser(self, factor: int) -> VoxelHistogram:
        """Return the histogram with each `factor` neighbouring positive bins merged.

        It is smaller to store, and thresholds are rounded up. Bin 0, the exact zeros, stays.
        ValueError unless `factor` divides the number of positive bins.
        """
        if (self.bins - 1) % factor:
            raise ValueError(f"{self.bins - 1} positive bins cannot be merged by {factor}")
        merged = VoxelHistogram(self.maximum, (self.bins - 1) // factor + 1)
        merged.edges = np.concatenate([self.edges[:1], self.edges[factor::factor]])
        positive = self.counts[:, 1:].reshape(2, -1, factor).sum(2)
        merged.counts = np.concatenate([self.counts[:, :1], positive], axis=1)
        return merged

    def to_rows(self) -> list[list[float]]:
        """Return [upper edge, count of label 0, count of label 1] of every filled bin."""
        return [
            [float(self.edges[k]), int(self.counts[0, k]), int(self.counts[1, k])]
            for k in np.flatnonzero(self.counts.any(0))
        ]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> VoxelHistogram:
        """Return a histogram with the bins of `to_rows` alone; it gives the same figures."""
        values = np.array(rows, float).reshape(-1, 3)
        edges = values[:, 0].astype(np.float32)
        counts = values[:, 1:].T.astype(np.int64)
        if not edges.size or edges[0] > 0:  # the bin of the exact zeros was empty
            edges = np.append(np.float32(0), edges)
            counts = np.pad(counts, ((0, 0), (1, 0)))

        histogram = cls(1.0, 3)
        histogram.edges = edges
        histogram.counts = counts
        histogram.bins = edges.size
        histogram.maximum = float(edges[-1])
        return histogram

    def average_precision(self) -> float:
        """Return AP of the pooled voxels, as scikit-learn has it. NaN unless both labels occur."""
        if not self.counts.sum(axis=1).all():
            return float("nan")
        fp, tp = self._cumulative()
        precision = tp / np.maximum(tp + fp, 1)
        return float(np.sum(np.diff(tp, prepend=0) * precision) / tp[-1])

    def auroc(self) -> float:
        """Return the area under the pooled ROC curve; a tie counts one half.

        NaN unless both labels occur.
        """
        if not self.counts.sum(axis=1).all():
            return float("nan")
        fp, tp = self._cumulative()
        return float(np.trapezoid(np.append(0, tp) / tp[-1], np.append(0, fp) / fp[-1]))

    def oracle_dice(self) -> tuple[float, float]:
        """Return the best pooled Dice over all thresholds, and its threshold.

        This is an oracle: it is chosen with the labels. A threshold of -1 says that marking every
        voxel is best. (NaN, NaN) when no voxel has label 1.
        """
        fp, tp = self._cumulative()
        if tp[-1] == 0:
            return float("nan"), float("nan")
        scores = 2 * tp / (tp + fp + tp[-1])
        best = int(np.argmax(scores))
        lowest_bin = self.bins - 1 - best  # the lowest bin still marked
        return float(scores[best]), float(self.edges[lowest_bin - 1]) if lowest_bin else -1.0

    def dice_at(self, threshold: float) -> float:
        """Return the pooled Dice of score > threshold; NaN when no voxel has label 1."""
        fp, tp = self.counts[:, self._first_marked(threshold) :].sum(axis=1)
        positives = self.counts[1].sum()
        return float(2 * tp / (tp + fp + positives)) if positives else float("nan")

    def false_positive_rate_at(self, threshold: float) -> float:
        """Return the fraction of label-0 voxels with score > threshold; NaN when there are none."""
        negatives = self.counts[0].sum()
        marked = self.counts[0, self._first_marked(threshold) :].sum()
        return float(marked / negatives) if negatives else float("nan")

    def quantile(self, q: float) -> float:
        """Return the smallest edge that a fraction of q or more of label-0 scores does not exceed.

        ValueError for a q outside [0, 1], or without a label-0 score.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies in 0..1, got {q!r}")
        negatives = int(self.counts[0].sum())
        if negatives == 0:
            raise ValueError("no label-0 voxel has been added, so there is no quantile")
        rank = quantile_rank(q, negatives)
        return float(self.edges[np.searchsorted(np.cumsum(self.counts[0]), rank)])

    def _cumulative(self) -> tuple[np.ndarray, np.ndarray]:
        """Return false and true positives (bins,) when the highest 1, 2, ... bins are marked."""
        fp, tp = np.cumsum(self.counts[:, ::-1], axis=1)
        return fp, tp

    def _first_marked(self, threshold: float) -> int:
        """Return the lowest bin that lies wholly above `threshold`."""
        if np.isnan(threshold):
            raise ValueError("the threshold is NaN")
        if threshold < 0:
            return 0
        return int(np.searchsorted(self.edges, np.float32(threshold), side="left")) + 1


def quantile_rank(q: float, n: int) -> int:
    """Return the rank 1..n of the q quantile of n sorted values, the least with rank / n >= q."""
    # 1e-6, because 0.07 * 100 is 7.000000000000001.
    return min(max(int(np.ceil(q * n - 1e-6)), 1), n)


def check_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N,), and labels (N,) as bool.

    ValueError on other shapes, NaN, infinity or labels that are not 0 or 1.
    """
    scores = np.asarray(scores)
    labels = np.asarray(labels)
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension, got shape {scores.shape}")
    check_same_shape(scores, labels, "scores and labels")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    return scores, as_mask(labels, "labels")


def _both_classes(labels: np.ndarray) -> bool:
    return bool(labels.any() and not labels.all())
