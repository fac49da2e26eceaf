"""The training loop: one file, it knows no model."""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.base import AnomalyModel, Update
from pipelines.config import ConfigError
from pipelines.detect.config import RunConfig, Stage
from pipelines.training.data import Batches, SliceDataset
from preprocessing.files import write_atomic

log = logging.getLogger("norma")


class TrainingError(ConfigError):
    """Training cannot go on; the message says which setting to change."""


def fit(
    model: AnomalyModel,
    config: RunConfig,
    train: SliceDataset,
    val: SliceDataset,
    fabric: Fabric,
    run: Path,
) -> float:
    """Train every stage of a model, leave the best weights of the last one in it, and return the seconds of all epochs.

    All randomness follows from (seed, stage, epoch, sample), and a checkpoint is written after each epoch, so a run that
    was killed and started again ends with the weights of one that was not. Files: checkpoints/last.pt and
    checkpoints/best-<stage>.pt, metrics.csv, tensorboard/.
    """
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    module = laid_out(model, config, fabric)
    state = _resume(run / "checkpoints" / "last.pt", fabric)
    if "model" in state:  # even where every stage is done: what follows needs the weights
        model.load_state_dict(state["model"])
    writer = _writer(run) if fabric.is_global_zero else None
    for number, name in enumerate(model.stages):
        if number < state["stage"]:
            continue
        _stage(number, name, model, module, config, train, val, fabric, run, state, writer)
        state = {"stage": number + 1, "epoch": 0, "history": state["history"]}
        _save(fabric, run / "checkpoints" / "last.pt", {**state, "model": model.state_dict()})
    if writer:
        writer.close()
    return sum(value for _, _, key, value in state["history"] if key == "seconds")


def laid_out(model: AnomalyModel, config: RunConfig, fabric: Fabric) -> Any:
    """The model as Fabric trains it, laid out and compiled as the config says."""
    if config.loop.channels_last and len(config.image_size) == 2:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.loop.compile:
        for (
            network
        ) in model.children():  # in place, so that names of weights and the losses stay as they are
            network.compile()
    return fabric.setup_module(model)


def _stage(
    number: int,
    name: str,
    model: AnomalyModel,
    module: Any,
    config: RunConfig,
    train: SliceDataset,
    val: SliceDataset,
    fabric: Fabric,
    run: Path,
    state: dict[str, Any],
    writer: SummaryWriter | None,
) -> None:
    """One stage: epochs until `max_epochs` or no better validation loss for `patience` epochs; then the best weights."""
    settings, best_path = config.stages[name], run / "checkpoints" / f"best-{name}.pt"
    updates = model.updates(name)
    for update in updates:
        module.mark_forward_method(update.loss.__name__)
    optimizers = [make_optimizer(update, settings) for update in updates]
    steppers = [fabric.setup_optimizers(o) for o in optimizers]
    plateaus = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(
            o, factor=settings.lr_factor, patience=settings.lr_patience
        )
        for o in optimizers
    ]
    for kept, live in zip(state.get("optimizers", []), optimizers, strict=False):
        live.load_state_dict(kept)
    for kept, plateau in zip(state.get("plateaus", []), plateaus, strict=False):
        plateau.load_state_dict(kept)
    progress = {"best": state.get("best", float("inf")), "bad": state.get("bad", 0)}
    split = {"rank": fabric.global_rank, "world": fabric.world_size}
    batches = Batches(
        train, config.loop, shuffle=True, stream=number, steps=settings.steps_per_epoch, **split
    )
    checks = Batches(val, config.loop, shuffle=False, stream=1000 + number, **split)
    if updates and settings.max_epochs == 0 and "model" not in state:
        _save(fabric, best_path, {"model": model.state_dict()})
    for epoch in range(state["epoch"], settings.max_epochs if updates else 0):
        if progress["bad"] >= settings.patience:
            break
        started = time.perf_counter()
        logged = train_epoch(epoch, name, module, updates, steppers, batches, config, fabric)
        logged |= {
            f"val_{k}": v for k, v in validation_losses(module, updates, checks, fabric).items()
        }
        if not math.isfinite(logged["val_loss"]):
            raise TrainingError(
                f"{name}, epoch {epoch + 1}: the validation loss is {logged['val_loss']}; lower stages.{name}.lr."
            )
        for plateau in plateaus:
            plateau.step(logged["val_loss"])
        improved = logged["val_loss"] < progress["best"]
        progress = {
            "best": min(progress["best"], logged["val_loss"]),
            "bad": 0 if improved else progress["bad"] + 1,
        }
        logged |= {
            "lr": optimizers[0].param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
        }
        state["history"] += [(name, epoch, key, value) for key, value in logged.items()]
        if improved:
            _save(fabric, best_path, {"model": model.state_dict()})
        _save(
            fabric,
            run / "checkpoints" / "last.pt",
            {
                "stage": number,
                "epoch": epoch + 1,
                "history": state["history"],
                "model": model.state_dict(),
                **progress,
                "optimizers": [o.state_dict() for o in optimizers],
                "plateaus": [p.state_dict() for p in plateaus],
            },
        )
        if writer is not None:
            _report(writer, run, name, epoch, logged, state["history"], model, val, fabric)
    if best_path.is_file() and settings.keep == "best":
        model.load_state_dict(
            torch.load(best_path, map_location=fabric.device, weights_only=True)["model"]
        )


