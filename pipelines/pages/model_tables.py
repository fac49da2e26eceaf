"""Tables of a comparison as Markdown: rows are models, columns are figures.

A column without any figure is left out, and so is a table without columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

from pipelines.pages.text import counted, figure_text, interval_text, markdown_table
from pipelines.study.evaluation import ScanRow
from pipelines.study.results_file import (
    ClassFigures,
    Difference,
    Figure,
    Results,
    RunSummary,
    SizeFigures,
)

GROUPS = {
    "Scans and slices told apart": {
        "scan_auroc": "AUROC per scan",
        "scan_ap": "AP per scan",
        "slicewise_auroc": "AUROC slicewise",
        "slicewise_ap": "AP slicewise",
        "clinical_slicewise_auroc": "AUROC clinical slicewise",
        "clinical_slicewise_ap": "AP clinical slicewise",
    },
    "Scans called abnormal at the operating point": {
        "accuracy": "accuracy",
        "recall": "sensitivity",
        "specificity": "specificity",
        "precision": "precision",
        "f1": "F1",
        "oracle_f1": "oracle F1",
    },
    "Scans called abnormal at the share point": {
        "accuracy_share": "accuracy",
        "recall_share": "sensitivity",
        "precision_share": "precision",
        "f1_share": "F1",
    },
    "Scans called abnormal at the few-label point, which has seen labels": {
        "accuracy_few_label": "accuracy",
        "recall_few_label": "sensitivity",
        "precision_few_label": "precision",
        "f1_few_label": "F1",
    },
    "Lesions marked": {
        "dice_mean": "Dice, mean per scan",
        "dice_pooled": "Dice, pooled",
        "oracle_dice_pooled": "oracle Dice, pooled",
        "lesion_sensitivity": "lesions found",
        "lesion_precision": "marked components that are lesions",
        "found_at_1": "lesions found at 1 false finding per scan",
        "found_at_1_from_1_ml": "of 1 ml or more",
        "found_at_0_1": "at 0.1 false findings per scan",
        "hd95_mean": "HD95, mm",
        "hd95_undefined": "scans with nothing marked",
        "peak_in_lesion": "highest voxel in a lesion",
        "peak_mm": "its distance, mm",
    },
    "Voxels of lesions told apart": {
        "voxel_ap": "voxel AP, pooled",
        "voxel_ap_mean": "voxel AP, mean per scan",
        "voxel_auroc": "voxel AUROC",
        "pixel_ap": "pixel AP, MOOD's rule",
        "voxel_prevalence": "voxel AP of chance",
    },
    "Scans with a finding at the operating point": {
        "abnormal_with_finding": "abnormal scans with a finding",
        "healthy_with_finding": "healthy scans with a finding",
        "false_findings": "false findings per healthy scan",
    },
    "False alarms in healthy scans": {
        "healthy_false_positive_ml": "marked, ml per scan",
        "healthy_voxel_fpr": "share of voxels above the threshold",
    },
}
HEADS = dict(chain.from_iterable(heads.items() for heads in GROUPS.values()))

OF_CLASSES: dict[str, Callable[[ClassFigures], float | None]] = {
    "AUROC per scan": lambda found: found.scan_auroc,
    "AUROC slicewise": lambda found: found.slicewise_auroc,
    "Dice, mean per scan": lambda found: found.dice_mean,
    "Voxel AP, mean per scan": lambda found: found.voxel_ap_mean,
}
NOTHING = "–"
UNKNOWN = Figure(mean=None, sd=None, n=0)  # a figure that older results do not have


def figures_text(results: Results, title: str, heads: dict[str, str]) -> str:
    """A table of figures over the runs; empty where no model has one of them."""
    columns: dict[str, list[str]] = {}
    for key, head in heads.items():
        figures = [results.model(name).figures.get(key, UNKNOWN) for name in results.names()]
        columns[head] = [figure_text(figure.model_dump()) for figure in figures]
    return model_table(results, f"### {title}", columns)


def classes_text(results: Results, column: str) -> str:
    """Figures by class, each against all healthy scans; means over runs."""
    classes: dict[str, int] = {}
    for model in results.names():
        counts: Counter[str] = Counter()
        for run in results.once(model):
            counts.update({found.name: found.n for found in run.classes.get(column, [])})
        for name, n in counts.items():
            classes[name] = max(n, classes.get(name, 0))

    parts: list[str] = []
    for title, value in OF_CLASSES.items():
        columns: dict[str, list[str]] = {}
        for name, n in sorted(classes.items()):
            columns[f"{name}, {counted(n, 'scan')}"] = [
                mean_text(map(value, _of_class(results.runs(model), column, name)))
                for model in results.names()
            ]
        parts.append(model_table(results, f"#### {title}, by {column}", columns))
    tables = [part for part in parts if part]
    return "\n\n".join([f"### By {column}", *tables]) if tables else ""


def _of_class(runs: Iterable[RunSummary], column: str, name: str) -> list[ClassFigures]:
    """What the runs found of one class."""
    rows: list[ClassFigures] = []
    for run in runs:
        rows += [found for found in run.classes.get(column, []) if found.name == name]
    return rows


def sizes_text(results: Results) -> str:
    """Lesions found, by their size; Dice and voxel AP of scans, by the volume of all lesions."""
    by_volume = "by the volume of all lesions of a scan; means over scans and runs"
    dice = _of_scans_by_volume(results, lambda case: case["dice"])
    ap = _of_scans_by_volume(results, lambda case: case["voxel_ap"])
    tables = [
        model_table(
            results,
            "#### Share of lesions found",
            _found_by_size(results, lambda run: run.lesions_by_size),
        ),
        model_table(
            results,
            "#### Share of lesions found at 1 false finding per scan",
            _found_by_size(results, lambda run: run.found_at_1_by_size),
        ),
        model_table(results, f"#### Dice, {by_volume}", dice),
        model_table(results, f"#### Voxel AP, {by_volume}", ap),
    ]
    parts = [table for table in tables if table]
    return "\n\n".join(["### By size", *parts]) if parts else ""


def _found_by_size(
    results: Results, sizes_of: Callable[[RunSummary], list[SizeFigures]]
) -> dict[str, list[str]]:
    """The share of lesions found in all runs, by model; a column per size that has lesions.

    Nothing where a run has no such sizes, as those of before they were measured.
    """
    columns: dict[str, list[str]] = {}
    if not all(sizes_of(run) for run in results.summary.runs):
        return columns
    once = results.once(results.names()[0])
    for i, size in enumerate(sizes_of(once[0])):
        count = sum(sizes_of(run)[i].n for run in once)
        if not count:
            continue
        cells: list[str] = []
        for model in results.names():
            found = [sizes_of(run)[i] for run in results.runs(model)]
            total = sum(one.n for one in found)
            cells.append(mean_text([sum(one.detected for one in found) / total] if total else []))
        columns[f"{_range_text(size)}, {counted(count, 'lesion')}"] = cells
    return columns


def _of_scans_by_volume(
    results: Results, value: Callable[[ScanRow], float | None]
) -> dict[str, list[str]]:
    """The mean of a value by model; a column per range of volumes that has scans."""
    columns: dict[str, list[str]] = {}
    for size in results.summary.runs[0].lesions_by_size:
        cells: list[str] = []
        ids: set[str] = set()
        for model in results.names():
            cases = _cases_of_size(results, model, size)
            ids |= {case["id"] for case in cases}
            cells.append(mean_text(map(value, cases)))
        if ids:
            columns[f"{_range_text(size)}, {counted(len(ids), 'scan')}"] = cells
    return columns


def _cases_of_size(results: Results, model: str, size: SizeFigures) -> list[ScanRow]:
    """The scans of all runs of a model whose lesions have this volume together."""
    high = float("inf") if size.to_ml is None else size.to_ml
    cases: list[ScanRow] = []
    for run in results.runs(model):
        for case in results.cases_of(run):
            volume = case["truth_ml"]
            if volume and size.from_ml <= volume < high:
                cases.append(case)
    return cases


def differences_text(results: Results) -> str:
    """Differences from the baseline; none where too few subjects allow no test."""
    baseline = results.summary.baseline
    tested = [d for d in results.summary.differences if d.p_holm is not None]
    if not tested:
        return ""
    lines: dict[str, list[str]] = {}
    figures = list(dict.fromkeys(d.figure for d in tested))
    for model in results.names():
        cells = {d.figure: _difference_text(d) for d in tested if d.model == model}
        if cells:
            lines[model] = [cells.get(figure, NOTHING) for figure in figures]

    heads = ["model", *(HEADS[figure] for figure in figures)]
    rows = [[f"`{model}`", *cells] for model, cells in lines.items()]
    about = (
        "Paired bootstrap over subjects. Brackets hold the 95 % interval; p is corrected over the "
        "models by Holm's method."
    )
    title = f"### Differences from `{baseline}`"
    return "\n\n".join([title, about, markdown_table(heads, rows)])


def _difference_text(difference: Difference) -> str:
    p = difference.p_holm
    chance = "p < 0.01" if p is not None and p < 0.01 else f"p {p:.2f}"
    return f"{number_text(difference.difference)} {interval_text(difference.interval)}, {chance}"


def mean_text(values: Iterable[float | None]) -> str:
    """The mean of what is defined, with three digits."""
    defined = [value for value in values if value is not None]
    return f"{sum(defined) / len(defined):.3f}" if defined else NOTHING


def number_text(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def model_table(results: Results, title: str, columns: dict[str, list[str]]) -> str:
    """A table with a row per model below its title, from the cells of each column."""
    shown = {head: cells for head, cells in columns.items() if {*cells} != {NOTHING}}
    if not shown:
        return ""
    names = [f"`{name}`" for name in results.names()]
    rows = [list(row) for row in zip(names, *shown.values(), strict=True)]
    return f"{title}\n\n{markdown_table(['model', *shown], rows)}"


def _range_text(size: SizeFigures) -> str:
    if size.to_ml is None:
        return f"from {size.from_ml:g} ml"
    return f"{size.from_ml:g} to {size.to_ml:g} ml"
