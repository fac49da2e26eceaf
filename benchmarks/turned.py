"""How like the atlas preprocessed scans are as they lie, and turned by half a turn.

`python -m benchmarks.turned --data work/ct_ich work/ds002748 --out docs/results/turned.json`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.cohort.cases import Case, load, read_cases
from pipelines.config import read_recipe
from preprocessing import quality, register
from preprocessing.files import write_json
from preprocessing.images import HALF
from preprocessing.resample import carry_mask, resample


def likenesses(case: Case, atlas: register.Atlas) -> list[float]:
    """Mutual information in nats as the scan lies, then after each half turn."""
    prepared = load(case)
    coarse = atlas.grid.every(2)
    found: list[float] = []
    for turn in (np.eye(4), *register.half_turns(atlas)):
        both = carry_mask(prepared.brain, prepared.grid, coarse, turn) & atlas.brain[HALF]
        image = resample(prepared.channels[0], prepared.grid, coarse, turn)
        found.append(quality.mutual_information(image[both], atlas.image[HALF][both]))
    return found


def of_cohort(data: Path) -> dict[str, Any]:
    """Ratios of a cohort: as scans lie over the best turned one, and each turned one over that."""
    recipe = read_recipe(data)
    atlas = register.load_atlas(recipe.template, recipe.grid)
    right: list[float] = []
    wrong: list[float] = []
    for case in read_cases(data):
        own, *turned = likenesses(case, atlas)
        right.append(round(own / max(turned), 4))
        wrong += [round(value / own, 4) for value in turned]
    return {
        "data": data.name,
        "modality": recipe.name,
        "scans": len(right),
        "lowest_right": min(right),
        "refused_right": sum(ratio < 1 for ratio in right),
        "highest_wrong": max(wrong),
        "passed_wrong": sum(ratio >= 1 for ratio in wrong),
        "right": sorted(right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="OUTs of preprocess")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    write_json(arguments.out, {"cohorts": [of_cohort(data) for data in arguments.data]})


if __name__ == "__main__":
    main()
