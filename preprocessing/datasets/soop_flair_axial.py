"""SOOP: FLAIR of stroke patients, one axial slice each, as pictures. For evaluation only.

    labels.csv    subject, image, mask, label (1: acute stroke), lesion_px, lesion_volume_mm3
    images/, masks/    PNG, 1 mm, skull-stripped, in standard space

Assumed: a slice without an acute lesion is "healthy" here, though old strokes and white-matter
disease remain in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.splits import assign_splits
from preprocessing.tables import read_scans

MODALITY = "picture"
MIN_LESION_PIXELS = 100  # of a slice; those with a smaller lesion are left out


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Slices without an acute lesion, and those with a large one."""
    found = []
    for scan in read_scans(data / "labels.csv", "picture"):
        if scan.label == "healthy" or int(scan.extra["lesion_px"]) >= MIN_LESION_PIXELS:
            pathology = "acute stroke" if scan.label == "abnormal" else ""
            found.append(replace(scan, pathology=pathology, extra={}))
    return assign_splits(found), {}
