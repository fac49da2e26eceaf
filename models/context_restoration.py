"""Context restoration alone as a detector (Chen et al. 2019).

Chapter 5.2 of the TUM thesis on self-supervised brain CT.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import decoder, encoder
from models.parts.pretext import swap_patches


class ContextRestoration(AnomalyModel):
    """Autoencoder that puts two swapped patches back.

    The map is the absolute residual of the slice as it is.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        patch_fraction: side of a swapped patch as a fraction of the image side.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256, 512),
        patch_fraction: float = 0.125,
    ) -> None:
        super().__init__()
        self.encoder = encoder(in_channels, channels)
        self.decoder = decoder(channels[-1], channels, in_channels)
        self.patch_fraction = patch_fraction

    def updates(self, stage: str) -> list[Update]:
        return [Update("restore", self.loss, list(self.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return the mean squared error of the restored image to that before the swap."""
        swapped = swap_patches(
            batch["image"], batch["mask"], self.patch_fraction, batch.get("seed")
        )
        return {"loss": (self.reconstruct(swapped) - batch["image"]).square().mean()}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
