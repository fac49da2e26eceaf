"""Smoothing, standardising and averaging of images and maps inside the brain."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Smooth (B, C, H, W) by a Gaussian of `sigma` pixels; 0 changes nothing.

    The kernel is cut at 3 sigma, borders are repeated, and the result is float32.
    """
    if sigma == 0:
        return x
    x = x.float()
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)

    with torch.autocast(x.device.type, enabled=False):
        wide = F.pad(x, (radius, radius, 0, 0), mode="replicate")
        x = F.conv2d(wide, kernel, groups=x.shape[1])
        tall = F.pad(x, (0, 0, radius, radius), mode="replicate")
        return F.conv2d(tall, kernel.transpose(2, 3), groups=x.shape[1])


def blur_inside(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Smooth as `gaussian_blur`, but take nothing from outside the mask (B, 1, H, W); 0 outside.

    Smoothed values are divided by the smoothed mask.
    """
    if sigma == 0:
        return x * mask
    return gaussian_blur(x * mask, sigma) / gaussian_blur(mask, sigma).clamp(min=1e-6) * mask


def robust_z(values: Tensor) -> Tensor:
    """Return the distance of each value (N,) from the median, in robust standard deviations.

    One such deviation is 1.4826 times the median absolute deviation, which is the standard
    deviation of a normal distribution; at least 0.001.
    """
    apart = values - values.median()
    return apart / (1.4826 * apart.abs().median()).clamp(min=1e-3)


def tail_of(signed: Tensor, tail: str) -> Tensor:
    """Return how far a signed distance lies on the "bright" (positive), "dark" or "both" sides."""
    sides = {"bright": signed.clamp(min=0), "dark": (-signed).clamp(min=0), "both": signed.abs()}
    return sides[tail]


def each_brain(x: Tensor, mask: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function (N,) -> (N,) to the brain pixels of every slice and channel; 0 outside.

    Args: x (B, C, H, W); mask (B, 1, H, W). Returns (B, C, H, W).
    """
    out = torch.zeros_like(x)
    for i in range(len(x)):
        inside = mask[i, 0] > 0
        if inside.any():
            for channel in range(x.shape[1]):
                out[i, channel][inside] = function(x[i, channel][inside])
    return out


def mean_inside(
    batches: Iterable[dict[str, Tensor]], function: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """Return the mean over all brain pixels of a map (B, 1, H, W) of the slices, above 0."""
    total = 0.0
    count = 0.0
    for batch in batches:
        image = batch["image"].to(device)
        mask = batch["mask"].to(device)
        total += float((function(image) * mask).sum())
        count += float(mask.sum())
    return torch.tensor(max(total / max(count, 1.0), 1e-12), device=device)
