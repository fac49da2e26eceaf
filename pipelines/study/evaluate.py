"""A run against the test scans of a preprocessed cohort: figures per scan and overall."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from evaluation import lesions, protocol
from evaluation.figures.plots import case_figure
from evaluation.metrics import VoxelHistogram, dice, false_positive_ml
from evaluation.thresholds import best_f1, percentile_of
from pipelines import cli
from pipelines.cohort.cases import cohort_rows, load_channels, read_truth
from pipelines.config import read_config
from pipelines.detect.detector import (
    NativeMap,
    cohort_maps,
    cut,
    reconstruction,
    scan_score,
    slice_scores,
)
from pipelines.detect.points import chosen_point
from pipelines.detect.run import Run
from pipelines.study.protocol import Protocol
from pipelines.versions import versions
from preprocessing.files import (
    file_digest,
    plain,
    read_json,
    read_table,
    write_atomic,
    write_rows,
    write_table,
)
from preprocessing.images import array_axis, load_array
from preprocessing.recipe import Recipe
from preprocessing.register import carry_mask, resample
from preprocessing.scans import InputError, ScanError

log = logging.getLogger("norma")

Images = Sequence[tuple[str, bytes]]
"""Captions and PNG."""

EVALUATION_VERSION = 3  # raise when the figures change, so that no old evaluation is taken for done

SHAPING = (
    "modality",
    "intensity",
    "spacing",
    "n4",
    "template",
    "grid",
    "sequences",
    "channels",
)  # recipe settings that a run and its data must share

COLUMNS = (
    "id",
    "subject",
    "label",
    "pathology",
    "score",
    "percentile",
    "dice",
    "hd95",
    "truth_ml",
    "marked_ml",
    "false_positive_ml",
    "voxel_ap",
)

COARSER = 15  # neighbouring bins of the pooled voxels that a results file merges


def evaluate_scan(
    run: Run, row: dict[str, str], native: NativeMap, threshold: float, by: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]], VoxelHistogram]:
    """All that one scan tells, measured on its own grid inside its brain: its row, those of its slices, and its voxels.

    A scan without a mask file has no voxel truth: where it is labelled healthy everything marked is false.
    """
    mask = cut(native, threshold, run.config.postprocess)
    labels = read_truth(row, native.map.shape, native.affine)
    voxel_ml = float(np.prod(native.spacing)) / 1000
    case: dict[str, Any] = {k: row[k] for k in ("id", "subject", "label", "pathology")} | {
        k: row[k] for k in by if k in row
    }
    case["score"] = _digits(scan_score(native, run.config.calibration.score_fraction))
    case |= {
        "percentile": percentile_of(case["score"], run.healthy_scores),
        "marked_ml": float(mask.sum()) * voxel_ml,
        "brain_voxels": int(native.brain.sum()),
        "above_voxels": int((native.map[native.brain] > threshold).sum()),
        "mask_voxels": int(mask.sum()),
    }
    voxels = VoxelHistogram()
    if labels is not None:
        truth = labels > 0
        voxels.update(native.map[native.brain], truth[native.brain])
        case |= {
            "dice": dice(mask, truth),
            "hd95": lesions.hausdorff95(mask, truth, native.spacing),
            "voxel_ap": voxels.average_precision(),
            "voxel_auroc": voxels.auroc(),
            "truth_ml": float(truth.sum()) * voxel_ml,
            "truth_voxels": int(truth.sum()),
            "truth_outside_brain_ml": float((truth & ~native.brain).sum()) * voxel_ml,
            "overlap_voxels": int((mask & truth).sum()),
            "false_positive_ml": false_positive_ml(mask, truth, native.spacing),
        }
        found = lesions.match(mask, native.map, labels, native.spacing)
        case |= {
            kind: [{k: _digits(v) for k, v in f.items()} for f in rows]
            for kind, rows in found.items()
        }
    return case, _slice_rows(run, row, native, None if labels is None else labels > 0, by), voxels


def _slice_rows(
    run: Run, row: dict[str, str], native: NativeMap, truth: np.ndarray | None, by: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per axial slice of the scan's own grid that shows brain; labels from the slice table or else from the truth."""
    table: dict[int, dict[str, str]] = {}
    if row["slice_labels"]:
        table = {int(r["slice"]): r for r in read_table(Path(row["slice_labels"]))}
        labels: dict[int, int] = {i: int(r["label"]) for i, r in table.items()}
    elif truth is None:
        labels = {}
    else:
        other = tuple(a for a in range(3) if a != array_axis(native.affine, 2))
        labels = {i: int(v) for i, v in enumerate(np.atleast_1d(truth.any(axis=other)))}
    rows = []
    settings = run.config.calibration
    for i, score in slice_scores(native, settings.score_fraction, settings.context).items():
        known = {k: table[i][k] for k in by if i in table and table[i].get(k)}
        rows.append(
            {"id": f"{row['id']}/{i}", "label": labels.get(i), "score": _digits(score)} | known
        )
    return rows


