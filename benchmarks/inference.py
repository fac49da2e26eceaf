"""The networks on a volume, a raw scan end to end, and a folder of scans."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, alternate, peak_memory, row, seconds
from pipelines.config import load_recipe
from pipelines.detect.config import load_run_config

NETWORKS: dict[str, list[str]] = {"vae_cr": [], "vae": ["image_size=[64,64]"], "patchcore": []}


def inference(scan: Path, repeats: int) -> list[Row]:
    """The networks on a 1 mm volume, a raw scan end to end, and a folder of scans."""
    from functools import partial

    import torch

    from pipelines.detect.build import build_model
    from pipelines.detect.detector import Detector, slicewise
    from pipelines.detect.points import Point, ScoredScan
    from pipelines.detect.run import HealthyReference, Run
    from pipelines.spread import one_ahead
    from preprocessing.prepare import prepare
    from preprocessing.scans import Scan

    rows: list[Row] = []
    recipe, cpu = load_recipe("t1"), torch.device("cpu")
    start = partial(prepare, recipe=recipe)
    prepared = start(Scan("s", scan, "s"))
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        config = load_run_config(name, settings)
        model = build_model(config).eval()
        if name == "patchcore":
            remember_anything(model)
        network = partial(slicewise, model.anomaly_map, config, device=cpu)
        pieces = [
            (prepared.image[..., [i]], prepared.brain[..., [i]])
            for i in np.flatnonzero(prepared.brain.any((0, 1)))
        ]
        ways: dict[str, Callable[[], Any]] = {
            "whole": partial(network, prepared.image, prepared.brain),
            "slices": partial(apply_all, network, pieces),
        }
        taken = alternate(ways, repeats)
        rows.append(
            row(
                f"network part of a 1 mm volume, {name}",
                taken["whole"],
                "s",
                "slice by slice",
                taken["slices"],
            )
        )
        point = Point(point="quantile", rule="set by hand", voxel=0.2, scan=0.15)
        healthy = HealthyReference(
            score="set by hand",
            scans=[ScoredScan(id="h", score=0.1, maximum=0.2)],
            voxel_quantiles={},
        )
        detector = Detector(model, config, cpu)
        run = Run(Path("run"), detector, recipe, {"quantile": point}, healthy)
        with tempfile.TemporaryDirectory() as folder:
            one = [Scan("s", scan, "s")]
            with peak_memory() as peak:
                value = statistics.median(
                    seconds(lambda: score_in_turn(run, one, start, Path(folder)))
                    for _ in range(repeats)
                )  # noqa: B023
            rows.append(row(f"raw T1 scan to mask, map and report, {name}, warm", value, "s"))
            rows.append(row(f"peak memory of that process, {name}", peak[0], "MB"))
            if name == "vae_cr":
                four, out = [Scan(f"f{i}", scan, "s") for i in range(4)], Path(folder)
                folders = {
                    "streamed": lambda: score_all(run, one_ahead(start, four), out),  # noqa: B023
                    "in turn": lambda: score_in_turn(run, four, start, out),  # noqa: B023
                }
                both = alternate(folders, max(1, repeats - 1))
                peer = "one after the other"
                rows.append(
                    row(
                        "folder of four raw T1 scans, one prepared ahead",
                        both["streamed"],
                        "s",
                        peer,
                        both["in turn"],
                    )
                )
    return rows


def apply_all(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    for values in arguments:
        function(*values)


def score_in_turn(run: Any, scans: list[Any], start: Callable[[Any], Any], out: Path) -> None:
    """Prepare and score scan after scan, as `make infer` did before it prepared one ahead."""
    score_all(run, ((s, lambda: start(s)) for s in scans), out)  # noqa: B023 (called before the next)


def score_all(run: Any, scans: Iterable[tuple[Any, Callable[[], Any]]], out: Path) -> None:
    for scan, begun in scans:
        run.detect_prepared(scan, begun(), 0.2).save(out)


def remember_anything(model: Any) -> None:
    """A full memory of noise: time and size do not depend on what it holds."""
    import torch

    memory = model.get_buffer("memory")
    model.memory = torch.rand(memory.shape[0], 1000, memory.shape[2]).half()
    model.place = torch.linspace(0, 188, 1000).long()
