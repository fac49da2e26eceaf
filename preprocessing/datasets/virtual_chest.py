"""A virtual cohort of chest CT, for `make preprocess MODALITY=chest_ct` without IN and the tests.

A chest is made of simple solids in mm: body with fat, ribs, spine, breastbone, two lungs with
vessels over the domes of the diaphragm, heart, windpipe and main bronchi, a table below. Test
subjects may have nodules or a consolidation, and their masks say where. It is no measure of how
well anything works on patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.datasets.virtual import as_nifti, written_cohort
from preprocessing.datasets.virtual_lesions import smooth_noise
from preprocessing.images import save_nifti

COHORT_VERSION = 1  # raise when the generator changes
VOXELS = ((2.2, 2.2, 3.0), (2.5, 2.5, 2.5), (1.8, 1.8, 5.0))  # mm
AXES = ("RAS", "LPS")
EXTENT = np.array([390.0, 330.0, 310.0])  # mm, of the field of view
NODULE_MM = (6.0, 15.0)  # radius
CONSOLIDATION_ML = (20.0, 120.0)


@dataclass
class Mark:
    """A planted nodule or consolidation: its volume, and what its mask measures on the scan."""

    kind: str
    wanted_ml: float
    measured_ml: float = 0.0


@dataclass
class Chest:
    """All that was drawn for one virtual chest.

    scale: of the body along each axis. lung_hu: of aerated lung. noise: HU.
    """

    id: str
    split: str
    label: str
    voxel_mm: list[float]
    axes: str
    scale: list[float]
    shift_mm: list[float]
    lung_hu: float
    noise: float
    marks: list[Mark] = field(default_factory=list)


def draw(seed: int, index: int, split: str, label: str, number: int = 0) -> Chest:
    """Draw a chest's parameters; `number` counts the abnormal ones, whose kinds alternate."""
    rng = np.random.default_rng([seed, index])
    chest = Chest(
        id=f"sub-{index:03d}",
        split=split,
        label=label,
        voxel_mm=list(VOXELS[rng.integers(len(VOXELS))]),
        axes=str(rng.choice(AXES)),
        scale=rng.uniform(0.92, 1.06, 3).tolist(),
        shift_mm=rng.uniform(-8, 8, 3).tolist(),
        lung_hu=float(rng.uniform(-880, -840)),
        noise=float(rng.uniform(10, 25)),
    )
    if label == "abnormal" and number % 2:
        chest.marks.append(Mark("consolidation", float(rng.uniform(*CONSOLIDATION_ML))))
    elif label == "abnormal":
        for radius in rng.uniform(*NODULE_MM, int(rng.integers(1, 4))):
            chest.marks.append(Mark("nodule", float(4 / 3 * np.pi * radius**3 / 1000)))
    return chest


