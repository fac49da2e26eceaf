"""VAE with context-restoration pretraining (TUM thesis on self-supervised brain CT, chapter 5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import decoder, encoder, gaussian, negative_elbo
from models.parts.pretext import swap_patches


class VaeCr(AnomalyModel):
    """Convolutional VAE, pretrained to put two swapped patches back, then trained to reconstruct healthy slices.

    The encoder halves the slice once per entry of `channels`; a 1x1 convolution then makes mean and log-variance of a
    convolutional latent (512 channels give 2 x 256), since a mean behind a LeakyReLU could hardly be negative. The
    decoder mirrors the encoder; its last layer is linear. The latent's mean is used in
    pretraining, validation and inference; it is sampled in finetuning only.

    stage `pretrain`: mean squared error of D(mean(swap(x))) to x (Chen et al. 2019).
    stage `finetune`: sum of squared errors + beta * KL, per slice (Kingma & Welling 2014).
    anomaly map: |x - reconstruction|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; height and width must be divisible by 2 ** len(channels).
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
                f"channels: the last entry is split into mean and log-variance and must be even, got {channels[-1]}"
            )
        self.encoder = nn.Sequential(
            *encoder(in_channels, channels), nn.Conv2d(channels[-1], channels[-1], 1)
        )
        self.decoder = decoder(channels[-1] // 2, channels, in_channels)
        self.patch_fraction, self.beta = patch_fraction, beta

    def updates(self, stage: str) -> list[Update]:
        loss = {"pretrain": self.restoration_loss, "finetune": self.vae_loss}[stage]
        return [Update(stage, loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each (B, latent, H / 2**n, W / 2**n)."""
        return gaussian(self.encoder(x))

    def restoration_loss(self, batch: Batch) -> Losses:
        """Mean squared error between the restored image and the image before the swap."""
        swapped = swap_patches(
            batch["image"], batch["mask"], self.patch_fraction, batch.get("seed")
        )
        mean, _ = self.encode(swapped)
        return {"loss": (self.decoder(mean) - batch["image"]).square().mean()}

    def vae_loss(self, batch: Batch) -> Losses:
        """Squared error + beta * KL, summed per slice, mean over the batch; divided by the number of pixels."""
        x = batch["image"]
        return negative_elbo(
            x, *self.encode(x), self.decoder, batch.get("seed"), self.training, self.beta
        )

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
