"""Random numbers that follow from each sample's own seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def generator(seed: Tensor | int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator for one sample's seed; different streams of a seed are independent."""
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + stream) % (1 << 62))


def randn(like: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Draw standard normal numbers of the shape of `like` (B, ...).

    Each sample is drawn from its own seed (B,); unseeded where `seeds` is None.
    """
    return torch.randn_like(like) if seeds is None else _each(torch.randn, like, seeds, stream)


def rand(like: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Draw uniform numbers in [0, 1) of the shape of `like` (B, ...).

    Each sample is drawn from its own seed (B,); unseeded where `seeds` is None.
    """
    return torch.rand_like(like) if seeds is None else _each(torch.rand, like, seeds, stream)


def draw_latent(
    mean: Tensor, log_variance: Tensor, seeds: Tensor | None, stream: int = 0
) -> Tensor:
    """Draw a latent of N(mean, exp(log_variance)), each slice's from its own seed.

    Kingma & Welling 2014.
    """
    return mean + randn(mean, seeds, stream) * (0.5 * log_variance).exp()


def _each(draw: Callable[..., Tensor], like: Tensor, seeds: Tensor, stream: int) -> Tensor:
    """Stack what `draw` gives for each sample's generator."""
    samples = [draw(like.shape[1:], generator=generator(s, stream)) for s in seeds.tolist()]
    return torch.stack(samples).to(like)
