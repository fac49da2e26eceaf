"""Cohorts that grow, and workers side by side."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.measure import Row, alternate, exponent, own_process, quiet, row
from pipelines import spread
from pipelines.cohort.attempt import try_preprocess
from pipelines.cohort.cases import read_cases
from pipelines.cohort.preprocess import Results, write_cohort
from pipelines.cohort.store import cohort_row, recipe_digest, sidecar_of
from pipelines.config import load_recipe, write_yaml
from pipelines.detect.config import load_run_config
from pipelines.detect.run import load_run
from pipelines.study.evaluate import evaluate
from pipelines.study.protocol import load_protocol
from pipelines.training.folds import train_run
from preprocessing import slices
from preprocessing.datasets.virtual import make_cohort
from preprocessing.files import write_json
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan
from preprocessing.slices import SliceStore
from preprocessing.splits import assign_splits, check_leaks
from preprocessing.tables import read_scans

CONSTANT = ("peak memory", "2,000 random slices")  # however many scans
EXTRAPOLATED = 100_000  # scans
SCANS = 32  # that workers share
COSTS = """
import json, sys
from pathlib import Path
from benchmarks.scale import cohort_costs
print(json.dumps(cohort_costs(Path(sys.argv[1]))))
"""
ARITHMETIC = """
import numpy as np
a = np.random.default_rng(0).random(4096)
for _ in range(400_000): a = a * 0.999 + 0.001
"""


def toy_cohort(out: Path, count: int, shape: tuple[int, int, int] = (32, 32, 12)) -> None:
    """Write what `make preprocess` leaves of `count` small volumes, with a toy brain in each.

    Every fifth is for validation and every fifth for the test. Every second of the test is called
    abnormal.
    """
    recipe = load_recipe("t1")
    rng = np.random.default_rng(0)
    brain = np.zeros(shape, bool)
    brain[4:28, 4:28, 1:11] = True
    (out / "raw").mkdir(parents=True)
    scans = []
    for i in range(count):
        name = f"s{i:06d}"
        split = {3: "val", 4: "test"}.get(i % 5, "train")
        label = "abnormal" if i % 10 == 4 else "healthy"
        scan = Scan(name, out / "raw" / f"{name}.nii", name, split, label)
        image = (0.5 + 0.1 * rng.normal(size=shape)).clip(0, 1).astype(np.float32) * brain
        write_toy_scan(out, scan, image, brain, recipe, str(i))
        scans.append(scan)
    write_cohort([(scan, None) for scan in scans], recipe, out)
    (out / "recipe.yaml").write_text(write_yaml(recipe))


def write_toy_scan(
    out: Path, scan: Scan, image: np.ndarray, brain: np.ndarray, recipe: Recipe, digest: str
) -> None:
    """Write a raw file that nobody reads, the preprocessed images, the slices and the sidecar."""
    scan.image.write_bytes(b"raw")
    (out / scan.subject).mkdir()
    files = {name: f"{scan.subject}/{name}.nii.gz" for name in ("image", "mask")}
    nib.save(nib.Nifti1Image(image, np.eye(4)), out / files["image"])
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), np.eye(4)), out / files["mask"])
    z = slices.select(brain, 10)
    slices.write_arrays(out / "slices", scan.id, image, brain, z)

    stat = scan.image.stat()
    sidecar: dict[str, Any] = {
        "settings": recipe_digest(recipe, []),
        "stamps": [[str(scan.image), stat.st_size, stat.st_mtime_ns]],
        "formats": [],
        "fingerprint": digest,
        "digest": digest,
        "files": list(files.values()),
        "sizes": [(out / name).stat().st_size for name in files.values()],
        "scan": cohort_row(scan, out),
        **files,
        "world": np.eye(4),
        "native_shape": image.shape,
        "native_affine": np.eye(4),
        "brain_method": "none",
        "z": z,
        "brain_px": brain.sum((0, 1))[z],
        "checks": [],
        "flags": [],
    }
    write_json(sidecar_of(scan, out), sidecar)


def cohort_costs(folder: Path) -> dict[str, float]:
    """Return seconds of each stage that grows with the cohort, and peak memory in MB.

    It is called in a process of its own.
    """
    data = folder / "data"
    table = folder / "table.csv"
    recipe = load_recipe("t1")
    write_table_of(data, table)
    taken: dict[str, float] = {}

    def lap(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        taken[name] = time.perf_counter() - started
        return result

    scans = lap("list, split, check for leaks", lambda: listed(table))
    failed = lap("resume a finished preprocess", lambda: resume(scans, recipe, data))
    assert not failed, failed[0]
    results: Results = [(scan, None) for scan in scans]
    lap("write tables, index and quality page", lambda: write_cohort(results, recipe, data))
    store = lap("open the slice index", lambda: SliceStore(data / "slices"))
    lap("2,000 random slices", lambda: read_random(store, 2000))

    settings = ["image_size=[32,32]", "loop.loader_workers=0", "postprocess.rim_mm=0"]
    config = load_run_config("atlas", settings)
    protocol = load_protocol("volumes", ["resamples=100"])
    run_dir = folder / "run"
    run_dir.mkdir()
    with quiet():
        lap("healthy reference and thresholds", lambda: train_run(config, data, run_dir))
        run = load_run(run_dir, "cpu")
        lap(
            "evaluate the test fifth",
            lambda: evaluate(run, data, folder / "evaluation", protocol, pictures=False),
        )
    taken["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return taken


def write_table_of(data: Path, table: Path) -> None:
    """Write a table of raw scans, as a user would, from a preprocessed cohort."""
    lines = ["image,id,subject,split,label"]
    for case in read_cases(data):
        lines.append(f"{case.image},{case.id},{case.subject},{case.split},{case.label}")
    table.write_text("\n".join(lines) + "\n")


def listed(table: Path) -> list[Scan]:
    """Return the scans of a table, with splits, checked for leaks."""
    scans = assign_splits(read_scans(table, "t1"))
    check_leaks(scans)
    return scans


def resume(scans: list[Scan], recipe: Recipe, out: Path) -> list[Any]:
    """Preprocess scans that are done already; return the failures."""
    results = [try_preprocess(scan, recipe, out) for scan in scans]
    return [failure for failure in results if failure]


def read_random(store: SliceStore, count: int) -> None:
    """Read slices in random order, eight at a time."""
    order = np.random.default_rng(0).integers(0, len(store), count)
    for eight in order.reshape(-1, 8).tolist():
        store.batch(eight)


def scale(counts: tuple[int, ...] = (1000, 3000, 10000)) -> list[Row]:
    """Measure a simulated cohort that grows.

    Each size stands beside the smallest, multiplied by the growth: a ratio of 1 is linear time.
    """
    costs = {count: costs_of(count) for count in counts}
    smallest = counts[0]
    rows: list[Row] = []
    for count, taken in costs.items():
        for name, value in taken.items():
            growth = 1 if name in CONSTANT else count / smallest
            peer = f"{smallest:,} scans"
            if name not in CONSTANT:
                peer += f", times {growth:g}"
            unit = "MB" if name == "peak memory" else "s"
            expected = costs[smallest][name] * growth
            rows.append(row(f"{count:,} small scans: {name}", value, unit, peer, expected))

    largest = counts[-1]
    for name, value in costs[largest].items():
        if name not in CONSTANT:
            title = f"{EXTRAPOLATED:,} small scans, extrapolated: {name}"
            rows.append(row(title, value * EXTRAPOLATED / largest, "s"))
    for name in costs[largest]:
        power = exponent(counts, [costs[count][name] for count in counts])
        expected = 0.0 if name in CONSTANT else 1.0
        peer = "constant" if name in CONSTANT else "linear"
        title = f"{name}, {smallest:,} to {largest:,} small scans; exponent"
        rows.append(row(title, power, "", peer, expected))
    return rows


def costs_of(count: int) -> dict[str, float]:
    """Return `cohort_costs` of so many scans, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        toy_cohort(Path(folder) / "data", count)
        return own_process(COSTS, folder)