def train_epoch(
    epoch: int,
    name: str,
    module: Any,
    updates: list[Update],
    steppers: list[Any],
    batches: Batches,
    config: RunConfig,
    fabric: Fabric,
) -> dict[str, float]:
    module.train()
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
        torch.manual_seed(
            zlib.crc32(f"{config.loop.seed} {name} {epoch} {step}".encode())
        )  # dropout: the same after a resume
        for update, optimizer in zip(updates, steppers, strict=True):
            if step % update.every:
                continue
            _freeze_others(module, update)
            with (
                fabric.autocast()
            ):  # a marked method passes by the wrapper's own autocast on a single device
                losses = getattr(module, update.loss.__name__)(batch)
            optimizer.zero_grad()
            fabric.backward(losses["loss"])
            if config.loop.gradient_clip:
                fabric.clip_gradients(module, optimizer, max_norm=config.loop.gradient_clip)
            optimizer.step()
            for key, value in losses.items():
                sums.setdefault(
                    _key(update, updates, key), torch.zeros(2, device=value.device)
                ).add_(torch.stack([value.detach().float(), torch.ones((), device=value.device)]))
    return _means(sums, fabric)


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
    """Slices (B, 1, H, W), or the middle ones of volumes, side by side, one row per tensor, front upwards; (rows * W, B * H) in [0, 1]."""
    rows = [r if r.dim() == 4 else r[..., r.shape[-1] // 2] for r in rows]
    return torch.cat([torch.cat(list(r[:, 0].mT.flip(1)), dim=1) for r in rows]).clamp(0, 1)


def _freeze_others(module: Any, update: Update) -> None:
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
                f"{path}: could not be written ({str(error).splitlines()[0]}); free some space and run again."
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
    fabric.barrier()


def _writer(run: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))


def _report(
    writer: SummaryWriter,
    run: Path,
    stage: str,
    epoch: int,
    logged: dict[str, float],
    history: list[tuple],
    model: AnomalyModel,
    val: SliceDataset,
    fabric: Fabric,
) -> None:
    """Epoch to metrics.csv and TensorBoard, with pictures: validation slices or volumes, reconstruction, map."""
    for key, value in logged.items():
        writer.add_scalar(f"{stage}/{key}", value, epoch)
    lines = ["stage,epoch,name,value", *(f"{s},{e},{k},{v:.8g}" for s, e, k, v in history)]
    write_atomic(run / "metrics.csv", "\n".join(lines) + "\n")
    shown = val.batch(
        [(int(i), 0) for i in torch.linspace(0.2 * len(val), 0.8 * (len(val) - 1), 4)]
    )
    image, mask, z = (shown[k].to(fabric.device) for k in ("image", "mask", "z"))
    model.eval()
    with torch.no_grad():
        rows = [image[:, :1]]
        with suppress(NotImplementedError):  # a model without reconstruction shows its map alone
            rows.append(model.reconstruct(image)[:, :1] * mask)
        rows.append(model.anomaly_map(image, mask, z))
        made = model.draw(len(image))
    writer.add_image(f"{stage}/input, reconstruction, map", tiles(rows), epoch, dataformats="HW")
    if made is not None:
        writer.add_image(f"{stage}/samples", tiles([made[:, :1]]), epoch, dataformats="HW")
    log.info(
        "%s epoch %d: train %.5g, validation %.5g, %.0f s",
        stage,
        epoch + 1,
        sum(
            v
            for k, v in logged.items()
            if not k.startswith("val_") and (k == "loss" or k.endswith("_loss"))
        ),
        logged["val_loss"],
        logged["seconds"],
    )
