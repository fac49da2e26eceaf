"""A virtual cohort from the ICBM152 template: healthy subjects that differ, and test subjects with known lesions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nilearn import datasets
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, map_coordinates, zoom
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from preprocessing.files import plain, write_json, write_table
from preprocessing.images import save_nifti

COHORT_VERSION = 2  # raise when the generator changes

SIZES = {"n_train": 10, "n_val": 4, "n_test_healthy": 3, "n_test_abnormal": 6}

VOXELS = ((1.5, 1.5, 1.5), (1.2, 1.4, 1.6), (1.0, 1.0, 3.0), (2.0, 1.5, 1.5), (1.8, 1.8, 1.2))

AXES = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1, 1]),
    "LAS": np.diag([-1.0, 1, 1]),
    "PIR": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
}

KINDS, FORMS = ("bright", "dark", "textured"), ("ellipsoid", "blob", "ring")

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, spread evenly however many there are


@dataclass
class Lesion:
    """One lesion in template mm: what it is, where, and the volume that its mask has on the scan (known once written)."""

    kind: str
    form: str
    centre: list[float]
    wanted_ml: float
    strength: float
    measured_ml: float = 0.0


@dataclass
class Subject:
    """All that was drawn for one virtual subject."""

    id: str
    split: str
    label: str
    voxel_mm: list[float]
    axes: str
    rotation_degrees: list[float]
    shift_mm: list[float]
    margin_mm: list[float]
    scale: list[float]
    deformation_mm: float
    tissue: list[float]
    gamma: float
    bias: float
    noise: float
    white_matter: float
    stored_as: str
    lesions: list[Lesion] = field(default_factory=list)


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ICBM152 at 1 mm: (T1, grey, white, brain) as (4, X, Y, Z) float32, distance to the brain's surface in mm, affine."""
    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    images = [load(resolution=1) for load in loaders]
    stack = np.stack([image.get_fdata(dtype=np.float32) for image in images])
    depth = distance_transform_edt(stack[3] > 0.5).astype(np.float32)
    return stack, depth, images[0].affine


def draw(seed: int, index: int, split: str, label: str, number: int = 0) -> Subject:
    """Draw a subject's parameters, whatever the cohort's size; `number` counts the abnormal ones and spreads lesion kind and size."""
    rng = np.random.default_rng([seed, index])
    tissue = np.array([0.30, 0.68, 0.92]) * rng.uniform(
        [0.75, 0.93, 0.97], [1.25, 1.07, 1.03]
    )  # CSF, grey, white
    subject = Subject(
        id=f"sub-{index:03d}",
        split=split,
        label=label,
        voxel_mm=list(VOXELS[rng.integers(len(VOXELS))]),
        axes=str(rng.choice(list(AXES))),
        rotation_degrees=rng.uniform(-12, 12, 3).tolist(),
        shift_mm=rng.uniform(-15, 15, 3).tolist(),
        margin_mm=rng.uniform(6, 25, 3).tolist(),
        scale=rng.uniform(0.95, 1.05, 3).tolist(),
        deformation_mm=float(rng.uniform(3, 6)),
        tissue=tissue.tolist(),
        gamma=float(rng.uniform(0.9, 1.1)),
        bias=float(rng.uniform(0.08, 0.2)),
        noise=float(rng.uniform(0.02, 0.04)),
        white_matter=float(rng.uniform(300, 2000)),
        stored_as=str(rng.choice(["int16", "float32"])),
    )
    if label == "abnormal":
        for i in range(int(rng.integers(1, 3))):
            share = (
                (np.random.default_rng(seed).uniform() + number * GOLDEN) % 1
                if i == 0
                else rng.uniform()
            )
            wanted = (
                0.2 * (40 / 0.2) ** share
            )  # log-uniform over 0.2..40 ml, spread evenly over the test subjects
            kind = KINDS[(number + i) % 3]
            form = FORMS[int(rng.integers(3 if wanted > 1 and kind != "textured" else 2))]
            subject.lesions.append(
                Lesion(
                    kind, form, _place(rng, wanted), float(wanted), float(rng.uniform(0.25, 0.6))
                )
            )
    return subject


def _place(rng: np.random.Generator, ml: float) -> list[float]:
    """A point of grey or white matter, deep enough for a lesion of `ml` to lie mostly inside; template mm."""
    stack, depth, affine = template()
    radius = (ml * 1000 * 3 / 4 / np.pi) ** (1 / 3)
    inside = np.argwhere((stack[1] + stack[2] > 0.7) & (depth > min(8 + 0.5 * radius, 24)))
    return (affine[:3, :3] @ inside[rng.integers(len(inside))] + affine[:3, 3]).tolist()


