"""Operating points: where a map is cut and a scan called abnormal, by rules that say what they saw.

| point | voxel threshold | scan threshold | has seen |
|---|---|---|---|
| finding | quantile of healthy voxels, and a level per component | rarely passed | healthy scans |
| quantile | that quantile of healthy voxels | that quantile of healthy scores | healthy scans |
| conformal | healthy scans rarely have a voxel above | rarely passed | healthy scans |
| share | that share of healthy voxels is below | that share of scores is below | healthy scans |
| few-label | best pooled Dice on split `tune` | best F1 on healthy and `tune` scans | some labels |
| fixed | a number | a number | what its giver has seen |
| oracle | best pooled Dice on test scans | best F1 on test scans | test labels: never stored |

Healthy scans are those of the validation split, with folds all of them. "Rarely" is the false-alarm
rate per scan. At point "finding" a component counts where healthy scans rarely hold one as strong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from evaluation.metrics import VoxelHistogram
from evaluation.postprocess import Strength
from evaluation.thresholds import (
    Level,
    best_f1,
    conformal_threshold,
    healthy_level,
    healthy_quantile,
)
from pipelines.detect.config import Calibration
from pipelines.detect.gate import Gate
from preprocessing.files import nearest
from preprocessing.scans import InputError

NAMES = ("finding", "quantile", "conformal", "share", "few-label", "fixed", "oracle")
NAN = float("nan")
STRENGTHS = {"peak": "peak", "mass": "mass above the outline", "cluster": "cluster enhancement"}


def point_of(text: str) -> tuple[str, list[float]]:
    """Name and values of an operating point that a user gives, such as "finding=0.05".

    "fixed" has one value or two, "oracle" and "few-label" none, others one at most. InputError for
    an unknown name, and for a value that is none.
    """
    name, sign, given = text.partition("=")
    if name not in NAMES:
        raise InputError(
            f"unknown operating point '{name}'; known: {', '.join(NAMES)}"
            f"{nearest(name, list(NAMES))}"
        )
    if not sign:
        if name == "fixed":
            raise InputError(
                "operating point 'fixed' needs a value, such as fixed=0.3 or fixed=0.3,0.5 "
                "(voxels, scans)."
            )
        return name, []
    if name in ("few-label", "oracle"):
        raise InputError(f"operating point '{name}' takes no value.")
    values = _numbers(given)
    most = 2 if name == "fixed" else 1
    if not 1 <= len(values) <= most or not np.isfinite(values).all():
        raise InputError(f"operating point '{text}': expected a number.")
    if name == "fixed" and values[0] <= 0:
        raise InputError(f"operating point '{text}': expected a number above 0.")
    if name != "fixed" and not 0 < values[0] < 1:
        raise InputError(f"operating point '{text}': expected a number between 0 and 1.")
    return name, values


def _numbers(text: str) -> list[float]:
    """Numbers between commas; none where one of them is no number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


class Point(BaseModel):
    """An operating point: thresholds that a voxel, a component or a scan score must exceed.

    `rule` says in a sentence where they come from. `component` is the level that the `strength` of
    a component must pass; without one all count. `promise` says in words how often healthy scans
    show a finding. A point that cannot be had says why in `refused`. The oracle's thresholds are
    NaN until the test scans fill them.
    """

    model_config = ConfigDict(frozen=True)

    point: str
    rule: str = ""
    voxel: float = NAN
    component: float | None = None
    strength: Strength = "peak"
    scan: float = NAN
    promise: str = ""
    refused: str = ""

    @field_validator("voxel", "scan", mode="before")
    @classmethod
    def _null_is_nan(cls, value: float | None) -> float:
        return NAN if value is None else value

    def as_json(self) -> dict[str, Any]:
        """As it is stored: what was set, and nothing else."""
        return self.model_dump(exclude_unset=True)


class ScoredScan(BaseModel):
    """A scan that a run was calibrated on.

    Its score, the highest value of its map, and the strength of its strongest component at the
    outline of point "finding": 0 for none, None in runs of version 0.1.0.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    score: float
    maximum: float
    strongest: float | None = None
    label: str = "healthy"


def scores_of(scans: Sequence[ScoredScan]) -> np.ndarray:
    """Scan scores (N,)."""
    return np.array([s.score for s in scans], float)


def maxima_of(scans: Sequence[ScoredScan]) -> np.ndarray:
    """Highest map values (N,)."""
    return np.array([s.maximum for s in scans], float)


def strongest_of(scans: Sequence[ScoredScan]) -> np.ndarray:
    """Strength of each scan's strongest component (N,); empty where a run does not know them."""
    known = [s.strongest for s in scans if s.strongest is not None]
    return np.array(known if len(known) == len(scans) else [], float)


