"""OPEN MS (Ljubljana): MR of patients with multiple sclerosis. CC BY.

As it is fetched: `mslub` says how. As it was rebuilt for the figures in docs/results, T1 of one
patient, where there is a folder sub-19:

    sub-19/sub-19_space-MNI_T1.nii.gz        skull-stripped, N4-corrected, in MNI space
    sub-19/sub-19_space-MNI_lesion.nii.gz    the experts' consensus

Assumed: this one patient of the set, and T1 of the sequences that come with it.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets import mslub
from preprocessing.scans import InputError, Scan


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out; of a rebuilt set the one, as a test scan."""
    folder = data / "sub-19"
    if not folder.is_dir():
        return mslub.scans(data, out, modality)
    if modality not in ("", "t1"):
        raise InputError(f"{data}: rebuilt for T1 alone, not for '{modality}'.")
    scan = Scan(
        id="sub-19",
        image=folder / "sub-19_space-MNI_T1.nii.gz",
        subject="sub-19",
        split="test",
        label="abnormal",
        pathology="multiple sclerosis",
        mask=folder / "sub-19_space-MNI_lesion.nii.gz",
    )
    return [scan], {}
