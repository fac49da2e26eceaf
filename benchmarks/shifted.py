"""A cohort's healthy scans under a shift, as raw scans: `python -m benchmarks.shifted`.

Each healthy scan of split test in `--splits` gets the shift of `make stress` in one severity. OUT
holds the scans and `cohort.tsv`, for pipelines.preprocess. So another scanner is made whose healthy
scans are those of the same people, by which benchmarks.adaptation measures `make adapt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.adaptation import healthy_cases
from evaluation.shifts import SEVERITIES
from pipelines import cli
from pipelines.config import read_recipe
from pipelines.study.stress import demand_shifts, write_shifted
from preprocessing.files import write_table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="OUT of preprocess")
    parser.add_argument("--splits", required=True, type=Path, help="table (id, split)")
    parser.add_argument("--shift", required=True, help="as of make stress")
    parser.add_argument("--severity", type=int, default=max(SEVERITIES), choices=SEVERITIES)
    parser.add_argument("--out", required=True, type=Path, help="folder")
    arguments = parser.parse_args()
    modality = read_recipe(arguments.data).modality
    demand_shifts([arguments.shift], modality)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for case in healthy_cases(arguments.data, arguments.splits):
        asked = (arguments.shift, arguments.severity, 0, modality)
        path = write_shifted(case, *asked, arguments.out)
        about = {"subject": case.subject, "split": "test", "label": "healthy"}
        rows.append({"id": case.id, "image": path.name} | about)
    write_table(arguments.out / "cohort.tsv", rows)
    print(f"{len(rows)} scans in {arguments.out}")


if __name__ == "__main__":
    cli.leave(main)
