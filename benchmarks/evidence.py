"""What of a map tells sick from healthy scans: `python -m benchmarks.evidence --help`.

The comparison was made by folds and holds maps of its test scans. For each model and fold two
things are measured on the fold's test scans, then the mean over folds is taken:

- AUROC of several scores of the whole scan. Standardised ones take mean and deviation from the
  healthy validation scans of the fold.
- the share of abnormal and of healthy scans with a finding, by what a component must be strong in
  and where it is outlined. Levels come from the same healthy validation scans.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.checks import bounding_box
from evaluation.postprocess import Strength, binarise, cluster_enhanced, strengths
from evaluation.thresholds import healthy_level
from pipelines import cli
from pipelines.cohort.cases import Case, read_cases
from pipelines.detect.detector import NativeMap, top_mean
from pipelines.detect.run import Run, load_run
from pipelines.study.evaluate import cases_to_test
from preprocessing.files import write_json
from preprocessing.images import array_axis

TAILS = {"highest 1 %": 0.01, "highest 0.1 %": 0.001, "highest voxel": 0.0}
OUTLINES = (0.99, 0.998)  # quantiles of healthy voxels
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparison", required=True, type=Path, help="OUT of make compare")
    parser.add_argument("--data", required=True, type=Path, help="the cohort that it tested on")
    parser.add_argument("--models", required=True, help='such as "intensity atlas"')
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()

    figures: dict[str, Figures] = {}
    for model in arguments.models.split():
        folds = sorted(arguments.comparison.glob(f"{model}/repeat-*"))
        found = [of_fold(load_run(fold, "cpu"), arguments.data) for fold in folds]
        figures[model] = over_folds(found)
        print(model, figures[model], flush=True)
        write_json(arguments.out, {"data": arguments.data.name, "figures": figures})


def over_folds(found: Sequence[Figures]) -> Figures:
    """The mean of each figure over folds."""
    means: Figures = {}
    for name in found[0]:
        means[name] = round(float(np.mean([fold[name] for fold in found])), 3)
    return means


def of_fold(run: Run, data: Path) -> Figures:
    """Every figure over the test scans of one run."""
    cases = cases_to_test(run, data)
    validation = {scan.id for scan in run.reference.scans}
    healthy = [case for case in read_cases(data) if case.id in validation]
    with tempfile.TemporaryDirectory() as folder:
        usual = [(tails(m), strongest(m, run)) for m in maps(run, healthy, Path(folder))]
    usual_tails = np.array([found for found, _ in usual])
    usual_strongest = [found for _, found in usual]

    stored = run.folder / "evaluation" / data.name / "maps"
    scores = []
    findings = []
    for native in maps(run, cases, stored):
        scores.append(scores_of(native, usual_tails))
        findings.append(strongest(native, run))
    abnormal = np.array([case.label == "abnormal" for case in cases])

    figures: Figures = {}
    for name in scores[0]:
        figures[f"AUROC, {name}"] = roc_auc_score(abnormal, [row[name] for row in scores])
    for name in findings[0]:
        level = healthy_level(np.array([row[name] for row in usual_strongest]), 0.1)
        marked = np.array([row[name] > level.value for row in findings])
        figures[f"abnormal scans with a finding, {name}"] = marked[abnormal].mean()
        figures[f"healthy scans with a finding, {name}"] = marked[~abnormal].mean()
    figures["healthy scans with a finding, promised"] = level.alarm_rate
    return figures


def maps(run: Run, cases: Sequence[Case], folder: Path) -> Iterator[NativeMap]:
    """The maps of some cases, one at a time; stored in `folder`."""
    return (run.detector.map_case(case, folder, run.weights_digest) for case in cases)


def scores_of(native: NativeMap, usual: np.ndarray) -> Figures:
    """Several scores of one scan; `usual` (N, 8) are `tails` of healthy scans."""
    values = native.map[native.brain]
    scores = {name: top_mean(values, part) for name, part in TAILS.items()}
    enhanced = cluster_enhanced(native.map, native.spacing)[native.brain]
    scores["cluster enhancement, highest 0.1 %"] = top_mean(enhanced, 0.001)

    eighths = tails(native)
    scores["worst eighth, highest 1 %"] = float(eighths.max())
    apart = (eighths - usual.mean(0)) / usual.std(0, ddof=1)
    scores["worst eighth against healthy ones, highest 1 %"] = float(apart.max())
    one, other = eighths.reshape(2, 4)
    scores["two sides apart, highest 1 %"] = float(np.abs(one - other).max())
    return scores


def tails(native: NativeMap) -> np.ndarray:
    """Mean of the highest 1 % of the map in each eighth of the brain (8,), one side first."""
    box = bounding_box(native.brain)
    assert box is not None
    left_right = array_axis(native.grid.affine, 0)
    axes = [left_right, *(axis for axis in range(3) if axis != left_right)]
    halves = []
    for axis in axes:
        side = box[axis]
        middle = (side.start + side.stop) // 2
        halves.append((slice(side.start, middle), slice(middle, side.stop)))

    values = native.map.transpose(axes)
    brain = native.brain.transpose(axes)
    eighths = itertools.product(*halves)
    return np.array([top_mean(values[part][brain[part]], 0.01) for part in eighths])


def strongest(native: NativeMap, run: Run) -> Figures:
    """How strong a scan's strongest component is, by outline and by what it is strong in."""
    rules = run.config.postprocess
    found: Figures = {}
    for quantile in OUTLINES:
        low = run.healthy_voxels.quantile(quantile)
        marked = binarise(
            native.map,
            native.brain,
            native.spacing,
            low,
            rules.closing_mm,
            rules.min_volume_mm3,
        )
        for kind in get_args(Strength):
            values = strengths(marked, native.map, native.spacing, low, kind)
            found[f"{kind}, outline {quantile}"] = float(values.max(initial=0.0))
    return found


if __name__ == "__main__":
    cli.leave(main)
