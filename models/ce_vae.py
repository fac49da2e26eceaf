"""Context-encoding VAE (Zimmerer et al. 2018), the thesis' second baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.filters import gaussian_blur, mean_inside
from models.parts.layers import dense_decoder, dense_encoder
from models.parts.losses import (
    gaussian,
    input_gradient,
    kl_divergence,
    negative_elbo,
    squared_error,
)
from models.parts.pretext import cover_squares
from models.parts.randomness import randn


class CeVae(AnomalyModel):
    """VAE that also fills covered squares in.

    Loss = (1 - c) (squared error + beta KL) + c * squared error of the filled slice. The
    context-encoding branch decodes the latent's mean, has the clean slice as its target and no KL.
    Map "rec": the squared error. Map "combi": the healthy-normalised KL gradient times the squared
    error. That gradient is averaged over `samples` noisy copies (SmoothGrad, Smilkov et al. 2017).

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: number of latent variables.
        beta: weight of the KL term.
        context: weight c of the context-encoding branch, 0 to 1.
        map: "combi" or "rec".
        smooth: sigma in pixels of the Gaussian over the gradient.
        samples: noisy copies for the gradient; 1 takes the slice itself.
        noise: standard deviation of their noise.
        image_size: height and width of the slices.
    """

    scoring_arguments = ("map", "smooth", "samples", "noise")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 256),
        latent: int = 512,
        beta: float = 0.01,
        context: float = 0.5,
        map: Literal["combi", "rec"] = "combi",
        smooth: float = 3.0,
        samples: int = 4,
        noise: float = 0.05,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        if not 0 <= context <= 1:
            raise ValueError(f"context: expected a weight from 0 to 1, got {context}")
        self.encoder = dense_encoder(in_channels, channels, 2 * latent, image_size)
        self.decoder = dense_decoder(latent, channels, in_channels, image_size)
        self.beta = beta
        self.context = context
        self.map = map
        self.smooth = smooth
        self.samples = samples
        self.noise = noise
        self.register_buffer("healthy_gradient", torch.ones(()))

    def updates(self, stage: str) -> list[Update]:
        return [Update("ce_vae", self.loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each (B, latent, 1, 1)."""
        return gaussian(self.encoder(x))

    def loss(self, batch: Batch) -> Losses:
        """Return both branches, summed per slice, mean over the batch, over the pixels."""
        x = batch["image"]
        seeds = batch.get("seed")
        vae = negative_elbo(x, self.encode(x), self.decoder, seeds, self.training, self.beta)
        if self.context == 0:
            return vae
        covered = cover_squares(x, seeds=seeds) * batch["mask"]
        filled = squared_error(self.decoder(self.encode(covered)[0]), x).mean() / x[0].numel()
        loss = (1 - self.context) * vae["loss"] + self.context * filled
        return vae | {"loss": loss, "context": filled}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the mean KL gradient of healthy brain pixels, the unit of "combi"."""
        device = self.get_buffer("healthy_gradient").device
        self.healthy_gradient = mean_inside(batches, self.kl_gradient, device)

    def kl_gradient(self, x: Tensor) -> Tensor:
        """Return |d KL / dx| averaged over noisy copies and channels, smoothed; (B, 1, H, W).

        The copies' noise has fixed seeds.
        """

        def kl(y: Tensor) -> Tensor:
            return kl_divergence(*self.encode(y)).sum()

        total = torch.zeros_like(x)
        for copy in range(self.samples):
            seeds = torch.full((len(x),), copy, dtype=torch.int64)
            noise = self.noise * randn(x, seeds) if self.samples > 1 else 0
            total = total + input_gradient(x + noise, kl).abs()
        return gaussian_blur(total.mean(1, keepdim=True) / self.samples, self.smooth)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        error = (x - self.reconstruct(x)).square().mean(1, keepdim=True)
        if self.map == "combi":
            error = error * self.kl_gradient(x) / self.get_buffer("healthy_gradient")
        return error * mask
