"""How far apart the poses are that a fit finds by chance: the same head, other seeds.

`python -m benchmarks.pose_repeats --data FOLDER --out docs/results/pose_repeats.json`

`--data` holds a folder per public set. A seed decides which voxels the fit samples. Norma's is
fixed, so that a scan always comes out the same. What another one changes is what chance is in it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.poses import head_of, listed
from pipelines import cli
from pipelines.config import load_recipe
from preprocessing.files import write_json
from preprocessing.register import Atlas, fit, load_atlas
from preprocessing.scans import ScanError

SEEDS = (0, 1, 2)
STEP = 8  # every so many voxels of the atlas brain a point is carried, along each axis


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    parser.add_argument("--scans", type=int, default=5, help="scans of each set, evenly chosen")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for set_name, modality, path in listed(arguments.data, arguments.scans):
        row = {"set": set_name, "modality": modality, "id": path.name.split("_")[0]}
        row |= measured(path, modality)
        print(row, flush=True)
        rows.append(row)
    write_json(arguments.out, {"sets": summary(rows), "seeds": len(SEEDS), "scans": rows})


def measured(path: Path, modality: str) -> dict[str, Any]:
    """Mean and largest mm between a scan's rigid poses by any two seeds, or why there are none."""
    recipe = load_recipe(modality)
    atlas = load_atlas(recipe.template, recipe.grid)
    try:
        head = head_of(path, recipe)
    except ScanError as error:
        return {"not measured": str(error).partition(": ")[2]}
    spacing = recipe.registration_spacing
    poses: list[np.ndarray] = []
    for seed in SEEDS:
        found = fit(head.image, head.grid, atlas, brain=head.brain, spacing=spacing, seed=seed)
        poses.append(found[0])
    pairs = itertools.combinations(poses, 2)
    apart = np.concatenate([distances(one, other, atlas) for one, other in pairs])
    return {"mean mm": round(float(apart.mean()), 3), "largest mm": round(float(apart.max()), 3)}


def distances(one: np.ndarray, other: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Mm (N,) between where two maps (4x4) send points of the atlas brain."""
    voxels = STEP * np.argwhere(atlas.brain[::STEP, ::STEP, ::STEP])
    places = np.c_[voxels, np.ones(len(voxels))] @ atlas.affine.T
    return np.linalg.norm((places @ (one - other).T)[:, :3], axis=1)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By set and modality: how many scans, and their median and largest mean distance."""
    result: dict[str, dict[str, Any]] = {}
    for name in sorted({f"{row['set']}, {row['modality']}" for row in rows}):
        own = [row for row in rows if f"{row['set']}, {row['modality']}" == name]
        known = [row["mean mm"] for row in own if "mean mm" in row]
        result[name] = {"not measured": len(own) - len(known), "n": len(known)}
        if known:
            result[name]["median of means, mm"] = round(float(np.median(known)), 3)
            result[name]["largest mean, mm"] = max(known)
    return result


if __name__ == "__main__":
    cli.leave(main)
