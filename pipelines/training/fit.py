"""A preprocessed cohort in, a run folder out."""

from __future__ import annotations

import logging
import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from models import model_class
from pipelines.cohort.cases import cohort_rows, learning_rows
from pipelines.config import ConfigError, read_config, write_yaml
from pipelines.detect.build import build_detector, build_model, load_members, with_members
from pipelines.detect.config import Loop, RunConfig
from pipelines.detect.run import write_voxels, write_weights
from pipelines.training.calibrate import calibrate
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.loop import fit
from pipelines.versions import versions
from preprocessing.files import read_json, write_atomic, write_json, write_table
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError
from preprocessing.slices import in_plane

log = logging.getLogger("norma")


def train(config: RunConfig, data: Path, run: Path, splits: Path | None = None) -> None:
    """Train, calibrate on healthy validation scans, and fill the run folder; a finished run is left alone.

    `splits`, a table (id, split), stands in for the splits of the data's own table; the run keeps a copy as splits.tsv.
    """
    rows, config = cohort_rows(data, splits), with_members(config, run)
    supervised, combines = model_class(config.name).supervised, model_class(config.name).combines
    train_rows, val_rows = (
        learning_rows(rows, split, data, supervised) for split in ("train", "val")
    )
    reference_ids = held_out(config, train_rows)
    train_ids = {r["id"] for r in train_rows} - reference_ids
    val_ids = {r["id"] for r in val_rows}
    abnormal = [r for r in val_rows if r["label"] == "abnormal"]
    tune_rows = abnormal + [r for r in rows if r["split"] == "tune"]
    ill = {r["id"] for r in rows if r["label"] == "abnormal"}
    about = describe_data(data, rows)
    recipe = read_config(Recipe, data / "recipe.yaml")
    if _finished(run, config, about):
        log.info("%s: finished before with this config and data; nothing to do.", run)
        return
    loop = config.loop
    fabric = _fabric(loop)
    fabric.launch()
    torch.manual_seed(loop.seed)
    model = build_model(config, recipe)
    detector = build_detector(config, model)
    if combines:
        load_members(model, config, run)
    n = sum(p.numel() for p in model.parameters())
    depth = (
        grid_depth(data, train_rows[0], config)
        if len(config.image_size) == 3 or config.around or config.plane != "axial"
        else 0
    )
    with fabric.rank_zero_first():
        store = in_plane(data / "slices", config.plane, depth, recipe.min_brain_pixels)
    shape: dict[str, Any] = {
        "patch_size": config.patch_size,
        "depth": depth,
        "around": config.around,
    }
    training = SliceDataset(
        store, train_ids, config.image_size, config.augmentation, abnormal=ill, **shape
    )
    checking = SliceDataset(store, val_ids, config.image_size, abnormal=ill, **shape)
    items = "volumes" if len(config.image_size) == 3 else "slices"
    least = min(len(training), len(checking), loop.batch_size)
    if fabric.world_size > least:
        raise ConfigError(
            f"{fabric.world_size} processes, but batches of {least} {items}; use fewer devices, or a larger loop.batch_size."
        )
    if fabric.is_global_zero:
        log.info(
            "%s: %.2f M parameters on %s; %d scans (%d %s) to train, %d scans (%d %s) to validate",
            config.name,
            n / 1e6,
            fabric.device,
            len(train_ids),
            len(training),
            items,
            len(val_rows),
            len(checking),
            items,
        )
        write_atomic(run / "config.yaml", write_yaml(config))
        write_atomic(run / "recipe.yaml", write_yaml(recipe))
        write_json(run / "run.json", about)
        if splits:
            write_table(run / "splits.tsv", [{"id": r["id"], "split": r["split"]} for r in rows])
    fabric.barrier()
    trained = fit(model, config, training, checking, fabric, run) if model.stages else 0.0
    started = (
        time.perf_counter()
    )  # what was trained before a kill counts, so the epochs have their own clock
    model.eval()
    healthy_ids = val_ids - ill if combines else train_ids
    plain = SliceDataset(store, healthy_ids, config.image_size, **shape)
    try:
        model.fit_reference(Batches(plain, loop, shuffle=False, stream=0).epoch(0))
    except ValueError as error:  # too few slices for what the config asks
        raise ConfigError(f"model of {config.name}: {error}") from None
    if config.reference.active:
        model = detector.to(fabric.device).eval()
    if config.reference.kind != "none":
        healthy_maps = SliceDataset(
            store, (reference_ids or train_ids) - ill, config.image_size, around=config.around
        )
        model.fit_reference(Batches(healthy_maps, loop, shuffle=False, stream=0).epoch(0))
    if fabric.is_global_zero:
        threshold, reference, healthy = calibrate(
            model,
            config,
            data,
            [r for r in val_rows if r["label"] != "abnormal"],
            fabric.device,
            tune_rows,
        )
        write_voxels(healthy, run)
        write_json(run / "threshold.json", threshold)
        write_json(run / "reference.json", reference)
        seconds = round(trained + time.perf_counter() - started, 1)
        write_json(
            run / "run.json",
            about
            | {
                "versions": versions(),
                "command": sys.argv[1:],
                "seconds": seconds,
                "parameters": n,
                "device": str(fabric.device),
                "threads": torch.get_num_threads(),
                "train_scans": [r["id"] for r in train_rows],
                "val_scans": [r["id"] for r in val_rows],
                "tune_scans": [r["id"] for r in tune_rows],
                "digests": sorted(
                    {r["digest"] for r in (*train_rows, *val_rows, *tune_rows) if r.get("digest")}
                ),
            },
        )
        write_weights(model, run)
    fabric.barrier()


