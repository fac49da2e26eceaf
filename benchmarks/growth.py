"""How cost grows with voxels, members and training slices, as the exponent of a power law.

Each size is measured in a process of its own, so that one size's memory is not another's. A fixed
part of the cost lowers an exponent; 1 is proportional.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy import ndimage

from benchmarks.measure import Row, exponent, own_process, quiet, resident_mb, row, seconds
from benchmarks.scale import toy_cohort
from evaluation import lesions
from evaluation.metrics import VoxelHistogram
from models.ensemble import Ensemble
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import NativeMap, cut, slicewise
from pipelines.detect.points import Point
from pipelines.detect.report import findings
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.loop import Session, laid_out, stage_steps, train_epoch
from preprocessing.images import Grid
from preprocessing.resample import resample

REPEATS = 2  # in one process; the fastest counts: what other processes take is not cost
ROUNDS = 3  # of all sizes in turn: what the machine is slower for a minute is not growth
MEMORY = "memory"
CPU = torch.device("cpu")
CHILD = """
import json, sys
from benchmarks.growth import PARTS
what, size = sys.argv[1:]
print(json.dumps(PARTS[what][0](int(size))))
"""


def of_voxels(side: int) -> dict[str, float]:
    """Return seconds of the steps on a cube of `side` voxels, and memory in MB."""
    rng = np.random.default_rng(0)
    shape = (side, side, side)
    distance = np.linalg.norm(np.indices(shape) - (side - 1) / 2, axis=0)
    brain = distance < 0.45 * side
    image = (rng.random(shape, dtype=np.float32) * brain).astype(np.float32)
    native = NativeMap(ndimage.gaussian_filter(image, 2) * brain, brain, Grid(shape, np.eye(4)))
    levels = np.quantile(native.map[brain], (0.99, 0.995))
    at = Point(point="fixed", rule="", voxel=float(levels[0]), scan=1.0)
    truth = (native.map > levels[1]).astype(np.uint8)
    config = load_run_config("vae", ["image_size=[64,64]"])
    model = build_model(config).eval()
    turned = np.eye(4)
    turned[:2, :2] = [[0.995, -0.1], [0.1, 0.995]]

    def score() -> None:
        marked = cut(native, at, config.postprocess)
        voxels = VoxelHistogram()
        voxels.update(native.map[brain], truth[brain] > 0)
        voxels.average_precision()
        lesions.hausdorff95(marked, truth > 0, native.spacing)
        lesions.match(marked, native.map, truth, native.spacing)

    return taken_by(
        {
            "resample": lambda: resample(image, native.grid, native.grid, turned),
            "network": lambda: slicewise(model.anomaly_map, config, image, brain, CPU),
            "mask and findings": lambda: findings(
                native, cut(native, at, config.postprocess), turned, at, np.zeros(0), "lung"
            ),
            "figures against a lesion mask": score,
        }
    )


def of_members(count: int) -> dict[str, float]:
    """Return seconds of the map of 64 slices by an ensemble of so many members, and memory."""
    size = (64, 64)
    config = load_run_config("vae", ["image_size=[64,64]"])
    model = Ensemble([build_model(config) for _ in range(count)], [size] * count).eval()
    x = torch.rand(64, 1, 128, 128)
    z = torch.zeros(64, dtype=torch.long)

    def score() -> None:
        with torch.inference_mode():
            model.anomaly_map(x, torch.ones_like(x), z)

    return taken_by({"map": score})


def of_slices(count: int) -> dict[str, float]:
    """Return seconds of an epoch over so many slices, and memory."""
    config = load_run_config("vae", ["image_size=[64,64]", "loop.loader_workers=0"])
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_model(config)
    module = laid_out(model, config, fabric)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy_cohort(folder, count // 10)
        scans = [f"s{i:06d}" for i in range(count // 10)]
        data = SliceDataset(folder / "slices", scans, config.image_size, config.augmentation)
        session = Session(model, module, config, data, data, fabric, folder, None)
        stage = stage_steps(session, "train", {})
        batches = Batches(data, config.loop, shuffle=True, stream=0)

        def epoch() -> None:
            with quiet():
                train_epoch(session, 0, "train", stage, batches)

        return taken_by({"epoch": epoch})


PARTS: dict[str, tuple[Callable[[int], dict[str, float]], tuple[int, ...], int, str]] = {
    "voxels": (of_voxels, (64, 96, 144, 216), 3, "voxels of a scan"),
    "members": (of_members, (1, 2, 4, 8), 1, "members of an ensemble"),
    "slices": (of_slices, (500, 1000, 2000, 4000), 1, "training slices"),
}
"""What grows: how it is measured, the sizes, the power of a size that counts, and its name."""


def taken_by(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the least seconds of each step, and the MB that all of them added at most."""
    before = resident_mb()
    taken: dict[str, float] = {}
    for name, step in steps.items():
        taken[name] = min(seconds(step) for _ in range(REPEATS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return taken | {MEMORY: max(peak - before, 1.0)}


def growth() -> list[Row]:
    """Measure each size in turn; a row for each cost, with its exponent beside the linear one."""
    rows: list[Row] = []
    for what, (_, sizes, power, name) in PARTS.items():
        costs: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for i, size in enumerate(sizes):
                for cost, value in own_process(CHILD, what, str(size)).items():
                    least = costs.setdefault(cost, [np.inf] * len(sizes))
                    least[i] = min(least[i], value)
        counts = [size**power for size in sizes]
        for cost, values in costs.items():
            unit = "MB" if cost == MEMORY else "s"
            span = f"{counts[0]:,} to {counts[-1]:,} {name}"
            text = f"{cost}, {span}: {values[0]:.3g} to {values[-1]:.3g} {unit}; exponent"
            rows.append(row(text, exponent(counts, values), "", "linear", 1.0))
    return rows