def _digits(value: Any) -> Any:
    """Seven significant digits, so that figures computed again from a file are the same."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def test_rows(run: Run, data: Path) -> list[dict[str, str]]:
    """The test rows of `data` for a run: by the run's own splits where it was trained on that data with some.

    InputError where the data were preprocessed in another way, hold no test scan, or one that the run has learned from.
    """
    recipe = read_config(Recipe, data / "recipe.yaml")
    other = [name for name in SHAPING if getattr(recipe, name) != getattr(run.recipe, name)]
    if other:
        raise InputError(
            f"{data}: preprocessed with another {', '.join(other)} than the run's scans; use the settings in {run.folder / 'recipe.yaml'}."
        )
    about = read_json(run.folder / "run.json") if (run.folder / "run.json").is_file() else {}
    own = run.folder / "splits.tsv"
    same = "data" in about and Path(about["data"]).resolve() == data.resolve()
    rows = [
        r
        for r in cohort_rows(data, own if same and own.is_file() else None)
        if r["split"] == "test"
    ]
    if not rows:
        raise InputError(f"{data / 'scans.tsv'}: no scans in split 'test'.")
    learned = set(about.get("digests", []))
    seen = next((r for r in rows if r.get("digest") in learned and r["digest"]), None)
    if seen:
        raise InputError(
            f"{data / 'scans.tsv'}: test scan '{seen['id']}' is an image that {run.folder} was trained or calibrated on."
        )
    return rows


def evaluate(
    run: Run,
    data: Path,
    out: Path,
    protocol: Protocol,
    point: str | None = None,
    pictures: bool = True,
    page: Callable[[dict[str, Any], Run, Images], str] | None = None,
) -> dict[str, Any]:
    """Evaluate a run on the test rows of `data` at an operating point; writes its files to `out`.

    They are evaluation.json, scans.tsv and, where `page` makes it of the result, the run and the case pictures, index.html.
    Maps are kept in `out`/maps, so that another operating point needs no network; an evaluation that stands is returned.
    """
    rows, at, weights = test_rows(run, data), chosen_point(run, point), run.weights_digest
    key = _key(run, data, rows, at, protocol)
    if (out / "evaluation.json").is_file() and (before := read_json(out / "evaluation.json")).get(
        "key"
    ) == key:
        return before
    started = time.perf_counter()

    def native_of(row: dict[str, str]) -> NativeMap:
        return cohort_maps(run.model, run.config, data, row, run.device, out / "maps", weights)

    if at["point"] == "oracle":
        at = _oracle(run, rows, native_of, at)
    cases, slices, failures, pooled = [], [], [], VoxelHistogram()
    for row in tqdm(rows, desc="evaluate", unit="scan"):
        try:
            case, own, voxels = evaluate_scan(run, row, native_of(row), at["voxel"], protocol.by)
        except (ScanError, InputError, OSError) as error:
            failures.append({"id": row["id"], "reason": cli.error_sentence(error)})
            log.warning("left out: %s", failures[-1]["reason"])
            continue
        cases.append(case)
        slices += own if protocol.slices else []
        if row["mask"]:
            pooled += voxels
    seconds = time.perf_counter() - started
    if not cases:
        return {"scans": [], "failures": failures}
    result: dict[str, Any] = {
        "model": run.config.name,
        "data": data.name,
        "protocol": protocol.model_dump(),
        "point": at,
        "points": {name: p["scan"] for name, p in run.points.items() if p.get("scan") is not None},
        "command": "python -m pipelines.evaluate " + shlex.join(sys.argv[1:]),
        "versions": versions(),
        "seconds_per_scan": round(seconds / len(cases), 2),
        "n_healthy_reference": len(run.healthy_scores),
        "key": key,
        "config": run.config.model_dump(),
        "recipe": run.recipe.model_dump(),
        "training": read_json(run.folder / "run.json")
        if (run.folder / "run.json").is_file()
        else {},
        "failures": failures,
        "voxels": pooled.coarser(COARSER).to_rows(),
        "scans": cases,
        "slices": slices,
    }
    result = plain(result | all_figures(result))
    out.mkdir(parents=True, exist_ok=True)
    images = (
        [_panel(run, data, row, native_of(row), result) for row in _telling(rows, cases)]
        if pictures
        else []
    )
    shutil.rmtree(
        out / "cases", ignore_errors=True
    )  # another operating point may have shown other cases
    for i, (caption, png) in enumerate(images):
        (out / "cases").mkdir(exist_ok=True)
        write_atomic(out / "cases" / f"{i}_{caption.partition(':')[0]}.png", png)
    write_rows(out / "evaluation.json", result)
    write_table(out / "scans.tsv", [{k: _short(c.get(k)) for k in COLUMNS} for c in cases], COLUMNS)

    if page:
        write_atomic(out / "index.html", page(result, run, images))
    return result


def _key(
    run: Run, data: Path, rows: list[dict[str, str]], at: dict[str, Any], protocol: Protocol
) -> str:
    files = [
        [file_digest(Path(r[k])) for k in ("mask", "slice_labels") if r[k] and Path(r[k]).is_file()]
        for r in rows
    ]
    prints = [
        (sorted(r.items()), read_json(data / r["sidecar"])["fingerprint"], own)
        for r, own in zip(rows, files, strict=True)
    ]
    c = run.config
    settings = [
        c.name,
        c.model,
        c.image_size,
        c.patch_size,
        c.around,
        c.reference,
        c.postprocess,
        c.calibration,
    ]
    parts = [
        EVALUATION_VERSION,
        run.weights_digest,
        settings,
        protocol.slices,
        protocol.by,
        at["point"],
        at["voxel"],
        at["scan"],
        prints,
    ]
    return sha256(repr(parts).encode()).hexdigest()


def _oracle(
    run: Run, rows: list[dict[str, str]], native_of: Any, at: dict[str, Any]
) -> dict[str, Any]:
    """The oracle's thresholds, from the labels of the test scans."""
    pooled, scores, labels = VoxelHistogram(), [], []
    for row in rows:
        native = native_of(row)
        truth = read_truth(row, native.map.shape, native.affine)
        if truth is not None and row["mask"]:
            pooled.update(native.map[native.brain], truth[native.brain] > 0)
        if row["label"] in ("healthy", "abnormal"):
            scores.append(scan_score(native, run.config.calibration.score_fraction))
            labels.append(row["label"] == "abnormal")
    best = pooled.oracle_dice()[1]
    scan = best_f1(np.array(scores), np.array(labels))[0] if scores else float("nan")
    return at | {"voxel": run.threshold if np.isnan(best) else max(best, 0.0), "scan": scan}


