"""The protocol: every figure of a run from its scans, slices and voxels, by rules with a name (see docs/evaluation.md).

A scan is a dictionary with "id", "subject", "label" ("healthy", "abnormal" or ""), "score", and what evaluation measured on
its own grid inside its brain; a slice has "id" ("<scan>/<index>"), "label" (0, 1 or None) and "score". Every function here
takes such rows as they stand in a results file, so anyone can compute the figures again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation import lesions as lesion_metrics
from evaluation.metrics import VoxelHistogram, auroc, average_precision, classification
from evaluation.statistics import resample_counts, weighted_auroc, weighted_average_precision
from evaluation.thresholds import best_f1

Row = Mapping[str, Any]
READINGS = ("scan", "slicewise", "clinical_slicewise")
OF_HEALTHY = ("healthy_false_positive_ml",)
MIN_SUBJECTS = 5  # of a kind, for a bootstrap interval
LABELS = {
    "scan_auroc": "AUROC per scan",
    "scan_ap": "AP per scan",
    "slicewise_auroc": "AUROC per slice, slicewise (abnormal slices against slices of healthy scans)",
    "slicewise_ap": "AP per slice, slicewise",
    "clinical_slicewise_auroc": "AUROC per slice, clinical slicewise (every slice of an abnormal scan counts as abnormal)",
    "clinical_slicewise_ap": "AP per slice, clinical slicewise",
    "accuracy": "accuracy per scan at the operating point",
    "recall": "recall (sensitivity) per scan at the operating point",
    "specificity": "specificity per scan at the operating point",
    "precision": "precision per scan at the operating point",
    "f1": "F1 per scan at the operating point",
    "accuracy_share": "accuracy per scan at the share point",
    "recall_share": "recall per scan at the share point",
    "precision_share": "precision per scan at the share point",
    "f1_share": "F1 per scan at the share point (a share of healthy scores under the threshold)",
    "accuracy_few_label": "accuracy per scan at the few-label point",
    "recall_few_label": "recall per scan at the few-label point",
    "precision_few_label": "precision per scan at the few-label point",
    "f1_few_label": "F1 per scan at the few-label point (best F1 on a labelled validation set: has seen labels)",
    "oracle_f1": "oracle F1 per scan (best threshold, chosen with the test labels: not achievable)",
    "dice_mean": "Dice, mean per scan, at the operating point",
    "dice_pooled": "Dice, voxels of all scans pooled, at the operating point",
    "oracle_dice_pooled": "oracle Dice, pooled (best threshold, chosen with the test labels: not achievable)",
    "voxel_ap": "voxel AP inside the brain, pooled",
    "voxel_ap_mean": "voxel AP inside the brain, mean per scan",
    "voxel_auroc": "voxel AUROC inside the brain, pooled",
    "voxel_prevalence": "share of lesion voxels inside the brain (the voxel AP of chance)",
    "hd95_mean": "95th percentile Hausdorff distance, mm, mean per scan where something is marked",
    "hd95_undefined": "scans with a lesion and nothing marked (no Hausdorff distance)",
    "lesion_sensitivity": "lesions found (at least 10 % covered)",
    "lesion_precision": "marked components that are lesions",
    "healthy_false_positive_ml": "false-positive ml per healthy scan",
    "healthy_voxel_fpr": "share of healthy brain voxels above the threshold, realised on the test scans",
}


def pairs(
    scans: Sequence[Row], slices: Sequence[Row], reading: str
) -> list[tuple[Row, int, float]]:
    """(its scan, label, score) of all that a reading compares: "scan", "slicewise" or "clinical_slicewise".

    Slicewise compares the abnormal slices of abnormal scans with all slices of healthy scans, which are disjoint. Clinical
    slicewise counts every slice of an abnormal scan as abnormal.
    """
    known = {s["id"]: s for s in scans if s["label"] in ("healthy", "abnormal")}
    if reading == "scan":
        return [(s, int(s["label"] == "abnormal"), s["score"]) for s in known.values()]
    found = []
    for row in slices:
        scan = known.get(row["id"].rpartition("/")[0])
        if scan is not None:
            abnormal = scan["label"] == "abnormal"
            if reading == "clinical_slicewise" or not abnormal or row["label"] == 1:
                found.append((scan, int(abnormal), row["score"]))
    return found


def columns(rows: Sequence[tuple[Row, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of `pairs` as arrays (n,)."""
    return np.array([r[2] for r in rows], float), np.array([r[1] for r in rows], int)


