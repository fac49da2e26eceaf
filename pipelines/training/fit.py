"""A preprocessed cohort in, a run folder out."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

from models import model_class
from models.base import AnomalyModel
from models.ensemble import Ensemble
from pipelines.cohort.cases import (
    Case,
    data_digest,
    data_digest_0,
    learning_cases,
    people_in,
    read_cases,
)
from pipelines.config import ConfigError, read_config, read_recipe, write_recipe, write_yaml
from pipelines.detect.build import build_detector, build_model, load_members, with_members
from pipelines.detect.config import Loop, RunConfig
from pipelines.detect.detector import Detector
from pipelines.detect.folder import finished, read_history, write_history
from pipelines.detect.identity import settings
from pipelines.detect.run import write_calibration, write_weights
from pipelines.detect.typical import describe, write_typical
from pipelines.training.calibrate import calibrate
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.loop import fit
from pipelines.versions import command_line, versions
from preprocessing.files import write_atomic, write_table
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError
from preprocessing.slices import in_plane

log = logging.getLogger("norma")


@dataclass(frozen=True)
class Material:
    """What a run learns from: cases to train on, to validate on and, labelled, to tune on.

    `reference` names the training cases that the model does not see: the healthy reference of its
    map is of them. `abnormal` names every abnormal case.
    """

    data: Path
    recipe: Recipe
    cases: list[Case]
    train: list[Case]
    val: list[Case]
    tune: list[Case]
    reference: frozenset[str]
    abnormal: frozenset[str]

    @property
    def healthy_train(self) -> list[Case]:
        """Training cases without the abnormal ones that a supervised model learns from too."""
        return [case for case in self.train if case.label != "abnormal"]

    @property
    def healthy_val(self) -> list[Case]:
        """Validation cases that thresholds come from."""
        return [case for case in self.val if case.label != "abnormal"]


@dataclass(frozen=True)
class Datasets:
    """Slices or volumes to train on, without and with augmentation, and to validate on."""

    store: Path
    training: SliceDataset
    checking: SliceDataset
    items: str  # "slices" or "volumes"
    shape: dict[str, Any]


def train(config: RunConfig, data: Path, run_dir: Path, splits: Path | None = None) -> None:
    """Train, calibrate on healthy validation cases, and fill the run folder.

    A finished run is left alone. `splits`, a table (id, split), stands in for the splits of the
    data's own table; the run holds a copy as splits.tsv.
    """
    check_options(config)
    config = with_members(config, run_dir)
    material = select_material(config, data, splits)
    if is_finished(run_dir, config, material):
        log.info("%s: finished before with this config and data; nothing to do.", run_dir)
        return

    fabric = make_fabric(config.loop)
    fabric.launch()
    torch.manual_seed(config.loop.seed)
    model = build_model(config, material.recipe)
    detector = build_detector(config, model)
    if model.combines:
        load_members(model, config, run_dir)
    parameters = sum(p.numel() for p in model.parameters())

    with fabric.rank_zero_first():
        datasets = open_datasets(config, material)
    check_processes(fabric, config, datasets)
    if fabric.is_global_zero:
        log_sizes(config, fabric, material, datasets, parameters)
        write_start(run_dir, config, material, splits is not None)
    fabric.barrier()

    trained = 0.0
    if model.stages:
        model.prepare(plain_batches(config, material, datasets))
        trained = fit(model, config, datasets.training, datasets.checking, fabric, run_dir)
    started = time.perf_counter()  # epochs have their own clock: those before a kill count too
    combined = model
    scales = fit_scales(model, config, material, datasets)
    if not scales:
        fit_closed_form(model, config, material, datasets)
    if config.reference.active:
        model = detector.to(fabric.device).eval()
    if config.reference.kind != "none":
        fit_healthy_maps(model, config, material, datasets)

    if fabric.is_global_zero:
        ready = Detector(model, config, fabric.device)
        parts = calibrating(ready, combined, scales, material.healthy_val)
        calibrated = calibrate(parts, material.tune, ready)
        write_calibration(run_dir, *calibrated, config.calibration.point)
        write_typical(describe([*material.healthy_train, *material.healthy_val]), run_dir)
        history = start_of(material) | {
            "versions": versions(),
            "command": command_line(),
            "seconds": round(trained + time.perf_counter() - started, 1),
            "parameters": parameters,
            "device": str(fabric.device),
            "threads": torch.get_num_threads(),
            "train_scans": [case.id for case in material.train],
            "val_scans": [case.id for case in material.val],
            "tune_scans": [case.id for case in material.tune],
            "digests": learned_digests(material),
        }
        write_history(run_dir, history)
        write_weights(model, run_dir)
    fabric.barrier()


def select_material(config: RunConfig, data: Path, splits: Path | None = None) -> Material:
    """The cases of a cohort by their use; InputError where a split lacks what the model needs."""
    kind = model_class(config.name)
    cases = read_cases(data, splits)
    training = learning_cases(cases, "train", data, kind.supervised)
    val = learning_cases(cases, "val", data, kind.supervised)
    labelled = [case for case in val if case.label == "abnormal"]
    return Material(
        data=data,
        recipe=read_recipe(data),
        cases=cases,
        train=training,
        val=val,
        tune=labelled + [case for case in cases if case.split == "tune"],
        reference=frozenset(held_out(config, training)),
        abnormal=frozenset(case.id for case in cases if case.label == "abnormal"),
    )


def check_options(config: RunConfig) -> None:
    """ConfigError for settings that are not of training, or of another kind of model."""
    if config.harmonise:
        raise ConfigError(
            "harmonise brings new scans to those of a trained run; leave it out here, and write it "
            "with 'make adapt HOW=harmonise'."
        )
    if config.wrm and not model_class(config.name).stages:
        raise ConfigError(f"wrm: '{config.name}' learns nothing by gradient; leave it out.")


def open_datasets(config: RunConfig, material: Material) -> Datasets:
    """The slices of training and validation cases, in the plane of the config."""
    store, shape = open_store(config, material.data, material.train[0], material.recipe)
    train_ids = {case.id for case in material.train} - material.reference
    val_ids = {case.id for case in material.val}
    size = config.image_size
    abnormal = material.abnormal
    training = SliceDataset(store, train_ids, size, config.augmentation, abnormal=abnormal, **shape)
    checking = SliceDataset(store, val_ids, size, abnormal=abnormal, **shape)
    items = "volumes" if len(config.image_size) == 3 else "slices"
    return Datasets(store, training, checking, items, shape)


def open_store(
    config: RunConfig, data: Path, first: Case, recipe: Recipe
) -> tuple[Path, dict[str, Any]]:
    """The slice store of a cohort in the plane of a config, and what else its datasets are told.

    `first` is any case of the cohort.
    """
    depth = 0
    if len(config.image_size) == 3 or config.around or config.plane != "axial":
        depth = grid_depth(data, first, config)
    store = in_plane(data / "slices", config.plane, depth, recipe.min_brain_pixels)
    return store, {"patch_size": config.patch_size, "depth": depth, "around": config.around}


def check_processes(fabric: Fabric, config: RunConfig, datasets: Datasets) -> None:
    """ConfigError where some process would go without a sample."""
    least = min(len(datasets.training), len(datasets.checking), config.loop.batch_size)
    if fabric.world_size > least:
        raise ConfigError(
            f"{fabric.world_size} processes, but batches of {least} {datasets.items}; "
            "use fewer devices, or a larger loop.batch_size."
        )


def log_sizes(
    config: RunConfig, fabric: Fabric, material: Material, datasets: Datasets, parameters: int
) -> None:
    """One line: how large the model is, and what it learns from."""
    log.info(
        "%s: %.2f M parameters on %s; %d scans (%d %s) to train, %d scans (%d %s) to validate",
        config.name,
        parameters / 1e6,
        fabric.device,
        len(material.train) - len(material.reference),
        len(datasets.training),
        datasets.items,
        len(material.val),
        len(datasets.checking),
        datasets.items,
    )


def write_start(run_dir: Path, config: RunConfig, material: Material, own_splits: bool) -> None:
    """What stands in a run folder before training begins, so that it can be resumed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir / "config.yaml", write_yaml(config))
    write_recipe(run_dir, material.recipe)
    write_history(run_dir, start_of(material))
    if own_splits:
        splits = [{"id": case.id, "split": case.split} for case in material.cases]
        write_table(run_dir / "splits.tsv", splits)


