"""The report of a scan: score, percentile, components, flags. It is written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import BaseModel, ConfigDict, PrivateAttr

from evaluation.postprocess import components, location_of_maximum
from evaluation.thresholds import p_value_of
from pipelines.detect.detector import NativeMap
from pipelines.detect.gate import Gate
from pipelines.detect.memory import Recalled
from pipelines.detect.places import depths_of, lobes_of, place_of
from pipelines.detect.points import Point
from pipelines.detect.typical import Compared
from pipelines.versions import __version__, shown_path
from preprocessing.files import plain, write_json
from preprocessing.images import save_nifti
from preprocessing.scans import NOTICE, Scan
from preprocessing.warp import Map, carry, inverse

COLUMNS = (
    "id",
    "image",
    "status",
    "score",
    "percentile",
    "anomalous_ml",
    "components",
    "verdict",
    "p_typical",
    "flags",
    "reason",
    "run",
)
# what `pipelines/export/dicom.py` writes of a result, after `<id>_`
DICOM_FILES = ("mask.dcm", "map.dcm", "report.dcm")
LISTED = 20  # components that a report describes, the strongest ones


class Component(BaseModel):
    """A 26-connected piece of what is marked.

    `*_voxel` are array indices, `*_mm` RAS+ millimetres of the scan, `*_atlas_mm` of the atlas.
    `peak` and `mean` are of the map inside it. `strength` is what it is ranked by. `p_value` says
    how often a healthy scan has a component as strong, at most. `depth_mm` is how far its peak lies
    below the brain's surface. `place` says in words where it lies: side, lobe and depth.
    """

    volume_mm3: float
    n_voxels: int
    centre_voxel: list[float]
    centre_mm: list[float]
    peak_voxel: list[int]
    peak_mm: list[float]
    peak: float
    mean: float
    strength: float | None = None
    p_value: float | None = None
    centre_atlas_mm: list[float]
    peak_atlas_mm: list[float]
    depth_mm: float | None = None
    place: str = ""

    @property
    def summary(self) -> str:
        """Volume and place, for a table."""
        return f"{self.volume_mm3 / 1000:.1f} ml, {self.place}".removesuffix(", ")


class Maximum(BaseModel):
    """Where the map is highest: array indices, RAS+ mm of scan and atlas, and the value."""

    voxel: list[int]
    mm: list[float]
    value: float
    atlas_mm: list[float]


class CheckRow(BaseModel):
    """A check of preprocessing as it is written: value, unit, what was expected, if it passed."""

    name: str
    value: float | None
    unit: str
    hard: bool
    expected: str
    passed: bool


class Report(BaseModel):
    """What `make infer` says of one scan; the fields of a scan that was not scored end at `reason`.

    `score` is in the units of the map; `percentile` is its rank among healthy validation scans.
    `promise` says how often a healthy scan shows a finding, and where that is not promised.
    Components are listed by strength.
    `typical` compares the scan with the training scans feature by feature, `gate` as a whole.
    `memory`, of a run that has one, names the findings that it took away and because of whom.
    `dicom` names the series that was converted by folder, UID and number. Volumes are mm³.
    `fingerprint` and `files` (bytes by name) tell whether a result still stands,
    `source` and `digest` of which file it is.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    image: str = ""
    dicom: dict[str, str] | None = None
    status: Literal["scored", "not scored"]
    reason: str | None = None
    notice: str = NOTICE
    norma: str = __version__
    checks: list[CheckRow] = []
    flags: list[str] = []
    typical: list[Compared] = []
    gate: Gate | None = None
    memory: Recalled | None = None
    score: float | None = None
    percentile: float | None = None
    percentile_of: str | None = None
    threshold: float | None = None
    component_threshold: float | None = None
    promise: str | None = None
    anomalous_mm3: float | None = None
    n_components: int | None = None
    components: list[Component] = []
    maximum: Maximum | None = None
    coordinates: str | None = None
    model: str | None = None
    run: str | None = None
    sequences: dict[str, str] | None = None
    brain_mask: str | None = None
    fingerprint: str | None = None
    files: dict[str, int] | None = None
    source: str | None = None
    digest: str | None = None
    _seconds: float | None = PrivateAttr(None)  # not written: the same scan gives the same file

    def took(self, seconds: float) -> None:
        """Note how long the scan took, in this process."""
        self._seconds = seconds

    @property
    def seconds(self) -> float | None:
        """How long the scan took; None for a report that stood."""
        return self._seconds

    @property
    def scored(self) -> bool:
        return self.status == "scored"

    @property
    def of_lungs(self) -> bool:
        """Whether the scan is a chest CT, in which there is no brain."""
        return any(check.name == "lung volume" for check in self.checks)

    @property
    def largest(self) -> Component | None:
        """The component of the largest volume; None where nothing is marked."""
        return max(self.components, key=lambda found: found.volume_mm3, default=None)

    def as_json(self) -> dict[str, Any]:
        """As it is stored: what was set, and nothing else."""
        return self.model_dump(exclude_unset=True)

    def row(self) -> dict[str, Any]:
        """The report as a row of scores.tsv."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"id": self.id, "image": self.image or None, "status": self.status}
        row |= {"percentile": self.percentile, "reason": self.reason, "run": self.run}
        if self.scored:
            assert self.score is not None and self.anomalous_mm3 is not None
            row |= {
                "score": f"{self.score:.6g}",
                "anomalous_ml": f"{self.anomalous_mm3 / 1000:.3f}",
                "components": self.n_components,
                "flags": "; ".join(self.flags),
            }
            if self.gate:
                row |= {"verdict": self.gate.verdict, "p_typical": self.gate.p_value}
        return row


@dataclass(frozen=True)
class Detection:
    """A scored scan: `mask` (uint8) and `map` (float32) on the grid of the scan, and its report."""

    mask: nib.Nifti1Image
    map: nib.Nifti1Image
    report: Report

    def save(self, out: Path) -> None:
        """Write `<id>_map.nii.gz`, `<id>_mask.nii.gz` and, last, `<id>_report.json` to a folder."""
        name = self.report.id
        out.mkdir(parents=True, exist_ok=True)
        for old in ("report.json", "mask.nii.gz", *DICOM_FILES):  # must not stand beside a new map
            (out / f"{name}_{old}").unlink(missing_ok=True)
        save_nifti(self.map, out / f"{name}_map.nii.gz")
        save_nifti(self.mask, out / f"{name}_mask.nii.gz")
        names = (f"{name}_map.nii.gz", f"{name}_mask.nii.gz")
        self.report.files = {file: (out / file).stat().st_size for file in names}
        write_json(out / f"{name}_report.json", self.report.as_json())


def findings(
    native: NativeMap,
    marked: np.ndarray,
    scan_from_atlas: Map,
    at: Point,
    healthy: np.ndarray,
    organ: str = "brain",
) -> dict[str, Any]:
    """The fields of a report that say what is marked (bool, on the scan's grid) and where.

    `healthy` holds the strength of each healthy scan's strongest component (N,); without them
    there are no p-values. Lobes are named in a brain alone.
    """
    found = components(marked, native.map, native.grid.affine, at.voxel, at.strength)
    if healthy.size:
        for component in found:
            component["p_value"] = p_value_of(component["strength"], healthy)
    maximum = location_of_maximum(native.map, native.grid.affine)
    atlas_from_scan = inverse(scan_from_atlas)
    for place in (*found, maximum):
        for key in [k for k in place if k.endswith("mm")]:
            atlas_mm = carry(atlas_from_scan, np.array([place[key]], float))[0].round(1)
            place[key.replace("mm", "atlas_mm")] = atlas_mm
    _name_places(found, native, marked, atlas_from_scan, organ)
    where = "in the atlas" if organ == "brain" else "from the middle of the lungs"
    listed = [Component(**plain(component)) for component in found[:LISTED]]
    return {
        "anomalous_mm3": float(marked.sum() * np.prod(native.spacing)),
        "n_components": len(found),
        "components": listed,
        "maximum": Maximum(**plain(maximum)),
        "coordinates": f"RAS+ millimetres; *_mm in the scan's world, *_atlas_mm {where}",
    }


def _name_places(
    found: Sequence[dict[str, Any]],
    native: NativeMap,
    marked: np.ndarray,
    atlas_from_scan: Map,
    organ: str,
) -> None:
    """Give each component its depth, and its place in words; a picture has no atlas."""
    if min(native.grid.shape) == 1:
        return
    affine = native.grid.affine
    lobes = [organ] * len(found)
    if organ == "brain":
        lobes = lobes_of(marked, found, atlas_from_scan @ affine)
    peaks = np.array([component["peak_voxel"] for component in found]).reshape(-1, 3)
    depths = depths_of(native.brain, affine, peaks)
    for component, lobe, depth in zip(found, lobes, depths, strict=True):
        component["depth_mm"] = round(float(depth), 1)
        component["place"] = place_of(lobe, component["centre_atlas_mm"], depth)


def of_scan(scan: Scan, root: Path | None = None) -> dict[str, Any]:
    """The fields of a report that name the scan; files by their way from `root`.

    A DICOM scan is called by its series: the converted image is gone afterwards.
    """
    fields: dict[str, Any] = {"id": scan.id, "image": shown_path(scan.image, root)}
    if scan.origin:
        number = scan.origin["series_number"] or "without number"
        fields["image"] = f"{scan.origin['folder']}, series {number}"
        fields["dicom"] = scan.origin
    if scan.sequences:
        fields["sequences"] = {n: shown_path(path, root) for n, path in scan.sequences.items()}
    return fields
