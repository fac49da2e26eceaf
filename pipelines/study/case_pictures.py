"""Pictures of the test scans that tell most: the best, the median, the worst, and healthy ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.figures.plots import Layers, case_figure
from pipelines.cohort.cases import Case, load, read_truth
from pipelines.detect.detector import NativeMap
from pipelines.detect.points import Point
from pipelines.detect.run import Run
from pipelines.study.evaluation import Evaluation, ScanRow
from preprocessing.register import carry_mask, resample

Images = Sequence[tuple[str, bytes]]
"""Captions and PNG."""

SMALLEST_TOP = 1e-6  # a map that is 0 everywhere still needs a colour scale


def case_images(
    run: Run, cases: Sequence[Case], native_of: Callable[[Case], NativeMap], result: Evaluation
) -> Images:
    """A caption and a picture of each telling case."""
    rows = {row["id"]: row for row in result.scans}
    images: list[tuple[str, bytes]] = []
    for case in telling_cases(cases, result.scans):
        native = native_of(case)
        png = case_picture(run, case, native, result.point)
        images.append((caption(rows[case.id]), png))
    return images


def telling_cases(cases: Sequence[Case], rows: Sequence[ScanRow]) -> list[Case]:
    """Best, median and worst abnormal cases, by Dice or else by score; two healthy ones.

    The healthy ones are those with the median and the highest score.
    """
    with_dice = [row for row in rows if row.get("truth_voxels")]
    abnormal = sorted((row for row in rows if row["label"] == "abnormal"), key=_score)
    if with_dice:
        abnormal = sorted(with_dice, key=_dice)
    healthy = sorted((row for row in rows if row["label"] != "abnormal"), key=_score)

    names: dict[str, None] = {}
    for group, places in ((abnormal, (1, 0.75, 0.5, 0.25, 0)), (healthy, (0.5, 1))):
        for place in places if group else ():
            names.setdefault(group[round(place * (len(group) - 1))]["id"])
    by_id = {case.id: case for case in cases}
    return [by_id[name] for name in names]


def _score(row: ScanRow) -> float:
    return row["score"]


def _dice(row: ScanRow) -> float:
    dice = row["dice"]
    assert dice is not None  # of a scan with a lesion it is always defined
    return dice


def caption(row: ScanRow) -> str:
    """A scan in a line: label, pathology, score, percentile, Dice."""
    what = f"{row['label'] or 'no label'} {row['pathology']}".strip()
    text = f"{row['id']}: {what}, score {row['score']:.4g} (percentile {row['percentile']:.0f})"
    dice = row.get("dice")
    return f"{text}, Dice {dice:.3f}" if dice is not None and np.isfinite(dice) else text


def case_picture(run: Run, case: Case, native: NativeMap, at: Point) -> bytes:
    """Input, reconstruction, map, what is marked and the lesions, in atlas space, RAS+."""
    prepared = load(case)
    onto = prepared.grid
    scan_from_atlas = prepared.scan_from_atlas
    marked, _ = run.marked(native, at, scan_from_atlas)
    labels = read_truth(case, native.grid)
    lesions = None
    if labels is not None and labels.any():
        lesions = carry_mask(labels > 0, native.grid, onto, scan_from_atlas)

    further = case.read_sidecar().get("further", [])
    channels = prepared.channels
    layers = Layers(
        anomaly_map=resample(native.map, native.grid, onto, scan_from_atlas),
        map_max=max(run.reference.voxel_quantiles["0.999"], SMALLEST_TOP),
        marked=carry_mask(marked, native.grid, onto, scan_from_atlas),
        lesions=lesions,
        brain=prepared.brain,
        reconstruction=run.detector.reconstruction(prepared.image, prepared.brain),
        sequences={f["suffix"]: channels[i] for i, f in enumerate(further, start=1)},
    )
    return case_figure(channels[0], layers, spacing=(1, 1, 1), title=case.id)
