"""OPEN MS (Ljubljana): T1 of one patient with multiple sclerosis. CC BY.

    sub-19/sub-19_space-MNI_T1.nii.gz        skull-stripped, N4-corrected, in MNI space
    sub-19/sub-19_space-MNI_lesion.nii.gz    the experts' consensus

Assumed: this one patient of the set, and T1 of the sequences that come with it.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.scans import Scan


def scans(data: Path, out: Path) -> list[Scan]:
    """The one patient, as a test scan."""
    folder = data / "sub-19"
    scan = Scan(
        id="sub-19",
        image=folder / "sub-19_space-MNI_T1.nii.gz",
        subject="sub-19",
        split="test",
        label="abnormal",
        pathology="multiple sclerosis",
        mask=folder / "sub-19_space-MNI_lesion.nii.gz",
    )
    return [scan]
