"""The model chosen in each fold without its test scans: what a choice is worth on new scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.metrics import VoxelHistogram
from pipelines.detect.run import load_run
from pipelines.study.choose import Planting, ranking_digest, runs_in, score_planted
from preprocessing.files import digest_of, read_json, write_json

log = logging.getLogger("norma")

CHOSEN = "chosen"  # the name of the row in a comparison


def best_of(
    run_dirs: Sequence[Path], data: Path, planting: Planting, accelerator: str = "auto"
) -> Path:
    """The run with the highest voxel AP on lesions planted in its own validation scans."""
    found = [planted_ap(run_dir, data, planting, accelerator) for run_dir in run_dirs]
    best = run_dirs[int(np.argmax(found))]
    log.info("chosen without test scans: %s, voxel AP %.3f", best, max(found))
    return best


def planted_ap(run_dir: Path, data: Path, planting: Planting, accelerator: str = "auto") -> float:
    """Voxel AP on planted lesions, pooled over the folds of a run; kept in its planted.json."""
    parts = runs_in(run_dir)
    asked = [list(planting.kinds), list(planting.volumes), planting.seed]
    key = digest_of(asked, [ranking_digest(part, data) for part in parts])
    path = run_dir / "planted.json"
    if path.is_file():
        before = read_json(path)
        if before.get("key") == key:
            return float(before["voxel_ap"])
    pooled = VoxelHistogram()
    for part in parts:
        scores = score_planted(load_run(part, accelerator), data, planting)
        pooled = sum(scores.voxels.values(), pooled)
    value = float(pooled.average_precision())
    write_json(path, {"key": key, "voxel_ap": value})
    return value
