"""The protocol: every figure of a run from its scans, slices and voxels (see docs/evaluation.md).

A scan is a dictionary with "id", "subject", "label" ("healthy", "abnormal" or ""), "score", and
what was measured on its own grid inside its brain. A slice has "id" ("<scan>/<index>"), "label"
(0, 1 or None) and "score". Every function here takes them as they stand in a results file, so
anyone can compute the figures again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation import lesions as lesion_metrics
from evaluation import mood
from evaluation.metrics import VoxelHistogram, auroc, average_precision, classification, share
from evaluation.thresholds import best_f1

Row = Mapping[str, Any]
READINGS = ("scan", "slicewise", "clinical_slicewise")
POINTS = ("share", "few-label")  # operating points at which scans are classified too
AT_POINTS = ("accuracy", "recall", "precision", "f1")
LABELS = {
    "scan_auroc": "AUROC per scan",
    "scan_ap": "AP per scan (the sample-level rule of MOOD)",
    "slicewise_auroc": (
        "AUROC per slice, slicewise (abnormal slices against slices of healthy scans)"
    ),
    "slicewise_ap": "AP per slice, slicewise",
    "clinical_slicewise_auroc": (
        "AUROC per slice, clinical slicewise (every slice of an abnormal scan counts as abnormal)"
    ),
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
    "f1_few_label": (
        "F1 per scan at the few-label point (best F1 on a labelled validation set: has seen labels)"
    ),
    "oracle_f1": "oracle F1 per scan (best threshold, chosen with the test labels: not achievable)",
    "dice_mean": "Dice, mean per scan, at the operating point",
    "dice_pooled": "Dice, voxels of all scans pooled, at the operating point",
    "oracle_dice_pooled": (
        "oracle Dice, pooled (best threshold, chosen with the test labels: not achievable)"
    ),
    "voxel_ap": "voxel AP inside the brain, pooled",
    "voxel_ap_mean": "voxel AP inside the brain, mean per scan",
    "voxel_auroc": "voxel AUROC inside the brain, pooled",
    "pixel_ap": (
        "pixel AP by the rule of MOOD (all voxels of all scans: background and healthy scans count)"
    ),
    "voxel_prevalence": "share of lesion voxels inside the brain (the voxel AP of chance)",
    "hd95_mean": "95th percentile Hausdorff distance, mm, mean per scan where something is marked",
    "hd95_undefined": "scans with a lesion and nothing marked (no Hausdorff distance)",
    "peak_in_lesion": "scans with a lesion whose map is highest inside one",
    "peak_mm": "distance of the map's highest voxel from a lesion, mm, median over scans",
    "lesion_sensitivity": "lesions found (at least 10 % covered)",
    "lesion_precision": "marked components that are lesions",
    "found_at_1": "lesions found at one false finding per scan (read off the test scans)",
    "found_at_1_from_1_ml": "lesions from 1 ml on found at one false finding per scan",
    "found_at_0_1": "lesions found at 0.1 false findings per scan",
    "abnormal_with_finding": "abnormal scans with a finding at the operating point",
    "healthy_with_finding": "healthy scans with a finding at the operating point",
    "false_findings": "false findings per healthy scan",
    "healthy_false_positive_ml": "false-positive ml per healthy scan",
    "healthy_voxel_fpr": (
        "share of healthy brain voxels above the threshold, realised on the test scans"
    ),
}


def pairs(
    scans: Sequence[Row], slices: Sequence[Row], reading: str
) -> list[tuple[Row, int, float]]:
    """Return (its scan, label, score) of all that a reading compares.

    - "scan": scans.
    - "slicewise": the abnormal slices of abnormal scans with all slices of healthy scans. A healthy
      slice of an abnormal scan stands on neither side.
    - "clinical_slicewise": every slice of an abnormal scan counts as abnormal.
    """
    known = {scan["id"]: scan for scan in scans if scan["label"] in ("healthy", "abnormal")}
    if reading == "scan":
        return [(scan, int(scan["label"] == "abnormal"), scan["score"]) for scan in known.values()]

    compared = []
    for one in slices:
        scan = known.get(scan_of(one))
        if scan is None:
            continue
        abnormal = scan["label"] == "abnormal"
        if reading == "clinical_slicewise" or not abnormal or one["label"] == 1:
            compared.append((scan, int(abnormal), one["score"]))
    return compared


def scan_of(slice_: Row) -> str:
    """Return the id of a slice's scan."""
    return slice_["id"].rpartition("/")[0]


