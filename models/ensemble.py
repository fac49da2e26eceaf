"""Several detectors as one: the mean of how improbable each finds a pixel among healthy ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch

TAILS = 10 ** -torch.linspace(0, 6, 241)  # tail probabilities, 40 per decade
KEPT = 4_000_000  # healthy values per member at most
AT_ONCE = 16  # slices of a volume


class Ensemble(AnomalyModel):
    """Healthy-normalised maps of finished runs, combined.

    A member's map value v becomes -log10 P(healthy value >= v), from the maps of healthy validation slices; beyond the highest healthy
    value it goes on in proportion to v. The map is the mean over members, so that detectors of any scale add up, and one that is
    silent where it knows nothing does not hide another. Members see slices at their own resolution. Given volumes on the grid of the
    scans, each sees slices of its own plane: one network per plane is three-plane aggregation.

    Args:
        members: trained detectors.
        sizes: height and width at which each sees slices.
        planes: of each, the axes of a volume (X, Y, Z) in the order that puts that of its slices last; axial where left out.
    """

    stages = ()
    combines = True

    def __init__(
        self,
        members: Sequence[AnomalyModel] = (),
        sizes: Sequence[tuple[int, int]] = (),
        planes: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.members, self.sizes = nn.ModuleList(members), [tuple(s) for s in sizes]
        self.planes = list(planes or [(0, 1, 2)] * len(members))
        self.register_buffer("knots", torch.linspace(0, 1, len(TAILS)).repeat(len(members), 1))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """The healthy distribution of each member's map, from healthy slices that no member has learned from."""
        device = self.get_buffer("knots").device
        seen = [_Sample() for _ in self.members]
        with torch.no_grad():
            for batch in batches:
                x, mask, z = (batch[k].to(device) for k in ("image", "mask", "z"))
                for sample, found in zip(seen, self._maps(x, mask, z), strict=True):
                    sample.add(found[mask > 0].float().cpu())
        if seen:
            self.knots = torch.stack([_knots(sample.values) for sample in seen]).to(device)

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        knots = self.get_buffer("knots")
        found = [improbability(v, k) for v, k in zip(self._maps(x, mask, z), knots, strict=True)]
        return (
            torch.stack(found).mean(0) * mask
            if found
            else torch.zeros_like(mask, dtype=torch.float32)
        )

    def _maps(self, x: Tensor, mask: Tensor, z: Tensor | None) -> list[Tensor]:
        """Each member's map at the resolution of x, (B, 1, H, W) or (B, 1, X, Y, Z) float32."""
        each = list(zip(self.members, self.sizes, self.planes, strict=True))
        if x.dim() == 4:
            return [_of_slices(member, size, x, mask, z) for member, size, _ in each]
        return [
            torch.cat(
                [_of_volume(*one, v, m) for v, m in zip(x.split(1), mask.split(1), strict=True)]
            )
            for one in each
        ]


def _of_slices(
    member: nn.Module, size: tuple[int, ...], x: Tensor, mask: Tensor, z: Tensor | None
) -> Tensor:
    """A member's map of slices (B, C, H, W) at its own resolution, brought back to theirs."""
    own = x.shape[2:] == size
    small, inside = (
        (x, mask)
        if own
        else (F.interpolate(x, size, mode="area"), F.interpolate(mask, size, mode="nearest-exact"))
    )
    assert isinstance(member, AnomalyModel)
    found = member.anomaly_map(small * inside, inside, z).float()
    return (
        found
        if own
        else F.interpolate(found, x.shape[2:], mode="bilinear", align_corners=False) * mask
    )


def _of_volume(
    member: nn.Module, size: tuple[int, ...], axes: tuple[int, int, int], x: Tensor, mask: Tensor
) -> Tensor:
    """A member's map of one volume (1, C, X, Y, Z), slice by slice of its plane."""
    result = torch.zeros_like(mask, dtype=torch.float32)
    order = (1 + axes[2], 0, 1 + axes[0], 1 + axes[1])  # slices first
    slices, inside, shown = (
        v[0].permute(order) for v in (x, mask, result)
    )  # views: what is shown stands in the result
    for rows in inside.flatten(1).any(1).nonzero().flatten().split(AT_ONCE):
        shown[rows] = _of_slices(member, size, slices[rows], inside[rows], rows)
    return result


def improbability(values: Tensor, knots: Tensor) -> Tensor:
    """-log10 of the healthy tail probability of map values of any shape; `knots` (K,) are the values at the tail probabilities TAILS."""
    levels = -TAILS.log10().to(values)
    flat = values.flatten().to(knots.dtype).contiguous()
    after = torch.searchsorted(knots, flat, right=True).clamp(1, len(knots) - 1)
    low, high = knots[after - 1], knots[after]
    share = ((flat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    inside = levels[after - 1] + share * (levels[after] - levels[after - 1])
    beyond = levels[-1] * flat / knots[-1].clamp(min=1e-12)
    return torch.where(flat > knots[-1], beyond, inside).clamp(min=0).reshape(values.shape)


class _Sample:
    """All values that were added, or every 2nd, 4th, ... of them, so that there are never more than KEPT."""

    def __init__(self) -> None:
        self.values, self.step = torch.zeros(0), 1

    def add(self, values: Tensor) -> None:
        self.values = torch.cat([self.values, values[:: self.step]])
        while len(self.values) > KEPT:
            self.values, self.step = self.values[::2], 2 * self.step


def _knots(values: Tensor) -> Tensor:
    """Values that healthy ones reach with the probabilities TAILS; past the rarest that was seen, in proportion to the logarithm."""
    values, n = values.sort().values, len(values)
    if n == 0:
        raise ValueError("no healthy slices to learn the members' values from")
    index = ((1 - TAILS) * n).long().clamp(0, n - 1)
    found = values[index]
    rare = TAILS * n < 1
    if rare.any():
        top, level = values[-1], torch.tensor(float(n)).log10()
        found[rare] = top * (-TAILS[rare].log10() / level.clamp(min=1e-6)).clamp(min=1)
    return torch.cummax(found, 0).values
