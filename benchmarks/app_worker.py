"""A worker of the app whose detector takes half a second and needs no run, for load and kills.

`python -m benchmarks.app_worker`; map and mask are on the scan's grid, and tell the scan's sum.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from app.detect import save, write
from app.jobs import Job, Say, Scored
from app.settings import add_arguments, settings_of
from app.store import open_current
from app.studies import sync_folder
from app.worker import work

SECONDS = 0.5


def stand_in(scan: Path, job: Job, folder: Path, say: Say) -> Scored:
    """Marks a block; the score is the mean of the scan, by which a mixed-up result is seen."""
    image = nib.Nifti1Image.from_filename(scan)
    score = float(np.asarray(image.dataobj).mean())
    marked = np.zeros(image.shape, np.uint8)
    marked[2:5, 2:6, 2:4] = 1
    say("scoring", 0.5)
    time.sleep(SECONDS)
    save(nib.Nifti1Image(marked.astype(np.float32), image.affine), folder / "map.nii.gz")
    save(nib.Nifti1Image(marked, image.affine), folder / "mask.nii.gz")
    write(folder / "reference.json", json.dumps({"scores": [1.0], "of": "none"}).encode())
    sync_folder(folder)
    found = {"place": "left, front, top", "volume_mm3": 24.0, "peak": 1.0, "mean": 1.0}
    report = {
        "status": "scored",
        "score": score,
        "percentile": 50.0,
        "percentile_of": "no scan",
        "threshold": 0.5,
        "anomalous_mm3": 24.0,
        "n_components": 1,
        "components": [{**found, "peak_voxel": [2, 2, 2]}],
    }
    return Scored(report, "0" * 64, SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_worker", description=__doc__)
    add_arguments(parser)
    settings = settings_of(parser.parse_args())
    engine = open_current(settings.address)
    work(engine, settings, stand_in)


if __name__ == "__main__":
    main()
