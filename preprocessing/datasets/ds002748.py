"""OpenNeuro ds002748: T1 of healthy and mildly depressed people, skull-stripped, BIDS. CC0.

Assumed: mild depression shows no lesion on T1, so all are "healthy" here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.splits import assign_splits
from preprocessing.tables import read_scans

MODALITY = "t1"


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every T1 of the set."""
    found = [replace(s, label="healthy") for s in read_scans(data, "t1")]
    return assign_splits(found), {}
