"""PatchCore: nearest neighbour of ImageNet features among healthy slices (Roth et al. 2022).

Here cells are compared place by place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch
from models.parts.features import ImageNetFeatures
from models.parts.randomness import generator

log = logging.getLogger("norma")
AT_ONCE = 1 << 20  # numbers that are worked on together; more leave the processor's cache
SLICES_AT_ONCE = 16  # neighbours in the atlas, which are compared with much the same slices


class Patchcore(AnomalyModel):
    """Distance of each cell's features from the nearest of healthy slices at the same place.

    A slice is a grid of cells. A cell's features are those of an ImageNet network, pooled to the
    grid, averaged over 3 x 3 cells, of unit length per block. Their Euclidean distance, between 0
    and 2 sqrt(number of blocks), is the map. Score: mean of the `top` most distant cells with
    brain.

    Args:
        blocks: blocks of the network whose features are joined, from 0 to 15.
        size: side in pixels that slices are resized to for the network.
        cells: side of the grid.
        reach: how many cells away, along each axis, a healthy cell may lie.
        reach_z: how many slices away in the atlas a healthy slice may lie; where none does, the
            nearest ones count.
        neighbours: how many nearest cells the distance is averaged over.
        mirror: also remember every slice's mirror image.
        memory: largest number of slices to remember, mirror images counted. Each takes cells^2 *
            dimension * 2 bytes. Beyond it a seeded random choice is remembered, spread evenly over
            the slice indices.
        dimension: random projection of the features to this many numbers (Johnson & Lindenstrauss
            1984); 0 leaves them as they are.
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
        _at_least("cells", cells, 1)
        _at_least("reach", reach, 0)
        _at_least("reach_z", reach_z, 0)
        _at_least("neighbours", neighbours, 1)
        _at_least("memory", memory, 1 + mirror)
        _at_least("dimension", dimension, 0)
        _at_least("top", top, 1)
        self.network = ImageNetFeatures(blocks, size)
        self.cells = cells
        self.reach = reach
        self.reach_z = reach_z
        self.neighbours = neighbours
        self.mirror = mirror
        self.most = memory // (1 + mirror)  # slices, mirror images not counted
        self.dimension = dimension
        self.top = top

        length = sum(self.network.channels)
        directions = torch.randn(length, dimension, generator=generator(0, 7))
        self.register_buffer("projection", directions / max(dimension, 1) ** 0.5)
        # By cell, slice, feature.
        empty = torch.zeros(cells**2, 0, dimension or length, dtype=torch.float16)
        self.register_buffer("memory", empty)
        # Slice index of each remembered slice, rising.
        self.register_buffer("place", torch.zeros(0, dtype=torch.long))

    def features(self, x: Tensor) -> Tensor:
        """Return features of the cells of slices (B, C, H, W), (B, features, cells, cells)."""
        pooled = [F.adaptive_avg_pool2d(v, self.cells) for v in self.network(x)]
        unit = [F.normalize(F.avg_pool2d(v, 3, 1, 1, count_include_pad=False)) for v in pooled]
        joined = torch.cat(unit, 1)
        if not self.dimension:
            return joined
        return torch.einsum("bcij,cd->bdij", joined, self.get_buffer("projection"))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Remember healthy slices, thinned as they come so that memory stays bounded."""
        device = self.get_buffer("memory").device
        count = 0
        slices: list[Tensor] = []
        place = np.zeros(0, np.int64)
        lots = np.zeros(0)
        for batch in batches:
            x = batch["image"].to(device)
            count += len(x)
            # Clones: a view would hold on to the whole batch.
            slices += [v.clone() for v in self._with_mirror_image(x)]
            lots = np.append(lots, [_lot(seed) for seed in batch["seed"].tolist()])
            place = np.append(place, batch["z"].cpu().numpy())

            chosen = evenly(place, lots, self.most)
            slices = [slices[i] for i in chosen]
            place = place[chosen]
            lots = lots[chosen]

        order = np.argsort(place, kind="stable")
        self.memory = torch.cat([slices[i] for i in order]).permute(2, 0, 1).contiguous().to(device)
        self.place = torch.as_tensor(place[order]).repeat_interleave(1 + self.mirror).to(device)
        megabytes = self.memory.nbytes / 1e6
        log.info("patchcore: %d of %d slices remembered, %.0f MB", len(slices), count, megabytes)

    def _with_mirror_image(self, x: Tensor) -> Tensor:
        """Return features (B, 1 or 2, features, cells^2) of slices, and of their mirror images."""
        views = (x, x.flip(2)) if self.mirror else (x,)
        return torch.stack([self.features(v).flatten(2).half().cpu() for v in views], 1)

    def distances(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return each cell's distance from healthy ones and whether it holds brain.

        Both are (B, 1, cells, cells).
        """
        index = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if z is not None:
            index = z.to(x.device)
        out = torch.zeros(len(x), 1, self.cells, self.cells, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            features = self.features(x)
            for part in index.argsort(stable=True).split(SLICES_AT_ONCE):
                out[part, 0] = self._nearest(features[part], index[part])
        inside = (F.adaptive_avg_pool2d(mask.float(), self.cells) > 0).float()
        return out * inside, inside

    def _nearest(self, features: Tensor, index: Tensor) -> Tensor:
        """Return distances (B, cells, cells) from the remembered slices near slice indices (B,).

        Every remembered cell meets the query cells around it, so that the memory is read once.
        Each query cell then gathers what the remembered cells around it have found. The nearest
        are found by products and measured by differences, which are exact near 0.

        Args: features (B, features, cells, cells).
        """
        side = 2 * self.reach + 1
        n = self.cells
        count, length = features.shape[:2]
        around = F.unfold(features, side, padding=self.reach).view(count, length, side**2, n**2)
        queries = around.permute(3, 0, 2, 1).flatten(1, 2)  # (cells^2, B * side^2, features)

        place = self.get_buffer("place")
        apart = (place - index[:, None]).abs()  # (B, slices)
        near = apart <= apart.amin(1, keepdim=True).clamp(min=self.reach_z)
        used = near.any(0)
        far = ~near[:, used].repeat_interleave(side**2, 0)  # (B * side^2, slices)
        k = min(self.neighbours, far.shape[1])
        cells = max(1, AT_ONCE // (far.shape[1] * max(length, len(far))))
        memory = self.get_buffer("memory")[:, used]
        parts = zip(queries.split(cells), memory.split(cells), strict=True)
        found = [_distances(query, part.float(), far, k) for query, part in parts]

        grid = torch.cat(found).view(n, n, count, side**2, k).permute(2, 4, 3, 0, 1)
        grid = F.pad(grid, (self.reach,) * 4, value=float("inf"))
        moved = []
        for offset in range(side**2):
            row = 2 * self.reach - offset // side
            column = 2 * self.reach - offset % side
            moved.append(grid[:, :, offset, row : row + n, column : column + n])
        best = torch.cat(moved, 1)
        best = best.topk(min(self.neighbours, best.shape[1]), dim=1, largest=False).values
        return best.where(best.isfinite(), float("nan")).nanmean(1)

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the mean of the `top` largest distances among the cells with brain, (B,)."""
        return self._mean_of_top(*self.distances(x, mask, z))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return self.map_and_score(x, mask, z)[0]

    def map_and_score(
        self, x: Tensor, mask: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        found, inside = self.distances(x, mask, z)
        fine = F.interpolate(found, x.shape[-2:], mode="bilinear") * mask
        return fine, self._mean_of_top(found, inside)

    def _mean_of_top(self, found: Tensor, inside: Tensor) -> Tensor:
        top = min(self.top, self.cells**2)
        return found.flatten(1).topk(top).values.sum(1) / inside.flatten(1).sum(1).clamp(1, top)


def _at_least(name: str, value: int, least: int) -> None:
    """Raise a ValueError where a setting is below the least that makes sense."""
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _lot(seed: int) -> float:
    """Return the lot of a slice with this seed, in [0, 1): the lowest are remembered."""
    return torch.rand(1, generator=generator(seed, 7)).item()


def _distances(query: Tensor, known: Tensor, far: Tensor, k: int) -> Tensor:
    """Return the distances (cells, Q, k) of queries to the k nearest known slices of each cell.

    Infinite where fewer than k count.

    Args: query (cells, Q, features); known (cells, slices, features); far (Q, slices), the slices
        that do not count for a query.
    """
    # Squared distance but for the query's own length.
    squared = torch.baddbmm(known.square().sum(2)[:, None], query, known.mT, alpha=-2)
    lowest, chosen = squared.masked_fill_(far, float("inf")).topk(k, largest=False)
    index = chosen.flatten(1)[..., None].expand(-1, -1, known.shape[2])
    nearest = known.gather(1, index).view(len(query), -1, k, known.shape[2])
    return (nearest - query[:, :, None]).norm(dim=3).masked_fill_(lowest.isinf(), float("inf"))


def evenly(place: np.ndarray, lots: np.ndarray, count: int) -> np.ndarray:
    """Return indices of `count` slices, as many of each place as of any other.

    Where a place has too few slices, others have more. Within a place the lowest lots (N,) are
    taken. The choice is the same whether slices are thinned at once or as they come.
    """
    order = np.lexsort((lots, place))
    rank = np.empty(len(place), np.int64)
    rank[order] = np.arange(len(place)) - np.searchsorted(place[order], place[order])
    return np.sort(np.lexsort((lots, rank))[:count])
