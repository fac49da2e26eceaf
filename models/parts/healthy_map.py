"""What healthy maps look like at each place of the brain, and detectors measured against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch
from models.parts.filters import blur_inside, gaussian_blur, tail_of

Kind = Literal["none", "difference", "ratio", "z"]


def place_statistics(
    batches: Iterable[Batch],
    function: Callable[[Batch], Tensor],
    smooth: float,
    prior: float,
    mirror: bool,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per slice index and pixel, (Z, C, H, W) each.

    Where few healthy brains reach, the variance is drawn towards that of the whole brain, as if
    `prior` more scans had it. The mean is drawn likewise.

    Args:
        batches: healthy slices.
        function: batch to values (B, C, H, W), 0 outside the mask.
        smooth: sigma in pixels of a Gaussian over the result.
        prior: weight of the whole brain's mean and variance, in scans.
        mirror: every slice counts with its mirror image.
    """
    count, total, square = _sums(batches, function, mirror).unbind(1)
    # The whole brain, per channel.
    n, whole, whole_square = (v.sum((0, 2, 3), keepdim=True) for v in (count, total, square))
    whole_mean = whole / n.clamp(min=1)
    whole_var = (whole_square / n.clamp(min=1) - whole_mean.square()).clamp(min=1e-12)

    mean = (total + prior * whole_mean) / (count + prior)
    # The sum of (x - mean)^2.
    around = (square - 2 * mean * total + count * mean.square()).clamp(min=0)
    deviation = ((around + prior * whole_var) / (count + prior)).sqrt()
    mean, deviation = (gaussian_blur(v.float(), smooth).contiguous() for v in (mean, deviation))
    return mean, deviation


def _sums(batches: Iterable[Batch], function: Callable[[Batch], Tensor], mirror: bool) -> Tensor:
    """Return count, sum and sum of squares by slice index, (Z, 3, C, H, W) float64."""
    sums = torch.zeros(0, 3, 1, 1, 1)
    for batch in batches:
        x = function(batch).cpu()
        mask = batch["mask"].float().cpu()
        new = torch.stack([mask.expand_as(x), x, x.square()], 1).double()
        new = new + new.flip(3) if mirror else new

        z = batch["z"].cpu()
        missing = int(z.max()) + 1 - len(sums)
        if missing > 0:
            known = sums.expand(-1, -1, *new.shape[2:]).double()
            sums = torch.cat([known, new.new_zeros(missing, *new.shape[1:])])
        sums.index_add_(0, z, new)
    return sums


def places(x: Tensor, z: Tensor | None, count: int) -> Tensor:
    """Return at which of `count` slice indices each slice of x (B, ...) is compared, (B,).

    That is its own index, or the last; the first where z is None.
    """
    place = torch.zeros(len(x), dtype=torch.long, device=x.device) if z is None else z.to(x.device)
    return place.clamp(max=count - 1)


