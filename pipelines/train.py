"""`make train`: a preprocessed cohort in, a run folder out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cli
from pipelines.config import ConfigError, Loop, RunConfig, load_run_config, read_config, write_yaml
from preprocessing.scans import SPLITS, InputError, read_table, write_atomic, write_table
from preprocessing.slices import in_plane

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from evaluation.metrics import VoxelHistogram

log = logging.getLogger("norma")


def cohort_rows(data: Path, splits: Path | None = None) -> list[dict[str, str]]:
    """Rows of the scans.tsv that `make preprocess` wrote, with the splits of another table (id, split) where one is given.

    Scans that the table leaves out are left out. InputError where a file or a scan is missing, a subject or one image
    under two names stands in two splits.
    """
    table = data / "scans.tsv"
    if not table.is_file():
        raise InputError(f"{table}: no such file; run 'make preprocess' first and give its OUT as DATA.")
    rows = read_table(table)
    if splits:
        given = {r.get("id", ""): r.get("split", "") for r in read_table(splits)}
        unknown = set(given) - {r["id"] for r in rows}
        wrong = set(given.values()) - set(SPLITS)
        if unknown or wrong:
            what = f"scan '{min(unknown)}' is not in {table}" if unknown else f"split '{min(wrong)}', expected {', '.join(SPLITS)}"
            raise InputError(f"{splits}: {what}.")
        rows = [r | {"split": given[r["id"]]} for r in rows if r["id"] in given]
    for key, what in (("subject", "subject"), ("digest", "the same image, as")):
        first: dict[str, dict[str, str]] = {}
        for row in rows:
            other = first.setdefault(row.get(key) or row["id"], row)
            if other["split"] != row["split"]:
                raise InputError(
                    f"{splits or table}: {what} '{row[key] if key == 'subject' else other['id']}' is in two splits, '{other['split']}' and "
                    f"'{row['split']}' (scan '{row['id']}'); keep it in one."
                )
    return rows


def learning_rows(rows: list[dict[str, str]], split: str, data: Path, supervised: bool = False) -> list[dict[str, str]]:
    """The rows of one split, all of them healthy or unlabelled; an abnormal one is refused by name.

    A supervised model needs both kinds instead.
    """
    rows = [r for r in rows if r["split"] == split]
    abnormal = next((r for r in rows if r["label"] == "abnormal"), None)
    if supervised and (not abnormal or not any(r["label"] == "healthy" for r in rows)):
        raise InputError(
            f"{data / 'scans.tsv'}: a supervised model needs healthy and abnormal scans in split '{split}'; give a table with --splits, or "
            "compare with PROTOCOL=kfold."
        )
    if abnormal and not supervised:
        raise InputError(
            f"{data / 'scans.tsv'}: abnormal scan '{abnormal['id']}' in split '{split}'; Norma learns from healthy scans alone."
        )
    if not rows:
        raise InputError(f"{data / 'scans.tsv'}: no scans in split '{split}'; training needs healthy scans in 'train' and 'val'.")
    return rows


def train(config: RunConfig, data: Path, run: Path, splits: Path | None = None) -> None:
    """Train, calibrate on healthy validation scans, and fill the run folder; a finished run is left alone.

    `splits`, a table (id, split), stands in for the splits of the data's own table; the run keeps a copy as splits.tsv.
    """
    import torch

    from models import model_class
    from pipelines.config import Recipe
    from pipelines.data import Batches, SliceDataset
    from pipelines.loop import fit
    from pipelines.runs import build_detector, build_model, load_members, versions, with_members, write_json
    from pipelines.scoring import calibrate

    rows, config = cohort_rows(data, splits), with_members(config, run)
    supervised, combines = model_class(config.name).supervised, model_class(config.name).combines
    train_rows, val_rows = (learning_rows(rows, split, data, supervised) for split in ("train", "val"))
    reference_ids = _held_out(config, train_rows)
    train_ids = {r["id"] for r in train_rows} - reference_ids
    val_ids = {r["id"] for r in val_rows}
    abnormal = [r for r in val_rows if r["label"] == "abnormal"]
    tune_rows = abnormal + [r for r in rows if r["split"] == "tune"]
    ill = {r["id"] for r in rows if r["label"] == "abnormal"}
    about = about_data(data, rows)
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
    depth = _depth(data, train_rows[0], config) if len(config.image_size) == 3 or config.around or config.plane != "axial" else 0
    with fabric.rank_zero_first():
        store = in_plane(data / "slices", config.plane, depth, recipe.min_brain_pixels)
    shape: dict[str, Any] = {"patch_size": config.patch_size, "depth": depth, "around": config.around}
    training = SliceDataset(store, train_ids, config.image_size, config.augmentation, abnormal=ill, **shape)
    checking = SliceDataset(store, val_ids, config.image_size, abnormal=ill, **shape)
    items = "volumes" if len(config.image_size) == 3 else "slices"
    least = min(len(training), len(checking), loop.batch_size)
    if fabric.world_size > least:
        raise ConfigError(f"{fabric.world_size} processes, but batches of {least} {items}; use fewer devices, or a larger loop.batch_size.")
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
    started = time.perf_counter()  # what was trained before a kill counts, so the epochs have their own clock
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
        healthy_maps = SliceDataset(store, (reference_ids or train_ids) - ill, config.image_size, around=config.around)
        model.fit_reference(Batches(healthy_maps, loop, shuffle=False, stream=0).epoch(0))
    if fabric.is_global_zero:
        threshold, reference, healthy = calibrate(
            model, config, data, [r for r in val_rows if r["label"] != "abnormal"], fabric.device, tune_rows
        )
        _write_voxels(healthy, run)
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
                "digests": sorted({r["digest"] for r in (*train_rows, *val_rows, *tune_rows) if r.get("digest")}),
            },
        )
        _write_weights(model, run)
    fabric.barrier()


def _depth(data: Path, row: dict[str, str], config: RunConfig) -> int:
    """Axial slices of the grid that a cohort's scans lie on; ConfigError for pictures, which have one, or an ensemble of another grid."""
    import nibabel as nib

    from models import model_class

    grid = nib.Nifti1Image.from_filename(data / row["preproc"]).shape[:3]
    depth = grid[2]
    if model_class(config.name).combines and config.image_size != grid:
        raise ConfigError(f"image_size {list(config.image_size)}: members see slices of the grid itself; give image_size={list(grid)}.")
    if depth == 1:
        what = "three numbers in image_size ask"
        if config.plane != "axial":
            what = f"plane={config.plane} asks"
        if config.around:
            what = f"around={list(config.around)} asks"
        raise ConfigError(f"{what} for volumes, and {data} holds pictures; leave that out.")
    return depth


