"""DenseNet121 trained on labels: the labelled upper bound of a comparison.

Slides, ultra-widefield fundus part 1.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import DenseNet121
from monai.visualize import GradCAM
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update


class DensenetSupervised(AnomalyModel):
    """MONAI's DenseNet121 (Huang et al. 2017) that separates abnormal from healthy slices.

    Unlike all other models it learns from labels. Loss: cross-entropy, abnormal slices weighted by
    `positive_weight`. Score of a slice: its probability to be abnormal. Map: Grad-CAM (Selvaraju et
    al. 2017) of the last features, without scaling per image, times that probability.

    Args:
        in_channels: image channels.
        positive_weight: weight of abnormal slices; healthy over abnormal training slices balances
            the two.
        dropout: dropout inside the network.
    """

    supervised = True

    def __init__(
        self, in_channels: int = 1, positive_weight: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.net = DenseNet121(
            spatial_dims=2, in_channels=in_channels, out_channels=1, dropout_prob=dropout
        )
        self.positive_weight = positive_weight
        self._cam: list[Any] = []  # filled at first use: it hooks into the network

    def updates(self, stage: str) -> list[Update]:
        return [Update("classify", self.loss, list(self.parameters()))]

    def loss(self, batch: Batch) -> Losses:
        """Return the weighted binary cross-entropy of the slices' labels; log the accuracy."""
        logits = self.net(batch["image"]).flatten()
        labels = batch["label"].float()
        weight = torch.tensor(self.positive_weight, device=logits.device)
        accuracy = ((logits > 0) == (labels > 0.5)).float().mean()
        entropy = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
        return {"loss": entropy, "accuracy": accuracy}

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self.net(x).flatten().sigmoid()

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        if not self._cam:
            self._cam.append(GradCAM(self.net, "class_layers.relu"))
        with torch.autocast(x.device.type, enabled=False):
            with torch.inference_mode(False), torch.enable_grad():
                y = x.detach().float().clone().requires_grad_()
                coarse = self._cam[0].compute_map(y, class_idx=0).detach()
            self.net.zero_grad(set_to_none=True)
            fine = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
            return fine * self.score(x.float(), mask)[:, None, None, None].detach() * mask
