"""SOOP: one axial FLAIR slice per stroke patient, as pictures, with labels.csv and masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.splits import assign_splits
from preprocessing.tables import read_scans

MIN_LESION_PIXELS = 100  # of a slice; those with fewer are left out


def scans(data: Path, out: Path) -> list[Scan]:
    """Slices without an acute lesion ("healthy" here, though old strokes and white-matter disease remain) and with a large one."""
    found = [
        s
        for s in read_scans(data / "labels.csv", "picture")
        if s.label == "healthy" or int(s.extra["lesion_px"]) >= MIN_LESION_PIXELS
    ]
    return assign_splits(
        [
            replace(s, pathology="acute stroke" if s.label == "abnormal" else "", extra={})
            for s in found
        ]
    )
