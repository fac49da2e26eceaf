"""Lesion by lesion: what is found, what is marked in vain, and how far the surfaces lie apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing

SIZE_EDGES_ML = (0.0, 0.2, 1.0, 5.0, 20.0, float("inf"))


def hausdorff95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Return the 95th percentile Hausdorff distance in mm of two masks of one shape (Huttenlocher 1993).

    The surface is every voxel with a face neighbour outside the mask or the array; the larger of the two directed
    95th percentiles counts. `spacing` is the voxel size in mm. NaN when a mask is empty.
    """
    from monai.metrics import compute_hausdorff_distance

    prediction, truth = as_mask(prediction, "prediction"), as_mask(truth, "truth")
    check_same_shape(prediction, truth, "prediction and truth")
    sizes = check_spacing(spacing)
    box = bounding_box(prediction | truth, margin=1)
    if box is None or not (prediction.any() and truth.any()):
        return float("nan")
    first, second = (
        mask[box][None, None] for mask in (prediction, truth)
    )  # MONAI wants a batch and a class axis
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # MONAI calls a helper with an argument of its own that it deprecates
        return float(
            compute_hausdorff_distance(
                first, second, include_background=True, percentile=95, spacing=sizes
            )
        )


def lesions_of(truth: np.ndarray) -> np.ndarray:
    """Return the 26-connected lesions of a mask or label image as int labels 1..n of the same shape, 0 elsewhere.

    Voxels of two labels never share a lesion, so two lesions that touch stay two when the truth numbers them.
    ValueError unless the truth holds whole numbers of at least 0.
    """
    from skimage.measure import label

    truth = np.asarray(truth)
    lesions = np.zeros(truth.shape, dtype=np.int32)
    box = bounding_box(truth != 0)
    if box is None:
        return lesions
    inside = truth[box]
    if not (
        np.isfinite(inside).all() and (inside >= 0).all() and (inside == np.rint(inside)).all()
    ):
        raise ValueError("truth must hold whole numbers of at least 0; binarise it first")
    lesions[box] = label(
        inside.astype(np.int32), connectivity=3
    )  # neighbours join only where their values are equal
    return lesions


def match(
    prediction: np.ndarray,
    anomaly_map: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    min_overlap: float = 0.1,
) -> dict[str, list[dict[str, Any]]]:
    """Return the lesions of `truth` and the candidates (26-connected components of the mask `prediction`) of one scan.

    The arrays share one shape; `truth` is read by `lesions_of`. A lesion has its "volume_ml", the share "covered" by
    the prediction and a "score": the highest of the candidates that touch it where at least `min_overlap` is covered,
    else 0.0, a miss. A candidate has its "volume_ml", its "score", the maximum of the map inside, and is "true" when at
    least `min_overlap` of its voxels lie on lesions or it alone covers at least `min_overlap` of a lesion. ValueError on
    other arrays, and where a candidate's score is not above 0, which would read as a miss.
    """
    from skimage.measure import label

    prediction, anomaly_map, truth = (
        as_mask(prediction, "prediction"),
        np.asarray(anomaly_map),
        np.asarray(truth),
    )
    check_same_shape(prediction, anomaly_map, "prediction and anomaly_map")
    check_same_shape(prediction, truth, "prediction and truth")
    voxel_ml = np.prod(check_spacing(spacing)) / 1000
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap is a share above 0 and at most 1, got {min_overlap!r}")
    box = bounding_box(prediction | (truth != 0))
    if box is None:
        return {"lesions": [], "candidates": []}
    lesions, candidates = lesions_of(truth[box]), label(prediction[box], connectivity=3)
    lesion_size, candidate_size = (
        np.bincount(labels.ravel())[1:] for labels in (lesions, candidates)
    )
    marked, scores = candidates > 0, np.full(candidate_size.size, -np.inf)
    np.maximum.at(scores, candidates[marked] - 1, anomaly_map[box][marked])
    if not (np.isfinite(anomaly_map[prediction]).all() and (scores > 0).all()):
        raise ValueError(
            "the anomaly map must be finite in the prediction and exceed 0 in each of its components; shift the map"
        )

    both = marked & (lesions > 0)
    codes = (lesions[both] - 1) * np.int64(candidate_size.size) + candidates[both] - 1
    pairs, shared = np.unique(
        codes, return_counts=True
    )  # the pairs that overlap, and the voxels they share
    lesion, candidate = np.divmod(pairs, max(candidate_size.size, 1))
    covered = np.bincount(lesion, shared, lesion_size.size) / lesion_size
    on_truth = np.bincount(candidate, shared, candidate_size.size) / candidate_size
    found, true = np.zeros(lesion_size.size), on_truth >= min_overlap
    np.maximum.at(found, lesion, scores[candidate])
    found[covered < min_overlap] = 0
    true[candidate[shared / lesion_size[lesion] >= min_overlap]] = True
    return {
        "lesions": _rows(volume_ml=lesion_size * voxel_ml, covered=covered, score=found),
        "candidates": _rows(volume_ml=candidate_size * voxel_ml, score=scores, true=true),
    }


