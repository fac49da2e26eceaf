"""What alignment does to a lesion's volume: `python -m benchmarks.alignment --scan T1 --out JSON`.

Bright balls of 5 and 30 ml are planted in a real T1. Their volume is measured in the scan, in atlas
space under each `align`, and back on the scan's grid; so are how far a point of the atlas brain
comes back from where it was after a round trip, and the seconds of CPU of each alignment over those
of the rigid one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipelines import cli
from pipelines.config import load_recipe
from preprocessing import prepare, register
from preprocessing.files import write_json
from preprocessing.images import Grid, read_image, save_nifti
from preprocessing.quality import dice
from preprocessing.resample import resample
from preprocessing.scans import Scan
from preprocessing.warp import carry, inverse

ALIGN = ("rigid", "affine", "deformable")
PLANTED = {5.0: -25.0, 30.0: 25.0}  # ml, and mm right of the middle of the brain


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scan", required=True, type=Path, help="a stripped T1")
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows, fits = volumes(arguments.scan)
    for row in (*rows, *fits):
        print(row)
    found = {"scan": arguments.scan.name, "lesions": rows, "alignments": fits}
    write_json(arguments.out, found)


def volumes(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of each planted lesion under each alignment, and the figures of each alignment."""
    native = read_image(path)
    recipe = load_recipe("t1")
    data = np.asarray(native.dataobj)
    grid = Grid.of(native)
    middle = register.centre(data > 0, grid.affine)
    bright = 1.5 * float(np.percentile(data[data > 0], 98))
    lesions = {}
    for wanted, right in PLANTED.items():
        mm = middle + np.array([right, 0, 15])
        place = np.linalg.inv(grid.affine) @ np.append(mm, 1)
        lesions[wanted] = ball(place[:3], wanted, grid)
        data = np.where(lesions[wanted], bright, data)
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "planted.nii.gz"
        image = nib.Nifti1Image(data.astype(np.float32), grid.affine)
        image.set_sform(grid.affine, code=1)
        save_nifti(image, planted)
        first = prepare.strip(Scan("planted", planted, "planted"), recipe)

    rows = []
    fits: list[dict[str, Any]] = []
    rigid_seconds = 0.0
    for align in ALIGN:
        started = time.process_time()
        laid = prepare.lay_on_atlas(first, recipe.model_copy(update={"align": align}))
        seconds = time.process_time() - started
        rigid_seconds = rigid_seconds or seconds
        points = nib.affines.apply_affine(laid.grid.affine, np.argwhere(laid.brain)[::997])
        home = carry(laid.scan_from_atlas, points)
        away = np.linalg.norm(carry(inverse(laid.scan_from_atlas), home) - points, axis=1)
        assert laid.outline is not None
        fits.append(
            {
                "align": align,
                "Dice with the atlas brain": round(dice(laid.brain, laid.outline), 3),
                "round trip, mean mm": round(float(away.mean()), 3),
                "round trip, greatest mm": round(float(away.max()), 3),
                "seconds of CPU": round(seconds, 1),
                "seconds over rigid": round(seconds / rigid_seconds, 2),
            }
        )
        for lesion in lesions.values():
            there = resample(lesion.astype(np.float32), grid, laid.grid, laid.scan_from_atlas)
            back = resample(there, laid.grid, grid, inverse(laid.scan_from_atlas))
            bright_there = laid.image > 0.95
            near = ndimage.binary_dilation(there > 0.5, iterations=3)
            rows.append(
                {
                    "align": align,
                    "ml in the scan": ml(lesion, grid),
                    "ml in the atlas": ml(there > 0.5, laid.grid),
                    "ml in the atlas, brighter than 0.95": ml(near & bright_there, laid.grid),
                    "ml back in the scan": ml(back > 0.5, grid),
                }
            )
    return rows, fits


def ball(centre: np.ndarray, wanted_ml: float, grid: Grid) -> np.ndarray:
    """A ball of a volume about a voxel, bool."""
    radius = (wanted_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    axes = zip(np.indices(grid.shape, sparse=True), centre, grid.spacing, strict=True)
    return sum(((at - c) * size) ** 2 for at, c, size in axes) <= radius**2


def ml(mask: np.ndarray, grid: Grid) -> float:
    """Volume of a mask in ml."""
    return round(float(mask.sum() * np.prod(grid.spacing) / 1000), 2)


if __name__ == "__main__":
    cli.leave(main)
