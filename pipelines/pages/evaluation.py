"""The page of one run's evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.figures.curves import froc_figure, roc_and_pr_figure, size_figure, threshold_figure
from evaluation.figures.plots import histogram_figure
from evaluation.metrics import VoxelHistogram
from evaluation.protocol import LABELS, columns, pairs
from pipelines.cohort.cases import count_parts
from pipelines.detect.run import Run
from pipelines.pages.groups import healthy_sections
from pipelines.pages.headline import headline
from pipelines.pages.html import Section, page
from pipelines.pages.text import is_known
from pipelines.study.case_pictures import Images
from pipelines.study.evaluate import COLUMNS
from pipelines.study.evaluation import Evaluation
from preprocessing.recipe import Recipe

Results = Mapping[str, list[Evaluation]]
Table = tuple[list[str], list[list[Any]]]

CASES = (
    "Abnormal cases from best to worst (by Dice, else by score), then healthy ones with the median "
    "and the highest score. The map's colour scale ends at the 99.9th percentile of healthy "
    "validation voxels, the same for every case. Radiological display: the patient's right is on "
    "the viewer's left."
)
READINGS = {
    "scan": "per scan",
    "slicewise": "slicewise",
    "clinical_slicewise": "clinical slicewise",
}
GROUPS = {
    "Figures per scan": (
        "scan_auroc",
        "scan_ap",
        "accuracy",
        "recall",
        "specificity",
        "precision",
        "f1",
        "oracle_f1",
        "accuracy_share",
        "recall_share",
        "precision_share",
        "f1_share",
        "accuracy_few_label",
        "recall_few_label",
        "precision_few_label",
        "f1_few_label",
    ),
    "Figures per slice": (
        "slicewise_auroc",
        "slicewise_ap",
        "clinical_slicewise_auroc",
        "clinical_slicewise_ap",
    ),
    "Figures per voxel": (
        "dice_mean",
        "dice_pooled",
        "oracle_dice_pooled",
        "voxel_ap",
        "voxel_ap_mean",
        "voxel_auroc",
        "pixel_ap",
        "voxel_prevalence",
        "hd95_mean",
        "hd95_undefined",
        "peak_in_lesion",
        "peak_mm",
        "healthy_false_positive_ml",
        "healthy_voxel_fpr",
    ),
    "Figures per finding": (
        "lesion_sensitivity",
        "lesion_precision",
        "found_at_1",
        "found_at_1_from_1_ml",
        "found_at_0_1",
        "abnormal_with_finding",
        "healthy_with_finding",
        "false_findings",
    ),
}
SCAN_HEADS = {
    "id": "scan",
    "subject": "subject",
    "label": "label",
    "pathology": "pathology",
    "score": "score",
    "percentile": "percentile among healthy scans",
    "findings": "findings",
    "dice": "Dice",
    "hd95": "HD95, mm",
    "truth_ml": "lesions, ml",
    "marked_ml": "marked, ml",
    "false_positive_ml": "marked in vain, ml",
    "voxel_ap": "voxel AP",
}
CLASS_HEADS = {
    "class": "class",
    "n": "scans",
    "n_slices": "abnormal slices",
    "scan_auroc": "AUROC per scan",
    "slicewise_auroc": "AUROC slicewise",
    "dice_mean": "Dice, mean per scan",
    "voxel_ap_mean": "voxel AP, mean per scan",
}
FEW = 30  # test scans of a kind; with fewer the intervals are wide
FEW_REFERENCE = 20  # healthy validation scans


def evaluation_page(result: Evaluation, run: Run, images: Images) -> str:
    """The HTML page of one run's evaluation."""
    alone = {result.model: [result]}
    said = tested_sentences(result) + "\n\n" + limit_sentences(result)
    scans = [_cells(row, COLUMNS) for row in result.scans]
    top = headline(result, images)
    shown = {png for _, png in top.images}
    others = [(caption, png) for caption, png in images if png not in shown]
    sections = [
        top,
        Section("What was measured", said),
        *figure_sections(result),
        Section("Curves", images=curve_pictures(alone)),
        *class_sections(result),
        *healthy_sections(result),
        _points_section(result, run),
        *lesion_sections(alone),
        Section("More cases", CASES, images=others),
        Section("Every test scan", table=([SCAN_HEADS[name] for name in COLUMNS], scans)),
    ]
    if result.failures:
        rows = [[failure.id, failure.reason] for failure in result.failures]
        sections.append(Section("Left out", table=(["scan", "reason"], rows)))
    checklist = (["item", "what this run can say"], claim_checklist(result))
    sections.append(Section("For the methods section (CLAIM)", table=checklist))
    made = (["what", "value"], [["command", result.command]])
    sections.append(Section("How this was made", table=made))
    title = f"Norma: {result.model} on {result.data}"
    return page(title, [s for s in sections if s.text or s.table or s.images])


