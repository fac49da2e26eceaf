"""PatchCore: nearest neighbour of ImageNet features among healthy slices (Roth et al. 2022), here place by place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch
from models.parts.layers import ImageNetFeatures, generator

log = logging.getLogger("norma")
AT_ONCE = (
    1 << 20
)  # numbers of the memory that are held in float32 at a time; more leave the processor's cache


class Patchcore(AnomalyModel):
    """Distance of each cell's features from the nearest of healthy slices at the same place of the atlas.

    A slice is a grid of cells; a cell's features are those of an ImageNet network, pooled to the grid, averaged over 3 x 3 cells, of unit
    length per block. Their Euclidean distance, between 0 and 2 sqrt(number of blocks), is the map. Score: mean of the `top` most distant
    cells with brain.

    Args:
        blocks: blocks of the network whose features are joined, from 0 to 15.
        size: side in pixels that slices are resized to for the network.
        cells: side of the grid.
        reach: how many cells away, along each axis, a healthy cell may lie.
        reach_z: how many slices away in the atlas a healthy slice may lie; where none does, the nearest ones count.
        neighbours: how many nearest cells the distance is averaged over.
        mirror: also remember every slice's mirror image.
        memory: largest number of slices to remember, mirror images counted; each takes cells^2 * dimension * 2 bytes. Beyond it, a
            seeded random choice, spread evenly over the slice indices.
        dimension: random projection of the features to this many numbers (Johnson & Lindenstrauss 1984); 0 keeps all.
        top: number of cells that make the score.
    """

    stages = ()

    def __init__(
        self,
        blocks: Sequence[int] = (2, 4, 7),
        size: int = 224,
        cells: int = 28,
        reach: int = 1,
        reach_z: int = 1,
        neighbours: int = 1,
        mirror: bool = True,
        memory: int = 1000,
        dimension: int = 0,
        top: int = 40,
    ) -> None:
        super().__init__()
        least = {
            "cells": 1,
            "reach": 0,
            "reach_z": 0,
            "neighbours": 1,
            "memory": 1 + mirror,
            "dimension": 0,
            "top": 1,
        }
        given = {
            "cells": cells,
            "reach": reach,
            "reach_z": reach_z,
            "neighbours": neighbours,
            "memory": memory,
            "dimension": dimension,
        }
        for name, value in (given | {"top": top}).items():
            if value < least[name]:
                raise ValueError(f"{name}: expected at least {least[name]}, got {value}")
        self.network = ImageNetFeatures(blocks, size)
        self.cells, self.reach, self.reach_z, self.neighbours, self.mirror = (
            cells,
            reach,
            reach_z,
            neighbours,
            mirror,
        )
        self.most, self.dimension, self.top = memory // (1 + mirror), dimension, top
        length = sum(self.network.channels)
        projection = (
            torch.randn(length, dimension, generator=generator(0, 7)) / max(dimension, 1) ** 0.5
        )
        self.register_buffer("projection", projection)
        self.register_buffer(
            "memory", torch.zeros(cells**2, 0, dimension or length, dtype=torch.float16)
        )  # by cell, slice, feature
        self.register_buffer(
            "place", torch.zeros(0, dtype=torch.long)
        )  # slice index of each remembered slice, rising

    def features(self, x: Tensor) -> Tensor:
        """Features of the cells of slices (B, C, H, W), (B, features, cells, cells)."""
        pooled = [F.adaptive_avg_pool2d(v, self.cells) for v in self.network(x)]
        unit = [F.normalize(F.avg_pool2d(v, 3, 1, 1, count_include_pad=False)) for v in pooled]
        joined = torch.cat(unit, 1)
        return (
            torch.einsum("bcij,cd->bdij", joined, self.get_buffer("projection"))
            if self.dimension
            else joined
        )

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        device, seen = self.get_buffer("memory").device, 0
        kept: list[Tensor] = []
        place, lot = np.zeros(0, np.int64), np.zeros(0)
        for batch in batches:
            x = batch["image"].to(device)
            pair = [
                self.features(v).flatten(2).half().cpu()
                for v in ((x, x.flip(2)) if self.mirror else (x,))
            ]
            kept += [
                v.clone() for v in torch.stack(pair, 1)
            ]  # (1 or 2, features, cells^2) of each slice
            lot = np.append(
                lot,
                [torch.rand(1, generator=generator(s, 7)).item() for s in batch["seed"].tolist()],
            )
            place, seen = np.append(place, batch["z"].cpu().numpy()), seen + len(x)
            chosen = evenly(place, lot, self.most)
            kept, place, lot = [kept[i] for i in chosen], place[chosen], lot[chosen]
        order = np.argsort(place, kind="stable")
        self.memory = torch.cat([kept[i] for i in order]).permute(2, 0, 1).contiguous().to(device)
        self.place = torch.as_tensor(place[order]).repeat_interleave(1 + self.mirror).to(device)
        log.info(
            "patchcore: %d of %d slices remembered, %.0f MB",
            len(kept),
            seen,
            self.memory.nbytes / 1e6,
        )

    def distances(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distance of each cell from healthy ones and whether it holds brain, both (B, 1, cells, cells)."""
        place = self.get_buffer("place")
        where = (
            torch.zeros(len(x), dtype=torch.long, device=x.device) if z is None else z.to(x.device)
        )
        out = torch.zeros(len(x), 1, self.cells, self.cells, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            asked = self.features(x)
            for at in where.unique().tolist():
                radius = max(self.reach_z, int((place - at).abs().min()))
                low, high = (
                    int(torch.searchsorted(place, edge)) for edge in (at - radius, at + radius + 1)
                )
                out[where == at, 0] = self._nearest(asked[where == at], low, high)
        inside = (F.adaptive_avg_pool2d(mask.float(), self.cells) > 0).float()
        return out * inside, inside

    def _nearest(self, asked: Tensor, low: int, high: int) -> Tensor:
        """Distances (B, cells, cells) of features (B, features, cells, cells) from the remembered slices `low` to `high`.

        Every remembered cell meets the asked cells around it, so that the memory is read once; each asked cell then gathers what the
        remembered cells around it have found. The nearest are found by products and measured by differences, which are exact near 0.
        """
        side, n, memory = 2 * self.reach + 1, self.cells, self.get_buffer("memory")
        around = F.unfold(asked, side, padding=self.reach).view(
            len(asked), asked.shape[1], side**2, n**2
        )
        around = around.permute(3, 0, 2, 1).flatten(1, 2)  # (cells^2, B * side^2, features)
        k, found = min(self.neighbours, high - low), []
        cells = max(1, AT_ONCE // ((high - low) * asked.shape[1]))
        for query, part in zip(around.split(cells), memory.split(cells), strict=True):
            known = part[:, low:high].float()
            squared = torch.baddbmm(
                known.square().sum(2)[:, None], query, known.mT, alpha=-2
            )  # but for the query's own length
            index = (
                squared.topk(k, largest=False)
                .indices.flatten(1)[..., None]
                .expand(-1, -1, known.shape[2])
            )
            nearest = known.gather(1, index).view(len(query), -1, k, known.shape[2])
            found.append((nearest - query[:, :, None]).norm(dim=3))
        grid = torch.cat(found).view(n, n, len(asked), side**2, k).permute(2, 4, 3, 0, 1)
        grid = F.pad(grid, (self.reach,) * 4, value=float("inf"))
        moved = []
        for offset in range(side**2):
            row, column = 2 * self.reach - offset // side, 2 * self.reach - offset % side
            moved.append(grid[:, :, offset, row : row + n, column : column + n])
        best = torch.cat(moved, 1)
        best = best.topk(min(self.neighbours, best.shape[1]), dim=1, largest=False).values
        return best.where(best.isfinite(), float("nan")).nanmean(1)

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Mean of the `top` largest distances among the cells with brain, (B,)."""
        return self._top(*self.distances(x, mask, z))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self.map_and_score(x, mask, z)[0]

    def map_and_score(
        self, x: Tensor, mask: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        found, inside = self.distances(x, mask, z)
        return F.interpolate(found, x.shape[-2:], mode="bilinear") * mask, self._top(found, inside)

    def _top(self, found: Tensor, inside: Tensor) -> Tensor:
        top = min(self.top, self.cells**2)
        return found.flatten(1).topk(top).values.sum(1) / inside.flatten(1).sum(1).clamp(1, top)


def evenly(place: np.ndarray, lot: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` slices, as many of each place as of any other where there are enough; within a place the lowest lots (N,).

    What is kept of all slices is the same whether they are thinned at once or as they come.
    """
    order = np.lexsort((lot, place))
    rank = np.empty(len(place), np.int64)
    rank[order] = np.arange(len(place)) - np.searchsorted(place[order], place[order])
    return np.sort(np.lexsort((lot, rank))[:count])