def columns(compared: Sequence[tuple[Row, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels of `pairs` as arrays (n,)."""
    scores = np.array([score for _, _, score in compared], float)
    labels = np.array([label for _, label, _ in compared], int)
    return scores, labels


def summarise(
    scans: Sequence[Row],
    slices: Sequence[Row],
    voxels: VoxelHistogram,
    scan_threshold: float,
    points: Mapping[str, float] | None = None,
    others: VoxelHistogram | None = None,
) -> dict[str, float]:
    """Return every figure of `LABELS` and the counts behind them.

    NaN where the labels do not define a figure. `voxels` are those of the scans with a lesion mask.
    `others` are all further voxels without lesion, None in files of before they were counted.
    `points` are the scan thresholds of other operating points ("share", "few-label"), at which
    scans are classified too. A scan without lesion has no Dice: it is judged by what is marked.
    """
    healthy = [scan for scan in scans if scan["label"] == "healthy"]
    with_lesion = [scan for scan in scans if scan.get("truth_voxels")]
    result: dict[str, float] = {
        "n_scans": len(scans),
        "n_healthy": len(healthy),
        "n_abnormal": sum(scan["label"] == "abnormal" for scan in scans),
        "n_with_lesion_mask": len(with_lesion),
    }
    for reading in READINGS:
        scores, labels = columns(pairs(scans, slices, reading))
        result[f"{reading}_auroc"] = auroc(scores, labels)
        result[f"{reading}_ap"] = average_precision(scores, labels)
    return (
        result
        | _figures_of_classification(scans, scan_threshold, points or {})
        | _figures_of_masks(with_lesion, voxels)
        | {"pixel_ap": _pixel_ap(with_lesion, voxels, others)}
        | _figures_of_findings(scans)
        | {
            "found_at_1": found_at(scans, 1.0),
            "found_at_1_from_1_ml": found_at(scans, 1.0, least_ml=1.0),
            "found_at_0_1": found_at(scans, 0.1),
        }
        | _figures_of_healthy(healthy)
    )


def _figures_of_classification(
    scans: Sequence[Row], threshold: float, points: Mapping[str, float]
) -> dict[str, float]:
    """Return the figures of scans that are classified at a threshold, at `points`, at the best."""
    scores, labels = columns(pairs(scans, [], "scan"))
    result = _classified(scores, labels, threshold)
    for name in POINTS:
        at_point = _classified(scores, labels, points.get(name, float("nan")))
        for figure in AT_POINTS:
            result[f"{figure}_{name.replace('-', '_')}"] = at_point[figure]

    both = 0 < labels.sum() < labels.size
    result["oracle_f1"] = best_f1(scores, labels)[1] if both else float("nan")
    return result


def _classified(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return `classification`; NaN throughout without a threshold or one of the classes."""
    defined = bool(np.isfinite(threshold)) and 0 < labels.sum() < labels.size
    found = classification(scores, labels, threshold if defined else 0.0)
    return found if defined else dict.fromkeys(found, float("nan"))


def _figures_of_masks(with_lesion: Sequence[Row], voxels: VoxelHistogram) -> dict[str, float]:
    """Return the figures of the scans with a lesion mask, and of their voxels."""
    lesions: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for scan in with_lesion:
        lesions += scan["lesions"]
        candidates += scan["candidates"]
    unmarked = sum(not scan["mask_voxels"] for scan in with_lesion)
    overlap = sum(scan["overlap_voxels"] for scan in with_lesion)
    both = sum(scan["mask_voxels"] + scan["truth_voxels"] for scan in with_lesion)

    oracle, oracle_threshold = voxels.oracle_dice()
    n_lesion = voxels.counts[1].sum()
    prevalence = float(n_lesion / voxels.counts.sum()) if n_lesion else float("nan")
    return {
        "dice_mean": _mean([scan["dice"] for scan in with_lesion]),
        "dice_pooled": share(2 * overlap, both),
        "oracle_dice_pooled": oracle,
        "oracle_threshold": oracle_threshold,
        "voxel_ap": voxels.average_precision(),
        "voxel_ap_mean": _mean([scan["voxel_ap"] for scan in with_lesion]),
        "voxel_auroc": voxels.auroc(),
        "voxel_prevalence": prevalence,
        "hd95_mean": _mean([scan["hd95"] for scan in with_lesion]),
        "hd95_undefined": float(unmarked) if with_lesion else float("nan"),
        **_figures_of_peaks(with_lesion),
        "lesion_sensitivity": _mean([float(lesion["score"] > 0) for lesion in lesions]),
        "lesion_precision": lesion_metrics.precision(candidates),
    }


def _pixel_ap(
    with_lesion: Sequence[Row], voxels: VoxelHistogram, others: VoxelHistogram | None
) -> float:
    """Return the pixel AP of MOOD; lesion voxels outside of a brain count as not found."""
    if others is None:
        return float("nan")
    outside = sum(scan["truth_voxels"] for scan in with_lesion) - int(voxels.counts[1].sum())
    return mood.pooled_pixel_ap(voxels, others, outside)


def _figures_of_peaks(with_lesion: Sequence[Row]) -> dict[str, float]:
    """Return where maps are highest; NaN for files of before that was measured."""
    found = [scan.get("peak_mm") for scan in with_lesion]
    known = np.array([v for v in found if v is not None and np.isfinite(v)], float)
    if known.size == 0:
        return {"peak_in_lesion": float("nan"), "peak_mm": float("nan")}
    return {"peak_in_lesion": float((known == 0).mean()), "peak_mm": float(np.median(known))}


def found_at(scans: Sequence[Row], rate: float, least_ml: float = 0.0) -> float:
    """Return the share of lesions found where `rate` false findings per scan are let through.

    It is a point of the free-response ROC of all scans whose lesions are known, healthy ones too:
    outlines stay, and the level that a finding must exceed is lowered. A lesion has the strength of
    the strongest finding that touches it, 0 where findings cover too little of it. Lesions smaller
    than `least_ml` do not count. NaN without lesions, and for files of before this was measured.
    """
    lesions = strong_above(scans, rate)
    return _mean([float(found["score"] > 0) for found in lesions if found["volume_ml"] >= least_ml])


def strong_above(scans: Sequence[Row], rate: float) -> list[dict[str, Any]]:
    """Return all lesions, with score 0 where `found_at` does not find them."""
    known = [scan for scan in scans if scan.get("truth_voxels") is not None]
    lesions: list[dict[str, Any]] = []
    outlined: list[dict[str, Any]] = []
    for scan in known:
        lesions += scan.get("lesions", [])
        outlined += scan.get("outlined", [])
    if not lesions or any(lesion.get("strength") is None for lesion in lesions):
        return []
    level = lesion_metrics.level_at(outlined, len(known), rate)
    return [
        lesion | {"score": lesion["strength"] if lesion["strength"] > level else 0.0}
        for lesion in lesions
    ]


def _figures_of_findings(scans: Sequence[Row]) -> dict[str, float]:
    """Return how many scans of a kind have a finding; NaN for files of before they were counted."""
    found: dict[str, list[float]] = {"healthy": [], "abnormal": []}
    for scan in scans:
        if scan["label"] in found and scan.get("findings") is not None:
            found[scan["label"]].append(float(scan["findings"]))
    return {
        "abnormal_with_finding": _mean([float(count > 0) for count in found["abnormal"]]),
        "healthy_with_finding": _mean([float(count > 0) for count in found["healthy"]]),
        "false_findings": _mean(found["healthy"]),
    }


def _figures_of_healthy(healthy: Sequence[Row]) -> dict[str, float]:
    """Return what is marked in vain in healthy scans."""
    above = sum(scan["above_voxels"] for scan in healthy)
    brain = sum(scan["brain_voxels"] for scan in healthy)
    return {
        "healthy_false_positive_ml": _mean([scan["false_positive_ml"] for scan in healthy]),
        "healthy_voxel_fpr": float(share(above, brain)),
    }


def classes(scans: Sequence[Row], slices: Sequence[Row], column: str) -> list[dict[str, Any]]:
    """Return one record per class of a column of the scan table, or of the slice table.

    Its figures are those of the class against all healthy scans. A cell may name several classes,
    joined by "+". "n" counts scans. "n_slices" counts abnormal slices: those of the class where the
    slice table has the column, else those of its scans. AUROC is per scan and slicewise. Dice and
    AP are means over the scans of the class that have a lesion mask.
    """
    names: set[str] = set()
    for record in (*scans, *slices):
        names.update(_classes(record, column))
    of_slices = any(column in one for one in slices)
    healthy = [scan for scan in scans if scan["label"] == "healthy"]
    healthy_ids = {scan["id"] for scan in healthy}
    healthy_slices = [one for one in slices if scan_of(one) in healthy_ids]

    table = []
    for name in sorted(names):
        abnormal, its_slices = _of_class(scans, slices, column, name, of_slices)
        if not abnormal:
            continue
        by_scan = pairs([*healthy, *abnormal], [], "scan")
        by_slice = pairs([*healthy, *abnormal], [*healthy_slices, *its_slices], "slicewise")
        with_lesion = [scan for scan in abnormal if scan.get("truth_voxels")]
        table.append(
            {
                "class": name,
                "n": len(abnormal),
                "n_slices": sum(one["label"] == 1 for one in its_slices),
                "scan_auroc": auroc(*columns(by_scan)),
                "slicewise_auroc": auroc(*columns(by_slice)),
                "dice_mean": _mean([scan["dice"] for scan in with_lesion]),
                "voxel_ap_mean": _mean([scan["voxel_ap"] for scan in with_lesion]),
            }
        )
    return table


def _of_class(
    scans: Sequence[Row], slices: Sequence[Row], column: str, name: str, of_slices: bool
) -> tuple[list[Row], list[Row]]:
    """Return the abnormal scans of a class and its slices; `of_slices`: slices name their class."""
    abnormal = [scan for scan in scans if scan["label"] == "abnormal"]
    named = [scan for scan in abnormal if name in _classes(scan, column)]
    if not of_slices:
        ids = {scan["id"] for scan in named}
        return named, [one for one in slices if scan_of(one) in ids]

    its_slices = [one for one in slices if name in _classes(one, column)]
    inside = {scan_of(one) for one in its_slices}
    return named or [scan for scan in abnormal if scan["id"] in inside], its_slices


def _classes(record: Row, column: str) -> list[str]:
    """Return the classes that a scan or slice names; none for a healthy one."""
    if record.get("label") in ("healthy", 0):
        return []
    value = str(record.get(column) or "")
    return [part.strip() for part in value.split("+") if part.strip()]


def mean_and_sd(values: Sequence[float | None]) -> tuple[float, float]:
    """Return mean and sample sd of the finite values; sd is 0 for one value, both NaN for none."""
    known = [float(value) for value in values if value is not None and np.isfinite(value)]
    if not known:
        return float("nan"), float("nan")
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return float(np.mean(known)), sd


def _mean(values: Sequence[float | None]) -> float:
    return mean_and_sd(values)[0]
