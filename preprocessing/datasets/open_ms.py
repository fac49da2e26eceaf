"""OPEN MS (Ljubljana): T1 of one patient in MNI space with the consensus lesion mask."""

from __future__ import annotations

from pathlib import Path

from preprocessing.scans import Scan


def scans(data: Path, out: Path) -> list[Scan]:
    """The one patient, as a test scan."""
    folder = data / "sub-19"
    return [
        Scan(
            "sub-19",
            folder / "sub-19_space-MNI_T1.nii.gz",
            "sub-19",
            "test",
            "abnormal",
            "multiple sclerosis",
            folder / "sub-19_space-MNI_lesion.nii.gz",
        )
    ]