def start_of(material: Material) -> dict[str, Any]:
    """Which data a run is trained on, for run.json."""
    people = people_in([case.columns for case in material.train])
    return {
        "data": material.data.name,
        "data_digest": data_digest(material.cases),
        "people": people,
    }


def learned_digests(material: Material) -> list[str]:
    """Digests of every image that a run has learned from."""
    cases = [*material.train, *material.val, *material.tune]
    return sorted({case.digest for case in cases if case.digest})


def plain_batches(
    config: RunConfig, material: Material, datasets: Datasets
) -> Iterator[dict[str, Tensor]]:
    """The training slices that the model sees, in order and not augmented."""
    ids = {case.id for case in material.train} - material.reference
    return batches_of(ids, config, datasets)


def batches_of(
    ids: Collection[str], config: RunConfig, datasets: Datasets
) -> Iterator[dict[str, Tensor]]:
    """The slices of some cases, by id, in order and not augmented."""
    plain = SliceDataset(datasets.store, ids, config.image_size, **datasets.shape)
    return Batches(plain, config.loop, shuffle=False, stream=0).epoch(0)


def fit_closed_form(
    model: AnomalyModel, config: RunConfig, material: Material, datasets: Datasets
) -> None:
    """What a model fits without gradients, on training slices."""
    model.eval()
    try:
        model.fit_reference(plain_batches(config, material, datasets))
    except ValueError as error:  # too few slices for what the config asks
        raise ConfigError(f"model of {config.name}: {error}") from None


