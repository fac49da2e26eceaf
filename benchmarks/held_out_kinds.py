"""Which kinds of planted lesions runs find, shown in training or not: `benchmarks.held_out_kinds`.

    python -m benchmarks.held_out_kinds --runs RUN [RUN ...] --data DATA --out JSON

Every healthy validation slice gets one lesion of each look of models/parts/planting.py, from seeds
that training never draws. The voxel average precision is pooled over the slices of a look, at the
resolution of the run. Runs of other `model.looks` show what a detector makes of looks that it was
not shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from models.parts.planting import LOOKS, plant_batch
from pipelines import cli
from pipelines.detect.run import Run, load_run
from pipelines.training.data import SliceDataset
from pipelines.versions import command_line, versions
from preprocessing.files import write_json

AT_ONCE = 16
FIRST_SEED = 1 << 61  # training draws from hashes; a repeat of one of them is no concern


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", required=True, nargs="+", type=Path, help="finished runs")
    parser.add_argument("--data", required=True, type=Path, help="the cohort they learned from")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    parser.add_argument("--field-mm", type=float, default=240.0, help="longer side of a slice")
    parser.add_argument("--slices", type=int, default=100, help="at most so many, evenly spread")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for folder in arguments.runs:
        run = load_run(folder)
        for look in LOOKS:
            rows.append(measured(run, look, arguments.data, arguments.field_mm, arguments.slices))
            print(rows[-1])
    made = {"command": command_line("benchmarks.held_out_kinds"), "versions": versions()}
    write_json(arguments.out, made | {"data": arguments.data.name, "looks": rows})


def measured(run: Run, look: str, data: Path, field_mm: float, count: int) -> dict[str, Any]:
    """How well a run finds one look: average precision, and share of lesion pixels (chance)."""
    config = run.config
    dataset = SliceDataset(
        data / "slices", run.history["val_scans"], config.image_size, around=config.around
    )
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    found: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for start in range(0, len(chosen), AT_ONCE):
        items = [(int(i), FIRST_SEED + int(i)) for i in chosen[start : start + AT_ONCE]]
        maps, lesions, brain = maps_of(run, dataset, items, look, field_mm)
        found.append(maps[brain])
        truth.append(lesions[brain])
    shown = config.model.get("looks", ())
    labels = np.concatenate(truth)
    return {
        "run": run.folder.parent.name if run.folder.name.startswith("seed") else run.folder.name,
        "look": look,
        "in_training": look in shown,
        "slices": len(chosen),
        "lesion_share": float(labels.mean()),
        "voxel_ap": float(average_precision_score(labels, np.concatenate(found))),
    }


def maps_of(
    run: Run, dataset: SliceDataset, items: Sequence[tuple[int, int]], look: str, field_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps, lesions (bool) and brains (bool) of some slices, (B, 1, H, W) each."""
    batch = dataset.batch(items)
    offsets = (0.0, *map(float, run.config.around))
    pixel_mm = field_mm / max(run.config.image_size)
    image, lesions = plant_batch(
        batch["image"], batch["mask"], batch["seed"], [look], 1.0, pixel_mm, offsets
    )
    with torch.inference_mode():
        maps = run.model.anomaly_map(image, batch["mask"], batch["z"])
    return maps.float().numpy(), lesions.numpy() > 0, batch["mask"].numpy() > 0


if __name__ == "__main__":
    cli.leave(main)
