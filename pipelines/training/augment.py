"""Random changes of a batch of slices or volumes: all of it at once, each sample by its own seed."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts.randomness import generator
from pipelines.detect.config import Augmentation

STREAM = 100  # of each sample's seed; models draw from lower ones

PLANES = {
    2: ((0, 1),),
    3: ((1, 2), (0, 2), (0, 1)),
}  # axes that an image can be turned in, by its number of dimensions


def augment(batch: dict[str, Tensor], a: Augmentation) -> dict[str, Tensor]:
    """Flip left-right, turn, shift, scale and brighten slices (B, C, H, W) or volumes and their masks, as each sample's seed draws it.

    Image and mask move together, linearly and by nearest neighbour, with zeros from beyond the border; the image stays in [0, 1] and is
    0 outside the mask. Turns go up to +-`rotate` degrees (about each axis of a volume), shifts up to +-`translate` of a side, sizes
    and brightness by a factor of up to 1 +- `scale` and 1 +- `intensity`.
    """
    image, mask = batch["image"], batch["mask"]
    dims = image.dim() - 2
    parts = (1, len(PLANES[dims]), dims, dims, 1)  # flip, turns, shifts, sizes, brightness
    draws = torch.stack(
        [torch.rand(sum(parts), generator=generator(s, STREAM)) for s in batch["seed"].tolist()]
    ).to(image.device)
    signed = (2 * draws - 1).split(parts, 1)
    if a.flip or a.rotate or a.translate or a.scale:
        grid = F.affine_grid(
            _affine(draws[:, 0], signed[1:4], a, image.shape[2:]),
            list(image.shape),
            align_corners=False,
        ).to(image)
        image = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
        mask = F.grid_sample(mask, grid, mode="nearest", align_corners=False)
    if a.intensity:
        image = (image * (1 + a.intensity * signed[4]).view(-1, *[1] * (dims + 1))).clamp(0, 1)
    return batch | {"image": image * mask, "mask": mask}


def _affine(flips: Tensor, signed: Sequence[Tensor], a: Augmentation, sides: torch.Size) -> Tensor:
    """Where each place of the new image is taken from, (B, D, D + 1), for `affine_grid`: coordinates (last axis first) from -1 to 1.

    `signed`: turns, shifts and sizes from -1 to 1, a column per plane or axis.
    """
    turns, shifts, sizes = signed
    matrix = _rotation(math.radians(a.rotate) * turns, len(sides))
    for i, j in itertools.permutations(range(len(sides)), 2):
        matrix[:, i, j] = matrix[:, i, j] * sides[j] / sides[i]  # from voxels to -1 .. 1
    matrix = matrix / (1 + a.scale * sizes)[:, :, None]
    rows = torch.cat([matrix.flip(2), 2 * a.translate * shifts[:, :, None]], 2)
    rows[:, 0] *= torch.where(flips < a.flip, -1.0, 1.0)[
        :, None
    ]  # the first axis runs from left to right
    return rows.flip(1)


def _rotation(angles: Tensor, dims: int) -> Tensor:
    """Rotation matrices (B, D, D): a turn of `angles` (B, planes) radians in each of `PLANES`, the last one first."""
    turns = []
    for (i, j), angle in zip(PLANES[dims], angles.unbind(1), strict=True):
        turn = torch.eye(dims).repeat(len(angle), 1, 1).to(angle)
        turn[:, i, i] = turn[:, j, j] = angle.cos()
        turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
        turns.append(turn)
    return functools.reduce(torch.matmul, turns)


def crop(batch: dict[str, Tensor], size: tuple[int, ...]) -> dict[str, Tensor]:
    """One patch of `size` per slice or volume, about a place in the brain that its seed draws (any place where there is no brain)."""
    parts: dict[str, list[Tensor]] = {"image": [], "mask": []}
    for image, mask, seed in zip(
        batch["image"], batch["mask"], batch["seed"].tolist(), strict=True
    ):
        inside = mask[0].nonzero() if mask.any() else torch.ones_like(mask[0]).nonzero()
        centre = inside[
            int(torch.randint(len(inside), (1,), generator=generator(seed, STREAM + 1)))
        ].tolist()
        starts = [
            min(max(c - s // 2, 0), n - s)
            for c, s, n in zip(centre, size, mask.shape[1:], strict=True)
        ]
        window = (slice(None), *(slice(i, i + s) for i, s in zip(starts, size, strict=True)))
        parts["image"].append(image[window])
        parts["mask"].append(mask[window])
    return batch | {k: torch.stack(v) for k, v in parts.items()}
