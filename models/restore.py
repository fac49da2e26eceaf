"""Restoration of synthetic anomalies of known severity.

FPI: Tan et al. 2020; PII: Tan et al. 2021; DISYRE: Marimont et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.corruptions import CORRUPTIONS, corrupt
from models.parts.randomness import rand
from models.parts.unet import unet


class Restore(AnomalyModel):
    """U-Net that gets a severity, and gives the slice without its anomaly and a severity per pixel.

    Training: `corrupt` changes a place of the slice by one of `kinds`, with a severity alpha in
    [0.05, 0.95]. Alpha fills an input channel; it is a random one where nothing was changed. A
    foreign patch comes from the batch, so this model's training depends on how slices are grouped.
    Loss: squared error to the clean slice + `weight` * binary cross-entropy of the severity, means
    over the brain.

    Inference: mean over the assumed `severities`, each undone in `steps` (DISYRE). A step takes
    away an even share of what the network takes away at the severity that is left. Map:
    "restoration" |x - clean|, "severity" its predicted probability, or their "product".

    Args:
        in_channels: image channels.
        width: channels of the finest of five scales, a multiple of 8.
        kinds: "foreign" (patch of another slice), "poisson" (the same, seamless), "intensity",
            "deformation".
        share: share of training slices that are changed, 0 to 1.
        weight: weight of the severity against the restoration.
        severities: assumed at inference, each in [0, 1].
        steps: passes of the network for each of them.
        map: "restoration", "severity" or "product".
    """

    scoring_arguments = ("severities", "steps", "map")

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 16,
        kinds: Sequence[Literal["foreign", "poisson", "intensity", "deformation"]] = (
            "foreign",
            "poisson",
            "intensity",
            "deformation",
        ),
        share: float = 0.8,
        weight: float = 1.0,
        severities: Sequence[float] = (0.25, 0.5, 0.75),
        steps: int = 1,
        map: Literal["restoration", "severity", "product"] = "product",
    ) -> None:
        super().__init__()
        if not kinds or set(kinds) - set(CORRUPTIONS):
            raise ValueError(f"kinds: expected some of {', '.join(CORRUPTIONS)}, got {list(kinds)}")
        if not 0 <= share <= 1:
            raise ValueError(f"share: expected 0 to 1, got {share}")
        if not severities or min(severities) < 0 or max(severities) > 1:
            raise ValueError(f"severities: expected numbers from 0 to 1, got {list(severities)}")
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        self.net = unet(in_channels + 1, in_channels + 1, width)
        self.kinds = tuple(kinds)
        self.share = share
        self.weight = weight
        self.severities = tuple(severities)
        self.steps = steps
        self.map_kind = map

    def updates(self, stage: str) -> list[Update]:
        return [Update("restore", self.loss, list(self.parameters()))]

    def predict(self, x: Tensor, severity: Tensor) -> tuple[Tensor, Tensor]:
        """Return clean slices (B, C, H, W) and logits of the severity (B, 1, H, W).

        severity (B,) in [0, 1] is the one that is assumed.
        """
        assumed = severity.to(x)[:, None, None, None].expand(-1, 1, *x.shape[-2:])
        clean, logits = self.net(torch.cat([x, assumed], dim=1)).split([x.shape[1], 1], dim=1)
        return clean, logits

    def loss(self, batch: Batch) -> Losses:
        """Return restoration + weight * severity, of slices changed from their own seeds."""
        x = batch["image"]
        mask = batch["mask"]
        seeds = batch.get("seed")
        changed, severity = corrupt(x, mask, seeds, self.kinds, self.share)
        alpha = severity.flatten(1).amax(1)
        alpha = torch.where(alpha > 0, alpha, 0.05 + 0.9 * rand(alpha, seeds, stream=12))
        clean, logits = self.predict(changed, alpha)

        pixels = mask.sum().clamp(min=1)
        restoration = ((clean - x).square().mean(1, keepdim=True) * mask).sum() / pixels
        entropy = F.binary_cross_entropy_with_logits(logits, severity, reduction="none")
        cross = (entropy * mask).sum() / pixels
        return {
            "loss": restoration + self.weight * cross,
            "restoration": restoration,
            "severity": cross,
        }

    def restored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return clean slices and severities in [0, 1], mean over the assumed severities."""
        count = len(self.severities)
        clean = torch.zeros_like(x)
        severity = torch.zeros_like(x[:, :1])
        for assumed in self.severities:
            image, found = self._restored_from(x, assumed)
            clean = clean + image / count
            severity = severity + found / count
        return clean, severity

    def _restored_from(self, x: Tensor, assumed: float) -> tuple[Tensor, Tensor]:
        """Return clean slices and severities, from one assumed severity down to none."""
        severity = torch.zeros_like(x[:, :1])
        for left in range(self.steps, 0, -1):
            level = x.new_full((len(x),), assumed * left / self.steps)
            clean, logits = self.predict(x, level)
            x = clean if left == 1 else x + (clean - x) / left
            severity = severity + logits.sigmoid() / self.steps
        return x, severity

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.restored(x)[0]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        clean, severity = self.restored(x)
        apart = (x - clean).abs().mean(1, keepdim=True)
        values = {"restoration": apart, "severity": severity, "product": apart * severity}
        return values[self.map_kind] * mask
