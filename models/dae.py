"""Denoising autoencoder with coarse noise (Kascenas et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.pretext import coarse_noise
from models.parts.unet import unet


class Dae(AnomalyModel):
    """U-Net that takes coarse noise off healthy slices.

    Off other slices it takes what it does not know, lesions as well. Loss: squared error to the
    slice without noise, mean over the brain. No noise at inference. Map: |x - f(x)|.

    Args:
        in_channels: image channels.
        width: channels of the finest of five scales, a multiple of 8.
        noise: standard deviation of the noise before it is interpolated; see `coarse_noise`.
        coarse: cells of noise along the longer side of the image.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 16, noise: float = 0.2, coarse: int = 16
    ) -> None:
        super().__init__()
        if coarse < 1:
            raise ValueError(f"coarse: expected at least 1 cell of noise, got {coarse}")
        self.net = unet(in_channels, in_channels, width)
        self.noise = noise
        self.coarse = coarse

    def updates(self, stage: str) -> list[Update]:
        return [Update("denoise", self.loss, list(self.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return the mean squared error in the brain of the denoised slice to the clean one."""
        x = batch["image"]
        mask = batch["mask"]
        noise = coarse_noise(x, mask, self.noise, self.coarse, batch.get("seed"))
        error = (self.net(x + noise) - x).square().mean(1, keepdim=True) * mask
        return {"loss": error.sum() / mask.sum().clamp(min=1)}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.net(x)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.net(x)).abs().mean(1, keepdim=True) * mask
