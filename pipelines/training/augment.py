"""Random changes of a batch of slices or volumes: all at once, each sample by its own seed."""

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

# Axes that an image can be turned in, by its number of dimensions.
TURNS = {2: ((0, 1),), 3: ((1, 2), (0, 2), (0, 1))}


def augment(batch: dict[str, Tensor], settings: Augmentation) -> dict[str, Tensor]:
    """Flip left-right, turn, shift, scale and brighten, as each sample's seed draws it.

    Slices (B, C, H, W) or volumes move with their brains: the image linearly, the brain by nearest
    neighbour, with zeros from beyond the border. The image stays in [0, 1], 0 outside the brain.
    Turns go up to +-`rotate` degrees, of a volume about each axis. Shifts go up to +-`translate` of
    a side. Sizes and brightness change by a factor of up to 1 +- `scale` and 1 +- `intensity`.
    """
    image = batch["image"]
    brain = batch["mask"]
    dims = image.dim() - 2
    parts = (1, len(TURNS[dims]), dims, dims, 1)  # flip, turns, shifts, sizes, brightness
    draws = torch.stack(
        [torch.rand(sum(parts), generator=generator(s, STREAM)) for s in batch["seed"].tolist()]
    ).to(image.device)
    signed = (2 * draws - 1).split(parts, 1)

    if settings.flip or settings.rotate or settings.translate or settings.scale:
        affine = _affine(draws[:, 0], signed[1:4], settings, image.shape[2:])
        grid = F.affine_grid(affine, list(image.shape), align_corners=False).to(image)
        image = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
        brain = F.grid_sample(brain, grid, mode="nearest", align_corners=False)
    if settings.intensity:
        factor = (1 + settings.intensity * signed[4]).view(-1, *[1] * (dims + 1))
        image = (image * factor).clamp(0, 1)
    return batch | {"image": image * brain, "mask": brain}


def _affine(
    flips: Tensor, signed: Sequence[Tensor], settings: Augmentation, sides: torch.Size
) -> Tensor:
    """Where each place of the new image is taken from: (B, D, D + 1), for `affine_grid`.

    Its coordinates go from -1 to 1, the last axis first. `flips` is (B,) from 0 to 1. `signed`:
    turns, shifts and sizes from -1 to 1, a column per plane or axis.
    """
    turns, shifts, sizes = signed
    matrix = _rotation(math.radians(settings.rotate) * turns, len(sides))
    for i, j in itertools.permutations(range(len(sides)), 2):
        matrix[:, i, j] = matrix[:, i, j] * sides[j] / sides[i]  # from voxels to -1 .. 1
    matrix = matrix / (1 + settings.scale * sizes)[:, :, None]
    affine = torch.cat([matrix.flip(2), 2 * settings.translate * shifts[:, :, None]], 2)
    # the first axis runs from left to right: a brain is about symmetric in it alone
    affine[:, 0] *= torch.where(flips < settings.flip, -1.0, 1.0)[:, None]
    return affine.flip(1)


def _rotation(angles: Tensor, dims: int) -> Tensor:
    """Rotation matrices (B, D, D) of `angles` (B, planes) in radians.

    A turn in each plane of `TURNS`, the last one first.
    """
    turns = []
    for (i, j), angle in zip(TURNS[dims], angles.unbind(1), strict=True):
        turn = torch.eye(dims).repeat(len(angle), 1, 1).to(angle)
        turn[:, i, i] = angle.cos()
        turn[:, j, j] = angle.cos()
        turn[:, i, j] = -angle.sin()
        turn[:, j, i] = angle.sin()
        turns.append(turn)
    return functools.reduce(torch.matmul, turns)


def crop(batch: dict[str, Tensor], size: tuple[int, ...]) -> dict[str, Tensor]:
    """One patch of `size` per slice or volume, about a place in the brain that its seed draws.

    Where there is no brain, any place is drawn.
    """
    parts: dict[str, list[Tensor]] = {"image": [], "mask": []}
    seeds = batch["seed"].tolist()
    for image, brain, seed in zip(batch["image"], batch["mask"], seeds, strict=True):
        window = (slice(None), *_patch(brain[0], size, seed))
        parts["image"].append(image[window])
        parts["mask"].append(brain[window])
    return batch | {key: torch.stack(values) for key, values in parts.items()}


def _patch(brain: Tensor, size: tuple[int, ...], seed: int) -> tuple[slice, ...]:
    """A patch about a drawn voxel of the brain (H, W) or (X, Y, Z), moved to lie in the image."""
    inside = brain.nonzero() if brain.any() else torch.ones_like(brain).nonzero()
    draw = torch.randint(len(inside), (1,), generator=generator(seed, STREAM + 1))
    window: list[slice] = []
    for centre, side, length in zip(inside[int(draw)].tolist(), size, brain.shape, strict=True):
        start = min(max(centre - side // 2, 0), length - side)
        window.append(slice(start, start + side))
    return tuple(window)
