"""ATLAS v2.0: T1 of chronic stroke in MNI space, with lesion masks, as BIDS calls its files.

Layout as in Liew et al. 2022, Scientific Data 9:320, and in the archive of ICPSR and INDI:

    Training/R001/sub-r001s001/ses-1/anat/
        sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz
        sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz

Licence: its own; ask its makers. For evaluation only, unless they say otherwise. The scans of
`Testing` have no mask.

Assumed: the first part of a subject's name, r001, is its site.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?:.*/)?(?P<id>(?P<subject>sub-(?P<site>r\d{3})s\d{3})_ses-\d+)_space-\w+"
LAYOUT = Layout(
    title="ATLAS v2.0",
    example="sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
    files={
        "mask": CASE + r"_label-L_desc-T1lesion_mask\.nii(?:\.gz)?",
        "t1": CASE + r"_T1w\.nii(?:\.gz)?",
        "other": r"(?:.*/)?(?:dataset_description\.json|participants\.(?:tsv|json)|.*\.csv)",
    },
    pathology="stroke",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