def all_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Every figure of a result, from its scans, slices, voxels and operating point alone."""
    scans, slices = result["scans"], result["slices"]
    scan_threshold = result["point"]["scan"]
    ill = [s for s in scans if s.get("truth_voxels")]
    found, marked = ([f for s in ill for f in s[kind]] for kind in ("lesions", "candidates"))
    threshold = float("nan") if scan_threshold is None else scan_threshold
    return {
        "summary": protocol.summarise(
            scans, slices, VoxelHistogram.from_rows(result["voxels"]), threshold, result["points"]
        ),
        "classes": {
            column: protocol.classes(scans, slices, column) for column in result["protocol"]["by"]
        },
        "lesions_by_size": lesions.by_size(found) if ill else [],
        "precision_by_size": lesions.precision_by_size(marked) if ill else [],
        "froc": lesions.froc(found, marked, len(ill)) if ill else {},
    }


def _telling(rows: list[dict[str, str]], cases: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of the best, median and worst abnormal cases (by Dice, else by score), and of the healthy ones with median and highest score."""
    with_dice = [c for c in cases if c.get("truth_voxels")]
    ill = sorted(
        with_dice or [c for c in cases if c["label"] == "abnormal"],
        key=lambda c: c["dice"] if with_dice else c["score"],
    )
    well = sorted((c for c in cases if c["label"] != "abnormal"), key=lambda c: c["score"])
    places = [(ill, f) for f in (1, 0.75, 0.5, 0.25, 0)] + [(well, f) for f in (0.5, 1)]
    names = dict.fromkeys(group[round(f * (len(group) - 1))]["id"] for group, f in places if group)
    by_id = {r["id"]: r for r in rows}
    return [by_id[name] for name in names]


