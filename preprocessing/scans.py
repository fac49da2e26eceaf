"""A scan: an image file with its row in the table, and the errors that inputs raise."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

NOTICE = "Research software, not a medical device; not for diagnosis."

SPLITS = (
    "train",
    "val",
    "tune",
    "test",
)  # "tune": labelled scans for few-label operating points, in no other use

LABELS = ("healthy", "abnormal")

SUFFIXES = {
    "ct": "ct",
    "t1": "T1w",
    "t2": "T2w",
    "flair": "FLAIR",
    "picture": "picture",
}  # BIDS has no CT: see docs/conventions.md


class InputError(ValueError):
    """The input as a whole cannot be used; nothing is processed."""


class ScanError(ValueError):
    """One scan cannot be used; the batch goes on without it."""


@dataclass(frozen=True)
class Scan:
    """One image file with its row in the table.

    `label` is "healthy", "abnormal" or "" (unknown); `split` is "train", "val", "test" or "" (not split yet);
    `slice_labels` is a CSV with one row per axial slice of the scan's own grid (see docs/conventions.md). What else the
    table says about the scan is kept in `extra`, by column. `image` is the first sequence; `sequences` names the files of further
    ones by modality, where several are asked for.
    """

    id: str
    image: Path
    subject: str
    split: str = ""
    label: str = ""
    pathology: str = ""
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Every image file of the scan, the first sequence first."""
        return [self.image, *self.sequences.values()]


def how_to_give(modality: str) -> str:
    """Which sequences are expected of each scan and how they are given, for a message; `modality` such as "t1+flair"."""
    first, *further = modality.split("+")
    named = " and ".join(f"'{column(name)}' ({SUFFIXES.get(name, name)})" for name in further)
    return (
        f"{len(further) + 1} sequences of each scan are expected, {modality}: give a table with the columns 'image' "
        f"({SUFFIXES.get(first, first)}), {named}, or a BIDS folder that has them."
    )


def column(modality: str) -> str:
    """The table's column of a further sequence."""
    return f"image_{modality}"


def safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "scan"


def scan_row(scan: Scan) -> dict[str, Any]:
    """A scan as a table row; paths absolute, so that the table can be read from anywhere."""
    row = {
        f.name: getattr(scan, f.name) for f in fields(scan) if f.name not in ("extra", "sequences")
    }
    row |= {column(name): path for name, path in scan.sequences.items()} | scan.extra
    return {k: v.resolve() if isinstance(v, Path) else v for k, v in row.items()}
