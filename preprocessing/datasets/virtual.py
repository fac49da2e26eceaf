"""A virtual cohort from the ICBM152 template, for the demo and the tests.

Healthy subjects differ in pose, size, shape, contrast and grid. Test subjects may have lesions,
and their masks say where. All is drawn from a seed; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from preprocessing.datasets.virtual_lesions import (
    FORMS,
    KINDS,
    Lesion,
    lesion_shape,
    lesion_value,
    place,
    smooth_noise,
    template,
)
from preprocessing.files import plain, write_json, write_table
from preprocessing.images import save_nifti

COHORT_VERSION = 2  # raise when the generator changes

VOXELS = ((1.5, 1.5, 1.5), (1.2, 1.4, 1.6), (1.0, 1.0, 3.0), (2.0, 1.5, 1.5), (1.8, 1.8, 1.2))  # mm

AXES = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1, 1]),
    "LAS": np.diag([-1.0, 1, 1]),
    "PIR": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
}

LESION_ML = (0.2, 40.0)
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, spread evenly however many there are
CENTRE = np.array([0.0, -18, 8])  # mm, of the template's brain
EXTENT = np.array([150.0, 186, 160])  # mm, of the template's brain


@dataclass
class Subject:
    """All that was drawn for one virtual subject.

    tissue: intensity of CSF, grey and white matter, before `gamma`.
    bias, noise: their strength as a share of the range.
    white_matter: the value of white matter in the file, which is `stored_as` this data type.
    """

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


def draw(seed: int, index: int, split: str, label: str, number: int = 0) -> Subject:
    """Draw a subject's parameters, whatever the cohort's size.

    `number` counts the abnormal subjects, over which kind and size of lesions are spread.
    """
    rng = np.random.default_rng([seed, index])
    csf_grey_white = np.array([0.30, 0.68, 0.92])
    tissue = csf_grey_white * rng.uniform([0.75, 0.93, 0.97], [1.25, 1.07, 1.03])
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
        first = (np.random.default_rng(seed).uniform() + number * GOLDEN) % 1
        for i in range(int(rng.integers(1, 3))):
            share = first if i == 0 else rng.uniform()
            subject.lesions.append(_draw_lesion(rng, share, number + i))
    return subject


def _draw_lesion(rng: np.random.Generator, share: float, number: int) -> Lesion:
    """A lesion whose volume lies at a share (0..1) of the log range; `number` picks its kind."""
    low, high = LESION_ML
    wanted = low * (high / low) ** share
    kind = KINDS[number % 3]
    # rings are above 1 ml, and not of texture
    forms = 3 if wanted > 1 and kind != "textured" else 2
    form = FORMS[int(rng.integers(forms))]
    centre = place(rng, wanted)
    return Lesion(kind, form, centre, float(wanted), float(rng.uniform(0.25, 0.6)))


def render(
    subject: Subject, seed: int, lesions: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The subject's scan (X, Y, Z) float32, its lesion mask (bool) and affine.

    `lesions=False` is the same brain in health.
    """
    rng = np.random.default_rng([seed, int(subject.id[4:]), 1])
    shape, affine, at = _grid(subject, rng)
    voxel = np.array(subject.voxel_mm)
    image, inside = _healthy(subject, at, rng)

    lesion_mask = np.zeros(shape, bool)
    marks = np.random.default_rng([seed, int(subject.id[4:]), 2])
    for lesion in subject.lesions if lesions else []:
        soft, core = lesion_shape(lesion, at, inside, voxel, marks)
        value = lesion_value(lesion, image, core, subject.tissue, voxel, marks)
        image = image * (1 - soft) + soft * value
        lesion.measured_ml = float((soft > 0.5).sum() * voxel.prod() / 1000)
        lesion_mask |= soft > 0.5

    bias = smooth_noise(rng, 35.0 / voxel, shape)
    bias -= bias[inside].mean()
    image *= 1 + subject.bias * bias / np.abs(bias[inside]).max()
    # the magnitude of a complex signal: Rician noise
    real = image + subject.noise * rng.normal(size=shape)
    imaginary = subject.noise * rng.normal(size=shape)
    image = np.hypot(real, imaginary)
    scaled = image * subject.white_matter / subject.tissue[2]
    return np.where(inside, scaled, 0).astype(np.float32), lesion_mask, affine


