"""Cohorts that grow, and workers side by side."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, alternate, quiet, row
from pipelines.config import ROOT, load_recipe
from pipelines.detect.config import load_run_config


def toy_cohort(out: Path, count: int, shape: tuple[int, int, int] = (32, 32, 12)) -> None:
    """What `make preprocess` leaves of `count` small healthy volumes, every fifth of them for validation and every fifth for the test."""
    import nibabel as nib

    from pipelines.cohort.preprocess import write_cohort
    from pipelines.cohort.store import recipe_digest, sidecar_of
    from pipelines.config import write_yaml
    from preprocessing import slices
    from preprocessing.files import write_json
    from preprocessing.scans import Scan

    rng, recipe = np.random.default_rng(0), load_recipe("t1")
    mask = np.zeros(shape, bool)
    mask[4:28, 4:28, 1:11] = True
    z = slices.select(mask, 10)
    raw = out / "raw"
    raw.mkdir(parents=True)
    scans = []
    for i in range(count):
        split = {3: "val", 4: "test"}.get(i % 5, "train")
        scan = Scan(
            f"s{i:06d}",
            raw / f"s{i:06d}.nii",
            f"s{i:06d}",
            split,
            "abnormal" if i % 10 == 4 else "healthy",
        )
        image = (0.5 + 0.1 * rng.normal(size=shape)).clip(0, 1).astype(np.float32) * mask
        scan.image.write_bytes(b"raw")
        folder = out / scan.subject
        folder.mkdir()
        for name, data in (("image", image), ("mask", mask.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii.gz")
        slices.write_arrays(out / "slices", scan.id, image, mask, z)
        files = {name: f"{scan.subject}/{name}.nii.gz" for name in ("image", "mask")}
        stat = scan.image.stat()
        about: dict[str, Any] = {
            "settings": recipe_digest(recipe, []),
            "stamps": [[str(scan.image), stat.st_size, stat.st_mtime_ns]],
            "formats": [],
        }
        about |= {"fingerprint": str(i), "digest": str(i), "files": list(files.values()), **files}
        about |= {
            "world": np.eye(4),
            "native_shape": shape,
            "native_affine": np.eye(4),
            "brain_method": "none",
            "z": z,
        }
        write_json(
            sidecar_of(scan, out),
            about | {"brain_px": mask.sum((0, 1))[z], "checks": [], "flags": []},
        )
        scans.append(scan)
    write_cohort([(s, None) for s in scans], recipe, out)
    (out / "recipe.yaml").write_text(write_yaml(recipe))


def cohort_costs(folder: Path) -> dict[str, float]:
    """Seconds of each stage that grows with the cohort, and peak memory; in a process of its own."""
    from pipelines.cohort.cases import read_cases
    from pipelines.cohort.preprocess import write_cohort
    from pipelines.cohort.store import try_preprocess
    from pipelines.detect.run import load_run
    from pipelines.study.evaluate import evaluate
    from pipelines.study.protocol import load_protocol
    from pipelines.training.fit import train
    from preprocessing.slices import SliceStore
    from preprocessing.splits import assign_splits, check_leaks
    from preprocessing.tables import read_scans

    data, recipe, taken = folder / "data", load_recipe("t1"), {}
    (folder / "table.csv").write_text(
        "image,id,subject,split,label\n"
        + "".join(
            f"{case.image},{case.id},{case.subject},{case.split},{case.label}\n"
            for case in read_cases(data)
        )
    )

    def lap(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        taken[name] = time.perf_counter() - started
        return result

    def listed() -> Any:
        scans = assign_splits(read_scans(folder / "table.csv", "t1"))
        check_leaks(scans)
        return scans

    scans = lap("list, split, check for leaks", listed)
    failed = lap(
        "resume a finished preprocess",
        lambda: [f for f in (try_preprocess(s, recipe, data) for s in scans) if f],
    )
    assert not failed, failed[0]
    lap(
        "write tables, index and quality page",
        lambda: write_cohort([(s, None) for s in scans], recipe, data),
    )
    store = lap("open the slice index", lambda: SliceStore(data / "slices"))
    order = np.random.default_rng(0).integers(0, len(store), 2000)
    lap(
        "2,000 random slices", lambda: [store.batch(part) for part in order.reshape(-1, 8).tolist()]
    )
    settings = ["image_size=[32,32]", "loop.loader_workers=0", "postprocess.rim_mm=0"]
    config = load_run_config("atlas", settings)
    with quiet():
        lap("healthy reference and thresholds", lambda: train(config, data, _made(folder / "run")))
        run = load_run(folder / "run", "cpu")
        protocol = load_protocol("volumes", ["resamples=100"])
        lap(
            "evaluate the test fifth",
            lambda: evaluate(run, data, folder / "evaluation", protocol, pictures=False),
        )
    taken["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return taken


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


COSTS = """
import json, sys
from pathlib import Path
from benchmarks.scale import cohort_costs
print(json.dumps(cohort_costs(Path(sys.argv[1]))))
"""


CONSTANT = ("peak memory", "2,000 random slices")  # however many scans


def scale(counts: tuple[int, ...] = (1000, 3000, 10000)) -> list[Row]:
    """A simulated cohort that grows: the largest beside the smallest times as many, so that a ratio of 1 is linear time."""
    import json

    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            toy_cohort(Path(folder) / "data", count)
            done = subprocess.run(
                [sys.executable, "-c", COSTS, folder],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            found[count] = json.loads(done.stdout.splitlines()[-1])
    rows, first = [], counts[0]
    for count in counts:
        for name, value in found[count].items():
            times = 1 if name in CONSTANT else count / first
            peer = f"{first:,} scans" + ("" if name in CONSTANT else f", times {times:g}")
            unit = "MB" if name == "peak memory" else "s"
            rows.append(
                row(f"{count:,} small scans: {name}", value, unit, peer, found[first][name] * times)
            )
    last = counts[-1]
    for name in found[last]:
        if name not in CONSTANT:
            rows.append(
                row(
                    f"100,000 small scans, extrapolated: {name}",
                    found[last][name] * 100_000 / last,
                    "s",
                )
            )
    return rows


def workers(repeats: int) -> list[Row]:
    """Virtual scans preprocessed by one worker and by two, one thread each."""
    from functools import partial

    from pipelines import spread
    from pipelines.cohort import store
    from preprocessing.datasets.virtual import make_cohort
    from preprocessing.tables import read_scans

    recipe, names = load_recipe("t1"), iter(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(
            Path(folder) / "cohort",
            seed=5,
            n_train=12,
            n_val=0,
            n_test_healthy=0,
            n_test_abnormal=0,
        )
        scans = read_scans(table, "t1")
        os.environ["OMP_NUM_THREADS"] = "1"

        def run(count: int) -> None:
            out = Path(folder) / f"out{next(names)}"
            work = partial(store.try_preprocess, recipe=recipe, out=out)
            failed = [f for _, f, _ in spread.each(work, scans, "local", count) if f]
            assert not failed, failed[0]

        try:
            taken = alternate({"two": lambda: run(2), "one": lambda: run(1)}, repeats)
        finally:
            os.environ.pop("OMP_NUM_THREADS")
    rate = {k: 3600 * len(scans) / v for k, v in taken.items()}
    alone = alternate({"two": lambda: compute(2), "one": lambda: compute(1)}, 2 * repeats + 1)
    return [
        row(
            "twelve virtual T1 scans by two workers, start-up included",
            rate["two"],
            "scans/h",
            "by one",
            rate["one"],
            more=True,
        ),
        row(
            "arithmetic in the processor's cache by two processes, what this machine can give",
            2 / alone["two"],
            "1/s",
            "by one",
            1 / alone["one"],
            more=True,
        ),
    ]


ARITHMETIC = "import numpy as np\na = np.random.default_rng(0).random(4096)\nfor _ in range(400_000): a = a * 0.999 + 0.001"


def compute(count: int) -> None:
    """So many processes at once, each with the same arithmetic on 32 KB: no memory, no disk, no word between them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", ARITHMETIC], env=environment) for _ in range(count)
    ]
    for process in running:
        process.wait()
