"""BraTS 2023: MR of brain tumours in four sequences, skull-stripped, at 1 mm.

Layout as on https://www.synapse.org/brats2023 (folders per patient and time, also of the
other tumours: GLI, MEN, MET, PED, SSA):

    BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz, -t1n, -t1c, -t2w, -seg

Licence: its own; ask its makers. For evaluation only, unless they say otherwise.

Assumed: all labels of the mask (core, oedema, enhancing tumour) are lesion.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?:.*/)?(?P<id>(?P<subject>BraTS-(?P<tumour>[A-Z]+)-\d{5})-\d{3})/(?P=id)"
LAYOUT = Layout(
    title="BraTS 2023",
    example="BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz",
    files={
        "flair": CASE + r"-t2f\.nii(?:\.gz)?",
        "t1": CASE + r"-t1n\.nii(?:\.gz)?",
        "t1ce": CASE + r"-t1c\.nii(?:\.gz)?",
        "t2": CASE + r"-t2w\.nii(?:\.gz)?",
        "mask": CASE + r"-seg\.nii(?:\.gz)?",
    },
    pathology="tumour",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
