"""`make evaluate`: a run against the test scans of a preprocessed cohort; numbers per scan and overall, and a page."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import cli
from preprocessing.scans import InputError, ScanError, read_image, read_table, write_atomic, write_table

if TYPE_CHECKING:
    from evaluation.metrics import VoxelHistogram
    from pipelines.runs import Run
    from pipelines.scoring import NativeMap

log = logging.getLogger("norma")
SHAPING = ("modality", "intensity", "spacing", "n4", "template", "grid")  # recipe settings that a run and its data must share
COLUMNS = ("id", "subject", "label", "pathology", "score", "percentile", "dice", "truth_ml", "marked_ml", "false_positive_ml", "voxel_ap")


def evaluate_scan(run: Run, row: dict[str, str], native: NativeMap, threshold: float) -> tuple[dict[str, Any], VoxelHistogram]:
    """All that one scan tells, measured on its own grid inside its brain; and its voxels for the pooled figures.

    A scan without a mask file has no voxel truth: where it is labelled healthy everything marked is false.
    """
    from evaluation.metrics import VoxelHistogram, dice, false_positive_ml
    from evaluation.thresholds import percentile_of
    from pipelines.scoring import cut, scan_score, slice_scores

    fraction = run.config.calibration.score_fraction
    mask = cut(native, threshold, run.config.postprocess)
    truth = _truth(row, native)
    voxel_ml = float(np.prod(native.spacing)) / 1000
    result: dict[str, Any] = {k: row[k] for k in ("id", "subject", "label", "pathology")}
    result["score"] = scan_score(native, fraction)
    result["percentile"] = percentile_of(result["score"], run.healthy_scores)
    result["marked_ml"] = float(mask.sum()) * voxel_ml
    voxels = VoxelHistogram()
    if truth is not None:
        voxels.update(native.map[native.brain], truth[native.brain])
        result |= {
            "dice": dice(mask, truth),
            "truth_ml": float(truth.sum()) * voxel_ml,
            "voxel_ap": voxels.average_precision(),
            "truth_outside_brain_ml": float((truth & ~native.brain).sum()) * voxel_ml,
            "overlap_voxels": int((mask & truth).sum()),
            "mask_voxels": int(mask.sum()),
            "truth_voxels": int(truth.sum()),
            "false_positive_ml": false_positive_ml(mask, truth, native.spacing),
        }
    labels = _slice_labels(row, native, truth)
    result["slices"] = [{"slice": i, "score": s, "label": labels.get(i)} for i, s in slice_scores(native, fraction).items()]
    return result, voxels


def _truth(row: dict[str, str], native: NativeMap) -> np.ndarray | None:
    """Lesion mask on the scan's own grid, bool; all False for a healthy scan, None where nobody knows."""
    if row["mask"]:
        image = read_image(Path(row["mask"]))
        if image.shape != native.map.shape or not np.allclose(image.affine, native.affine, atol=1e-2):
            raise ScanError(
                f"{row['mask']}: shape {image.shape} or affine differs from the scan's, {native.map.shape}; the truth must lie on its grid."
            )
        return np.asarray(image.dataobj) > 0
    return np.zeros(native.map.shape, bool) if row["label"] == "healthy" else None


def _slice_labels(row: dict[str, str], native: NativeMap, truth: np.ndarray | None) -> dict[int, int]:
    """0 or 1 by axial slice, from the table's slice labels or else from the truth."""
    from pipelines.scoring import axial_axis

    if row["slice_labels"]:
        return {int(r["slice"]): int(r["label"]) for r in read_table(Path(row["slice_labels"]))}
    if truth is None:
        return {}
    other = tuple(a for a in range(3) if a != axial_axis(native.affine))
    return {i: int(v) for i, v in enumerate(np.atleast_1d(truth.any(axis=other)))}


def summarise(cases: list[dict[str, Any]], pooled: VoxelHistogram, threshold: float) -> dict[str, Any]:
    """Figures over all scans; NaN (null in the file) where the labels do not define one.

    Slicewise: abnormal slices against slices of healthy scans. Clinical slicewise: every slice of an abnormal scan
    counts as abnormal. Pooled Dice at the healthy threshold is of the masks as written; oracle Dice is the best over
    all thresholds of the map, chosen with the test labels.
    """
    from evaluation.metrics import auroc, average_precision

    known = [c for c in cases if c["label"] in ("healthy", "abnormal")]
    healthy, abnormal = ([c for c in known if c["label"] == k] for k in ("healthy", "abnormal"))
    scan = _two(healthy, abnormal, lambda c: [c["score"]])
    clinical = _two(healthy, abnormal, lambda c: [s["score"] for s in c["slices"]])
    slicewise = _two(healthy, abnormal, lambda c: [s["score"] for s in c["slices"] if s["label"] == (c["label"] == "abnormal")])
    lesions = [c for c in cases if c.get("truth_voxels")]
    masks = sum(c["mask_voxels"] + c["truth_voxels"] for c in lesions)
    oracle, at = pooled.oracle_dice() if lesions else (float("nan"), float("nan"))
    return {
        "n_scans": len(cases),
        "n_healthy": len(healthy),
        "n_abnormal": len(abnormal),
        "n_with_lesion_mask": len(lesions),
        "threshold": threshold,
        "dice_mean": _mean([c["dice"] for c in lesions]),
        "dice_pooled": 2 * sum(c["overlap_voxels"] for c in lesions) / masks if masks else float("nan"),
        "oracle_dice_pooled": oracle,
        "oracle_threshold": at,
        "voxel_ap": pooled.average_precision() if lesions else float("nan"),
        "voxel_ap_mean": _mean([c["voxel_ap"] for c in lesions]),
        "healthy_false_positive_ml": _mean([c["false_positive_ml"] for c in healthy]),
        "scan_auroc": auroc(*scan),
        "scan_ap": average_precision(*scan),
        "slicewise_auroc": auroc(*slicewise),
        "slicewise_ap": average_precision(*slicewise),
        "clinical_slicewise_auroc": auroc(*clinical),
        "clinical_slicewise_ap": average_precision(*clinical),
    }


