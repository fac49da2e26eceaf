"""`make infer` as a user waits for it, start-up included, with every recommended run that `make reproduce` has left in runs/."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import NOTES, Row, row
from pipelines.cli import error_sentence
from pipelines.config import ROOT, read_yaml
from pipelines.pages.results import CHOICES
from preprocessing.files import read_json, read_table
from preprocessing.scans import InputError


def recommended(repeats: int) -> list[Row]:
    """Seconds and peak memory of scoring one raw scan of the test split, in turn with the brightness threshold on the same scan."""
    rows: list[Row] = []
    plans = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")["compare"]
    for choice in read_yaml(CHOICES)["choices"]:
        model, plan = choice["model"], plans[choice["measured"]]
        runs = [
            run
            for name in (model, "intensity")
            if (run := finished(ROOT / "runs" / plan["data"] / name))
        ]
        if len(runs) < 2:
            NOTES.append(
                f"`{choice['command']}`: no finished run of it here; `make reproduce ONLY={choice['measured']}` makes it"
            )
            continue
        try:
            scan = raw_scan(runs[0])
            with tempfile.TemporaryDirectory() as folder:
                taken = [
                    [process(run, scan, Path(folder) / f"{i}") for run in runs]
                    for i in range(repeats)
                ]
        except (InputError, OSError) as error:  # costs this choice alone
            NOTES.append(f"`{choice['command']}`: {error_sentence(error)}")
            continue
        (own, peer), (peak, peer_peak) = (
            [statistics.median(t[i][what] for t in taken) for i in (0, 1)] for what in (0, 1)
        )
        rows.append(
            row(
                f"make infer of one raw scan, {choice['command']}",
                own,
                "s",
                "MODEL=intensity",
                peer,
            )
        )
        rows.append(
            row(
                f"peak memory of make infer, {choice['command']}",
                peak,
                "MB",
                "MODEL=intensity",
                peer_peak,
            )
        )
    return rows


def finished(model: Path) -> Path | None:
    """The first run of a model that is finished: its weights are written last."""
    return next((path.parent for path in sorted(model.glob("*/weights.pt"))), None)


def raw_scan(run: Path) -> Path:
    """The first test scan, as it came in, of the cohort that the run was trained on."""
    table = read_table(ROOT / "work" / Path(read_json(run / "run.json")["data"]).name / "scans.tsv")
    scan = next((scan["image"] for scan in table if scan["split"] == "test"), None)
    if scan is None:
        raise InputError(f"{run}: the cohort that it was trained on has no test scan.")
    return Path(scan)


def process(run: Path, scan: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of `pipelines.infer` as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "pipelines.infer",
        "--run",
        str(run),
        "--input",
        str(scan),
        "--out",
        str(out / run.parent.name),
    ]
    started = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise InputError(
            f"python {' '.join(command[1:])} ended with {os.waitstatus_to_exitcode(status)}; run it to see why."
        )
    return time.perf_counter() - started, used.ru_maxrss / 1024
