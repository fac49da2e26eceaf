"""Plant a synthetic lesion in a scan on its own grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import label

from evaluation import shapes, synthetic
from pipelines.cohort.cases import Case, grid_difference, load
from preprocessing.files import nearest
from preprocessing.images import Grid, array_axis, read_image
from preprocessing.register import carry_mask, resample
from preprocessing.scans import InputError, ScanError
from preprocessing.warp import Map, inverse

MARGIN_MM = 3.0  # between a lesion and the brain's surface, about
LARGEST = 0.5  # of the brain's volume
TRIES = 5  # places tried for a lesion that changes too little
VISIBLE = 0.1  # mean change that is enough, as a share of the brain's range
SAME_PLACE = 0.1  # mm: a scan whose voxels lie farther off is another one
VOLUMES = "1,20"


@dataclass(frozen=True)
class Head:
    """A test scan as it came in, with its brain (bool) on its own grid.

    `scan_from_atlas` maps atlas mm to its mm.
    """

    case: Case
    image: nib.Nifti1Image
    brain: np.ndarray
    scan_from_atlas: Map

    @property
    def data(self) -> np.ndarray:
        """Voxels (X, Y, Z)."""
        return np.asarray(self.image.dataobj)

    @property
    def grid(self) -> Grid:
        return Grid.of(self.image)

    @property
    def lr_axis(self) -> int:
        """The array axis that runs closest to left-right."""
        return array_axis(self.image.affine, 0)


@dataclass(frozen=True)
class Plan:
    """What is wanted of every scan: kinds in order, copies, seed.

    Lesions have volumes in ml (log-uniform), or the shapes of mask files.
    """

    kinds: list[str]
    per_scan: int
    volumes: tuple[float, float]
    masks: list[Path]
    seed: int


@dataclass(frozen=True)
class Source:
    """Where a lesion's shape comes from: `wanted_ml` of a drawn one, or a piece of a mask file."""

    wanted_ml: float
    path: Path | None = None
    piece: np.ndarray | None = None
    grid: Grid | None = None


def load_head(case: Case) -> Head:
    """Read the raw scan of a case, with its brain on the scan's own grid.

    ScanError where the file is no longer the scan that was preprocessed.
    """
    image = read_image(case.image)
    if not case.brain.is_file():
        raise ScanError(f"{case.brain}: no such file; run 'make preprocess' again.")
    prepared = load(case, image=False)
    home = prepared.home
    difference = grid_difference(Grid.of(image), home, SAME_PLACE)
    if difference:
        raise ScanError(
            f"{case.image}: {difference}, of which {case.sidecar.parents[1]} was made; "
            "run 'make preprocess' again."
        )
    atlas_from_scan = inverse(prepared.scan_from_atlas)
    brain = carry_mask(prepared.brain, prepared.grid, Grid.of(image), atlas_from_scan)
    if not brain.any():
        raise ScanError(
            f"{case.image}: its brain mask {case.brain.name} is empty on the scan's own grid."
        )
    return Head(case, image, brain, prepared.scan_from_atlas)


def in_atlas(case: Case) -> Head:
    """A preprocessed case as a scan in atlas space to plant lesions in."""
    prepared = load(case)
    image = nib.Nifti1Image(prepared.channels[0], prepared.grid.affine)
    return Head(case, image, prepared.brain, np.eye(4))


def donor_on(head: Head, donor: Head) -> tuple[np.ndarray, np.ndarray]:
    """The donor on the head's grid, through the atlas, with intensities matched.

    Gives where both have brain (bool) too.
    """
    donor_from_head = donor.scan_from_atlas @ inverse(head.scan_from_atlas)
    matched = synthetic.match_intensities(donor.data, donor.brain, head.data, head.brain)
    both = head.brain & carry_mask(donor.brain, donor.grid, head.grid, donor_from_head)
    return resample(matched, donor.grid, head.grid, donor_from_head, pad=None), both


def placed(lesion: np.ndarray, grid: Grid, onto: Grid, centre: np.ndarray) -> np.ndarray:
    """A lesion (bool) on another grid with its middle at `centre` mm, in the pose that it has."""
    middle = grid.affine[:3, :3] @ np.argwhere(lesion).mean(0) + grid.affine[:3, 3]
    lesion_from_head = np.eye(4)
    lesion_from_head[:3, 3] = middle - centre
    return carry_mask(lesion, grid, onto, lesion_from_head)


def largest_piece(path: Path) -> tuple[np.ndarray, Grid]:
    """The largest 26-connected lesion (bool) of a mask file; ScanError where it is empty."""
    image = read_image(path)
    pieces, n = label(np.asarray(image.dataobj) > 0, np.ones((3, 3, 3)))
    if n == 0:
        raise ScanError(f"{path}: the lesion mask is empty; take it out of the folder of --masks.")
    largest = np.bincount(pieces[pieces > 0]).argmax()
    return pieces == largest, Grid.of(image)


