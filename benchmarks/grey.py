"""What a linear change of grey moves: `python -m benchmarks.grey --run t1 --scans A --out B`.

Each scan is marked as it came in, then after linear changes, stored as float32.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipelines import cli
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from preprocessing.files import write_json
from preprocessing.images import read_image
from preprocessing.tables import read_scans


def changes(data: np.ndarray) -> dict[str, tuple[float, float]]:
    """Slope and intercept of each change: x * slope + intercept."""
    sd = float(data.std())
    return {
        "z-scored": (1 / sd, -float(data.mean()) / sd),
        "background of -1024": (1.0, -1024.0),
        "times 2.5 plus 37": (2.5, 37.0),
    }


def measured(path: Path, run: Run) -> Iterator[dict[str, Any]]:
    """A row for each change of a scan: ml that are marked, before and after."""
    native = read_image(path)
    data = np.asarray(native.dataobj)
    voxel_ml = abs(float(np.linalg.det(native.affine[:3, :3]))) / 1000
    own = run.detect(read_scans(path, run.recipe.name)[0])
    marked_own = np.asarray(own.mask.dataobj) > 0
    ml = float(marked_own.sum()) * voxel_ml
    for name, (slope, intercept) in changes(data).items():
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder) / "changed.nii"
            values = (data.astype(np.float64) * slope + intercept).astype(np.float32)
            nib.save(nib.Nifti1Image(values, native.affine), changed)
            found = run.detect(read_scans(changed, run.recipe.name)[0])
        marked = np.asarray(found.mask.dataobj) > 0
        after = float(marked.sum()) * voxel_ml
        yield {
            "scan": path.name,
            "change": name,
            "ml": round(ml, 4),
            "ml after": round(after, 4),
            "percent": round(100 * (after - ml) / max(ml, 1e-9), 4),
            "voxels that differ": int((marked != marked_own).sum()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="a run folder or a ready-made run")
    parser.add_argument("--scans", required=True, nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    run = load_run(run_folder(arguments.run), "cpu")
    logging.disable(logging.WARNING)
    rows = []
    for path in arguments.scans:
        for row in measured(path, run):
            print(row, flush=True)
            rows.append(row)
            write_json(arguments.out, {"run": arguments.run, "scans": rows})


if __name__ == "__main__":
    cli.leave(main)
