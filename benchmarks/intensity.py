"""How alike grey values of scans are: `python -m benchmarks.intensity --data COHORT --out JSON`.

The healthy raw scans of a preprocessed cohort are laid on the atlas once more, inside the brain
masks of the cohort. Each option of the recipe's `intensity` scales them. What counts is the spread
from scan to scan, in units of [0, 1]: of three percentiles of the brain, and of the median in white
and in grey matter of the atlas. `nyul` sets the percentiles itself, so the white matter is the test
of it. Figures of other cohorts in the JSON are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage

from pipelines import cli
from pipelines.cohort.cases import Case, load, read_cases
from pipelines.config import read_recipe
from preprocessing.files import read_json, write_json
from preprocessing.images import Grid, read_image
from preprocessing.prepare import scale_intensity
from preprocessing.recipe import Intensity
from preprocessing.resample import resample

TISSUE = 35.0  # HU
SURE = 0.9  # share of a tissue in an atlas voxel that counts as that tissue
QUARTERS = {"25th percentile": 25, "median": 50, "75th percentile": 75}
MR = {
    "percentiles": Intensity(kind="percentiles", low=1, high=95, top=0.75),
    "nyul": Intensity(kind="nyul"),
    "white": Intensity(kind="white", peak="upper", top=0.75),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="a preprocessed CT or T1 cohort")
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the figures")
    parser.add_argument("--scans", type=int, help="the first so many healthy scans; default: all")
    arguments = parser.parse_args()

    options = options_of(read_recipe(arguments.data).intensity)
    cases = [case for case in read_cases(arguments.data) if case.label == "healthy"]
    cases = cases[: arguments.scans]
    if len(cases) < 2:
        parser.error(f"{arguments.data}: {len(cases)} healthy scans; a spread needs two or more.")

    figures = spread(cases, options)
    known = read_json(arguments.out) if arguments.out.is_file() else {}
    write_json(arguments.out, {**known, arguments.data.name: figures})
    for name, row in figures["options"].items():
        print(name, row)


def options_of(own: Intensity) -> dict[str, Intensity]:
    """What is compared: for CT the window of the cohort with and without `tissue`, else T1."""
    if own.kind != "window":
        return MR
    return {
        "window": own.model_copy(update={"tissue": None}),
        f"window, tissue {TISSUE:g}": own.model_copy(update={"tissue": TISSUE}),
    }


def spread(cases: list[Case], options: dict[str, Intensity]) -> dict[str, Any]:
    """Of each option and figure the mean and the standard deviation over scans."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options}
    for case in cases:
        image, brain, grid = on_atlas(case)
        tissues = tissues_of(brain, grid)
        for name, how in options.items():
            found[name].append(figures_of(scale_intensity(image, brain, how), brain, tissues))
        print(case.id, flush=True)

    rows: dict[str, Any] = {}
    for name, scans in found.items():
        rows[name] = over_scans(scans)
    return {"scans": [case.id for case in cases], "options": rows}


def on_atlas(case: Case) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A raw scan on the atlas grid, its brain there (bool), and the grid."""
    prepared = load(case, image=False)
    native = read_image(case.image)
    data = np.asarray(native.dataobj)
    image = resample(
        data,
        Grid.of(native),
        prepared.grid,
        prepared.scan_from_atlas,
        pad=None,
        within=prepared.brain,
    )
    return image, prepared.brain, prepared.grid


def tissues_of(brain: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    """Voxels of a brain where the atlas has white, and grey matter; bool.

    Scans lie rigidly on the atlas, so a voxel of rim is left out of white matter.
    """
    shares = {"white matter": load_mni152_wm_template, "grey matter": load_mni152_gm_template}
    found: dict[str, np.ndarray] = {}
    for name, template in shares.items():
        share = template(resolution=1)
        data = np.asarray(share.dataobj, np.float32)
        found[name] = brain & (resample(data, Grid.of(share), grid) > SURE * data.max())
    found["white matter"] = ndimage.binary_erosion(found["white matter"])
    return found


def figures_of(
    scaled: np.ndarray, brain: np.ndarray, tissues: dict[str, np.ndarray]
) -> dict[str, float]:
    """Percentiles of a scaled brain, the median of each tissue, and how far the two lie apart."""
    figures: dict[str, float] = {}
    for name, percentile in QUARTERS.items():
        figures[name] = float(np.percentile(scaled[brain], percentile))
    for name, tissue in tissues.items():
        figures[name] = float(np.median(scaled[tissue]))
    figures["white - grey"] = figures["white matter"] - figures["grey matter"]
    return figures


def over_scans(scans: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) of each figure over scans."""
    rows: dict[str, dict[str, float]] = {}
    for key in scans[0]:
        values = [scan[key] for scan in scans]
        rows[key] = {
            "mean": round(float(np.mean(values)), 4),
            "sd": round(float(np.std(values, ddof=1)), 4),
        }
    return rows


if __name__ == "__main__":
    cli.leave(main)
