"""Whom the gate warns of: `python -m benchmarks.gate --data work/<cohort> --out FILE`.

Healthy scans are cut into folds by subject. The gate of a fold knows the healthy scans of all other
folds, as a run would that had learned from them, and judges

- the fold's healthy scans: it should warn of few of them;
- the abnormal scans of its subjects, or where they are of other subjects an even share: it should
  not warn because of a lesion;
- the fold's healthy scans under every shift of `make stress`, in the worst severity, of `--shifted`
  scans in all: it should warn of most, where preparing does not refuse them.

`--out` holds any number of cohorts, and the features of each scan, in the order of `features`. What
has features there is judged again, but not prepared again: so another gate can be tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conformal_shift import rate
from evaluation.shifts import SEVERITIES, shifts_of
from pipelines import cli
from pipelines.cohort.cases import Case, load, read_cases
from pipelines.config import read_recipe
from pipelines.detect.gate import judge
from pipelines.detect.typical import Typical, describe, features_of
from pipelines.study.stress import shifted
from preprocessing.files import read_json, write_rows
from preprocessing.scans import ScanError

Row = dict[str, Any]
FOLDS = 5
NOT_SCORED = "not scored"


def folds_of(cases: Sequence[Case]) -> list[int]:
    """The fold of each case: healthy subjects by lot, subjects without a healthy scan in turn."""
    healthy = sorted({c.subject for c in cases if c.label == "healthy"})
    drawn = np.random.default_rng(0).permutation(healthy).tolist()
    others = sorted({c.subject for c in cases} - set(healthy))
    fold = {subject: n % FOLDS for n, subject in enumerate([*drawn, *others])}
    return [fold[case.subject] for case in cases]


def measured(case: Case, typical: Typical, shift: str, data: Path) -> Row:
    """A row: the features of a case under a shift, or as it is (""), or why it is not scored."""
    row: Row = {"scan": case.id, "label": case.label, "shift": shift}
    try:
        if shift:
            _, prepared = shifted(case, shift, max(SEVERITIES), 0, read_recipe(data))
            checks = [check.row() for check in prepared.checks]
        else:
            prepared = load(case)
            checks = case.read_sidecar().get("checks", [])
    except ScanError as error:
        return row | {"verdict": NOT_SCORED, "reason": str(error).partition(": ")[2]}
    features = features_of(prepared, checks, np.array(typical.histogram))
    return row | {"features": {name: round(value, 6) for name, value in features.items()}}


def judged(row: Row, typical: Typical) -> Row:
    """A row with the verdict on its features."""
    if "features" not in row:
        return row
    gate = judge(typical, row["features"])
    assert gate is not None
    verdict = {
        "verdict": gate.verdict,
        "reason": ", ".join(gate.because),
        "p_value": gate.p_value,
    }
    return row | verdict


def measure(data: Path, scans: int, known: dict[tuple[str, str], Row]) -> Iterator[Row]:
    """A row for each case of a cohort, and for some healthy ones under every shift.

    `known` are rows by scan and shift; these are not measured again.
    """
    cases = [c for c in read_cases(data) if not c.is_part]
    folds = folds_of(cases)
    healthy = [c for c in cases if c.label == "healthy"]
    picked = np.random.default_rng(1).permutation([c.id for c in healthy])[:scans]
    shifts = shifts_of(read_recipe(data).modality)
    for fold in range(FOLDS):
        own = [case for case, number in zip(cases, folds, strict=True) if number == fold]
        typical = describe([case for case in healthy if case not in own])
        for case in own:
            for shift in ["", *(shifts if case.id in picked else [])]:
                row = known.get((case.id, shift)) or measured(case, typical, shift, data)
                yield judged(row, typical)


def summary(rows: Sequence[Row]) -> Row:
    """Shares of scans that are refused or warned of, with intervals of 95 %."""
    plain: dict[str, list[Row]] = {"healthy": [], "abnormal": []}
    by_shift: dict[str, list[Row]] = {}
    for row in rows:
        if row["shift"]:
            by_shift.setdefault(row["shift"], []).append(row)
        else:
            plain[row["label"]].append(row)
    return {
        **{label: shares(found) for label, found in plain.items()},
        "shifted": shares([row for row in rows if row["shift"]]),
        "by shift": {name: shares(found) for name, found in by_shift.items()},
    }


def shares(rows: Sequence[Row]) -> Row:
    """How many scans there are, how many are not scored, and the share of warned or not scored."""
    if not rows:
        return {"n": 0}
    warned = sum(row["verdict"] != "scored" for row in rows)
    refused = sum(row["verdict"] == NOT_SCORED for row in rows)
    return {"n": len(rows), NOT_SCORED: refused, **rate(warned, len(rows))}


def packed(rows: Sequence[Row]) -> Row:
    """Rows as the file holds them: names of features once, and null for one that a scan lacks."""
    known: dict[str, None] = {}
    for row in rows:
        known |= dict.fromkeys(row.get("features", {}))
    names = list(known)
    scans = []
    for row in rows:
        if "features" in row:
            row = row | {"features": list(map(row["features"].get, names))}
        scans.append(row)
    return {"features": names, "scans": scans}


def unpacked(content: Row) -> list[Row]:
    """The rows that `packed` was given."""
    rows = []
    for row in content["scans"]:
        if "features" in row:
            pairs = zip(content["features"], row["features"], strict=True)
            row = row | {"features": {name: value for name, value in pairs if value is not None}}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="cohort of make preprocess")
    parser.add_argument("--shifted", type=int, default=4, help="healthy scans to shift")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    content: Row = read_json(arguments.out) if arguments.out.is_file() else {}
    name = arguments.data.name
    known: dict[tuple[str, str], Row] = {}
    for row in unpacked(content[name]) if name in content else []:
        known[row["scan"], row["shift"]] = row
    for row in measure(arguments.data, arguments.shifted, known):
        print(name, {key: row[key] for key in row if key != "features"}, flush=True)
        known[row["scan"], row["shift"]] = row
        rows = list(known.values())
        content[name] = {"summary": summary(rows), **packed(rows)}
        write_rows(arguments.out, content)
    print(content[name]["summary"])


if __name__ == "__main__":
    cli.leave(main)