def _two(healthy: list[dict], abnormal: list[dict], values: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = ([v for c in group for v in values(c)] for group in (healthy, abnormal))
    return np.array(low + high, float), np.array([0] * len(low) + [1] * len(high))


def _mean(values: list[float]) -> float:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def picture(run: Run, data: Path, row: dict[str, str], native: NativeMap, threshold: float) -> bytes:
    """Input, reconstruction, map, mask and truth of one case in atlas space, RAS+."""
    from evaluation.plots import case_figure
    from pipelines.runs import read_json
    from pipelines.scoring import cut, load_array, reconstruction
    from preprocessing.register import carry_mask, load_atlas, resample

    atlas = load_atlas(run.recipe.template, run.recipe.grid)
    world = np.array(read_json(data / row["sidecar"])["world"])
    image, brain = (load_array(data / row[k]) for k in ("preproc", "brain"))
    shown: dict[str, Any] = {
        "anomaly_map": resample(native.map, native.affine, atlas.shape, atlas.affine, world),
        "mask": carry_mask(cut(native, threshold, run.config.postprocess), native.affine, atlas.shape, atlas.affine, world),
        "brain": brain > 0,
    }
    truth = _truth(row, native)
    if truth is not None and truth.any():
        shown["truth"] = carry_mask(truth, native.affine, atlas.shape, atlas.affine, world)
    top = run.reference["voxel_quantiles"]["0.999"]
    return case_figure(
        image,
        spacing=(1, 1, 1),
        map_max=top,
        reconstruction=reconstruction(run.model, run.config, image, brain > 0, run.device),
        title=row["id"],
        **shown,
    )


def evaluate(run: Run, data: Path, out: Path, pictures: int = 8) -> dict[str, Any]:
    """Evaluate a run on the test rows of `data`; writes evaluation.json, scans.tsv and index.html to `out`."""
    from tqdm import tqdm

    from evaluation.metrics import VoxelHistogram
    from pipelines.config import Recipe, read_yaml, validate
    from pipelines.runs import read_json, versions, write_json
    from pipelines.scoring import cohort_maps
    from pipelines.train import cohort_rows

    recipe = validate(Recipe, read_yaml(data / "recipe.yaml"), data / "recipe.yaml")
    other = [name for name in SHAPING if getattr(recipe, name) != getattr(run.recipe, name)]
    if other:
        raise InputError(
            f"{data}: preprocessed with another {', '.join(other)} than the run's scans; use the settings in {run.folder / 'recipe.yaml'}."
        )
    rows = [r for r in cohort_rows(data) if r["split"] == "test"]
    if not rows:
        raise InputError(f"{data / 'scans.tsv'}: no scans in split 'test'.")
    shown = {r["id"] for r in _spread([r for r in rows if r["label"] == "abnormal"], pictures - pictures // 3)}
    shown |= {r["id"] for r in _spread([r for r in rows if r["label"] != "abnormal"], pictures // 3)}
    cases, failures, images, pooled = [], [], [], VoxelHistogram()
    for row in tqdm(rows, desc="evaluate", unit="scan"):
        try:
            native = cohort_maps(run.model, run.config, recipe, data, row, run.device)
            case, voxels = evaluate_scan(run, row, native, run.threshold)
        except (ScanError, InputError, OSError) as error:
            failures.append({"id": row["id"], "reason": cli.error_sentence(error)})
            log.warning("left out: %s", failures[-1]["reason"])
            continue
        cases.append(case)
        if row["mask"]:
            pooled += voxels
        if row["id"] in shown:
            images.append((_caption(case), picture(run, data, row, native, run.threshold)))
    if not cases:
        return {"cases": [], "failures": failures}
    result = {
        "model": run.config.name,
        "data": data.name,
        "protocol": "volumes, own grid, inside the brain",
        "summary": summarise(cases, pooled, run.threshold),
        "threshold_rule": "healthy validation scans alone",
        "command": "python -m pipelines.evaluate " + " ".join(sys.argv[1:]),
        "config": run.config.model_dump(),
        "recipe": run.recipe.model_dump(),
        "versions": versions(),
        "n_healthy_reference": len(run.healthy_scores),
        "training": read_json(run.folder / "run.json"),
        "failures": failures,
        "cases": cases,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", result)
    write_table(out / "scans.tsv", [{k: _short(c.get(k)) for k in COLUMNS} for c in cases], COLUMNS)
    write_atomic(out / "index.html", page_of(result, images))
    return result


def _spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """At most `count` rows, evenly spread: chosen by place in the table, not by result."""
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))] if rows and count else []


def _caption(case: dict[str, Any]) -> str:
    dice = f", Dice {case['dice']:.3f}" if case.get("dice") is not None and np.isfinite(case["dice"]) else ""
    what = f"{case['label'] or 'no label'} {case['pathology']}".strip()
    return f"{case['id']}: {what}, score {case['score']:.4g} (percentile {case['percentile']:.0f}){dice}"


def _short(value: Any) -> Any:
    return ("" if np.isnan(value) else f"{value:.5g}") if isinstance(value, float) else value


LABELS = {
    "dice_mean": "Dice, mean per scan, at the healthy threshold",
    "dice_pooled": "Dice, voxels of all scans pooled, at the healthy threshold",
    "oracle_dice_pooled": "oracle Dice, pooled (best threshold, chosen with the test labels: not achievable)",
    "voxel_ap": "voxel average precision inside the brain, pooled",
    "voxel_ap_mean": "voxel average precision, mean per scan",
    "healthy_false_positive_ml": "false-positive ml per healthy scan",
    "scan_auroc": "AUROC per scan",
    "scan_ap": "AP per scan",
    "slicewise_auroc": "AUROC per slice (abnormal slices against healthy scans)",
    "slicewise_ap": "AP per slice (same)",
    "clinical_slicewise_auroc": "AUROC per slice, clinical (all slices of an abnormal scan)",
    "clinical_slicewise_ap": "AP per slice, clinical",
}


def page_of(result: dict[str, Any], images: list[tuple[str, bytes]]) -> str:
    """The HTML page of an evaluation."""
    from evaluation.plots import histogram_figure
    from evaluation.report import Section, page

    summary, cases = result["summary"], result["cases"]
    text = (
        f"Model {result['model']} on the test scans of {result['data']}: {summary['n_healthy']} healthy, "
        f"{summary['n_abnormal']} abnormal, {summary['n_with_lesion_mask']} with a lesion mask. Threshold "
        f"{summary['threshold']:.4g}, from {result['n_healthy_reference']} healthy validation scans alone. Voxel figures are "
        "measured on each scan's own grid inside its brain mask; an empty truth has no Dice."
    )
    table = (["figure", "value"], [[LABELS[k], summary[k]] for k in LABELS])
    scans = (list(COLUMNS), [[c.get(k) for k in COLUMNS] for c in cases])
    groups = [np.array([c["score"] for c in cases if c["label"] == k]) for k in ("healthy", "abnormal")]
    scores = (
        [("Scan scores", histogram_figure(groups[0], groups[1], title="scan scores of the test set"))]
        if all(g.size for g in groups)
        else []
    )
    sections = [
        Section("Result", text, table),
        Section("Scores", images=scores),
        Section("Scans", table=scans),
        Section(
            "Cases",
            "Chosen by their place in the table, not by their result. The map's colour scale ends at the 99.9th percentile of "
            "healthy validation voxels.",
            images=images,
        ),
    ]
    if result["failures"]:
        sections.append(Section("Left out", table=(["scan", "reason"], [[f["id"], f["reason"]] for f in result["failures"]])))
    about = [["command", result["command"]], *sorted(result["versions"].items())]
    sections.append(Section("How this was made", table=(["what", "value"], [list(a) for a in about])))
    return page(f"Norma: {result['model']} on {result['data']}", [s for s in sections if s.text or s.table or s.images])


def main(arguments: argparse.Namespace) -> int:
    from pipelines.runs import load_run

    data = Path(arguments.data)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give the OUT folder of 'make preprocess' as DATA.")
    run = load_run(arguments.run, arguments.accelerator)
    out = cli.writable_folder(arguments.out or run.folder / "evaluation" / data.name)
    result = evaluate(run, data, out)
    if not result["cases"]:
        print("error: no test scan could be evaluated.", file=sys.stderr)
        return cli.NOTHING_DONE
    for key, label in LABELS.items():
        value = result["summary"][key]
        print(f"{label}: {'not defined' if np.isnan(value) else f'{value:.3f}'}")
    print(f"look at {out / 'index.html'}")
    return cli.SOME_FAILED if result["failures"] else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("evaluate", "Measure a run on the test scans of a preprocessed cohort.")
    p.add_argument("--run", required=True, help="run folder of train")
    p.add_argument("--data", required=True, help="the OUT folder of preprocess")
    p.add_argument("--out", help="where the numbers and the page go (default <run>/evaluation/<data>)")
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
