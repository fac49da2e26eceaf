"""Operating points: where a map is cut and a scan called abnormal, by rules that say what they have seen.

| point | voxel threshold | scan threshold | has seen |
|---|---|---|---|
| quantile | that quantile of healthy validation voxels | the same quantile of healthy scan scores | healthy scans |
| conformal | no voxel marked in a new healthy scan with probability 1 - false alarm | score passed with at most that rate | healthy scans |
| share | that share of healthy voxels lies under it | that share of healthy scores lies under it | healthy scans |
| few-label | best pooled Dice on the labelled split `tune` | best F1 on healthy validation scans and `tune` | some labels |
| fixed | a number | a number | what its giver has seen |
| oracle | best pooled Dice on the test scans | best F1 on the test scans | the test labels: printed, never stored |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import best_f1, conformal_threshold, healthy_quantile
from pipelines.detect.config import Calibration
from pipelines.detect.run import Run
from preprocessing.files import nearest
from preprocessing.scans import InputError

NAMES = ("quantile", "conformal", "share", "few-label", "fixed", "oracle")

Point = dict[str, Any]
"""`point`, `rule` (a sentence), `voxel` and `scan` (thresholds; a score must be greater)."""


def quantile(healthy: VoxelHistogram, scores: np.ndarray, q: float) -> Point:
    """Healthy voxel quantile, the default."""
    rule = f"{q:.4g} quantile of the map inside the brain of healthy validation scans; scans: the same quantile of their scores"
    return {
        "point": "quantile",
        "rule": rule,
        "voxel": healthy.quantile(q),
        "scan": healthy_quantile(scores, q),
    }


def share(healthy: VoxelHistogram, scores: np.ndarray, part: float) -> Point:
    """Distribution rule (Khaznaoui et al., lung CT poster): the threshold that this share of healthy data lies under."""
    return quantile(healthy, scores, part) | {
        "point": "share",
        "rule": f"{part:.4g} of the healthy validation data lie under it: of the scan scores, and of the voxels",
    }


def conformal(maxima: np.ndarray, scores: np.ndarray, false_alarm: float) -> Point:
    """Per-scan conformal at a stated false-alarm rate; InputError where there are too few healthy scans."""
    try:
        voxel, scan = (conformal_threshold(v, false_alarm) for v in (maxima, scores))
    except ValueError as error:
        raise InputError(
            f"conformal operating point: {error}; validate on more healthy scans or allow more false alarms."
        ) from None
    rule = f"conformal on healthy validation scans: at most {false_alarm:.4g} of new healthy scans marked at all, or called abnormal"
    return {"point": "conformal", "rule": rule, "voxel": voxel, "scan": scan}


def few_label(
    scans: Sequence[Point], tune: Sequence[Point], labelled: VoxelHistogram | None, otherwise: float
) -> Point:
    """Best F1 over healthy validation scans and the labelled scans of split `tune`; best Dice where those have masks."""
    both = [(s["score"], s.get("label") == "abnormal") for s in (*scans, *tune)]
    scan, _ = best_f1(*(np.array(column) for column in zip(*both, strict=True)))
    voxel = labelled.oracle_dice()[1] if labelled is not None else float("nan")
    voxel = otherwise if np.isnan(voxel) else max(voxel, 0.0)
    rule = (
        f"few-label: best F1 on {len(scans)} healthy validation scans and {len(tune)} labelled ones"
        + (
            ", best Dice on their masks"
            if labelled is not None
            else "; voxels as by default, no masks"
        )
    )
    return {"point": "few-label", "rule": rule, "voxel": voxel, "scan": scan}


def operating_points(
    healthy: VoxelHistogram,
    scans: Sequence[Point],
    tune: Sequence[Point],
    labelled: VoxelHistogram | None,
    settings: Calibration,
) -> dict[str, Point]:
    """Every point that a run stores, by name; a point that cannot be had holds `refused`, the reason."""
    scores, maxima = (np.array([s[k] for s in scans], float) for k in ("score", "maximum"))
    points = {
        "quantile": quantile(healthy, scores, settings.quantile),
        "share": share(healthy, scores, settings.share),
    }
    try:
        points["conformal"] = conformal(maxima, scores, settings.false_alarm)
    except InputError as error:
        if settings.point == "conformal":
            raise
        points["conformal"] = {"point": "conformal", "refused": str(error)}
    if any(s["label"] == "abnormal" for s in tune):
        points["few-label"] = few_label(scans, tune, labelled, points[settings.point]["voxel"])
    return points


def chosen_point(run: Run, text: str | None) -> Point:
    """The operating point a user names for a run: None (the run's own), "share", "quantile=0.95", "fixed=0.3", "oracle", …

    InputError for an unknown name, a value that is none, or a point that the run cannot give. "oracle" has thresholds NaN:
    only the test scans can fill them.
    """
    stored = run.points
    if text is None:
        return stored[run.config.calibration.point]
    name, sign, value = text.partition("=")
    if name not in NAMES:
        raise InputError(
            f"unknown operating point '{name}'; known: {', '.join(NAMES)}{nearest(name, list(NAMES))}"
        )
    if name == "oracle":
        return {
            "point": "oracle",
            "rule": "chosen with the labels of the test scans: not achievable",
            "voxel": np.nan,
            "scan": np.nan,
        }
    if sign:
        return _asked(run, name, value)
    if name == "fixed":
        raise InputError(
            "operating point 'fixed' needs a value, such as fixed=0.3 or fixed=0.3,0.5 (voxels, scans)."
        )
    point = stored.get(
        name,
        {"refused": f"{run.folder}: no few-label point, as no abnormal scan was in split 'tune'."},
    )
    if "refused" in point:
        raise InputError(point["refused"])
    return point


def _asked(run: Run, name: str, text: str) -> Point:
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= (2 if name == "fixed" else 1) or not all(np.isfinite(values)):
        raise InputError(f"operating point '{name}={text}': expected a number.")
    if name == "fixed":
        scan = values[1] if len(values) > 1 else run.points[run.config.calibration.point]["scan"]
        return {
            "point": "fixed",
            "rule": f"fixed at {text} by the caller",
            "voxel": values[0],
            "scan": scan,
        }
    if name == "few-label":
        raise InputError("operating point 'few-label' takes no value.")
    if not 0 < values[0] < 1:
        raise InputError(f"operating point '{name}={text}': expected a number between 0 and 1.")
    maxima = np.array([s["maximum"] for s in run.reference["scans"]], float)
    if name == "conformal":
        return conformal(maxima, run.healthy_scores, values[0])
    return {"quantile": quantile, "share": share}[name](
        run.healthy_voxels, run.healthy_scores, values[0]
    )
