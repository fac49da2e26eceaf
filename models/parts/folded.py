"""Several detectors, each trained without one part of the healthy scans, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.base import AnomalyModel


class Folded(AnomalyModel):
    """What every one of the detectors finds: the lowest of their maps at each voxel.

    Each healthy scan is scored by the one detector that has not seen it; a new scan by all. The
    lowest map cannot pass a level that one of the detectors' maps does not pass. So the levels of
    the healthy scans hold for new ones (CV-minmax, after Barber et al. 2021).

    Args:
        members: detectors of one config.
    """

    stages = ()

    def __init__(self, members: Sequence[AnomalyModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self._lowest(lambda member: member.anomaly_map(x, mask, z))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self._lowest(lambda member: member.score(x, mask, z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of the detectors' reconstructions."""
        return torch.stack([member.reconstruct(x) for member in self._detectors()]).mean(0)

    def _lowest(self, function: Callable[[AnomalyModel], Tensor]) -> Tensor:
        return torch.stack([function(member) for member in self._detectors()]).amin(0)

    def _detectors(self) -> list[AnomalyModel]:
        return [member for member in self.members if isinstance(member, AnomalyModel)]
