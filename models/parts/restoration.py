"""Restoration of a slice by ascent on its posterior, for models with an evidence lower bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLIP = 100.0  # gradients are held to +- this


def total_variation(d: Tensor, smooth: float = 0.01) -> Tensor:
    """Return the sum of sqrt(s^2 + smooth^2) - smooth over the steps s of (B, C, H, W), (B,).

    Steps are the differences of neighbours along both axes. `smooth` 0 gives the sum of |s|. A
    `smooth` above 0 has a slope at 0, so that the ascent can leave its start, where every step
    is 0.
    """
    steps = torch.cat([d.diff(dim=-1).flatten(1), d.diff(dim=-2).flatten(1)], 1)
    if smooth == 0:
        return steps.abs().sum(1)
    return ((steps.square() + smooth**2).sqrt() - smooth).sum(1)


def map_restoration(
    x: Tensor,
    mask: Tensor,
    elbo: Callable[[Tensor], Tensor],
    rho: float,
    schedule: Sequence[tuple[int, float]],
) -> Tensor:
    """Climb from x to the slice that the model finds most likely near it: maximum a posteriori.

    Step: y <- y + size * clip(d [elbo(y) - rho * TV(x - y)] / dy, +-100) * mask. A step that would
    lower a slice's objective is not taken. That slice's steps are halved from then on. So the
    objective never falls, and with a growing rho the result tends to x. You et al. 2019, Chen et
    al. 2020.

    Args:
        x: slices (B, C, H, W).
        mask: brain (B, 1, H, W); nothing changes outside.
        elbo: evidence lower bound of each slice, (B,). The model must be in evaluation mode, so
            that a slice does not depend on the others of its batch.
        rho: weight of the total variation of what is changed. Healthy slices change less the
            larger it is, since no step lowers the objective. The papers choose the rho of a grid
            that changes healthy slices least: here that would be the grid's largest.
        schedule: pairs of a number of steps and their size; the paper has 100 of 5e-3 and 400 of
            2e-3.

    Returns (B, C, H, W), float32 for half precision. Works inside `torch.inference_mode`, and
    without autocast.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
    ):
        start = x.detach().clone()
        start = start.float() if start.dtype in (torch.float16, torch.bfloat16) else start
        inside = mask.detach().clone().to(start)

        def objective(y: Tensor) -> tuple[Tensor, Tensor]:
            """Return the objective of each slice (B,) and its slope (B, C, H, W)."""
            y = y.detach().requires_grad_()
            value = elbo(y) - rho * total_variation(start - y)
            slope = torch.autograd.grad(value.sum(), y)[0].clamp(-CLIP, CLIP) * inside
            return value.detach(), slope

        y = start
        best, slope = objective(start)
        share = torch.ones_like(start[:, :1, :1, :1])
        for count, size in schedule:
            for _ in range(count):
                tried = y + size * share * slope
                value, gradient = objective(tried)
                better = (value >= best)[:, None, None, None]

                y = torch.where(better, tried, y)
                slope = torch.where(better, gradient, slope)
                best = torch.maximum(value, best)
                share = torch.where(better, share, share / 2)
        return y
