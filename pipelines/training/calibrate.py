"""Thresholds and healthy reference of a trained model, from healthy validation scans."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.metrics import VoxelHistogram
from pipelines.cohort.cases import Case, load, read_truth
from pipelines.config import write_recipe
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import Detector, NativeMap, cut, scan_score, strengths
from pipelines.detect.folder import MEMORY, SEALED, demand_place, read_history, seal, write_history
from pipelines.detect.points import Point, ScoredScan, operating_points
from pipelines.detect.run import HealthyReference, Run, load_run, write_calibration, write_weights
from pipelines.detect.typical import FEWEST, describe, write_typical
from pipelines.versions import command_line, versions
from preprocessing.files import write_atomic
from preprocessing.scans import InputError

WHAT = {"map": "map", "model": "model's own scores", "cluster": "map's cluster enhancement"}
QUANTILES = (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def calibrate(
    parts: Sequence[tuple[Detector, Sequence[Case]]],
    tune: Sequence[Case] = (),
    whole: Detector | None = None,
) -> tuple[dict[str, Point], HealthyReference, VoxelHistogram]:
    """Operating points, healthy reference and healthy voxels, from healthy cases.

    `parts` are detectors with cases that they have not learned from; all have one config. `tune`
    are labelled cases for the few-label operating point, and for nothing else here. They are scored
    by the detector of the `whole`, which new scans get; left out where it is the only one.
    """
    detector = parts[0][0]
    calibration = detector.config.calibration
    crossed = len(parts) > 1  # each scan had a part in the other detectors
    fold = max(len(cases) for _, cases in parts) if crossed else 0
    with tempfile.TemporaryDirectory(prefix="norma-calibrate-") as folder:
        healthy = VoxelHistogram()
        for _, native in _maps(parts, Path(folder), "healthy reference"):
            values = native.map[native.brain]
            healthy.update(values, np.zeros(values.size, np.uint8))
        outline = healthy.quantile(calibration.outline)
        at = Point(point="outline", voxel=outline, strength=calibration.strength)
        scans = []
        for case, native in _maps(parts, Path(folder), "healthy components"):
            scans.append(scored(case, native, detector.config, at))

    tuned, labelled = _tuned(whole or detector, tune)
    points = operating_points(healthy, scans, tuned, labelled, calibration, fold)
    part = f"{calibration.score_fraction:.1%}"
    what = WHAT[calibration.score]
    reference = HealthyReference(
        score=f"mean of the highest {part} of the {what} inside the brain",
        scans=sorted(scans, key=lambda s: s.score),
        voxel_quantiles={str(q): float(healthy.quantile(q)) for q in QUANTILES},
        left_out=fold,
    )
    return points, reference, healthy


def _maps(
    parts: Sequence[tuple[Detector, Sequence[Case]]], folder: Path, what: str
) -> Iterator[tuple[Case, NativeMap]]:
    """Each case with its map, which a second pass reads from `folder`."""
    total = sum(len(cases) for _, cases in parts)
    with tqdm(total=total, desc=what, unit="scan") as bar:
        for number, (detector, cases) in enumerate(parts):
            for case in cases:
                yield case, detector.map_case(case, folder / str(number))
                bar.update()


def scored(
    case: Case, native: NativeMap, config: RunConfig, outline: Point | None = None
) -> ScoredScan:
    """A case's score, the peak of its map and, at an outline, its strongest component."""
    fields: dict[str, Any] = {}
    if case.label:
        fields["label"] = case.label
    if outline:
        marked = cut(native, outline, config.postprocess)
        fields["strongest"] = float(strengths(native, marked, outline).max(initial=0.0))
    return ScoredScan(
        id=case.id,
        score=scan_score(native, config.calibration.score_fraction),
        maximum=float(native.map[native.brain].max(initial=0.0)),
        **fields,
    )


