"""Lower-grade glioma: whole-head FLAIR with tumour masks. CC BY-NC-SA 4.0; for evaluation only.

As published on https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation, which
'make fetch DATASET=lgg_flair' brings; three channels: before contrast, FLAIR, after contrast:

    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif, TCGA_CS_4941_19960909_1_mask.tif

As rebuilt from these pictures, where there is a file subjects.csv:

    subjects.csv    subject, slices, head_slices, spacing_z_assumed_mm, lesion_slices, lesion_ml
    <subject>/<subject>_FLAIR.nii.gz, <subject>_lesion.nii.gz

Assumed: the in-plane size (0.9 mm), left and right, the order of slices (upwards), and their
distance: the slices that show the head span 150 mm. Every patient has a tumour, so that training
takes slices without it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import imageio.v3 as iio
import nibabel as nib
import numpy as np

from preprocessing.files import read_table
from preprocessing.images import save_nifti
from preprocessing.scans import InputError, Scan
from preprocessing.splits import assign_splits

MODALITY = "flair"
IN_PLANE_MM = 0.9
HEAD_MM = 150.0
HEAD_GREY = 20  # of 255; a slice with a hundredth of its pixels above shows the head
FLAIR = 1  # channel of a picture

Slices = dict[int, Path]


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out; slices without tumour may be healthy ones."""
    if not (data / "subjects.csv").is_file():
        return _published(data, out / "lgg_flair")
    subjects = [row["subject"] for row in read_table(data / "subjects.csv")]
    return assign_splits([_scan(subject, data / subject) for subject in subjects]), {}


def _scan(subject: str, folder: Path) -> Scan:
    return Scan(
        id=subject,
        image=folder / f"{subject}_FLAIR.nii.gz",
        subject=subject,
        label="abnormal",
        pathology="glioma",
        mask=folder / f"{subject}_lesion.nii.gz",
        extra={"healthy_slices": "lesion_free"},
    )


def _published(data: Path, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Volumes written below `out` from the slices of each patient."""
    found: list[Scan] = []
    lost: dict[str, str] = {}
    for folder in _patients(data):
        subject = f"sub-{folder.name.split('_')[1].lower()}{folder.name.split('_')[2]}"
        images, masks = _slices(folder)
        fault = _fault(images, masks)
        if fault:
            lost[subject] = f"{folder}: {fault}; left out."
            continue
        scan = _scan(subject, out / subject)
        _write(scan, images, masks)
        found.append(scan)
    if not found and not lost:
        raise InputError(
            f"{data}: no scan of LGG; expected files such as "
            "kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif."
        )
    return assign_splits(found) if found else [], lost


def _patients(data: Path) -> list[Path]:
    """The folder of each patient; the archive holds all of them twice."""
    by_name: dict[str, Path] = {}
    for folder in sorted(data.rglob("TCGA_*")):
        if folder.is_dir():
            by_name.setdefault(folder.name, folder)
    return list(by_name.values())


def _slices(folder: Path) -> tuple[Slices, Slices]:
    """Pictures and masks of a patient by the number of their slice."""
    found: defaultdict[str, Slices] = defaultdict(dict)
    for path in sorted(folder.glob("*.tif")):
        match = re.fullmatch(rf"{re.escape(folder.name)}_(\d+)(_mask)?\.tif", path.name)
        if match:
            found[match[2] or ""][int(match[1])] = path
    return found[""], found["_mask"]


def _fault(images: Slices, masks: Slices) -> str:
    """Why the slices of a patient are no volume, or ""."""
    if not images:
        return "no pictures"
    absent = sorted(set(range(1, max(images) + 1)) - set(images))
    if absent:
        return f"{len(absent)} slices are missing, the first is {absent[0]}"
    bare = sorted(set(images) - set(masks))
    return f"{len(bare)} slices have no mask, the first is {bare[0]}" if bare else ""


def _write(scan: Scan, images: Slices, masks: Slices) -> None:
    """Write FLAIR and mask, uint8 (X, Y, Z), as volumes."""
    flair = np.stack([iio.imread(images[n])[..., FLAIR] for n in sorted(images)])
    tumour = np.stack([iio.imread(masks[n]) > 0 for n in sorted(images)])
    shown = (flair > HEAD_GREY).mean(axis=(1, 2)) > 0.01
    distance = float(np.clip(HEAD_MM / max(shown.sum(), 1), 1.0, 7.5))

    # a picture's rows run to the back, its columns to the patient's left
    affine = np.diag([-IN_PLANE_MM, -IN_PLANE_MM, distance, 1.0])
    scan.image.parent.mkdir(parents=True, exist_ok=True)
    assert scan.mask is not None
    for path, array in ((scan.image, flair), (scan.mask, tumour)):
        save_nifti(nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.uint8), affine), path)
