"""The map that marks nothing: what every method must beat."""

from __future__ import annotations

from torch import Tensor

from models.base import AnomalyModel


class Zero(AnomalyModel):
    """Constant map 0: AUROC 0.5 and AP at the prevalence, by definition."""

    stages = ()

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return mask * 0
