"""Average precision as the MOOD challenge computes it (Zimmerer et al. 2022).

Its rule is that of github.com/MIC-DKFZ/mood, scripts/evalresults.py. Scores and maps are clipped to
[0, 1]. A scan without a prediction counts as 0. At the pixel level all voxels of all scans are
ranked as one, background and scans without anomaly too, as float16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from evaluation.checks import as_mask, check_same_shape
from evaluation.metrics import VoxelHistogram, average_precision

LEVELS = int(np.float16(1).view(np.uint16)) + 1  # float16 numbers from 0 to 1


def sample_ap(scores: Sequence[float | None], labels: Sequence[int]) -> float:
    """Return the AP of scans; None is a scan without a prediction. NaN unless both labels occur."""
    known = np.array([0.0 if score is None else score for score in scores], float)
    return average_precision(np.clip(known, 0, 1), np.asarray(labels))


def pixel_ap(pairs: Iterable[tuple[np.ndarray | None, np.ndarray]]) -> float:
    """Return the AP of all voxels of (map, mask) pairs; NaN unless both labels occur.

    A map has the shape of its mask (bool, or 0 and 1), or is None where there is no prediction. The
    memory does not grow with the number of scans, and nothing is rounded beyond float16.
    """
    counts = np.zeros((2, LEVELS), np.int64)
    for scores, mask in pairs:
        truth = as_mask(mask, "mask")
        if scores is None:
            scores = np.zeros(truth.shape, np.float16)
        check_same_shape(scores, truth, "map and mask")
        clipped = np.clip(np.asarray(scores).astype(np.float16), 0, 1)
        if np.isnan(clipped).any():
            raise ValueError("a map must be finite, got NaN")
        # bits of float16 numbers from 0 on ascend with them; abs makes -0 to 0
        levels = np.abs(clipped).view(np.uint16)
        for label in (0, 1):
            counts[label] += np.bincount(levels[truth == label], minlength=LEVELS)
    return _ap_of_counts(np.arange(LEVELS), counts)


def pooled_pixel_ap(voxels: VoxelHistogram, others: VoxelHistogram, missed: int) -> float:
    """Return the AP of the pixel level from histograms; NaN unless both labels occur.

    `voxels` are those of brains with a lesion mask. `others` are all further voxels whose truth is
    known: background, and healthy scans. `missed` are lesion voxels outside of the brain, where
    maps are 0. A map need not lie in [0, 1], as any that rises with it has the same AP.
    """
    edges = np.concatenate([voxels.edges, others.edges, [0.0]])
    counts = np.concatenate([voxels.counts, others.counts, [[0], [missed]]], axis=1)
    return _ap_of_counts(edges, counts)


def unit_map(values: np.ndarray, level: float) -> np.ndarray:
    """Return a map (values from 0 on) as float32 in [0, 1): `level` becomes 0.5, 0 stays 0.

    It rises with the map everywhere, so that no order is lost but by rounding.
    """
    if not level > 0:
        raise ValueError(f"a level above 0 is needed, got {level!r}")
    return (values / (values + np.float32(level))).astype(np.float32)


def unit_score(score: float, healthy: Sequence[float] | np.ndarray) -> float:
    """Return a scan's score in (0, 1): the mean of `healthy` scores becomes 0.5.

    It rises with the score everywhere; one standard deviation above the mean becomes 0.75.
    """
    spread = float(np.std(healthy)) if len(healthy) else 0.0
    z = (score - float(np.mean(healthy))) / spread if spread > 0 else score
    return 0.5 + 0.5 * z / (1 + abs(z))


def _ap_of_counts(scores: np.ndarray, counts: np.ndarray) -> float:
    """Return the AP of scores (N,), of which `counts` (2, N) are of label 0 and of label 1."""
    if not counts.sum(axis=1).all():
        return float("nan")
    labels = np.repeat([0, 1], scores.size)
    weights = counts.ravel().astype(float)
    shown = weights > 0
    ranked = np.tile(scores, 2)[shown]
    return float(average_precision_score(labels[shown], ranked, sample_weight=weights[shown]))
