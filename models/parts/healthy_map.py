"""What healthy maps look like at each place of the brain, and any detector measured against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import AnomalyModel, Batch
from models.parts.layers import blur_inside, gaussian_blur, tail_of

Kind = Literal["none", "difference", "ratio", "z"]


def place_statistics(
    batches: Iterable[Batch],
    function: Callable[[Batch], Tensor],
    smooth: float,
    prior: float,
    mirror: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per slice index and pixel, (Z, C, H, W) each, of what `function` makes of healthy slices.

    `function` gives (B, C, H, W), 0 outside the mask. Where few healthy brains reach, the variance is drawn towards that of the
    whole brain as if `prior` more scans had it, and the mean likewise. `mirror`: every slice counts with its mirror image.
    `smooth`: sigma in pixels of a Gaussian over the result.
    """
    sums = torch.zeros(
        0, 3, 1, 1, 1
    )  # by slice index: count, sum and sum of squares, each (C, H, W)
    for batch in batches:
        x, mask = function(batch).cpu(), batch["mask"].float().cpu()
        new = torch.stack([mask.expand_as(x), x, x.square()], 1).double()
        new = new + new.flip(3) if mirror else new
        z = batch["z"].cpu()
        missing = int(z.max()) + 1 - len(sums)
        if missing > 0:
            sums = torch.cat(
                [
                    sums.expand(-1, -1, *new.shape[2:]).double(),
                    new.new_zeros(missing, *new.shape[1:]),
                ]
            )
        sums.index_add_(0, z, new)
    count, total, square = sums.unbind(1)
    n, whole, whole_square = (
        v.sum((0, 2, 3), keepdim=True) for v in (count, total, square)
    )  # per channel
    whole_mean = whole / n.clamp(min=1)
    whole_var = (whole_square / n.clamp(min=1) - whole_mean.square()).clamp(min=1e-12)
    mean = (total + prior * whole_mean) / (count + prior)
    around = (square - 2 * mean * total + count * mean.square()).clamp(min=0)  # sum of (x - mean)^2
    deviation = ((around + prior * whole_var) / (count + prior)).sqrt()
    mean, deviation = (gaussian_blur(v.float(), smooth).contiguous() for v in (mean, deviation))
    return mean, deviation


def places(x: Tensor, z: Tensor | None, count: int) -> Tensor:
    """Which of `count` slice indices each slice of x (B, ...) is compared at, (B,): its own, or the last; the first where z is None."""
    place = torch.zeros(len(x), dtype=torch.long, device=x.device) if z is None else z.to(x.device)
    return place.clamp(max=count - 1)


class Referenced(AnomalyModel):
    """A trained detector whose map is measured against the maps of healthy scans at the same place of the atlas.

    The detector's map is smoothed inside the brain, then becomes by `kind` its "difference" from the healthy mean m, its "ratio"
    to m, or "z", the difference over the healthy standard deviation; negative values become 0. Of the "residual" it is the signed
    difference of image and reconstruction that is smoothed and compared, and its `tail` that counts, mean over channels. Scores of
    the detector's own stay as they are, or with `scores` become their z among healthy slices of the same index and those near it.

    With `symmetry` w the map v becomes v + w max(0, v - v'), where v' is the highest value within `reach` pixels of the mirrored place:
    what one hemisphere alone shows counts for more.

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
        if of == "residual" and (
            kind == "ratio" or type(model).reconstruct is AnomalyModel.reconstruct
        ):
            raise ValueError(
                f"of=residual does not go with kind={kind} of {type(model).__name__}: it needs a reconstruction, and no ratio"
            )
        self.of, self.tail, self.symmetry, self.reach = of, tail, symmetry, reach
        self.model, self.kind, self.smooth, self.prior, self.mirror = (
            model,
            kind,
            smooth,
            prior,
            mirror,
        )
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("deviation", torch.ones(0, 0, 0))
        self.scores = scores
        if scores:
            self.register_buffer("score_mean", torch.zeros(0))
            self.register_buffer("score_deviation", torch.ones(0))

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Mean and deviation of the detector's map, and of its scores, over healthy slices; the detector stays as it is."""
        device, scores = self.get_buffer("mean").device, _Scores()

        def seen(batch: Batch) -> Tensor:
            x, mask, z = (batch[k].to(device) for k in ("image", "mask", "z"))
            if self.scores:
                scores.add(z, self.model.score(x, mask, z))
            return self._seen(x, mask, z)

        with torch.no_grad():
            statistics = place_statistics(batches, seen, self.smooth, self.prior, self.mirror)
        self.mean, self.deviation = (v.flatten(0, 1).contiguous().to(device) for v in statistics)
        if self.scores:
            self.score_mean, self.score_deviation = (v.to(device) for v in scores.statistics())

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        found = self._compared(self._seen(x, mask, z), z)
        found = (tail_of(found, self.tail) if self.of == "residual" else found.clamp(min=0)).mean(
            1, keepdim=True
        ) * mask
        if self.symmetry:
            other = F.max_pool2d(found.flip(2), 2 * self.reach + 1, 1, self.reach)
            found = found + self.symmetry * (found - other).clamp(min=0)
        return found

    def _compared(self, seen: Tensor, z: Tensor | None) -> Tensor:
        """What was seen (B, C, H, W) against what healthy scans show at the same place."""
        if self.kind == "none":
            return seen
        mean, deviation = (
            self.get_buffer(name).unflatten(0, (-1, seen.shape[1]))
            for name in ("mean", "deviation")
        )
        place = places(seen, z, len(mean))
        mean, deviation = mean[place], deviation[place]
        return {
            "difference": seen - mean,
            "ratio": seen / mean.clamp(min=1e-12),
            "z": (seen - mean) / deviation,
        }[self.kind]

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        score = self.model.score(x, mask, z)
        if not self.scores:
            return score
        place = places(score, z, len(self.get_buffer("score_mean")))
        return (score - self.get_buffer("score_mean")[place]) / self.get_buffer("score_deviation")[
            place
        ]

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.model.reconstruct(x)

    def _seen(self, x: Tensor, mask: Tensor, z: Tensor | None) -> Tensor:
        if self.of == "map":
            found = self.model.anomaly_map(x, mask, z)
        else:
            found = x - self.model.reconstruct(x)
        return blur_inside(found.float(), mask.float(), self.smooth)


class _Scores:
    """Healthy scores by slice index: count, sum and sum of squares, and from those near it the mean and deviation at each index."""

    NEAR = 4.0  # sigma of a Gaussian over slice indices

    def __init__(self) -> None:
        self.sums = torch.zeros(0, 3, dtype=torch.float64)

    def add(self, z: Tensor, values: Tensor) -> None:
        missing = max(0, int(z.max()) + 1 - len(self.sums))
        self.sums = torch.cat([self.sums, self.sums.new_zeros(missing, 3)])
        values = values.double().cpu()
        self.sums.index_add_(
            0, z.cpu(), torch.stack([torch.ones_like(values), values, values.square()], 1)
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        index = torch.arange(len(self.sums), dtype=torch.float64)
        weight = (-0.5 * ((index[:, None] - index[None]) / self.NEAR).square()).exp()
        count, total, square = (
            weight @ self.sums + self.sums.mean(0) / self.sums[:, 0].mean()
        ).unbind(1)  # the whole: one more score
        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp(min=1e-12).sqrt().float()
