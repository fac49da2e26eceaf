"""Tables for the public sets that docs/results.md is measured on: `python -m benchmarks.real_tables --data FOLDER --out work/tables`.

FOLDER holds `ct_ich` (CT-ICH 1.0.0, one NIfTI per patient, subjects.csv, slices.csv), `ds002748`, `ds011` (BIDS), `open_ms` and
`soop_flair_axial` (pictures, labels.csv); a set that is absent is left out. Healthy patients get a split by subject from the
seed, the rest is test.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from preprocessing.scans import Scan, assign_splits, read_scans, read_table, scan_row, write_table

MIN_LESION_PIXELS = 100  # of a SOOP slice; those with fewer are left out
BLEEDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")


def ct_ich(data: Path, out: Path) -> list[Scan]:
    """CT-ICH: healthy means no hemorrhage and no fracture; a slice is abnormal where it shows either."""
    slices = read_table(data / "slices.csv")
    scans = []
    for row in read_table(data / "subjects.csv"):
        subject = row["subject"]
        own = [s for s in slices if s["subject"] == subject]
        labels = out / "ct_ich_slices" / f"{subject}.tsv"
        labels.parent.mkdir(parents=True, exist_ok=True)
        kinds_of = [[k for k in (*BLEEDS, "fracture") if s[k] == "1"] for s in own]
        write_table(
            labels, [{"slice": s["slice"], "label": int(bool(k)), "pathology": "+".join(k)} for s, k in zip(own, kinds_of, strict=True)]
        )
        abnormal = row["hemorrhage"] == "1" or row["fracture"] == "1"
        kinds = "+".join(k for k in BLEEDS if any(s[k] == "1" for s in own)) or ("fracture" if abnormal else "")
        scans.append(
            Scan(
                subject,
                data / subject / f"{subject}_ct.nii.gz",
                subject,
                label="abnormal" if abnormal else "healthy",
                pathology=kinds,
                slice_labels=labels,
            )
        )
    return assign_splits(scans)


def ds002748(data: Path, out: Path) -> list[Scan]:
    """T1 of healthy and mildly depressed people: no lesion expected, so "healthy" here."""
    return assign_splits([replace(s, label="healthy") for s in read_scans(data, "t1")])


def ds011(data: Path, out: Path) -> list[Scan]:
    return [Scan(s.id, s.image, s.subject, "test", "healthy") for s in read_scans(data, "t1")]


def open_ms(data: Path, out: Path) -> list[Scan]:
    folder = data / "sub-19"
    return [
        Scan(
            "sub-19",
            folder / "sub-19_space-MNI_T1.nii.gz",
            "sub-19",
            "test",
            "abnormal",
            "multiple sclerosis",
            folder / "sub-19_space-MNI_lesion.nii.gz",
        )
    ]


def soop_flair_axial(data: Path, out: Path) -> list[Scan]:
    """Slices without an acute lesion ("healthy" here, though old strokes and white-matter disease remain) and with a large one."""
    scans = [
        s for s in read_scans(data / "labels.csv", "picture") if s.label == "healthy" or int(s.extra["lesion_px"]) >= MIN_LESION_PIXELS
    ]
    return assign_splits([replace(s, pathology="acute stroke" if s.label == "abnormal" else "", extra={}) for s in scans])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    data, out = Path(arguments.data), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for make in (ct_ich, ds002748, ds011, open_ms, soop_flair_axial):
        if (data / make.__name__).is_dir():
            rows = [scan_row(s) for s in make(data / make.__name__, out)]
            write_table(out / f"{make.__name__}.tsv", rows)
            print(f"{out / make.__name__}.tsv: {len(rows)} scans")


if __name__ == "__main__":
    main()