def fit_scales(
    model: AnomalyModel, config: RunConfig, material: Material, datasets: Datasets
) -> list[Tensor]:
    """The scales of an ensemble's members without each healthy validation scan in turn.

    Empty for another model.
    """
    if not isinstance(model, Ensemble):
        return []
    model.eval()
    scans = [batches_of([case.id], config, datasets) for case in material.healthy_val]
    try:
        return model.fit_scans(scans)
    except ValueError as error:  # no slice to learn from
        raise ConfigError(f"model of {config.name}: {error}") from None


def calibrating(
    ready: Detector, combined: AnomalyModel, scales: Sequence[Tensor], cases: Sequence[Case]
) -> list[tuple[Detector, Sequence[Case]]]:
    """Detectors with the cases that each calibrates on: of an ensemble one without each case."""
    if not scales:
        return [(ready, cases)]
    each = zip(scales, cases, strict=True)
    return [(rescaled(ready, combined, knots), [case]) for knots, case in each]


def rescaled(detector: Detector, ensemble: AnomalyModel, knots: Tensor) -> Detector:
    """The detector with its ensemble by another scale; both share the members."""
    assert isinstance(ensemble, Ensemble)
    other = ensemble.with_knots(knots)
    return replace(detector, model=copy.deepcopy(detector.model, {id(ensemble): other}))


def fit_healthy_maps(
    model: AnomalyModel, config: RunConfig, material: Material, datasets: Datasets
) -> None:
    """The healthy reference of a model's map, of held-out training cases or else of all."""
    ids = material.reference or {case.id for case in material.train}
    healthy = SliceDataset(
        datasets.store, ids - material.abnormal, config.image_size, around=config.around
    )
    model.fit_reference(Batches(healthy, config.loop, shuffle=False, stream=0).epoch(0))


def grid_depth(data: Path, case: Case, config: RunConfig) -> int:
    """Axial slices of the grid that a cohort's scans lie on.

    ConfigError for pictures, which have one, or an ensemble of another grid.
    """
    grid = nib.Nifti1Image.from_filename(case.preproc).shape[:3]
    depth = grid[2]
    if model_class(config.name).combines and config.image_size != grid:
        raise ConfigError(
            f"image_size {list(config.image_size)}: members see slices of the grid itself; "
            f"give image_size={list(grid)}."
        )
    if depth == 1:
        what = "three numbers in image_size ask"
        if config.plane != "axial":
            what = f"plane={config.plane} asks"
        if config.around:
            what = f"around={list(config.around)} asks"
        raise ConfigError(f"{what} for volumes, and {data} holds pictures; leave that out.")
    return depth


def held_out(config: RunConfig, cases: Iterable[Case]) -> set[str]:
    """Ids of training cases that the model does not see, drawn by subject from the seed.

    The healthy reference of the map is then of unseen scans.
    """
    if config.reference.kind == "none" or not config.reference.holdout:
        return set()
    cases = list(cases)
    subjects = sorted({case.subject for case in cases})
    count = round(config.reference.holdout * len(subjects))
    if not 0 < count < len(subjects):
        raise ConfigError(
            f"reference.holdout={config.reference.holdout}: leaves {count} of {len(subjects)} "
            "training subjects; change it."
        )
    order = np.random.default_rng([config.loop.seed, 77]).permutation(subjects)
    drawn: Collection[str] = set(order[:count].tolist())
    return {case.id for case in cases if case.subject in drawn}


def make_fabric(loop: Loop) -> Fabric:
    """One process, `loop.devices` processes that Fabric starts, or those that torchrun started."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", loop.devices))
    nodes = 1
    if "LOCAL_WORLD_SIZE" in os.environ:
        nodes = int(os.environ.get("WORLD_SIZE", local)) // local
    several = local * nodes > 1
    return Fabric(
        accelerator=loop.accelerator,
        devices=local,
        num_nodes=nodes,
        strategy=DDPStrategy(find_unused_parameters=True) if several else "auto",
        precision=loop.precision,
    )


def is_finished(run_dir: Path, config: RunConfig, material: Material) -> bool:
    """Whether the run is done; InputError where the folder holds another run."""
    if not (run_dir / "config.yaml").is_file():
        return False
    other = read_config(RunConfig, run_dir / "config.yaml")
    same_settings = settings(other, "figures") == settings(config, "figures")
    known = (data_digest(material.cases), data_digest_0(material.cases))
    same_data = read_history(run_dir).get("data_digest", "") in known
    if not (same_settings and same_data):
        what = "data" if same_settings else "settings"
        raise InputError(
            f"{run_dir}: holds a run with other {what}; choose another OUT or delete the folder."
        )
    return finished(run_dir)
