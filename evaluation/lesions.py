"""Lesion by lesion: what is found, what is marked in vain, how far the surfaces lie apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from skimage.measure import label

from evaluation.checks import as_mask, bounding_box, check_same_shape, check_spacing
from evaluation.metrics import share

# About a factor of five from edge to edge: from specks (0.2 ml is a ball 7 mm wide) to bleeds
# that press on the brain (20 ml is a ball 34 mm wide).
SIZE_EDGES_ML = (0.0, 0.2, 1.0, 5.0, 20.0, float("inf"))

# A lesion is found when a tenth of it is marked: an alarm has to lead the reader to the lesion,
# not to outline it. Dice judges the outline.
MIN_OVERLAP = 0.1


def hausdorff95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Return the 95th percentile Hausdorff distance of two masks in mm (Huttenlocher 1993).

    The masks have one shape; `spacing` is the voxel size in mm. The surface of a mask is every
    voxel with a face neighbour outside the mask or the array. The larger of the two directed 95th
    percentiles counts. NaN when a mask is empty.
    """
    prediction = as_mask(prediction, "prediction")
    truth = as_mask(truth, "truth")
    check_same_shape(prediction, truth, "prediction and truth")
    sizes = check_spacing(spacing)
    box = bounding_box(prediction | truth, margin=1)
    if box is None or not (prediction.any() and truth.any()):
        return float("nan")

    from monai.metrics import compute_hausdorff_distance  # slow to load

    # MONAI wants a batch and a channel axis.
    first = prediction[box][None, None]
    second = truth[box][None, None]
    with warnings.catch_warnings():
        # MONAI calls a helper of its own with an argument that it deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute_hausdorff_distance(
            first, second, include_background=True, percentile=95, spacing=sizes
        )
    return float(distance)


def peak_distance_mm(values: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Return how far the highest voxel of a map lies from the nearest lesion voxel, mm.

    0 inside a lesion. Of equal voxels the first counts. NaN where the truth or the whole map is
    empty. `values` and `truth` are (X, Y, Z).
    """
    truth = as_mask(truth, "truth")
    check_same_shape(values, truth, "map and truth")
    sizes = np.array(check_spacing(spacing))
    if not truth.any() or not values.max() > 0:
        return float("nan")
    peak = np.array(np.unravel_index(int(values.argmax()), values.shape))
    return float(np.linalg.norm((np.argwhere(truth) - peak) * sizes, axis=1).min())


def lesions_of(truth: np.ndarray) -> np.ndarray:
    """Return the lesions of a mask or label image as int labels 1..n of its shape, 0 elsewhere.

    A lesion is 26-connected. Voxels of two labels never share a lesion, so two lesions that touch
    stay two when the truth numbers them. ValueError unless the truth holds whole numbers of at
    least 0.
    """
    truth = np.asarray(truth)
    lesions = np.zeros(truth.shape, dtype=np.int32)
    box = bounding_box(truth != 0)
    if box is None:
        return lesions
    inside = truth[box]
    whole = np.isfinite(inside).all() and (inside >= 0).all() and (inside == np.rint(inside)).all()
    if not whole:
        raise ValueError("truth must hold whole numbers of at least 0; binarise it first")

    # Neighbours join only where their values are equal.
    lesions[box] = label(inside.astype(np.int32), connectivity=3)
    return lesions


def match(
    prediction: np.ndarray,
    anomaly_map: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    min_overlap: float = MIN_OVERLAP,
) -> dict[str, list[dict[str, Any]]]:
    """Return the lesions of `truth` and the candidates of `prediction`, matched, of one scan.

    The arrays share one shape; `truth` is read by `lesions_of`. Candidates are the 26-connected
    components of the mask `prediction`.

    - A lesion has "volume_ml", the share "covered" by the prediction, and a "score". The score is
      the highest of the candidates that touch it; it is 0.0, a miss, where less than `min_overlap`
      is covered.
    - A candidate has "volume_ml", a "score", which is the maximum of the map inside, and "true".
      It is true when `min_overlap` of its voxels or more lie on lesions, or when it alone covers
      `min_overlap` of a lesion or more.

    ValueError on other arrays. ValueError too where a candidate's score is not above 0, as it
    would read as a miss.
    """
    prediction = as_mask(prediction, "prediction")
    anomaly_map = np.asarray(anomaly_map)
    truth = np.asarray(truth)
    check_same_shape(prediction, anomaly_map, "prediction and anomaly_map")
    check_same_shape(prediction, truth, "prediction and truth")
    voxel_ml = np.prod(check_spacing(spacing)) / 1000
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap is a share above 0 and at most 1, got {min_overlap!r}")
    box = bounding_box(prediction | (truth != 0))
    if box is None:
        return {"lesions": [], "candidates": []}

    lesions = lesions_of(truth[box])
    candidates = label(prediction[box], connectivity=3)
    lesion_size = np.bincount(lesions.ravel())[1:]
    candidate_size = np.bincount(candidates.ravel())[1:]
    scores = highest_in(candidates, anomaly_map[box], candidate_size.size)
    if not (np.isfinite(anomaly_map[prediction]).all() and (scores > 0).all()):
        raise ValueError(
            "the anomaly map must be finite in the prediction and exceed 0 in each of its "
            "components; shift the map"
        )

    lesion, candidate, shared = _overlaps(lesions, candidates, candidate_size.size)
    covered = np.bincount(lesion, shared, lesion_size.size) / lesion_size
    found = np.zeros(lesion_size.size)
    np.maximum.at(found, lesion, scores[candidate])
    found[covered < min_overlap] = 0

    on_truth = np.bincount(candidate, shared, candidate_size.size) / candidate_size
    true = on_truth >= min_overlap
    true[candidate[shared / lesion_size[lesion] >= min_overlap]] = True
    return {
        "lesions": _records(volume_ml=lesion_size * voxel_ml, covered=covered, score=found),
        "candidates": _records(volume_ml=candidate_size * voxel_ml, score=scores, true=true),
    }


def highest_in(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the highest value inside each label 1..count; -inf for a label without a voxel."""
    marked = labels > 0
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, labels[marked] - 1, values[marked])
    return highest


