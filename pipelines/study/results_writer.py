"""Writing the results folder of a comparison, see results_file.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pipelines.study.columns import Table, write_columns
from pipelines.study.evaluation import ScanRow, SliceRow
from pipelines.study.results_file import (
    FINDINGS,
    FORMAT,
    KEYS,
    LESIONS,
    SUMMARY,
    VOXELS,
    RunSummary,
    Setup,
    Summary,
    file_of,
)
from preprocessing.files import write_rows

Rows = Iterator[dict[str, Any]]
Runs = dict[str, list[dict[str, Any]]]  # by model, as UnitResult.as_row gives them


def write_results(folder: Path, comparison: dict[str, Any], runs: Runs) -> None:
    """Write the results folder of a comparison; the summary comes last.

    `comparison` is the content of <name>_comparison.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_edge = sorted(_voxel_rows(runs), key=lambda row: row["edge"])  # equal edges pack well
    tables = {
        "cases": (_columns(ScanRow, runs, "scans"), _case_rows(runs)),
        "slices": (_columns(SliceRow, runs, "slices"), _with_keys(runs, "slices")),
        "lesions": (LESIONS, _lesion_rows(runs)),
        "voxels": (VOXELS, iter(by_edge)),
    }
    written: dict[str, Table] = {}
    for name, (columns, rows) in tables.items():
        written[file_of(name)] = write_columns(folder / file_of(name), columns, rows)
    summary = summary_of(comparison, runs, written)
    write_rows(folder / SUMMARY, summary.model_dump(exclude_unset=True, by_alias=True))


def summary_of(comparison: dict[str, Any], runs: Runs, tables: dict[str, Table]) -> Summary:
    """A comparison with the settings of its models, and its runs without their rows."""
    models: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    setups: list[dict[str, Any]] = []
    for entry in comparison["models"]:
        name = entry["model"]
        first = runs[name][0]
        settings = {"config": first["config"], "recipe": first["recipe"]}
        models.append({k: v for k, v in entry.items() if k != "runs"} | settings)

        for number, run in enumerate(runs[name]):
            training = run["training"]
            setup = {key: training[key] for key in Setup.model_fields if key in training}
            if setup not in setups:
                setups.append(setup)
            entries.append(
                {key: run[key] for key in RunSummary.model_fields if key in run}
                | {
                    "model": name,
                    "run": number,
                    "setup": setups.index(setup),
                    "train_seconds": training["seconds"],
                    "parameters": training.get("parameters"),
                }
            )
    content = {key: value for key, value in comparison.items() if key != "models"}
    lists = {"models": models, "runs": entries, "setups": setups}
    return Summary(format=FORMAT, **content, **lists, tables=tables)


def _columns(row_type: type, runs: Runs, key: str) -> list[str]:
    """The columns of a table: those that every row may have, then those of the user's table."""
    names = dict.fromkeys([*KEYS, *get_type_hints(row_type)])
    for row in _with_keys(runs, key):
        names |= dict.fromkeys(row)
    return [name for name in names if name not in FINDINGS.values()]


def _with_keys(runs: Runs, key: str) -> Rows:
    """The rows of all runs behind the model and the number of their run."""
    for model, results in runs.items():
        for number, result in enumerate(results):
            for row in result[key]:
                yield {"model": model, "run": number} | row


def _case_rows(runs: Runs) -> Rows:
    for row in _with_keys(runs, "scans"):
        yield {key: value for key, value in row.items() if key not in FINDINGS.values()}


def _lesion_rows(runs: Runs) -> Rows:
    for row in _with_keys(runs, "scans"):
        start = {key: row[key] for key in (*KEYS, "id")}
        for kind, key in FINDINGS.items():
            for finding in row.get(key, []):
                yield start | {"kind": kind} | finding


def _voxel_rows(runs: Runs) -> Rows:
    for model, results in runs.items():
        for number, result in enumerate(results):
            others = dict(result.get("others", []))
            voxels = {edge: counts for edge, *counts in result["voxels"]}
            for edge in {**voxels, **others}:
                counts = voxels.get(edge, [None, None])
                row = [model, number, edge, *counts, others.get(edge)]
                yield dict(zip(VOXELS, row, strict=True))
