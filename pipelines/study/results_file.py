"""The results folder of a comparison: what its figures are computed from, small enough for git.

| file | content |
|---|---|
| `summary.json` | figures, settings, commands, versions; one entry per model and one per run |
| `cases.csv.gz` | a row per run and test scan: labels, score, volumes, Dice |
| `slices.csv.gz` | a row per run and slice: label and score |
| `lesions.csv.gz` | a row per run and true lesion, and one per marked component |
| `voxels.csv.gz` | the pooled voxel histogram of each run |

Every table begins with the columns `model` and `run`. `run` counts the runs of a model from 0.
Numbers have all their digits, so that each figure can be computed again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.detect.points import Point
from pipelines.study.columns import Table, digest_of_columns, read_columns
from pipelines.study.evaluation import Failure, ScanRow, SliceRow
from pipelines.study.protocol import Protocol
from preprocessing.files import read_json
from preprocessing.scans import InputError

FORMAT = 1
ENDING = "_results"  # of the folder's name in the OUT of `make compare`
SUMMARY = "summary.json"
TABLES = ("cases", "slices", "lesions", "voxels")

KEYS = ["model", "run"]
# Kind in lesions.csv.gz, and key of a ScanRow.
FINDINGS = {"lesion": "lesions", "marked": "candidates", "outlined": "outlined"}
LESIONS = [*KEYS, "id", "kind", "volume_ml", "covered", "score", "true", "strength"]
VOXELS = [*KEYS, "edge", "healthy", "lesion", "other"]


class Figure(BaseModel):
    """A figure over the runs of a model; None where it is not defined."""

    mean: float | None
    sd: float | None
    n: int
    interval: tuple[float | None, float | None] | None = None


class ClassFigures(BaseModel):
    """The figures of one class of a column, against all healthy scans."""

    name: str = Field(alias="class")
    n: int
    n_slices: int
    scan_auroc: float | None
    slicewise_auroc: float | None
    dice_mean: float | None
    voxel_ap_mean: float | None


class SizeFigures(BaseModel):
    """Lesions of a range of volumes, and how many of them were found; no upper end is None."""

    from_ml: float
    to_ml: float | None
    n: int
    detected: int
    sensitivity: float | None


class Setup(BaseModel):
    """What trainings share: data, splits, machine, versions and command."""

    data: str
    data_digest: str | None = None
    device: str | None = None
    threads: int | None = None
    versions: dict[str, str] | None = None
    command: list[str] | None = None
    train_scans: list[str] = []
    val_scans: list[str] = []
    tune_scans: list[str] | None = None


class RunSummary(BaseModel):
    """A run of a model. `setup` is its number in the list of setups.

    `chosen` names the model behind a run of the row "chosen".
    """

    model: str
    chosen: str | None = None
    run: int
    seed: int
    repeat: int | None
    fold: int | None
    setup: int
    train_seconds: float
    parameters: int | None = None
    seconds_per_scan: float
    key: str | None = None
    point: Point
    points: dict[str, float]
    summary: dict[str, int | float | None]
    classes: dict[str, list[ClassFigures]]
    lesions_by_size: list[SizeFigures]
    precision_by_size: list[dict[str, int | float | None]]
    found_at_1_by_size: list[SizeFigures] = []
    failures: list[Failure]


class ModelSummary(BaseModel):
    """A model of a comparison: its settings, and its figures over all runs."""

    model: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    figures: dict[str, Figure]
    train_seconds: float
    seconds_per_scan: float


class Difference(BaseModel):
    """A figure of a model minus that of the baseline."""

    model: str
    figure: str
    difference: float
    interval: tuple[float | None, float | None]
    p: float | None
    p_holm: float | None


class Summary(BaseModel):
    """summary.json of a results folder."""

    model_config = ConfigDict(extra="forbid")

    format: int
    name: str
    data: str
    trained_on: str
    protocol: Protocol
    protocol_text: str
    command: str
    versions: dict[str, str]
    baseline: str
    failures: list[str]
    tables: dict[str, Table]
    models: list[ModelSummary]
    runs: list[RunSummary]
    setups: list[Setup]
    differences: list[Difference]


@dataclass(frozen=True)
class Results:
    """A results folder: the summary at once, the columns when they are asked for."""

    folder: Path
    summary: Summary

    @classmethod
    def read(cls, folder: Path) -> Results:
        """InputError where the summary is missing, damaged or of a newer format."""
        path = folder / SUMMARY
        content = read_json(path)
        found = content.get("format")
        if not isinstance(found, int) or found > FORMAT:
            raise InputError(
                f"{path}: results of format {found}; this version of Norma reads up to {FORMAT}."
            )
        try:
            return cls(folder, Summary(**content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path}: damaged at '{place}': {first['msg'].lower()}.") from None

    def names(self) -> list[str]:
        """The models in the order of the comparison."""
        return [entry.model for entry in self.summary.models]

    def model(self, name: str) -> ModelSummary:
        """InputError where the comparison has no such model."""
        for entry in self.summary.models:
            if entry.model == name:
                return entry
        raise InputError(f"{self.folder}: no model '{name}', only {', '.join(self.names())}.")

    def runs(self, name: str) -> list[RunSummary]:
        """The runs of a model, in order."""
        return [run for run in self.summary.runs if run.model == name]

    def once(self, name: str) -> list[RunSummary]:
        """The runs of a model that test every scan once: all folds of the first repeat, or one."""
        runs = self.runs(name)
        if runs[0].fold is None:
            return runs[:1]
        return [run for run in runs if run.repeat == runs[0].repeat]

    def setup(self, run: RunSummary) -> Setup:
        return self.summary.setups[run.setup]

    def cases_of(self, run: RunSummary) -> list[ScanRow]:
        """The test scans of a run, with the lesions and marked components of each."""
        return self._cases[run.model, run.run]

    def slices_of(self, run: RunSummary) -> list[SliceRow]:
        """The slices of a run; none where the protocol has none."""
        return self._slices[run.model, run.run]

    def voxels_of(self, run: RunSummary) -> list[list[int | float]]:
        """Rows of the pooled voxel histogram of a run: upper edge, healthy, lesion."""
        return self._voxels[run.model, run.run]

    def others_of(self, run: RunSummary) -> list[list[int | float]]:
        """Rows of all further voxels without lesion of a run: upper edge, count."""
        return self._others[run.model, run.run]

    def check(self) -> None:
        """InputError where a table is not the one that the summary was written with."""
        for name, table in self.summary.tables.items():
            path = self.folder / name
            if digest_of_columns(path) != table.sha256:
                raise InputError(f"{path}: not the table that {SUMMARY} was written with.")

    @cached_property
    def _cases(self) -> dict[tuple[str, int], list[ScanRow]]:
        numbers = number_columns(ScanRow) | {"run"}
        cases: dict[tuple[str, int], list[Any]] = defaultdict(list)
        place: dict[tuple[str, int, str], dict[str, Any]] = {}
        for row in self._rows("cases", numbers):
            key = (row.pop("model"), row.pop("run"))
            if row["truth_voxels"] is not None:
                row |= {found: [] for found in FINDINGS.values()}
            cases[key].append(row)
            place[*key, row["id"]] = row

        for row in self._rows("lesions", {*LESIONS} - {"model", "id", "kind"}):
            case = place[row["model"], row["run"], row["id"]]
            case[FINDINGS[row["kind"]]].append(_finding(row))
        return cases

    @cached_property
    def _slices(self) -> dict[tuple[str, int], list[SliceRow]]:
        slices: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for row in self._rows("slices", number_columns(SliceRow) | {"run"}):
            slices[row.pop("model"), row.pop("run")].append(row)
        return slices

    @cached_property
    def _voxels(self) -> dict[tuple[str, int], list[list[int | float]]]:
        voxels: dict[tuple[str, int], list[list[int | float]]] = defaultdict(list)
        for row in self._rows("voxels", {*VOXELS} - {"model"}):
            bin_row = [row["edge"], row["healthy"], row["lesion"]]
            if row["healthy"] is not None:
                voxels[row["model"], row["run"]].append(bin_row)
        return voxels

    @cached_property
    def _others(self) -> dict[tuple[str, int], list[list[int | float]]]:
        others: dict[tuple[str, int], list[list[int | float]]] = defaultdict(list)
        for row in self._rows("voxels", {*VOXELS} - {"model"}):
            if row.get("other") is not None:  # files of before have no such column
                others[row["model"], row["run"]].append([row["edge"], row["other"]])
        return others

    def _rows(self, table: str, numbers: set[str]) -> Iterator[dict[str, Any]]:
        return read_columns(self.folder / file_of(table), lambda name: name not in numbers)


def file_of(table: str) -> str:
    """The file name of a table."""
    return f"{table}.csv.gz"


def number_columns(row_type: type) -> set[str]:
    """The columns of a row that hold numbers; columns of the user's table hold text."""
    return {name for name, hint in get_type_hints(row_type).items() if hint is not str}


def _finding(row: dict[str, Any]) -> dict[str, Any]:
    """A lesion or a marked component as evaluation/lesions.py takes it."""
    if row["kind"] == "lesion":
        measured = ("volume_ml", "covered", "score", "strength")
        return {key: row[key] for key in measured if row.get(key) is not None}
    true = {"true": bool(row["true"])}
    return {key: row[key] for key in ("volume_ml", "score")} | true
