"""Where the seconds of one raw scan go, from an empty process to mask, map and report.

Each stage is a function by its name; its seconds are those between its call and its return
(cProfile, which costs a few per cent itself). Stages within another one are named after it.
"""

from __future__ import annotations

import pstats
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, row
from benchmarks.recommended import Cost, process
from pipelines.config import ROOT

STAGES = (
    ("read the scan", "preprocessing/prepare.py", "read_volume"),
    ("find the brain", "preprocessing/prepare.py", "find_brain"),
    ("find the brain: deepbet", "preprocessing/by_deepbet.py", "deepbet"),
    ("fit to the atlas", "preprocessing/register.py", "fit"),
    ("look at other poses", "preprocessing/orientation.py", "rivals_in"),
    ("resample, all times together", "preprocessing/resample.py", "resample"),
    ("map", "pipelines/detect/detector.py", "map"),
    ("compare with the training scans", "pipelines/detect/typical.py", "own_features"),
    ("findings", "pipelines/detect/report.py", "findings"),
    ("write mask, map and report", "pipelines/detect/report.py", "save"),
)
READY = ("t1", "ct")  # modalities whose run is a ready-made one

# `make infer` prepares in a second thread, which cProfile does not see; this does the same work.
CHILD = """
import cProfile, resource, sys, time
out, scan, run = sys.argv[1:]

def work():
    import norma
    norma.detect(scan, run).save(__import__("pathlib").Path(out) / "results")

profile = cProfile.Profile()
begin = time.perf_counter()
profile.runcall(work)
taken = time.perf_counter() - begin
profile.dump_stats(out + "/profile")
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def profiles(scans: dict[str, Path], flair_run: Path | None, repeats: int) -> list[Row]:
    """Measure a scan of each modality that has a run: a ready-made one, or `flair_run`."""
    runs: dict[str, str | Path] = {modality: modality for modality in READY}
    if flair_run:
        runs["flair"] = flair_run.resolve()
    rows: list[Row] = []
    for modality, run in runs.items():
        if modality in scans:
            scan = scans[modality].resolve()
            with tempfile.TemporaryDirectory() as folder:
                rows += one_command(modality, run, scan, Path(folder), repeats)
                rows += one_profile(modality, run, scan, Path(folder))
    return rows


def one_command(
    modality: str, run: str | Path, scan: Path, folder: Path, repeats: int
) -> list[Row]:
    """Seconds and memory of `make infer` on all cores, and in turn on one."""
    many: list[Cost] = []
    one: list[Cost] = []
    for i in range(repeats):
        many.append(process(run, scan, folder / f"many-{i}"))
        one.append(process(run, scan, folder / f"one-{i}", cores=1))
    rows: list[Row] = []
    for i, (what, unit) in enumerate((("seconds", "s"), ("peak memory", "MB"))):
        value = statistics.median(cost[i] for cost in many)
        other = statistics.median(cost[i] for cost in one)
        name = f"make infer of a raw {modality}: {what}"
        rows.append(row(name, value, unit, "on one core", other))
    return rows


def one_profile(modality: str, run: str | Path, scan: Path, folder: Path) -> list[Row]:
    """Seconds of the process and of each stage, and its memory; ValueError where it fails."""
    line = [sys.executable, "-c", CHILD, str(folder), str(scan), str(run)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{scan}: {done.stderr.strip().splitlines()[-1]}")
    seconds, memory = (float(part) for part in done.stdout.split()[-2:])

    name = f"raw {modality} to mask"
    rows = [row(f"{name}: all", seconds, "s"), row(f"{name}: peak memory", memory, "MB")]
    known = stage_seconds(pstats.Stats(str(folder / "profile")))
    rows += [row(f"{name}: {stage}", value, "s") for stage, value in known.items()]
    return rows


def stage_seconds(stats: pstats.Stats) -> dict[str, float]:
    """Seconds of each stage that was called, and of imports, by name."""
    taken: dict[str, float] = {}
    # of calls within calls of itself cProfile counts the outermost one
    entries = stats.stats.items()  # type: ignore[attr-defined]
    for stage, file, function in STAGES:
        for (path, _, called), (_, _, _, cumulative, _) in entries:
            if called == function and path.endswith(file):
                taken[stage] = taken.get(stage, 0.0) + cumulative
    imports = 0.0
    for (path, _, called), (_, _, own, _, _) in entries:
        if path.startswith("<frozen importlib") or called == "<built-in method marshal.loads>":
            imports += own
    return {"imports, own time": imports} | taken
