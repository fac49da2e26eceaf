"""Seconds and peak memory of each stage on one scan: `python -m benchmarks.stages --input SCAN --modality t1 --out JSON`.

An untrained network of the config's size stands in for a run: time and memory do not depend on the weights. Absolute
seconds belong to one machine at one moment; the file names it. Never decides pass or fail.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class Meter:
    """Times a stage and samples the resident memory of this process while it runs (Linux: /proc/self/statm)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        peak, done = [_resident_mb()], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], _resident_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            done.set()
            watcher.join()
            row = {"name": name, "seconds": round(seconds, 3), "peak_memory_mb": round(max(peak[0], _resident_mb()), 1)}
            self.rows.append(row)
            print(f"{name:24s} {seconds:8.2f} s {row['peak_memory_mb']:8.0f} MB", flush=True)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(scan: Path, modality: str, model_name: str) -> list[dict[str, Any]]:
    """Run every stage once, as preprocess, train and infer do, and return a row per stage."""
    meter = Meter()

    def call(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with meter.stage(name):
            return function(*args, **kwargs)

    with meter.stage("import"):
        import nibabel as nib
        import torch

        from pipelines import preprocess, scoring
        from pipelines.config import load_recipe, load_run_config
        from pipelines.data import SliceDataset
        from pipelines.runs import build_model
        from preprocessing import brain, register, slices
        from preprocessing.scans import read_image
    recipe, config = load_recipe(modality), load_run_config(model_name)
    if recipe.sequences:
        raise SystemExit(f"error: MODALITY={modality}: one sequence is measured, give {recipe.modality}")
    native = call("load", read_image, scan)
    work = call("resample to 1 mm", register.to_spacing, nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    mask, _ = call("brain mask", brain.brain_mask, work, modality, recipe.brain)
    atlas = call("load atlas", register.load_atlas, recipe.template, recipe.grid)
    shown = preprocess._visible(np.asarray(work.dataobj), mask, recipe.intensity)
    world, _ = call("rigid registration", register.fit, shown, work.affine, atlas, spacing=recipe.registration_spacing)
    with meter.stage("resample to atlas"):
        image = register.resample(np.asarray(native.dataobj), native.affine, atlas.shape, atlas.affine, world, pad=None)
        mask = register.carry_mask(mask, work.affine, atlas.shape, atlas.affine, world)
        image = preprocess._scale(image, mask, recipe.intensity)
    z = slices.select(mask, recipe.min_brain_pixels)
    with tempfile.TemporaryDirectory() as folder:
        call("write slice store", slices.write_arrays, Path(folder), "scan", image, mask, z)
        rows = [{"scan": "scan", "subject": "scan", "split": "train", "row": i, "z": k} for i, k in enumerate(z)]
        slices.write_index(Path(folder), rows)
        data = SliceDataset(Path(folder), ["scan"], config.image_size, config.augmentation)
        batch = call("load and augment 64", lambda: data.batch([(i % len(data), i) for i in range(64)]))
    model = build_model(config)
    update = model.updates(model.stages[-1])[0]
    call("training step of 64", lambda: update.loss(batch)["loss"].backward())
    raw = call("network on all slices", scoring._slicewise, model.eval().anomaly_map, config, image, mask, torch.device("cpu"))
    filtered = call("filter and rim", scoring.filtered, raw, mask, config.postprocess)
    there = call("map to the scan's grid", scoring.to_native, filtered, mask, atlas.affine, world, native.shape, native.affine)
    call("cut the mask", scoring.cut, there, float(np.quantile(there.map[there.brain], 0.99)), config.postprocess)
    return meter.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", required=True, help="one raw scan")
    parser.add_argument("--modality", required=True)
    parser.add_argument("--model", default="vae_cr")
    parser.add_argument("--out", required=True, help="JSON file")
    arguments = parser.parse_args()
    rows = measure(Path(arguments.input), arguments.modality, arguments.model)
    from pipelines.runs import versions, write_json

    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    total = round(sum(r["seconds"] for r in rows), 3)
    write_json(
        out,
        {
            "scan": Path(arguments.input).name,
            "modality": arguments.modality,
            "model": arguments.model,
            "cores": os.cpu_count(),
            "stages": rows,
            "seconds": total,
            "peak_memory_mb": max(r["peak_memory_mb"] for r in rows),
            "versions": versions(),
        },
    )
    print(f"{'all':24s} {total:8.2f} s; written to {out}")


if __name__ == "__main__":
    main()
