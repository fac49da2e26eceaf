"""Autoencoder that gives image and log-variance (Mao et al. 2020).

It is called AE-U in MedIAnomaly (Cai et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, dense_code, encoder
from models.parts.losses import full_precision, weighted_error


class Aeu(AnomalyModel):
    """Autoencoder whose decoder gives a mean and a log-variance v for every pixel.

    So edges that it never rebuilds well count less. Loss: exp(-v) * (x - mean)^2 + v, mean over
    pixels. Map: exp(-v) * (x - mean)^2, about 1 for healthy tissue; not limited upwards.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: length of the code.
        image_size: height and width of the slices; ValueError unless divisible by
            2 ** len(channels).
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 64),
        latent: int = 16,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        code = dense_code(channels[-1], latent, coarse_size(image_size, channels))
        self.net = nn.Sequential(
            encoder(in_channels, channels), code, decoder(channels[-1], channels, 2 * in_channels)
        )

    def updates(self, stage: str) -> list[Update]:
        return [Update("likelihood", self.loss, list(self.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return -2 log N(x; mean, exp(v)) per pixel up to a constant; its parts are logged."""
        parts = weighted_error(self.net(batch["image"]), batch["image"])
        error, log_variance = (part.mean() for part in parts)
        return {"loss": error + log_variance, "weighted_error": error, "log_variance": log_variance}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.net(x)[:, : x.shape[1]]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return weighted_error(full_precision(self.net, x), x)[0].mean(1, keepdim=True) * mask
