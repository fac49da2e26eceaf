"""What readers have rejected, and how it damps a finding that is like it.

A rejected finding is kept as its place in the atlas, volume, shape and map profile. Two findings
are alike by exp(-d²/2), where d² sums their squared differences in units of `SCALES`. The strength
of a finding is multiplied by 1 - DAMPING x likeness for each of the NEAREST entries most like it.
One entry halves at most, three leave an eighth: what is stronger than eight levels always stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.ndimage import find_objects
from skimage.measure import label

from evaluation.postprocess import components
from pipelines.detect.config import Postprocess
from pipelines.detect.detector import NativeMap, cut
from pipelines.detect.folder import MEMORY
from pipelines.detect.points import Point
from preprocessing.files import plain, read_json, write_json
from preprocessing.scans import InputError
from preprocessing.warp import Map, carry, inverse

MOST = 500  # entries
NEAREST = 3  # readers err: one opinion alone does not silence a place
DAMPING = 0.5  # by one entry that is the very same
NAMED = 0.05  # an entry less like a finding than that is not named

# What counts as a difference of one. A place wanders by about a centimetre between heads that were
# laid on an atlas rigidly; a component's volume doubles with a small change of the outline.
SCALES = np.array(
    [10.0, 10.0, 10.0, np.log(2), np.log(1.5), np.log(1.5), 0.25, 0.25]
)  # place (mm), volume, peak, mean, elongation, compactness

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Features(BaseModel):
    """A component as it is compared.

    `place_mm` is its peak in the atlas (x, y, z), `peak` and `mean` are of the map. `elongation` is
    1 - shortest / longest axis; `compactness` its share of the ellipsoid of its moments. Both are
    None where the shape is not known.
    """

    model_config = ConfigDict(frozen=True)

    place_mm: list[Finite] = Field(min_length=3, max_length=3)
    volume_mm3: Positive
    peak: Positive
    mean: Positive
    elongation: Share | None = None
    compactness: Share | None = None

    @property
    def vector(self) -> np.ndarray:
        """In units of SCALES, (8,); NaN where the shape is not known."""
        shape = [np.nan if v is None else v for v in (self.elongation, self.compactness)]
        logs = np.log([self.volume_mm3, self.peak, self.mean])
        return np.array([*self.place_mm, *logs, *shape]) / SCALES


class Entry(Features):
    """A rejected component: its features, its strength, and who rejected it where and when."""

    number: int
    strength: float | None = None
    study: str
    reader: str = ""
    date: str = ""


class Memory(BaseModel):
    """memory.json of a run.

    `next` is the number of the next entry: none is given twice. `results` are digests of results
    that opinions may be of. `loss` is what was measured before the memory was accepted.
    """

    next: int = 1
    results: list[str] = []
    entries: list[Entry] = []
    loss: dict[str, Any] = {}

    @property
    def vectors(self) -> np.ndarray:
        """(entries, 8)."""
        return np.array([entry.vector for entry in self.entries]).reshape(-1, len(SCALES))


class Because(BaseModel):
    """An entry that damped a finding, and how alike they are (0 to 1)."""

    entry: int
    likeness: float
    study: str
    reader: str
    date: str


class Taken(BaseModel):
    """A finding that the memory took away: where and how large, its strength before and after."""

    peak_voxel: list[int]
    peak_atlas_mm: list[float]
    volume_mm3: float
    strength: float
    damped: float
    because: list[Because]


class Recalled(BaseModel):
    """What the memory of a run did to a scan: its number of entries, and the findings it took."""

    entries: int
    taken: list[Taken]

    @property
    def flags(self) -> list[str]:
        """A sentence where findings were taken away."""
        if not self.taken:
            return []
        numbers: list[int] = []
        for taken in self.taken:
            numbers += [one.entry for one in taken.because]
        named = ", ".join(str(number) for number in sorted(set(numbers)))
        return [
            f"findings not marked, as they are like what readers have rejected: {len(self.taken)} "
            f"(by the run's memory, entries {named})"
        ]


def likeness(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How like features (8,) are to those of entries (N, 8): (N,) in 0..1. Unknown ones are equal.

    See the head of this file.
    """
    return np.exp(-0.5 * np.nansum((others - one) ** 2, axis=-1))


def damping(alike: np.ndarray) -> float:
    """What a strength is multiplied by, from the likeness (N,) to every entry: 0.125 to 1."""
    nearest = np.sort(alike)[::-1][:NEAREST]
    return float(np.prod(1 - DAMPING * nearest))


