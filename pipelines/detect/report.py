"""The report of a scan: score, percentile, components, flags."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.postprocess import components, location_of_maximum
from evaluation.thresholds import percentile_of
from pipelines.detect.detector import NativeMap, scan_score
from pipelines.detect.run import Run
from pipelines.versions import __version__
from preprocessing.scans import NOTICE, Scan

COLUMNS = (
    "id",
    "image",
    "status",
    "score",
    "percentile",
    "anomalous_ml",
    "components",
    "flags",
    "reason",
)


def scored_report(
    run: Run, scan: Scan, threshold: float, native: NativeMap, mask: np.ndarray, world: np.ndarray
) -> dict[str, Any]:
    score = scan_score(native, run.config.calibration.score_fraction)
    found = components(mask, native.map, native.affine)
    peak = location_of_maximum(native.map, native.affine)
    for place in (*found, peak):
        for key in [k for k in place if k.endswith("mm")]:
            place[key.replace("mm", "atlas_mm")] = (np.linalg.inv(world) @ [*place[key], 1])[
                :3
            ].round(1)
    volume = float(mask.sum() * np.prod(native.spacing))
    return {
        "id": scan.id,
        "image": str(scan.image),
        "status": "scored",
        "notice": NOTICE,
        "score": score,
        "percentile": percentile_of(score, run.healthy_scores),
        "percentile_of": f"{len(run.healthy_scores)} healthy validation scans",
        "threshold": threshold,
        "anomalous_mm3": volume,
        "n_components": len(found),
        "components": found[:20],
        "maximum": peak,
        "coordinates": "RAS+ millimetres; *_mm in the scan's world, *_atlas_mm in the atlas",
        "model": run.config.name,
        "run": str(run.folder),
        "norma": __version__,
    }


def score_row(report: dict[str, Any]) -> dict[str, Any]:
    """A report as a row of scores.tsv."""
    row = {k: report.get(k) for k in COLUMNS}
    if report["status"] == "scored":
        row |= {
            "score": f"{report['score']:.6g}",
            "anomalous_ml": f"{report['anomalous_mm3'] / 1000:.3f}",
            "components": report["n_components"],
            "flags": "; ".join(report["flags"]),
        }
    return row
