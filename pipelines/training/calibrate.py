"""Thresholds and healthy reference of a trained model, from healthy validation scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.metrics import VoxelHistogram
from models.base import AnomalyModel
from pipelines.cohort.cases import read_truth
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import cohort_maps, scan_score
from pipelines.detect.points import operating_points

WHAT = {"map": "map", "model": "model's own scores", "cluster": "map's cluster enhancement"}


def calibrate(
    model: AnomalyModel,
    config: RunConfig,
    data: Path,
    rows: list[dict[str, str]],
    device: torch.device,
    tune: Sequence[dict[str, str]] = (),
) -> tuple[dict[str, Any], dict[str, Any], VoxelHistogram]:
    """threshold.json, reference.json and the healthy voxels, from healthy validation scans (rows of scans.tsv).

    `tune` rows are labelled scans for the few-label operating point, and for nothing else here.
    """
    healthy, labelled, marked, scans, tuned = VoxelHistogram(), VoxelHistogram(), False, [], []
    settings = config.calibration
    for row, labels_seen in tqdm(
        [*((r, False) for r in rows), *((r, True) for r in tune)],
        desc="healthy reference",
        unit="scan",
    ):
        native = cohort_maps(model, config, data, row, device)
        values, score = native.map[native.brain], scan_score(native, settings.score_fraction)
        case = {"id": row["id"], "score": score, "maximum": float(values.max(initial=0.0))}
        if not labels_seen:
            healthy.update(values, np.zeros(values.size, np.uint8))
            scans.append(case)
        else:
            tuned.append(case | {"label": row["label"]})
            truth = read_truth(row, native.map.shape, native.affine)
            if truth is not None and row["mask"]:
                labelled.update(values, truth[native.brain] > 0)
                marked = True
    points = operating_points(healthy, scans, tuned, labelled if marked else None, settings)
    threshold = {
        "value": points[settings.point]["voxel"],
        **points[settings.point],
        "n_scans": len(scans),
        "points": points,
    }
    quantiles = {
        str(q): float(healthy.quantile(q)) for q in (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    }
    reference = {
        "score": f"mean of the highest {settings.score_fraction:.1%} of the {WHAT[settings.score]} inside the brain",
        "scans": sorted(scans, key=lambda s: s["score"]),
        "voxel_quantiles": quantiles,
    }
    return threshold, reference, healthy