def _healthy(
    subject: Subject, at: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The brain without lesions, bias and noise, and where it is (bool), both (X, Y, Z)."""
    voxel = np.array(subject.voxel_mm)
    t1, grey, white, brain = _sampled(template()[0], at, subject.voxel_mm)
    csf_mean, grey_mean, white_mean = subject.tissue
    fluid = np.clip(1 - grey - white, 0, 1)
    known = fluid * csf_mean + grey * grey_mean + white * white_mean
    detail = t1 - gaussian_filter(t1, 4.0 / voxel)  # the template's own edges
    image = np.clip(0.6 * known + 0.4 * t1 + 0.5 * detail, 0.02, None) ** subject.gamma
    # anatomy of the subject's own, at a few mm
    image *= 1 + 0.04 * smooth_noise(rng, 2.5 / voxel, at.shape[1:])
    return image, brain > 0.5


def _grid(
    subject: Subject, rng: np.random.Generator
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Shape and affine of the scan, and for every voxel its template voxel (3, X, Y, Z).

    The latter holds pose, size and deformation.
    """
    degrees = np.array(subject.rotation_degrees)
    turn = Rotation.from_euler("xyz", subject.rotation_degrees, degrees=True).as_matrix()
    # the scanner follows the head's pose in part
    tilt = Rotation.from_euler("xyz", 0.6 * degrees, degrees=True).as_matrix()
    axes = tilt @ AXES[subject.axes]

    extent = EXTENT * subject.scale + 2 * np.array(subject.margin_mm)
    along = np.abs(AXES[subject.axes].T) @ (extent + 20)
    shape = tuple(int(n) for n in np.ceil(along / subject.voxel_mm))
    affine = np.eye(4)
    affine[:3, :3] = axes * subject.voxel_mm
    middle = CENTRE + subject.shift_mm
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)

    voxels = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1)
    mm = voxels @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32)
    from_middle = (mm - middle.astype(np.float32)) @ turn.astype(np.float32)
    template_mm = from_middle / np.array(subject.scale, np.float32) + CENTRE.astype(np.float32)
    for axis in range(3):
        values = smooth_noise(rng, 20.0 / np.array(subject.voxel_mm), shape)
        template_mm[..., axis] += subject.deformation_mm * values / np.abs(values).max()
    voxel_from_mm = np.linalg.inv(template()[2]).astype(np.float32)
    at = template_mm @ voxel_from_mm[:3, :3].T + voxel_from_mm[:3, 3]
    return shape, affine, np.moveaxis(at, -1, 0)


def _sampled(stack: np.ndarray, at: np.ndarray, voxel_mm: list[float]) -> list[np.ndarray]:
    """Sample the template's channels (C, X, Y, Z) at `at`.

    Along a voxel of 2 mm or more it is the mean of three samples (partial volume).
    """
    thick = int(np.argmax(voxel_mm))
    if voxel_mm[thick] < 2:
        return [map_coordinates(channel, at, order=1) for channel in stack]
    step = np.gradient(at, axis=thick + 1) / 3
    points = [at + k * step for k in (-1, 0, 1)]
    result = []
    for channel in stack:
        samples = [map_coordinates(channel, point, order=1) for point in points]
        result.append(np.mean(samples, axis=0))
    return result


def make_cohort(
    out: Path,
    *,
    seed: int = 0,
    n_train: int = 10,
    n_val: int = 9,
    n_test_healthy: int = 6,
    n_test_abnormal: int = 6,
) -> Path:
    """Write scans, lesion masks, `cohort.tsv` (the table) and `cohort.json` (all that was drawn).

    Returns the table. A folder that holds a cohort of these settings is left alone.
    """
    wanted = {
        "version": COHORT_VERSION,
        "seed": seed,
        "n_train": n_train,
        "n_val": n_val,
        "n_test_healthy": n_test_healthy,
        "n_test_abnormal": n_test_abnormal,
    }
    return written_cohort(out, wanted, draw, _write)


def written_cohort(
    out: Path,
    wanted: dict[str, int],
    draw: Callable[[int, int, str, str, int], Any],
    write: Callable[[Any, int, Path], dict[str, Any]],
) -> Path:
    """Draw the subjects of a cohort of the settings `wanted`, write them, and return its table.

    `draw` makes a subject (a dataclass) of seed, index, split, label and number in its group;
    `write` its files and its row of the table. A folder that holds this cohort is left alone.
    """
    table = out / "cohort.tsv"
    record = out / "cohort.json"
    both = table.is_file() and record.is_file()
    if both and json.loads(record.read_text())["settings"] == wanted:
        return table
    groups = [
        ("train", "healthy", wanted["n_train"], 1),
        ("val", "healthy", wanted["n_val"], 201),
        ("test", "healthy", wanted["n_test_healthy"], 301),
        ("test", "abnormal", wanted["n_test_abnormal"], 401),
    ]
    seed = wanted["seed"]
    subjects: list[Any] = []
    for split, label, n, first in groups:
        subjects += [draw(seed, first + i, split, label, i) for i in range(n)]
    progress = tqdm(subjects, desc="virtual cohort", unit="scan")
    rows = [write(subject, seed, out) for subject in progress]
    write_table(table, rows)
    write_json(record, {"settings": wanted, "subjects": plain([asdict(s) for s in subjects])})
    return table


def _write(subject: Subject, seed: int, out: Path) -> dict[str, Any]:
    """Render a subject and write its files; its row of the table."""
    data, lesion_mask, affine = render(subject, seed)
    (out / subject.id).mkdir(parents=True, exist_ok=True)
    image = as_nifti(data, affine)
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
        save_nifti(as_nifti(lesion_mask.astype(np.uint8), affine), out / row["mask"])
    return row


def as_nifti(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI in mm; sform and qform both hold the affine, with code 1 (scanner) as of scans."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image
