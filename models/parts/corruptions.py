"""Synthetic anomalies of known severity, planted in healthy slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts.pretext import coarse_noise, cut_windows
from models.parts.randomness import rand

VISIBLE = 0.01  # smaller changes of intensity have no severity


def foreign_patch(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None, source: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mix a region M with that of another slice: x + alpha * M * (y - x).

    Foreign patch interpolation (Tan et al. 2020).

    Args:
        image: x, slices (B, C, H, W) in [0, 1].
        mask: brain (B, 1, H, W).
        seeds: one seed per slice (B,), or None.
        source: y, like image. None takes the batch's next slice, and for a batch of one its own
            mirror image. Where a source is 0 in all channels nothing is changed.

    Returns the changed image and its severity (B, 1, H, W): alpha, from 0.05 to 0.95, where more
    than `VISIBLE` changed, else 0.
    """
    source = _neighbours(image) if source is None else source
    depth, draws, _ = _regions(mask, seeds, rectangles=True)
    weight = _alpha(draws) * ((depth > 0) & (source.amax(1, keepdim=True) > 0))
    return _with_severity(image, image + weight * (source - image), weight)


def poisson_patch(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None, source: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mix as `foreign_patch`, without a seam: second differences are mixed (Perez et al. 2003).

    At the region's border the image stays as it is. The result is held to [0, 1]. Poisson image
    interpolation (Tan et al. 2021), solved by a fixed number of sweeps of red-black
    over-relaxation: half as many as the longer side has pixels.
    """
    source = _neighbours(image) if source is None else source
    depth, draws, _ = _regions(mask, seeds, rectangles=True)
    inside = (depth > 0) & (source.amax(1, keepdim=True) > 0)
    weight = _alpha(draws) * inside
    blended = image + _alpha(draws) * solve_poisson(laplacian(source - image), inside)
    return _with_severity(image, torch.where(inside, blended.clamp(0, 1), image), weight)


def change_intensity(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a blob M towards one random intensity t per channel: x + alpha * M * (t - x).

    M falls from 1 to 0 at soft edges. Args and returns: as `foreign_patch`; the severity is
    alpha * M.
    """
    depth, draws, _ = _regions(mask, seeds)
    weight = _alpha(draws) * (depth / 0.3).clamp(max=1)
    value = rand(image[:, :, :1, :1], seeds, stream=11)
    return _with_severity(image, image + weight * (value - image), weight)


def deform(image: Tensor, mask: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Swell or shrink what lies in a blob about its centre.

    The factor is up to 1 +- alpha at the centre and fades to 1 at the edge. Args and returns: as
    `foreign_patch`; the severity is alpha.
    """
    depth, draws, centre = _regions(mask, seeds)
    alpha = _alpha(draws)
    sign = torch.where(draws[:, 6] < 0.5, -1, 1)[:, None, None]
    factor = 1 + sign * (alpha * depth)[:, 0]

    rows, columns = _grid(image)
    row, column = centre[:, :, None, None].unbind(1)
    y = row + factor * (rows - row)
    x = column + factor * (columns - column)
    height, width = image.shape[-2:]
    places = torch.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], dim=-1)

    moved = F.grid_sample(
        image.float(), places.float(), padding_mode="border", align_corners=True
    ).to(image)
    return _with_severity(image, torch.where(depth > 0, moved, image), alpha * (depth > 0))


CORRUPTIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "foreign": foreign_patch,
    "poisson": poisson_patch,
    "intensity": change_intensity,
    "deformation": deform,
}


def corrupt(
    image: Tensor,
    mask: Tensor,
    seeds: Tensor | None = None,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Change a `share` of the slices, each by one of `kinds` of `CORRUPTIONS`.

    A slice's own seed says whether and how it is changed.

    Args: image (B, C, H, W) in [0, 1]; mask (B, 1, H, W); seeds (B,) or None. Returns the image
    and its severity (B, 1, H, W).
    """
    draws = rand(torch.empty(len(image), 2), seeds, stream=13)
    kind_of = torch.where(draws[:, 0] < share, (draws[:, 1] * len(kinds)).long(), -1)
    out = image.clone()
    severity = torch.zeros_like(mask)
    source = _neighbours(image)
    for number, kind in enumerate(kinds):
        at = (kind_of == number).nonzero().flatten().to(image.device)
        if len(at) == 0:
            continue
        given = {"source": source[at]} if kind in ("foreign", "poisson") else {}
        chosen = None if seeds is None else seeds.to(at.device)[at]
        out[at], severity[at] = CORRUPTIONS[kind](image[at], mask[at], chosen, **given)
    return out, severity


def _neighbours(image: Tensor) -> Tensor:
    """Return the next slice of the batch for every slice, for a single one its mirror image."""
    return image.roll(-1, 0) if len(image) > 1 else image.flip(-1)


def _alpha(draws: Tensor) -> Tensor:
    """Return alpha, from 0.05 to 0.95, of the draws of `_regions`, (B, 1, 1, 1)."""
    return (0.05 + 0.9 * draws[:, 5])[:, None, None, None]


def _with_severity(image: Tensor, changed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changed image and its weight, which is 0 where the change is not visible."""
    return changed, weight * ((changed - image).abs().amax(1, keepdim=True) > VISIBLE)


def _grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column numbers, (H, 1) and (1, W), float."""
    rows, columns = (
        torch.arange(n, device=image.device, dtype=torch.float32) for n in image.shape[-2:]
    )
    return rows[:, None], columns[None]


def _regions(
    mask: Tensor, seeds: Tensor | None, rectangles: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one region of each brain, centred on a brain pixel: an uneven blob or a rectangle.

    It is from 0.1 to 0.4 of the longer side wide. Returns depth (B, 1, H, W): 0 outside the region
    and the brain, up to 1 at the centre. Then the uniform draws (B, 7), of which 5 and 6 are free
    for the caller, and the centres (B, 2), row and column.
    """
    draws = rand(mask.new_empty(len(mask), 7, dtype=torch.float32), seeds, stream=10)
    order = (mask > 0).flatten(1).cumsum(1)
    pixel = (order <= (draws[:, :1] * order[:, -1:]).long()).sum(1).clamp(max=order.shape[1] - 1)
    centre = torch.stack([pixel // mask.shape[-1], pixel % mask.shape[-1]], dim=1).float()
    radius = (max(mask.shape[-2:]) * (0.05 + 0.15 * draws[:, 1:3])).clamp(min=1.5)

    y, x = (
        (at - c[:, None, None]) / r[:, None, None]
        for at, c, r in zip(_grid(mask), centre.unbind(1), radius.unbind(1), strict=True)
    )
    uneven = coarse_noise(mask, torch.ones_like(mask), 0.3, 8, seeds)[:, 0]
    apart = (y.square() + x.square()).sqrt() + uneven
    if rectangles:
        apart = torch.where(draws[:, 3, None, None] < 0.5, torch.maximum(y.abs(), x.abs()), apart)
    return (1 - apart).clamp(0, 1)[:, None].to(mask) * mask, draws, centre


def _around(x: Tensor) -> Tensor:
    """Return the sum of the four neighbours, 0 beyond the edge."""
    wide = F.pad(x, (1, 1, 1, 1))
    return wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:] + wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]


def laplacian(x: Tensor) -> Tensor:
    """Return the sum of differences to the four neighbours; the edge continues the image."""
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return _around(wide)[..., 1:-1, 1:-1] - 4 * x


def solve_poisson(right: Tensor, inside: Tensor) -> Tensor:
    """Return u with `laplacian`(u) = right inside, and 0 elsewhere.

    Args: right (B, C, H, W); inside (B, 1, H, W) bool. Returns (B, C, H, W).
    """
    side = max(right.shape[-2:])
    # The best over-relaxation for a square of half the side.
    step = 2 / (1 + math.sin(2 * math.pi / side))
    window = _window(inside)
    odd = (window[0] + window[1]) % 2 == 1
    near = cut_windows(inside, window)
    goal = cut_windows(right / 4, window)
    colours = [(step * (near & colour)).to(right) for colour in (odd, ~odd)]

    u = torch.zeros_like(goal)
    for _ in range(side // 2):
        for colour in colours:
            u = u + colour * (_around(u) / 4 - goal - u)

    batch = torch.arange(len(u), device=u.device)[:, None, None, None]
    channel = torch.arange(u.shape[1], device=u.device)[:, None, None]
    return torch.zeros_like(right).index_put((batch, channel, *window), u)


def _window(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows of one size that hold each slice's region (B, 1, H, W).

    A window is given by its row numbers (B, 1, h, 1) and column numbers (B, 1, 1, w).
    """
    numbers = []
    for axis in (2, 3):
        hit = inside.any(5 - axis).flatten(1)
        first = hit.int().argmax(1)
        last = hit.shape[1] - hit.flip(1).int().argmax(1)
        size = int((last - first).amax()) if bool(hit.any()) else 1
        start = torch.where(hit.any(1), first, 0).clamp(max=hit.shape[1] - size)
        numbers.append(start[:, None] + torch.arange(size, device=inside.device))
    rows, columns = numbers
    return rows[:, None, :, None], columns[:, None, None]