def grid_depth(data: Path, row: dict[str, str], config: RunConfig) -> int:
    """Axial slices of the grid that a cohort's scans lie on; ConfigError for pictures, which have one, or an ensemble of another grid."""
    grid = nib.Nifti1Image.from_filename(data / row["preproc"]).shape[:3]
    depth = grid[2]
    if model_class(config.name).combines and config.image_size != grid:
        raise ConfigError(
            f"image_size {list(config.image_size)}: members see slices of the grid itself; give image_size={list(grid)}."
        )
    if depth == 1:
        what = "three numbers in image_size ask"
        if config.plane != "axial":
            what = f"plane={config.plane} asks"
        if config.around:
            what = f"around={list(config.around)} asks"
        raise ConfigError(f"{what} for volumes, and {data} holds pictures; leave that out.")
    return depth


def held_out(config: RunConfig, rows: list[dict[str, str]]) -> set[str]:
    """Training scans that the model does not see, so that its healthy reference is of unseen scans; drawn by subject from the seed."""
    if config.reference.kind == "none" or not config.reference.holdout:
        return set()
    subjects = sorted({r["subject"] for r in rows})
    count = round(config.reference.holdout * len(subjects))
    if not 0 < count < len(subjects):
        raise ConfigError(
            f"reference.holdout={config.reference.holdout}: leaves {count} of {len(subjects)} training subjects; change it."
        )
    chosen = set(
        np.random.default_rng([config.loop.seed, 77]).permutation(subjects)[:count].tolist()
    )
    return {r["id"] for r in rows if r["subject"] in chosen}


def _fabric(loop: Loop) -> Fabric:
    """One process, `loop.devices` processes that Fabric starts, or those that torchrun started, on one node or more."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", loop.devices))
    nodes = (
        int(os.environ.get("WORLD_SIZE", local)) // local if "LOCAL_WORLD_SIZE" in os.environ else 1
    )
    strategy = DDPStrategy(find_unused_parameters=True) if local * nodes > 1 else "auto"
    return Fabric(
        accelerator=loop.accelerator,
        devices=local,
        num_nodes=nodes,
        strategy=strategy,
        precision=loop.precision,
    )


def describe_data(data: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """Which data a run is trained on: the folder and the digest of its training, validation and labelled rows."""
    lines = [f"{r['id']} {r['split']} {r['image']}" for r in rows if r["split"] != "test"]
    return {"data": str(data), "data_digest": sha256("\n".join(sorted(lines)).encode()).hexdigest()}


def _finished(run: Path, config: RunConfig, about: dict[str, str]) -> bool:
    """Whether the run is done; InputError where the folder holds a run of another config or other data."""
    if not (run / "config.yaml").is_file():
        return False
    other = read_config(RunConfig, run / "config.yaml")
    before = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    if other.decisive != config.decisive or before.get("data_digest", "") != about["data_digest"]:
        what = "settings" if other.decisive != config.decisive else "data"
        raise InputError(
            f"{run}: holds a run with other {what}; choose another OUT or delete the folder."
        )
    return (run / "weights.pt").is_file()
