"""Random changes of a batch of slices: all of it at once, each slice by its own seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers import generator

if TYPE_CHECKING:
    from pipelines.config import Augmentation

STREAM = 100  # of each sample's seed; models draw from lower ones


def augment(batch: dict[str, Tensor], a: Augmentation) -> dict[str, Tensor]:
    """Flip left-right, turn, shift, scale and brighten slices (B, C, H, W) and their masks, as each slice's seed draws it.

    Image and mask move together, bilinear and nearest neighbour, with zeros from beyond the border; the image stays in [0, 1] and is
    0 outside the mask. Turns go up to +-`rotate` degrees, shifts up to +-`translate` of a side, sizes and brightness by a factor of
    up to 1 +- `scale` and 1 +- `intensity`.
    """
    image, mask = batch["image"], batch["mask"]
    draws = torch.stack([torch.rand(7, generator=generator(s, STREAM)) for s in batch["seed"].tolist()]).to(image.device)
    signed = 2 * draws - 1
    if a.flip or a.rotate or a.translate or a.scale:
        grid = F.affine_grid(_affine(draws[:, 0], signed, a, image.shape[2:]), list(image.shape), align_corners=False).to(image)
        image = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
        mask = F.grid_sample(mask, grid, mode="nearest", align_corners=False)
    if a.intensity:
        image = (image * (1 + a.intensity * signed[:, 6])[:, None, None, None]).clamp(0, 1)
    return batch | {"image": image * mask, "mask": mask}


def _affine(flips: Tensor, signed: Tensor, a: Augmentation, sides: torch.Size) -> Tensor:
    """Where each pixel of the new slice is taken from, (B, 2, 3), for `affine_grid`: coordinates (along W, along H) from -1 to 1."""
    height, width = sides
    angle = math.radians(a.rotate) * signed[:, 1]
    cos, sin = angle.cos(), angle.sin()
    across, along = 1 + a.scale * signed[:, 4], 1 + a.scale * signed[:, 5]  # sizes of the new slice along H and W
    mirrored = torch.where(flips < a.flip, -1.0, 1.0)  # the first axis, H, runs from left to right
    rows = [
        torch.stack([cos / along, sin * height / width / along, 2 * a.translate * signed[:, 3]], 1),
        torch.stack([-sin * width / height / across, cos / across, 2 * a.translate * signed[:, 2]], 1) * mirrored[:, None],
    ]
    return torch.stack(rows, 1)


def crop(batch: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """One patch of `size` per slice, about a brain pixel that the slice's seed draws (any pixel where there is no brain)."""
    parts: dict[str, list[Tensor]] = {"image": [], "mask": []}
    for image, mask, seed in zip(batch["image"], batch["mask"], batch["seed"].tolist(), strict=True):
        inside = mask[0].nonzero() if mask.any() else torch.ones_like(mask[0]).nonzero()
        centre = inside[int(torch.randint(len(inside), (1,), generator=generator(seed, STREAM + 1)))].tolist()
        starts = [min(max(c - s // 2, 0), n - s) for c, s, n in zip(centre, size, mask.shape[1:], strict=True)]
        window = (slice(None), *(slice(i, i + s) for i, s in zip(starts, size, strict=True)))
        parts["image"].append(image[window])
        parts["mask"].append(mask[window])
    return batch | {k: torch.stack(v) for k, v in parts.items()}
