"""Learning curves of runs, as numbers and as a picture: `python -m benchmarks.curves`.

    python -m benchmarks.curves --runs RUN [RUN ...] --out JSON --picture PNG

They are read from the metrics.csv of each run, without its seconds, which are of one machine. The
picture shows one of the logged numbers, such as `--name dice`, of training and validation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evaluation.figures.plots import curves_figure
from pipelines import cli
from pipelines.versions import command_line
from preprocessing.files import read_table, write_atomic, write_rows
from preprocessing.scans import InputError

Curve = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", required=True, nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the curves")
    parser.add_argument("--picture", required=True, type=Path, help="PNG of the curves")
    parser.add_argument("--name", default="loss", help="what of them is drawn (default loss)")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    panels = []
    for folder in arguments.runs:
        found = curves(folder)
        rows += found
        for row in found:
            title = f"{row['run']}: {row['stage']}"
            panels.append((title, "epoch", arguments.name, drawn(row, arguments.name), False))
    write_rows(arguments.out, {"command": command_line("benchmarks.curves"), "rows": rows})
    write_atomic(arguments.picture, curves_figure(panels))


def curves(folder: Path) -> list[dict[str, Any]]:
    """The curves of a run, one for each stage: a row of what was logged per epoch.

    InputError where nothing was logged, or the file is damaged.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give run folders of a model that is trained.")
    stages: dict[str, dict[int, dict[str, float]]] = {}
    lines = read_table(path)
    try:
        for line in lines:
            epochs = stages.setdefault(line["stage"], {})
            epochs.setdefault(int(line["epoch"]), {})[line["name"]] = float(line["value"])
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: a damaged row, expected stage, epoch, name and value; train the run again."
        ) from None
    name = "/".join(folder.parts[-2:])
    return [
        {"run": name, "stage": stage, "epochs": ordered(epochs)} for stage, epochs in stages.items()
    ]


def ordered(epochs: dict[int, dict[str, float]]) -> Curve:
    """What was logged per epoch, in order; the first epoch is 1."""
    rows: Curve = []
    for epoch in sorted(epochs):
        logged = {name: value for name, value in epochs[epoch].items() if name != "seconds"}
        rows.append({"epoch": epoch + 1, **logged})
    return rows


def drawn(row: dict[str, Any], name: str) -> dict[str, list[tuple[float, float]]]:
    """One of the logged numbers by epoch, in training and validation."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for where, key in (("training", name), ("validation", f"val_{name}")):
        if key not in row["epochs"][0]:
            raise InputError(f"--name {name}: {row['run']} logged {', '.join(row['epochs'][0])}.")
        lines[where] = [(epoch["epoch"], epoch[key]) for epoch in row["epochs"]]
    return lines


if __name__ == "__main__":
    cli.leave(main)