def _tuned(
    detector: Detector, tune: Sequence[Case]
) -> tuple[list[ScoredScan], VoxelHistogram | None]:
    """Labelled scans with their scores, and their voxels where one of them has a lesion mask."""
    scans: list[ScoredScan] = []
    labelled = VoxelHistogram()
    masks = 0
    for case in tqdm(tune, desc="labelled scans", unit="scan", disable=not tune):
        native = detector.map(load(case))
        scans.append(scored(case, native, detector.config))
        lesions = read_truth(case, native.grid)
        if lesions is not None and case.lesions:
            labelled.update(native.map[native.brain], lesions[native.brain] > 0)
            masks += 1
    return scans, labelled if masks else None


def child_run(run: Run, cases: Sequence[Case], out: Path) -> Run:
    """A run with the network of another, calibrated on other healthy cases, in the folder `out`.

    Its run.json names the parent. InputError for fewer than 5 cases, and as `demand_child`.
    """
    demand_child(run, cases, out)
    demand_enough(len(cases))
    calibrated = calibrate([(run.detector, cases)])
    made = {"calibrated_on": [case.id for case in cases]}
    begin_child(run, cases, out, made)
    write_calibration(out, *calibrated, run.config.calibration.point)
    write_typical(describe(cases), out)
    return finish_child(run, run.detector, out)


def demand_child(run: Run, cases: Sequence[Case], out: Path, how: str | None = None) -> None:
    """InputError where no child of a run can be made of some cases in the folder `out`.

    That is for no case, an abnormal one, or an image that the parent has learned from; and where
    `out` holds another run. `how` is the way of pipelines/training/adapt.py, None for calibration.
    """
    demand_child_place(run, out, how)
    learned = set(run.history.get("digests", []))
    for case in cases:
        if case.label == "abnormal":
            raise InputError(f"scan '{case.id}' is abnormal; calibrate on healthy scans alone.")
        if case.digest in learned:
            raise InputError(
                f"scan '{case.id}' is an image that {run.folder} has learned from; give others."
            )
    if not cases:
        raise InputError("no healthy scan is left to adapt to; give others.")


def demand_child_place(run: Run, out: Path, how: str | None = None) -> None:
    """InputError where `out` holds another run; `how` is as in `demand_child`."""
    there = read_history(out)
    same_way = how_of(there) == (how or how_of(run.history))
    demand_place(out, run.folder, there.get("parent") == parent_of(run) and same_way)


def demand_enough(count: int) -> None:
    """InputError for too few healthy scans to calibrate on."""
    if count < FEWEST:
        raise InputError(
            f"{count} healthy scans; calibration needs at least {FEWEST}, and 9 for the promise of "
            "one false finding in ten scans."
        )


def how_of(history: dict[str, Any]) -> str:
    """The way by which a run was adapted to another scanner; empty for none."""
    return str(history.get("adapted", {}).get("how", ""))


def parent_of(run: Run) -> dict[str, str]:
    """How a child names its parent in run.json."""
    return {"run": run.folder.name, "weights": run.weights_digest}


def begin_child(run: Run, cases: Sequence[Case], out: Path, made: dict[str, Any]) -> None:
    """Fill a child's folder with its parent's files, but for the weights, and with its run.json.

    `made` says there how the child was made.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in SEALED:
        if name != "weights.pt" and (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of another child of the same parent
    write_recipe(out, run.recipe)
    learned = {*run.history.get("digests", []), *(case.digest for case in cases if case.digest)}
    history = run.history | {
        "parent": parent_of(run),
        "command": command_line(),
        "versions": versions(),
        **made,
        "digests": sorted(learned),
    }
    history.pop("files", None)
    write_history(out, history)


def finish_child(run: Run, detector: Detector, out: Path) -> Run:
    """Write a child's weights, the last of its files: the parent's own if nothing changed them."""
    if detector.model is run.model:
        seal(out, {"weights.pt": run.weights_digest})
        write_atomic(out / "weights.pt", (run.folder / "weights.pt").read_bytes())
    else:
        (out / MEMORY).unlink(missing_ok=True)  # other weights give other map values
        write_weights(detector.model, out)
    return load_run(out, str(run.detector.device))
