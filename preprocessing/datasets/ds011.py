"""OpenfMRI ds011: T1 of healthy people, whole heads, defaced, BIDS. PDDL.

Assumed: the set shows how runs do on another scanner, so nothing is learned from it.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.tables import read_scans

MODALITY = "t1"


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every T1 of the set, all of it test."""
    found = read_scans(data, "t1")
    return [Scan(s.id, s.image, s.subject, "test", "healthy") for s in found], {}