def finding(
    scans: Sequence[ScoredScan], outline: float, calibration: Calibration, fold: int = 0
) -> Point:
    """Components outlined at `outline` that few healthy scans have as strong a one as.

    `fold` is how many of the scans were left out of a training together, 0 for none.
    """
    level = healthy_level(strongest_of(scans), calibration.false_alarm, fold)
    scan = healthy_level(scores_of(scans), calibration.false_alarm, fold)
    rule = (
        f"components whose {STRENGTHS[calibration.strength]} passes {level.value:.4g}, outlined "
        f"at the {calibration.outline:.4g} quantile of the map in healthy scans"
    )
    return Point(
        point="finding",
        rule=rule,
        voxel=outline,
        component=level.value,
        strength=calibration.strength,
        scan=scan.value,
        promise=promise(level),
    )


def promise(level: Level) -> str:
    """In words: how often a healthy scan shows a finding, and how sure that is."""
    scans = f"In healthy scans like the {level.n} that it was calibrated on"
    one_in = int(1 / level.alarm_rate + 1e-9)
    text = f"{scans}, at most one in {one_in} shows any finding"
    if level.fold:
        return f"{text}; that bound ({level.alarm_rate:.0%}) holds on average over such cohorts."
    return (
        f"{text}. That bound ({level.alarm_rate:.0%}) holds on average over such cohorts; for this "
        f"one it is {level.worst_rate():.0%} with 95 % confidence."
    )


def promise_for(at: Point, gate: Gate | None) -> str:
    """A point's promise for one scan: it holds for scans like those of the run alone."""
    if not at.promise or gate is None or not gate.because:
        return at.promise
    return (
        "Not promised for this scan: as a whole it is unlike those that the run knows (most of "
        f"all: {', '.join(gate.because)}). {at.promise}"
    )


def quantile(healthy: VoxelHistogram, scores: np.ndarray, q: float) -> Point:
    """Healthy voxel quantile, the default."""
    rule = (
        f"{q:.4g} quantile of the map inside the brain of healthy validation scans; "
        "scans: the same quantile of their scores"
    )
    return Point(
        point="quantile", rule=rule, voxel=healthy.quantile(q), scan=healthy_quantile(scores, q)
    )


def share(healthy: VoxelHistogram, scores: np.ndarray, part: float) -> Point:
    """The threshold that this share of healthy data is under (Khaznaoui et al., lung CT poster)."""
    rule = (
        f"{part:.4g} of the healthy validation data lie under it: "
        "of the scan scores, and of the voxels"
    )
    return quantile(healthy, scores, part).model_copy(update={"point": "share", "rule": rule})


def conformal(scans: Sequence[ScoredScan], false_alarm: float) -> Point:
    """Per-scan conformal at a stated false-alarm rate; InputError for too few healthy scans."""
    try:
        voxel = conformal_threshold(maxima_of(scans), false_alarm)
        scan = conformal_threshold(scores_of(scans), false_alarm)
    except ValueError as error:
        raise InputError(
            f"conformal operating point: {error}; "
            "validate on more healthy scans or allow more false alarms."
        ) from None
    rule = (
        f"conformal on healthy validation scans: at most {false_alarm:.4g} of new healthy scans "
        "marked at all, or called abnormal"
    )
    return Point(point="conformal", rule=rule, voxel=voxel, scan=scan)


def few_label(
    scans: Sequence[ScoredScan],
    tune: Sequence[ScoredScan],
    labelled: VoxelHistogram | None,
    otherwise: float,
) -> Point:
    """Best F1 over healthy validation scans and the labelled ones of split `tune`.

    Voxels: best Dice where those have lesion masks (`labelled`), else the threshold `otherwise`.
    """
    both = [*scans, *tune]
    abnormal = np.array([s.label == "abnormal" for s in both])
    scan, _ = best_f1(scores_of(both), abnormal)

    best = labelled.oracle_dice()[1] if labelled is not None else NAN
    voxel = otherwise if np.isnan(best) else max(best, 0.0)

    seen = f"{len(scans)} healthy validation scans and {len(tune)} labelled ones"
    masks = "best Dice on their masks"
    where = f", {masks}" if labelled is not None else "; voxels as by default, no masks"
    return Point(
        point="few-label", rule=f"few-label: best F1 on {seen}{where}", voxel=voxel, scan=scan
    )


def operating_points(
    healthy: VoxelHistogram,
    scans: Sequence[ScoredScan],
    tune: Sequence[ScoredScan],
    labelled: VoxelHistogram | None,
    calibration: Calibration,
    fold: int = 0,
) -> dict[str, Point]:
    """Every point that a run stores, by name; one that cannot be had holds `refused`."""
    scores = scores_of(scans)
    points = {
        "finding": finding(scans, healthy.quantile(calibration.outline), calibration, fold),
        "quantile": quantile(healthy, scores, calibration.quantile),
        "share": share(healthy, scores, calibration.share),
    }
    try:
        points["conformal"] = conformal(scans, calibration.false_alarm)
    except InputError as error:
        if calibration.point == "conformal":
            raise
        points["conformal"] = Point(point="conformal", refused=str(error))
    if any(s.label == "abnormal" for s in tune):
        points["few-label"] = few_label(scans, tune, labelled, points[calibration.point].voxel)
    return points
