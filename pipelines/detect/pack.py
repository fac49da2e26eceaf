"""A run made small: half precision, compressed, and measured against the run it comes from."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.cohort.cases import Case, load
from pipelines.detect.folder import SEALED, demand_place, read_history, seal, write_history
from pipelines.detect.run import Run, load_run
from preprocessing.files import write_atomic
from preprocessing.scans import InputError

SMALL = (
    4096  # numbers that stay float32: they weigh nothing, and the knots of an ensemble lie close
)
MOST = 0.01  # what a map may change by


def pack(run_dir: Path, out: Path, again: bool = False) -> None:
    """Write a run to `out` as inference needs it: weights as half precision, compressed.

    Logs, checkpoints and folds stay behind. `again`: whatever run lies there may be replaced.
    """
    load_run(run_dir, "cpu")  # a damaged run is refused before anything is written
    history = _history(run_dir)
    demand_place(out, run_dir, again or _history(out) == history)
    out.mkdir(parents=True, exist_ok=True)
    for name in SEALED:
        if name != "weights.pt" and (run_dir / name).is_file():
            shutil.copyfile(run_dir / name, out / name)
    write_history(out, history)

    state = torch.load(run_dir / "weights.pt", map_location="cpu", weights_only=True)
    half = {key: _halved(v) for key, v in state.items()}
    buffer = io.BytesIO()
    torch.save(half, buffer)
    write_atomic(out / "weights.pt", gzip.compress(buffer.getvalue(), mtime=0))
    seal(out, {})


def _halved(values: torch.Tensor) -> torch.Tensor:
    """Large tensors of float32 as half precision."""
    large = values.dtype == torch.float32 and values.numel() > SMALL
    return values.half() if large else values


def _history(run_dir: Path) -> dict[str, Any]:
    """run.json without the digests of its files, and without what packing found."""
    own = ("files", "packed")
    return {key: value for key, value in read_history(run_dir).items() if key not in own}


def largest_change(run: Run, packed: Run, cases: Sequence[Case]) -> float:
    """`change_of` the maps of cases at most."""
    apart = 0.0
    for case in cases:
        prepared = load(case)
        values, other = (
            r.detector.atlas_map(prepared.image, prepared.brain) for r in (run, packed)
        )
        apart = max(apart, change_of(values, other, run.threshold))
    return apart


def change_of(values: np.ndarray, packed: np.ndarray, threshold: float) -> float:
    """By how much a map changes at most, as a share of its value.

    Below the outline threshold, where nothing is marked, it is a share of that.
    """
    return float((np.abs(packed - values) / np.maximum(values, threshold)).max())


def check_packed(run_dir: Path, out: Path, cases: Sequence[Case]) -> float:
    """`largest_change` of a packed run, noted in its run.json; InputError where it is above 1 %."""
    change = largest_change(load_run(run_dir, "cpu"), load_run(out, "cpu"), cases)
    if change > MOST:
        raise InputError(
            f"{out}: maps differ from those of {run_dir} by {change:.1%}, more than {MOST:.0%}; "
            "keep the run as it is."
        )
    packed = {"largest_change": round(change, 6), "scans": [case.id for case in cases]}
    write_history(out, read_history(out) | {"packed": packed})
    return change