def workers(repeats: int) -> list[Row]:
    """Measure virtual scans preprocessed by one worker and by two, one thread each.

    The clock starts when each worker has done its first scan, so that no start-up counts.
    """
    recipe = load_recipe("t1")
    names = iter(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        table = make_cohort(
            cohort, seed=5, n_train=SCANS, n_val=0, n_test_healthy=0, n_test_abnormal=0
        )
        scans = read_scans(table, "t1")

        def rate(count: int) -> float:
            out = Path(folder) / f"out{next(names)}"
            work = partial(try_preprocess, recipe=recipe, out=out)
            done: list[float] = []
            for _, failure, _ in spread.each(work, scans, "local", count):
                assert not failure, failure
                done.append(time.perf_counter())
            return 3600 * (len(scans) - count) / (done[-1] - done[count - 1])

        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            rates = [(rate(2), rate(1)) for _ in range(repeats)]
        finally:
            os.environ.pop("OMP_NUM_THREADS")

    two, one = (statistics.median(column) for column in zip(*rates, strict=True))
    alone = alternate({"two": lambda: compute(2), "one": lambda: compute(1)}, 2 * repeats + 1)
    by_two = f"{SCANS} virtual T1 scans by two workers, each after its first"
    limit = "arithmetic in the processor's cache by two processes, what this machine can give"
    return [
        row(by_two, two, "scans/h", "by one", one, more=True),
        row(limit, 2 / alone["two"], "1/s", "by one", 1 / alone["one"], more=True),
    ]


def compute(count: int) -> None:
    """Run so many processes at once, each with the same arithmetic on 32 KB.

    They share no memory, no disk and no word, so that their speed is the machine's limit.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ARITHMETIC]
    running = [subprocess.Popen(command, env=environment) for _ in range(count)]
    for process in running:
        process.wait()