def plant_one(
    head: Head, kind: str, plan: Plan, rng: np.random.Generator, donor: Head | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """One lesion in a scan: the new image float32, the lesion (bool), and a record of it.

    A lesion that changes next to nothing (white matter for white matter) is drawn again elsewhere,
    TRIES times at most. The first that VISIBLE allows is taken, or else the strongest.
    """
    room = head.brain
    foreign = None
    if kind == "mirror":
        room = room & synthetic.mirrored(room, room, head.lr_axis)
    elif donor is not None:
        foreign, room = donor_on(head, donor)
    source = _source(head, plan, room, rng)
    if kind == "mirror":
        foreign = synthetic.mirrored(head.data, room, head.lr_axis)

    best: tuple[np.ndarray, np.ndarray, dict[str, Any]] | None = None
    strongest = -1.0
    for _ in range(TRIES):
        shape, where = _drawn_shape(head, kind, room, source, rng)
        if not (shape & room).any():
            continue
        image, lesion = synthetic.plant(
            rng, kind, head.data, room, shape, head.grid.spacing, foreign
        )
        change = synthetic.visibility(head.data, image, room, lesion)
        if change > strongest:
            best = image, lesion, where
            strongest = change
        if strongest >= VISIBLE:
            break
    if best is None:
        raise ScanError(
            f"{head.case.image}: the lesion of {source.path} leaves no voxel on this grid; "
            "take it out of the folder of --masks."
        )
    image, lesion, where = best
    record = {
        "kind": kind,
        "volume_ml": float(lesion.sum()) * voxel_ml(head.grid),
        "wanted_ml": source.wanted_ml,
        "change": strongest,
        **where,
        "shape": source.path or "generated",
        "donor": donor.case.id if donor else None,
    }
    return image, lesion, record


def _source(head: Head, plan: Plan, room: np.ndarray, rng: np.random.Generator) -> Source:
    """Draw the lesion's source; ScanError where it is too large for the brain."""
    if plan.masks:
        path = plan.masks[rng.integers(len(plan.masks))]
        piece, grid = largest_piece(path)
        source = Source(float(piece.sum()) * voxel_ml(grid), path, piece, grid)
    else:
        source = Source(float(np.exp(rng.uniform(*np.log(plan.volumes)))))
    if source.wanted_ml > LARGEST * room.sum() * voxel_ml(head.grid):
        advice = "give smaller --volumes"
        if source.path:
            advice = f"take {source.path} out of the folder of --masks"
        raise ScanError(
            f"{head.case.image}: a lesion of {source.wanted_ml:.3g} ml has no place in this brain; "
            f"{advice}."
        )
    return source


def _drawn_shape(
    head: Head, kind: str, room: np.ndarray, source: Source, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """A lesion's shape (bool) at a drawn place, and the place."""
    side = synthetic.hemisphere(rng, room, head.lr_axis) if kind == "mirror" else room
    spacing = head.grid.spacing
    voxel = shapes.place(rng, side, spacing, source.wanted_ml, MARGIN_MM)
    centre = head.grid.affine[:3, :3] @ voxel + head.grid.affine[:3, 3]
    if source.piece is None or source.grid is None:
        shape = shapes.random_shape(rng, room.shape, spacing, voxel, source.wanted_ml)
    else:
        shape = placed(source.piece, source.grid, head.grid, centre)
    return shape, {"centre_mm": centre, "centre_voxel": voxel}


def voxel_ml(grid: Grid) -> float:
    """Volume of a voxel in ml."""
    return float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000


def kinds_of(text: str | None) -> list[str]:
    """Kinds of lesions in the order given, by default all; InputError for an unknown one."""
    kinds = [k.strip() for k in text.split(",")] if text else list(synthetic.KINDS)
    for kind in kinds:
        if kind not in synthetic.KINDS:
            known = ", ".join(synthetic.KINDS)
            raise InputError(
                f"--kinds: unknown kind '{kind}'; expected some of {known}"
                f"{nearest(kind, synthetic.KINDS)}"
            )
    return kinds


def volumes_of(text: str | None) -> tuple[float, float]:
    """Smallest and largest volume in ml; InputError for what is no such pair."""
    text = text or VOLUMES
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError:
        low = float("nan")
        high = float("nan")
    if not (0 < low <= high < float("inf")):
        raise InputError(
            f"--volumes: '{text}'; expected smallest and largest volume in ml, both positive, "
            f"such as {VOLUMES}."
        )
    return low, high
