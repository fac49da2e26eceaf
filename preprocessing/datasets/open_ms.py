"""OPEN MS (Ljubljana): MR of patients with multiple sclerosis. CC BY.

As it is fetched: `mslub` says how. As it was rebuilt for the figures in docs/results, one patient,
where there is a folder sub-19:

    sub-19/sub-19_space-MNI_T1.nii.gz        skull-stripped, N4-corrected, in MNI space; _T2, _FLAIR
    sub-19/sub-19_space-MNI_lesion.nii.gz    the experts' consensus

Assumed: this one patient of the set; T1 where no modality is asked for.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets import mslub
from preprocessing.scans import InputError, Scan

SEQUENCES = {"": "T1", "t1": "T1", "t2": "T2", "flair": "FLAIR"}  # of the rebuilt set, by modality


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out; of a rebuilt set the one, as a test scan."""
    folder = data / "sub-19"
    if not folder.is_dir():
        return mslub.scans(data, out, modality)
    if modality not in SEQUENCES:
        raise InputError(f"{data}: rebuilt with t1, t2 and flair, not with '{modality}'.")
    scan = Scan(
        id="sub-19",
        image=folder / f"sub-19_space-MNI_{SEQUENCES[modality]}.nii.gz",
        subject="sub-19",
        split="test",
        label="abnormal",
        pathology="multiple sclerosis",
        mask=folder / "sub-19_space-MNI_lesion.nii.gz",
    )
    return [scan], {}