def _panel(
    run: Run, data: Path, row: dict[str, str], native: NativeMap, result: dict[str, Any]
) -> tuple[str, bytes]:
    case = next(c for c in result["scans"] if c["id"] == row["id"])
    dice = (
        f", Dice {case['dice']:.3f}"
        if case.get("dice") is not None and np.isfinite(case["dice"])
        else ""
    )
    what = f"{case['label'] or 'no label'} {case['pathology']}".strip()
    caption = f"{case['id']}: {what}, score {case['score']:.4g} (percentile {case['percentile']:.0f}){dice}"
    return caption, case_picture(run, data, row, native, result["point"]["voxel"])


def case_picture(
    run: Run, data: Path, row: dict[str, str], native: NativeMap, threshold: float
) -> bytes:
    """Input, reconstruction, map, mask and truth of one case in the space of its atlas, RAS+."""
    side = read_json(data / row["sidecar"])
    world, whole, brain = (
        np.array(side["world"]),
        load_channels(data, row, side),
        load_array(data / row["brain"]),
    )
    image = whole if whole.ndim == 3 else whole[..., 0]
    space = nib.Nifti1Image.from_filename(data / row["preproc"]).affine
    shown: dict[str, Any] = {
        "anomaly_map": resample(native.map, native.affine, image.shape, space, world),
        "mask": carry_mask(
            cut(native, threshold, run.config.postprocess), native.affine, image.shape, space, world
        ),
        "brain": brain > 0,
    }
    truth = read_truth(row, native.map.shape, native.affine)
    if truth is not None and truth.any():
        shown["truth"] = carry_mask(truth > 0, native.affine, image.shape, space, world)
    shown["further"] = {
        f["suffix"]: whole[..., i] for i, f in enumerate(side.get("further", []), start=1)
    }
    top = max(run.reference["voxel_quantiles"]["0.999"], 1e-6)
    return case_figure(
        image,
        spacing=(1, 1, 1),
        map_max=top,
        reconstruction=reconstruction(run.model, run.config, whole, brain > 0, run.device),
        title=row["id"],
        **shown,
    )


def _short(value: Any) -> Any:
    return ("" if np.isnan(value) else f"{value:.5g}") if isinstance(value, float) else value