def figure_sections(result: Evaluation) -> list[Section]:
    """A table per group of figures; figures that are not defined are left out."""
    sections: list[Section] = []
    for title, keys in GROUPS.items():
        known = [key for key in keys if is_known(result.summary.get(key))]
        rows = [[LABELS[key], result.summary[key]] for key in known]
        if rows:
            sections.append(Section(title, table=(["figure", "value"], rows)))
    return sections


def tested_sentences(result: Evaluation) -> str:
    """What was tested on what, by which rules, in sentences."""
    summary = result.summary
    training = result.training
    point = result.point
    text = (
        f"Model {result.model} on the test scans of {result.data}: {summary['n_healthy']} healthy, "
        f"{summary['n_abnormal']} abnormal, {summary['n_with_lesion_mask']} with a lesion mask. "
    )
    if training.get("train_scans"):
        count = len(training["train_scans"])
        text += f"Trained on {count} healthy scans of {data_name(result)}, "
        parts = count_parts(training["train_scans"])
        if parts:
            text += f"{parts} of them slices without lesion of patients' scans, "
        how = f"validated on {len(training['val_scans'])}; splits are by subject. "
        if training.get("folds"):
            how = f"and calibrated on the same scans in {training['folds']} folds by subject. "
        text += how
    organ = "lung" if result.recipe.get("modality") == "chest_ct" else "brain"
    text += f"Protocol {result.protocol['name']}. "
    text += f"Operating point {point.point}: {point.rule}. "
    text += (
        f"Voxel figures are measured on each scan's own grid inside its {organ} mask; "
        "an empty truth has no Dice."
    )
    if point.point in ("oracle", "few-label"):
        text += f" This operating point has seen labels ({point.point})."
    if any(str(row["pathology"]).startswith("synthetic") for row in result.scans):
        text += (
            " The lesions are synthetic: they show what a method reacts to, "
            "not what it finds in patients."
        )
    return text


def data_name(result: Evaluation) -> str:
    """The name of the data a run was trained on; version 0.1.0 wrote its path."""
    return str(result.training.get("data", "-")).rpartition("/")[2]


def limit_sentences(result: Evaluation) -> str:
    """What these figures cannot say."""
    summary = result.summary
    parts = ["Research software: no figure here is evidence for clinical use."]
    counts = [summary["n_healthy"] or 0, summary["n_abnormal"] or 0]
    if min(counts) < FEW:
        parts.append(
            "With so few test scans of a kind the intervals are wide; "
            "do not read small differences."
        )
    if not summary["n_with_lesion_mask"]:
        parts.append("Without lesion masks nothing is said about where the marks lie.")
    if result.n_healthy_reference < FEW_REFERENCE:
        parts.append(
            f"The operating point rests on {result.n_healthy_reference} healthy validation scans."
        )
    return " ".join(parts)


