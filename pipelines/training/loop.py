"""The training loop: one file, it knows no model."""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.base import AnomalyModel, Batch, Losses, Update
from pipelines.config import ConfigError
from pipelines.detect.config import RunConfig, Stage
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.wrm import worst_nearby
from preprocessing.files import write_atomic

log = logging.getLogger("norma")


class TrainingError(ConfigError):
    """Training cannot go on; the message says which setting to change."""


@dataclass(frozen=True)
class Session:
    """What every stage of a training needs: the model, as Fabric wraps it too, and its data."""

    model: AnomalyModel
    module: Any
    config: RunConfig
    train: SliceDataset
    val: SliceDataset
    fabric: Fabric
    run_dir: Path
    writer: SummaryWriter | None

    @property
    def last(self) -> Path:
        """The checkpoint after the last epoch."""
        return self.run_dir / "checkpoints" / "last.pt"

    def best(self, stage: str) -> Path:
        """The weights of a stage's best epoch."""
        return self.run_dir / "checkpoints" / f"best-{stage}.pt"


@dataclass(frozen=True)
class Steps:
    """The optimiser steps of a stage: optimisers, as Fabric wraps them too, and their schedules."""

    updates: list[Update]
    optimizers: list[torch.optim.Optimizer]
    wrapped: list[Any]
    plateaus: list[torch.optim.lr_scheduler.ReduceLROnPlateau]


def fit(
    model: AnomalyModel,
    config: RunConfig,
    train: SliceDataset,
    val: SliceDataset,
    fabric: Fabric,
    run_dir: Path,
) -> float:
    """Train every stage, leave the best weights of the last one in the model, return the seconds.

    All randomness follows from (seed, stage, epoch, sample), and a checkpoint is written after each
    epoch. So a run that was killed and started again ends with the weights of one that was not.
    Files: checkpoints/last.pt, checkpoints/best-<stage>.pt, metrics.csv, tensorboard/.
    """
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    module = laid_out(model, config, fabric)
    writer = _writer(run_dir) if fabric.is_global_zero else None
    session = Session(model, module, config, train, val, fabric, run_dir, writer)
    state = _resume(session.last, fabric)
    if "model" in state:  # even where every stage is done: what follows needs the weights
        model.load_state_dict(state["model"])

    for number, name in enumerate(model.stages):
        if number < state["stage"]:
            continue
        _stage(session, number, name, state)
        state = {"stage": number + 1, "epoch": 0, "history": state["history"]}
        _save(fabric, session.last, {**state, "model": model.state_dict()})
    if writer:
        writer.close()
    return sum(value for _, _, key, value in state["history"] if key == "seconds")


def laid_out(model: AnomalyModel, config: RunConfig, fabric: Fabric) -> Any:
    """The model as Fabric trains it, laid out and compiled as the config says."""
    if config.loop.channels_last and len(config.image_size) == 2:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.loop.compile:
        # in place, so that names of weights and the losses stay as they are
        for network in model.children():
            network.compile()
    return fabric.setup_module(model)


def _stage(session: Session, number: int, name: str, state: dict[str, Any]) -> None:
    """One stage: epochs until `max_epochs`, or no better validation loss for `patience` epochs.

    Then the model has the best weights, or the last ones where the config says so.
    """
    model = session.model
    fabric = session.fabric
    stage = session.config.stages[name]
    steps = stage_steps(session, name, state)
    progress = {"best": state.get("best", float("inf")), "bad": state.get("bad", 0)}
    batches, checks = _batches(session, number, name)
    if steps.updates and stage.max_epochs == 0 and "model" not in state:
        _save(fabric, session.best(name), {"model": model.state_dict()})

    for epoch in range(state["epoch"], stage.max_epochs if steps.updates else 0):
        if progress["bad"] >= stage.patience:
            break
        started = time.perf_counter()
        logged = train_epoch(session, epoch, name, steps, batches)
        validated = validation_losses(session.module, steps.updates, checks, fabric)
        logged |= {f"val_{key}": value for key, value in validated.items()}
        if not math.isfinite(logged["val_loss"]):
            raise TrainingError(
                f"{name}, epoch {epoch + 1}: the validation loss is {logged['val_loss']}; "
                f"lower stages.{name}.lr."
            )

        for plateau in steps.plateaus:
            plateau.step(logged["val_loss"])
        improved = logged["val_loss"] < progress["best"]
        progress = {
            "best": min(progress["best"], logged["val_loss"]),
            "bad": 0 if improved else progress["bad"] + 1,
        }
        rate = steps.optimizers[0].param_groups[0]["lr"]
        logged |= {"lr": rate, "seconds": time.perf_counter() - started}
        state["history"] += [(name, epoch, key, value) for key, value in logged.items()]

        if improved:
            _save(fabric, session.best(name), {"model": model.state_dict()})
        reached = {"stage": number, "epoch": epoch + 1, "history": state["history"]}
        _save(fabric, session.last, _checkpoint(session, steps, reached | progress))
        if session.writer is not None:
            _report(session, name, epoch, logged, state["history"])

    if session.best(name).is_file() and stage.keep == "best":
        best = torch.load(session.best(name), map_location=fabric.device, weights_only=True)
        model.load_state_dict(best["model"])


