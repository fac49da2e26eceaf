"""Convolutional autoencoder (lung CT poster of Khaznaoui et al.; slides on 2-D head CT, 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, dense_code, encoder
from models.parts.losses import full_precision, weighted_error


class Cae(AnomalyModel):
    """Autoencoder of strided convolutions with batch norm, LeakyReLU and dropout.

    The map is its residual.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        bottleneck: "spatial" takes the last feature map as the code; "dense" puts a vector of
            `latent` numbers there.
        latent: length of the dense code.
        dropout: share of channels dropped in training.
        loss: "mse" or "mae"; the map is the squared or the absolute residual.
        uncertainty: the decoder gives a log-variance too. Loss and map are those of `aeu`, and
            `loss` must be "mse".
        image_size: height and width of the slices, or the three sides of volumes; for the dense
            code.
        spatial_dims: 2 for slices (B, C, H, W), 3 for volumes (B, C, X, Y, Z).
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        bottleneck: Literal["spatial", "dense"] = "dense",
        latent: int = 128,
        dropout: float = 0.0,
        loss: Literal["mse", "mae"] = "mse",
        uncertainty: bool = False,
        image_size: tuple[int, ...] = (64, 64),
        spatial_dims: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        if uncertainty and loss != "mse":
            raise ValueError(f"uncertainty: the error is squared, loss must be 'mse', got '{loss}'")
        outputs = (1 + uncertainty) * in_channels
        self.encoder = encoder(in_channels, channels, dropout, spatial_dims)
        self.decoder = decoder(channels[-1], channels, outputs, dropout, spatial_dims)
        self.code: nn.Module = nn.Identity()
        if bottleneck == "dense":
            size = coarse_size(image_size, channels, spatial_dims)
            self.code = dense_code(channels[-1], latent, size)
        self.loss_kind = loss
        self.uncertainty = uncertainty

    def updates(self, stage: str) -> list[Update]:
        return [Update("reconstruct", self.loss, list(self.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return the mean error of the reconstruction, with uncertainty plus the log-variance."""
        if self.uncertainty:
            error, log_variance = weighted_error(self._decoded(batch["image"]), batch["image"])
            return {"loss": (error + log_variance).mean(), "log_variance": log_variance.mean()}
        return {"loss": self._error(batch["image"]).mean()}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self._decoded(x)[:, : x.shape[1]]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self._error(x).mean(1, keepdim=True) * mask

    def _decoded(self, x: Tensor) -> Tensor:
        """Return all that the decoder gives: the image, with uncertainty a log-variance too."""
        return self.decoder(self.code(self.encoder(x)))

    def _error(self, x: Tensor) -> Tensor:
        """Return the error of each pixel and channel, (B, C, H, W)."""
        if self.uncertainty:
            return weighted_error(full_precision(self._decoded, x), x)[0]
        apart = self.reconstruct(x) - x
        return apart.abs() if self.loss_kind == "mae" else apart.square()
