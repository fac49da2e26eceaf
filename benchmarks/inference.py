"""The networks on a volume, a raw scan end to end, and a folder of scans."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, alternate, peak_memory, row, seconds
from models.base import AnomalyModel
from pipelines.config import load_recipe
from pipelines.detect.ahead import Ahead
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import Detector, slicewise
from pipelines.detect.points import Point, ScoredScan
from pipelines.detect.run import HealthyReference, Run
from pipelines.spread import begun_ahead
from preprocessing.prepare import Prepared, prepare
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan

NETWORKS: dict[str, list[str]] = {"vae_cr": [], "vae": ["image_size=[64,64]"], "patchcore": []}
OF_FOLDERS = "vae_cr"  # the network that scores a folder too
THRESHOLD = 0.2
CPU = torch.device("cpu")
Start = Callable[[Scan], Prepared]


def inference(scan: Path, repeats: int) -> list[Row]:
    """Measure the networks on a 1 mm volume, a raw scan end to end, and a folder of scans."""
    recipe = load_recipe("t1")
    start = partial(prepare, recipe=recipe)
    raw = Scan("s", scan, "s")
    prepared = start(raw)
    rows: list[Row] = []
    for name, settings in NETWORKS.items():
        run = untrained_run(name, settings, recipe)
        rows.append(volume(run, prepared, repeats))
        with tempfile.TemporaryDirectory() as folder:
            rows += one_scan(run, raw, start, Path(folder), repeats)
            if name == OF_FOLDERS:
                rows.append(four_scans(run, scan, start, Path(folder), max(1, repeats - 1)))
    return rows


def untrained_run(name: str, settings: list[str], recipe: Recipe) -> Run:
    """Return a run with random weights, whose thresholds are set by hand."""
    torch.manual_seed(0)
    config = load_run_config(name, [*settings, "calibration.point=quantile"])
    model = build_model(config).eval()
    if name == "patchcore":
        fill_memory(model)
    point = Point(point="quantile", rule="set by hand", voxel=THRESHOLD, scan=0.15)
    healthy = HealthyReference(
        score="set by hand",
        scans=[ScoredScan(id="h", score=0.1, maximum=THRESHOLD)],
        voxel_quantiles={},
    )
    return Run(Path("run"), Detector(model, config, CPU), recipe, {"quantile": point}, healthy)


def fill_memory(model: AnomalyModel) -> None:
    """Fill a memory with noise: time and size do not depend on what it holds."""
    memory = model.get_buffer("memory")
    model.memory = torch.rand(memory.shape[0], 1000, memory.shape[2]).half()
    model.place = torch.linspace(0, 188, 1000).long()


def volume(run: Run, prepared: Prepared, repeats: int) -> Row:
    """Measure the network part of a volume, whole and slice by slice."""
    network = partial(slicewise, run.model.anomaly_map, run.config, device=CPU)
    filled = np.flatnonzero(prepared.brain.any((0, 1)))
    pieces = [(prepared.image[..., [z]], prepared.brain[..., [z]]) for z in filled]

    def slice_by_slice() -> None:
        for image, brain in pieces:
            network(image, brain)

    ways: dict[str, Callable[[], Any]] = {
        "whole": partial(network, prepared.image, prepared.brain),
        "slices": slice_by_slice,
    }
    taken = alternate(ways, repeats)
    name = f"network part of a 1 mm volume, {run.config.name}"
    return row(name, taken["whole"], "s", "slice by slice", taken["slices"])


def one_scan(run: Run, raw: Scan, start: Start, out: Path, repeats: int) -> list[Row]:
    """Measure a raw scan end to end: seconds, and memory of this process."""
    with peak_memory() as peak:
        times = [seconds(lambda: score_in_turn(run, [raw], start, out)) for _ in range(repeats)]
    name = run.config.name
    value = statistics.median(times)
    return [
        row(f"raw T1 scan to mask, map and report, {name}, warm", value, "s"),
        row(f"peak memory of that process, {name}", peak[0], "MB"),
    ]


def four_scans(run: Run, scan: Path, start: Start, out: Path, repeats: int) -> Row:
    """Measure a folder of scans, one prepared ahead by another process and one after the other."""
    four = [Scan(f"f{i}", scan, "s") for i in range(4)]
    ahead = Ahead()

    def begin(scan: Scan) -> Callable[[], Prepared]:
        ahead.begin(scan, run.recipe, out)
        return lambda: ahead.result(scan, run.recipe, out)[0]

    begin(four[0])()  # the process is there, and has loaded what it needs
    ways: dict[str, Callable[[], Any]] = {
        "streamed": lambda: score_all(run, begun_ahead(begin, four), out),
        "in turn": lambda: score_in_turn(run, four, start, out),
    }
    taken = alternate(ways, repeats)
    ahead.close()
    name = "folder of four raw T1 scans, one prepared ahead"
    return row(name, taken["streamed"], "s", "one after the other", taken["in turn"])


def score_in_turn(run: Run, scans: list[Scan], start: Start, out: Path) -> None:
    """Prepare and score scan after scan, as `make infer` did before it prepared one ahead."""
    score_all(run, ((scan, partial(start, scan)) for scan in scans), out)


def score_all(run: Run, scans: Iterable[tuple[Scan, Callable[[], Prepared]]], out: Path) -> None:
    """Score scans, each with the function that waits for its preparation, and write the results."""
    for scan, prepared in scans:
        run.detect_prepared(scan, prepared(), run.point()).save(out)