def _overlaps(
    lesions: np.ndarray, candidates: np.ndarray, n_candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lesion and candidate (from 0) of each overlapping pair, and the voxels they share."""
    both = (candidates > 0) & (lesions > 0)
    codes = (lesions[both] - 1) * np.int64(n_candidates) + candidates[both] - 1
    pairs, shared = np.unique(codes, return_counts=True)
    lesion, candidate = np.divmod(pairs, max(n_candidates, 1))
    return lesion, candidate, shared


def by_size(
    lesions: Sequence[dict[str, Any]], edges_ml: Sequence[float] = SIZE_EDGES_ML
) -> list[dict[str, Any]]:
    """Return the detected share of the lesions of all scans by size, from_ml <= volume_ml < to_ml.

    A lesion is detected when its score is above 0. The sensitivity of an empty bin is NaN.
    ValueError unless the edges in ml rise.
    """
    bins = _bins([(lesion["volume_ml"], lesion["score"] > 0) for lesion in lesions], edges_ml)
    return [
        {"from_ml": low, "to_ml": high, "n": n, "detected": hits, "sensitivity": share(hits, n)}
        for low, high, n, hits in bins
    ]


def precision_by_size(
    candidates: Sequence[dict[str, Any]], edges_ml: Sequence[float] = SIZE_EDGES_ML
) -> list[dict[str, Any]]:
    """Return the true share of the candidates by size; bins and errors are those of `by_size`."""
    volumes = [(candidate["volume_ml"], candidate["true"]) for candidate in candidates]
    return [
        {"from_ml": low, "to_ml": high, "n": n, "true": hits, "precision": share(hits, n)}
        for low, high, n, hits in _bins(volumes, edges_ml)
    ]


def _bins(
    volumes: Sequence[tuple[float, bool]], edges_ml: Sequence[float]
) -> list[tuple[float, float, int, int]]:
    """Return (from, to, count, hits) per bin of (volume in ml, hit)."""
    if len(edges_ml) < 2 or not np.all(np.diff(edges_ml) > 0):
        raise ValueError(f"edges_ml must be two or more rising numbers, got {edges_ml!r}")
    bins = []
    for low, high in pairwise(edges_ml):
        hits = [hit for volume, hit in volumes if low <= volume < high]
        bins.append((low, high, len(hits), sum(hits)))
    return bins


def froc(
    lesions: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]], n_scans: int
) -> dict[str, list[float]]:
    """Return the free-response ROC curve of `n_scans` pooled scans (Chakraborty 1989).

    It has a point per distinct score, from the highest cut down, and starts where no candidate is
    left. At a cut, candidates and lesions with a score >= cut count, so a lesion goes with the
    highest candidate that touches it. A false positive is such a candidate that is not true.
    Sensitivity is NaN without a lesion; ValueError without a scan.
    """
    if n_scans < 1:
        raise ValueError(f"at least 1 scan is needed, got {n_scans}")
    found = np.sort([lesion["score"] for lesion in lesions])
    false = np.sort([candidate["score"] for candidate in candidates if not candidate["true"]])
    cuts = np.append(np.inf, np.unique([candidate["score"] for candidate in candidates])[::-1])

    positives = false.size - np.searchsorted(false, cuts)
    hits = found.size - np.searchsorted(found, cuts)
    return {
        "false_positives_per_scan": (positives / n_scans).tolist(),
        "sensitivity": [share(hit, found.size) for hit in hits.tolist()],
    }


def level_at(candidates: Sequence[dict[str, Any]], n_scans: int, rate: float) -> float:
    """Return the lowest score that at most `rate` false candidates per scan exceed.

    It is 0 where there are no more of them than that. ValueError without a scan.
    """
    if n_scans < 1:
        raise ValueError(f"at least 1 scan is needed, got {n_scans}")
    false = sorted((c["score"] for c in candidates if not c["true"]), reverse=True)
    allowed = int(rate * n_scans + 1e-9)
    return float(false[allowed]) if allowed < len(false) else 0.0


def precision(candidates: Sequence[dict[str, Any]]) -> float:
    """Return the share of candidates in 0..1 that are true; NaN if there is none."""
    return share(sum(candidate["true"] for candidate in candidates), len(candidates))


def _records(**columns: np.ndarray) -> list[dict[str, Any]]:
    """Return one dictionary of Python numbers per entry of the equally long `columns`."""
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
