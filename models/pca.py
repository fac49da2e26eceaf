"""Residual of a principal component analysis of healthy slices: the linear autoencoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.base import AnomalyModel, Batch
from models.parts.layers import blur_inside

ROWS = 512  # slices per step of the incremental fit; must not be below n_components


class Pca(AnomalyModel):
    """|x - projection of x on the first components of healthy slices|, fitted in bounded memory (Ross et al. 2008).

    Args:
        n_components: number of components, at most the number of training slices.
        mirror: also fit on every slice's mirror image.
        smooth: sigma in pixels of a Gaussian over the residual inside the brain.
    """

    stages = ()

    def __init__(self, n_components: int = 64, mirror: bool = True, smooth: float = 0.0) -> None:
        super().__init__()
        if not 1 <= n_components <= ROWS:
            raise ValueError(f"n_components: expected 1 to {ROWS}, got {n_components}")
        self.n_components, self.mirror, self.smooth = n_components, mirror, smooth
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("components", torch.zeros(0, 0))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        from sklearn.decomposition import IncrementalPCA

        fitted, waiting, count = IncrementalPCA(self.n_components), [], 0
        for batch in batches:
            x = batch["image"]
            waiting += [x.flatten(1), x.flip(2).flatten(1)] if self.mirror else [x.flatten(1)]
            count += len(waiting[-1]) * (1 + self.mirror)
            if count >= 2 * ROWS:  # what stays behind is always enough for a step of its own
                rows = torch.cat(waiting)
                fitted.partial_fit(rows[:ROWS].numpy())
                waiting, count = [rows[ROWS:]], count - ROWS
        rows = torch.cat(waiting)
        if len(rows) < self.n_components:
            raise ValueError(
                f"{len(rows)} healthy slices cannot give n_components={self.n_components}; lower model.n_components."
            )
        fitted.partial_fit(rows.numpy())
        device = self.get_buffer("mean").device
        self.mean = torch.tensor(fitted.mean_, dtype=torch.float32, device=device)
        self.components = torch.tensor(fitted.components_, dtype=torch.float32, device=device)

    def reconstruct(self, x: Tensor) -> Tensor:
        mean, components = self.get_buffer("mean"), self.get_buffer("components")
        centred = x.float().flatten(1) - mean
        with torch.autocast(x.device.type, enabled=False):
            return (mean + centred @ components.T @ components).view_as(x)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        residual = (x - self.reconstruct(x)).abs().mean(1, keepdim=True)
        return blur_inside(residual, mask.float(), self.smooth)
