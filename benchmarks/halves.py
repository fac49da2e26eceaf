"""A cohort's healthy scans in two halves, as of two scanners: `python -m benchmarks.halves`.

`--by` brightness or contrast: the median of the brain's prepared intensity, or the distance of its
quartiles. `--by lot` gives each scan a number by lot. The half with less of it is the source: a
quarter of its subjects, by lot, calibrate (split val) and the others train. The half with more is
the target, split test. The table is for `--splits` of pipelines.train and of benchmarks.adaptation;
its column `value` says where each scan lies. No value knows a lesion: only healthy scans are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.adaptation import healthy_cases
from pipelines import cli
from pipelines.cohort.cases import Case, load
from pipelines.detect.typical import spread
from preprocessing.files import write_table
from preprocessing.scans import InputError

CALIBRATE = 0.25  # of the subjects of the source
FEWEST = 4  # subjects: one that calibrates, one that trains and two that are the target


def middle(values: np.ndarray) -> float:
    """The median."""
    return float(np.median(values))


MEASURES = {"brightness": middle, "contrast": spread}
LOT = "lot"


def values_of(cases: Sequence[Case], by: str) -> dict[str, float]:
    """A measure of each case's first channel inside its brain, by id; for LOT a number by lot."""
    if by == LOT:
        drawn = np.random.default_rng(0).random(len(cases)).tolist()
        return {case.id: value for case, value in zip(cases, drawn, strict=True)}
    found: dict[str, float] = {}
    for case in cases:
        prepared = load(case)
        found[case.id] = MEASURES[by](prepared.channels[0][prepared.brain])
    return found


def halves(values: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The split of each subject, from the values of its scans; InputError for fewer than 4.

    A subject lies where the mean of its values does. Of an odd number the source has one less.
    """
    if len(values) < FEWEST:
        raise InputError(f"{len(values)} healthy subjects; two halves need at least {FEWEST}.")
    subjects = sorted(values, key=lambda subject: (float(np.mean(values[subject])), subject))
    source = subjects[: len(subjects) // 2]
    count = max(round(CALIBRATE * len(source)), 1)
    drawn = set(np.random.default_rng(0).permutation(source)[:count].tolist())
    splits: dict[str, str] = {}
    for subject in subjects:
        splits[subject] = "test"
        if subject in source:
            splits[subject] = "val" if subject in drawn else "train"
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="OUT of preprocess")
    parser.add_argument("--by", required=True, choices=[*MEASURES, LOT])
    parser.add_argument("--out", required=True, type=Path, help="table")
    arguments = parser.parse_args()
    healthy = healthy_cases(arguments.data)
    found = values_of(healthy, arguments.by)
    by_subject: dict[str, list[float]] = {}
    for case in healthy:
        by_subject.setdefault(case.subject, []).append(found[case.id])
    splits = halves(by_subject)
    rows: list[dict[str, str]] = []
    for case in healthy:
        value = f"{found[case.id]:.4f}"
        rows.append({"id": case.id, "split": splits[case.subject], "value": value})
    write_table(arguments.out, rows)
    for split in ("train", "val", "test"):
        own = [float(row["value"]) for row in rows if row["split"] == split]
        print(f"{split}: {len(own)} scans, {arguments.by} {min(own):.3f} to {max(own):.3f}")


if __name__ == "__main__":
    cli.leave(main)
