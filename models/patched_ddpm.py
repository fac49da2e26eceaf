"""Patched diffusion model: each patch is noised and predicted from the rest of its slice.

Behrendt et al. 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.randomness import generator

# Distance in pixels of the knots of each octave of a noise.
PERIODS = {"gaussian": (1,), "coarse": (8,), "octaves": (64, 32, 16, 8, 4, 2)}
PERSISTENCE = 0.8  # strength of an octave over that of the one before, as in the papers' noise


class PatchedDdpm(AnomalyModel):
    """Denoising diffusion (Ho et al. 2020) of one patch at a time.

    A patch of a `grid` x `grid` division is noised to a random step t, x_t = sqrt(a_t) x +
    sqrt(1 - a_t) noise. The rest of the slice stays clean. Loss: mean absolute error of the
    prediction inside the patch. At inference each patch in turn is noised to `test_step`, always
    with the same noise, and predicted back in one step. x' is stitched from the predicted patches.
    Map: |x - x'|. Images are diffused in [-1, 1].

    Args:
        in_channels: image channels.
        channels: channels of the U-Net's levels, each but the first at half the resolution of the
            one before.
        blocks: residual blocks per level.
        grid: patches along each side of the slice.
        steps: steps of the diffusion, with variances from 1e-4 to 0.02.
        test_step: step that patches are noised to at inference, 0 to steps - 1.
        predict: "sample" predicts the clean image, "epsilon" the noise.
        noise: "gaussian" per pixel; "coarse", interpolated from knots 8 pixels apart; "octaves",
            six of those with knots 64 to 2 pixels apart, each 0.8 times as strong as the one
            before. These are the frequencies and the persistence of the papers' simplex noise. But
            values are interpolated: it is not simplex noise itself. All have unit variance in
            every pixel.
        image_size: height and width of the slices, multiples of grid and of 2 per level but one;
            ValueError otherwise.
    """

    scoring_arguments = ("test_step",)

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (8, 16, 32, 64),
        blocks: int = 1,
        grid: int = 2,
        steps: int = 1000,
        test_step: int = 500,
        predict: Literal["sample", "epsilon"] = "sample",
        noise: Literal["octaves", "coarse", "gaussian"] = "octaves",
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        factor = math.lcm(grid, 2 ** (len(channels) - 1))
        if any(side % factor for side in image_size):
            raise ValueError(
                f"image_size {tuple(image_size)} must be divisible by {factor}, "
                f"for grid {grid} and {len(channels)} channels"
            )
        if not 0 <= test_step < steps:
            raise ValueError(f"test_step must lie in 0..{steps - 1}, got {test_step}")
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=in_channels,
            num_res_blocks=blocks,
            channels=channels,
            attention_levels=[False] * len(channels),  # in the middle alone
            norm_num_groups=math.gcd(8, *channels),
            num_head_channels=channels[-1],
            use_flash_attention=True,
        )
        # MONAI starts some layers at 0, where no gradient passes in the first step.
        for layer in self.net.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=1e-3)
        self.scheduler = DDPMScheduler(steps, "linear_beta")
        self.grid = grid
        self.steps = steps
        self.test_step = test_step
        self.predict = predict
        self.noise = noise

    def updates(self, stage: str) -> list[Update]:
        return [Update("denoise", self.loss, list(self.net.parameters()))]

    def patches(self, like: Tensor) -> Tensor:
        """Return one mask per patch, (grid * grid, 1, H, W); they cover the slice once."""
        height, width = like.shape[-2:]
        cells = torch.eye(self.grid**2).view(-1, 1, self.grid, self.grid)
        rows = cells.repeat_interleave(height // self.grid, 2)
        return rows.repeat_interleave(width // self.grid, 3).to(like.device)

    def noised(self, x: Tensor, noise: Tensor, step: Tensor, patch: Tensor) -> Tensor:
        """Return x_t inside the patch, x outside; x (B, C, H, W) in [-1, 1].

        All is float32: the scheduler takes over the type of what it is given.
        """
        noisy = self.scheduler.add_noise(x.float(), noise.float(), step)
        return torch.where(patch > 0, noisy, x.float())

    def loss(self, batch: Batch) -> Losses:
        """Return the mean absolute error inside one patch per slice, at one step per slice."""
        x = 2 * batch["image"].float() - 1
        if "seed" in batch:
            seeds = batch["seed"].tolist()
        else:
            seeds = torch.randint(1 << 31, (len(x),)).tolist()
        sources = [generator(seed, stream=7) for seed in seeds]

        # Each source gives its slice's step, then its patch, then its noise.
        steps = [torch.randint(self.steps, (1,), generator=s) for s in sources]
        numbers = [torch.randint(self.grid**2, (1,), generator=s) for s in sources]
        noises = [smooth_noise(x.shape[1:], PERIODS[self.noise], s) for s in sources]
        step = torch.cat(steps).to(x.device)
        patch = self.patches(x)[torch.cat(numbers).to(x.device)]
        noise = torch.stack(noises).to(x)

        predicted = self.net(self.noised(x, noise, step, patch), step)
        error = (predicted - (x if self.predict == "sample" else noise)).abs() * patch
        return {"loss": error.sum() / (patch.sum() * x.shape[1])}

    def clean(self, predicted: Tensor, noisy: Tensor) -> Tensor:
        """Return the clean image in [-1, 1] that a prediction at `test_step` stands for."""
        if self.predict == "epsilon":
            signal = self.scheduler.alphas_cumprod[self.test_step]
            predicted = (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()
        return predicted.clamp(-1, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the slice stitched from its predicted patches, (B, C, H, W) in [0, 1]."""
        scaled = 2 * x.float() - 1
        step = torch.full((len(x),), self.test_step, device=x.device)
        stitched = torch.zeros_like(scaled)
        for k, patch in enumerate(self.patches(x)):
            source = generator(k, stream=8)
            noise = smooth_noise(x.shape[1:], PERIODS[self.noise], source).to(scaled)
            noisy = self.noised(scaled, noise, step, patch)
            stitched += self.clean(self.net(noisy, step).float(), noisy) * patch
        return (stitched + 1) / 2

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask


def smooth_noise(shape: Sequence[int], periods: Sequence[int], source: torch.Generator) -> Tensor:
    """Draw Gaussian noise (C, H, W) of unit variance in every pixel.

    It has octaves with knots `periods` pixels apart, each `PERSISTENCE` times as strong as the one
    before.
    """
    channels, *size = shape
    total = torch.zeros(channels, *size)
    power = 0.0
    with torch.autocast("cpu", enabled=False):
        for k, period in enumerate(periods):
            rows, columns = (
                _interpolation(side, max(2, math.ceil(side / period))) for side in size
            )
            knots = torch.randn(channels, rows.shape[1], columns.shape[1], generator=source)
            total += PERSISTENCE**k * (rows @ knots @ columns.T)
            power += PERSISTENCE ** (2 * k)
    return total / math.sqrt(power)


def _interpolation(size: int, knots: int) -> Tensor:
    """Return weights (size, knots) of linear interpolation, each row of length 1.

    So independent knots keep their variance.
    """
    weights = F.interpolate(torch.eye(knots)[None], size=size, mode="linear")[0].T
    return F.normalize(weights, dim=1)
