"""The results file of a model: everything its figures are computed from."""

from __future__ import annotations

from typing import Any

from pipelines.study.protocol import Protocol


def results_file(
    runs: list[dict[str, Any]],
    figures: dict[str, Any],
    command: str,
    protocol: Protocol,
    made_with: dict[str, str],
) -> dict[str, Any]:
    """What is committed of one model: everything its figures are computed from, run by run and case by case.

    `scans` and `slices` are one list each, with the number of their run; `runs` holds what a run has once.
    """
    first = runs[0]
    training = (
        "data",
        "seconds",
        "device",
        "threads",
        "parameters",
        "train_scans",
        "val_scans",
        "tune_scans",
        "versions",
        "command",
    )
    content: dict[str, Any] = {
        "model": first["model"],
        "data": first["data"],
        "trained_on": first["training"]["data"].rpartition("/")[2],
        "protocol": protocol.model_dump(),
        "command": command,
        "versions": made_with,
        "config": first["config"],
        "recipe": first["recipe"],
        "figures": figures,
        "runs": [
            {
                k: r[k]
                for k in (
                    "seed",
                    "repeat",
                    "fold",
                    "point",
                    "points",
                    "summary",
                    "classes",
                    "lesions_by_size",
                    "precision_by_size",
                    "seconds_per_scan",
                    "voxels",
                )
            }
            | {"training": {k: r["training"].get(k) for k in training}, "failures": r["failures"]}
            for r in runs
        ],
    }
    for key in ("scans", "slices"):
        content[key] = [{"run": i} | row for i, r in enumerate(runs) for row in r[key]]
    return content
