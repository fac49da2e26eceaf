"""Whether point "finding" keeps its promise: `python -m benchmarks.conformal_shift`.

The scans are the healthy ones that `--run` was calibrated on, with the strength of their strongest
component (reference.json). In each of `--resamples` one of them is the new scan, `--scans` of the
others set the level, and an alarm is a strength above it.

- exchangeable: the new scan is drawn evenly.
- tilted: scans with a high score come more often, exp(`--tilt` x z) times, z the normal score of
  their rank. That moves a normal score by so many standard deviations. The weights of this shift
  are known, so `weighted_level` should hold where the plain level does not.
- `--stress` FILE of `make stress`: real shifts, whose weights nobody knows. There the alarm is a
  finding at the run's own level, and the healthy test scans are resampled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta, norm, rankdata

from evaluation.thresholds import healthy_level, weighted_level
from pipelines import cli
from pipelines.detect.points import scores_of, strongest_of
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from pipelines.study.stress import Row, summary
from pipelines.versions import versions
from preprocessing.files import read_json, write_json
from preprocessing.scans import InputError


def realised(
    strongest: np.ndarray, weights: np.ndarray, count: int, false_alarm: float, resamples: int
) -> dict[str, Any]:
    """How often new scans, drawn by weight, pass the plain and the weighted level (N,).

    `silent` counts resamples where the weighted level is infinite. Intervals are of 95 % (Clopper
    and Pearson 1934).
    """
    rng = np.random.default_rng(0)
    alarms = {"plain": 0, "weighted": 0}
    silent = 0
    total = strongest.size
    for _ in range(resamples):
        new = int(rng.choice(total, p=weights / weights.sum()))
        others = rng.permutation(np.delete(np.arange(total), new))[:count]
        plain = healthy_level(strongest[others], false_alarm).value
        level = weighted_level(strongest[others], weights[others], weights[new], false_alarm)
        alarms["plain"] += bool(strongest[new] > plain)
        alarms["weighted"] += bool(strongest[new] > level)
        silent += level == float("inf")
    rows = {name: rate(found, resamples) for name, found in alarms.items()}
    return {**rows, "silent": silent / resamples}


def rate(found: int, total: int) -> dict[str, float]:
    """A share with its interval."""
    low = beta.ppf(0.025, found, total - found + 1) if found else 0.0
    high = beta.ppf(0.975, found + 1, total - found) if found < total else 1.0
    return {"rate": found / total, "low": float(low), "high": float(high)}


def tilted(scores: np.ndarray, tilt: float) -> np.ndarray:
    """How many times as often a scan comes, by its score (N,)."""
    return np.exp(tilt * norm.ppf(rankdata(scores) / (scores.size + 1)))


def promises(run: Run, count: int, tilts: Sequence[float], resamples: int) -> dict[str, Any]:
    """Exchangeable and tilted scans; InputError where a run knows too few of them."""
    strongest = strongest_of(run.reference.scans)
    if strongest.size <= count:
        raise InputError(
            f"{run.folder}: knows {strongest.size} healthy scans; give fewer than that to --scans."
        )
    false_alarm = run.config.calibration.false_alarm
    promised = healthy_level(strongest[:count], false_alarm).alarm_rate
    scores = scores_of(run.reference.scans)
    shifted: list[dict[str, Any]] = []
    for tilt in tilts:
        found = realised(strongest, tilted(scores, tilt), count, false_alarm, resamples)
        shifted.append({"tilt": tilt, **found})
    return {
        "run": "/".join(run.folder.parts[-2:]),
        "model": run.config.name,
        "learned_from": run.history.get("data"),
        "healthy_scans": int(strongest.size),
        "left_out_together": run.reference.left_out,
        "calibrated_on": count,
        "resamples": resamples,
        "promised": promised,
        "exchangeable": realised(strongest, np.ones(strongest.size), count, false_alarm, resamples),
        "tilted": shifted,
    }


def stressed(rows: Sequence[Row], resamples: int) -> list[dict[str, Any]]:
    """By run, shift and severity: the share of scored scans with a finding, over resamples.

    `warned` is the share of scans whose promise the report takes back.
    """
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for group in summary(rows):
        key = (group["run"], group["shift"], group["severity"])
        own = [r for r in rows if (r.run, r.shift, r.severity) == key and r.findings is not None]
        row: dict[str, Any] = {"run": key[0], "shift": key[1], "severity": key[2]}
        row["scored"] = len(own)
        if own:
            alarms = np.array([bool(r.findings) for r in own], float)
            drawn = alarms[rng.integers(len(own), size=(resamples, len(own)))].mean(1)
            row["rate"] = float(alarms.mean())
            row["low"], row["high"] = np.quantile(drawn, (0.025, 0.975)).tolist()
            row["warned"] = float(np.mean([r.verdict == "scored with warning" for r in own]))
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, nargs="+", help="runs, or names of ready-made ones")
    parser.add_argument("--scans", type=int, default=30, help="healthy scans to calibrate on")
    parser.add_argument("--tilt", type=float, nargs="+", default=[0.5, 1.0], help="known shifts")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--stress", type=Path, help="stress.json of make stress")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    asked = (arguments.scans, arguments.tilt, arguments.resamples)
    runs = [load_run(run_folder(name), "cpu") for name in arguments.run]
    content: dict[str, Any] = {"versions": versions()}
    content["runs"] = [promises(run, *asked) for run in runs]
    if arguments.stress:
        rows = [Row(**row) for row in read_json(arguments.stress)["rows"]]
        content["stress"] = stressed(rows, arguments.resamples)
    write_json(arguments.out, content)


if __name__ == "__main__":
    cli.leave(main)
