"""MSLUB, also known as OPEN MS: MR of 30 patients with multiple sclerosis. CC BY.

Layout as at https://lit.fe.uni-lj.si/en/research/resources/3D-MR-MS/, and without the patient in
the names at https://github.com/muschellij2/open_ms_data (cross_sectional/coregistered), which
'make fetch DATASET=open_ms' brings:

    patient01/patient01_FLAIR.nii.gz, _T1W, _T2W, _T1WKS, _brainmask, _consensus_gt; raw/
    patient01/FLAIR.nii.gz, T1W, T2W, T1WKS, brainmask, consensus_gt

Assumed: the sequences that are coregistered to FLAIR, on whose grid brain and lesions are drawn;
those of `raw` are passed over.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?!(?:.*/)?raw/)(?:.*/)?(?P<id>patient\d\d)/(?:(?P=id)_)?"
LAYOUT = Layout(
    title="MSLUB (OPEN MS)",
    example="patient01/patient01_FLAIR.nii.gz",
    files={
        "flair": CASE + r"FLAIR\.nii(?:\.gz)?",
        "t1": CASE + r"T1W\.nii(?:\.gz)?",
        "t2": CASE + r"T2W\.nii(?:\.gz)?",
        "t1ce": CASE + r"T1WKS\.nii(?:\.gz)?",
        "mask": CASE + r"consensus_gt\.nii(?:\.gz)?",
        "brain_mask": CASE + r"brainmask\.nii(?:\.gz)?",
        "other": r"(?:.*/)?raw/.*|(?:.*/)?(?:fetched\.json|norma\.log|.*\.txt|.*\.pdf)",
    },
    pathology="multiple sclerosis",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
