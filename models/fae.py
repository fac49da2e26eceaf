"""FAE: autoencoder of ImageNet features, compared by SSIM (Meissen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.features import ImageNetFeatures
from models.parts.filters import each_brain
from models.parts.layers import coarse_size, decoder, encoder

# Of the network's features inside the brain. Measured on CT: standard deviation 8 to 10, range 53
# to 81.
SPREAD = 10.0
RANGE = 60.0


class Fae(AnomalyModel):
    """Autoencoder of the feature maps that a frozen ImageNet network makes of a slice.

    Early blocks' maps are brought to one grid of cells and joined. Loss: 1 - SSIM of each feature
    map and its reconstruction, averaged. Map: 1 - SSIM, averaged over the feature maps, between 0
    and 2.

    Args:
        blocks: blocks of the network whose maps are joined, from 0 to 15.
        size: side in pixels that slices are resized to for the network.
        cells: side of the common grid; divisible by 2 for every entry of `widths`.
        widths: output channels of the encoder blocks; each halves the grid.
        dropout: share of an inner block's channels that is switched off in training.
        window: side of the square window of SSIM in cells, odd.
        equalise: equalise the slice's histogram inside the brain first, for intensities that are
            on no common scale.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (0, 2, 4),
        size: int = 128,
        cells: int = 32,
        widths: Sequence[int] = (64, 96, 128),
        dropout: float = 0.1,
        window: int = 5,
        equalise: bool = False,
    ) -> None:
        super().__init__()
        if window % 2 == 0 or not 1 < window <= cells:
            raise ValueError(f"window: expected an odd number from 3 to {cells}, got {window}")
        coarse_size((cells, cells), widths)  # refuses what the blocks cannot halve
        self.network = ImageNetFeatures(blocks, size)
        inputs = sum(self.network.channels)
        self.encoder = encoder(inputs, widths, dropout)
        self.decoder = decoder(widths[-1], widths, inputs, dropout)
        self.cells = cells
        self.window = window
        self.equalise = equalise

    def updates(self, stage: str) -> list[Update]:
        coder = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [Update("features", self.loss, coder)]

    def features(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return joined feature maps of slices (B, C, H, W), (B, features, cells, cells).

        They are of order 1.
        """
        if self.equalise:
            x = each_brain(x.float().mean(1, keepdim=True), mask, equalised)
        grid = (self.cells, self.cells)
        maps = [F.interpolate(v, grid, mode="bilinear", antialias=True) for v in self.network(x)]
        return torch.cat(maps, 1) / SPREAD

    def similarity(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return SSIM of each feature map and its reconstruction, (B, features, cells, cells)."""
        features = self.features(x, mask)
        return ssim(features, self.decoder(self.encoder(features)), self.window, RANGE / SPREAD)

    def loss(self, batch: Batch) -> Losses:
        """Return 1 - SSIM, averaged over cells and feature maps."""
        return {"loss": 1 - self.similarity(batch["image"], batch["mask"]).mean()}

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        apart = (1 - self.similarity(x, mask).mean(1, keepdim=True)).clamp(min=0)
        return F.interpolate(apart, x.shape[-2:], mode="bilinear") * mask


def equalised(values: Tensor) -> Tensor:
    """Return the share of the values (N,) that are not above each of them, in (0, 1].

    That is what histogram equalisation makes of a brain.
    """
    return torch.searchsorted(values.sort().values, values, right=True) / len(values)


def ssim(x: Tensor, y: Tensor, window: int, span: float) -> Tensor:
    """Return the structural similarity of each cell's square window (Wang et al. 2004).

    MONAI's SSIMLoss gives one number per slice. A map needs every cell, also those at the border,
    whose windows are cut.

    Args: x and y (B, C, H, W); window, its side, odd; span, range of the data. Returns
    (B, C, H, W).
    """
    # The constants of the paper, K1 = 0.01 and K2 = 0.03, which keep the ratio from 0 / 0.
    c1 = (0.01 * span) ** 2
    c2 = (0.03 * span) ** 2
    with torch.autocast(x.device.type, enabled=False):
        x, y = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (x, y))

        def mean(v: Tensor) -> Tensor:
            rows = F.avg_pool2d(v, (window, 1), 1, (window // 2, 0), count_include_pad=False)
            return F.avg_pool2d(rows, (1, window), 1, (0, window // 2), count_include_pad=False)

        a = mean(x)
        b = mean(y)
        spread = (mean(x * x) - a * a).clamp(min=0) + (mean(y * y) - b * b).clamp(min=0)
        together = mean(x * y) - a * b
        return (2 * a * b + c1) * (2 * together + c2) / ((a * a + b * b + c1) * (spread + c2))
