"""What a memory of rejected findings brings, as readers go on: `python -m benchmarks.learning`.

Healthy scans of `--data` that the run has not been trained on have one lesion planted each.
Simulated readers read the first n of them: they call a finding on the lesion true and any other
false, and are wrong in `--wrong` of their opinions. What they reject is remembered. On the scans
left over: false findings in the healthy scans at the sensitivity that the run has without memory.
The order is drawn `--draws` times; maps are computed once. Levels are those of point "finding" at
`--false-alarm`: a run that marks more in vain has more to learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label

from evaluation.lesions import MIN_OVERLAP
from pipelines import cli
from pipelines.cohort.cases import Case, load
from pipelines.detect.detector import cut
from pipelines.detect.memory import MOST, Memory, damping, described, level_of, likeness
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from pipelines.study.memory_loss import planted, unseen_healthy
from pipelines.study.stress import healthy_test_cases
from pipelines.versions import versions
from preprocessing.files import write_json
from preprocessing.prepare import Prepared
from preprocessing.resample import carry_mask
from preprocessing.warp import inverse

READ = (5, 10, 20, 50)
LEFT = 5  # scans that are left to measure on, at least


@dataclass(frozen=True)
class Components:
    """The components of a scan at the run's outline: strength (N,), features (N, 8), on a lesion.

    `hits` (N,) bool: the component covers MIN_OVERLAP of the lesion.
    """

    strength: np.ndarray
    vectors: np.ndarray
    hits: np.ndarray


@dataclass(frozen=True)
class Scan:
    """A healthy scan, as it is and with a lesion."""

    healthy: Components
    planted: Components


def components_of(run: Run, prepared: Prepared, lesion: np.ndarray | None) -> Components:
    """All components of a scan at the outline of the run's point."""
    at = run.point("finding").model_copy(update={"component": None})
    native = run.detector.map(prepared)
    marked = cut(native, at, run.config.postprocess)
    truth = np.zeros(marked.shape, bool)
    if lesion is not None:
        atlas_from_scan = inverse(prepared.scan_from_atlas)
        truth = carry_mask(lesion, prepared.grid, prepared.home, atlas_from_scan)
    labels = label(marked, connectivity=3)
    inside = np.bincount(labels[truth], minlength=1)
    strength: list[float] = []
    vectors: list[np.ndarray] = []
    hits: list[bool] = []
    for found, features, number in described(native, labels, at, prepared.scan_from_atlas):
        covered = inside[number] if number < inside.size else 0
        strength.append(found["strength"])
        vectors.append(features.vector)
        hits.append(bool(truth.any() and covered >= MIN_OVERLAP * truth.sum()))
    return Components(np.array(strength), np.array(vectors).reshape(-1, 8), np.array(hits, bool))


def scans_of(run: Run, cases: Sequence[Case]) -> list[Scan]:
    """Each case as it is and with one lesion; nothing of the memory is in where that lies."""
    found: list[Scan] = []
    with_lesion = planted(cases, Memory(), len(cases), 0)
    for case, (prepared, lesion, _) in zip(cases, with_lesion, strict=True):
        healthy = components_of(run, load(case), None)
        found.append(Scan(healthy, components_of(run, prepared, lesion)))
    return found


def rejected(
    scans: Sequence[Scan], level: float, wrong: float, rng: np.random.Generator
) -> np.ndarray:
    """Features (N, 8) of the findings that readers reject in scans with a lesion, MOST at most."""
    entries: list[np.ndarray] = []
    for scan in scans:
        found = scan.planted
        shown = found.strength > level
        mistaken = rng.random(shown.size) < wrong
        entries += list(found.vectors[shown & (found.hits == mistaken)])
    return np.array(entries[:MOST]).reshape(-1, 8)


def damped(found: Components, entries: np.ndarray) -> np.ndarray:
    """Strengths (N,) as a memory leaves them."""
    factors = [damping(likeness(vector, entries)) for vector in found.vectors]
    return found.strength * np.array(factors)


def measured(scans: Sequence[Scan], entries: np.ndarray, level: float) -> dict[str, float]:
    """Figures of scans that nobody read: at the run's level, and at the sensitivity before.

    There a level lies just below the lesion that is the last to be found, before and after alike.
    """
    lesions = {"before": [], "after": []}  # type: dict[str, list[float]]
    healthy = {"before": [], "after": []}  # type: dict[str, list[float]]
    for scan in scans:
        pairs = {"before": scan.planted.strength, "after": damped(scan.planted, entries)}
        for name, strengths in pairs.items():
            lesions[name].append(float(strengths[scan.planted.hits].max(initial=0.0)))
        healthy["before"] += scan.healthy.strength.tolist()
        healthy["after"] += damped(scan.healthy, entries).tolist()

    found = sum(score > level for score in lesions["before"])
    row: dict[str, float] = {"sensitivity": found / len(scans)}
    row["sensitivity_after"] = sum(score > level for score in lesions["after"]) / len(scans)
    for name in ("before", "after"):
        last = sorted(lesions[name], reverse=True)[found - 1] if found else np.inf
        strengths = np.array(healthy[name])
        row[f"false_{name}"] = float((strengths >= last).sum() / len(scans))
        row[f"false_{name}_at_level"] = float((strengths > level).sum() / len(scans))
    return row


def curve(
    scans: Sequence[Scan], level: float, read: Sequence[int], wrong: float, draws: int
) -> list[dict[str, Any]]:
    """A row per number of scans read: means over draws, and the spread of what is false after."""
    rows: list[dict[str, Any]] = []
    for count in read:
        if count + LEFT > len(scans):
            why = f"{len(scans)} scans, and {LEFT} are left to measure on"
            rows.append({"read": count, "not_measured": why})
            continue
        found: list[dict[str, float]] = []
        remembered: list[int] = []
        for draw in range(draws):
            rng = np.random.default_rng([draw, count])
            order = rng.permutation(len(scans))
            entries = rejected([scans[i] for i in order[:count]], level, wrong, rng)
            remembered.append(len(entries))
            found.append(measured([scans[i] for i in order[count:]], entries, level))
        row: dict[str, Any] = {"read": count, "entries": float(np.mean(remembered))}
        for name in found[0]:
            row[name] = float(np.mean([one[name] for one in found]))
        row["false_after_sd"] = float(np.std([one["false_after"] for one in found]))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="a run, or the name of a ready-made one")
    parser.add_argument("--data", required=True, type=Path, help="OUT of preprocess")
    parser.add_argument("--read", type=int, nargs="+", default=list(READ))
    parser.add_argument("--false-alarm", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--wrong", type=float, default=0.1, help="share of wrong opinions")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    run = load_run(run_folder(arguments.run), "cpu")
    cases = [*unseen_healthy(run, arguments.data), *healthy_test_cases([run], arguments.data)]
    scans = scans_of(run, cases)
    asked = {"wrong": arguments.wrong, "draws": arguments.draws}
    curves: list[dict[str, Any]] = []
    for false_alarm in arguments.false_alarm:
        level = level_of(run.point(f"finding={false_alarm}"))
        rows = curve(scans, level, arguments.read, **asked)
        curves.append({"false_alarm": false_alarm, "level": level, "rows": rows})
    about = {
        "run": "/".join(run.folder.parts[-2:]),
        "data": arguments.data.name,
        "scans": len(scans),
    }
    write_json(arguments.out, {"versions": versions(), **about, **asked, "curves": curves})


if __name__ == "__main__":
    cli.leave(main)