def render(
    subject: Subject, seed: int, lesions: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The subject's scan (X, Y, Z) float32, its lesion mask (bool) and affine; `lesions=False` is the same brain in health."""
    rng = np.random.default_rng([seed, int(subject.id[4:]), 1])
    shape, affine, at = _grid(subject, rng)
    stack, _, base = template()
    voxel = np.array(subject.voxel_mm)
    t1, grey, white, brain = _sampled(stack, at, subject.voxel_mm)
    inside = brain > 0.5
    csf, grey_mean, white_mean = subject.tissue
    known = np.clip(1 - grey - white, 0, 1) * csf + grey * grey_mean + white * white_mean
    detail = t1 - gaussian_filter(t1, 4.0 / voxel)  # the template's own edges
    image = np.clip(0.6 * known + 0.4 * t1 + 0.5 * detail, 0.02, None) ** subject.gamma
    image *= 1 + 0.04 * _noise(rng, 2.5 / voxel, shape)  # anatomy of its own, at a few mm
    mask = np.zeros(shape, bool)
    marks = np.random.default_rng([seed, int(subject.id[4:]), 2])
    for lesion in subject.lesions if lesions else []:
        soft, core = _lesion_shape(lesion, at, marks, base, inside, voxel)
        image = image * (1 - soft) + soft * _lesion_value(lesion, image, core, subject, marks)
        lesion.measured_ml = float((soft > 0.5).sum() * voxel.prod() / 1000)
        mask |= soft > 0.5
    field = _noise(rng, 35.0 / voxel, shape)
    field -= field[inside].mean()
    image *= 1 + subject.bias * field / np.abs(field[inside]).max()
    image = np.hypot(
        image + subject.noise * rng.normal(size=shape), subject.noise * rng.normal(size=shape)
    )
    return (
        np.where(inside, image * subject.white_matter / white_mean, 0).astype(np.float32),
        mask,
        affine,
    )


def _grid(
    subject: Subject, rng: np.random.Generator
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Shape and affine of the scan, and for every voxel its template voxel (3, X, Y, Z): pose, size and deformation."""
    base = template()[2]
    extent = np.array([150.0, 186, 160]) * subject.scale + 2 * np.array(subject.margin_mm)
    turn = Rotation.from_euler("xyz", subject.rotation_degrees, degrees=True).as_matrix()
    tilt = Rotation.from_euler(
        "xyz", 0.6 * np.array(subject.rotation_degrees), degrees=True
    ).as_matrix()
    axes = tilt @ AXES[subject.axes]  # the scanner follows the head's pose in part
    along = np.abs(AXES[subject.axes].T) @ (extent + 20)
    shape = tuple(int(n) for n in np.ceil(along / subject.voxel_mm))
    affine = np.eye(4)
    affine[:3, :3] = axes * subject.voxel_mm
    centre = np.array([0.0, -18, 8])  # of the template's brain
    middle = centre + subject.shift_mm
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1) @ affine[:3, :3].T.astype(
        np.float32
    ) + affine[:3, 3].astype(np.float32)
    there = (world - middle.astype(np.float32)) @ turn.astype(np.float32) / np.array(
        subject.scale, np.float32
    ) + centre.astype(np.float32)
    for axis in range(3):
        values = _noise(rng, 20.0 / np.array(subject.voxel_mm), shape)
        there[..., axis] += subject.deformation_mm * values / np.abs(values).max()
    back = np.linalg.inv(base).astype(np.float32)
    return shape, affine, np.moveaxis(there @ back[:3, :3].T + back[:3, 3], -1, 0)


def _sampled(stack: np.ndarray, at: np.ndarray, voxel_mm: list[float]) -> list[np.ndarray]:
    """Sample the template's channels (C, X, Y, Z) at `at`; along a thick voxel, the mean of three samples (partial volume)."""
    thick = int(np.argmax(voxel_mm))
    if voxel_mm[thick] < 2:
        return [map_coordinates(channel, at, order=1) for channel in stack]
    step = np.gradient(at, axis=thick + 1) / 3
    points = [at + k * step for k in (-1, 0, 1)]
    return [
        np.mean([map_coordinates(channel, p, order=1) for p in points], axis=0) for channel in stack
    ]


def _lesion_shape(
    lesion: Lesion,
    at: np.ndarray,
    rng: np.random.Generator,
    base: np.ndarray,
    inside: np.ndarray,
    voxel: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft shape (X, Y, Z) in [0, 1] in one piece within the brain, whose half level holds the wanted volume; and a ring's core."""
    point = np.linalg.inv(base)[:3] @ [*lesion.centre, 1]
    offset = at - point[:, None, None, None].astype(np.float32)
    stretch = rng.uniform(0.75, 1.3, 3)
    stretch /= np.prod(stretch) ** (1 / 3)
    distance = np.sqrt(sum((offset[a] / stretch[a]) ** 2 for a in range(3)))
    if lesion.form == "blob":
        size = (lesion.wanted_ml * 239) ** (1 / 3)  # radius in mm of a ball of this volume
        distance = distance + 0.3 * size * _noise(
            rng, np.clip(0.5 * size, 2, 8) / voxel, distance.shape
        )
    count = round(lesion.wanted_ml * 1000 / voxel.prod())
    radius = float(np.partition(distance[inside], count)[count])
    soft = _step(distance, radius) * inside
    pieces, _ = label(soft > 0.05)
    soft *= pieces == np.bincount(pieces[pieces > 0]).argmax()
    return soft, _step(distance, 0.6 * radius) if lesion.form == "ring" else np.zeros_like(soft)


def _step(distance: np.ndarray, radius: float) -> np.ndarray:
    """1 within the radius, 0 beyond, over an edge of about 2 mm."""
    return 1 / (1 + np.exp(np.clip((distance - radius) / 0.4, -30, 30)))


def _lesion_value(
    lesion: Lesion, image: np.ndarray, core: np.ndarray, subject: Subject, rng: np.random.Generator
) -> np.ndarray:
    """Intensity inside a lesion, before bias and noise; the core of a ring is as dark as fluid, or bright in a dark ring."""
    csf, _, white = subject.tissue
    voxel = np.array(subject.voxel_mm)
    grain = 0.05 * _noise(rng, 1.5 / voxel, image.shape)
    bright, dark = white * (1 + lesion.strength) + grain, csf + (image - csf) * 0.25 + 0.3 * grain
    if lesion.kind == "textured":
        return image * np.clip(
            1 + 1.2 * lesion.strength * _noise(rng, 2.0 / voxel, image.shape), 0.05, None
        )
    rim, middle = (bright, dark) if lesion.kind == "bright" else (dark, bright)
    return rim * (1 - core) + middle * core


def _noise(rng: np.random.Generator, sigma: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1; `sigma` in voxels per axis, wide ones smoothed on a coarse grid."""
    step = np.maximum(1, sigma // 3).astype(int)
    small = [-(-n // k) + 1 for n, k in zip(shape, step, strict=True)]
    values = gaussian_filter(rng.normal(size=small).astype(np.float32), sigma / step)
    if step.max() > 1:
        values = zoom(values, [n / s for n, s in zip(shape, small, strict=True)], order=1)
    else:
        values = values[tuple(slice(n) for n in shape)]
    return (values - values.mean()) / values.std()


def make_cohort(
    out: Path,
    *,
    seed: int = 0,
    n_train: int = 10,
    n_val: int = 4,
    n_test_healthy: int = 3,
    n_test_abnormal: int = 6,
) -> Path:
    """Write scans, lesion masks, `cohort.tsv` (the table, returned) and `cohort.json` (all that was drawn); once per folder."""
    table, record = out / "cohort.tsv", out / "cohort.json"
    wanted = {
        "version": COHORT_VERSION,
        "seed": seed,
        "n_train": n_train,
        "n_val": n_val,
        "n_test_healthy": n_test_healthy,
        "n_test_abnormal": n_test_abnormal,
    }
    if (
        table.is_file()
        and record.is_file()
        and json.loads(record.read_text())["settings"] == wanted
    ):
        return table
    groups = [
        ("train", "healthy", n_train, 1),
        ("val", "healthy", n_val, 201),
        ("test", "healthy", n_test_healthy, 301),
        ("test", "abnormal", n_test_abnormal, 401),
    ]
    plan = [(first + i, split, label, i) for split, label, n, first in groups for i in range(n)]
    subjects = [draw(seed, *p) for p in plan]
    rows = [
        _write(subject, seed, out) for subject in tqdm(subjects, desc="virtual cohort", unit="scan")
    ]
    write_table(table, rows)
    write_json(record, {"settings": wanted, "subjects": plain([asdict(s) for s in subjects])})
    return table


def _write(subject: Subject, seed: int, out: Path) -> dict[str, Any]:
    data, mask, affine = render(subject, seed)
    (out / subject.id).mkdir(parents=True, exist_ok=True)
    image = _nifti(data, affine)
    if subject.stored_as == "int16":
        image.set_data_dtype(np.int16)  # nibabel chooses scl_slope
    save_nifti(image, out / subject.id / f"{subject.id}_T1w.nii.gz")
    row = {
        "image": f"{subject.id}/{subject.id}_T1w.nii.gz",
        "subject": subject.id,
        "split": subject.split,
        "label": subject.label,
        "pathology": "+".join(sorted({lesion.kind for lesion in subject.lesions})),
        "mask": "",
    }
    if subject.lesions:
        row["mask"] = f"{subject.id}/{subject.id}_lesion_mask.nii.gz"
        save_nifti(_nifti(mask.astype(np.uint8), affine), out / row["mask"])
    return row


def _nifti(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI in mm whose sform and qform both hold the affine, with code 1 (scanner) as scans have."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image
