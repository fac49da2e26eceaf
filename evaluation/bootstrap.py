"""Bootstrap over subjects of the protocol's figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.protocol import READINGS, Row, columns, pairs
from evaluation.statistics import resample_counts, weighted_auroc, weighted_average_precision

MIN_SUBJECTS = 5  # of a kind: resamples of fewer are too much alike for an interval
OF_HEALTHY = ("healthy_false_positive_ml",)
Runs = Sequence[tuple[Sequence[Row], Sequence[Row]]]
"""Scans and slices of each seed or fold."""

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
    """Return a figure of `STATISTICS` for every resample, (B,); NaN where it is not defined.

    `weight_of` gives a subject's counts (B,). Where nothing enters the figure, one NaN (1,) is
    returned.
    """
    source = STATISTICS[figure]
    if source in READINGS:
        compared = pairs(scans, slices, source)
        if not compared:
            return np.full(1, np.nan)
        weights = np.stack([weight_of(scan["subject"]) for scan, _, _ in compared], axis=1)
        weighted = weighted_average_precision if figure.endswith("_ap") else weighted_auroc
        return weighted(*columns(compared), weights)

    used = _scans_of_figure(scans, figure)
    if not used:
        return np.full(1, np.nan)
    weights = np.stack([weight_of(scan["subject"]) for scan in used], axis=1).astype(float)
    if figure == "dice_pooled":
        overlap = np.array([2.0 * scan["overlap_voxels"] for scan in used])
        both = np.array([float(scan["mask_voxels"] + scan["truth_voxels"]) for scan in used])
        top = weights @ overlap
        bottom = weights @ both
    else:
        top = weights @ np.array([float(scan[source]) for scan in used])
        bottom = weights.sum(1)
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def _scans_of_figure(scans: Sequence[Row], figure: str) -> list[Row]:
    """Return the scans that have what a figure averages: healthy ones, or those with a lesion."""
    if figure in OF_HEALTHY:
        used = [scan for scan in scans if scan["label"] == "healthy"]
    else:
        used = [scan for scan in scans if scan.get("truth_voxels")]
    measured = STATISTICS[figure] or "dice"
    return [scan for scan in used if scan.get(measured) is not None]


def bootstrap(
    runs: Runs,
    figure: str,
    n_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap over subjects a figure's mean over runs, (n_resamples,).

    `runs` holds (scans, slices) per seed or fold; the runs share each resample of subjects. The
    same subjects, `seed` and `n_resamples` draw the same resamples, so that two models tested on
    the same subjects can be compared pair by pair. NaN throughout where fewer than `MIN_SUBJECTS`
    subjects of a kind enter the figure: a bootstrap of so few says nothing.
    """
    if _too_few_subjects(runs, figure):
        return np.full(n_resamples, np.nan)
    labels = _label_of_subject(runs)
    names = sorted(labels)
    counts, _ = resample_counts(names, [labels[name] for name in names], n_resamples, seed)
    index = {name: i for i, name in enumerate(names)}
    nobody = np.zeros(n_resamples, int)

    def weight_of(subject: str) -> np.ndarray:
        return counts[:, index[subject]] if subject in index else nobody

    of_runs = [resampled(scans, slices, figure, weight_of) for scans, slices in runs]
    values = np.stack([np.broadcast_to(of_run, n_resamples) for of_run in of_runs])
    known = np.isfinite(values)
    return np.divide(
        np.where(known, values, 0).sum(0),
        known.sum(0),
        out=np.full(n_resamples, np.nan),
        where=known.any(0),
    )


def _too_few_subjects(runs: Runs, figure: str) -> bool:
    """Whether fewer than `MIN_SUBJECTS` subjects of a kind that a figure needs were tested."""
    if STATISTICS[figure] in READINGS:
        kinds = {"healthy", "abnormal"}
    else:
        kinds = {"healthy" if figure in OF_HEALTHY else "abnormal"}
    for kind in kinds:
        subjects: set[str] = set()
        for scans, _ in runs:
            subjects.update(scan["subject"] for scan in scans if scan["label"] == kind)
        if len(subjects) < MIN_SUBJECTS:
            return True
    return False


def _label_of_subject(
    runs: Runs,
) -> dict[str, str]:
    """Return the label of each subject: abnormal if any of its scans is."""
    labels: dict[str, str] = {}
    for scans, _ in runs:
        for scan in scans:
            known = scan["label"] in ("healthy", "abnormal")
            if known and labels.get(scan["subject"]) != "abnormal":
                labels[scan["subject"]] = scan["label"]
    return labels
