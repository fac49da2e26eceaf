"""What `make calibrate` does for healthy scans: `python -m benchmarks.calibration`.

Another scanner: healthy scans of `--site` are marked by `--run` as it is, and calibrated on the
other scans of the site. These may be fewer than the five that `make calibrate` asks for; here alone
that is allowed, to show it on few scans. The promise: `--parent` learned from another scanner than
that of `--data`. It is calibrated on `--scans` healthy scans of `--data`, drawn by lot, and marks
those left over, `--draws` times. Only healthy scans are read.

Maps are computed once. Outlines are rounded to OUTLINE_STEP, so that draws share components.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label
from tqdm import tqdm

from evaluation.checks import bounding_box
from pipelines import cli
from pipelines.cohort.cases import read_cases
from pipelines.detect.detector import NativeMap, cut, scan_score, strengths
from pipelines.detect.points import Point, ScoredScan, finding
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from pipelines.versions import versions
from preprocessing.files import write_json

Row = dict[str, Any]
OUTLINE_STEP = 0.05  # of a z-score
EDGES = np.append(np.arange(0, 50, 0.01), np.inf)  # of map values, for the outline


@dataclass
class Healthy:
    """A healthy scan's map, cropped to the brain, and the components found in it so far."""

    id: str
    native: NativeMap
    run: Run
    known: dict[float, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def components(self, outline: float) -> tuple[np.ndarray, np.ndarray]:
        """Strength and millilitres of each component at an outline, (N,) each."""
        if outline not in self.known:
            strength = self.run.config.calibration.strength
            at = Point(point="outline", voxel=outline, strength=strength)
            marked = cut(self.native, at, self.run.config.postprocess)
            counts = np.bincount(label(marked, connectivity=3).ravel())[1:]
            voxel_ml = float(np.prod(self.native.spacing)) / 1000
            self.known[outline] = strengths(self.native, marked, at), counts * voxel_ml
        return self.known[outline]

    @cached_property
    def counts(self) -> np.ndarray:
        """Map values in the brain, counted between EDGES."""
        return np.histogram(self.native.map[self.native.brain], EDGES)[0]

    def marked(self, at: Point) -> tuple[float, int]:
        """Millilitres and findings at a point."""
        strong, ml = self.components(at.voxel)
        passing = strong > (at.component or 0.0)
        return float(ml[passing].sum()), int(passing.sum())


def healthy_scans(run: Run, data: Path) -> list[Healthy]:
    """Every healthy scan of a cohort."""
    found: list[Healthy] = []
    cases = [case for case in read_cases(data) if case.label == "healthy"]
    with tempfile.TemporaryDirectory() as folder:
        for case in tqdm(cases, desc=f"maps of {data.name}", unit="scan"):
            native = run.detector.map_case(case, Path(folder))
            box = bounding_box(native.brain, margin=2)
            assert box
            cropped = replace(native, map=native.map[box], brain=native.brain[box])
            found.append(Healthy(case.id, cropped, run))
    return found


def calibrated(run: Run, scans: Sequence[Healthy]) -> Point:
    """Point "finding" as these healthy scans set it."""
    calibration = run.config.calibration
    share = np.cumsum(np.sum([scan.counts for scan in scans], axis=0))
    above = np.searchsorted(share, calibration.outline * share[-1])
    outline = rounded(float(EDGES[above + 1]))
    scored: list[ScoredScan] = []
    for scan in scans:
        strongest = float(scan.components(outline)[0].max(initial=0.0))
        score = scan_score(scan.native, calibration.score_fraction)
        maximum = float(scan.native.map.max())
        scored.append(ScoredScan(id=scan.id, score=score, maximum=maximum, strongest=strongest))
    return finding(scored, outline, calibration)


def rounded(outline: float) -> float:
    """An outline to the nearest OUTLINE_STEP."""
    return round(round(outline / OUTLINE_STEP) * OUTLINE_STEP, 6)


def another_scanner(run: Run, data: Path) -> Row:
    """Each scan of a site as the run marks it, and calibrated on the site's other scans."""
    own = run.points["finding"]
    scans = healthy_scans(run, data)
    rows: list[Row] = []
    for i, scan in enumerate(scans):
        at = calibrated(run, [*scans[:i], *scans[i + 1 :]])
        before_ml, before = scan.marked(own)
        after_ml, after = scan.marked(at)
        row: Row = {"id": scan.id, "before_ml": before_ml, "before_findings": before}
        row |= {"after_ml": after_ml, "after_findings": after}
        rows.append(row | {"outline": at.voxel, "level": at.component})
    return {
        "run": run.folder.name,
        "learned_from": run.history.get("data"),
        "site": data.name,
        "calibrated_on": len(scans) - 1,
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
    scans = healthy_scans(run, data)
    before = [scan.marked(run.points["finding"]) for scan in scans]
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for _ in tqdm(range(draws), desc="draws"):
        order = rng.permutation(len(scans)).tolist()
        at = calibrated(run, [scans[i] for i in order[:count]])
        left = [scans[i].marked(at) for i in order[count:]]
        shown = sum(findings > 0 for _, findings in left)
        ml = float(np.mean([ml for ml, _ in left]))
        rows.append({"with_finding": shown, "ml": ml, "outline": at.voxel, "level": at.component})
    held_out = len(scans) - count
    return {
        "learned_from": run.history.get("data"),
        "trained_on": len(run.history.get("train_scans", [])),
        "site": data.name,
        "scans": len(scans),
        "calibrated_on": count,
        "held_out": held_out,
        "draws": draws,
        "promised": run.config.calibration.false_alarm,
        "with_finding": mean_of(rows, "with_finding") / held_out,
        "ml": mean_of(rows, "ml"),
        "before_with_finding": sum(findings > 0 for _, findings in before) / len(scans),
        "before_ml": float(np.mean([ml for ml, _ in before])),
        "outlines": sorted({row["outline"] for row in rows}),
        "levels": [min(row["level"] for row in rows), max(row["level"] for row in rows)],
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
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    run = load_run(run_folder(arguments.run))
    site = another_scanner(run, arguments.site)
    write_json(arguments.out, {"versions": versions(), "another_scanner": site})
    parent = load_run(run_folder(arguments.parent))
    kept = promise(parent, arguments.data, arguments.scans, arguments.draws)
    write_json(arguments.out, {"versions": versions(), "another_scanner": site, "promise": kept})


if __name__ == "__main__":
    cli.leave(main)
