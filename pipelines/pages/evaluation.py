"""The page of one run's evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.figures.curves import froc_figure, roc_and_pr_figure, size_figure, threshold_figure
from evaluation.figures.plots import histogram_figure
from evaluation.metrics import VoxelHistogram
from evaluation.protocol import LABELS, columns, pairs
from pipelines.detect.run import Run
from pipelines.pages.html import Section, page
from pipelines.pages.text import is_known
from pipelines.study.evaluate import COLUMNS, Images
from preprocessing.recipe import Recipe

Results = Mapping[str, list[dict[str, Any]]]

CASES = (
    "Abnormal cases from best to worst (by Dice, else by score), then healthy ones with the median and the highest score. The map's colour "
    "scale ends at the 99.9th percentile of healthy validation voxels, the same for every case. Radiological display: the patient's right "
    "is on the viewer's left."
)


def test_sentences(result: dict[str, Any]) -> str:
    """What was tested on what, by which rules, in sentences."""
    summary, training, point = result["summary"], result["training"], result["point"]
    protocol = result["protocol"]
    text = (
        f"Model {result['model']} on the test scans of {result['data']}: {summary['n_healthy']} healthy, {summary['n_abnormal']} abnormal, "
        f"{summary['n_with_lesion_mask']} with a lesion mask. "
    )
    if training.get("train_scans"):
        text += (
            f"Trained on {len(training['train_scans'])} healthy scans of {training['data'].rpartition('/')[2]}, validated on "
            f"{len(training['val_scans'])}; splits are by subject. "
        )
    text += f"Protocol {protocol['name']}. Operating point {point['point']}: {point['rule']}. "
    text += "Voxel figures are measured on each scan's own grid inside its brain mask; an empty truth has no Dice."
    if point["point"] in ("oracle", "few-label"):
        text += f" This operating point has seen labels ({point['point']})."
    if any(str(s["pathology"]).startswith("synthetic") for s in result["scans"]):
        text += " The lesions are synthetic: they show what a method reacts to, not what it finds in patients."
    return text


def claim_checklist(result: dict[str, Any]) -> list[list[str]]:
    """The items of the CLAIM checklist (Mongan et al. 2020) that a run can fill in by itself."""
    training, config, summary, recipe = (
        result["training"],
        result["config"],
        result["summary"],
        result["recipe"],
    )
    augmentation = {k: v for k, v in config["augmentation"].items() if v}
    modality = Recipe(**recipe).name
    return [
        [
            "data sources",
            f"{result['data']} for the test, {training.get('data', '-')} for training",
        ],
        [
            "preprocessing",
            f"modality {modality}, intensity {recipe['intensity']}, brain mask {recipe['brain']}, N4 {recipe['n4']}",
        ],
        [
            "ground truth",
            "labels and lesion masks of the scan table, as they came; healthy scans by their label",
        ],
        [
            "sample size",
            f"{summary['n_scans']} test scans; intervals in the comparison are by bootstrap over subjects",
        ],
        [
            "partitions",
            f"by subject: {len(training.get('train_scans', []))} train, {len(training.get('val_scans', []))} validation, "
            f"{len(training.get('tune_scans', []))} labelled for few-label points; scans shared between splits are refused",
        ],
        [
            "model",
            f"{result['model']}, {training.get('parameters', 0):,} parameters, {config['model']}",
        ],
        [
            "initialisation",
            f"random, seed {config['loop']['seed']}; no pretrained weights unless the model's arguments name them",
        ],
        [
            "training",
            f"stages {config['stages']}, augmentation {augmentation}, batch {config['loop']['batch_size']}, {config['loop']['precision']}",
        ],
        [
            "choice of the final model",
            "lowest loss on healthy validation subjects"
            if config["stages"]
            else "no choice: fitted in closed form",
        ],
        ["threshold", result["point"]["rule"]],
        ["software", ", ".join(f"{k} {v}" for k, v in result["versions"].items())],
        ["failures", f"{len(result['failures'])} test scans could not be evaluated"],
        [
            "not covered here",
            "demographics, eligibility, annotators and their agreement, external validity: the authors must add them",
        ],
    ]


def limit_sentences(result: dict[str, Any]) -> str:
    """What these figures cannot say."""
    summary = result["summary"]
    parts = ["Research software: no figure here is evidence for clinical use."]
    if summary["n_healthy"] < 30 or summary["n_abnormal"] < 30:
        parts.append(
            "With so few test scans of a kind the intervals are wide; do not read small differences."
        )
    if not summary["n_with_lesion_mask"]:
        parts.append("Without lesion masks nothing is said about where the marks lie.")
    if result["n_healthy_reference"] < 20:
        parts.append(
            f"The operating point rests on {result['n_healthy_reference']} healthy validation scans."
        )
    return " ".join(parts)


def evaluation_page(result: dict[str, Any], run: Run, images: Images) -> str:
    """The HTML page of one run's evaluation."""
    summary = result["summary"]
    points = {k: p.get("voxel", np.nan) for k, p in run.points.items()} | {
        result["point"]["point"]: result["point"]["voxel"]
    }
    rules = [
        [p["point"], p.get("voxel"), p.get("scan"), p.get("rule", p.get("refused", ""))]
        for p in run.points.values()
    ]
    scans = (list(COLUMNS), [[c.get(k) for k in COLUMNS] for c in result["scans"]])
    sections = [
        Section(
            "Result",
            test_sentences(result) + "\n\n" + limit_sentences(result),
            (["figure", "value"], [[LABELS[k], summary[k]] for k in LABELS]),
        ),
        Section("Curves", images=curve_pictures({result["model"]: [result]})),
        *class_sections(result),
        Section(
            "Operating points",
            "Stored with the run; 'make evaluate POINT=…' cuts the same maps at another one.",
            (["point", "voxel threshold", "scan threshold", "rule"], rules),
            [
                (
                    "Healthy voxels above a threshold, and the Dice it would give",
                    threshold_picture(run, result, points),
                )
            ],
        ),
        *lesion_sections({result["model"]: [result]}),
        Section("Cases", CASES, images=images),
        Section("Scans", table=scans),
    ]
    if result["failures"]:
        sections.append(
            Section(
                "Left out",
                table=(["scan", "reason"], [[f["id"], f["reason"]] for f in result["failures"]]),
            )
        )
    sections.append(
        Section(
            "For the methods section (CLAIM)",
            table=(["item", "what this run can say"], claim_checklist(result)),
        )
    )
    sections.append(
        Section("How this was made", table=(["what", "value"], [["command", result["command"]]]))
    )
    return page(
        f"Norma: {result['model']} on {result['data']}",
        [s for s in sections if s.text or s.table or s.images],
    )


