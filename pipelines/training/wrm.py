"""Training on the worst image near each one (WRM, Sinha et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Batch, Losses
from pipelines.config import ConfigError
from pipelines.detect.config import Wrm

NO_SLOPE = (
    "wrm moves images up the loss, and this model's loss has no slope in its images; leave wrm out."
)


def as_it_is(value: Tensor) -> Tensor:
    """The mean over one process."""
    return value


def worst_nearby(
    model: nn.Module,
    loss: Callable[[Batch], Losses],
    batch: Batch,
    wrm: Wrm,
    shared: Callable[[Tensor], Any] = as_it_is,
) -> Batch:
    """The batch with its images moved up the loss less gamma times their mean squared move.

    Of the images (B, C, ...) on the way those of the highest objective are taken, the given ones
    among them: the objective never falls, and with an infinite gamma the images stay as they are.
    They stay in [0, 1], 0 outside the brain. Random numbers and the model's buffers, such as the
    statistics of batch norms, are left as they were. `shared` is the mean over processes, which
    agree on the step that they take. ConfigError for a loss without slope in the images.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    start = batch["image"]
    image = start
    best = start
    highest = -torch.inf
    for step in range(wrm.steps + 1):
        image = image.detach().requires_grad_()
        value = _loss_at(loss, batch, image)
        objective = float(shared(value.detach() - _penalty(image, start, wrm.gamma)))
        if objective > highest:
            highest = objective
            best = image.detach()
        if step < wrm.steps:
            # gradient ascent by 1 / (2 gamma), the curvature of the penalty: the old move drops out
            move = _slope(value, image) * (image.numel() / (2 * wrm.gamma))
            image = (start + move).clamp(0, 1) * batch["mask"]

    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return batch | {"image": best}


def _loss_at(loss: Callable[[Batch], Losses], batch: Batch, image: Tensor) -> Tensor:
    """The loss of other images, by the random numbers that the next call draws too."""
    devices = [image.device] if image.is_cuda else []
    with torch.random.fork_rng(devices):
        try:
            return loss(batch | {"image": image})["loss"]
        except RuntimeError as error:
            if "numpy() on Tensor that requires grad" in str(error):
                raise ConfigError(NO_SLOPE) from None
            raise


def _slope(value: Tensor, image: Tensor) -> Tensor:
    """The gradient of a loss in the images."""
    (slope,) = torch.autograd.grad(value, image, allow_unused=True)
    if slope is None:
        raise ConfigError(NO_SLOPE)
    return slope


def _penalty(image: Tensor, start: Tensor, gamma: float) -> float:
    """Gamma times the mean squared move; 0 for images that did not move, whatever gamma."""
    apart = float((image - start).square().mean())
    return gamma * apart if apart else 0.0
