"""A scan: an image file with its row in the table, and the errors that inputs raise.

Commands import this file before they know what to do, so it imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

NOTICE = "Research software, not a medical device; not for diagnosis."

# "tune": labelled scans for few-label operating points, in no other use
SPLITS = ("train", "val", "tune", "test")

LABELS = ("healthy", "abnormal")

# endings of BIDS files; BIDS has no CT: see docs/conventions.md
SUFFIXES = {"ct": "ct", "t1": "T1w", "t2": "T2w", "flair": "FLAIR", "picture": "picture"}


class InputError(ValueError):
    """The input as a whole cannot be used; nothing is processed."""


class ScanError(ValueError):
    """One scan cannot be used; the batch goes on without it."""


@dataclass(frozen=True)
class Scan:
    """One image file with its row in the table.

    image: the file of the first sequence.
    split: one of `SPLITS`, or "" (not split yet).
    label: one of `LABELS`, or "" (unknown).
    mask: the lesion mask, on the grid of the image.
    slice_labels: a CSV with a row per axial slice of that grid (see docs/conventions.md).
    extra: what else the table says about the scan, by column.
    sequences: the files of the other sequences by modality, where several are asked for.
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
    """For a message: which sequences each scan needs, and how to give them.

    `modality` is such as "t1+flair".
    """
    first, *others = modality.split("+")
    named = " and ".join(f"'{column(name)}' ({SUFFIXES.get(name, name)})" for name in others)
    return (
        f"{len(others) + 1} sequences of each scan are expected, {modality}: "
        f"give a table with the columns 'image' ({SUFFIXES.get(first, first)}), {named}, "
        "or a BIDS folder that has them."
    )


def column(modality: str) -> str:
    """The table's column of any sequence but the first."""
    return f"image_{modality}"


def safe_name(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores alone; "scan" if nothing is left."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "scan"


def scan_row(scan: Scan) -> dict[str, Any]:
    """A scan as a table row; paths are absolute, so that the table reads the same from anywhere."""
    names = [f.name for f in fields(scan) if f.name not in ("extra", "sequences")]
    row = {name: getattr(scan, name) for name in names}
    row |= {column(name): path for name, path in scan.sequences.items()}
    row |= scan.extra
    return {k: v.resolve() if isinstance(v, Path) else v for k, v in row.items()}
