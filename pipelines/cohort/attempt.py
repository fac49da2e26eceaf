"""One scan preprocessed, or the failure of a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines import cli
from pipelines.cohort.lesion_free import write_part
from pipelines.cohort.store import Failure, preprocess_scan, write_outline
from preprocessing.prepare import RefusedScan
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan, ScanError


def try_preprocess(
    scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()
) -> Failure | None:
    """`preprocess_scan` that answers with the failure of a bad scan, and None for a good one.

    Whatever one scan raises costs that scan alone; its traceback goes to the log file. What is no
    scan's fault (the disk is full, `out` cannot be written) is raised.
    """
    cli.log_to(out)
    try:
        preprocess_scan(scan, recipe, out, formats)
        if scan.gives_slices:
            write_part(scan, out, recipe.min_brain_pixels)
        return None
    except RefusedScan as error:
        if error.picture is not None:
            _write_refused(scan, *error.picture, out)
        return {"reason": str(error), "checks": [check.row() for check in error.checks]}
    except ScanError as error:
        return {"reason": str(error), "checks": []}
    except Exception as error:
        if cli.ends_the_command(error, out):
            raise
        cli.log_traceback(error, out)
        return {"reason": cli.unexpected(error, scan.image), "checks": []}


def _write_refused(scan: Scan, image: np.ndarray, brain: np.ndarray, out: Path) -> None:
    """The picture of a scan that failed its checks, so that a reader sees why."""
    low, high = np.percentile(image, (1, 99.5))
    shown = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    write_outline(out / "quality" / f"{scan.id}.png", shown, brain, f"{scan.id} (refused)")
