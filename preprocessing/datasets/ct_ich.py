"""CT-ICH: head CT with and without hemorrhage. CC BY 4.0 (1.0.0); not to be redistributed.

As published on https://physionet.org/content/ct-ich/ (1.3.1):

    ct_scans/049.nii, masks/049.nii
    hemorrhage_diagnosis_raw_ct.csv    PatientNumber, SliceNumber (from 1), a column per kind

As rebuilt from the set's pictures (1.0.0), where there is a file subjects.csv:

    subjects.csv    subject, hemorrhage, fracture (0 or 1)
    slices.csv      subject, slice (0-based, axial), a column of 0 or 1 per kind in KINDS
    <subject>/<subject>_ct.nii.gz

Assumed: slice 1 of the published table is the first of the array. The rebuilt files come
from the brain window (level 40, width 120): values are clipped to -20..100 HU, the in-plane size
(250 mm) and left and right are guesses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.files import read_table, write_table
from preprocessing.scans import InputError, Scan
from preprocessing.splits import assign_splits

MODALITY = "ct"
BLEEDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
KINDS = (*BLEEDS, "fracture")

Row = dict[str, str]


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every patient, and by id why one is left out; healthy: neither hemorrhage nor fracture."""
    if not (data / "subjects.csv").is_file():
        return _published(data, out)
    slices_of: dict[str, list[Row]] = {}
    for row in read_table(data / "slices.csv"):
        slices_of.setdefault(row["subject"], []).append(row)
    found: list[Scan] = []
    for row in read_table(data / "subjects.csv"):
        subject = row["subject"]
        image = data / subject / f"{subject}_ct.nii.gz"
        abnormal = row["hemorrhage"] == "1" or row["fracture"] == "1"
        found.append(_scan(subject, image, abnormal, slices_of.get(subject, []), out))
    return assign_splits(found), {}


def _published(data: Path, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """The scans of the set as it is published, with masks of the hemorrhages."""
    table = data / "hemorrhage_diagnosis_raw_ct.csv"
    if not table.is_file():
        raise InputError(f"{data}: no scan of CT-ICH; expected {table.name} and ct_scans/049.nii.")
    slices_of: dict[str, list[Row]] = {}
    for row in read_table(table):
        subject = row["PatientNumber"].zfill(3)
        kinds = {kind: row[kind.capitalize()] for kind in BLEEDS}
        kinds["fracture"] = row["Fracture_Yes_No"]
        number = str(int(row["SliceNumber"]) - 1)
        slices_of.setdefault(subject, []).append({"slice": number} | kinds)

    found: list[Scan] = []
    lost: dict[str, str] = {}
    images = {path.name.split(".")[0]: path for path in sorted((data / "ct_scans").glob("*.nii*"))}
    for subject in sorted({*images, *slices_of}):
        slices = slices_of.get(subject, [])
        bleeds = any(_kinds(row)[:1] not in ([], ["fracture"]) for row in slices)
        mask = data / "masks" / images[subject].name if subject in images else data
        if subject not in images:
            lost[subject] = f"{data / 'ct_scans' / subject}.nii: missing; left out."
        elif not slices:
            lost[subject] = f"{images[subject]}: {table.name} does not name it; left out."
        elif bleeds and not mask.is_file():
            lost[subject] = f"{mask}: missing, the mask of a hemorrhage; left out."
        else:
            abnormal = any(_kinds(row) for row in slices)
            scan = _scan(subject, images[subject], abnormal, slices, out)
            found.append(replace(scan, mask=mask if bleeds else None))
    return assign_splits(found), lost


def _scan(subject: str, image: Path, abnormal: bool, slices: list[Row], out: Path) -> Scan:
    """The scan of a patient, whose slice labels are written below `out`."""
    table = out / "ct_ich_slices" / f"{subject}.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, [_slice_label(s) for s in slices])

    shown: set[str] = set()
    for row_of_slice in slices:
        shown.update(_kinds(row_of_slice))
    bleeds = [k for k in BLEEDS if k in shown]
    other = "fracture" if abnormal else ""
    return Scan(
        id=subject,
        image=image,
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