def shape_of(voxels: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Elongation and compactness, 0 to 1, of the voxels (N, 3) of a component.

    A ball has (0, 1). A voxel has the extent that it has, so that one alone has a shape.
    """
    axes = affine[:3, :3]
    spread = voxels - voxels.mean(0)
    within = np.eye(3) / 12  # the variance of a box of side one
    covariance = axes @ (spread.T @ spread / len(voxels) + within) @ axes.T
    variances = np.linalg.eigvalsh(covariance).clip(min=0)
    ellipsoid = 4 / 3 * np.pi * np.prod(np.sqrt(5 * variances))
    volume = len(voxels) * abs(np.linalg.det(axes))
    elongation = 1 - np.sqrt(variances[0] / variances[-1])
    return float(elongation), float(min(volume / ellipsoid, 1.0))


def features_of(
    found: Mapping[str, Any], voxels: np.ndarray, affine: np.ndarray, atlas_from_scan: Map
) -> Features:
    """Features of a component as `evaluation.postprocess.components` gives it, with its voxels."""
    place = carry(atlas_from_scan, np.array([found["peak_mm"]], float))[0]
    elongation, compactness = shape_of(voxels, affine)
    return Features(
        place_mm=place.round(1).tolist(),
        volume_mm3=found["volume_mm3"],
        peak=found["peak"],
        mean=found["mean"],
        elongation=round(elongation, 4),
        compactness=round(compactness, 4),
    )


def described(
    native: NativeMap, labels: np.ndarray, at: Point, scan_from_atlas: Map
) -> list[tuple[dict[str, Any], Features, int]]:
    """Each marked component, strongest first, with its features and its number in `labels`."""
    affine = native.grid.affine
    atlas_from_scan = inverse(scan_from_atlas)
    boxes = find_objects(labels)
    rows: list[tuple[dict[str, Any], Features, int]] = []
    for found in components(labels > 0, native.map, affine, at.voxel, at.strength):
        number = int(labels[tuple(found["peak_voxel"])])
        box = boxes[number - 1]
        corner = [side.start for side in box]
        voxels = np.argwhere(labels[box] == number) + corner
        rows.append((found, features_of(found, voxels, affine, atlas_from_scan), number))
    return rows


def recall(
    memory: Memory, native: NativeMap, at: Point, config: Postprocess, scan_from_atlas: Map
) -> tuple[np.ndarray, Recalled]:
    """What a native map marks (bool) at a point with a memory, and what that took away.

    A component stays where its damped strength still passes the point's level (`level_of`).
    """
    marked = cut(native, at, config)
    level = level_of(at)
    labels = label(marked, connectivity=3)
    vectors = memory.vectors
    taken: list[Taken] = []
    for found, features, number in described(native, labels, at, scan_from_atlas):
        alike = likeness(features.vector, vectors)
        damped = found["strength"] * damping(alike)
        if damped > level or damped == found["strength"]:
            continue
        marked[labels == number] = False
        because = _because(memory.entries, alike)
        about = plain(found | {"peak_atlas_mm": features.place_mm, "damped": damped})
        taken.append(Taken(**about, because=because))
    return marked, Recalled(entries=len(memory.entries), taken=taken)


def level_of(at: Point) -> float:
    """What the strength of any component passes at a point.

    That is its level of components. A peak passes the threshold of voxels too.
    """
    level = 0.0 if at.component is None else at.component
    return max(level, at.voxel) if at.strength == "peak" else level


def _because(entries: Sequence[Entry], alike: np.ndarray) -> list[Because]:
    """The entries that damped a finding, the most alike first; at least one."""
    rows: list[Because] = []
    for i in np.argsort(-alike)[:NEAREST]:
        entry = entries[i]
        if alike[i] >= NAMED or not rows:
            about = {"study": entry.study, "reader": entry.reader, "date": entry.date}
            rows.append(Because(entry=entry.number, likeness=round(float(alike[i]), 4), **about))
    return rows


def write_memory(memory: Memory, run_dir: Path) -> None:
    """Write memory.json of a run."""
    write_json(run_dir / MEMORY, memory.model_dump())


def read_memory(run_dir: Path) -> Memory | None:
    """memory.json of a run; None for a run without one. InputError where it is damaged."""
    path = run_dir / MEMORY
    if not path.is_file():
        return None
    try:
        return Memory(**read_json(path))
    except (ValidationError, TypeError):
        raise InputError(
            f"{path}: damaged; make the run again with 'make learn', or use its parent."
        ) from None
