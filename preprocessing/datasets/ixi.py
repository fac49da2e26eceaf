"""IXI: T1 and T2 of healthy adults, whole heads. CC BY-SA 3.0.

Layout as at https://brain-development.org/ixi-dataset/; 'make fetch DATASET=ixi' brings it:

    IXI-T1/IXI002-Guys-0828-T1.nii.gz, IXI-T2/IXI002-Guys-0828-T2.nii.gz

Assumed: volunteers without a diagnosis are healthy.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

CASE = r"(?:.*/)?(?P<id>(?P<subject>IXI\d{3})-(?P<site>Guys|HH|IOP)-\d{4})"
LAYOUT = Layout(
    title="IXI",
    example="IXI-T1/IXI002-Guys-0828-T1.nii.gz",
    files={
        "t1": CASE + r"-T1\.nii(?:\.gz)?",
        "t2": CASE + r"-T2\.nii(?:\.gz)?",
        "other": CASE + r"-(?:PD|MRA|DTI.*)\.nii(?:\.gz)?|IXI\.xls|fetched\.json|norma\.log",
    },
    label="healthy",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan, and by id why one is left out."""
    return listed(data, LAYOUT, modality)