def stage_steps(session: Session, name: str, state: dict[str, Any]) -> Steps:
    """The optimiser steps of a stage, as a checkpoint left them."""
    stage = session.config.stages[name]
    updates = session.model.updates(name)
    for update in updates:
        session.module.mark_forward_method(update.loss.__name__)
    optimizers = [make_optimizer(update, stage) for update in updates]
    wrapped = [session.fabric.setup_optimizers(optimizer) for optimizer in optimizers]
    plateaus = []
    for optimizer in optimizers:
        plateaus.append(
            torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=stage.lr_factor, patience=stage.lr_patience
            )
        )
    for stored, optimizer in zip(state.get("optimizers", []), optimizers, strict=False):
        optimizer.load_state_dict(stored)
    for stored, plateau in zip(state.get("plateaus", []), plateaus, strict=False):
        plateau.load_state_dict(stored)
    return Steps(updates, optimizers, wrapped, plateaus)


def _batches(session: Session, number: int, name: str) -> tuple[Batches, Batches]:
    """Training and validation batches of a stage, this process's share of them."""
    loop = session.config.loop
    share = {"rank": session.fabric.global_rank, "world": session.fabric.world_size}
    per_epoch = session.config.stages[name].steps_per_epoch
    training = Batches(session.train, loop, shuffle=True, stream=number, steps=per_epoch, **share)
    return training, Batches(session.val, loop, shuffle=False, stream=1000 + number, **share)


def _checkpoint(session: Session, steps: Steps, reached: dict[str, Any]) -> dict[str, Any]:
    return {
        **reached,
        "model": session.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in steps.optimizers],
        "plateaus": [plateau.state_dict() for plateau in steps.plateaus],
    }


def train_epoch(
    session: Session, epoch: int, name: str, steps: Steps, batches: Batches
) -> dict[str, float]:
    """One epoch of a stage: mean losses."""
    config = session.config
    fabric = session.fabric
    session.module.train()
    sums: dict[str, torch.Tensor] = {}
    bar = tqdm(
        batches.epoch(epoch),
        total=batches.length(),
        desc=f"{name} {epoch + 1}/{config.stages[name].max_epochs}",
        disable=not fabric.is_global_zero,
        leave=False,
        mininterval=1.0,
    )
    for step, batch in enumerate(bar):
        batch = fabric.to_device(batch)
        if config.loop.channels_last and batch["image"].dim() == 4:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        seed_step(config, name, epoch, step)  # the same after a resume
        for update, optimizer in zip(steps.updates, steps.wrapped, strict=True):
            if step % update.every:
                continue
            losses = _take_step(session, update, optimizer, batch)
            for key, value in losses.items():
                one = torch.ones((), device=value.device)
                total = torch.stack([value.detach().float(), one])
                name_of = _key(update, steps.updates, key)
                sums.setdefault(name_of, torch.zeros(2, device=value.device)).add_(total)
    return _means(sums, fabric)


def _take_step(session: Session, update: Update, optimizer: Any, batch: Batch) -> Losses:
    """One optimiser step: the losses of a batch, their gradient, the move."""
    fabric = session.fabric
    module = session.module
    freeze_others(module, update)
    if session.config.wrm:
        # by the bare model: the wrapper of several processes awaits a backward pass of every call
        with fabric.autocast():
            batch = worst_nearby(
                session.model, update.loss, batch, session.config.wrm, fabric.all_reduce
            )
    with fabric.autocast():  # a marked method passes by the wrapper's own autocast on one device
        losses: Losses = getattr(module, update.loss.__name__)(batch)
    optimizer.zero_grad()
    fabric.backward(losses["loss"])
    if session.config.loop.gradient_clip:
        fabric.clip_gradients(module, optimizer, max_norm=session.config.loop.gradient_clip)
    optimizer.step()
    return losses


