"""Intensity alone as the anomaly map.

Many trained detectors do not beat a threshold of it (Meissen et al. 2021).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.base import AnomalyModel
from models.parts.filters import blur_inside, each_brain, robust_z, tail_of


class Intensity(AnomalyModel):
    """How far a pixel's intensity lies in the tail of its slice, mean over channels.

    Nothing is learned.

    Args:
        mode: "value" takes the preprocessed intensity itself (CT: the HU window; MR: the scan's
            own percentiles). Distance is counted from the middle of the slice's brain (median).
            "z" divides that by 1.4826 times the median absolute deviation of the slice's brain.
            "equalised" is the pixel's rank in the slice's brain, 0..1, from 0.5.
        tail: "bright" marks above the middle alone, "dark" below, "both" either side.
        smooth: sigma in pixels of a Gaussian inside the brain, before anything else.
    """

    stages = ()

    def __init__(
        self,
        mode: Literal["value", "z", "equalised"] = "z",
        tail: Literal["bright", "dark", "both"] = "both",
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.tail = tail
        self.smooth = smooth

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        x = blur_inside(x.float(), mask.float(), self.smooth)
        return tail_of(each_brain(x, mask, self._signed), self.tail).mean(1, keepdim=True)

    def _signed(self, values: Tensor) -> Tensor:
        """Return the distance from the middle of a slice's brain pixels (N,), signed."""
        if self.mode == "equalised":
            _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
            rank = (counts.cumsum(0) - 0.5 * counts) / len(values)  # the mean rank of ties
            return (rank - 0.5)[inverse]
        return robust_z(values) if self.mode == "z" else values - values.median()
