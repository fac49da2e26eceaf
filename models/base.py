"""The contract between a detector and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Batch = dict[str, Tensor]
"""What a model gets in training.

- `image` (B, C, H, W) float in [0, 1], background 0.
- `mask` (B, 1, H, W) brain, 0 or 1.
- `z` (B,) int64, index of the axial slice in the space of the atlas; 0 for a picture.
- `label` (B,) int64, 1 for a slice of an abnormal scan; for supervised models.
- `seed` (B,) int64, one number per sample and epoch. Draw a sample's randomness from it
  (`models.parts.randomness`). Then training does not depend on how samples are grouped into
  batches, workers or processes.

A model with the constructor argument `spatial_dims` set to 3 gets whole scans or patches of them
in place of slices. Read (X, Y, Z) for (H, W): to the right, to the front and upwards in the atlas.
Then `z` is 0 and `label` is the scan's.
"""
Losses = dict[str, Tensor]
"""`loss` (scalar) is minimised; other scalars are logged."""


@dataclass(frozen=True)
class Update:
    """One optimiser step per batch: a loss and the parameters that it moves.

    The loss must be a method of the model. Everything else is frozen meanwhile. The step is taken
    on every `every`-th batch.
    """

    name: str
    loss: Callable[[Batch], Losses]
    parameters: Sequence[nn.Parameter]
    every: int = 1


class AnomalyModel(nn.Module, ABC):
    """A detector: losses for training, `anomaly_map` for inference.

    One file and one YAML, one level of inheritance. A model without stages learns nothing by
    gradient: `fit_reference` alone makes it, and no seed changes it.
    """

    stages: tuple[str, ...] = ("train",)
    # Constructor arguments that training does not depend on, such as the kind of map.
    scoring_arguments: tuple[str, ...] = ()
    # Made of finished runs, its `members`; see pipelines/detect/build.py.
    combines: bool = False
    # Trains on abnormal scans too and needs batch["label"]: a labelled upper bound, not a
    # detector of the unknown.
    supervised: bool = False

    def updates(self, stage: str) -> list[Update]:
        """Return the optimiser steps of a stage, in order."""
        raise NotImplementedError(f"{type(self).__name__} has no stage '{stage}'")

    @abstractmethod
    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the map (B, 1, H, W) >= 0: larger is more anomalous, 0 outside the mask.

        Volumes (B, C, X, Y, Z) give maps (B, 1, X, Y, Z).

        Args:
            x: images (B, C, H, W).
            mask: brain (B, 1, H, W).
            z: index of each slice in atlas space (B,) int64, for models that compare places; None
                counts as 0.
        """

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the score (B,): mean of the map inside the mask, 0 for an empty mask."""
        return self.anomaly_map(x, mask, z).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def map_and_score(
        self, x: Tensor, mask: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `anomaly_map` and `score`, for models that get both from one pass."""
        return self.anomaly_map(x, mask, z), self.score(x, mask, z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the pseudo-healthy image, of the shape of x; only where the model has one."""
        raise NotImplementedError(f"{type(self).__name__} reconstructs nothing")

    def draw(self, count: int) -> Tensor | None:
        """Return images (count, C, H, W) or volumes that a generative model draws, for the logs.

        They are the same at every call. None for other models.
        """
        return None

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fit what training needs to know, on all training slices, before the first stage.

        What is fitted lies in buffers. Most models have no such part.
        """

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Fit the closed-form part on all training slices or volumes, after the last stage.

        What is fitted lies in buffers. Most models have no such part.
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Give buffers that `fit_reference` filled the shape that they were stored with."""
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                self._buffers[name] = stored.new_zeros(stored.shape, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