@torch.no_grad()
def validation_losses(
    module: Any, updates: list[Update], batches: Batches, fabric: Fabric
) -> dict[str, float]:
    """Mean losses over the validation slices in eval mode; `loss` is their sum over the updates."""
    module.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in batches.epoch(0):
        n = float(len(batch["image"]))
        if n == 0:
            continue
        batch = fabric.to_device(batch)
        for update in updates:
            with fabric.autocast():
                losses = getattr(module, update.loss.__name__)(batch)
            for key, value in losses.items():
                weighted = torch.stack([value.float() * n, torch.tensor(n, device=value.device)])
                sums[_key(update, updates, key)] = (
                    sums.get(_key(update, updates, key), torch.zeros_like(weighted)) + weighted
                )
    means = _means(sums, fabric)
    return means | {"loss": sum(means[_key(u, updates, "loss")] for u in updates)}


def _key(update: Update, updates: list[Update], key: str) -> str:
    return key if len(updates) == 1 else f"{update.name}_{key}"


def _means(sums: dict[str, torch.Tensor], fabric: Fabric) -> dict[str, float]:
    totals = {key: fabric.all_reduce(value, reduce_op="sum") for key, value in sorted(sums.items())}
    return {key: float(total[0] / total[1]) for key, total in totals.items()}


def make_optimizer(update: Update, settings: Stage) -> torch.optim.Optimizer:
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            list(update.parameters), lr=settings.lr, weight_decay=settings.weight_decay
        )
    return torch.optim.Adam(
        list(update.parameters),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


def tiles(rows: list[torch.Tensor]) -> torch.Tensor:
    """Slices (B, 1, H, W), or the middle ones of volumes, side by side and front upwards.

    One row per tensor: (rows * W, B * H) in [0, 1].
    """
    rows = [r if r.dim() == 4 else r[..., r.shape[-1] // 2] for r in rows]
    return torch.cat([torch.cat(list(r[:, 0].mT.flip(1)), dim=1) for r in rows]).clamp(0, 1)


def seed_step(config: RunConfig, stage: str, epoch: int, step: int) -> None:
    """Let dropout and sampling be the same in every run of a step."""
    torch.manual_seed(zlib.crc32(f"{config.loop.seed} {stage} {epoch} {step}".encode()))


def freeze_others(module: Any, update: Update) -> None:
    """Let an update's parameters alone have gradients."""
    moving = {id(p) for p in update.parameters}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in moving)


def _resume(path: Path, fabric: Fabric) -> dict[str, Any]:
    if not path.is_file():
        return {"stage": 0, "epoch": 0, "history": []}
    state = torch.load(path, map_location=fabric.device, weights_only=True)
    log.info("resuming from %s (stage %d, epoch %d)", path, state["stage"], state["epoch"])
    return state


def _save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint from the first process: temporary name, then rename."""
    if fabric.is_global_zero:
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        except RuntimeError as error:  # torch reports a full disk as a RuntimeError
            raise OSError(
                f"{path}: could not be written ({str(error).splitlines()[0]}); "
                "free some space and run again."
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
    fabric.barrier()


def _writer(run_dir: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / "tensorboard"))


def _report(
    session: Session, stage: str, epoch: int, logged: dict[str, float], history: list[tuple]
) -> None:
    """Epoch to metrics.csv and TensorBoard, with pictures of validation slices or volumes.

    Pictures show input, reconstruction and map.
    """
    assert session.writer is not None
    model = session.model
    for key, value in logged.items():
        session.writer.add_scalar(f"{stage}/{key}", value, epoch)
    lines = ["stage,epoch,name,value", *(f"{s},{e},{k},{v:.8g}" for s, e, k, v in history)]
    write_atomic(session.run_dir / "metrics.csv", "\n".join(lines) + "\n")

    val = session.val
    places = torch.linspace(0.2 * len(val), 0.8 * (len(val) - 1), 4)
    shown = val.batch([(int(i), 0) for i in places])
    image, mask, z = (shown[key].to(session.fabric.device) for key in ("image", "mask", "z"))
    model.eval()
    with torch.no_grad():
        rows = [image[:, :1]]
        with suppress(NotImplementedError):  # a model without reconstruction shows its map alone
            rows.append(model.reconstruct(image)[:, :1] * mask)
        rows.append(model.anomaly_map(image, mask, z))
        drawn = model.draw(len(image))
    title = f"{stage}/input, reconstruction, map"
    session.writer.add_image(title, tiles(rows), epoch, dataformats="HW")
    if drawn is not None:
        session.writer.add_image(f"{stage}/samples", tiles([drawn[:, :1]]), epoch, dataformats="HW")
    log.info(
        "%s epoch %d: train %.5g, validation %.5g, %.0f s",
        stage,
        epoch + 1,
        _training_loss(logged),
        logged["val_loss"],
        logged["seconds"],
    )


def _training_loss(logged: dict[str, float]) -> float:
    """Sum of the training losses of all updates."""
    total = 0.0
    for key, value in logged.items():
        if not key.startswith("val_") and (key == "loss" or key.endswith("_loss")):
            total += value
    return total
