"""Residual of a principal component analysis of healthy slices: the linear autoencoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from models.base import AnomalyModel, Batch
from models.parts.filters import blur_inside

STEP = 512  # slices per step of the incremental fit; must not be below n_components


class Pca(AnomalyModel):
    """|x - projection of x on the first components of healthy slices|.

    The components are fitted in bounded memory (Ross et al. 2008).

    Args:
        n_components: number of components, at most the number of training slices.
        mirror: also fit on every slice's mirror image.
        smooth: sigma in pixels of a Gaussian over the residual inside the brain.
    """

    stages = ()

    def __init__(self, n_components: int = 64, mirror: bool = True, smooth: float = 0.0) -> None:
        super().__init__()
        if not 1 <= n_components <= STEP:
            raise ValueError(f"n_components: expected 1 to {STEP}, got {n_components}")
        self.n_components = n_components
        self.mirror = mirror
        self.smooth = smooth
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("components", torch.zeros(0, 0))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        fitted = IncrementalPCA(self.n_components)
        waiting: list[Tensor] = []
        count = 0
        for batch in batches:
            x = batch["image"]
            waiting += [x.flatten(1), x.flip(2).flatten(1)] if self.mirror else [x.flatten(1)]
            count += len(waiting[-1]) * (1 + self.mirror)
            if count >= 2 * STEP:  # what stays behind is always enough for a step of its own
                slices = torch.cat(waiting)
                fitted.partial_fit(slices[:STEP].numpy())
                waiting = [slices[STEP:]]
                count -= STEP

        slices = torch.cat(waiting)
        if len(slices) < self.n_components:
            raise ValueError(
                f"{len(slices)} healthy slices cannot give n_components={self.n_components}; "
                "lower model.n_components."
            )
        fitted.partial_fit(slices.numpy())
        device = self.get_buffer("mean").device
        self.mean = torch.tensor(fitted.mean_, dtype=torch.float32, device=device)
        self.components = torch.tensor(fitted.components_, dtype=torch.float32, device=device)

    def reconstruct(self, x: Tensor) -> Tensor:
        mean = self.get_buffer("mean")
        components = self.get_buffer("components")
        centred = x.float().flatten(1) - mean
        with torch.autocast(x.device.type, enabled=False):
            return (mean + centred @ components.T @ components).view_as(x)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        residual = (x - self.reconstruct(x)).abs().mean(1, keepdim=True)
        return blur_inside(residual, mask.float(), self.smooth)
