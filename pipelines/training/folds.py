"""Cross-calibration: a run trained in folds, so that every healthy scan calibrates it."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from models import model_class
from models.parts.folded import Folded
from pipelines.cohort.cases import Case, data_digest, read_cases
from pipelines.config import ConfigError, read_config
from pipelines.detect.build import member_folder
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import Detector
from pipelines.detect.folder import finished, read_history, write_history
from pipelines.detect.identity import settings
from pipelines.detect.run import load_run, write_calibration, write_weights
from pipelines.detect.typical import describe, write_typical
from pipelines.training.calibrate import calibrate
from pipelines.training.fit import (
    Material,
    is_finished,
    learned_digests,
    select_material,
    start_of,
    train,
    write_start,
)
from pipelines.versions import command_line, versions
from preprocessing.files import write_table

log = logging.getLogger("norma")


def train_run(
    config: RunConfig,
    data: Path,
    run_dir: Path,
    splits: Path | None = None,
    like: Sequence[Path] = (),
) -> None:
    """Train a run as its config says: once, or `calibration.folds` times.

    `like` are folders of runs whose training is taken over where it was the same. Otherwise as
    `pipelines.training.fit.train`.
    """
    if config.calibration.folds:
        train_folds(config, data, run_dir, splits, like)
        return
    share_training(config, data_digest(read_cases(data, splits)), run_dir, like)
    train(config, data, run_dir, splits)


def train_folds(
    config: RunConfig,
    data: Path,
    run_dir: Path,
    splits: Path | None = None,
    like: Sequence[Path] = (),
) -> None:
    """Train one run per fold, and a run of all of them that is calibrated on every healthy scan.

    The healthy training and validation scans are parted by subject. Run f, in `run_dir`/folds/f,
    leaves fold f out, and validates on fold f + 1. Fold f then calibrates: it is scored by run f
    alone. ConfigError for fewer subjects than folds, or a model that learns from labels.
    """
    _check(config)
    material = select_material(config, data, splits)
    started = time.perf_counter()
    folds = parts_of(material, config.calibration.folds, config.loop.seed)
    single = config.model_copy(
        update={"calibration": config.calibration.model_copy(update={"folds": 0})}
    )
    run_dirs = [run_dir / "folds" / str(number) for number in range(len(folds))]
    for number, fold_dir in enumerate(run_dirs):
        validated = folds[(number + 1) % len(folds)]
        left_out = {case.id for case in (*folds[number], *validated)}
        _check_members(config, fold_dir, left_out)
        table = _write_splits(material, folds[number], validated, fold_dir)
        train_run(single, data, fold_dir, table, [other / "folds" / str(number) for other in like])

    # the members of a combined model are found fold by fold; their settings are the same
    arguments = read_config(RunConfig, run_dirs[0] / "config.yaml").model
    config = config.model_copy(update={"model": arguments})
    if is_finished(run_dir, config, material):
        log.info("%s: finished before with this config and data; nothing to do.", run_dir)
        return
    write_start(run_dir, config, material, splits is not None)
    _combine(config, material, run_dir, run_dirs, folds, started)


def _combine(
    config: RunConfig,
    material: Material,
    run_dir: Path,
    run_dirs: Sequence[Path],
    folds: list[list[Case]],
    started: float,
) -> None:
    """Calibrate the runs of all folds together, and write them as one run."""
    runs = [load_run(fold_dir, config.loop.accelerator) for fold_dir in run_dirs]
    parts = [(run.detector, cases) for run, cases in zip(runs, folds, strict=True)]
    whole = Detector(Folded([run.model for run in runs]), config, runs[0].detector.device)
    calibrated = calibrate(parts, material.tune, whole)
    write_calibration(run_dir, *calibrated, config.calibration.point)
    write_typical(describe(list(itertools.chain.from_iterable(folds))), run_dir)

    trained = sum(run.history["seconds"] for run in runs)
    healthy = list(itertools.chain.from_iterable(folds))
    history = start_of(material) | {
        "versions": versions(),
        "command": command_line(),
        "seconds": round(max(trained, time.perf_counter() - started), 1),
        "parameters": sum(run.history["parameters"] for run in runs),
        "device": str(runs[0].detector.device),
        "threads": runs[0].history["threads"],
        "folds": len(folds),
        "train_scans": [case.id for case in healthy],
        "val_scans": [],
        "tune_scans": [case.id for case in material.tune],
        "digests": learned_digests(material),
    }
    write_history(run_dir, history)
    write_weights(whole.model, run_dir)


def parts_of(material: Material, count: int, seed: int) -> list[list[Case]]:
    """The healthy training and validation cases in `count` folds, drawn by subject."""
    healthy = [case for case in (*material.train, *material.val) if case.label != "abnormal"]
    subjects = sorted({case.subject for case in healthy})
    if len(subjects) < count:
        raise ConfigError(
            f"calibration.folds={count}: {material.data} has {len(subjects)} healthy subjects to "
            "train and validate on; use fewer folds."
        )
    order = np.random.default_rng([seed, 78]).permutation(subjects)
    fold_of = {subject: number % count for number, subject in enumerate(order.tolist())}
    folds: list[list[Case]] = [[] for _ in range(count)]
    for case in healthy:
        folds[fold_of[case.subject]].append(case)
    return folds


def _check(config: RunConfig) -> None:
    """ConfigError where folds do not go with the model or the machine."""
    if model_class(config.name).supervised:
        raise ConfigError(
            f"calibration.folds: {config.name} learns from labelled scans; leave folds out."
        )
    if config.loop.devices > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("calibration.folds trains on one device; use loop.devices=1.")


def _check_members(config: RunConfig, fold_dir: Path, left_out: set[str]) -> None:
    """ConfigError where a member of a combined model has learned from what its fold leaves out."""
    if not model_class(config.name).combines:
        return
    for name in config.model.get("members") or []:
        folder = member_folder(fold_dir, name)
        if left_out & set(read_history(folder).get("train_scans", [])):
            raise ConfigError(
                f"{folder}: has learned from scans that this fold leaves out; train '{name}' with "
                f"the same data, seed and calibration.folds={config.calibration.folds}."
            )


def _write_splits(
    material: Material, tested: Sequence[Case], validated: Sequence[Case], fold_dir: Path
) -> Path:
    """The table (id, split) of one fold's run, beside its folder."""
    rows: list[dict[str, str]] = []
    tests = {case.id for case in tested}
    checks = {case.id for case in validated}
    for case in (*material.train, *material.val):
        if case.label != "abnormal" and case.id not in tests:
            rows.append({"id": case.id, "split": "val" if case.id in checks else "train"})
    fold_dir.parent.mkdir(parents=True, exist_ok=True)
    path = fold_dir.with_suffix(".tsv")
    write_table(path, rows)
    return path


def share_training(config: RunConfig, digest: str, run_dir: Path, others: Iterable[Path]) -> None:
    """Give a new run the last checkpoint of another that was trained in the same way.

    In the same way: with the settings that shape training, on data of this `digest`. Map, reference
    and scores may differ. Training then finds every stage done.
    """
    if (run_dir / "config.yaml").is_file():
        return
    wanted = settings(config, "training")
    for other in others:
        checkpoint = other / "checkpoints" / "last.pt"
        if not (finished(other) and checkpoint.is_file()):
            continue
        trained = read_config(RunConfig, other / "config.yaml")
        same_data = read_history(other).get("data_digest") == digest
        if same_data and settings(trained, "training") == wanted:
            (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            for name in ("metrics.csv", "checkpoints/last.pt"):
                shutil.copyfile(other / name, run_dir / name)
            return
