"""VAE scored by the gradient of its KL term (Zimmerer et al. 2019), the thesis' first baseline."""

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


class VaeKl(AnomalyModel):
    """VAE with a dense latent; four anomaly maps, chosen by `map`.

    "rec": squared error of the reconstruction. "kl": |d KL / dx|, how an input pixel pulls the
    latent away from the prior. "elbo": |d (squared error / 2 + beta KL) / dx|. "combi": smoothed
    "kl", divided by its healthy mean, times "rec". Gradients are smoothed by a Gaussian of `smooth`
    pixels.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: number of latent variables.
        beta: weight of the KL term.
        map: "rec", "kl", "elbo" or "combi".
        smooth: sigma in pixels of the Gaussian over gradients.
        image_size: height and width of the slices.
    """

    scoring_arguments = ("map", "smooth")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 256),
        latent: int = 256,
        beta: float = 1.0,
        map: Literal["rec", "kl", "elbo", "combi"] = "combi",
        smooth: float = 3.0,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.encoder = dense_encoder(in_channels, channels, 2 * latent, image_size)
        self.decoder = dense_decoder(latent, channels, in_channels, image_size)
        self.beta = beta
        self.map = map
        self.smooth = smooth
        self.register_buffer("healthy_gradient", torch.ones(()))

    def updates(self, stage: str) -> list[Update]:
        return [Update("elbo", self.loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each (B, latent, 1, 1)."""
        return gaussian(self.encoder(x))

    def loss(self, batch: Batch) -> Losses:
        """Return squared error + beta * KL, summed per slice, over the number of pixels.

        It is the mean over the batch.
        """
        x = batch["image"]
        seeds = batch.get("seed")
        return negative_elbo(x, self.encode(x), self.decoder, seeds, self.training, self.beta)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the mean smoothed KL gradient of healthy brain pixels, the unit of "combi"."""
        device = self.get_buffer("healthy_gradient").device
        self.healthy_gradient = mean_inside(batches, self.kl_gradient, device)

    def kl_gradient(self, x: Tensor) -> Tensor:
        """Return |d KL / dx| averaged over channels and smoothed, (B, 1, H, W)."""
        return self._smoothed(input_gradient(x, lambda y: kl_divergence(*self.encode(y)).sum()))

    def elbo_gradient(self, x: Tensor) -> Tensor:
        """Return |d (squared error / 2 + beta KL) / dx| as `kl_gradient` does.

        The latent's mean is decoded.
        """

        def elbo(y: Tensor) -> Tensor:
            mean, log_variance = self.encode(y)
            error = 0.5 * squared_error(self.decoder(mean), y)
            return (error + self.beta * kl_divergence(mean, log_variance)).sum()

        return self._smoothed(input_gradient(x, elbo))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        if self.map == "kl":
            return self.kl_gradient(x) * mask
        if self.map == "elbo":
            return self.elbo_gradient(x) * mask
        error = (x - self.reconstruct(x)).square().mean(1, keepdim=True)
        if self.map == "combi":
            error = error * self.kl_gradient(x) / self.get_buffer("healthy_gradient")
        return error * mask

    def _smoothed(self, gradient: Tensor) -> Tensor:
        return gaussian_blur(gradient.abs().mean(1, keepdim=True), self.smooth)