def _held_out(config: RunConfig, rows: list[dict[str, str]]) -> set[str]:
    """Training scans that the model does not see, so that its healthy reference is of unseen scans; drawn by subject from the seed."""
    import numpy as np

    if config.reference.kind == "none" or not config.reference.holdout:
        return set()
    subjects = sorted({r["subject"] for r in rows})
    count = round(config.reference.holdout * len(subjects))
    if not 0 < count < len(subjects):
        raise ConfigError(f"reference.holdout={config.reference.holdout}: leaves {count} of {len(subjects)} training subjects; change it.")
    chosen = set(np.random.default_rng([config.loop.seed, 77]).permutation(subjects)[:count].tolist())
    return {r["id"] for r in rows if r["subject"] in chosen}


def _fabric(loop: Loop) -> Fabric:
    """One process, `loop.devices` processes that Fabric starts, or those that torchrun started, on one node or more."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    local = int(os.environ.get("LOCAL_WORLD_SIZE", loop.devices))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local if "LOCAL_WORLD_SIZE" in os.environ else 1
    strategy = DDPStrategy(find_unused_parameters=True) if local * nodes > 1 else "auto"
    return Fabric(accelerator=loop.accelerator, devices=local, num_nodes=nodes, strategy=strategy, precision=loop.precision)


def _write_weights(model: object, run: Path) -> None:
    """The last file of a run: where it stands, the run is finished."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({k: v.cpu() for k, v in model.state_dict().items()}, buffer)  # type: ignore[attr-defined]
    write_atomic(run / "weights.pt", buffer.getvalue())


def _write_voxels(healthy: VoxelHistogram, run: Path) -> None:
    """Keep the healthy voxels, so that any other healthy operating point can be taken later."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, rows=np.array(healthy.to_rows()))
    write_atomic(run / "healthy_voxels.npz", buffer.getvalue())


def about_data(data: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """Which data a run is trained on: the folder and the digest of its training, validation and labelled rows."""
    lines = [f"{r['id']} {r['split']} {r['image']}" for r in rows if r["split"] != "test"]
    return {"data": str(data), "data_digest": sha256("\n".join(sorted(lines)).encode()).hexdigest()}


def _finished(run: Path, config: RunConfig, about: dict[str, str]) -> bool:
    """Whether the run is done; InputError where the folder holds a run of another config or other data."""
    from pipelines.runs import read_json

    if not (run / "config.yaml").is_file():
        return False
    other = read_config(RunConfig, run / "config.yaml")
    before = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    if other.decisive != config.decisive or before.get("data_digest", "") != about["data_digest"]:
        what = "settings" if other.decisive != config.decisive else "data"
        raise InputError(f"{run}: holds a run with other {what}; choose another OUT or delete the folder.")
    return (run / "weights.pt").is_file()


def main(arguments: argparse.Namespace) -> int:
    config = load_run_config(arguments.model, arguments.overrides, arguments.preset)
    data = Path(arguments.data)
    cohort_rows(data, Path(arguments.splits) if arguments.splits else None)
    run = cli.writable_folder(arguments.out or Path("runs") / data.name / arguments.model)
    from pipelines.loop import TrainingError

    try:
        train(config, data, run, Path(arguments.splits) if arguments.splits else None)
    except TrainingError as error:
        raise ConfigError(str(error)) from None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{run}: trained; score scans with 'make infer RUN={run} IN=<scan or folder> OUT=<folder>'")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("train", "Train a detector on the healthy scans of a preprocessed cohort.")
    p.add_argument("--model", required=True, help="a file of configs, such as vae_cr")
    p.add_argument("--data", required=True, help="the OUT folder of preprocess")
    p.add_argument("--out", help="run folder (default runs/<data>/<model>); an interrupted run goes on where it stopped")
    p.add_argument("--splits", help="table (id, split) that stands in for the splits of the data's own table")
    p.add_argument("--preset", help="a file of configs/preset laid over the model's config, such as small")
    p.add_argument("overrides", nargs="*", help="settings such as stages.finetune.max_epochs=50 loop.seed=1")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
