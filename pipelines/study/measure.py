"""One test scan measured: its figures, those of its slices, and its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.measure import label

from evaluation import lesions as lesion_metrics
from evaluation.metrics import VoxelHistogram, dice, false_positive_ml
from evaluation.thresholds import percentile_of
from pipelines.cohort.cases import Case, load, read_truth
from pipelines.detect.detector import (
    NativeMap,
    cut,
    only_strong,
    scan_score,
    slice_scores,
    strengths,
)
from pipelines.detect.points import Point
from pipelines.detect.run import Run
from pipelines.study.evaluation import ScanRow, SliceRow
from preprocessing.files import read_table
from preprocessing.images import array_axis


def evaluate_scan(
    run: Run, case: Case, native: NativeMap, at: Point, by: Sequence[str] = ()
) -> tuple[ScanRow, list[SliceRow], VoxelHistogram, VoxelHistogram]:
    """All that one scan measures on its own grid inside its brain.

    Gives its row, the rows of its slices, its voxels, and those `elsewhere`. A scan without a mask
    file has no voxel truth: where it is labelled healthy everything marked is false. `by` are
    columns of the table.
    """
    weak = marked_in(run, case, native, at.model_copy(update={"component": None}))
    marked = only_strong(native, weak, at)
    if run.memory:
        marked = marked_in(run, case, native, at)
    labels = read_truth(case, native.grid)
    lesions = None if labels is None else labels > 0
    score = _digits(scan_score(native, run.config.calibration.score_fraction))

    row: dict[str, Any] = {
        "id": case.id,
        "subject": case.subject,
        "label": case.label,
        "pathology": case.pathology,
    }
    for name in by:
        value = case.column(name)
        if value is not None:
            row[name] = value
    row |= {
        "score": score,
        "percentile": percentile_of(score, run.healthy_scores),
        "marked_ml": float(marked.sum()) * _voxel_ml(native),
        "brain_ml": _digits(float(native.brain.sum()) * _voxel_ml(native)),
        "spacing_mm": _digits(float(max(native.spacing))),
        "brain_voxels": int(native.brain.sum()),
        "above_voxels": int((native.map[native.brain] > at.voxel).sum()),
        "mask_voxels": int(marked.sum()),
        "findings": strengths(native, marked, at).size,
    }

    voxels = VoxelHistogram()
    if labels is not None and lesions is not None:
        voxels.update(native.map[native.brain], lesions[native.brain])
        row |= _against_truth(native, marked, labels, voxels)
        row |= _by_strength(native, weak, labels, at, row["lesions"])
    slices = _slice_rows(run, case, native, lesions, by)
    return row, slices, voxels, elsewhere(case, native, lesions)  # type: ignore[return-value]


def elsewhere(case: Case, native: NativeMap, lesions: np.ndarray | None) -> VoxelHistogram:
    """The voxels without lesion that the voxel AP leaves out, and the rule of MOOD does not.

    They lie outside the brain of a scan with a mask, and anywhere in a healthy one without.
    """
    voxels = VoxelHistogram()
    outside = ~native.brain
    if lesions is not None:
        outside &= ~lesions
    elif case.label == "healthy":
        inside = native.map[native.brain]
        voxels.update(inside, np.zeros(inside.size, int))
    else:
        return voxels
    voxels.counts[0, 0] += np.count_nonzero(outside)  # a map is 0 there
    return voxels


def marked_in(run: Run, case: Case, native: NativeMap, at: Point) -> np.ndarray:
    """What a run marks (bool) in a case, by its map on the scan's own grid."""
    if not run.memory:
        return cut(native, at, run.config.postprocess)
    return run.marked(native, at, load(case, image=False).scan_from_atlas)[0]


def _against_truth(
    native: NativeMap, marked: np.ndarray, labels: np.ndarray, voxels: VoxelHistogram
) -> dict[str, Any]:
    """Figures that need the lesions: `labels` int (X, Y, Z), 0 is none."""
    lesions = labels > 0
    figures: dict[str, Any] = {
        "dice": dice(marked, lesions),
        "hd95": lesion_metrics.hausdorff95(marked, lesions, native.spacing),
        "peak_mm": lesion_metrics.peak_distance_mm(native.map, lesions, native.spacing),
        "voxel_ap": voxels.average_precision(),
        "voxel_auroc": voxels.auroc(),
        "truth_ml": float(lesions.sum()) * _voxel_ml(native),
        "truth_voxels": int(lesions.sum()),
        "truth_outside_brain_ml": float((lesions & ~native.brain).sum()) * _voxel_ml(native),
        "overlap_voxels": int((marked & lesions).sum()),
        "false_positive_ml": false_positive_ml(marked, lesions, native.spacing),
    }
    matched = lesion_metrics.match(marked, native.map, labels, native.spacing)
    for kind, found in matched.items():
        figures[kind] = [_short_digits(finding) for finding in found]
    return figures


def _by_strength(
    native: NativeMap, weak: np.ndarray, labels: np.ndarray, at: Point, lesions: list[Any]
) -> dict[str, Any]:
    """Every component of a mask (bool) by its strength, whatever level that must pass; `lesions`.

    The score of a component is its strength by the rule of the point. A lesion gets as "strength"
    that of the strongest component that touches it, 0 where too little of it is covered.
    """
    pieces = label(weak, connectivity=3)
    painted = np.append(0.0, strengths(native, weak, at))[pieces]
    found = lesion_metrics.match(weak, painted, labels, native.spacing)
    with_strength: list[dict[str, Any]] = []
    for lesion, one in zip(lesions, found["lesions"], strict=True):
        with_strength.append(lesion | {"strength": _digits(one["score"])})
    outlined = [_short_digits(piece) for piece in found["candidates"]]
    return {"lesions": with_strength, "outlined": outlined}


def _slice_rows(
    run: Run, case: Case, native: NativeMap, lesions: np.ndarray | None, by: Sequence[str]
) -> list[SliceRow]:
    """A row per axial slice of the scan's own grid that shows brain.

    Labels come from the slice table, or else from the lesions (bool).
    """
    table: dict[int, dict[str, str]] = {}
    labels: dict[int, int] = {}
    if case.slice_labels:
        table = {int(entry["slice"]): entry for entry in read_table(case.slice_labels)}
        labels = {i: int(entry["label"]) for i, entry in table.items()}
    elif lesions is not None:
        axial = array_axis(native.grid.affine, 2)
        others = tuple(axis for axis in range(3) if axis != axial)
        shown = np.atleast_1d(lesions.any(axis=others))
        labels = {i: int(value) for i, value in enumerate(shown)}

    calibration = run.config.calibration
    scores = slice_scores(native, calibration.score_fraction, calibration.context)
    rows: list[SliceRow] = []
    for i, score in scores.items():
        known = {name: table[i][name] for name in by if i in table and table[i].get(name)}
        row = {"id": f"{case.id}/{i}", "label": labels.get(i), "score": _digits(score), **known}
        rows.append(row)  # type: ignore[arg-type]
    return rows


def _voxel_ml(native: NativeMap) -> float:
    return float(np.prod(native.spacing)) / 1000


def _short_digits(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: _digits(value) for key, value in finding.items()}


def _digits(value: Any) -> Any:
    """Seven significant digits, so that figures computed again from a file are the same."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