def summarise(
    scans: Sequence[Row],
    slices: Sequence[Row],
    voxels: VoxelHistogram,
    scan_threshold: float,
    points: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Every figure of `LABELS` and the counts behind them; NaN where the labels do not define one.

    `voxels` are those of the scans with a lesion mask; `points` are the scan thresholds of other operating points ("share",
    "few-label") at which scans are classified too. A scan without lesion has no Dice: it is judged by what is marked.
    """
    healthy, abnormal = ([s for s in scans if s["label"] == k] for k in ("healthy", "abnormal"))
    with_lesion = [s for s in scans if s.get("truth_voxels")]
    result: dict[str, float] = {
        "n_scans": len(scans),
        "n_healthy": len(healthy),
        "n_abnormal": len(abnormal),
        "n_with_lesion_mask": len(with_lesion),
    }
    for reading in READINGS:
        scores, labels = columns(pairs(scans, slices, reading))
        result |= {
            f"{reading}_auroc": auroc(scores, labels),
            f"{reading}_ap": average_precision(scores, labels),
        }
    scores, labels = columns(pairs(scans, slices, "scan"))
    both = 0 < labels.sum() < labels.size
    result |= _classified(scores, labels, scan_threshold)
    for name in ("share", "few-label"):
        found = _classified(scores, labels, (points or {}).get(name, float("nan")))
        result |= {
            f"{k}_{name.replace('-', '_')}": found[k]
            for k in ("accuracy", "recall", "precision", "f1")
        }
    result["oracle_f1"] = best_f1(scores, labels)[1] if both else float("nan")
    counts = [(s["overlap_voxels"], s["mask_voxels"] + s["truth_voxels"]) for s in with_lesion]
    of_lesions = [found for s in with_lesion for found in s["lesions"]]
    marked = [found for s in with_lesion for found in s["candidates"]]
    hits, size = voxels.counts[1].sum(), voxels.counts.sum()
    oracle, at = voxels.oracle_dice()
    return result | {
        "dice_mean": _mean([s["dice"] for s in with_lesion]),
        "dice_pooled": 2 * sum(c[0] for c in counts) / sum(c[1] for c in counts)
        if counts
        else float("nan"),
        "oracle_dice_pooled": oracle,
        "oracle_threshold": at,
        "voxel_ap": voxels.average_precision(),
        "voxel_ap_mean": _mean([s["voxel_ap"] for s in with_lesion]),
        "voxel_auroc": voxels.auroc(),
        "voxel_prevalence": float(hits / size) if hits else float("nan"),
        "hd95_mean": _mean([s["hd95"] for s in with_lesion]),
        "hd95_undefined": float(sum(not s["mask_voxels"] for s in with_lesion))
        if with_lesion
        else float("nan"),
        "lesion_sensitivity": _mean([float(found["score"] > 0) for found in of_lesions]),
        "lesion_precision": lesion_metrics.precision(marked),
        "healthy_false_positive_ml": _mean([s["false_positive_ml"] for s in healthy]),
        "healthy_voxel_fpr": _ratio(
            sum(s["above_voxels"] for s in healthy), sum(s["brain_voxels"] for s in healthy)
        ),
    }


def _classified(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """`classification`, or NaN throughout without a threshold or one of the classes."""
    found = classification(scores, labels, threshold if np.isfinite(threshold) else 0.0)
    return (
        found
        if np.isfinite(threshold) and 0 < labels.sum() < labels.size
        else dict.fromkeys(found, float("nan"))
    )


def classes(scans: Sequence[Row], slices: Sequence[Row], column: str) -> list[dict[str, Any]]:
    """One row per class of a column of the scan table, or of the slice table: its figures against all healthy scans.

    A cell may name several classes, joined by "+". "n" counts scans, "n_slices" slices whose own class it is (where the slice
    table says so). AUROC is per scan and slicewise; Dice is the mean over the scans of the class that have a lesion mask.
    """
    names: dict[str, None] = {}
    for row in (*scans, *slices):
        names |= dict.fromkeys(_classes(row, column))
    healthy = [s for s in scans if s["label"] == "healthy"]
    of_slices = any(column in row for row in slices)
    table = []
    for name in sorted(names):
        ill = [s for s in scans if s["label"] == "abnormal" and name in _classes(s, column)]
        if of_slices:
            own = [r for r in slices if name in _classes(r, column)]
            inside = {r["id"].rpartition("/")[0] for r in own}
            ill = ill or [s for s in scans if s["label"] == "abnormal" and s["id"] in inside]
        else:
            ids = {s["id"] for s in ill}
            own = [r for r in slices if r["id"].rpartition("/")[0] in ids]
        if not ill:
            continue
        healthy_ids = {s["id"] for s in healthy}
        against = [r for r in slices if r["id"].rpartition("/")[0] in healthy_ids]
        chosen = [*healthy, *ill]
        table.append(
            {
                "class": name,
                "n": len(ill),
                "n_slices": sum(r["label"] == 1 for r in own),
                "scan_auroc": auroc(*columns(pairs(chosen, [], "scan"))),
                "slicewise_auroc": auroc(*columns(pairs(chosen, [*against, *own], "slicewise"))),
                "dice_mean": _mean([s["dice"] for s in ill if s.get("truth_voxels")]),
                "voxel_ap_mean": _mean([s["voxel_ap"] for s in ill if s.get("truth_voxels")]),
            }
        )
    return table


def _classes(row: Row, column: str) -> list[str]:
    value = str(row.get(column) or "")
    return (
        [part.strip() for part in value.split("+") if part.strip()]
        if row.get("label") not in ("healthy", 0)
        else []
    )


STATISTICS: dict[str, str] = {
    "scan_auroc": "scan",
    "scan_ap": "scan",
    "slicewise_auroc": "slicewise",
    "clinical_slicewise_auroc": "clinical_slicewise",
    "dice_mean": "dice",
    "dice_pooled": "",
    "voxel_ap_mean": "voxel_ap",
    "healthy_false_positive_ml": "false_positive_ml",
}
"""Figures with a bootstrap interval, and what they are computed from."""


def resampled(
    scans: Sequence[Row], slices: Sequence[Row], figure: str, weight_of: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A figure of `STATISTICS` for every resample, (B,); `weight_of` gives a subject's counts (B,). NaN where it is not defined."""
    source = STATISTICS[figure]
    if source in READINGS:
        rows = pairs(scans, slices, source)
        if not rows:
            return np.full(1, np.nan)
        weights = np.stack([weight_of(r[0]["subject"]) for r in rows], axis=1)
        weighted = weighted_average_precision if figure.endswith("_ap") else weighted_auroc
        return weighted(*columns(rows), weights)
    healthy = figure in OF_HEALTHY
    used = [
        s
        for s in scans
        if (s["label"] == "healthy" if healthy else s.get("truth_voxels"))
        and s.get(source or "dice") is not None
    ]
    if not used:
        return np.full(1, np.nan)
    weights = np.stack([weight_of(s["subject"]) for s in used], axis=1).astype(float)
    if figure == "dice_pooled":
        top = weights @ np.array([2.0 * s["overlap_voxels"] for s in used])
        bottom = weights @ np.array([float(s["mask_voxels"] + s["truth_voxels"]) for s in used])
    else:
        top, bottom = weights @ np.array([float(s[source]) for s in used]), weights.sum(1)
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def bootstrap(
    runs: Sequence[tuple[Sequence[Row], Sequence[Row]]],
    figure: str,
    n_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap over subjects of a figure's mean over runs, (n_resamples,): the runs share each resample of subjects.

    NaN throughout where fewer than `MIN_SUBJECTS` subjects of a kind enter the figure: a bootstrap of so few says nothing.
    `runs` holds (scans, slices) per seed or fold. The same subjects, `seed` and `n_resamples` draw the same resamples, so
    that two models tested on the same subjects can be compared pair by pair.
    """
    labels: dict[str, str] = {}
    for scans, _ in runs:
        for s in scans:
            if s["label"] in ("healthy", "abnormal") and labels.get(s["subject"]) != "abnormal":
                labels[s["subject"]] = s["label"]
    kinds = (
        {"healthy", "abnormal"}
        if STATISTICS[figure] in READINGS
        else {"healthy" if figure in OF_HEALTHY else "abnormal"}
    )
    for kind in kinds:
        if (
            len({s["subject"] for scans, _ in runs for s in scans if s["label"] == kind})
            < MIN_SUBJECTS
        ):
            return np.full(n_resamples, np.nan)
    names = sorted(labels)
    counts, _ = resample_counts(names, [labels[n] for n in names], n_resamples, seed)
    place = {name: i for i, name in enumerate(names)}
    nobody = np.zeros(n_resamples, int)

    def weight_of(subject: str) -> np.ndarray:
        return counts[:, place[subject]] if subject in place else nobody

    values = [
        np.broadcast_to(resampled(scans, slices, figure, weight_of), n_resamples)
        for scans, slices in runs
    ]
    stack = np.stack(values)
    known = np.isfinite(stack)
    return np.divide(
        np.where(known, stack, 0).sum(0),
        known.sum(0),
        out=np.full(n_resamples, np.nan),
        where=known.any(0),
    )


def mean_and_sd(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation of the finite values; sd 0 for one value, NaN for none."""
    known = [float(v) for v in values if v is not None and np.isfinite(v)]
    if not known:
        return float("nan"), float("nan")
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0


def _mean(values: Sequence[float | None]) -> float:
    return mean_and_sd(values)[0]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