def curve_pictures(results: Results) -> list[tuple[str, bytes]]:
    """ROC and PR per reading, and score histograms of the first run of each model."""
    images, texts = (
        [],
        {"scan": "per scan", "slicewise": "slicewise", "clinical_slicewise": "clinical slicewise"},
    )
    for reading, text in texts.items():
        scored = {
            name: [columns(pairs(r["scans"], r["slices"], reading)) for r in runs]
            for name, runs in results.items()
        }
        if any(0 < labels.sum() < labels.size for runs in scored.values() for _, labels in runs):
            images.append(
                (f"ROC and precision-recall, {text}", roc_and_pr_figure(scored, f"ROC, {text}"))
            )
    for name, runs in results.items():
        scores, labels = columns(pairs(runs[0]["scans"], [], "scan"))
        if 0 < labels.sum() < labels.size:
            picture = histogram_figure(
                scores[labels == 0],
                scores[labels == 1],
                title=f"{name}: scan scores of the test set",
            )
            images.append((f"Scan scores of healthy and abnormal test scans, {name}", picture))
    return images


def class_sections(result: dict[str, Any], results: Results | None = None) -> list[Section]:
    """One table per column: each class of pathology with its figures; for several models the mean AUROC over runs."""
    sections = []
    for column, rows in result["classes"].items():
        if not rows:
            continue
        if results is None:
            head = [
                "class",
                "n",
                "n_slices",
                "scan_auroc",
                "slicewise_auroc",
                "dice_mean",
                "voxel_ap_mean",
            ]
            sections.append(
                Section(
                    f"By {column}",
                    "Each class against all healthy scans.",
                    (head, [[r[k] for k in head] for r in rows]),
                )
            )
            continue
        table = []
        for row in rows:
            cells: list[Any] = [row["class"], row["n"]]
            for runs in results.values():
                own = [
                    r for run in runs for r in run["classes"][column] if r["class"] == row["class"]
                ]
                for key in ("scan_auroc", "dice_mean"):
                    values = [r[key] for r in own if is_known(r[key])]
                    cells.append(float(np.mean(values)) if values else None)
            table.append(cells)
        head = ["class", "n", *[f"{name} {what}" for name in results for what in ("AUROC", "Dice")]]
        sections.append(
            Section(
                f"By {column}",
                "Each class against all healthy scans; mean over runs.",
                (head, table),
            )
        )
    return sections


def lesion_sections(results: Results) -> list[Section]:
    """Dice and lesions found by size, and FROC, of the first run of each model; nothing where there are no masks."""
    first = {name: runs[0] for name, runs in results.items() if runs[0]["lesions_by_size"]}
    if not first:
        return []
    dice = {
        n: [(s["truth_ml"], s["dice"]) for s in r["scans"] if s.get("truth_voxels")]
        for n, r in first.items()
    }
    images = [
        (
            "Dice by lesion volume, and lesions found by size",
            size_figure(dice, {n: r["lesions_by_size"] for n, r in first.items()}),
        ),
        (
            "Free-response ROC: marked components ranked by the map's maximum",
            froc_figure({n: r["froc"] for n, r in first.items()}),
        ),
    ]
    rows = []
    for name, r in first.items():
        for size, marks in zip(r["lesions_by_size"], r["precision_by_size"], strict=True):
            ends = (
                f"{size['from_ml']:g} to {size['to_ml']:g} ml"
                if size["to_ml"]
                else f"from {size['from_ml']:g} ml"
            )
            rows.append(
                [name, ends, size["n"], size["sensitivity"], marks["n"], marks["precision"]]
            )
    head = [
        "model",
        "size",
        "lesions",
        "found (sensitivity)",
        "marked components",
        "that are lesions (precision)",
    ]
    text = "First run of each model. A lesion counts as found where at least a tenth of it is marked; scans with a lesion alone."
    return [Section("Lesions", text, (head, rows), images)]


def threshold_picture(run: Run, result: dict[str, Any], points: dict[str, float]) -> bytes:
    return threshold_figure(run.healthy_voxels, VoxelHistogram.from_rows(result["voxels"]), points)
