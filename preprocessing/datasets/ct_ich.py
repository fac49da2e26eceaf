"""CT-ICH 1.0.0: head CT with and without hemorrhage. CC BY 4.0; not to be redistributed.

    subjects.csv    subject, hemorrhage, fracture (0 or 1)
    slices.csv      subject, slice (0-based, axial), a column of 0 or 1 per kind in KINDS
    <subject>/<subject>_ct.nii.gz

Assumed: the NIfTI files may be rebuilt from the set's brain-window pictures (level 40, width 120).
Values are then clipped to -20..100 HU; the in-plane size (250 mm) and left and right are guesses.
"""

from __future__ import annotations

from pathlib import Path

from preprocessing.files import read_table, write_table
from preprocessing.scans import Scan
from preprocessing.splits import assign_splits

BLEEDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
KINDS = (*BLEEDS, "fracture")

Row = dict[str, str]


def scans(data: Path, out: Path) -> list[Scan]:
    """Every patient; healthy means neither hemorrhage nor fracture."""
    slices_of: dict[str, list[Row]] = {}
    for row in read_table(data / "slices.csv"):
        slices_of.setdefault(row["subject"], []).append(row)
    subjects = read_table(data / "subjects.csv")
    found = [_scan(row, slices_of.get(row["subject"], []), data, out) for row in subjects]
    return assign_splits(found)


def _scan(row: Row, slices: list[Row], data: Path, out: Path) -> Scan:
    """The scan of a patient, whose slice labels are written below `out`."""
    subject = row["subject"]
    table = out / "ct_ich_slices" / f"{subject}.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, [_slice_label(s) for s in slices])

    abnormal = row["hemorrhage"] == "1" or row["fracture"] == "1"
    shown: set[str] = set()
    for row_of_slice in slices:
        shown.update(_kinds(row_of_slice))
    bleeds = [k for k in BLEEDS if k in shown]
    other = "fracture" if abnormal else ""
    return Scan(
        id=subject,
        image=data / subject / f"{subject}_ct.nii.gz",
        subject=subject,
        label="abnormal" if abnormal else "healthy",
        pathology="+".join(bleeds) or other,
        slice_labels=table,
    )


def _kinds(row: Row) -> list[str]:
    """What a slice shows."""
    return [k for k in KINDS if row[k] == "1"]


def _slice_label(row: Row) -> dict[str, str | int]:
    """A slice's row of the table of labels: it is abnormal where it shows a bleed or a fracture."""
    kinds = _kinds(row)
    return {"slice": row["slice"], "label": int(bool(kinds)), "pathology": "+".join(kinds)}