class Referenced(AnomalyModel):
    """A trained detector whose map is measured against healthy maps at the same place.

    The detector's map is smoothed inside the brain. By `kind` it then becomes its "difference"
    from the healthy mean m, its "ratio" to m, or "z": the difference over the healthy standard
    deviation. Negative values become 0. Of the "residual" it is the signed difference of image and
    reconstruction that is smoothed and compared; its `tail` counts, mean over channels. The
    detector's scores stay as they are. With `scores` they become their z among healthy slices of
    the same index and those near it.

    With `symmetry` w the map v becomes v + w max(0, v - v'). Here v' is the highest value within
    `reach` pixels of the mirrored place. So a finding in one hemisphere alone counts for more.

    Args:
        model: a trained detector.
        kind: "none" (the smoothed map itself), "difference", "ratio" or "z".
        of: "map", or "residual" for a model that reconstructs; not with "ratio".
        tail: "bright", "dark" or "both" sides of the residual.
        smooth: sigma in pixels, of the map inside the brain and of the healthy mean and deviation.
        prior: weight of the whole brain's mean and variance, in scans.
        mirror: also learn from every map's mirror image.
        symmetry: weight of what the other hemisphere does not show.
        reach: pixels that the two hemispheres may be apart.
        scores: also measure the detector's own scores against healthy ones.
    """

    stages = ()

    def __init__(
        self,
        model: AnomalyModel,
        kind: Kind = "z",
        of: Literal["map", "residual"] = "map",
        tail: Literal["bright", "dark", "both"] = "both",
        smooth: float = 1.5,
        prior: float = 2.0,
        mirror: bool = True,
        symmetry: float = 0.0,
        reach: int = 3,
        scores: bool = False,
    ) -> None:
        super().__init__()
        reconstructs = type(model).reconstruct is not AnomalyModel.reconstruct
        if of == "residual" and (kind == "ratio" or not reconstructs):
            raise ValueError(
                f"of=residual does not go with kind={kind} of {type(model).__name__}: "
                "it needs a reconstruction, and no ratio"
            )
        self.of = of
        self.tail = tail
        self.symmetry = symmetry
        self.reach = reach
        self.model = model
        self.kind = kind
        self.smooth = smooth
        self.prior = prior
        self.mirror = mirror
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("deviation", torch.ones(0, 0, 0))
        self.scores = scores
        if scores:
            self.register_buffer("score_mean", torch.zeros(0))
            self.register_buffer("score_deviation", torch.ones(0))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take mean and deviation of the detector's map, and of its scores, over healthy slices.

        The detector stays as it is.
        """
        device = self.get_buffer("mean").device
        scores = _Scores()

        def values(batch: Batch) -> Tensor:
            x, mask, z = (batch[k].to(device) for k in ("image", "mask", "z"))
            if self.scores:
                scores.add(z, self.model.score(x, mask, z))
            return self._values(x, mask, z)

        with torch.no_grad():
            statistics = place_statistics(batches, values, self.smooth, self.prior, self.mirror)
        self.mean, self.deviation = (v.flatten(0, 1).contiguous().to(device) for v in statistics)
        if self.scores:
            self.score_mean, self.score_deviation = (v.to(device) for v in scores.statistics())

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        signed = self._compared(self._values(x, mask, z), z)
        sided = tail_of(signed, self.tail) if self.of == "residual" else signed.clamp(min=0)
        found = sided.mean(1, keepdim=True) * mask
        if self.symmetry:
            other = F.max_pool2d(found.flip(2), 2 * self.reach + 1, 1, self.reach)
            found = found + self.symmetry * (found - other).clamp(min=0)
        return found

    def _values(self, x: Tensor, mask: Tensor, z: Tensor | None) -> Tensor:
        """Return what is compared, smoothed inside the brain: map or residual (B, C, H, W)."""
        if self.of == "map":
            values = self.model.anomaly_map(x, mask, z)
        else:
            values = x - self.model.reconstruct(x)
        return blur_inside(values.float(), mask.float(), self.smooth)

    def _compared(self, values: Tensor, z: Tensor | None) -> Tensor:
        """Return values (B, C, H, W) against those of healthy scans at the same place."""
        if self.kind == "none":
            return values
        mean, deviation = (
            self.get_buffer(name).unflatten(0, (-1, values.shape[1]))
            for name in ("mean", "deviation")
        )
        place = places(values, z, len(mean))
        apart = values - mean[place]
        return {
            "difference": apart,
            "ratio": values / mean[place].clamp(min=1e-12),
            "z": apart / deviation[place],
        }[self.kind]

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        score = self.model.score(x, mask, z)
        if not self.scores:
            return score
        mean = self.get_buffer("score_mean")
        place = places(score, z, len(mean))
        return (score - mean[place]) / self.get_buffer("score_deviation")[place]

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.model.reconstruct(x)


class _Scores:
    """Healthy scores by slice index: count, sum and sum of squares.

    Mean and deviation at an index come from the scores near it.
    """

    NEAR = 4.0  # sigma of a Gaussian over slice indices

    def __init__(self) -> None:
        self.sums = torch.zeros(0, 3, dtype=torch.float64)

    def add(self, z: Tensor, values: Tensor) -> None:
        """Count the scores (B,) of slices of index z (B,)."""
        missing = max(0, int(z.max()) + 1 - len(self.sums))
        self.sums = torch.cat([self.sums, self.sums.new_zeros(missing, 3)])
        values = values.double().cpu()
        moments = torch.stack([torch.ones_like(values), values, values.square()], 1)
        self.sums.index_add_(0, z.cpu(), moments)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation at each slice index, (Z,) each."""
        index = torch.arange(len(self.sums), dtype=torch.float64)
        weight = (-0.5 * ((index[:, None] - index[None]) / self.NEAR).square()).exp()
        # The mean of all scores counts as one more score at every index.
        whole = self.sums.mean(0) / self.sums[:, 0].mean()
        count, total, square = (weight @ self.sums + whole).unbind(1)

        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp(min=1e-12).sqrt().float()
