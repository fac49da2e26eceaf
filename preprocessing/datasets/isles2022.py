"""ISLES 2022: DWI, ADC and FLAIR of acute stroke, with lesion masks on the grid of DWI. CC BY 4.0.

Layout as in Hernandez Petzsche et al. 2022, Scientific Data 9:762, and at
https://zenodo.org/records/7960856 (earlier archives: _flair, and all below rawdata):

    sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz
    sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz, _adc
    derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz

Assumed: preprocess takes DWI with the recipe of FLAIR, as both show a stroke bright on tissue.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?:.*/)?(?P<id>(?P<subject>sub-strokecase\d{4})_ses-\d+)"
LAYOUT = Layout(
    title="ISLES 2022",
    example="sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz",
    files={
        "dwi": CASE + r"_dwi\.nii(?:\.gz)?",
        "flair": CASE + r"_(?:FLAIR|flair)\.nii(?:\.gz)?",
        "adc": CASE + r"_adc\.nii(?:\.gz)?",
        "mask": CASE + r"_msk\.nii(?:\.gz)?",
        "other": r"(?:.*/)?(?:.*\.json|.*\.tsv|.*\.xlsx|README.*|LICENSE.*|CHANGES)",
    },
    pathology="acute stroke",
)

log = logging.getLogger("norma")


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out. FLAIR has no mask, as it has another grid."""
    found, lost = listed(data, LAYOUT, modality)
    if modality.startswith("flair"):
        log.warning("%s: the masks are on the grid of DWI: FLAIR is listed without masks", data)
        found = [replace(scan, mask=None) for scan in found]
    return found, lost
