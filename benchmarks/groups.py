"""By whom detectors fail: `python -m benchmarks.groups --results docs/results/<name> --out FILE`.

What each model of a comparison marks in healthy scans, by the columns of `--people`, a BIDS
participants table (age and sex), and by brain volume. Figures as in `evaluation.groups`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from evaluation.groups import healthy_groups
from pipelines import cli
from pipelines.study.evaluation import ScanRow
from pipelines.study.results_file import Results
from preprocessing.files import read_table, write_json
from preprocessing.scans import InputError

KEY = "participant_id"
BRAIN = "brain_ml"


def grouped(
    rows: Sequence[Mapping[str, Any]], people: Mapping[str, Mapping[str, str]], columns: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """`healthy_groups` of scans by each column of their subject, and by brain volume.

    `people` has a row per subject. A column in which the scans do not differ is left out.
    """
    scans = [{**people.get(row["subject"], {}), **row} for row in rows]
    found = {column: healthy_groups(scans, column) for column in [*columns, BRAIN]}
    return {column: groups for column, groups in found.items() if groups}


def tested(results: Results, model: str) -> list[ScanRow]:
    """The test scans of every run of a model; with folds drawn once, each scan once."""
    return list(chain.from_iterable(results.cases_of(run) for run in results.runs(model)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", required=True, type=Path, help="results folder of compare")
    parser.add_argument("--people", required=True, type=Path, help="a participants.tsv")
    parser.add_argument("--columns", nargs="+", default=["sex", "age"])
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    table = read_table(arguments.people)
    if not table or KEY not in table[0]:
        raise InputError(f"{arguments.people}: no column {KEY}; give a participants.tsv of BIDS.")
    people = {row[KEY]: row for row in table}
    results = Results.read(arguments.results)
    content = {
        "results": arguments.results.name,
        "models": {
            name: grouped(tested(results, name), people, arguments.columns)
            for name in results.names()
        },
    }
    write_json(arguments.out, content)
    for name, found in content["models"].items():
        for column, groups in found.items():
            print(name, column, groups)


if __name__ == "__main__":
    cli.leave(main)
