"""Lower-grade glioma: whole-head FLAIR with tumour masks. CC BY-NC-SA 4.0; for evaluation only.

    subjects.csv    subject, slices, head_slices, spacing_z_assumed_mm, lesion_slices, lesion_ml
    <subject>/<subject>_FLAIR.nii.gz, <subject>_lesion.nii.gz

Assumed: the in-plane size (0.9 mm), left and right, and the distance of the slices, as the files
are rebuilt from pictures. Every patient has a tumour, so that training takes slices without it.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.files import read_table
from preprocessing.scans import Scan
from preprocessing.splits import assign_splits


def scans(data: Path, out: Path) -> list[Scan]:
    """Every patient, whose slices without tumour may serve as healthy ones."""
    subjects = [row["subject"] for row in read_table(data / "subjects.csv")]
    return assign_splits([_scan(subject, data / subject) for subject in subjects])


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
