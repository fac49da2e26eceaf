"""Thresholds and healthy reference of a trained model, from healthy validation scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from evaluation.metrics import VoxelHistogram
from pipelines.cohort.cases import Case, load, read_truth
from pipelines.detect.detector import Detector, NativeMap, scan_score
from pipelines.detect.points import Point, ScoredScan, operating_points
from pipelines.detect.run import HealthyReference, Run, seal, write_calibration

WHAT = {"map": "map", "model": "model's own scores", "cluster": "map's cluster enhancement"}
QUANTILES = (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def calibrate(
    detector: Detector, cases: Sequence[Case], tune: Sequence[Case] = ()
) -> tuple[dict[str, Point], HealthyReference, VoxelHistogram]:
    """Operating points, healthy reference and healthy voxels, from healthy validation cases.

    `tune` are labelled cases for the few-label operating point, and for nothing else here.
    """
    calibration = detector.config.calibration
    healthy = VoxelHistogram()
    scans: list[ScoredScan] = []
    for case in tqdm(cases, desc="healthy reference", unit="scan"):
        native = detector.map(load(case))
        values = native.map[native.brain]
        healthy.update(values, np.zeros(values.size, np.uint8))
        scans.append(_scored(case, native, calibration.score_fraction))

    tuned, labelled = _tuned(detector, tune)
    points = operating_points(healthy, scans, tuned, labelled, calibration)
    part = f"{calibration.score_fraction:.1%}"
    what = WHAT[calibration.score]
    reference = HealthyReference(
        score=f"mean of the highest {part} of the {what} inside the brain",
        scans=sorted(scans, key=lambda s: s.score),
        voxel_quantiles={str(q): float(healthy.quantile(q)) for q in QUANTILES},
    )
    return points, reference, healthy


def _scored(case: Case, native: NativeMap, fraction: float, label: str | None = None) -> ScoredScan:
    fields = {} if label is None else {"label": label}
    highest = float(native.map[native.brain].max(initial=0.0))
    return ScoredScan(id=case.id, score=scan_score(native, fraction), maximum=highest, **fields)


def _tuned(
    detector: Detector, tune: Sequence[Case]
) -> tuple[list[ScoredScan], VoxelHistogram | None]:
    """Labelled scans with their scores, and their voxels where one of them has a lesion mask."""
    scans: list[ScoredScan] = []
    labelled = VoxelHistogram()
    masks = 0
    for case in tqdm(tune, desc="labelled scans", unit="scan", disable=not tune):
        native = detector.map(load(case))
        scans.append(_scored(case, native, detector.config.calibration.score_fraction, case.label))
        lesions = read_truth(case, native.grid)
        if lesions is not None and case.lesions:
            labelled.update(native.map[native.brain], lesions[native.brain] > 0)
            masks += 1
    return scans, labelled if masks else None


def calibrate_run(run: Run, cases: Sequence[Case], tune: Sequence[Case] = ()) -> None:
    """Calibrate a trained run anew on healthy `cases`, and write that into its folder."""
    points, reference, healthy = calibrate(run.detector, cases, tune)
    write_calibration(run.folder, points, reference, healthy, run.config.calibration.point)
    seal(run.folder)
