"""OpenfMRI ds011: defaced whole-head T1, BIDS."""

from __future__ import annotations

from pathlib import Path

from preprocessing.scans import Scan
from preprocessing.tables import read_scans


def scans(data: Path, out: Path) -> list[Scan]:
    """T1 of another scanner; all of it is test."""
    return [Scan(s.id, s.image, s.subject, "test", "healthy") for s in read_scans(data, "t1")]
