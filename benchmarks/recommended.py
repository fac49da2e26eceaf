"""`make infer` as a user waits for it, start-up included.

Measured with every recommended run that `make reproduce` has left in runs/.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import NOTES, Row, row
from pipelines.cli import error_sentence
from pipelines.config import ROOT, read_yaml
from pipelines.pages.results import CHOICES
from preprocessing.files import read_json, read_table
from preprocessing.scans import InputError

PEER = "intensity"  # a threshold on brightness


def recommended(repeats: int) -> list[Row]:
    """Measure one raw scan of the test split by each recommended run: seconds and peak memory.

    Runs alternate with the brightness threshold on the same scan.
    """
    rows: list[Row] = []
    plans = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")["compare"]
    for choice in read_yaml(CHOICES)["choices"]:
        data = plans[choice["measured"]]["data"]
        try:
            rows += one_choice(choice, ROOT / "runs" / data, repeats)
        except (InputError, OSError) as error:  # costs this choice alone
            NOTES.append(f"`{choice['command']}`: {error_sentence(error)}")
    return rows


def one_choice(choice: dict[str, Any], runs: Path, repeats: int) -> list[Row]:
    """Measure a recommended run beside its peer; a note where one of them is missing."""
    run_dir = finished(runs / choice["model"])
    peer_dir = finished(runs / PEER)
    if run_dir is None or peer_dir is None:
        NOTES.append(
            f"`{choice['command']}`: no finished run of it here; "
            f"`make reproduce ONLY={choice['measured']}` makes it"
        )
        return []

    scan = raw_scan(run_dir)
    taken: list[tuple[float, float]] = []
    peer_taken: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            out = Path(folder) / f"{i}"
            taken.append(process(run_dir, scan, out))
            peer_taken.append(process(peer_dir, scan, out))

    rows: list[Row] = []
    measures = (("make infer of one raw scan", "s"), ("peak memory of make infer", "MB"))
    for i, (name, unit) in enumerate(measures):
        value = statistics.median(one[i] for one in taken)
        other = statistics.median(one[i] for one in peer_taken)
        rows.append(row(f"{name}, {choice['command']}", value, unit, f"MODEL={PEER}", other))
    return rows


def finished(model: Path) -> Path | None:
    """Return the first run of a model that is finished: its weights are written last."""
    return next((path.parent for path in sorted(model.glob("*/weights.pt"))), None)


def raw_scan(run_dir: Path) -> Path:
    """Return the first test scan, as it came in, of the cohort that a run was trained on."""
    table = read_table(ROOT / read_json(run_dir / "run.json")["data"] / "scans.tsv")
    scan = next((scan["image"] for scan in table if scan["split"] == "test"), None)
    if scan is None:
        raise InputError(f"{run_dir}: the cohort that it was trained on has no test scan.")
    return Path(scan)


def process(run_dir: Path, scan: Path, out: Path) -> tuple[float, float]:
    """Return seconds and peak memory in MB of `pipelines.infer` as a process of its own."""
    command = [sys.executable, "-m", "pipelines.infer", "--run", str(run_dir)]
    command += ["--input", str(scan), "--out", str(out / run_dir.parent.name)]
    started = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise InputError(
            f"python {' '.join(command[1:])} ended with {os.waitstatus_to_exitcode(status)}; "
            "run it to see why."
        )
    return time.perf_counter() - started, used.ru_maxrss / 1024
