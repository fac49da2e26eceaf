"""WMH challenge 2017: FLAIR and T1 with white matter hyperintensities drawn.

Layout as at https://wmh.isi.uu.nl/data/ (pre: bias-corrected, faces removed, T1 on FLAIR):

    Utrecht/0/pre/FLAIR.nii.gz, pre/T1.nii.gz, wmh.nii.gz; orig/
    Singapore/50/..., Amsterdam/GE3T/100/... (in older archives GE3T/100/...)

Licence: its own; ask its makers. For evaluation only, unless they say otherwise.

Assumed: label 2 of a mask, other pathology, is lesion too. The further observers are passed over.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

SITE = r"(?P<site>Utrecht|Singapore|Amsterdam/[^/]+|(?<!Amsterdam/)GE3T)"
CASE = rf"(?!(?:.*/)?additional_annotations/)(?:.*/)?(?P<id>{SITE}/\d+)/"
LAYOUT = Layout(
    title="WMH 2017",
    example="Utrecht/0/pre/FLAIR.nii.gz",
    files={
        "flair": CASE + r"pre/FLAIR\.nii(?:\.gz)?",
        "t1": CASE + r"pre/T1\.nii(?:\.gz)?",
        "mask": CASE + r"wmh\.nii(?:\.gz)?",
        "other": r"(?:.*/)?(?:orig|additional_annotations)/.*|(?:.*/)?pre/3DT1\.nii(?:\.gz)?",
    },
    pathology="white matter hyperintensity",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
