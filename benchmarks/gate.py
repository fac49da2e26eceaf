"""Whom the gate warns of: `python -m benchmarks.gate --data work/<cohort> --out FILE`.

Healthy scans are cut into folds by subject. The gate of a fold knows the healthy scans of all other
folds, as a run would that had learned from them, and judges

- the fold's healthy scans: it should warn of few of them;
- the abnormal scans of its subjects, or where they are of other subjects an even share: it should
  not warn because of a lesion;
- the fold's healthy scans under every shift of `make stress`, in the worst severity, of `--shifted`
  scans in all: it should warn of most, where preparing does not refuse them.

`--out` holds any number of cohorts. The features are in it, so that another gate can be tried on
them. What stands there is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conformal_shift import rate
from evaluation.shifts import SEVERITIES, SHIFTS
from pipelines import cli
from pipelines.cohort.cases import Case, load, read_cases
from pipelines.config import read_recipe
from pipelines.detect.gate import judge
from pipelines.detect.typical import Typical, describe, features_of
from pipelines.study.stress import shifted
from preprocessing.files import read_json, write_json
from preprocessing.scans import ScanError

Row = dict[str, Any]
FOLDS = 5
NOT_SCORED = "not scored"
NO_CHANGE_OF_MR = "gain"


def folds_of(cases: Sequence[Case]) -> list[int]:
    """The fold of each case: healthy subjects by lot, subjects without a healthy scan in turn."""
    healthy = sorted({c.subject for c in cases if c.label == "healthy"})
    drawn = np.random.default_rng(0).permutation(healthy).tolist()
    others = sorted({c.subject for c in cases} - set(healthy))
    fold = {subject: n % FOLDS for n, subject in enumerate([*drawn, *others])}
    return [fold[case.subject] for case in cases]


def judged(case: Case, typical: Typical, shift: str, data: Path) -> Row:
    """A row: the features of a case under a shift, or as it is (""), and the verdict on them."""
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
    gate = judge(typical, features)
    assert gate is not None
    rounded = {name: round(value, 6) for name, value in features.items()}
    return row | {
        "verdict": gate.verdict,
        "reason": ", ".join(gate.because),
        "p_value": gate.p_value,
        "features": rounded,
    }


def measure(data: Path, scans: int, known: set[tuple[str, str]]) -> Iterator[Row]:
    """A row for each case of a cohort, and for some healthy ones under every shift.

    `known` are scans and shifts that are not measured again.
    """
    cases = [c for c in read_cases(data) if not c.is_part]
    folds = folds_of(cases)
    healthy = [c for c in cases if c.label == "healthy"]
    picked = np.random.default_rng(1).permutation([c.id for c in healthy])[:scans]
    is_ct = read_recipe(data).modality == "ct"
    shifts = [s for s in SHIFTS if is_ct or s != NO_CHANGE_OF_MR]
    for fold in range(FOLDS):
        left: list[tuple[Case, str]] = []
        others: list[Case] = []
        for case, number in zip(cases, folds, strict=True):
            if number == fold:
                wanted = ["", *(shifts if case.id in picked else [])]
                left += [(case, shift) for shift in wanted if (case.id, shift) not in known]
            elif case.label == "healthy":
                others.append(case)
        typical = describe(others if left else [])
        for case, shift in left:
            yield judged(case, typical, shift, data)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="cohort of make preprocess")
    parser.add_argument("--shifted", type=int, default=4, help="healthy scans to shift")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    content: Row = read_json(arguments.out) if arguments.out.is_file() else {}
    name = arguments.data.name
    rows: list[Row] = content.get(name, {}).get("scans", [])
    known = {(row["scan"], row["shift"]) for row in rows}
    for row in measure(arguments.data, arguments.shifted, known):
        print(name, {key: row[key] for key in row if key != "features"}, flush=True)
        rows.append(row)
        content[name] = {"summary": summary(rows), "scans": rows}
        write_json(arguments.out, content)
    print(content[name]["summary"])


if __name__ == "__main__":
    cli.leave(main)
