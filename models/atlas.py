"""Voxelwise z-score against registered healthy scans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from models.base import AnomalyModel, Batch
from models.parts.filters import blur_inside, each_brain, robust_z, tail_of
from models.parts.healthy_map import place_statistics, places


class Atlas(AnomalyModel):
    """How many healthy standard deviations a pixel lies from the healthy mean of its place.

    The map is the mean over channels. Mean and standard deviation are those of smoothed slices,
    per slice index, channel and pixel. Where few healthy brains reach, the variance is drawn
    towards that of the whole brain, as if `prior` more scans had it. The mean is drawn likewise.

    Args:
        tail: "bright", "dark" or "both" sides of the mean.
        smooth: sigma in pixels of a Gaussian inside the brain, over healthy slices and over the
            slice that is scored.
        prior: weight of the whole brain's mean and variance, in scans.
        mirror: also learn from every slice's mirror image.
        standardise: "robust" takes the robust z of each slice's brain first, for intensities that
            are on no common scale.
    """

    stages = ()

    def __init__(
        self,
        tail: Literal["bright", "dark", "both"] = "both",
        smooth: float = 1.5,
        prior: float = 2.0,
        mirror: bool = True,
        standardise: Literal["none", "robust"] = "none",
    ) -> None:
        super().__init__()
        self.tail = tail
        self.smooth = smooth
        self.prior = prior
        self.mirror = mirror
        self.standardise = standardise
        self.register_buffer("mean", torch.zeros(0, 0, 0))  # (slices * channels, H, W)
        self.register_buffer("deviation", torch.ones(0, 0, 0))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        device = self.get_buffer("mean").device

        def values(batch: Batch) -> Tensor:
            return self._values(batch["image"], batch["mask"].float())

        statistics = place_statistics(batches, values, self.smooth, self.prior, self.mirror)
        self.mean, self.deviation = (v.flatten(0, 1).contiguous().to(device) for v in statistics)

    def _values(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return what is compared with the atlas, (B, C, H, W).

        That is the slice, standardised where asked for and smoothed inside the brain.
        """
        x = x.float()
        if self.standardise == "robust":
            x = each_brain(x, mask, robust_z)
        return blur_inside(x, mask, self.smooth)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        mean, deviation = (
            self.get_buffer(name).unflatten(0, (-1, x.shape[1])) for name in ("mean", "deviation")
        )
        place = places(x, z, len(mean))
        signed = (self._values(x, mask.float()) - mean[place]) / deviation[place]
        return tail_of(signed, self.tail).mean(1, keepdim=True) * mask
