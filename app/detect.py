"""One scan by `norma`, and the files of its result."""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import norma
from app.jobs import Job, Say, Scored
from app.pictures import Layers, as_png, three_planes
from app.runs import runs_of
from app.settings import Settings
from app.studies import sync_folder

# Shares of the work that is done when a stage begins, measured on T1 and CT scans.
STAGES = (
    ("read", "reading the scan", 0.02),
    ("prepare", "finding the brain and its place in the atlas", 0.05),
    ("score", "comparing it with healthy scans", 0.55),
    ("write", "writing map, mask and report", 0.9),
)
HEALTHY_DIGITS = 5


@lru_cache(maxsize=2)
def loaded(path: str) -> Any:
    """A run by its path, or a ready-made one by its name, read once."""
    return norma.load_run(path)


def detect(scan_file: Path, job: Job, folder: Path, say: Say, settings: Settings) -> Scored:
    """Score a scan by a run and write map, mask, report and what the page shows beside them.

    Raises norma.ScanError for a scan that the run refuses.
    """
    begin = time.monotonic()
    stages = {name: (words, share) for name, words, share in STAGES}
    say(*stages["read"])
    choices = runs_of(settings)
    if job.run not in choices:
        raise norma.InputError(f"there is no run '{job.run}' any more; choose another one.")
    run = loaded(choices[job.run].path)
    scan = norma.read_scans(scan_file, run.recipe.name)[0]

    say(*stages["prepare"])
    prepared = norma.prepare(scan, run.recipe)

    say(*stages["score"])
    detection = run.detect_prepared(scan, prepared, run.point(settings.point))
    healthy = norma.reconstruct(run, prepared)

    say(*stages["write"])
    save(detection.map, folder / "map.nii.gz")
    save(detection.mask, folder / "mask.nii.gz")
    if healthy is not None:
        save(healthy, folder / "reconstruction.nii.gz")
    scores = np.sort(run.healthy_scores).round(HEALTHY_DIGITS).tolist()
    reference = {"scores": scores, "of": run.healthy_text}
    write(folder / "reference.json", json.dumps(reference).encode())
    report = json.loads(detection.report.model_dump_json(exclude_unset=True))
    write(folder / "report.json", json.dumps(report).encode())
    original = nib.Nifti1Image.from_filename(scan_file)
    layers = Layers(original, detection.map, detection.mask, job.modality, report["threshold"])
    write(folder / "first.png", as_png(three_planes(layers, report)))
    sync_folder(folder)
    return Scored(report, norma.result_digest(run, settings.point), time.monotonic() - begin)


def save(image: nib.Nifti1Image, path: Path) -> None:
    """Write a NIfTI so that it is on the disk when this returns."""
    image.to_filename(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
