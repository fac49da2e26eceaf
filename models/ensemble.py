"""Several detectors as one: the mean of how improbable each finds a pixel among healthy ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch

TAILS = 10 ** -torch.linspace(0, 6, 241)  # tail probabilities, 40 per decade
SAMPLE_SIZE = 4_000_000  # healthy values per member at most, the same share of each scan
AT_ONCE = 16  # slices of a volume


class Ensemble(AnomalyModel):
    """Healthy-normalised maps of finished runs, combined.

    A member's map value v becomes -log10 P(healthy value >= v), from the maps of healthy
    validation scans. Beyond the highest healthy value it goes on in proportion to v. The map is
    the mean over members. So detectors of any scale add up, and a member that marks nothing where
    it knows nothing does not hide another.

    The same scans calibrate the run. So each is scored by the scale of the others, and a new scan
    by the highest of these scales: its map cannot pass a level that the map by one of them does not
    pass (jackknife-minmax, Barber et al. 2021).

    Members get slices at their own resolution. Given volumes on the grid of the scans, each gets
    slices of its own plane, with the neighbours that it was trained with: one network per plane is
    three-plane aggregation.

    Args:
        members: trained detectors.
        sizes: height and width of the slices that each member gets.
        planes: of each member, the axes of a volume (X, Y, Z) in the order that puts that of its
            slices last; axial where left out.
        around: offsets of the slices that each member gets as further channels; none where left
            out.
    """

    stages = ()
    combines = True

    def __init__(
        self,
        members: Sequence[AnomalyModel] = (),
        sizes: Sequence[tuple[int, int]] = (),
        planes: Sequence[tuple[int, int, int]] | None = None,
        around: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.sizes: list[tuple[int, int]] = [(s[0], s[1]) for s in sizes]
        self.planes = list(planes or [(0, 1, 2)] * len(members))
        self.around = list(around or [()] * len(members))
        self.register_buffer("knots", torch.linspace(0, 1, len(TAILS)).repeat(len(members), 1))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the healthy distribution of each member's map from the slices of one scan."""
        self.fit_scans([batches])

    def fit_scans(self, scans: Sequence[Iterable[Batch]]) -> list[Tensor]:
        """Take the healthy distribution of each member's map; return it without each scan in turn.

        The healthy scans are ones that no member has learned from. A single one is in its own
        distribution.
        """
        if not self.members:
            return []
        samples = [self._sample(batches, SAMPLE_SIZE // len(scans)) for batches in scans]
        without = []
        for i in range(len(samples)):
            others = samples[:i] + samples[i + 1 :] or samples
            without.append(torch.stack([_knots(torch.cat(v)) for v in zip(*others, strict=True)]))
        device = self.get_buffer("knots").device
        without = [knots.to(device) for knots in without]
        self.knots = torch.stack(without).amax(0)
        return without

    def with_knots(self, knots: Tensor) -> Ensemble:
        """Return an ensemble of the same members by another scale, (members, K)."""
        members = [m for m in self.members if isinstance(m, AnomalyModel)]
        other = Ensemble(members, self.sizes, self.planes, self.around)
        other.knots = knots
        return other.train(self.training)

    def _sample(self, batches: Iterable[Batch], size: int) -> list[Tensor]:
        """Return at most `size` values of each member's map of some slices."""
        device = self.get_buffer("knots").device
        samples = [_Sample(size) for _ in self.members]
        with torch.no_grad():
            for batch in batches:
                x, mask, z = (batch[k].to(device) for k in ("image", "mask", "z"))
                for sample, found in zip(samples, self._maps(x, mask, z), strict=True):
                    sample.add(found[mask > 0].float().cpu())
        return [sample.values for sample in samples]

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        maps = zip(self._maps(x, mask, z), self.get_buffer("knots"), strict=True)
        found = [improbability(values, knots) for values, knots in maps]
        if not found:
            return torch.zeros_like(mask, dtype=torch.float32)
        return torch.stack(found).mean(0) * mask

    def _maps(self, x: Tensor, mask: Tensor, z: Tensor | None) -> list[Tensor]:
        """Return each member's map at the resolution of x, (B, 1, H, W) or (B, 1, X, Y, Z)."""
        if x.dim() == 4:
            pairs = zip(self.members, self.sizes, strict=True)
            return [_of_slices(member, size, x, mask, z) for member, size in pairs]
        volumes = list(zip(x.split(1), mask.split(1), strict=True))
        maps = []
        for view in zip(self.members, self.sizes, self.planes, self.around, strict=True):
            maps.append(torch.cat([_of_volume(*view, v, m) for v, m in volumes]))
        return maps


def _of_slices(
    member: nn.Module, size: tuple[int, ...], x: Tensor, mask: Tensor, z: Tensor | None
) -> Tensor:
    """Return a member's map of slices (B, C, H, W), from its own resolution back at theirs."""
    assert isinstance(member, AnomalyModel)
    if x.shape[2:] == size:
        return member.anomaly_map(x * mask, mask, z).float()
    small = F.interpolate(x, size, mode="area")
    inside = F.interpolate(mask, size, mode="nearest-exact")
    found = member.anomaly_map(small * inside, inside, z).float()
    return F.interpolate(found, x.shape[2:], mode="bilinear", align_corners=False) * mask


def _of_volume(
    member: nn.Module,
    size: tuple[int, ...],
    axes: tuple[int, int, int],
    around: tuple[int, ...],
    x: Tensor,
    mask: Tensor,
) -> Tensor:
    """Return a member's map of one volume (1, C, X, Y, Z), slice by slice of its plane."""
    result = torch.zeros_like(mask, dtype=torch.float32)
    order = (1 + axes[2], 0, 1 + axes[0], 1 + axes[1])  # slices first
    # Views: what is written to `shown` stands in `result`.
    slices, inside, shown = (v[0].permute(order) for v in (x, mask, result))
    for indices in inside.flatten(1).any(1).nonzero().flatten().split(AT_ONCE):
        seen = _with_neighbours(slices, indices, around)
        shown[indices] = _of_slices(member, size, seen, inside[indices], indices)
    return result


def _with_neighbours(slices: Tensor, indices: Tensor, around: tuple[int, ...]) -> Tensor:
    """Return slices of a stack (S, C, H, W), those `around` each as more channels; 0 beyond it."""
    parts = [slices[indices]]
    for offset in around:
        places = indices + offset
        stored = (places >= 0) & (places < len(slices))
        parts.append(slices[places.clamp(0, len(slices) - 1)] * stored[:, None, None, None])
    return torch.cat(parts, 1)


def improbability(values: Tensor, knots: Tensor) -> Tensor:
    """Return -log10 of the healthy tail probability of map values of any shape.

    knots (K,): the values at the tail probabilities TAILS.
    """
    levels = -TAILS.log10().to(values)
    flat = values.flatten().to(knots.dtype).contiguous()
    after = torch.searchsorted(knots, flat, right=True).clamp(1, len(knots) - 1)
    low = knots[after - 1]
    high = knots[after]
    share = ((flat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    inside = levels[after - 1] + share * (levels[after] - levels[after - 1])
    beyond = levels[-1] * flat / knots[-1].clamp(min=1e-12)
    return torch.where(flat > knots[-1], beyond, inside).clamp(min=0).reshape(values.shape)


class _Sample:
    """All values that were added, or every 2nd, 4th, ... of them: at most `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = torch.zeros(0)
        self.step = 1

    def add(self, values: Tensor) -> None:
        self.values = torch.cat([self.values, values[:: self.step]])
        while len(self.values) > self.size:
            self.values = self.values[::2]
            self.step = 2 * self.step


def _knots(values: Tensor) -> Tensor:
    """Return the values that healthy ones reach with the probabilities TAILS.

    Past the rarest probability of the sample they grow in proportion to its logarithm.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no healthy slices to learn the members' values from")
    values = values.sort().values
    index = ((1 - TAILS) * n).long().clamp(0, n - 1)
    found = values[index]
    rare = TAILS * n < 1
    if rare.any():
        level = torch.tensor(float(n)).log10().clamp(min=1e-6)
        found[rare] = values[-1] * (-TAILS[rare].log10() / level).clamp(min=1)
    return torch.cummax(found, 0).values
