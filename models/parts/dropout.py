"""Uncertainty from passes with dropout kept on (Gal & Ghahramani 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.parts.randomness import generator

Hook = Callable[[nn.Module, object, Tensor], Tensor]


def dropout_passes(network: nn.Module, function: Callable[[], Tensor], passes: int) -> Tensor:
    """Return results (passes, ...) of `function()`, with the channel dropout of `network` on.

    The network is in evaluation mode. Each pass drops other channels. They are the same at every
    call and for every slice of a batch. Gal & Ghahramani 2016.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Dropout2d)]
    results = []
    for number in range(passes):
        hooks = [
            layer.register_forward_hook(_drop(layer.p, number, i)) for i, layer in enumerate(layers)
        ]
        try:
            results.append(function())
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(results)


def passes_map(x: Tensor, passes: Tensor, kind: str) -> Tensor:
    """Return the map (B, 1, H, W) of reconstructions (passes, B, C, H, W) of x.

    kind: "residual" is the mean over passes, "uncertainty" the standard deviation, "normalised"
    their ratio. The ratio adds a hundredth of the intensity range to the deviation, so that
    pixels on which all passes agree do not divide by 0.
    """
    passes = passes.float()
    residual = (x - passes).abs().mean(0)
    spread = passes.std(0, unbiased=False)
    values = {
        "residual": residual,
        "uncertainty": spread,
        "normalised": residual / (spread + 0.01),
    }[kind]
    return values.mean(1, keepdim=True)


def _drop(rate: float, seed: int, stream: int) -> Hook:
    """Return a hook that sets seeded channels of a layer's output to 0 and scales the others."""

    def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
        passing = torch.rand(out.shape[1], 1, 1, generator=generator(seed, stream)) >= rate
        return out * passing.to(out) / (1 - rate)

    return hook
