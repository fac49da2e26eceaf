"""What `make calibrate` does for healthy scans: `python -m benchmarks.calibration`.

Another scanner: healthy scans of `--site` are marked by `--run` as it is, and calibrated on the
other scans of the site. These may be fewer than the five that `make calibrate` asks for; here alone
that is allowed, to show it on few scans. The promise: `--parent` learned from another scanner than
that of `--data`. It is calibrated on `--scans` healthy scans of `--data`, drawn by lot, and marks
those left over, `--draws` times. Maps are computed once. Only healthy scans are read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import label
from tqdm import tqdm

from evaluation.checks import bounding_box
from evaluation.metrics import VoxelHistogram
from pipelines.cohort.cases import Case, read_cases
from pipelines.detect.detector import NativeMap, cut
from pipelines.detect.points import Point, operating_points
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from pipelines.training.calibrate import scored
from pipelines.versions import versions
from preprocessing.files import write_json

Row = dict[str, Any]
Mapped = tuple[Case, NativeMap]
TOUCHING = np.ones((3, 3, 3))  # 26 neighbours


def healthy_maps(run: Run, data: Path) -> list[Mapped]:
    """Every healthy scan of a cohort with its map, cropped to the brain."""
    found: list[Mapped] = []
    cases = [case for case in read_cases(data) if case.label == "healthy"]
    with tempfile.TemporaryDirectory() as folder:
        for case in tqdm(cases, desc=f"maps of {data.name}", unit="scan"):
            native = run.detector.map_case(case, Path(folder))
            box = bounding_box(native.brain, margin=2)
            assert box
            found.append((case, replace(native, map=native.map[box], brain=native.brain[box])))
    return found


def calibrated(run: Run, mapped: Sequence[Mapped]) -> Point:
    """The run's operating point as healthy scans with these maps set it."""
    healthy = VoxelHistogram()
    for _, native in mapped:
        values = native.map[native.brain]
        healthy.update(values, np.zeros(values.size, np.uint8))
    calibration = run.config.calibration
    outline = healthy.quantile(calibration.outline)
    at = Point(point="outline", voxel=outline, strength=calibration.strength)
    scans = [scored(case, native, run.config, at) for case, native in mapped]
    return operating_points(healthy, scans, [], None, calibration)["finding"]


def marked_in_vain(run: Run, native: NativeMap, at: Point) -> tuple[float, int]:
    """Millilitres and findings that a point marks in a healthy scan."""
    marked = cut(native, at, run.config.postprocess)
    return float(marked.sum() * np.prod(native.spacing)) / 1000, label(marked, TOUCHING)[1]


def another_scanner(run: Run, data: Path) -> Row:
    """Each scan of a site as the run marks it, and calibrated on the site's other scans."""
    mapped = healthy_maps(run, data)
    rows: list[Row] = []
    for i, (case, native) in enumerate(mapped):
        at = calibrated(run, [*mapped[:i], *mapped[i + 1 :]])
        ml, findings = marked_in_vain(run, native, run.points["finding"])
        after_ml, after_findings = marked_in_vain(run, native, at)
        row: Row = {"id": case.id, "before_ml": ml, "before_findings": findings}
        row |= {"after_ml": after_ml, "after_findings": after_findings}
        row |= {"outline": at.voxel, "level": at.component}
        rows.append(row)
    own = run.points["finding"]
    return {
        "run": run.folder.name,
        "learned_from": run.history.get("data"),
        "site": data.name,
        "calibrated_on": len(mapped) - 1,
        "outline": own.voxel,
        "level": own.component,
        "before_ml": mean_of(rows, "before_ml"),
        "after_ml": mean_of(rows, "after_ml"),
        "before_with_finding": sum(row["before_findings"] > 0 for row in rows),
        "after_with_finding": sum(row["after_findings"] > 0 for row in rows),
        "scans": rows,
    }


def promise(run: Run, data: Path, count: int, draws: int) -> Row:
    """How often a healthy scan has a finding, calibrated on `count` others of its scanner."""
    mapped = healthy_maps(run, data)
    before = [marked_in_vain(run, native, run.points["finding"]) for _, native in mapped]
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for _ in tqdm(range(draws), desc="draws"):
        order = rng.permutation(len(mapped)).tolist()
        at = calibrated(run, [mapped[i] for i in order[:count]])
        left = [marked_in_vain(run, mapped[i][1], at) for i in order[count:]]
        shown = sum(findings > 0 for _, findings in left)
        ml = float(np.mean([ml for ml, _ in left]))
        rows.append({"with_finding": shown, "ml": ml, "outline": at.voxel, "level": at.component})
    held_out = len(mapped) - count
    return {
        "learned_from": run.history.get("data"),
        "site": data.name,
        "scans": len(mapped),
        "calibrated_on": count,
        "held_out": held_out,
        "draws": draws,
        "promised": run.config.calibration.false_alarm,
        "with_finding": mean_of(rows, "with_finding") / held_out,
        "ml": mean_of(rows, "ml"),
        "before_with_finding": sum(findings > 0 for _, findings in before) / len(mapped),
        "before_ml": float(np.mean([ml for ml, _ in before])),
        "each": rows,
    }


def mean_of(rows: Sequence[Row], key: str) -> float:
    """Mean of a column."""
    return float(np.mean([row[key] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", default="t1", help="a run, or the name of a ready-made one")
    parser.add_argument("--site", required=True, type=Path, help="OUT of preprocess, other scanner")
    parser.add_argument("--parent", required=True, help="a run that learned from another scanner")
    parser.add_argument("--data", required=True, type=Path, help="OUT of preprocess, many scans")
    parser.add_argument("--scans", type=int, default=20, help="of them to calibrate on")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    found = {
        "versions": versions(),
        "another_scanner": another_scanner(load_run(run_folder(arguments.run)), arguments.site),
        "promise": promise(
            load_run(run_folder(arguments.parent)),
            arguments.data,
            arguments.scans,
            arguments.draws,
        ),
    }
    write_json(arguments.out, found)


if __name__ == "__main__":
    main()
