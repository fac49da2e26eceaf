"""What small budgets make of virtual fundus pictures: `python -m benchmarks.fundus --out JSON`.

    make preprocess MODALITY=fundus
    python -m benchmarks.fundus --data work/fundus --runs runs/fundus --out docs/results/fundus.json

`f_anogan` learns from the good training pictures, `densenet_supervised` from them and two thirds of
the bad ones, `intensity` is the baseline. All are tested on the good test pictures and every third
bad one: AUROC of the scores, and in how many bad pictures the map is highest inside a mark. A mark
that is hit by chance is what the share of marked pixels of the eye says. `--runs` keeps the runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from pipelines import cli
from pipelines.cohort.cases import Case, read_cases
from pipelines.config import DEMO
from pipelines.detect.config import load_run_config
from pipelines.detect.run import load_run
from pipelines.training.folds import train_run
from pipelines.versions import command_line, versions
from preprocessing.datasets.virtual_fundus import RADIUS, Eye, Mark, make_cohort, marked
from preprocessing.files import write_json, write_table
from preprocessing.tables import read_scans

THIRD = 3
BUDGETS: dict[str, tuple[str | None, list[str]]] = {
    "intensity": (None, ["image_size=[256,256]"]),
    "f_anogan": (
        "fundus",
        [
            *("loop.batch_size=8", "stages.gan.max_epochs=16", "stages.encoder.max_epochs=16"),
            *("stages.gan.lr=1e-3", "stages.encoder.lr=1e-3"),
        ],
    ),
    "densenet_supervised": (None, ["image_size=[128,128]", "stages.train.max_epochs=8"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("work/fundus"), help="OUT of preprocess")
    parser.add_argument("--runs", type=Path, default=Path("runs/fundus"), help="folder of the runs")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    folder = make_cohort(DEMO / "fundus")
    eyes = json.loads((folder / "cohort.json").read_text())["eyes"]
    truth = {e["name"]: marked(_eye(e)) for e in eyes}
    splits = arguments.runs / "splits.tsv"
    arguments.runs.mkdir(parents=True, exist_ok=True)
    write_table(splits, labelled_splits(read_cases(arguments.data)))
    rows = []
    for model in BUDGETS:
        rows.append(measured(model, arguments.data, arguments.runs / model, splits, truth))
        print(rows[-1])
    made = {"command": command_line("benchmarks.fundus"), "versions": versions()}
    write_json(arguments.out, made | {"models": rows})


def _eye(stored: dict[str, Any]) -> Eye:
    return Eye(**stored | {"marks": [Mark(**mark) for mark in stored["marks"]]})


def labelled_splits(cases: list[Case]) -> list[dict[str, str]]:
    """Good pictures as they are; of three bad ones the first is tested, the others train.

    Every sixth bad picture validates.
    """
    table = []
    bad = 0
    for case in sorted(cases, key=lambda case: case.id):
        split = case.split
        if case.label == "abnormal":
            split = ("test", "train", "train", "test", "train", "val")[bad % (2 * THIRD)]
            bad += 1
        table.append({"id": case.id, "split": split})
    return table


def rows_and_columns(array: np.ndarray) -> np.ndarray:
    """A scan of one slice (X, Y, 1), as pictures are read, as rows and columns of the picture."""
    return array[::-1, ::-1, 0].T


def measured(
    model: str, data: Path, run_dir: Path, splits: Path, truth: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Train a model within its budget, and test it."""
    preset, settings = BUDGETS[model]
    config = load_run_config(model, settings, preset)
    train_run(config, data, run_dir, splits if model == "densenet_supervised" else None)
    run = load_run(run_dir, "cpu")
    tested = [case for case in read_cases(data, splits) if case.split == "test"]
    pictures = {scan.id: scan for scan in read_scans(DEMO / "fundus", "picture")}
    scores: list[float | None] = []
    labels: list[bool] = []
    share: list[float] = []
    hits = 0
    for case in tested:
        detection = run.detect(pictures[case.id])
        scores.append(detection.report.score)
        labels.append(case.label == "abnormal")
        if labels[-1]:
            found = rows_and_columns(np.asarray(detection.map.dataobj))
            hits += bool(truth[case.id].flat[found.argmax()])
            share.append(truth[case.id].sum() / (np.pi * RADIUS**2))
    return {
        "model": model,
        "settings": settings,
        "good": labels.count(False),
        "bad": labels.count(True),
        "auroc": round(float(roc_auc_score(labels, scores)), 3),
        "highest_in_a_mark": hits,
        "share_of_marks": round(float(np.mean(share)), 3),
    }


if __name__ == "__main__":
    cli.leave(main)
