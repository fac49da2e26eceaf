"""A run brought to another scanner by healthy scans of it: a child run that names its parent.

| way | what the scans change |
|---|---|
| calibration | thresholds and healthy reference alone |
| harmonise | intensities of new scans, by landmarks (Nyul and Udupa 1999) |
| adabn | means and variances of batch norms (Li et al. 2018) |
| finetune | weights of the last layers |
| fada | weights, by pairs with the parent's scans (Motiian et al. 2017) |

The parent stays as it is, so that leaving the child undoes it. Scans that adapted a network say
little of its thresholds: of ten or more every second one adapts, and the others calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.cohort.cases import Case, load
from pipelines.config import write_yaml
from pipelines.detect.config import Harmonise
from pipelines.detect.points import Point
from pipelines.detect.run import Run, write_calibration
from pipelines.detect.typical import BINS, FEWEST, describe, histogram, write_typical
from pipelines.training.calibrate import (
    begin_child,
    calibrate,
    child_run,
    demand_child,
    finish_child,
)
from pipelines.training.fada import coder_update, fada
from pipelines.training.relearn import Changed, adabn, batch_norms, finetune, trained_part
from preprocessing.files import read_json, write_atomic, write_json
from preprocessing.intensity import LANDMARKS
from preprocessing.scans import InputError

APART = float(BINS[1])  # landmarks that lie in one bin of the histogram are not told apart
SAME = "These scans also adapted the run, so the bound may be too low."
NONE = (
    "Nothing is promised: {n} healthy scans adapted the run, and calibration needs {least}; the "
    "thresholds are those of the parent."
)


def adapt(run: Run, cases: Sequence[Case], out: Path, how: str, source: Path | None = None) -> Run:
    """A child of a run in the folder `out`, adapted to healthy cases by a way of WAYS.

    `source` is the cohort that the parent learned from, for "fada". With fewer than 5 cases the
    thresholds stay the parent's. InputError as `child_run` and `demand_way`.
    """
    if how == "calibration":
        return child_run(run, cases, out)
    demand_way(run, how, source)
    demand_child(run, cases, out, how)
    adapting, calibrating = shared_out(cases)
    detector, details = WAYS[how](run, adapting, source)
    calibrated = calibrate([(detector, calibrating)]) if calibrating else None

    made = {
        "adapted": {"how": how, "scans": [case.id for case in adapting], **details},
        "calibrated_on": [case.id for case in calibrating],
    }
    begin_child(run, cases, out, made)
    write_atomic(out / "config.yaml", write_yaml(detector.config))
    if calibrated:
        points, reference, healthy = calibrated
        if adapting == calibrating:
            points = {name: cautioned(point) for name, point in points.items()}
        write_calibration(out, points, reference, healthy, run.config.calibration.point)
        write_typical(describe(calibrating), out)
    else:
        _promise_nothing(out, len(cases))
    return finish_child(run, detector, out)


def shared_out(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Which cases adapt a run, and which calibrate it: the same ones where they are few."""
    cases = list(cases)
    if len(cases) >= 2 * FEWEST:
        return cases[::2], cases[1::2]
    return cases, cases if len(cases) >= FEWEST else []


def cautioned(point: Point) -> Point:
    """A point whose promise says that its scans adapted the run too."""
    if not point.promise:
        return point
    return point.model_copy(update={"promise": f"{point.promise} {SAME}"})


def _promise_nothing(out: Path, count: int) -> None:
    """Keep the parent's thresholds in a child's folder, and its promises not."""
    path = out / "threshold.json"
    threshold = read_json(path)
    for point in [threshold, *threshold["points"].values()]:
        if not point.get("refused"):
            point["promise"] = NONE.format(n=count, least=FEWEST)
    write_json(path, threshold)


def demand_way(run: Run, how: str, source: Path | None = None) -> None:
    """InputError where a run cannot be adapted by a way, before any scan is looked at."""
    if how != "calibration" and "parent" in run.history:
        raise InputError(
            f"{run.folder}: is itself a child of '{run.history['parent']['run']}'; adapt that one."
        )
    if how == "harmonise":
        _demand_histogram(run)
    if how == "adabn" and not batch_norms(run.model):
        raise InputError(
            f"{run.folder}: '{run.config.name}' has no batch norm that was trained, so adabn has "
            "nothing to change; take HOW=harmonise."
        )
    if how == "finetune":
        trained_part(run, run.model)
    if how == "fada":
        coder_update(run, trained_part(run, run.model))
    if (how == "fada") != bool(source):
        raise InputError(
            "HOW=fada needs SOURCE=, the preprocessed cohort that the run learned from, and no "
            "other way does."
        )


def harmonise(run: Run, cases: Sequence[Case], source: Path | None = None) -> Changed:
    """Bring the intensities of new scans to those of the training scans, by landmarks.

    Landmarks are percentiles of the mean histogram inside the brain. typical.json of the run holds
    that of the training scans.
    """
    assert run.typical
    theirs = np.mean([histogram(load(case)) for case in cases], axis=0)
    pieces = pieces_between(landmarks(theirs), landmarks(np.array(run.typical.histogram)))
    config = run.config.model_copy(update={"harmonise": pieces})
    return replace(run.detector, config=config), {"percentiles": list(LANDMARKS)}


def landmarks(shares: np.ndarray) -> np.ndarray:
    """The intensities (11,) at the percentiles LANDMARKS of a histogram (64,) over [0, 1]."""
    below = np.append(0, np.cumsum(shares)) / shares.sum()
    return np.interp(np.array(LANDMARKS) / 100, below, BINS)


def pieces_between(given: np.ndarray, wanted: np.ndarray) -> Harmonise:
    """Straight pieces through pairs of landmarks, both in rising order, from 0 to 0 and 1 to 1."""
    knots = [(0.0, 0.0)]
    for theirs, ours in zip(given.tolist(), wanted.tolist(), strict=True):
        if knots[-1][0] + APART <= theirs <= 1 - APART:
            knots.append((theirs, ours))
    places, values = zip(*knots, (1.0, 1.0), strict=True)
    return Harmonise(given=places, wanted=values)


def _demand_histogram(run: Run) -> None:
    """InputError where a run does not know the intensities of its training scans."""
    if len(run.recipe.suffixes) > 1:
        raise InputError(
            f"{run.folder}: its scans have several channels, and harmonise knows the intensities "
            "of the first alone; take another HOW."
        )
    if not run.typical or not any(run.typical.histogram):
        raise InputError(
            f"{run.folder}: no intensity histogram of its training scans in typical.json; train it "
            "again with 'make train'."
        )


Way = Callable[[Run, Sequence[Case], Path | None], Changed]

WAYS: dict[str, Way] = {
    "harmonise": harmonise,
    "adabn": adabn,
    "finetune": finetune,
    "fada": fada,
}
