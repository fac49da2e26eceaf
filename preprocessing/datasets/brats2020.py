"""BraTS 2020: MR of glioma in four sequences, skull-stripped, at 1 mm.

Layout as on https://www.med.upenn.edu/cbica/brats2020/data.html (folders per patient):

    BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz, _t1, _t1ce, _t2, _seg

Licence: its own; ask its makers. For evaluation only, unless they say otherwise.

Assumed: all labels of the mask (core, oedema, enhancing tumour) are lesion.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

FOLDER = r"(?:.*/)?(?P<id>BraTS20_(?:Training|Validation)_\d{3})/"
CASE = FOLDER + r"(?P=id)"
LAYOUT = Layout(
    title="BraTS 2020",
    example="BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz",
    files={
        "flair": CASE + r"_flair\.nii(?:\.gz)?",
        "t1": CASE + r"_t1\.nii(?:\.gz)?",
        "t1ce": CASE + r"_t1ce\.nii(?:\.gz)?",
        "t2": CASE + r"_t2\.nii(?:\.gz)?",
        # the mask of patient 355 is called as its authors left it
        "mask": FOLDER + r"(?:(?P=id)_seg|W39_1998\.09\.19_Segm)\.nii(?:\.gz)?",
        "other": r"(?:.*/)?(?:name_mapping|survival_info|survival_evaluation)\w*\.csv",
    },
    pathology="glioma",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
