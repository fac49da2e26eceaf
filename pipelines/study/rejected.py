"""What readers say of findings: the rejected ones for a memory, the confirmed ones for `tune`.

The review app's export is a folder with opinions.tsv and the masks of rejected findings in false/.
Whose word counts in a study is said there: a reviewer's before a reader's, then the latest. A table
without a column `value` holds rejected findings alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from skimage.measure import label

from pipelines.detect.memory import Entry, shape_of
from preprocessing.files import read_table
from preprocessing.images import read_image
from preprocessing.scans import InputError

NEEDED = ("study", "peak_atlas_mm", "volume_mm3", "peak", "mean")
QUOTED = ("'=", "'+", "'-", "'@")  # as the app keeps a spreadsheet from running a cell
FINDING = ("run_digest", "component", "peak_voxel", "peak_atlas_mm")  # which one is meant
FILES = ("image", "mask")
SHAPE = ("elongation", "compactness")
CONFIRMED = ("id", "image", "subject", "split", "label", "mask")

Row = dict[str, str]


@dataclass(frozen=True)
class Opinions:
    """Rejected findings, not yet numbered; confirmed scans as rows of a table; what was left out.

    `left_out` counts by reason.
    """

    rejected: list[Entry]
    confirmed: list[dict[str, Any]]
    left_out: dict[str, int] = field(default_factory=dict)


def read_opinions(source: Path, results: Collection[str]) -> Opinions:
    """Read an export of the review app, or a table of rejected findings.

    `results` are digests of results that a memory may learn from: map values of another run are not
    comparable. InputError where there is no such table, or a row is damaged.
    """
    path = source / "opinions.tsv" if source.is_dir() else source
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give IN= the export of the review app (a folder), or a table "
            f"of rejected findings with the columns {', '.join(NEEDED)}."
        )
    rows = [_unquoted(row) for row in read_table(path)]
    lacking = [name for name in NEEDED if rows and name not in rows[0]]
    if lacking:
        raise InputError(f"{path}: no column '{lacking[0]}'; expected {', '.join(NEEDED)}.")

    left_out: Counter[str] = Counter()
    rejected: list[Entry] = []
    confirmed: set[str] = set()
    for row in that_count(rows):
        value = row.get("value", "false").strip().lower()  # a spreadsheet writes FALSE
        if row.get("run_digest") and row["run_digest"] not in results:
            left_out["of a result of another run"] += 1
        elif value == "false":
            rejected.append(_entry(row, path))
        elif value == "true":
            confirmed.add(row["study"])
        elif value == "unsure":
            left_out["unsure"] += 1
        else:
            raise InputError(
                f"{path}: study '{row['study']}', column 'value': '{row['value']}'; expected one "
                "of true, false, unsure."
            )
    subjects = {row["study"]: row.get("subject", "") for row in rows}
    known = [_confirmed(path.parent, study, subjects[study]) for study in sorted(confirmed)]
    usable = [row for row in known if row]
    if len(usable) < len(known):
        unknown = "confirmed in a scan whose truth is not known as a whole"
        left_out[unknown] = len(known) - len(usable)
    return Opinions(rejected, usable, left_out)


def that_count(rows: Sequence[Row]) -> list[Row]:
    """Of opinions, oldest first, the last on each finding by the one whose word counts."""
    by_study: dict[str, list[Row]] = {}
    for row in rows:
        by_study.setdefault(row["study"], []).append(row)
    found: list[Row] = []
    for said in by_study.values():
        seniors = [row for row in said if row.get("role", "reader") not in ("reader", "")]
        decider = (seniors or said)[-1].get("user", "")
        last: dict[tuple[str, ...], Row] = {}
        for row in said:
            if row.get("user", "") == decider and row.get("kind", "component") == "component":
                last[tuple(row.get(name, "") for name in FINDING)] = row
        found += last.values()
    return found


def _entry(row: Row, path: Path) -> Entry:
    """A rejected finding; its shape is that of the mask in false/, where that has it."""
    shape: dict[str, Any] = {name: row[name] for name in SHAPE if row.get(name)}
    shape = shape or _shape(row, path)
    values: dict[str, Any] = {
        "number": 0,
        "place_mm": row["peak_atlas_mm"].split(","),
        "volume_mm3": row["volume_mm3"],
        "peak": row["peak"],
        "mean": row["mean"],
        "strength": row.get("strength") or None,
        "study": row["study"],
        "reader": row.get("user", ""),
        "date": row.get("created", "")[:10],
        **shape,
    }
    try:
        return Entry(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "peak_atlas_mm" if first["loc"][0] == "place_mm" else first["loc"][0]
        raise InputError(
            f"{path}: study '{row['study']}', column '{name}': {first['msg'].lower()}."
        ) from None


def _shape(row: Mapping[str, str], path: Path) -> dict[str, float]:
    """Elongation and compactness of the component at the row's peak; empty where it is not known.

    The mask, beside the table `path`, is of the result that the study shows now; it may lack a
    finding of an earlier one.
    """
    mask = path.parent / "false" / f"{row['study']}.nii.gz"
    if not mask.is_file() or not row.get("peak_voxel"):
        return {}
    image = read_image(mask)
    peak = _peak(row, path)
    marked = np.asarray(image.dataobj) > 0
    inside = all(0 <= p < n for p, n in zip(peak, marked.shape, strict=True))
    if not inside or not marked[peak]:
        return {}
    labels = label(marked, connectivity=3)
    elongation, compactness = shape_of(np.argwhere(labels == labels[peak]), image.affine)
    return {"elongation": round(elongation, 4), "compactness": round(compactness, 4)}


def _peak(row: Mapping[str, str], path: Path) -> tuple[int, ...]:
    """The voxel of the row's peak; InputError where that is no voxel."""
    try:
        peak = tuple(int(part) for part in row["peak_voxel"].split(","))
    except ValueError:
        peak = ()
    if len(peak) != 3:
        raise InputError(
            f"{path}: study '{row['study']}', column 'peak_voxel': '{row['peak_voxel']}'; expected "
            "three whole numbers such as 12,30,7."
        )
    return peak


def _confirmed(folder: Path, study: str, subject: str) -> dict[str, Any] | None:
    """A scan with confirmed findings as a row for split `tune`; None where its truth is unknown."""
    scan = folder / "scans" / f"{study}.nii.gz"
    truth = folder / "truth" / f"{study}.nii.gz"
    if not (scan.is_file() and truth.is_file()):
        return None
    row: dict[str, Any] = dict.fromkeys(CONFIRMED)
    row |= {"id": study, "image": scan, "subject": subject or study, "mask": truth}
    return row | {"split": "tune", "label": "abnormal"}


def beside(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Rows with their files as they are reached from `folder`."""
    found: list[dict[str, Any]] = []
    for row in rows:
        files = {name: os.path.relpath(row[name].resolve(), folder.resolve()) for name in FILES}
        found.append(row | files)
    return found


def _unquoted(row: Row) -> Row:
    return {key: text[1:] if text.startswith(QUOTED) else text for key, text in row.items()}