def claim_checklist(result: Evaluation) -> list[list[str]]:
    """The items of the CLAIM checklist (Mongan et al. 2020) that a run can fill in by itself."""
    training = result.training
    config = result.config
    recipe = result.recipe
    augmentation = {k: v for k, v in config["augmentation"].items() if v}
    counts = {split: len(training.get(f"{split}_scans", [])) for split in ("train", "val", "tune")}
    loop = config["loop"]
    chosen = "no choice: fitted in closed form"
    if config["stages"]:
        chosen = "lowest loss on healthy validation subjects"
    return [
        ["data sources", f"{result.data} for the test, {data_name(result)} for training"],
        [
            "preprocessing",
            f"modality {Recipe(**recipe).name}, intensity {recipe['intensity']}, "
            f"brain mask {recipe['brain']}, N4 {recipe['n4']}",
        ],
        [
            "ground truth",
            "labels and lesion masks of the scan table, as they came; healthy scans by their label",
        ],
        [
            "sample size",
            f"{result.summary['n_scans']} test scans; "
            "intervals in the comparison are by bootstrap over subjects",
        ],
        [
            "partitions",
            f"by subject: {counts['train']} train, {counts['val']} validation, {counts['tune']} "
            "labelled for few-label points; scans shared between splits are refused",
        ],
        [
            "model",
            f"{result.model}, {training.get('parameters', 0):,} parameters, {config['model']}",
        ],
        [
            "initialisation",
            f"random, seed {loop['seed']}; "
            "no pretrained weights unless the model's arguments name them",
        ],
        [
            "training",
            f"stages {config['stages']}, augmentation {augmentation}, "
            f"batch {loop['batch_size']}, {loop['precision']}",
        ],
        ["choice of the final model", chosen],
        ["threshold", result.point.rule],
        ["software", ", ".join(f"{k} {v}" for k, v in result.versions.items())],
        ["failures", f"{len(result.failures)} test scans could not be evaluated"],
        [
            "not covered here",
            "demographics, eligibility, annotators and their agreement, external validity: "
            "the authors must add them",
        ],
    ]


def _points_section(result: Evaluation, run: Run) -> Section:
    """The operating points of a run, and where they lie among healthy voxels."""
    rows: list[list[Any]] = []
    for point in run.points.values():
        known = not point.refused
        voxel = point.voxel if known else None
        scan = point.scan if known else None
        level = point.component if known else None
        rows.append([point.point, voxel, level, scan, point.rule or point.refused])
    thresholds = {name: point.voxel for name, point in run.points.items()}
    thresholds[result.point.point] = result.point.voxel
    picture = threshold_picture(run, result, thresholds)
    return Section(
        "Operating points",
        "Stored with the run; 'make evaluate POINT=…' cuts the same maps at another one.",
        (["point", "voxel threshold", "component level", "scan threshold", "rule"], rows),
        [("Healthy voxels above a threshold, and the Dice it would give", picture)],
    )


def threshold_picture(run: Run, result: Evaluation, points: dict[str, float]) -> bytes:
    """Healthy voxels above a threshold and the Dice that it gives; `points` are marked."""
    lesions = VoxelHistogram.from_rows(result.voxels)
    return threshold_figure(run.healthy_voxels, lesions, points)


def curve_pictures(results: Results) -> list[tuple[str, bytes]]:
    """ROC and PR per reading, and score histograms of the first run of each model."""
    images: list[tuple[str, bytes]] = []
    for reading, text in READINGS.items():
        scored = {name: _scored(runs, reading) for name, runs in results.items()}
        if any(_has_both_classes(scores) for scores in scored.values()):
            figure = roc_and_pr_figure(scored, f"ROC, {text}")
            images.append((f"ROC and precision-recall, {text}", figure))
    for name, runs in results.items():
        scores, labels = columns(pairs(runs[0].scans, [], "scan"))
        if _has_both_classes([(scores, labels)]):
            title = f"{name}: scan scores of the test set"
            figure = histogram_figure(scores[labels == 0], scores[labels == 1], title=title)
            images.append((f"Scan scores of healthy and abnormal test scans, {name}", figure))
    return images


