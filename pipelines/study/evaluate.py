"""A run against the test scans of a preprocessed cohort: figures per scan and overall."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import best_f1
from pipelines import cli
from pipelines.cohort.cases import PATHS, Case, read_cases, read_truth
from pipelines.config import read_recipe
from pipelines.detect.detector import NativeMap, scan_score
from pipelines.detect.identity import figures_digest, settings
from pipelines.detect.points import Point
from pipelines.detect.run import Run
from pipelines.study.case_pictures import Images, case_images
from pipelines.study.evaluation import Evaluation, Failure, ScanRow, SliceRow
from pipelines.study.measure import evaluate_scan
from pipelines.study.protocol import Protocol
from pipelines.versions import command_line, versions
from preprocessing.files import file_digest, nearest, read_table, write_atomic, write_table
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, ScanError

log = logging.getLogger("norma")

SHARED = (  # recipe settings that a run and its data must share
    "modality",
    "intensity",
    "spacing",
    "n4",
    "template",
    "grid",
    "align",
    "sequences",
    "channels",
)
OWN = frozenset(ScanRow.__annotations__) - {"id", "subject", "label", "pathology"}
COLUMNS = (
    "id",
    "subject",
    "label",
    "pathology",
    "score",
    "percentile",
    "findings",
    "dice",
    "hd95",
    "truth_ml",
    "marked_ml",
    "false_positive_ml",
    "voxel_ap",
)
EVALUATIONS = 2  # raise when an evaluation of the same maps holds more than before
COARSER = 15  # neighbouring bins of the pooled voxels that a results file merges

Page = Callable[[Evaluation, Run, Images], str]


@dataclass(frozen=True)
class Measured:
    """The test scans of an evaluation: rows of scans and slices, voxels, failures, seconds.

    `voxels` are of brains with a mask, `others` all further ones without lesion.
    """

    scans: list[ScanRow]
    slices: list[SliceRow]
    voxels: VoxelHistogram
    others: VoxelHistogram
    failures: list[Failure]
    seconds: float


def evaluate(
    run: Run,
    data: Path,
    out: Path,
    protocol: Protocol,
    point: str | None = None,
    pictures: bool = True,
    page: Page | None = None,
) -> Evaluation | None:
    """Evaluate a run on the test cases of `data` at an operating point; writes files to `out`.

    They are evaluation.json, scans.tsv and, where `page` makes it of the result, the run and the
    case pictures, index.html. Maps are stored in `out`/maps, so that another operating point needs
    no network; an evaluation that stands is returned. None where no scan could be evaluated.
    """
    cases = cases_to_test(run, data)
    demand_columns(cases, protocol.by)
    at = run.point(point)
    weights = run.weights_digest
    key = _key(run, weights, cases, at, protocol)
    path = out / "evaluation.json"
    if path.is_file():
        before = Evaluation.read(path)
        if before.key == key:
            return before

    def native_of(case: Case) -> NativeMap:
        return run.detector.map_case(case, out / "maps", weights)

    started = time.perf_counter()
    if at.point == "oracle":
        at = oracle_point(run, cases, native_of, at)
    measured = measure_cases(run, cases, native_of, at, protocol, started)
    if not measured.scans:
        return None

    result = evaluation_of(run, data, at, protocol, key, measured)
    out.mkdir(parents=True, exist_ok=True)
    images = case_images(run, cases, native_of, result) if pictures else []
    _write_images(images, out / "cases")
    result.write(path)
    rows = [_table_row(row) for row in measured.scans]
    write_table(out / "scans.tsv", rows, COLUMNS)
    if page:
        write_atomic(out / "index.html", page(result, run, images))
    return result


def cases_to_test(run: Run, data: Path) -> list[Case]:
    """The test cases of `data` for a run: by the run's own splits where it learned from that data.

    InputError where the data were preprocessed in another way, hold no test scan, or hold one that
    the run has learned from.
    """
    table = data / "scans.tsv"
    learned = set(run.history.get("digests", []))
    cases = cases_for(run, data)
    cases = [case for case in cases if case.split == "test" and not case.is_part]
    if not cases:
        raise InputError(f"{table}: no scans in split 'test'.")
    seen = next((case for case in cases if case.digest and case.digest in learned), None)
    if seen:
        raise InputError(
            f"{table}: test scan '{seen.id}' is an image that {run.folder} was trained or "
            "calibrated on."
        )
    return cases


def cases_for(run: Run, data: Path) -> list[Case]:
    """The cases of `data`: by the run's own splits where it learned from that data.

    InputError where the data were preprocessed in another way.
    """
    demand_same_recipe(data, run.recipe, run.folder)
    cases = read_cases(data)
    splits = run.folder / "splits.tsv"
    if splits.is_file() and _learned_here(cases, set(run.history.get("digests", [])), splits):
        return read_cases(data, splits)
    return cases


def demand_same_recipe(data: Path, recipe: Recipe, folder: Path) -> None:
    """InputError where `data` were preprocessed in another way than the scans behind `folder`."""
    apart = differing(read_recipe(data), recipe)
    if apart:
        raise InputError(
            f"{data}: preprocessed with another {', '.join(apart)} than the scans of {folder}; "
            f"use the settings in {folder / 'recipe.yaml'}."
        )


def demand_columns(cases: Sequence[Case], names: Sequence[str]) -> None:
    """InputError for columns (`by`) that no table has, or that are figures of an evaluation.

    The tables are that of the scans, and those of slices.
    """
    known = {"pathology", "label", "subject"}.union(*(case.columns for case in cases))
    if not known.issuperset(names):  # tables of slices are many
        for path in {case.slice_labels for case in cases if case.slice_labels}:
            known.update(*read_table(path)[:1])
    for name in names:
        if name in OWN:
            raise InputError(
                f"by={name}: an evaluation has a figure of that name; give the column another one."
            )
        if name not in known:
            raise InputError(
                f"by={name}: no column of the table of scans or slices; they have "
                f"{', '.join(sorted(known))}{nearest(name, known)}"
            )


def differing(ours: Recipe, theirs: Recipe) -> list[str]:
    """Settings that shape a scan and differ between two recipes; a template counts by its bytes."""
    found: list[str] = []
    for name in SHARED:
        pair = [getattr(ours, name), getattr(theirs, name)]
        if name == "template":
            pair = [file_digest(Path(value)) if value else None for value in pair]
        if pair[0] != pair[1]:
            found.append(name)
    return found


def _learned_here(cases: Sequence[Case], learned: set[str], splits: Path) -> bool:
    """Whether a run with a table of splits has learned from these cases."""
    named = {row["id"] for row in read_table(splits)}
    digests = {case.digest for case in cases}
    return learned <= digests and named <= {case.id for case in cases}


def measure_cases(
    run: Run,
    cases: Sequence[Case],
    native_of: Callable[[Case], NativeMap],
    at: Point,
    protocol: Protocol,
    started: float,
) -> Measured:
    """Measure every case; one that cannot be read is left out with its reason."""
    scans: list[ScanRow] = []
    slices: list[SliceRow] = []
    failures: list[Failure] = []
    pooled = VoxelHistogram()
    rest = VoxelHistogram()
    for case in tqdm(cases, desc="evaluate", unit="scan"):
        try:
            found = evaluate_scan(run, case, native_of(case), at, protocol.by)
        except (ScanError, InputError, OSError) as error:
            failures.append(Failure(id=case.id, reason=cli.error_sentence(error)))
            log.warning("left out: %s", failures[-1].reason)
            continue
        row, of_slices, voxels, others = found
        scans.append(row)
        rest += others
        if protocol.slices:
            slices += of_slices
        if case.lesions:
            pooled += voxels
    return Measured(scans, slices, pooled, rest, failures, time.perf_counter() - started)


def evaluation_of(
    run: Run, data: Path, at: Point, protocol: Protocol, key: str, measured: Measured
) -> Evaluation:
    """The evaluation of what was measured, with all its figures."""
    points = {name: p.scan for name, p in run.points.items() if np.isfinite(p.scan)}
    result = Evaluation(
        model=run.config.name,
        data=data.name,
        protocol=protocol.model_dump(),
        point=at,
        points=points,
        command=shlex.join(command_line("pipelines.evaluate")),
        versions=versions(),
        seconds_per_scan=round(measured.seconds / len(measured.scans), 2),
        n_healthy_reference=len(run.healthy_scores),
        key=key,
        config=run.config.model_dump(),
        recipe=run.recipe.model_dump(),
        training=run.history,
        failures=measured.failures,
        voxels=measured.voxels.coarser(COARSER).to_rows(),
        others=[row[:2] for row in measured.others.coarser(COARSER).to_rows()],
        scans=measured.scans,
        slices=measured.slices,
    )
    return result.with_figures()


def _write_images(images: Images, folder: Path) -> None:
    """Case pictures as PNG, in the place of those of another operating point."""
    shutil.rmtree(folder, ignore_errors=True)
    for i, (caption, png) in enumerate(images):
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{i}_{caption.partition(':')[0]}.png", png)


def _key(run: Run, weights: str, cases: Sequence[Case], at: Point, protocol: Protocol) -> str:
    """What an evaluation depends on: weights, settings, operating point, cases and their truth."""
    prints: list[Any] = []
    for case in cases:
        truth = [p for p in (case.lesions, case.slice_labels) if p and p.is_file()]
        files = [file_digest(path) for path in truth]
        described = case.model_dump(mode="json", exclude=set(PATHS))
        prints.append([described, case.read_sidecar()["fingerprint"], files])
    shaping = [settings(protocol, "figures"), at.as_json(), prints]
    if run.memory:
        shaping.append(run.memory.model_dump())
    return figures_digest(weights, run.config, EVALUATIONS, *shaping)


def oracle_point(
    run: Run, cases: Sequence[Case], native_of: Callable[[Case], NativeMap], at: Point
) -> Point:
    """The oracle's thresholds, from the labels of the test scans."""
    pooled = VoxelHistogram()
    scores: list[float] = []
    abnormal: list[bool] = []
    for case in cases:
        native = native_of(case)
        labels = read_truth(case, native.grid)
        if labels is not None and case.lesions:
            pooled.update(native.map[native.brain], labels[native.brain] > 0)
        if case.label in ("healthy", "abnormal"):
            scores.append(scan_score(native, run.config.calibration.score_fraction))
            abnormal.append(case.label == "abnormal")
    best = pooled.oracle_dice()[1]
    voxel = run.threshold if np.isnan(best) else max(best, 0.0)
    scan = best_f1(np.array(scores), np.array(abnormal))[0] if scores else float("nan")
    return at.model_copy(update={"voxel": voxel, "scan": scan})


def _table_row(scan: ScanRow) -> dict[str, Any]:
    """A row of scans.tsv."""
    return {name: _short(scan.get(name)) for name in COLUMNS}


def _short(value: Any) -> Any:
    """A cell of scans.tsv: five significant digits, empty for NaN."""
    if not isinstance(value, float):
        return value
    return "" if np.isnan(value) else f"{value:.5g}"
