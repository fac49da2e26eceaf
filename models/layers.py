"""Blocks and draws that models share; nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = TypeVar("Size", bound=tuple[int, ...])


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes, on any device.

    Alone it is torch's own; with several processes the batch statistics are summed over them (torch's SyncBatchNorm needs
    a GPU), so that two processes learn what one would.
    """

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        others = [0, *range(2, x.dim())]
        n = wide.new_full((1,), wide.numel() / wide.shape[1])
        total = all_reduce(torch.cat([n, wide.sum(others), wide.square().sum(others)]))
        n, mean, square = total[0], total[1 : 1 + x.shape[1]] / total[0], total[1 + x.shape[1] :] / total[0]
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        along = (-1, *[1] * (x.dim() - 2))
        return (wide * scale.view(along) + (self.bias - mean * scale).view(along)).to(x.dtype)


class BatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """Synchronised batch normalisation of slices (B, C, H, W)."""


class BatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """Synchronised batch normalisation of volumes (B, C, X, Y, Z)."""


Layer = Callable[..., nn.Module]
CONVOLUTION: dict[int, Layer] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial dimensions
TRANSPOSED: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Layer] = {2: BatchNorm2d, 3: BatchNorm3d}
DROPOUT: dict[int, Layer] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def down(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Halve each of `dims` sides: convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(CONVOLUTION[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def up(inputs: int, outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """Double each of `dims` sides: transposed convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(TRANSPOSED[dims](inputs, outputs, 4, 2, 1, bias=False), outputs, dropout, dims)


def _block(convolution: nn.Module, outputs: int, dropout: float, dims: int) -> nn.Sequential:
    return nn.Sequential(convolution, NORM[dims](outputs), nn.LeakyReLU(0.1), *([DROPOUT[dims](dropout)] if dropout else []))


def encoder(inputs: int, channels: Sequence[int], dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """One `down` block per entry of `channels`."""
    return nn.Sequential(*[down(a, b, dropout, dims) for a, b in itertools.pairwise([inputs, *channels])])


def decoder(inputs: int, channels: Sequence[int], outputs: int, dropout: float = 0.0, dims: int = 2) -> nn.Sequential:
    """The mirror of `encoder`: `up` blocks back through `channels`, and a last linear one to `outputs` channels."""
    blocks = [up(a, b, dropout, dims) for a, b in itertools.pairwise([inputs, *reversed(channels[:-1])])]
    return nn.Sequential(*blocks, TRANSPOSED[dims](channels[0], outputs, 4, 2, 1))


def coarse_size(image_size: Size, channels: Sequence[int], dims: int = 2) -> Size:
    """The `dims` sides of what an `encoder` leaves; ValueError for another number of them, or where halvings do not come out even."""
    if len(image_size) != dims:
        raise ValueError(f"image_size {tuple(image_size)} has {len(image_size)} numbers, expected {dims}")
    factor = 2 ** len(channels)
    if any(side % factor for side in image_size):
        raise ValueError(f"image_size {tuple(image_size)} must be divisible by {factor}, for {len(channels)} entries of channels")
    return cast(Size, tuple(side // factor for side in image_size))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over all but the batch, (B,) (Kingma & Welling 2014)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared difference summed over all but the batch, (B,)."""
    return F.mse_loss(x, y, reduction="none").flatten(1).sum(1)


def dense_coder(
    inputs: int, channels: Sequence[int], latent: int, image_size: tuple[int, ...], dims: int = 2
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder to 2 * latent numbers (mean and log-variance) and its mirror: one convolution covers what the blocks leave of the image."""
    size = coarse_size(image_size, channels, dims)
    inwards = nn.Sequential(*encoder(inputs, channels, dims=dims), CONVOLUTION[dims](channels[-1], 2 * latent, size))
    outwards = TRANSPOSED[dims](latent, channels[-1], size)
    return inwards, nn.Sequential(outwards, *decoder(channels[-1], channels, inputs, dims=dims))


def gaussian(code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, the halves of a code (B, 2 * latent, ...); the log-variance is held to +-20."""
    mean, log_variance = code.chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 20)


def negative_elbo(
    x: Tensor, mean: Tensor, log_variance: Tensor, decode: Callable[[Tensor], Tensor], seeds: Tensor | None, sample: bool, beta: float
) -> dict[str, Tensor]:
    """`loss` of a VAE = squared error + beta * KL, each summed per slice, averaged over the batch and divided by the number of pixels.

    With `sample` the latent is drawn, each slice's from its own seed; else its mean is decoded. `squared_error` and `kl` are logged.
    """
    noise = randn(mean, seeds) if sample else 0
    pixels = x[0].numel()
    error = squared_error(decode(mean + noise * (0.5 * log_variance).exp()), x).mean() / pixels
    kl = kl_divergence(mean, log_variance).mean() / pixels
    return {"loss": error + beta * kl, "squared_error": error, "kl": kl}


def generator(seed: Tensor | int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one sample's seed; different streams of one seed are independent."""
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + stream) % (1 << 62))


def randn(like: Tensor, seeds: Tensor | None, stream: int = 0) -> Tensor:
    """Standard normal numbers of the shape of `like` (B, ...), each sample from its own seed (B,); unseeded where None."""
    if seeds is None:
        return torch.randn_like(like)
    rows = [torch.randn(like.shape[1:], generator=generator(s, stream)) for s in seeds.tolist()]
    return torch.stack(rows).to(like)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, C, H, W) with `sigma` in pixels, cut at 3 sigma, borders repeated; float32; 0 changes nothing."""
    if sigma == 0:
        return x
    x, radius = x.float(), max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    with torch.autocast(x.device.type, enabled=False):
        x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
        return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.mT, groups=x.shape[1])


def blur_inside(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """`gaussian_blur` that takes nothing from outside the mask (B, 1, H, W): smoothed values over smoothed mask; 0 outside."""
    if sigma == 0:
        return x * mask
    return gaussian_blur(x * mask, sigma) / gaussian_blur(mask, sigma).clamp(min=1e-6) * mask


def robust_z(values: Tensor) -> Tensor:
    """Distance of each value (N,) from the median, in units of 1.4826 times the median absolute deviation, at least 0.001."""
    apart = values - values.median()
    return apart / (1.4826 * apart.abs().median()).clamp(min=1e-3)


def tail_of(signed: Tensor, tail: str) -> Tensor:
    """How far a signed distance lies on the "bright" (positive), "dark" or "both" sides; not negative."""
    return {"bright": signed.clamp(min=0), "dark": (-signed).clamp(min=0), "both": signed.abs()}[tail]


def each_brain(x: Tensor, mask: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function (N,) -> (N,) to the brain pixels of every slice and channel (B, C, H, W) on its own; 0 outside."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        inside = mask[i, 0] > 0
        if inside.any():
            for channel in range(x.shape[1]):
                out[i, channel][inside] = function(x[i, channel][inside])
    return out


def input_gradient(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """d function(x) / dx, of the shape of x; `function` gives a scalar. Works inside `torch.inference_mode` too."""
    with torch.inference_mode(False), torch.enable_grad():
        y = x.detach().clone().requires_grad_()
        return torch.autograd.grad(function(y), y)[0]


def mean_inside(batches: Iterable[dict[str, Tensor]], function: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Mean over all brain pixels of a map (B, 1, H, W) of the slices, a positive scalar."""
    total, count = 0.0, 0.0
    for batch in batches:
        image, mask = batch["image"].to(device), batch["mask"].to(device)
        total += float((function(image) * mask).sum())
        count += float(mask.sum())
    return torch.tensor(max(total / max(count, 1.0), 1e-12), device=device)
