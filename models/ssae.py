"""Scale-space autoencoder (Baur et al. 2020; slides on 2-D head CT, 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.filters import gaussian_blur
from models.parts.layers import decoder, encoder


class Ssae(AnomalyModel):
    """A Laplacian pyramid with one autoencoder per band.

    g_0 = x, g_{k+1} = down(blur(g_k)), h_k = g_k - up(g_{k+1}). The coarsest level is x'_K =
    AE_K(g_K), the others x'_k = up(x'_{k+1}) + AE_k(h_k). Loss: sum over levels of the mean
    squared error of x'_k to g_k. Map: |x - x'_0|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks of the coarsest autoencoder; each halves
            its level.
        levels: number K of times the image is halved.
        sigma: of the Gaussian before halving, in pixels of the level.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128),
        levels: int = 2,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.sigma = sigma
        self.bands = nn.ModuleList(
            nn.Sequential(
                *encoder(in_channels, channels), *decoder(channels[-1], channels, in_channels)
            )
            for _ in range(levels + 1)
        )
        self.factor = 2 ** len(channels)

    def updates(self, stage: str) -> list[Update]:
        return [Update("pyramid", self.loss, list(self.parameters()))]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Return g_0 .. g_K, each (B, C, ceil(H / 2**k), ceil(W / 2**k))."""
        levels = [x]
        for _ in range(self.levels):
            levels.append(gaussian_blur(levels[-1], self.sigma)[:, :, ::2, ::2])
        return levels

    def rebuild(self, levels: list[Tensor], bands: Sequence[nn.Module]) -> list[Tensor]:
        """Return x'_0 .. x'_K from g_0 .. g_K, through one autoencoder per band."""
        found = [_even(bands[-1], levels[-1], self.factor)]
        for level, coarser, band in zip(levels[-2::-1], levels[:0:-1], bands[-2::-1], strict=True):
            detail = _even(band, level - _enlarge(coarser, level), self.factor)
            found.insert(0, _enlarge(found[0], level) + detail)
        return found

    def loss(self, batch: Batch) -> Losses:
        """Return the sum over levels of the mean squared error."""
        levels = self.pyramid(batch["image"])
        rebuilt = self.rebuild(levels, list(self.bands))
        errors = [(a - b).square().mean() for a, b in zip(rebuilt, levels, strict=True)]
        return {"loss": torch.stack(errors).sum(), "finest": errors[0]}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.rebuild(self.pyramid(x), list(self.bands))[0]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask


def _enlarge(coarse: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(coarse, like.shape[-2:], mode="bilinear", align_corners=False)


def _even(network: nn.Module, x: Tensor, factor: int) -> Tensor:
    """Apply an autoencoder to a level of any size.

    The level is padded by its edge to a multiple of `factor`, and cut back.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % factor, 0, -height % factor), mode="replicate")
    return network(padded)[:, :, :height, :width]
