"""The files of a run folder, told without loading any weights or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preprocessing.files import file_digest, read_json, write_json
from preprocessing.scans import InputError

MEMORY = "memory.json"  # where a run has learned from readers
FORMAT = 1  # of a run folder; raise when an older Norma could not read it
SEALED = (
    "config.yaml",
    "recipe.yaml",
    "threshold.json",
    "reference.json",
    "healthy_voxels.npz",
    "typical.json",
    MEMORY,
    "weights.pt",
)
FINISHED = (
    "run.json",  # what it learned from and the digests of the others: no run is trusted without
    "config.yaml",
    "recipe.yaml",
    "weights.pt",
    "threshold.json",
    "reference.json",
)


def demand_finished(run_dir: Path) -> None:
    """InputError for no run folder, one that is too new, or one whose run is not finished."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder; train one with 'make train'.")
    found = read_history(run_dir).get("format", FORMAT)
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{run_dir}: a run of format {found}; this version of Norma reads up to format "
            f"{FORMAT}, so use a newer one."
        )
    for name in FINISHED:
        if not (run_dir / name).is_file():
            raise InputError(
                f"{run_dir}: no {name}, so this is no finished run; finish it with 'make train'."
            )


def demand_own_files(run_dir: Path) -> None:
    """InputError where a file of the run is not the one that training wrote."""
    for name, digest in read_history(run_dir).get("files", {}).items():
        path = run_dir / name
        if not path.is_file() or file_digest(path) != digest:
            raise InputError(
                f"{path}: not the file that this run was finished with; copy the run again, or "
                "train it again with 'make train'."
            )


def read_history(run_dir: Path) -> dict[str, Any]:
    """run.json of a run folder, finished or not; empty where the file is missing."""
    path = run_dir / "run.json"
    history = read_json(path) if path.is_file() else {}
    if not isinstance(history, dict):
        raise InputError(f"{path}: expected a JSON object; train the run again with 'make train'.")
    return history


def write_history(run_dir: Path, history: dict[str, Any]) -> None:
    """Write run.json with the format of the folder."""
    write_json(run_dir / "run.json", {"format": FORMAT} | history)


def seal(run_dir: Path, more: dict[str, str] | None = None) -> None:
    """Write the digests of a run's files into its run.json; `more` are of files not there yet."""
    names = [name for name in SEALED if (run_dir / name).is_file()]
    digests = {name: file_digest(run_dir / name) for name in names} | (more or {})
    write_history(run_dir, read_history(run_dir) | {"files": digests})


def demand_place(out: Path, run_dir: Path, same: bool) -> None:
    """InputError where a run that is made from another would take the place of a third, or its own.

    `same`: what `out` holds was made from `run_dir` before, and may be made again.
    """
    if out.resolve() == run_dir.resolve() or (finished(out) and not same):
        raise InputError(f"{out}: holds another run, which would be lost; give another OUT.")


def finished(run_dir: Path) -> bool:
    """Whether a run folder holds a finished run."""
    return (run_dir / "weights.pt").is_file()