def by_size(
    lesions: Sequence[dict[str, Any]], edges_ml: Sequence[float] = SIZE_EDGES_ML
) -> list[dict[str, Any]]:
    """Return the detected share of the lesions, pooled over scans, with from_ml <= volume_ml < to_ml.

    A lesion is detected when its score is above 0; the sensitivity of an empty bin is NaN. ValueError unless the
    edges in ml rise.
    """
    bins = _bins([(lesion["volume_ml"], lesion["score"] > 0) for lesion in lesions], edges_ml)
    return [
        {"from_ml": a, "to_ml": b, "n": n, "detected": hits, "sensitivity": _share(hits, n)}
        for a, b, n, hits in bins
    ]


def precision_by_size(
    candidates: Sequence[dict[str, Any]], edges_ml: Sequence[float] = SIZE_EDGES_ML
) -> list[dict[str, Any]]:
    """Return the true share of the candidates, pooled over scans, with from_ml <= volume_ml < to_ml; as `by_size`."""
    bins = _bins(
        [(candidate["volume_ml"], candidate["true"]) for candidate in candidates], edges_ml
    )
    return [
        {"from_ml": a, "to_ml": b, "n": n, "true": hits, "precision": _share(hits, n)}
        for a, b, n, hits in bins
    ]


def _bins(
    found: Sequence[tuple[float, bool]], edges_ml: Sequence[float]
) -> list[tuple[float, float, int, int]]:
    """Return (from, to, count, hits) per bin of (volume in ml, hit)."""
    if len(edges_ml) < 2 or not np.all(np.diff(edges_ml) > 0):
        raise ValueError(f"edges_ml must be two or more rising numbers, got {edges_ml!r}")
    sets = [
        (low, high, [hit for volume, hit in found if low <= volume < high])
        for low, high in pairwise(edges_ml)
    ]
    return [(low, high, len(hits), sum(hits)) for low, high, hits in sets]


def froc(
    lesions: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]], n_scans: int
) -> dict[str, list[float]]:
    """Return the free-response ROC curve of `n_scans` pooled scans (Chakraborty 1989), a point per distinct score.

    From the highest cut down, a candidate is kept and a lesion is found where its score is >= cut, so a lesion goes with
    the highest candidate that touches it; a false positive is a kept candidate that is not true. The curve starts where
    nothing is kept. Sensitivity is NaN without a lesion; ValueError without a scan.
    """
    if n_scans < 1:
        raise ValueError(f"at least 1 scan is needed, got {n_scans}")
    found = np.sort([lesion["score"] for lesion in lesions])
    false = np.sort([candidate["score"] for candidate in candidates if not candidate["true"]])
    cuts = np.append(np.inf, np.unique([candidate["score"] for candidate in candidates])[::-1])
    positives, hits = (scores.size - np.searchsorted(scores, cuts) for scores in (false, found))
    return {
        "false_positives_per_scan": (positives / n_scans).tolist(),
        "sensitivity": [_share(hit, found.size) for hit in hits.tolist()],
    }


def precision(candidates: Sequence[dict[str, Any]]) -> float:
    """Return the share of candidates in 0..1 that are true; NaN if there is none."""
    return _share(sum(candidate["true"] for candidate in candidates), len(candidates))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _rows(**columns: np.ndarray) -> list[dict[str, Any]]:
    """Return one dictionary of Python numbers per row of the equally long `columns`."""
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
