"""A U-Net that segments lesions planted in healthy slices.

FPI: Tan et al. 2020; PII: Tan et al. 2021; NSA: Schlueter et al. 2022; DRAEM: Zavrtanik et al.
2021; the winners of the MOOD challenge (Zimmerer et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from monai.losses import DiceFocalLoss
from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.filters import blur_inside, each_brain, robust_z
from models.parts.healthy_map import place_statistics, places
from models.parts.planting import LOOKS, change_contrast, plant_batch
from models.parts.unet import unet

Look = Literal["shift", "bright", "fill", "foreign", "poisson", "mass", "halo", "texture"]

RARE = -4.0  # logit of a lesion before training: 2 %
REACH = 6.0  # robust standard deviations: what lies farther looks the same to the network


class Planted(AnomalyModel):
    """U-Net whose probability of a lesion is the map; it learns from planted lesions alone.

    Every sample is planted anew, `share` of them with a lesion of one of `looks`, the others with
    none; contrast, bias and resolution change too. In validation the looks are those of `held_out`:
    training stops by lesions of kinds that it is not shown. A foreign patch comes from the batch,
    so training depends on how slices are grouped. Loss: Dice of the batch + focal loss.

    The network sees the slice and its neighbours as robust z of the slice's brain, the healthy mean
    of that z at the place (with `atlas`), and how many healthy standard deviations the smoothed
    slice lies from it.

    Args:
        in_channels: image channels, those of the neighbours too.
        image_size: rows and columns of a slice.
        around: which slices up and down follow the slice in the channels, in mm.
        width: channels of the finest of five scales, a multiple of 8.
        looks: of the lesions in training; see models/parts/planting.py.
        held_out: of the lesions in validation.
        share: share of slices with a lesion, 0 to 1.
        contrast: strength of the changes of contrast, 0 to 1.
        field_mm: what the longer side of a slice shows.
        atlas: whether the network sees what is healthy at each place.
        smooth: sigma in pixels, of the slice that is compared with healthy ones.
        prior: weight of the whole brain's mean and variance, in scans.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: tuple[int, ...] = (96, 96),
        around: tuple[int, ...] = (),
        width: int = 16,
        looks: Sequence[Look] = ("shift", "fill", "foreign", "poisson", "mass", "texture"),
        held_out: Sequence[Look] = ("halo",),
        share: float = 0.5,
        contrast: float = 1.0,
        field_mm: float = 240.0,
        atlas: bool = True,
        smooth: float = 1.5,
        prior: float = 2.0,
    ) -> None:
        super().__init__()
        for name, given in (("looks", looks), ("held_out", held_out)):
            if not given or set(given) - set(LOOKS):
                raise ValueError(f"{name}: expected some of {', '.join(LOOKS)}, got {list(given)}")
        for name, value in (("share", share), ("contrast", contrast)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {value}")
        self.channels = in_channels // (1 + len(around))  # of one slice
        self.offsets = (0.0, *map(float, around))
        seen = in_channels + (2 * self.channels if atlas else 0)
        # Lesions are rare: from an even chance the loss would first have to find that out.
        self.net = unet(seen, 1, width, start=RARE)
        self.criterion = DiceFocalLoss(sigmoid=True, batch=True, gamma=2.0, lambda_focal=10.0)
        self.looks = tuple(looks)
        self.held_out = tuple(held_out)
        self.share = share
        self.contrast = contrast
        self.pixel_mm = field_mm / max(image_size)
        self.atlas = atlas
        self.smooth = smooth
        self.prior = prior
        self.register_buffer("mean", torch.zeros(0, 0, 0))  # (slices * channels, H, W)
        self.register_buffer("deviation", torch.ones(0, 0, 0))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take mean and deviation of healthy slices at each place, and of their mirror images."""
        if not self.atlas:
            return

        def values(batch: Batch) -> Tensor:
            x = batch["image"][:, : self.channels].float()
            mask = batch["mask"].float()
            return blur_inside(each_brain(x, mask, robust_z), mask, self.smooth)

        device = self.get_buffer("mean").device
        statistics = place_statistics(batches, values, self.smooth, self.prior, mirror=True)
        self.mean, self.deviation = (v.flatten(0, 1).contiguous().to(device) for v in statistics)

    def updates(self, stage: str) -> list[Update]:
        return [Update("segment", self.loss, list(self.net.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return Dice + focal loss of slices that are planted from their own seeds."""
        mask = batch["mask"]
        seeds = batch.get("seed")
        looks = self.looks if self.training else self.held_out
        x = change_contrast(batch["image"], mask, seeds, self.contrast if self.training else 0.0)
        x, lesions = plant_batch(x, mask, seeds, looks, self.share, self.pixel_mm, self.offsets)
        logits = self.logits(x, mask, batch.get("z"))
        # Outside the brain nothing is asked of the network.
        logits = torch.where(mask > 0, logits.float(), -20.0)
        found = logits.sigmoid()
        apart = 1 - 2 * (found * lesions).sum() / (found.sum() + lesions.sum()).clamp(min=1)
        return {"loss": self.criterion(logits, lesions), "dice": apart.detach()}

    def logits(self, x: Tensor, mask: Tensor, z: Tensor | None) -> Tensor:
        """Return logits of a lesion, (B, 1, H, W)."""
        return self.net(self.seen(x.float(), mask.float(), z))

    def seen(self, x: Tensor, mask: Tensor, z: Tensor | None) -> Tensor:
        """Return what the network sees, each channel from about -1 to 1 and 0 outside the brain."""
        centred = each_brain(x, mask, robust_z)
        parts = [centred]
        if self.atlas:
            smoothed = blur_inside(centred[:, : self.channels], mask, self.smooth)
            mean, deviation = self._healthy(smoothed, z)
            parts += [mean * mask, (smoothed - mean) / deviation]
        return torch.cat(parts, 1).clamp(-REACH, REACH) * mask / REACH

    def _healthy(self, values: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the healthy mean and deviation at the places of slices, (B, C, H, W) each."""
        mean = self.get_buffer("mean")
        if len(mean) == 0:  # before `prepare`
            return torch.zeros_like(values), torch.ones_like(values)
        mean, deviation = (
            self.get_buffer(name).unflatten(0, (-1, self.channels))
            for name in ("mean", "deviation")
        )
        place = places(values, z, len(mean))
        return mean[place], deviation[place]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self.logits(x, mask, z).float().sigmoid() * mask