def _scored(runs: list[Evaluation], reading: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and labels of each run."""
    return [columns(pairs(run.scans, run.slices, reading)) for run in runs]


def _has_both_classes(scored: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    return any(0 < labels.sum() < labels.size for _, labels in scored)


def class_sections(result: Evaluation, results: Results | None = None) -> list[Section]:
    """One table per column: each class of pathology with its figures.

    For several models (`results`) the mean AUROC and Dice over runs.
    """
    sections: list[Section] = []
    for column, rows in result.classes.items():
        if not rows:
            continue
        text = "Each class against all healthy scans."
        table = _class_table(rows)
        if results is not None:
            text = "Each class against all healthy scans; mean over runs."
            table = _class_comparison(rows, column, results)
        sections.append(Section(f"By {column}", text, table))
    return sections


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The values of a row in the order of `names`; None where it has none."""
    return [row.get(name) for name in names]


def _class_table(rows: list[dict[str, Any]]) -> Table:
    """A row per class; columns that no class has are left out."""
    known: dict[str, str] = {}
    for name, head in CLASS_HEADS.items():
        values = [row.get(name) for row in rows]
        if name == "class" or any(map(is_known, values)):
            known[name] = head
    return list(known.values()), [_cells(row, list(known)) for row in rows]


def _class_comparison(rows: list[dict[str, Any]], column: str, results: Results) -> Table:
    head = ["class", "n"]
    for name in results:
        head += [f"{name} AUROC", f"{name} Dice"]
    table: list[list[Any]] = []
    for row in rows:
        cells: list[Any] = [row["class"], row["n"]]
        for runs in results.values():
            cells += _class_means(runs, column, row["class"])
        table.append(cells)
    return head, table


def _class_means(runs: list[Evaluation], column: str, name: str) -> list[float | None]:
    """AUROC and Dice of a class, mean over the runs that define it."""
    found: list[dict[str, Any]] = []
    for run in runs:
        found += [row for row in run.classes[column] if row["class"] == name]
    means: list[float | None] = []
    for key in ("scan_auroc", "dice_mean"):
        values = [row[key] for row in found if is_known(row[key])]
        means.append(float(np.mean(values)) if values else None)
    return means


def lesion_sections(results: Results) -> list[Section]:
    """Dice and lesions found by size, and FROC, of the first run of each model.

    Nothing where there are no masks.
    """
    first = {name: runs[0] for name, runs in results.items() if runs[0].lesions_by_size}
    if not first:
        return []
    dice: dict[str, list[tuple[float, float]]] = {}
    rows: list[list[Any]] = []
    for name, result in first.items():
        dice[name] = _dice_by_volume(result)
        rows += _size_rows(name, result)
    sizes = {name: result.lesions_by_size for name, result in first.items()}
    frocs = {name: result.froc for name, result in first.items()}
    images = [
        ("Dice by lesion volume, and lesions found by size", size_figure(dice, sizes)),
        ("Free-response ROC: marked components ranked by the map's maximum", froc_figure(frocs)),
    ]
    head = [
        "model",
        "size",
        "lesions",
        "found (sensitivity)",
        "marked components",
        "that are lesions (precision)",
    ]
    text = (
        "First run of each model. A lesion counts as found where at least a tenth of it is marked; "
        "scans with a lesion alone."
    )
    return [Section("Lesions", text, (head, rows), images)]


def _dice_by_volume(result: Evaluation) -> list[tuple[float, float]]:
    """Volume of the lesions in ml and Dice, of each scan with a lesion."""
    pairs_of_scans: list[tuple[float, float]] = []
    for scan in result.scans:
        dice = scan.get("dice")
        if scan.get("truth_voxels") and dice is not None:
            pairs_of_scans.append((scan["truth_ml"], dice))
    return pairs_of_scans


def _size_rows(name: str, result: Evaluation) -> list[list[Any]]:
    """A row per bin of lesion volume."""
    rows: list[list[Any]] = []
    for size, marks in zip(result.lesions_by_size, result.precision_by_size, strict=True):
        ends = f"from {size['from_ml']:g} ml"
        if size["to_ml"]:
            ends = f"{size['from_ml']:g} to {size['to_ml']:g} ml"
        found = [size["n"], size["sensitivity"], marks["n"], marks["precision"]]
        rows.append([name, ends, *found])
    return rows