def render(chest: Chest, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scan (X, Y, Z) in HU, float32, its lesion mask (bool) and its RAS+ affine."""
    rng = np.random.default_rng([seed, int(chest.id[4:]), 1])
    voxel = np.array(chest.voxel_mm)
    shape = tuple(int(n) for n in np.ceil(EXTENT / voxel))
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = np.array(chest.shift_mm) - voxel * (np.array(shape) - 1) / 2
    at = np.indices(shape, dtype=np.float32) * voxel[:, None, None, None].astype(np.float32)
    at += affine[:3, 3, None, None, None].astype(np.float32)
    for axis in range(3):  # a form of its own
        at[axis] = at[axis] / chest.scale[axis] + 3 * smooth_noise(rng, 30 / voxel, shape)

    hu, lungs = _body(at, chest.lung_hu, voxel, rng)
    lesions = np.zeros(shape, bool)
    for mark in chest.marks:
        shown = _mark_shape(mark, lungs & ~lesions, voxel, rng)
        grain = 25 * smooth_noise(rng, 3 / voxel, shape)
        hu = np.where(shown, 30 + grain, hu)
        mark.measured_ml = float(shown.sum() * voxel.prod() / 1000)
        lesions |= shown
    hu = ndimage.gaussian_filter(hu, 0.5)  # edges between tissues share voxels
    hu += chest.noise * rng.normal(size=shape).astype(np.float32)
    return np.clip(hu, -1024, 3000).astype(np.float32), lesions, affine


def _body(
    at: np.ndarray, lung_hu: float, voxel: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """HU of a healthy chest whose voxels lie at `at` (3, X, Y, Z) mm, and its lungs (bool)."""
    x, y, z = at
    hu = np.full(x.shape, -1000, np.float32)
    hu[(y < -128) & (y > -134) & (np.abs(x) < 180)] = 100  # the shell of a table
    outline = (np.abs(x / 165) ** 2.4 + np.abs(y / 115) ** 2.4) ** (1 / 2.4)
    hu[outline < 1] = -100
    hu[outline < 0.93] = 50

    cage = (np.abs(x / 145) ** 2.3 + np.abs(y / 98) ** 2.3) ** (1 / 2.3)
    rib = np.sin(2 * np.pi * (z - 0.35 * y) / 24) > 0.2  # ribs fall towards the front
    hu[(np.abs(cage - 0.96) < 0.035) & rib & (np.abs(z) < 135)] = 350
    hu[np.hypot(x, y + 82) < 17] = 300
    hu[(np.abs(x) < 14) & (np.abs(y - 93) < 6) & (np.abs(z) < 90)] = 300

    lungs = _lungs(x, y, z)
    lung = lung_hu + 50 * np.clip(-y / 85, -1, 1)  # gravity: denser at the back
    lung += 12 * smooth_noise(rng, 5 / voxel, x.shape)
    # where two smooth fields are both near 0, curves run: vessels
    a, b = (smooth_noise(rng, 11 / voxel, x.shape) for _ in range(2))
    lung += 800 * np.exp(-((np.hypot(a, b) / 0.16) ** 2))
    hu = np.where(lungs, lung, hu)
    _cut_airways(hu, x, y, z)
    return hu.astype(np.float32), lungs & (hu != -1000) & (hu != 40)


def _lungs(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Both lungs: a rounded solid each, over the diaphragm, beside mediastinum and heart."""
    side = np.abs(x) - 72
    solid = np.abs(side / 58) ** 2.5 + np.abs(y / 85) ** 2.5 + np.abs(z / 128) ** 2.5 < 1
    dome = -115 + 55 * np.exp(-(side**2 + y**2) / 70**2)
    heart = ((x + 28) / 58) ** 2 + ((y - 22) / 52) ** 2 + ((z + 40) / 58) ** 2 < 1
    return solid & (z > dome) & (np.abs(x) > 20) & ~heart


def _cut_airways(hu: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Windpipe and main bronchi with their walls, in place; the bronchi end in the lungs."""
    tube = np.hypot(x, y + 15)
    down = np.clip(np.abs(x) / 50, 0, 1)  # a main bronchus falls 35 mm over 50 mm
    bronchus = np.hypot(y + 15, z - 25 + 35 * down)
    for radius, value in ((2.5, 40), (0.0, -1000)):
        hu[(tube < 9 + radius) & (z > 25)] = value
        hu[(bronchus < 7 + radius) & (np.abs(x) < 45)] = value


def _mark_shape(
    mark: Mark, lungs: np.ndarray, voxel: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A ball or an uneven blob of the wanted volume inside the lungs, bool."""
    radius = (mark.wanted_ml * 1000 * 3 / 4 / np.pi) ** (1 / 3)
    depth = ndimage.distance_transform_edt(lungs, sampling=voxel)
    places = np.argwhere(depth > min(radius + 2, 0.8 * depth.max()))
    middle = places[rng.integers(len(places))]
    offset = (np.indices(lungs.shape, dtype=np.float32).T - middle).T
    distance = np.sqrt(sum((offset[a] * voxel[a]) ** 2 for a in range(3)))
    if mark.kind == "consolidation":
        distance = distance + 0.25 * radius * smooth_noise(rng, 8 / voxel, lungs.shape)
    count = round(mark.wanted_ml * 1000 / voxel.prod())
    edge = float(np.partition(distance[lungs], count)[count])
    return lungs & (distance <= edge)


def make_cohort(
    out: Path,
    *,
    seed: int = 0,
    n_train: int = 12,
    n_val: int = 10,
    n_test_healthy: int = 6,
    n_test_abnormal: int = 6,
) -> Path:
    """Write scans, lesion masks, `cohort.tsv` (the table) and `cohort.json` (all that was drawn).

    Returns the table. A folder that holds a cohort of these settings is left alone.
    """
    wanted = {"version": COHORT_VERSION, "seed": seed, "n_train": n_train, "n_val": n_val}
    wanted |= {"n_test_healthy": n_test_healthy, "n_test_abnormal": n_test_abnormal}
    return written_cohort(out, wanted, draw, _write)


def _write(chest: Chest, seed: int, out: Path) -> dict[str, Any]:
    """Render a chest and write its files; its row of the table."""
    hu, lesions, affine = render(chest, seed)
    folder = out / chest.id
    folder.mkdir(parents=True, exist_ok=True)
    row = {"image": f"{chest.id}/{chest.id}_ct.nii.gz", "subject": chest.id, "split": chest.split}
    row |= {"label": chest.label, "mask": ""}
    row["pathology"] = "+".join(sorted({mark.kind for mark in chest.marks}))
    save_nifti(_stored(np.round(hu).astype(np.int16), affine, chest.axes), out / row["image"])
    if chest.marks:
        row["mask"] = f"{chest.id}/{chest.id}_lesion_mask.nii.gz"
        save_nifti(_stored(lesions.astype(np.uint8), affine, chest.axes), out / row["mask"])
    return row


def _stored(data: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """A NIfTI whose array runs along `axes`, such as "LPS"."""
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    return as_nifti(np.asarray(turned.dataobj), turned.affine)
