"""What healthy scans of another scanner change in a trained network: batch norms, last layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Update
from models.parts.healthy_map import Referenced
from pipelines.cohort.cases import Case
from pipelines.detect.config import Augmentation, RunConfig, Stage
from pipelines.detect.detector import Detector
from pipelines.detect.run import Run
from pipelines.training.data import Batches, SliceDataset
from pipelines.training.fit import open_store
from pipelines.training.loop import freeze_others, make_optimizer, seed_step
from preprocessing.scans import InputError

Changed = tuple[Detector, dict[str, Any]]
"""An adapted detector, and what run.json says of it."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SHARE = 0.1  # of the trained weights, at most, are last layers; the last one always is
EPOCHS = 5  # of finetune
RATE = 0.1  # of the learning rate that the run was trained with


def adabn(run: Run, cases: Sequence[Case], source: Path | None = None) -> Changed:
    """Give every batch norm the mean and variance of what reaches it in the new scans' slices.

    Layer by layer in the order of the network: what reaches a layer has passed the new statistics
    of those before it. No weight changes (AdaBN, Li et al. 2018).
    """
    model = copy.deepcopy(run.model).eval()
    dataset = slices_of(run, cases)
    batches = Batches(dataset, run.config.loop, shuffle=False, stream=0)
    show = shower(model, run.detector.device)
    layers = in_order(batch_norms(model), lambda: show(next(batches.epoch(0))))
    if not layers:
        raise InputError(
            f"{run.folder}: no batch norm of '{run.config.name}' has a part in its map, so adabn "
            "has nothing to change; take HOW=harmonise."
        )
    for layer in layers:
        moments = Moments()
        handle = layer.register_forward_pre_hook(moments.add)
        for batch in batches.epoch(0):
            show(batch)
        handle.remove()
        moments.give(layer)
    return replace(run.detector, model=model), {"batch_norms": len(layers), "slices": len(dataset)}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that were trained: not those of a frozen network for photographs."""
    found: list[nn.Module] = []
    for module in model.modules():
        if not isinstance(module, BATCH_NORMS) or module.running_mean is None:
            continue
        if module.weight is None or module.weight.requires_grad:
            found.append(module)
    return found


class Moments:
    """Mean and variance of each channel of what reaches a batch norm, over all batches."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros(())
        self.square = torch.zeros(())

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in a batch (B, C, ...)."""
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.total = self.total.to(values) + values.sum(1)
        self.square = self.square.to(values) + values.square().sum(1)

    def give(self, layer: nn.Module) -> None:
        """Set the running mean and (unbiased) variance of a batch norm."""
        mean = self.total / self.count
        spread = (self.square - self.count * mean.square()).clamp(min=0)
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(spread / max(self.count - 1, 1))


def finetune(run: Run, cases: Sequence[Case], source: Path | None = None) -> Changed:
    """Train the last layers a few epochs more, on the new scans, by the model's own losses.

    These are the last modules that a map passes through, with at most SHARE of the trained weights.
    Everything else stays, the statistics of batch norms too.
    """
    model = copy.deepcopy(run.model)
    part = trained_part(run, model)
    stage = part.stages[-1]
    batches = Batches(
        slices_of(run, cases, run.config.augmentation), run.config.loop, shuffle=True, stream=0
    )
    layers = last_layers(part, part.updates(stage), run, batches)
    updates = narrowed(part.updates(stage), layers.values())
    gentle = gently(run, stage)
    optimizers = [make_optimizer(update, gentle) for update in updates]

    awake(part)
    for epoch in range(EPOCHS):
        for number, batch in enumerate(batches.epoch(epoch)):
            seed_step(run.config, "finetune", epoch, number)
            given = on(batch, run.detector.device)
            for update, optimizer in zip(updates, optimizers, strict=True):
                if number % update.every == 0:
                    freeze_others(part, update)
                    descend(optimizer, update.loss(given)["loss"], run.config)
    model.eval()
    details = {"layers": list(layers), "epochs": EPOCHS, "lr": gentle.lr}
    return replace(run.detector, model=model), details


def last_layers(
    part: AnomalyModel, updates: Sequence[Update], run: Run, batches: Batches
) -> dict[str, nn.Module]:
    """The last modules with trained weights that a map passes through, by name, the last first.

    As many as hold at most SHARE of the trained weights; the last one always.
    """
    trained: dict[int, int] = {}
    for update in updates:
        trained |= {id(p): p.numel() for p in update.parameters}
    names = {module: name for name, module in part.named_modules()}
    layers = [module for module in names if not trained.keys().isdisjoint(ids_of([module]))]
    show = shower(part, run.detector.device)
    order = in_order(layers, lambda: show(next(batches.epoch(0))))
    if not order:
        raise InputError(
            f"{run.folder}: none of the trained layers of '{run.config.name}' has a part in its "
            "map, so finetune has nothing to change; take HOW=harmonise."
        )
    kept: dict[str, nn.Module] = {}
    left = SHARE * sum(trained.values())
    for layer in reversed(order):
        left -= sum(p.numel() for p in layer.parameters(recurse=False))
        if kept and left < 0:
            break
        kept[names[layer]] = layer
    return kept


def ids_of(layers: Iterable[nn.Module]) -> set[int]:
    """What parameters of their own some modules have, by id."""
    own: set[int] = set()
    for layer in layers:
        own |= {id(p) for p in layer.parameters(recurse=False)}
    return own


def narrowed(updates: Sequence[Update], layers: Iterable[nn.Module]) -> list[Update]:
    """The updates with the parameters of some layers alone; without those that then have none."""
    own = ids_of(layers)
    found: list[Update] = []
    for update in updates:
        parameters = [p for p in update.parameters if id(p) in own]
        if parameters:
            found.append(replace(update, parameters=parameters))
    return found


def trained_part(run: Run, model: AnomalyModel) -> AnomalyModel:
    """The network of a run that training moves, without the comparison with healthy maps."""
    part = model.model if isinstance(model, Referenced) else model
    if not part.stages or part.supervised:
        raise InputError(
            f"{run.folder}: '{run.config.name}' is not one network that learns from healthy scans "
            "by gradient; take HOW=harmonise."
        )
    return part


def slices_of(
    run: Run, cases: Sequence[Case], augmentation: Augmentation | None = None
) -> SliceDataset:
    """The slices or volumes of cases of one cohort, as the run learns from them."""
    data = cases[0].sidecar.parents[1]  # sidecars lie in <data>/<subject>
    store, shape = open_store(run.config, data, cases[0], run.recipe)
    ids = {case.id for case in cases}
    return SliceDataset(store, ids, run.config.image_size, augmentation, **shape)


def shower(model: AnomalyModel, device: torch.device) -> Callable[[Batch], None]:
    """A function that makes the maps of a batch, for what passes through the network meanwhile."""

    def show(batch: Batch) -> None:
        with torch.no_grad():
            model.anomaly_map(*(batch[key].to(device) for key in ("image", "mask", "z")))

    return show


def in_order(modules: Sequence[nn.Module], run: Callable[[], None]) -> list[nn.Module]:
    """Those of the modules that a run passes through, in the order of their first call."""
    order: dict[nn.Module, None] = {}
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda m, _: order.setdefault(m)))
    run()
    for handle in handles:
        handle.remove()
    return list(order)


def gently(run: Run, stage: str) -> Stage:
    """A stage's settings with a small learning rate."""
    settings = run.config.stages[stage]
    return settings.model_copy(update={"lr": settings.lr * RATE})


def awake(model: nn.Module) -> None:
    """Put a network in training mode, but for its batch norms: few scans do not move these."""
    model.train()
    for layer in batch_norms(model):
        layer.eval()


def on(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {key: values.to(device) for key, values in batch.items()}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, config: RunConfig) -> None:
    """One step of an optimiser down a loss, its gradient clipped as in training."""
    optimizer.zero_grad()
    loss.backward()
    if config.loop.gradient_clip:
        moving: list[nn.Parameter] = []
        for group in optimizer.param_groups:
            moving += group["params"]
        nn.utils.clip_grad_norm_(moving, config.loop.gradient_clip)
    optimizer.step()
