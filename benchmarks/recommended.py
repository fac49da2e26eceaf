"""`make infer` as a user waits for it, start-up included.

Measured with every recommended run that `make reproduce` has left in runs/; its scan is of work/.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import NOTES, Row, row
from benchmarks.reproduce import runs_of
from pipelines.cli import error_sentence
from pipelines.config import ROOT, read_yaml
from pipelines.pages.results import CHOICES
from preprocessing.files import read_json, read_table
from preprocessing.scans import InputError

PEER = "intensity"  # a threshold on brightness
WORK = ROOT / "work"
LOOK = 0.1  # seconds between two looks at the memory
Cost = tuple[float, float]  # seconds and megabytes


def recommended(repeats: int) -> list[Row]:
    """Measure one raw scan of the test split by each recommended run: seconds and peak memory.

    Runs alternate with the brightness threshold on the same scan.
    """
    rows: list[Row] = []
    plans = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")["compare"]
    for choice in read_yaml(CHOICES)["choices"]:
        runs = ROOT / runs_of(plans[choice["measured"]])
        try:
            rows += one_choice(choice, runs, repeats)
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
    taken: list[Cost] = []
    peer_taken: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            out = Path(folder) / f"{i}"
            taken.append(process(run_dir, scan, out / choice["model"]))
            peer_taken.append(process(peer_dir, scan, out / PEER))

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
    cohort = WORK / read_json(run_dir / "run.json")["data"]
    table = read_table(cohort / "scans.tsv")
    scan = next((scan["image"] for scan in table if scan["split"] == "test"), None)
    if scan is None:
        raise InputError(f"{run_dir}: the cohort that it was trained on has no test scan.")
    return cohort / scan


def process(run: str | Path, scan: Path, out: Path, cores: int | None = None) -> Cost:
    """Seconds of `pipelines.infer` as a process of its own, and peak memory in MB of another one.

    The memory is that of all its processes together; what they share is counted once. To ask for
    it takes their time, and so nobody asks the one whose seconds count.
    `cores`: on how many of this machine's cores; all, where left out.
    """
    started = time.perf_counter()
    _ended_well(_begun(run, scan, out / "seconds", cores))
    seconds = time.perf_counter() - started

    child = _begun(run, scan, out / "memory", cores)
    most = 0
    while child.returncode is None:
        most = max(most, resident(child.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LOOK)
    _ended_well(child)
    return seconds, most / 1e6


def _begun(run: str | Path, scan: Path, out: Path, cores: int | None) -> subprocess.Popen[bytes]:
    """The process."""
    command = [sys.executable, "-m", "pipelines.infer", "--run", str(run)]
    command += ["--input", str(scan), "--out", str(out)]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(before)[:cores])  # which the new process inherits
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        os.sched_setaffinity(0, before)


def _ended_well(child: subprocess.Popen[bytes]) -> None:
    """Wait for a process; InputError where it failed."""
    if child.wait():
        assert isinstance(child.args, list)
        line = f"python {' '.join(map(str, child.args[1:]))}"
        raise InputError(f"{line} ended with {child.returncode}; run it to see why.")


def resident(pid: int) -> int:
    """Bytes in memory of a process of Linux and of those that it began; 0 once it has ended.

    A page that several of them share counts once.
    """
    found = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                found += 1024 * int(line.split()[1])
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += sum(resident(int(one)) for one in children.read_text().split())
    return found
