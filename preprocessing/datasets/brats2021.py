"""BraTS 2021: MR of glioma in four sequences, skull-stripped, at 1 mm.

Layout as on https://www.synapse.org/brats2021 (folders per patient):

    BraTS2021_00000/BraTS2021_00000_flair.nii.gz, _t1, _t1ce, _t2, _seg

Licence: its own; ask its makers. For evaluation only, unless they say otherwise.

Assumed: all labels of the mask (core, oedema, enhancing tumour) are lesion.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?:.*/)?(?P<id>BraTS2021_\d{5})/(?P=id)"
LAYOUT = Layout(
    title="BraTS 2021",
    example="BraTS2021_00000/BraTS2021_00000_flair.nii.gz",
    files={
        "flair": CASE + r"_flair\.nii(?:\.gz)?",
        "t1": CASE + r"_t1\.nii(?:\.gz)?",
        "t1ce": CASE + r"_t1ce\.nii(?:\.gz)?",
        "t2": CASE + r"_t2\.nii(?:\.gz)?",
        "mask": CASE + r"_seg\.nii(?:\.gz)?",
    },
    pathology="glioma",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
