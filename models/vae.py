"""Fully convolutional VAE with 256 latent variables (Chatterjee et al., abstract on MOOD and BraTS; Kingma & Welling 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.layers import dense_coder, full_precision, gaussian, negative_elbo, squared_error, uncertain_error, weighted_error


class Vae(AnomalyModel):
    """VAE whose last convolution covers what the encoder leaves, so that `latent` numbers describe the slice or volume.

    Loss: squared error + beta * KL, summed per image, divided by the number of pixels. The latent's mean is used at inference.
    Map: |x - reconstruction|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: number of latent variables.
        beta: weight of the KL term.
        uncertainty: the decoder gives a log-variance too; the squared error and the map become those of `aeu`.
        image_size: height and width of the slices, or the three sides of volumes.
        spatial_dims: 2 for slices (B, C, H, W), 3 for volumes (B, C, X, Y, Z).
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        latent: int = 256,
        beta: float = 1.0,
        uncertainty: bool = False,
        image_size: tuple[int, ...] = (128, 128),
        spatial_dims: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        outputs = (1 + uncertainty) * in_channels
        self.encoder, self.decoder = dense_coder(in_channels, channels, latent, image_size, spatial_dims, outputs)
        self.beta, self.uncertainty = beta, uncertainty

    def updates(self, stage: str) -> list[Update]:
        return [Update("elbo", self.loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each (B, latent, 1, 1), or with one more 1 for volumes."""
        return gaussian(self.encoder(x))

    def loss(self, batch: Batch) -> Losses:
        """Negative evidence lower bound per pixel, with a Gaussian of unit or (uncertainty) learned variance up to constants."""
        x, error = batch["image"], uncertain_error if self.uncertainty else squared_error
        return negative_elbo(x, *self.encode(x), self.decoder, batch.get("seed"), self.training, self.beta, error)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])[:, : x.shape[1]]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        if self.uncertainty:
            decoded = full_precision(lambda y: self.decoder(self.encode(y)[0]), x)
            return weighted_error(decoded, x)[0].mean(1, keepdim=True) * mask
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
