"""CT-ICH 1.0.0: head CT, one NIfTI per patient, subjects.csv, slices.csv."""

from __future__ import annotations

from pathlib import Path

from preprocessing.files import read_table, write_table
from preprocessing.scans import Scan
from preprocessing.splits import assign_splits

BLEEDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")


def scans(data: Path, out: Path) -> list[Scan]:
    """CT-ICH: healthy means no hemorrhage and no fracture; a slice is abnormal where it shows either."""
    slices = read_table(data / "slices.csv")
    found = []
    for row in read_table(data / "subjects.csv"):
        subject = row["subject"]
        own = [s for s in slices if s["subject"] == subject]
        labels = out / "ct_ich_slices" / f"{subject}.tsv"
        labels.parent.mkdir(parents=True, exist_ok=True)
        kinds_of = [[k for k in (*BLEEDS, "fracture") if s[k] == "1"] for s in own]
        write_table(
            labels,
            [
                {"slice": s["slice"], "label": int(bool(k)), "pathology": "+".join(k)}
                for s, k in zip(own, kinds_of, strict=True)
            ],
        )
        abnormal = row["hemorrhage"] == "1" or row["fracture"] == "1"
        kinds = "+".join(k for k in BLEEDS if any(s[k] == "1" for s in own)) or (
            "fracture" if abnormal else ""
        )
        found.append(
            Scan(
                subject,
                data / subject / f"{subject}_ct.nii.gz",
                subject,
                label="abnormal" if abnormal else "healthy",
                pathology=kinds,
                slice_labels=labels,
            )
        )
    return assign_splits(found)
