"""Small results folders for tests, written by the writer of `make compare`."""

from evaluation.protocol import LABELS
from pipelines.study.results_file import Results
from pipelines.study.results_writer import write_results

SETTINGS = {"config": {"name": "any", "model": {}}, "recipe": {"modality": "t1"}}


def made_run(**changes):
    """A run as a comparison gives it, with these changes."""
    training = {"data": "work/any", "seconds": 10.0, "train_scans": ["t"], "val_scans": ["v"]}
    run = {
        "seed": 0,
        "repeat": None,
        "fold": None,
        "point": {"point": "quantile", "voxel": 0.5, "scan": 0.5},
        "points": {"quantile": 0.5},
        "seconds_per_scan": 1.0,
        "training": training,
        "summary": {"n_healthy": 1, "n_abnormal": 1, "n_with_lesion_mask": 0},
        "classes": {},
        "lesions_by_size": [],
        "precision_by_size": [],
        "failures": [],
        "voxels": [],
        "scans": [],
        "slices": [],
    }
    return SETTINGS | run | changes


def made_results(folder, runs, **changes):
    """The results folder of a comparison with these runs by model; figures are not defined."""
    undefined = {key: {"mean": None, "sd": None, "n": 0} for key in LABELS}
    entries = []
    for model in runs:
        entries.append(
            {"model": model, "figures": undefined, "train_seconds": 1.0, "seconds_per_scan": 1.0}
        )
    comparison = {
        "name": folder.name,
        "data": folder.name,
        "trained_on": "any",
        "protocol": {"name": "volumes"},
        "protocol_text": "",
        "command": "python -m pipelines.compare",
        "versions": {"norma": "0.1.0"},
        "baseline": next(iter(runs)),
        "failures": [],
        "models": entries,
        "differences": [],
    }
    write_results(folder, comparison | changes, runs)
    return Results.read(folder)
