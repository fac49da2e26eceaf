"""VAE with context-restoration pretraining.

Chapter 5 of the TUM thesis on self-supervised brain CT.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import decoder, encoder
from models.parts.losses import gaussian, negative_elbo
from models.parts.pretext import swap_patches


class VaeCr(AnomalyModel):
    """Convolutional VAE, pretrained to put swapped patches back, then trained on healthy slices.

    The encoder halves the slice once per entry of `channels`. A 1x1 convolution then makes mean and
    log-variance of a convolutional latent (512 channels give 2 x 256), since a mean behind a
    LeakyReLU could hardly be negative. The decoder mirrors the encoder; its last layer is linear.
    The latent is sampled in finetuning only. Pretraining, validation and inference use its mean.

    stage `pretrain`: mean squared error of D(mean(swap(x))) to x (Chen et al. 2019).
    stage `finetune`: sum of squared errors + beta * KL, per slice (Kingma & Welling 2014).
    anomaly map: |x - reconstruction|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; height and width must be divisible by
            2 ** len(channels).
        patch_fraction: side of a swapped patch as a fraction of the image side.
        beta: weight of the KL term.
    """

    stages = ("pretrain", "finetune")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256, 512),
        patch_fraction: float = 0.125,
        beta: float = 0.001,
    ) -> None:
        super().__init__()
        if channels[-1] % 2:
            raise ValueError(
                "channels: the last entry is split into mean and log-variance and must be even, "
                f"got {channels[-1]}"
            )
        self.encoder = nn.Sequential(
            *encoder(in_channels, channels), nn.Conv2d(channels[-1], channels[-1], 1)
        )
        self.decoder = decoder(channels[-1] // 2, channels, in_channels)
        self.patch_fraction = patch_fraction
        self.beta = beta

    def updates(self, stage: str) -> list[Update]:
        loss = {"pretrain": self.restoration_loss, "finetune": self.vae_loss}[stage]
        return [Update(stage, loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each (B, latent, H / 2**n, W / 2**n)."""
        return gaussian(self.encoder(x))

    def restoration_loss(self, batch: Batch) -> Losses:
        """Return the mean squared error of the restored image to that before the swap."""
        swapped = swap_patches(
            batch["image"], batch["mask"], self.patch_fraction, batch.get("seed")
        )
        return {"loss": (self.reconstruct(swapped) - batch["image"]).square().mean()}

    def vae_loss(self, batch: Batch) -> Losses:
        """Return squared error + beta * KL, summed per slice, over the number of pixels.

        It is the mean over the batch.
        """
        x = batch["image"]
        seeds = batch.get("seed")
        return negative_elbo(x, self.encode(x), self.decoder, seeds, self.training, self.beta)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
