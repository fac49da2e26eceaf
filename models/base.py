"""The contract between a detector and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Batch = dict[str, Tensor]
"""`image` (B, C, H, W) float in [0, 1], background 0; `mask` (B, 1, H, W) brain, 0 or 1; `z` (B,) int64, index of the axial
slice in the space of the atlas, 0 for a picture; `label` (B,) int64, 1 for a slice of an abnormal scan, for supervised
models; `seed` (B,) int64, one number per sample and epoch: draw a sample's randomness from it (`layers.randn`) and
training does not depend on how samples are grouped into batches, workers or processes. A model with the constructor argument
`spatial_dims` set to 3 gets whole scans or patches of them instead of slices: wherever (H, W) stands it sees (X, Y, Z), to the right,
to the front and upwards in the atlas, `z` is 0 and `label` is the scan's."""
Losses = dict[str, Tensor]
"""`loss` (scalar) is minimised; other scalars are logged."""


@dataclass(frozen=True)
class Update:
    """One optimiser step per batch: a loss, which must be a method of the model, and the parameters it moves.

    Everything else is frozen meanwhile; the step is taken on every `every`-th batch.
    """

    name: str
    loss: Callable[[Batch], Losses]
    parameters: Sequence[nn.Parameter]
    every: int = 1


class AnomalyModel(nn.Module, ABC):
    """A detector: losses for training, `anomaly_map` for inference. One file and one YAML, one level of inheritance.

    A model without stages learns nothing by gradient: `fit_reference` alone makes it, and no seed changes it.
    """

    stages: tuple[str, ...] = ("train",)
    scoring_arguments: tuple[
        str, ...
    ] = ()  # constructor arguments that training does not depend on, such as the kind of map
    combines: bool = False  # made of finished runs, its `members`; see pipelines/runs.py
    supervised: bool = False  # trains on abnormal scans too and needs batch["label"]; a labelled upper bound, not a detector of the unknown

    def updates(self, stage: str) -> list[Update]:
        """The optimiser steps of a stage, in order."""
        raise NotImplementedError(f"{type(self).__name__} has no stage '{stage}'")

    @abstractmethod
    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Map (B, 1, H, W) >= 0, larger is more anomalous, 0 outside the mask; x (B, C, H, W), mask (B, 1, H, W).

        `z` (B,) int64 is the slice's index in atlas space, for models that compare places; None counts as 0. Volumes (B, C, X, Y, Z)
        give maps (B, 1, X, Y, Z).
        """

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Score (B,): mean of the map inside the mask, 0 for an empty mask."""
        return self.anomaly_map(x, mask, z).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def map_and_score(
        self, x: Tensor, mask: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`anomaly_map` and `score`, for models that get both from one pass."""
        return self.anomaly_map(x, mask, z), self.score(x, mask, z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pseudo-healthy image of the shape of x; only where the model has one."""
        raise NotImplementedError(f"{type(self).__name__} reconstructs nothing")

    def draw(self, count: int) -> Tensor | None:
        """Images (count, C, H, W) or volumes that a generative model draws, the same at every call, for the logs; None for other models."""
        return None

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Closed-form part fitted after the last stage on all training slices or volumes; kept in buffers. Most models have none."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Buffers that `fit_reference` filled take the shape they were stored with."""
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                self._buffers[name] = stored.new_zeros(stored.shape, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
