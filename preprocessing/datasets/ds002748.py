"""OpenNeuro ds002748: skull-stripped T1 of healthy and mildly depressed people, BIDS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.splits import assign_splits
from preprocessing.tables import read_scans


def scans(data: Path, out: Path) -> list[Scan]:
    """T1 of healthy and mildly depressed people: no lesion expected, so "healthy" here."""
    return assign_splits([replace(s, label="healthy") for s in read_scans(data, "t1")])
