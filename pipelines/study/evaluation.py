"""The typed result of an evaluation, as evaluation.json holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypedDict

from evaluation import lesions, protocol
from evaluation.groups import healthy_groups
from evaluation.metrics import VoxelHistogram
from pipelines.detect.points import Point
from preprocessing.files import plain, read_json, write_rows
from preprocessing.scans import InputError

OPEN = ConfigDict(extra="allow")  # columns of the user's table have figures of their own


class ScanRow(TypedDict, total=False):
    """What one scan measures on its own grid inside its brain; volumes in ml, distances in mm.

    Figures of lesions are there where the truth is known; a healthy scan has no Dice.
    """

    __pydantic_config__ = OPEN  # type: ignore[misc]

    id: str
    subject: str
    label: str
    pathology: str
    score: float
    percentile: float
    marked_ml: float
    brain_ml: float
    spacing_mm: float
    brain_voxels: int
    above_voxels: int
    mask_voxels: int
    findings: int
    dice: float | None
    hd95: float | None
    peak_mm: float | None
    voxel_ap: float | None
    voxel_auroc: float | None
    truth_ml: float
    truth_voxels: int
    truth_outside_brain_ml: float
    overlap_voxels: int
    false_positive_ml: float
    lesions: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    outlined: list[dict[str, Any]]


class SliceRow(TypedDict, total=False):
    """Label (1 abnormal, 0 healthy, null unknown) and score of an axial slice, `<scan>/<index>`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    id: str
    label: int | None
    score: float


class Failure(BaseModel):
    """A test scan that could not be evaluated, and why."""

    id: str
    reason: str


class Evaluation(BaseModel):
    """A run measured on the test scans of a cohort at an operating point.

    `summary` holds every figure of evaluation/protocol.py; `voxels` are rows of the pooled voxel
    histogram of the scans with a lesion mask, `others` upper edge and count of all further voxels
    without lesion (none in files of before). All figures follow from scans, slices and voxels.
    """

    model: str
    data: str
    protocol: dict[str, Any]
    point: Point
    points: dict[str, float]
    command: str
    versions: dict[str, str]
    seconds_per_scan: float
    n_healthy_reference: int
    key: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    training: dict[str, Any]
    failures: list[Failure]
    voxels: list[list[int | float]]
    others: list[list[int | float]] = []
    scans: list[ScanRow]
    slices: list[SliceRow]
    summary: dict[str, int | float | None] = {}
    classes: dict[str, list[dict[str, Any]]] = {}
    healthy_groups: dict[str, list[dict[str, Any]]] = {}
    lesions_by_size: list[dict[str, Any]] = []
    precision_by_size: list[dict[str, Any]] = []
    found_at_1_by_size: list[dict[str, Any]] = []
    froc: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """An evaluation from its file; InputError where that is damaged."""
        try:
            return cls(**read_json(path))
        except (TypeError, ValidationError):
            raise InputError(
                f"{path}: not an evaluation as 'make evaluate' writes it; move it away and "
                "evaluate again."
            ) from None

    def write(self, path: Path) -> None:
        write_rows(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """As it is stored; NaN as null."""
        return plain(self.model_dump() | {"point": self.point.as_json()})

    def with_figures(self) -> Evaluation:
        """The same with every figure, computed from its scans, slices, voxels and point."""
        return Evaluation(**(self.as_json() | plain(all_figures(self))))


def all_figures(result: Evaluation) -> dict[str, Any]:
    """Every figure of a result, from its scans, slices, voxels and operating point alone."""
    with_lesion = [scan for scan in result.scans if scan.get("truth_voxels")]
    found: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for scan in with_lesion:
        found += scan["lesions"]
        candidates += scan["candidates"]

    at_one = protocol.strong_above(result.scans, 1.0)
    voxels = VoxelHistogram.from_rows(result.voxels)
    others = VoxelHistogram.from_rows([[*row, 0] for row in result.others])
    columns = result.protocol["by"]
    classes = {c: protocol.classes(result.scans, result.slices, c) for c in columns}
    measured = (*columns, "brain_ml", "spacing_mm")
    return {
        "summary": protocol.summarise(
            result.scans,
            result.slices,
            voxels,
            result.point.scan,
            result.points,
            others if result.others else None,
        ),
        "classes": classes,
        "healthy_groups": {c: healthy_groups(result.scans, c) for c in measured},
        "lesions_by_size": lesions.by_size(found) if with_lesion else [],
        "precision_by_size": lesions.precision_by_size(candidates) if with_lesion else [],
        "found_at_1_by_size": lesions.by_size(at_one) if at_one else [],
        "froc": lesions.froc(found, candidates, len(with_lesion)) if with_lesion else {},
    }
